//! Remedies of the planners, carried out: what is refused with a remedy is planned once the facts or the policy are as it says.

use std::path::PathBuf;

use crate::plan_facts::*;
use migrate::Remedy;
use migrate::facts::*;
use migrate::live::{self, Method, Needs, Options, Place};
use migrate::plan::*;
use qcow::chain::Format;

type Change = fn(&mut Facts, &mut Policy);

/// What is in the way, what the operator does about it, and the remedy that says so.
const PLANS: &[(Remedy, Change, Change)] = &[
    (
        Remedy::StateShared,
        |facts, _| {
            on_shared_storage(facts);
            elsewhere(facts);
        },
        |_, policy| policy.shared.push("/templates".into()),
    ),
    (
        Remedy::MapPath,
        |facts, _| {
            let mut twin = alone("vdb");
            destination(&mut twin).path = "/new/vda.qcow2".into();
            facts.disks.push(twin);
        },
        |facts, _| destination(&mut facts.disks[1]).path = "/new/mapped.qcow2".into(),
    ),
    (
        Remedy::Adopt,
        |facts, _| destination(&mut facts.disks[0]).object = Some(there()),
        |_, policy| policy.adopt = true,
    ),
    (
        Remedy::Adopt,
        |facts, _| destination(&mut facts.disks[0]).object = Some(there()),
        |facts, _| destination(&mut facts.disks[0]).object = None,
    ),
    (
        Remedy::MakeDevice(String::new()),
        |facts, _| destination(&mut facts.disks[0]).path = "/dev/vg/web".into(),
        |facts, _| destination(&mut facts.disks[0]).path = "/other/vda.qcow2".into(),
    ),
    (
        Remedy::MakeDevice(String::new()),
        |facts, _| {
            facts.disks[0] = disk("vda", vec![layer("/dev/vg/web", 10, Format::Raw)]);
            destination(&mut facts.disks[0]).path = "/dev/vg/web".into();
        },
        |facts, policy| {
            let device = ObjectFacts { block_device: true, image: None, ..there() };
            let identity = Identity { size: SIZE, ..device.identity };
            destination(&mut facts.disks[0]).object = Some(ObjectFacts { identity, ..device });
            policy.adopt = true;
        },
    ),
    (Remedy::Eject, occupied_medium, |_, policy| policy.eject = true),
    (Remedy::Eject, occupied_medium, |facts, _| facts.disks[0].source = Source::None),
    (Remedy::Eject, occupied_medium, |facts, _| {
        let place = destination(&mut facts.disks[0]);
        (place.path, place.object) = ("/free/vda.iso".into(), None);
    }),
    (Remedy::AllowDirectory, no_directory, |_, policy| policy.make_directories = true),
    (Remedy::AllowDirectory, no_directory, |facts, _| facts.missing.clear()),
    (Remedy::AllowDirectory, no_directory, |facts, _| {
        destination(&mut facts.disks[0]).path = "/other/vda.qcow2".into();
    }),
    (
        Remedy::AllowDirectory,
        |facts, policy| {
            destination(&mut facts.disks[0]).base_path = Some("/bases/base.qcow2".into());
            (facts.missing, policy.style) = (vec![missing("/bases")], Style::Thin);
        },
        |_, policy| policy.make_directories = true,
    ),
    (
        Remedy::EjectOrAllowDirectory,
        |facts, policy| {
            occupied_medium(facts, policy);
            destination(&mut facts.disks[0]).object = None;
            no_directory(facts, policy);
        },
        |_, policy| policy.make_directories = true,
    ),
    (Remedy::AllowDepth, |_, policy| policy.max_depth = 1, |_, policy| policy.max_depth = 2),
    (
        Remedy::AllowDataFile,
        |facts, _| header(&mut facts.disks[0], 0).data_file = Some("data".into()),
        |_, policy| policy.allow_data_file = true,
    ),
    (
        Remedy::DropSnapshots,
        |facts, _| header(&mut facts.disks[0], 0).snapshots.push("before".into()),
        |_, policy| policy.drop_internal_snapshots = true,
    ),
    (
        Remedy::DropSnapshots,
        |facts, _| header(&mut facts.disks[0], 0).snapshots.push("before".into()),
        |facts, _| header(&mut facts.disks[0], 0).snapshots.clear(),
    ),
    (
        Remedy::RecordFormat,
        |facts, _| {
            facts.domain.state = DomainState::ShutOff;
            chain(&mut facts.disks[0]).layers[1].format_from = FormatFrom::Nowhere;
        },
        |facts, _| chain(&mut facts.disks[0]).layers[1].format_from = FormatFrom::Header,
    ),
    (
        Remedy::StateStorage,
        |facts, _| {
            destination(&mut facts.disks[0]).storage = Storage::Unknown { why: "denied".into() };
        },
        // What the probe makes of --distinct.
        |facts, _| destination(&mut facts.disks[0]).storage = Storage::Distinct,
    ),
];

