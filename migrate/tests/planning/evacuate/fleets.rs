//! Fleets for tests, and what must be so of a plan, worked out from the fleet without the planner's help.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use migrate::evacuate::*;
use migrate::facts::DomainState;
use migrate::plan::{CopyMode, Mode, Refusal};
use migrate::preflight::{Base, Demand};
use proptest::prelude::*;

pub(crate) const GIB: u64 = 1 << 30;
pub(crate) const DISK: &str = "device 1";

pub(crate) fn host(name: &str, memory: u64, vcpus: u64, space: u64) -> Destination {
    Destination {
        uri: format!("qemu+tls://{name}/system"),
        capacity: Some(Capacity { memory, vcpus }),
        filesystems: [(DISK.to_owned(), space)].into(),
        obstacles: vec![],
    }
}

pub(crate) fn demand(name: &str, bytes: u64) -> Demand {
    Demand {
        mode: Mode::Live,
        copy: CopyMode::Full,
        transfer_bytes: bytes,
        space: [(DISK.to_owned(), bytes)].into(),
        paths: vec![format!("/new/{name}.qcow2").into()],
        bases: vec![],
        streams: 2,
    }
}

/// With a backing file of this content.
pub(crate) fn on_base(mut demand: Demand, base: &str, bytes: u64) -> Demand {
    let path = PathBuf::from(format!("/new/{base}.qcow2"));
    demand.paths.push(path.clone());
    let (digest, filesystem) = (format!("digest of {base}"), DISK.to_owned());
    demand.bases.push(Base { path, digest, bytes, filesystem });
    demand.copy = CopyMode::Incremental;
    demand
}

/// A running guest that every one of `hosts` destinations can take.
pub(crate) fn guest(name: &str, memory: u64, demand: &Demand, hosts: usize) -> Candidate {
    Candidate {
        name: name.into(),
        uuid: uuid(name),
        state: Some(DomainState::Running),
        memory,
        vcpus: 1,
        demands: vec![Ok(demand.clone()); hosts],
    }
}

/// Eight digits of the name and the rest of a UUID.
pub(crate) fn uuid(name: &str) -> String {
    let digits: String = name.bytes().rev().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("6f1a9b52-6f2b-4a6e-9a53-{digits:0>12}")
}

pub(crate) fn refusal(code: &str) -> Refusal {
    let (message, way_out) = ("no".into(), "do it".into());
    Refusal { code: code.into(), disk: None, message, way_out }
}

pub(crate) fn fleet(destinations: Vec<Destination>, guests: Vec<Candidate>) -> Fleet {
    Fleet { from: "qemu:///system".into(), destinations, guests }
}

/// What the guests with these places take of a host: memory, processors, bytes; and who makes each path.
struct Used {
    memory: u64,
    vcpus: u64,
    space: BTreeMap<String, u64>,
    made: BTreeMap<PathBuf, String>,
}

fn used(fleet: &Fleet, places: &BTreeMap<&str, usize>, host: usize) -> Result<Used, String> {
    let mut used = Used { memory: 0, vcpus: 0, space: BTreeMap::new(), made: BTreeMap::new() };
    for guest in &fleet.guests {
        if places.get(&*guest.uuid) != Some(&host) {
            continue;
        }
        let demand =
            guest.demands[host].as_ref().map_err(|_| format!("{} was refused", guest.name))?;
        used.memory += guest.memory;
        used.vcpus += guest.vcpus;
        for (filesystem, bytes) in &demand.space {
            *used.space.entry(filesystem.clone()).or_default() += bytes;
        }
        for path in &demand.paths {
            let base = demand.bases.iter().find(|base| base.path == *path);
            let content = base.map_or_else(|| guest.uuid.clone(), |base| base.digest.clone());
            match used.made.get(path) {
                Some(known) if *known != content => return Err(format!("two make {path:?}")),
                Some(_) => {}
                None => {
                    if let Some(base) = base {
                        *used.space.entry(base.filesystem.clone()).or_default() += base.bytes;
                    }
                    used.made.insert(path.clone(), content);
                }
            }
        }
    }
    Ok(used)
}

/// Whether a host has room for the guests with these places.
fn holds(fleet: &Fleet, places: &BTreeMap<&str, usize>, host: usize) -> Result<(), String> {
    let (used, destination) = (used(fleet, places, host)?, &fleet.destinations[host]);
    if let Some(capacity) = destination.capacity
        && (used.memory > capacity.memory || used.vcpus > capacity.vcpus)
    {
        return Err(format!("{}: {} and {}", destination.uri, used.memory, used.vcpus));
    }
    for (filesystem, bytes) in &used.space {
        if destination.filesystems.get(filesystem).is_some_and(|free| bytes > free) {
            return Err(format!("{}: {bytes} in {filesystem}", destination.uri));
        }
    }
    if !destination.obstacles.is_empty() && places.values().any(|place| *place == host) {
        return Err(format!("{} takes none", destination.uri));
    }
    Ok(())
}

