//! Looks at both hosts and at all guests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use qcow::CancelToken;

use super::needs::{Compares, Needs};
use super::{
    Found, Looked, NetworkPath, NetworkPaths, NotSeen, Room, Seeing, Seen, Setups, judge, why,
};
use crate::facts::{Cpu, CpuFit, HostFacts, Setup, Storage};
use crate::plan::{Action, BasePlan, plan};
use crate::preflight::Report;
use crate::probe::room::nearest;
use crate::probe::{Hosts, Probing, is_this_machine, ports, probe, setup};
use crate::store::RemoteStore;
use crate::{ErrorKind, Remedy, Result};

/// So many guests are looked at at once; most of that is waiting for both libvirts.
const AT_ONCE: usize = 8;

/// The two hosts, as they are reached.
#[derive(Clone, Copy)]
pub struct Participants<'a> {
    /// Their virtualisation and their files.
    pub hosts: Hosts<'a>,
    /// The program at the destination, if it is there.
    pub agent: Option<&'a RemoteStore>,
}

impl std::fmt::Debug for Participants<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Participants").field("hosts", &self.hosts).finish_non_exhaustive()
    }
}

/// Looks at both hosts and at the guests of these names, and judges. As [`probe`], it changes nothing at either end
/// but for a file that is made and removed to see whether two directories are the same storage; and where an agent
/// is there, each end listens for a moment at two of the ports that guests arrive at. A guest that cannot be looked
/// at is told as one; the others are looked at all the same.
///
/// # Errors
/// [`Environment`](ErrorKind::Environment) if a host itself cannot be asked; [`Interrupted`](ErrorKind::Interrupted).
pub fn preflight(
    participants: &Participants<'_>,
    names: &[String],
    probing: &Probing<'_>,
) -> Result<Report> {
    Ok(judge(&look(participants, names, probing)?, probing.policy))
}

/// Looks, for [`preflight`] and for what judges otherwise.
///
/// # Errors
/// See [`preflight`].
pub(crate) fn look(
    participants: &Participants<'_>,
    names: &[String],
    probing: &Probing<'_>,
) -> Result<Seeing> {
    let hosts = &participants.hosts;
    let (source, destination) = (hosts.source.host()?, hosts.destination.host()?);
    if source.libvirt.is_some() {
        is_this_machine(&source)?;
    }
    let abilities = hosts.destination.abilities()?;
    // Before any is started to look through it.
    let pools = hosts.destination.pools()?;
    let cpu = processors(hosts)?;
    let setup = setups(participants, &source, &destination);
    let address = probing.policy.tuning.host();
    let paths = paths(participants, &setup, &source, &destination, address);
    let guests = guests(hosts, names, probing, &cpu)?;
    let directories = directories(hosts, &guests, probing.cancel)?;
    Ok(Seeing { source, destination, abilities, cpu, setup, paths, pools, directories, guests })
}

/// How the source's processor compares with what the destination offers.
fn processors(hosts: &Hosts<'_>) -> Result<Seen<CpuFit>> {
    Ok(match hosts.source.abilities()?.and_then(|abilities| abilities.cpu) {
        Some(cpu) => Ok(hosts.destination.compare_cpu(&Cpu::OfHost(&cpu))?),
        None => Err("the source does not report its CPU".into()),
    })
}

/// Why what needs a process of ours at the destination was not looked at.
fn no_agent() -> NotSeen {
    NotSeen { why: "not examined".into(), way_out: Some(Remedy::UseAgent) }
}

fn setups(
    participants: &Participants<'_>,
    source: &HostFacts,
    destination: &HostFacts,
) -> Seen<Setups> {
    if source.libvirt.is_none() || destination.libvirt.is_none() {
        return Err("a directory has no such thing".into());
    }
    let agent = participants.agent.ok_or_else(no_agent)?;
    // The quickest of some answers is the one that says most about the clock.
    let asked = || -> Result<(i64, i64, Setup)> {
        let before = setup::now();
        let answer = agent.setup()?;
        let after = setup::now();
        let took = after.saturating_sub(before).max(0);
        let middle = before.saturating_add(took / 2);
        Ok((answer.clock_ns.saturating_sub(middle), took, answer))
    };
    let mut quickest = asked().map_err(|error| why(&error))?;
    for _ in 0..3_u8 {
        match asked() {
            Ok(answer) if answer.1 < quickest.1 => quickest = answer,
            _ => {}
        }
    }
    let (ahead_ns, took, destination) = quickest;
    let source = setup::of_this_host().map_err(|error| why(&error))?;
    Ok(Setups { source, destination, ahead_ns, error_ns: took })
}

/// Tries the ports, both paths. Where no process can listen at the far end, only ports that are certainly closed are reported.
fn paths(
    participants: &Participants<'_>,
    setup: &Seen<Setups>,
    source: &HostFacts,
    destination: &HostFacts,
    address: Option<&str>,
) -> NetworkPaths {
    let (Some(agent), Ok(setups)) = (participants.agent, setup) else {
        let why = setup.as_ref().err().cloned().unwrap_or_default();
        return NetworkPaths { to_destination: Err(why.clone()), to_source: Err(why) };
    };
    let name = |setup: &Setup, host: &HostFacts| {
        setup.migration_host.clone().unwrap_or_else(|| host.hostname.clone())
    };
    let there = address.map_or_else(|| name(&setups.destination, destination), str::to_owned);
    let to_destination = to_destination(agent, there, setups.destination.ports);
    let to_source = to_source(agent, name(&setups.source, source), setups.source.ports);
    let seen = |way: Result<NetworkPath>| way.map_err(|error| why(&error));
    NetworkPaths { to_destination: seen(to_destination), to_source: seen(to_source) }
}