fn there() -> ObjectFacts {
    ObjectFacts {
        identity: identity(40),
        block_device: false,
        image: Some(ImageFacts { format: Format::Qcow2, virtual_size: SIZE }),
        in_use: None,
    }
}

fn missing(path: &str) -> MissingDirectory {
    let rights = DirectoryRights { mode: 0o711, owner: 0, group: 0, label: None };
    MissingDirectory { path: path.into(), rights }
}

fn no_directory(facts: &mut Facts, _: &mut Policy) {
    facts.missing = vec![missing("/new")];
}

fn on_shared_storage(facts: &mut Facts) {
    let place = destination(&mut facts.disks[0]);
    place.storage = Storage::Shared;
    place.path = "/old/vda.qcow2".into();
    place.object = Some(ObjectFacts { identity: identity(10), ..there() });
}

fn elsewhere(facts: &mut Facts) {
    let disk = &mut facts.disks[0];
    chain(disk).layers[1].path = PathBuf::from("/templates/base.qcow2");
    disk.live_chain.layers = named(&chain(disk).layers);
    disk.destination.as_mut().unwrap().object =
        Some(ObjectFacts { identity: identity(10), ..there() });
}

fn occupied_medium(facts: &mut Facts, _: &mut Policy) {
    facts.disks[0] = disk("vda", vec![layer("/old/vda.iso", 10, Format::Raw)]);
    facts.disks[0].device = Device::Cdrom;
    destination(&mut facts.disks[0]).object = Some(there());
}

#[test]
fn a_plan_is_made_once_its_remedy_is_carried_out() {
    for (remedy, fault, cure) in PLANS {
        let (mut facts, mut policy) = (guest(vec![overlay()]), Policy::default());
        fault(&mut facts, &mut policy);
        let refusals = decide(&facts, &policy).expect_err("it is planned");
        let mut remedies = refusals.iter().map(|refusal| refusal.way_out.name());
        assert!(
            remedies.any(|name| name == remedy.name()),
            "{remedy:?} is not among {refusals:#?}"
        );
        cure(&mut facts, &mut policy);
        decide(&facts, &policy).unwrap_or_else(|left| panic!("{remedy:?}: {left:#?}"));
    }
}

type LiveChange = fn(&mut live::Facts, &mut Options);

const LIVE: &[(Remedy, LiveChange, LiveChange)] = &[
    (
        Remedy::ResumeOrCopy,
        |facts, _| facts.domain.state = DomainState::Paused,
        |_, options| options.method = Method::Copy,
    ),
    (
        Remedy::ResumeOrCopy,
        |facts, _| facts.domain.state = DomainState::Paused,
        |facts, _| facts.domain.state = DomainState::Running,
    ),
    (
        Remedy::ExtractSnapshots,
        |facts, _| header(&mut facts.disk, 0).snapshots.push("before".into()),
        |facts, _| header(&mut facts.disk, 0).snapshots.clear(),
    ),
    (
        Remedy::OtherTarget,
        |facts, options| {
            (options.method, facts.place.taken) = (Method::Copy, true);
        },
        |facts, options| {
            (options.target, facts.place.taken) = (Some("/old/other.qcow2".into()), false);
        },
    ),
    (
        Remedy::OtherDirectory,
        |facts, options| {
            (options.method, facts.place.unusable) = (Method::Copy, Some("read-only".into()));
        },
        |facts, options| {
            (options.target, facts.place.unusable) = (Some("/other/vda.qcow2".into()), None);
        },
    ),
    (
        Remedy::RoomOrCopy,
        |facts, _| facts.place.available = Some(0),
        |facts, options| {
            (options.method, facts.place.available) = (Method::Copy, Some(SIZE));
            (options.target, facts.place.path) = (Some("/other/new".into()), "/other/new".into());
        },
    ),
];

#[test]
fn a_disk_is_flattened_once_the_remedy_is_carried_out() {
    for (remedy, fault, cure) in LIVE {
        let place =
            Place { path: "/old/vda.qcow2".into(), available: Some(SIZE), ..Place::default() };
        let mut facts = live::Facts {
            domain: guest(vec![]).domain,
            disk: overlay(),
            discard: false,
            needs: Some(Needs { below: 84 * MIB, pull: 85 * MIB, whole: 101 * MIB }),
            place,
        };
        let mut options = Options::default();
        fault(&mut facts, &mut options);
        let refusals = live::plan(&facts, &options).expect_err("it is planned");
        assert!(refusals.iter().any(|it| it.way_out == *remedy), "{remedy:?}: {refusals:#?}");
        cure(&mut facts, &mut options);
        live::plan(&facts, &options).unwrap_or_else(|left| panic!("{remedy:?}: {left:#?}"));
    }
}