/// Where the plan has each guest go.
fn places<'a>(fleet: &'a Fleet, plan: &EvacuationPlan) -> BTreeMap<&'a str, usize> {
    let host = |to: &str| fleet.destinations.iter().position(|host| host.uri == to).unwrap();
    let uuid = |uuid: &str| &*fleet.guests.iter().find(|guest| guest.uuid == uuid).unwrap().uuid;
    plan.guests.iter().map(|guest| (uuid(&guest.uuid), host(&guest.to))).collect()
}

/// No host gets more than it has; every guest goes once or is refused, and what is refused fits nowhere; the smallest
/// go first; each backing file comes once to a host, with the first that needs it.
#[track_caller]
pub(crate) fn assert_right(fleet: &Fleet, plan: &EvacuationPlan) {
    let places = places(fleet, plan);
    for host in 0..fleet.destinations.len() {
        holds(fleet, &places, host).unwrap();
    }
    plan.check().unwrap();
    let mut all: Vec<_> = plan.guests.iter().map(|guest| &guest.uuid).collect();
    all.extend(plan.refused.iter().map(|left| &left.uuid));
    all.sort();
    let mut expected: Vec<_> = fleet.guests.iter().map(|guest| &guest.uuid).collect();
    expected.sort();
    assert_eq!(all, expected);
    for left in &plan.refused {
        let at = fleet.guests.iter().position(|guest| guest.uuid == left.uuid).unwrap();
        for (host, at_host) in left.reasons.iter().enumerate() {
            assert!(!at_host.refusals.is_empty(), "{left:?}");
            if fleet.guests[at].demands[host].is_ok() {
                let mut with = places.clone();
                with.insert(&left.uuid, host);
                assert!(holds(fleet, &with, host).is_err(), "{} fits {host}", left.name);
            }
        }
    }
    let mut brought = BTreeSet::new();
    let mut before = 0;
    for guest in &plan.guests {
        let candidate = fleet.guests.iter().find(|it| it.uuid == guest.uuid).unwrap();
        let demand = candidate.demands[places[&*guest.uuid]].as_ref().unwrap();
        assert!(demand.transfer_bytes >= before, "{} comes too late", guest.name);
        before = demand.transfer_bytes;
        let mut bytes = demand.transfer_bytes;
        for base in &demand.bases {
            if brought.insert((places[&*guest.uuid], base.path.clone())) {
                assert!(guest.brings.contains(&base.path));
                bytes += base.bytes;
            } else {
                assert!(!guest.brings.contains(&base.path));
            }
        }
        assert_eq!(guest.transfer_bytes, bytes);
    }
}

/// One guest among others: memory, bytes, its backing file if any, hosts that refuse it, whether it is shut off.
type Drawn = (u64, u64, Option<u8>, u8, bool);

/// Fleets that are rather too small than too large for their guests.
pub(crate) fn fleets() -> impl Strategy<Value = Fleet> {
    let host = (0_u64..24, 0_u64..16, 0_u64..400);
    let guest = (1_u64..8, 1_u64..100, proptest::option::of(0_u8..3), any::<u8>(), any::<bool>());
    let hosts = proptest::collection::vec(host, 1..4);
    (hosts, proptest::collection::vec(guest, 0..24))
        .prop_map(|(hosts, guests)| build(&hosts, &guests))
}

fn build(hosts: &[(u64, u64, u64)], guests: &[Drawn]) -> Fleet {
    let hosts: Vec<_> = (0..)
        .zip(hosts)
        .map(|(nth, (memory, vcpus, space))| host(&format!("host-{nth}"), *memory, *vcpus, *space))
        .collect();
    let guests = (0..).zip(guests).map(|(nth, (memory, bytes, base, refusing, off))| {
        // Some share a name for their disk, and some a backing file.
        let mut of = demand(&format!("disk-{}", nth % 17), *bytes);
        if let Some(base) = base {
            of = on_base(of, &format!("base-{base}"), 60);
        }
        let mut guest = guest(&format!("guest-{nth}"), *memory, &of, hosts.len());
        for (nth, demand) in guest.demands.iter_mut().enumerate() {
            if refusing >> nth & 3 == 3 {
                *demand = Err(vec![refusal("D05")]);
            }
        }
        if *off {
            (guest.state, guest.memory, guest.vcpus) = (Some(DomainState::ShutOff), 0, 0);
        }
        guest
    });
    let guests = guests.collect();
    fleet(hosts, guests)
}