fn to_destination(agent: &RemoteStore, host: String, range: (u16, u16)) -> Result<NetworkPath> {
    let ports = agent.listen(range)?;
    let tried: Vec<_> = ports.iter().map(|port| (*port, ports::reach(&host, *port))).collect();
    let heard = agent.heard()?;
    Ok(NetworkPath { host, closed: closed(tried, &heard), ports })
}

fn to_source(agent: &RemoteStore, host: String, range: (u16, u16)) -> Result<NetworkPath> {
    let ears = ports::Ears::at(range.0, range.1);
    let ports = ears.ports();
    let tried: Result<Vec<_>> =
        ports.iter().map(|port| Ok((*port, agent.reach(&host, *port)?))).collect();
    let heard = ears.heard();
    Ok(NetworkPath { host, closed: closed(tried?, &heard), ports })
}

/// A port was reached if the connection was made and the listener saw it: a name may lead to another host.
fn closed(tried: Vec<(u16, Option<String>)>, heard: &[u16]) -> Vec<(u16, String)> {
    let elsewhere = || "something else answers to that name".to_owned();
    tried
        .into_iter()
        .filter_map(|(port, why)| {
            let why = why.or_else(|| (!heard.contains(&port)).then(elsewhere))?;
            Some((port, why))
        })
        .collect()
}

/// Looks at all guests, some at once. Not by rayon: a thread of its pools that waits for one guest's digest takes up
/// another guest meanwhile, on the same stack.
fn guests(
    hosts: &Hosts<'_>,
    names: &[String],
    probing: &Probing<'_>,
    hosts_cpu: &Seen<CpuFit>,
) -> Result<Vec<Looked>> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, Looked)>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..names.len().min(AT_ONCE) {
            scope.spawn(|| {
                while let Some((at, name)) = {
                    let at = next.fetch_add(1, Ordering::SeqCst);
                    names.get(at).map(|name| (at, name))
                } {
                    let looked = Looked {
                        name: name.clone(),
                        found: guest(hosts, name, probing, hosts_cpu),
                    };
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((at, looked));
                }
            });
        }
    });
    probing.cancel.check()?;
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(at, _)| *at);
    // One may have been named by its name and by its UUID.
    let mut known = BTreeSet::new();
    let mut first = |looked: &Looked| match &looked.found {
        Ok(found) => known.insert(found.facts.domain.uuid.clone()),
        Err(_) => true,
    };
    let mut all = Vec::new();
    for (_, looked) in done {
        match looked.found {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
            _ if first(&looked) => all.push(looked),
            _ => {}
        }
    }
    Ok(all)
}

fn guest(
    hosts: &Hosts<'_>,
    name: &str,
    probing: &Probing<'_>,
    hosts_cpu: &Seen<CpuFit>,
) -> Result<Found> {
    let facts = probe(hosts, name, probing)?.facts;
    let needs = Needs::read(&facts.domain.migratable_xml)?;
    let cpu = match (needs.compares(facts.domain.state), &needs.cpu) {
        (Some(Compares::Hosts), _) => hosts_cpu.clone(),
        (Some(Compares::Own), Some(xml)) => Ok(hosts.destination.compare_cpu(&Cpu::OfGuest {
            xml,
            arch: &needs.arch,
            machine: &needs.machine,
            virtualization: &needs.virtualization,
        })?),
        _ => Err("the hypervisor chooses".into()),
    };
    let plan = plan(&facts, probing.policy);
    Ok(Found { facts, needs, cpu, plan })
}

/// Looks once at every directory where something is made: what the guests' own looks found there was so at different
/// times.
fn directories(
    hosts: &Hosts<'_>,
    guests: &[Looked],
    cancel: &CancelToken,
) -> Result<BTreeMap<PathBuf, Seen<Room>>> {
    let mut all: BTreeSet<PathBuf> = BTreeSet::new();
    let parent = |path: &Path| path.parent().unwrap_or(Path::new("/")).to_path_buf();
    for found in guests.iter().filter_map(|guest| guest.found.as_ref().ok()) {
        let there = found.facts.disks.iter().filter_map(|disk| disk.destination.as_ref());
        all.extend(there.filter(|it| it.storage != Storage::Shared).map(|it| parent(&it.path)));
        for disk in found.plan.iter().flat_map(|plan| &plan.disks) {
            if let Action::Create { base: Some(BasePlan::BaseCopy { path, .. }), .. } = &disk.action
            {
                all.insert(parent(path));
            }
        }
    }
    all.into_iter()
        .map(|directory| {
            cancel.check()?;
            // Where it is missing, it would be made in one of those above it.
            let room = hosts.store.available(&directory).or_else(|error| {
                let (above, missing) = nearest(hosts.store, &directory)?;
                if missing.is_empty() { Err(error) } else { hosts.store.available(&above) }
            });
            let room = room.and_then(|available| {
                let (at, _) = nearest(hosts.store, &directory)?;
                Ok(Room { available, filesystem: hosts.store.filesystem(&at)? })
            });
            Ok((directory, room.map_err(|error| why(&error))))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_counts_as_reached_only_if_both_ends_say_so() {
        let tried = |why: &[Option<&str>]| -> Vec<(u16, Option<String>)> {
            (1..).zip(why).map(|(port, why)| (port, why.map(str::to_owned))).collect()
        };
        assert_eq!(closed(tried(&[None, None]), &[1, 2]), []);
        assert_eq!(closed(tried(&[None, Some("refused")]), &[1]), [(2, "refused".to_owned())]);
        let [(port, why)] = &closed(tried(&[None, None]), &[2])[..] else { panic!("not one") };
        assert!(*port == 1 && why.contains("something else"), "{why}");
    }
}
