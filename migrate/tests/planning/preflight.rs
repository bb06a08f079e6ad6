//! The judge of a preflight: each check is green where all is well, and turns for exactly what it is about.

use crate::plan_facts::*;
use migrate::facts::*;
use migrate::plan::*;
use migrate::preflight::*;
use migrate::{Error, Remedy};

const NEW: &str = "/new";

/// A running guest of this name with one disk of its own, which holds `mib` MiB.
fn named_guest(name: &str, mib: u64) -> Facts {
    let mut disk = alone(name);
    chain(&mut disk).guest_bytes = Some(mib * MIB);
    let mut facts = guest(vec![disk]);
    (facts.domain.name, facts.domain.uuid) = (name.into(), format!("uuid-of-{name}"));
    facts
}

fn needs() -> Needs {
    Needs {
        virtualization: "kvm".into(),
        arch: "x86_64".into(),
        machine: "pc-q35-9.0".into(),
        cpu: Some("<cpu mode='custom'><model>EPYC</model></cpu>".into()),
        cpu_mode: "custom".into(),
        memory: 1 << 30,
        vcpus: 1,
    }
}

fn found(facts: Facts, policy: &Policy) -> Looked {
    let plan = decide(&facts, policy).map(|(plan, _)| plan);
    let name = facts.domain.name.clone();
    Looked { name, found: Ok(Found { facts, needs: needs(), cpu: Ok(CpuFit::Superset), plan }) }
}

fn set_up() -> Setup {
    let files = ["ca-cert.pem", "server-cert.pem", "server-key.pem", "client-cert.pem"];
    Setup {
        clock_ns: 0,
        ports: (49152, 49215),
        migration_host: None,
        tls_directory: "/etc/pki/qemu".into(),
        tls_verifies: true,
        certificates: vec![],
        tls_files: files.into_iter().chain(["client-key.pem"]).map(str::to_owned).collect(),
    }
}

fn way(host: &str) -> Seen<NetworkPath> {
    Ok(NetworkPath { host: host.into(), ports: vec![49152, 49215], closed: vec![] })
}

fn room(filesystem: &str, available: u64) -> Seen<Room> {
    Ok(Room { filesystem: filesystem.into(), available })
}

/// Two hosts that are as they should be.
fn seeing(guests: Vec<Facts>, policy: &Policy) -> Seeing {
    Seeing {
        source: host("here"),
        destination: host("there"),
        abilities: Some(Abilities {
            cpu: None,
            guests: vec![GuestKind {
                arch: "x86_64".into(),
                virtualization: "kvm".into(),
                machines: vec!["pc-q35-9.0".into()],
            }],
        }),
        cpu: Ok(CpuFit::Identical),
        setup: Ok(Setups { source: set_up(), destination: set_up(), ahead_ns: 5, error_ns: 1000 }),
        paths: NetworkPaths { to_destination: way("there"), to_source: way("here") },
        pools: vec![PoolFacts {
            name: "new".into(),
            kind: "dir".into(),
            path: Some(NEW.into()),
            active: true,
        }],
        directories: [(NEW.into(), room("device 1", 100 * SIZE))].into(),
        guests: guests.into_iter().map(|facts| found(facts, policy)).collect(),
    }
}

fn wishes() -> Policy {
    thin().tls(true).sync_writes(true)
}

fn one() -> Seeing {
    seeing(vec![named_guest("web", 10)], &wishes())
}

/// The only check of this name between the hosts.
#[track_caller]
fn check<'a>(checks: &'a [Check], name: &str) -> &'a Check {
    let of_name: Vec<_> = checks.iter().filter(|check| check.check == name).collect();
    let [check] = of_name[..] else { panic!("{name}: {checks:#?}") };
    check
}

fn names(report: &Report) -> Vec<&str> {
    report.guests.iter().map(|guest| guest.name.as_str()).collect()
}

#[test]
fn all_is_green_where_all_is_well() {
    let report = judge(&one(), &wishes());
    let green = |checks: &[Check]| checks.iter().all(|check| check.is == Is::Green);
    assert!(green(&report.checks), "{:#?}", report.checks);
    assert!(green(&report.places[0].checks), "{:#?}", report.places);
    assert!(green(&report.guests[0].checks), "{:#?}", report.guests);
    assert_eq!((report.is, report.guests[0].order), (Is::Green, Some(1)));
    let found: Vec<_> = report.checks.iter().map(|check| check.check).collect();
    let expected = [
        "hosts",
        "libvirt",
        "qemu",
        "thin-copies",
        "sync-writes",
        "zero-detection",
        "cpu",
        "names",
        "ports-there",
        "ports-back",
        "tls",
        "clock",
    ];
    assert_eq!(found, expected);
}

/// Certificates at the destination that are in order at second 1, but for what is changed in this one.
fn certificates(seeing: &mut Seeing, name: &str, change: fn(&mut Certificate)) {
    let setup = &mut seeing.setup.as_mut().unwrap().destination;
    setup.clock_ns = 1_000_000_000;
    setup.certificates = ["ca-cert.pem", "server-cert.pem"]
        .map(|file| {
            let names = vec!["there".to_owned()];
            let mut certificate = Certificate { not_before: 0, not_after: 2, names };
            if file == name {
                change(&mut certificate);
            }
            let unreadable = Some("it has no certificate".to_owned());
            CertificateFile { name: file.into(), certificate: Some(certificate), unreadable }
        })
        .to_vec();
}

/// A check between the hosts, what it turns to, and what turns it.
type Turn = (&'static str, Is, fn(&mut Seeing));

#[test]
fn each_check_between_the_hosts_turns_for_what_it_is_about_and_no_other_does() {
    let cases: &[Turn] = &[
        ("hosts", Is::Red, |it| it.destination.uuid = it.source.uuid.clone()),
        ("libvirt", Is::Red, |it| it.destination.libvirt = Some(Version::new(11, 2, 9))),
        ("qemu", Is::Red, |it| it.destination.qemu = Some(Version::new(9, 2, 4))),
        ("zero-detection", Is::Note, |it| {
            it.source.libvirt = Some(Version::new(10, 8, 0));
        }),
        ("destination-xml", Is::Note, |it| {
            it.source.libvirt = Some(Version::new(10, 2, 0));
        }),
        ("cpu", Is::Note, |it| it.cpu = Ok(CpuFit::Incompatible { why: "no avx".into() })),
        ("cpu", Is::Unseen, |it| it.cpu = Ok(CpuFit::Unknown { why: "no such thing".into() })),
        ("ports-there", Is::Red, |it| {
            it.paths.to_destination.as_mut().unwrap().closed.push((49215, "timed out".into()));
        }),
        ("ports-there", Is::Unseen, |it| it.paths.to_destination = Err("not looked at".into())),
        ("ports-there", Is::Unseen, |it| it.paths.to_destination.as_mut().unwrap().ports.clear()),
        ("ports-back", Is::Note, |it| {
            it.paths.to_source.as_mut().unwrap().closed.push((49152, "refused".into()));
        }),
        ("tls", Is::Red, |it| it.setup.as_mut().unwrap().source.tls_files.clear()),
        ("tls", Is::Red, |it| {
            it.setup.as_mut().unwrap().source.tls_files.retain(|name| name != "client-key.pem");
        }),
        ("tls", Is::Red, |it| {
            it.setup
                .as_mut()
                .unwrap()
                .destination
                .tls_files
                .retain(|name| name != "server-key.pem");
        }),
        ("tls", Is::Red, |it| certificates(it, "server-cert.pem", |it| it.not_before = 2)),
        ("tls", Is::Red, |it| certificates(it, "server-cert.pem", |it| it.not_after = 0)),
        ("tls", Is::Red, |it| certificates(it, "ca-cert.pem", |it| it.not_after = 0)),
        ("tls", Is::Red, |it| {
            certificates(it, "server-cert.pem", |it| it.names = vec!["x".into()])
        }),
        ("tls", Is::Red, |it| {
            certificates(it, "server-cert.pem", |_| {});
            it.setup.as_mut().unwrap().destination.certificates[1].certificate = None;
        }),
        ("clock", Is::Red, |it| it.setup.as_mut().unwrap().ahead_ns = 2_100_000_000),
        ("clock", Is::Red, |it| it.setup.as_mut().unwrap().ahead_ns = -2_100_000_000),
    ];
    for (name, is, turn) in cases {
        let mut seeing = one();
        turn(&mut seeing);
        let report = judge(&seeing, &wishes());
        assert_eq!(check(&report.checks, name).is, *is, "{name}");
        let others = report.checks.iter().filter(|check| check.check != *name);
        // A libvirt that is too old for two things says so twice.
        let two = |check: &&Check| check.is != Is::Green && check.check != "zero-detection";
        assert_eq!(others.filter(two).count(), 0, "{name}: {:#?}", report.checks);
        let whole = if *is == Is::Red { Is::Red } else { Is::Green };
        assert_eq!(report.is, whole, "{name}");
    }
}

#[test]
fn what_turns_no_check() {
    type Change = (&'static str, fn(&mut Seeing));
    let cases: &[Change] = &[
        // Newer, or the same but for the third number.
        ("libvirt", |it| it.destination.libvirt = Some(Version::new(12, 0, 0))),
        ("libvirt", |it| it.source.libvirt = Some(Version::new(11, 3, 9))),
        // Who sends needs no certificate where nobody asks for one; who receives needs none for sending.
        ("tls", |it| {
            let setups = it.setup.as_mut().unwrap();
            setups.destination.tls_verifies = false;
            setups.source.tls_files.retain(|name| name == "ca-cert.pem");
            setups.destination.tls_files.retain(|name| !name.starts_with("client"));
        }),
        // Certificates that are in order.
        ("tls", |it| certificates(it, "", |_| {})),
        ("tls", |it| {
            certificates(it, "server-cert.pem", |it| it.names = vec!["x".into()]);
            it.paths.to_destination.as_mut().unwrap().host = "x".into();
        }),
        // It may as well be the time that the asking took.
        ("clock", |it| {
            let setups = it.setup.as_mut().unwrap();
            (setups.ahead_ns, setups.error_ns) = (2_500_000_000, 1_000_000_000);
        }),
        ("cpu", |it| it.cpu = Ok(CpuFit::Superset)),
    ];
    for (name, change) in cases {
        let mut seeing = one();
        change(&mut seeing);
        let report = judge(&seeing, &wishes());
        assert_eq!(check(&report.checks, name).is, Is::Green, "{name}");
    }
}

#[test]
fn hosts_too_old_for_what_was_asked_for_are_red_and_a_note_otherwise() {
    let mut seeing = one();
    for host in [&mut seeing.source, &mut seeing.destination] {
        host.qemu = Some(Version::new(6, 1, 0));
    }
    let of = |policy: &Policy, name: &str| {
        let report = judge(&seeing, policy);
        report.checks.iter().find(|check| check.check == name).map(|check| check.is)
    };
    assert_eq!(of(&wishes(), "thin-copies"), Some(Is::Red));
    assert_eq!(of(&wishes(), "sync-writes"), Some(Is::Red));
    assert_eq!(of(&Policy::default(), "thin-copies"), Some(Is::Note));
    assert_eq!(of(&Policy::default(), "sync-writes"), None);
    assert_eq!(of(&full(), "thin-copies"), None);
}

#[test]
fn names_that_are_taken_are_told_of_the_hosts_and_of_the_guest() {
    let mut web = named_guest("web", 10);
    web.clash = Some("'web' with UUID x".into());
    let report = judge(&seeing(vec![web, named_guest("db", 1)], &full()), &full());
    let names = check(&report.checks, "names");
    assert!(names.is == Is::Red && names.message.contains("'web'"), "{names:?}");
    assert!(!names.message.contains("'db'"), "{names:?}");
    assert_eq!(report.guests[1].refusals[0].code, "R6");
}

#[test]
fn a_place_turns_for_its_storage_its_pool_and_its_directory() {
    let cases: &[Turn] = &[
        ("storage", Is::Red, |it| {
            let found = it.guests[0].found.as_mut().unwrap();
            destination(&mut found.facts.disks[0]).storage =
                Storage::Unknown { why: "read-only file system".into() };
        }),
        ("pool", Is::Note, |it| it.pools[0].active = false),
        // The directory is there, but the storage is not: what is made lands on the root file system.
        ("pool", Is::Red, |it| {
            it.pools[0].active = false;
            it.pools[0].kind = "netfs".into();
        }),
        ("directory", Is::Red, |it| {
            it.directories.insert(NEW.into(), Err("no such directory".into()));
        }),
        ("space", Is::Red, |it| {
            it.directories.insert(NEW.into(), room("device 1", MIB));
        }),
    ];
    for (name, is, turn) in cases {
        let mut seeing = one();
        turn(&mut seeing);
        let report = judge(&seeing, &wishes());
        let [place] = &report.places[..] else { panic!("{:#?}", report.places) };
        assert_eq!((check(&place.checks, name).is, place.is), (*is, *is), "{name}");
        let whole = if *is == Is::Red { Is::Red } else { Is::Green };
        assert_eq!(report.is, whole, "{name}");
    }
}

#[test]
fn a_directory_that_both_hosts_share_need_not_be_written_to() {
    let mut seeing = one();
    let found = seeing.guests[0].found.as_mut().unwrap();
    let destination = destination(&mut found.facts.disks[0]);
    (destination.storage, destination.unusable) = (Storage::Shared, Some("read-only".into()));
    destination.path = "/old/web.qcow2".into();
    destination.object = Some(ObjectFacts {
        identity: identity(20),
        block_device: false,
        image: None,
        in_use: None,
    });
    found.facts.disks[0].cache = Some("none".into());
    found.plan = decide(&found.facts, &wishes()).map(|(plan, _)| plan);
    seeing.directories.clear();
    let report = judge(&seeing, &wishes());
    assert_eq!((report.is, report.places[0].is), (Is::Green, Is::Green), "{report:#?}");
    assert_eq!((report.places[0].needed_bytes, report.total.transfer_bytes), (0, 0));
}

#[test]
fn a_guest_turns_for_its_machine_type_its_processor_and_its_plan() {
    type Case = (&'static str, Is, fn(&mut Found));
    let cases: &[Case] = &[
        ("machine", Is::Red, |it| it.needs.machine = "pc-q35-99.0".into()),
        ("machine", Is::Red, |it| it.needs.arch = "s390x".into()),
        ("machine", Is::Red, |it| it.needs.virtualization = "xen".into()),
        ("cpu", Is::Red, |it| it.cpu = Ok(CpuFit::Incompatible { why: "no avx".into() })),
        ("cpu", Is::Unseen, |it| it.cpu = Ok(CpuFit::Unknown { why: "unknown model".into() })),
        // It has its host's own processor, and would find another one at its next start.
        ("cpu", Is::Note, |it| it.needs.cpu_mode = "host-passthrough".into()),
    ];
    for (name, is, turn) in cases {
        let mut seeing = one();
        turn(seeing.guests[0].found.as_mut().unwrap());
        let report = judge(&seeing, &wishes());
        let guest = &report.guests[0];
        assert_eq!((check(&guest.checks, name).is, guest.is), (*is, *is), "{name}");
        let ready = usize::from(*is != Is::Red);
        assert_eq!((report.total.ready, guest.order.is_some()), (ready, ready == 1), "{name}");
    }
    // One that is off takes its processor when it starts.
    let mut seeing = one();
    let found = seeing.guests[0].found.as_mut().unwrap();
    found.facts.domain.state = DomainState::ShutOff;
    found.needs.cpu_mode = "host-passthrough".into();
    let checks = &judge(&seeing, &wishes()).guests[0].checks;
    assert!(checks.iter().all(|check| check.check != "cpu"), "{checks:#?}");
}

#[test]
fn space_that_is_enough_for_each_and_not_for_all() {
    let policy = full();
    let guests = || vec![named_guest("c", 300), named_guest("a", 100), named_guest("b", 200)];
    let of = |room: Seen<Room>| {
        let mut seeing = seeing(guests(), &policy);
        seeing.directories.insert(NEW.into(), room);
        judge(&seeing, &policy)
    };
    let all = of(room("x", 100 * SIZE));
    assert_eq!((all.is, names(&all)), (Is::Green, vec!["a", "b", "c"]));
    let needed = all.places[0].needed_bytes;
    assert_eq!(needed, all.total.space_bytes);

    let most = of(room("x", needed - 1));
    assert_eq!((most.is, most.places[0].is), (Is::Red, Is::Red));
    assert_eq!(check(&most.guests[2].checks, "space").is, Is::Red);
    let orders: Vec<_> = most.guests.iter().map(|guest| guest.order).collect();
    assert_eq!((names(&most), orders), (vec!["a", "b", "c"], vec![Some(1), Some(2), None]));
    assert_eq!((most.total.ready, most.total.refused), (2, 1));
    // What those need that can go, and what all would need.
    assert!(most.total.space_bytes < needed && most.places[0].needed_bytes == needed);
    assert_eq!(of(room("x", needed)).is, Is::Green);
}

#[test]
fn directories_on_one_file_system_share_its_space() {
    let policy =
        full().path_map(vec![PathMap { old: "/old/b.qcow2".into(), new: "/other/b.qcow2".into() }]);
    let mut b = named_guest("b", 100);
    destination(&mut b.disks[0]).path = "/other/b.qcow2".into();
    let mut seeing = seeing(vec![named_guest("a", 100), b], &policy);
    let mut of = |other: &str| {
        seeing.directories.insert(NEW.into(), room("x", 150 * MIB));
        seeing.directories.insert("/other".into(), room(other, 150 * MIB));
        judge(&seeing, &policy)
    };
    assert_eq!(of("y").is, Is::Green);
    let report = of("x");
    assert_eq!(report.total.ready, 1);
    let places: Vec<_> = report.places.iter().map(|place| place.is).collect();
    assert_eq!(places, [Is::Red, Is::Red]);
}

#[test]
fn a_base_that_many_stand_on_is_brought_once() {
    let overlay_of = |name: &str| {
        let mut facts = guest(vec![overlay()]);
        (facts.domain.name, facts.domain.uuid) = (name.into(), name.into());
        destination(&mut facts.disks[0]).path = format!("{NEW}/{name}.qcow2").into();
        facts
    };
    let alone = judge(&seeing(vec![overlay_of("a")], &thin()), &thin());
    let both = judge(&seeing(vec![overlay_of("a"), overlay_of("b")], &thin()), &thin());
    assert_eq!((both.is, both.total.ready), (Is::Green, 2), "{both:#?}");
    let (first, second) = (&both.guests[0], &both.guests[1]);
    // The template is a file of 100 MiB.
    assert_eq!(first.transfer_bytes.unwrap() - second.transfer_bytes.unwrap(), 100 * MIB);
    assert_eq!(first.space_bytes.unwrap() - second.space_bytes.unwrap(), 100 * MIB);
    assert_eq!(first.space_bytes, alone.guests[0].space_bytes);
    assert_eq!(both.places[0].needed_bytes, both.total.space_bytes);
    assert_eq!(
        both.total.transfer_bytes,
        alone.total.transfer_bytes + second.transfer_bytes.unwrap()
    );
}

#[test]
fn two_guests_that_want_one_path_cannot_both_have_it() {
    let (a, mut b) = (named_guest("a", 10), named_guest("b", 20));
    destination(&mut b.disks[0]).path = destination(&mut a.clone().disks[0]).path.clone();
    let report = judge(&seeing(vec![a, b], &full()), &full());
    let check = check(&report.guests[1].checks, "target");
    assert!(check.is == Is::Red && check.message.contains("'a'"), "{check:?}");
    assert_eq!((report.total.ready, report.is), (1, Is::Red));
}

#[test]
fn the_order_is_by_bytes_and_what_cannot_go_is_last() {
    let mut refused = named_guest("refused", 1);
    refused.disks[0].shareable = true;
    let policy = full();
    let guests = vec![
        refused,
        named_guest("big", 500),
        named_guest("small", 5),
        named_guest("also-small", 5),
    ];
    let mut seeing = seeing(guests, &policy);
    let lost = Error::environment("the connection was closed").hint("look there");
    seeing.guests.push(Looked { name: "lost".into(), found: Err(lost) });
    let report = judge(&seeing, &policy);
    assert_eq!(names(&report), ["also-small", "small", "big", "lost", "refused"]);
    let orders: Vec<_> = report.guests.iter().map(|guest| guest.order).collect();
    assert_eq!(orders, [Some(1), Some(2), Some(3), None, None]);
    let total = report.total;
    assert_eq!((total.guests, total.ready, total.refused, total.failed), (5, 3, 1, 1));
    assert_eq!(total.transfer_bytes, 510 * MIB);
}

#[test]
fn a_guest_that_could_not_be_looked_at_is_a_failure_and_a_refusal_weighs_more() {
    let policy = full();
    let mut seeing = seeing(vec![named_guest("a", 10)], &policy);
    let lost = || Looked { name: "lost".into(), found: Err(Error::environment("it is gone")) };
    seeing.guests.push(lost());
    let report = judge(&seeing, &policy);
    let guest = &report.guests[1];
    assert_eq!((report.is, guest.is), (Is::Failed, Is::Failed));
    assert!(check(&guest.checks, "look").message.contains("it is gone"));
    seeing.cpu = Err("not known".into());
    seeing.destination.uuid = seeing.source.uuid.clone();
    assert_eq!(judge(&seeing, &policy).is, Is::Red);
}

#[test]
fn the_json_keeps_its_keys() {
    let json = serde_json::to_value(judge(&one(), &wishes())).unwrap();
    let keys = |value: &serde_json::Value| -> Vec<String> {
        value.as_object().unwrap().keys().cloned().collect()
    };
    assert_eq!(json["schema"], "qcowtool-preflight/1");
    let all = ["schema", "is", "source", "destination", "checks", "places", "guests", "total"];
    assert_eq!(keys(&json), all);
    assert_eq!(keys(&json["checks"][0]), ["check", "is", "message"]);
    let place = ["directory", "is", "storage", "pool", "needed-bytes", "available-bytes", "checks"];
    assert_eq!(keys(&json["places"][0]), place);
    assert_eq!(json["places"][0]["storage"], "distinct");
    let guest = [
        "order",
        "name",
        "uuid",
        "state",
        "is",
        "mode",
        "copy",
        "transfer-bytes",
        "space-bytes",
        "disks",
        "checks",
        "refusals",
        "warnings",
    ];
    assert_eq!(keys(&json["guests"][0]), guest);
    assert_eq!(keys(&json["guests"][0]["disks"][0]), ["target", "row", "why"]);
    let total = ["guests", "ready", "refused", "failed", "transfer-bytes", "space-bytes"];
    assert_eq!(keys(&json["total"]), total);
}

type Cure = fn(&mut Seeing, &mut Policy);

type Wrong = fn(&mut Seeing);

/// What is in the way, what the operator does about it, and the remedy that says so.
const CURES: &[(&str, Remedy, Wrong, Cure)] = &[
    (
        "thin-copies",
        Remedy::CopyInFull,
        |it| it.source.qemu = Some(Version::new(1, 0, 0)),
        |_, policy| policy.style = Style::Full,
    ),
    (
        "sync-writes",
        Remedy::NoSyncWrites,
        |it| it.source.qemu = Some(Version::new(1, 0, 0)),
        |_, policy| policy.sync_writes = false,
    ),
    (
        "tls",
        Remedy::SetUpTls,
        |it| it.setup.as_mut().unwrap().source.tls_files.clear(),
        |_, policy| policy.tls = false,
    ),
    (
        "tls",
        Remedy::SetUpTls,
        |it| it.setup.as_mut().unwrap().source.tls_files.clear(),
        |it, _| it.setup.as_mut().unwrap().source = set_up(),
    ),
    (
        "clock",
        Remedy::UseAgent,
        |it| {
            let way_out = Some(Remedy::UseAgent);
            it.setup = Err(NotSeen { why: "not examined".into(), way_out });
        },
        |it, _| it.setup = seeing(vec![], &wishes()).setup,
    ),
];

#[test]
fn a_check_turns_green_or_goes_once_its_remedy_is_carried_out() {
    for (name, remedy, fault, cure) in CURES {
        let (mut seeing, mut policy) = (one(), wishes());
        fault(&mut seeing);
        let report = judge(&seeing, &policy);
        let found = check(&report.checks, name);
        assert_ne!(found.is, Is::Green, "{name}");
        assert_eq!(found.way_out.as_ref(), Some(remedy), "{name}");
        cure(&mut seeing, &mut policy);
        let report = judge(&seeing, &policy);
        let bad =
            |check: &&Check| check.check == *name && !matches!(check.is, Is::Green | Is::Note);
        assert_eq!(report.checks.iter().find(bad), None, "{remedy:?}");
    }
}

#[test]
fn a_directory_that_is_created_or_mapped_is_no_obstacle_any_more() {
    let mut seeing = one();
    seeing.directories.insert(NEW.into(), Err("no such directory".into()));
    let of = |report: &Report| {
        let place = report.places.iter().find(|place| place.directory == std::path::Path::new(NEW));
        let checks = &place.unwrap().checks;
        checks.iter().find(|check| check.is == Is::Red).and_then(|check| check.way_out.clone())
    };
    assert_eq!(of(&judge(&seeing, &wishes())), Some(Remedy::MakeDirectory));
    seeing.directories.insert(NEW.into(), room("device 1", 100 * SIZE));
    assert_eq!(of(&judge(&seeing, &wishes())), None);
}

#[test]
fn a_directory_that_is_missing_is_an_obstacle_unless_it_may_be_made() {
    let mut seeing = one();
    let facts = &mut seeing.guests[0].found.as_mut().unwrap().facts;
    let rights = DirectoryRights { mode: 0o711, owner: 0, group: 0, label: None };
    facts.missing = vec![MissingDirectory { path: NEW.into(), rights }];
    let directory = |seeing: &Seeing, policy: &Policy| {
        let report = judge(seeing, policy);
        let place = report.places.iter().find(|place| place.directory == std::path::Path::new(NEW));
        check(&place.unwrap().checks, "directory").clone()
    };
    let refused = directory(&seeing, &wishes());
    assert_eq!((refused.is, refused.way_out), (Is::Red, Some(Remedy::AllowDirectory)));
    assert_eq!(directory(&seeing, &wishes().make_directories(true)).is, Is::Green);
}
