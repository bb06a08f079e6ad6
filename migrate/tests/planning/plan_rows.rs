//! The planner's decision table, row by row: one change to a plain guest each, and what becomes of it.

use std::path::PathBuf;

use crate::plan_facts::*;
use migrate::domain::{Change, DiskEdit};
use migrate::facts::*;
use migrate::plan::*;
use qcow::chain::Format;

/// What becomes of `vda`.
#[derive(Debug, PartialEq)]
enum Outcome {
    /// Nothing is done.
    Skip,
    /// The drive is emptied.
    Eject,
    /// The medium is copied.
    Medium,
    /// Copied whole, into an image that stands alone.
    Alone,
    /// An overlay on what is there.
    OnExisting,
    /// An overlay on what is brought there.
    OnBaseCopy,
    /// What is there is overwritten.
    Adopted,
    /// No plan.
    Refused,
}
use Outcome::*;

struct Case {
    name: &'static str,
    policy: Policy,
    change: fn(&mut Facts),
    row: Row,
    outcome: Outcome,
    copy: CopyMode,
}

fn case(
    name: &'static str,
    policy: Policy,
    change: fn(&mut Facts),
    row: Row,
    outcome: Outcome,
) -> Case {
    let copy = match outcome {
        Skip | Eject | Medium | Refused => CopyMode::None,
        Alone | Adopted => CopyMode::Full,
        OnExisting | OnBaseCopy => CopyMode::Incremental,
    };
    Case { name, policy, change, row, outcome, copy }
}

fn auto() -> Policy {
    Policy::default()
}

fn vda(facts: &mut Facts) -> &mut DiskFacts {
    &mut facts.disks[0]
}

fn place(facts: &mut Facts) -> &mut TargetFacts {
    destination(&mut facts.disks[0])
}

fn layers(facts: &mut Facts) -> &mut Vec<LayerFacts> {
    &mut chain(&mut facts.disks[0]).layers
}

/// Makes `vda` a disk of other layers.
fn of(facts: &mut Facts, layers: Vec<LayerFacts>) {
    facts.disks[0] = disk("vda", layers);
}

fn lost(facts: &mut Facts) {
    layers(facts).pop();
    let chain = chain(&mut facts.disks[0]);
    chain.missing = Some(Missing { path: "/old/base.qcow2".into(), why: "gone".into() });
    (chain.guest_bytes, chain.below) = (None, None);
}

fn deleted(facts: &mut Facts) {
    layers(facts)[1].deleted = true;
    layers(facts)[1].read_from = "/proc/7/fd/12".into();
}

fn shut_off(facts: &mut Facts) {
    facts.domain.state = DomainState::ShutOff;
}

fn on_same_storage(facts: &mut Facts) {
    let place = place(facts);
    place.storage = Storage::Shared;
    place.path = "/old/vda.qcow2".into();
    place.object = Some(object(10, Format::Qcow2));
}

fn base_elsewhere(facts: &mut Facts) {
    layers(facts)[1].path = "/templates/base.qcow2".into();
    vda(facts).live_chain.layers = named(layers(facts));
}

fn cdrom(facts: &mut Facts) {
    of(facts, vec![layer("/old/vda.iso", 10, Format::Raw)]);
    vda(facts).device = Device::Cdrom;
}

fn object(inode: u64, format: Format) -> ObjectFacts {
    ObjectFacts {
        identity: identity(inode),
        block_device: false,
        image: Some(ImageFacts { format, virtual_size: SIZE }),
        in_use: None,
    }
}

fn device(size: u64) -> ObjectFacts {
    ObjectFacts {
        identity: Identity { size, ..identity(40) },
        block_device: true,
        image: None,
        in_use: None,
    }
}

fn raw(facts: &mut Facts) {
    of(facts, vec![layer("/old/vda.raw", 10, Format::Raw)]);
}

fn with_base(facts: &mut Facts) {
    place(facts).bases.push(base("/new/base.qcow2"));
}

fn adopt() -> Policy {
    auto().adopt(true)
}

#[rustfmt::skip]
fn cases() -> Vec<Case> {
    let eject = || auto().eject(true);
    let data_file = || auto().allow_data_file(true);
    let drop_snapshots = || auto().drop_internal_snapshots(true);
    vec![
        case("empty drive", auto(), |f| vda(f).source = Source::None, Row::EmptyDrive, Skip),
        // Read-only media.
        case("medium", auto(), cdrom, Row::ReadOnly, Medium),
        case("read-only disk", auto(), |f| { raw(f); vda(f).readonly = true }, Row::ReadOnly, Medium),
        case("medium on shared storage", auto(), |f| {
            cdrom(f);
            place(f).storage = Storage::Shared;
            place(f).path = "/old/vda.iso".into();
            place(f).object = Some(object(10, Format::Raw));
        }, Row::ReadOnly, Skip),
        case("another medium of that name", auto(), |f| {
            cdrom(f);
            place(f).object = Some(object(40, Format::Raw));
        }, Row::ReadOnly, Refused),
        case("the same, may be ejected", eject(), |f| {
            cdrom(f);
            place(f).object = Some(object(40, Format::Raw));
        }, Row::ReadOnly, Eject),
        case("a read-only disk is never ejected", eject(), |f| {
            raw(f);
            vda(f).readonly = true;
            place(f).object = Some(object(40, Format::Raw));
        }, Row::ReadOnly, Refused),
        case("read-only overlay", auto(), |f| vda(f).readonly = true, Row::ReadOnly, Refused),
        case("medium, storage unknown", auto(), |f| {
            cdrom(f);
            place(f).storage = Storage::Unknown { why: "?".into() };
        }, Row::ReadOnly, Refused),
        // Storage that both reach.
        case("network", auto(), |f| {
            vda(f).source = Source::Network { protocol: "rbd".into(), local: None };
        }, Row::OverTheNetwork, Skip),
        case("network, a socket of its host", auto(), |f| {
            vda(f).source = Source::Network { protocol: "nbd".into(), local: Some("/run/nbd/s".into()) };
        }, Row::OverTheNetwork, Refused),
        case("network, a socket on both hosts", auto().shared(vec!["/run/nbd".into()]), |f| {
            vda(f).source = Source::Network { protocol: "nbd".into(), local: Some("/run/nbd/s".into()) };
        }, Row::OverTheNetwork, Skip),
        case("network, the loopback address", auto().shared(vec!["/run".into()]), |f| {
            vda(f).source = Source::Network { protocol: "nbd".into(), local: Some("/".into()) };
        }, Row::OverTheNetwork, Refused),
        case("shared", auto(), on_same_storage, Row::SharedStorage, Skip),
        case("shared, but another file", auto(), |f| {
            on_same_storage(f);
            place(f).object = Some(object(40, Format::Qcow2));
        }, Row::SharedStorage, Refused),
        case("shared, but no file", auto(), |f| {
            on_same_storage(f);
            place(f).object = None;
        }, Row::SharedStorage, Refused),
        case("shared, its base elsewhere", auto(), |f| {
            on_same_storage(f);
            base_elsewhere(f);
        }, Row::SharedStorage, Refused),
        case("the same, and the operator vouches", auto().shared(vec!["/templates".into()]), |f| {
            on_same_storage(f);
            base_elsewhere(f);
        }, Row::SharedStorage, Skip),
        case("shared, old QEMU, writeback", auto(), |f| {
            on_same_storage(f);
            f.destination.qemu = None;
        }, Row::SharedStorage, Refused),
        case("shared, old QEMU, no cache", auto(), |f| {
            on_same_storage(f);
            f.destination.qemu = None;
            vda(f).cache = Some("none".into());
        }, Row::SharedStorage, Skip),
        case("another place on the same storage", auto(), |f| {
            place(f).storage = Storage::Shared;
        }, Row::FullCopy, Alone),
        case("storage unknown", auto(), |f| {
            place(f).storage = Storage::Unknown { why: "?".into() };
        }, Row::StorageUnknown, Refused),
        case("a volume without a path", auto(), |f| {
            vda(f).source = Source::Volume { pool: "p".into(), volume: "v".into(), path: None };
            vda(f).destination = None;
        }, Row::StorageUnknown, Refused),
        // What cannot be copied.
        case("shareable", auto(), |f| vda(f).shareable = true, Row::Shareable, Refused),
        case("nvme", auto(), |f| {
            vda(f).source = Source::Other { kind: "nvme".into() };
            (vda(f).chain, vda(f).destination) = (None, None);
        }, Row::PassedThrough, Refused),
        case("lun", auto(), |f| vda(f).device = Device::Lun, Row::PassedThrough, Refused),
        // Lost layers.
        case("deleted base", auto(), deleted, Row::LayerDeleted, Alone),
        case("deleted base, and the same is there", auto(), |f| { deleted(f); with_base(f) }, Row::LayerDeleted, Alone),
        case("deleted base, full", full(), deleted, Row::LayerDeleted, Alone),
        case("base gone, the guest reads it", auto(), lost, Row::LayerDeleted, Alone),
        case("base gone, thin", thin(), lost, Row::LayerDeleted, Alone),
        case("deleted base, thin", thin(), deleted, Row::LayerRescued, OnBaseCopy),
        case("deleted base, thin, and the same is there", thin(), |f| { deleted(f); with_base(f) }, Row::LayerRescued, OnExisting),
        case("deleted middle layer, thin", thin(), |f| {
            of(f, vec![
                layer("/old/vda.qcow2", 10, Format::Qcow2),
                layer("/old/middle.qcow2", 11, Format::Qcow2),
                layer("/old/base.qcow2", 12, Format::Qcow2),
            ]);
            deleted(f);
        }, Row::LayerDeleted, Alone),
        case("base gone, shut off", auto(), |f| { lost(f); shut_off(f) }, Row::LayerLost, Refused),
        case("deleted base, shut off", auto(), |f| { deleted(f); shut_off(f) }, Row::LayerLost, Refused),
        case("active layer unreadable", auto(), |f| { lost(f); layers(f).clear() }, Row::LayerLost, Refused),
        case("nothing known", auto(), |f| vda(f).chain = None, Row::LayerLost, Refused),
        // Chains that disagree.
        case("another base in the XML", thin(), |f| {
            vda(f).live_chain.layers[1].path = "/old/other.qcow2".into();
        }, Row::ChainInDoubt, Alone),
        case("another format in the XML", thin(), |f| {
            vda(f).live_chain.layers[1].format = Some("raw".into());
        }, Row::ChainInDoubt, Alone),
        case("more layers in the XML", auto(), |f| {
            of(f, vec![layer("/old/vda.qcow2", 10, Format::Qcow2)]);
            vda(f).live_chain.layers.push(NamedLayer { path: "/old/base.qcow2".into(), format: None });
        }, Row::ChainInDoubt, Alone),
        case("the XML ends before the headers", thin(), |f| {
            vda(f).live_chain.layers.pop();
        }, Row::ChainInDoubt, Alone),
        case("disagreement, shut off", auto(), |f| {
            shut_off(f);
            vda(f).live_chain.layers.pop();
        }, Row::ChainInDoubt, Refused),
        case("too deep", auto().max_depth(1), |_| (), Row::ChainInDoubt, Refused),
        case("disagreement on shared storage", auto(), |f| {
            on_same_storage(f);
            vda(f).live_chain.layers[1].path = "/old/other.qcow2".into();
        }, Row::SharedStorage, Refused),
        case("deleted base on shared storage", auto(), |f| { on_same_storage(f); deleted(f) }, Row::SharedStorage, Refused),
        case("read-only overlay on shared storage, its base elsewhere", auto(), |f| {
            on_same_storage(f);
            vda(f).readonly = true;
            base_elsewhere(f);
        }, Row::ReadOnly, Refused),
        case("format of the active layer recorded nowhere", auto(), |f| {
            layers(f)[0].format_from = FormatFrom::Nowhere;
        }, Row::ChainInDoubt, Refused),
        case("format of the base recorded nowhere", thin(), |f| {
            layers(f)[1].format_from = FormatFrom::Nowhere;
        }, Row::FullCopy, Alone),
        case("format of the base recorded nowhere, shut off", thin(), |f| {
            shut_off(f);
            layers(f)[1].format_from = FormatFrom::Nowhere;
        }, Row::ChainInDoubt, Refused),
        // What a copy loses.
        case("data file", auto(), |f| header(vda(f), 0).data_file = Some("d".into()), Row::DataFile, Refused),
        case("data file, allowed", data_file(), |f| {
            header(vda(f), 0).data_file = Some("d".into());
        }, Row::DataFile, Alone),
        case("snapshots", auto(), |f| header(vda(f), 0).snapshots.push("s".into()), Row::InternalSnapshots, Refused),
        case("snapshots, dropped", drop_snapshots(), |f| {
            header(vda(f), 0).snapshots.push("s".into());
        }, Row::InternalSnapshots, Alone),
        case("snapshots of the base are its own", thin(), |f| {
            header(vda(f), 1).snapshots.push("s".into());
        }, Row::BaseBrought, OnBaseCopy),
        case("luks", auto(), |f| header(vda(f), 0).encryption = Some("luks".into()), Row::Encrypted, Refused),
        case("an encrypted base, data file allowed", data_file(), |f| {
            header(vda(f), 0).data_file = Some("d".into());
            header(vda(f), 1).encryption = Some("aes".into());
        }, Row::Encrypted, Refused),
        // Ordinary images.
        case("raw", auto(), raw, Row::RawFile, Alone),
        case("raw device", auto(), |f| { raw(f); layers(f)[0].block_device = true }, Row::RawDevice, Alone),
        case("qcow2 on a device", auto(), |f| layers(f)[0].block_device = true, Row::Qcow2OnDevice, Alone),
        case("qcow2 on a device, thin", thin(), |f| {
            layers(f)[0].block_device = true;
            with_base(f);
        }, Row::Qcow2OnDevice, OnExisting),
        case("without a base", thin(), |f| of(f, vec![layer("/old/vda.qcow2", 10, Format::Qcow2)]), Row::NoBase, Alone),
        case("base there", auto(), with_base, Row::BasePresent, OnExisting),
        case("base there, thin", thin(), with_base, Row::BasePresent, OnExisting),
        case("base there, deeper chain", auto(), |f| {
            with_base(f);
            let middle = layer("/old/middle.qcow2", 12, Format::Qcow2);
            let lowest = NamedLayer { path: "/new/lowest.raw".into(), format: Some("raw".into()) };
            layers(f).insert(1, middle);
            vda(f).live_chain.layers = named(&vda(f).chain.as_ref().unwrap().layers);
            place(f).bases[0].chain.push(lowest);
        }, Row::BasePresent, OnExisting),
        case("base to be brought", thin(), |_| (), Row::BaseBrought, OnBaseCopy),
        case("no proof", auto(), |_| (), Row::FullCopy, Alone),
        case("thin not wanted", full(), with_base, Row::FullCopy, Alone),
        // The place.
        case("occupied", auto(), |f| place(f).object = Some(object(40, Format::Qcow2)), Row::PathOccupied, Refused),
        case("adopted", adopt(), |f| place(f).object = Some(object(40, Format::Qcow2)), Row::PathOccupied, Adopted),
        case("adopted, thin wanted", adopt().style(Style::Thin), |f| {
            with_base(f);
            place(f).object = Some(object(40, Format::Qcow2));
        }, Row::PathOccupied, Adopted),
        case("adopt: base deleted", adopt(), |f| {
            deleted(f);
            place(f).object = Some(object(40, Format::Qcow2));
        }, Row::LayerDeleted, Adopted),
        case("adopt: wrong size", adopt(), |f| {
            place(f).object = Some(object(40, Format::Qcow2));
            place(f).object.as_mut().unwrap().image.as_mut().unwrap().virtual_size += 512;
        }, Row::PathOccupied, Refused),
        case("adopt: wrong format", adopt(), |f| place(f).object = Some(object(40, Format::Raw)), Row::PathOccupied, Refused),
        case("adopt: no image", adopt(), |f| {
            place(f).object = Some(ObjectFacts { image: None, ..object(40, Format::Raw) });
        }, Row::PathOccupied, Refused),
        case("adopt: in use", adopt(), |f| {
            place(f).object = Some(ObjectFacts { in_use: Some("a guest".into()), ..object(40, Format::Qcow2) });
        }, Row::PathOccupied, Refused),
        case("adopt: the source's own file", adopt(), |f| {
            place(f).object = Some(object(10, Format::Qcow2));
        }, Row::PathOccupied, Refused),
        case("adopt: its own base by another path, same storage", adopt(), |f| {
            place(f).storage = Storage::Shared;
            let mut own = object(11, Format::Qcow2);
            own.identity.device = Some(99);
            place(f).object = Some(own);
        }, Row::PathOccupied, Refused),
        case("adopt: same storage, inode not known", adopt(), |f| {
            place(f).storage = Storage::Shared;
            let mut unknown = object(40, Format::Qcow2);
            unknown.identity.inode = None;
            place(f).object = Some(unknown);
        }, Row::PathOccupied, Refused),
        case("adopt: device", adopt(), |f| { raw(f); place(f).object = Some(device(SIZE)) }, Row::PathOccupied, Adopted),
        case("adopt: device too small", adopt(), |f| {
            raw(f);
            place(f).object = Some(device(SIZE - 512));
        }, Row::PathOccupied, Refused),
        case("adopt: no room for qcow2 on the device", adopt(), |f| {
            let image = Some(ImageFacts { format: Format::Qcow2, virtual_size: SIZE });
            place(f).object = Some(ObjectFacts { image, ..device(SIZE) });
        }, Row::PathOccupied, Refused),
        case("adopt: shut off", adopt(), |f| {
            shut_off(f);
            place(f).object = Some(object(40, Format::Qcow2));
        }, Row::PathOccupied, Refused),
        // Damage.
        case("corrupt", auto(), |f| header(vda(f), 0).corrupt = true, Row::UncleanLayer, Refused),
        case("corrupt base", thin(), |f| header(vda(f), 1).corrupt = true, Row::UncleanLayer, Refused),
        case("dirty while it runs", thin(), |f| { with_base(f); header(vda(f), 0).dirty = true }, Row::BasePresent, OnExisting),
        case("dirty base", thin(), |f| { with_base(f); header(vda(f), 1).dirty = true }, Row::UncleanLayer, Alone),
        // `Bitmaps` changes nothing but what is said.
        case("bitmaps", auto(), |f| { with_base(f); header(vda(f), 0).bitmaps.push("b".into()) }, Row::BasePresent, OnExisting),
        case("no directory", auto(), |f| place(f).unusable = Some("?".into()), Row::PlaceUnusable, Refused),
    ]
}

#[test]
fn every_row_decides_what_it_should() {
    for case in cases() {
        let name = case.name;
        let mut facts = guest(vec![overlay()]);
        (case.change)(&mut facts);
        let (row, outcome, copy) = match decide(&facts, &case.policy) {
            Ok((plan, _)) => (plan.disks[0].row, outcome(&plan.disks[0].action), plan.copy),
            Err(refusals) => {
                assert_eq!(refusals.len(), 1, "{name}: {refusals:?}");
                assert_eq!(refusals[0].disk.as_deref(), Some("vda"), "{name}");
                assert!(!refusals[0].way_out.to_string().is_empty(), "{name}");
                assert_eq!(refusals[0].code, case.row.code(), "{name}: {refusals:?}");
                (case.row, Refused, CopyMode::None)
            }
        };
        assert_eq!((row, outcome, copy), (case.row, case.outcome, case.copy), "{name}");
    }
}

#[test]
fn every_row_has_a_case() {
    use Row::*;
    let all = [
        EmptyDrive,
        ReadOnly,
        OverTheNetwork,
        SharedStorage,
        StorageUnknown,
        Shareable,
        PassedThrough,
        LayerDeleted,
        LayerRescued,
        LayerLost,
        ChainInDoubt,
        DataFile,
        InternalSnapshots,
        Encrypted,
        RawFile,
        RawDevice,
        Qcow2OnDevice,
        NoBase,
        BasePresent,
        BaseBrought,
        FullCopy,
        PathOccupied,
        UncleanLayer,
        PlaceUnusable,
    ];
    let cases = cases();
    for row in all {
        assert!(cases.iter().any(|case| case.row == row), "{row:?}");
    }
}

fn outcome(action: &Action) -> Outcome {
    match action {
        Action::Skip => Skip,
        Action::Eject => Eject,
        Action::CopyMedium { .. } => Medium,
        Action::Create { base: None, .. } => Alone,
        Action::Create { base: Some(BasePlan::Existing { .. }), .. } => OnExisting,
        Action::Create { base: Some(BasePlan::BaseCopy { .. }), .. } => OnBaseCopy,
        Action::Adopt { .. } => Adopted,
    }
}

#[test]
fn the_new_image_is_like_the_old_one() {
    let mut facts = guest(vec![overlay()]);
    header(vda(&mut facts), 0).cluster_size = 2 * MIB;
    header(vda(&mut facts), 0).extended_l2 = true;
    let plan = planned(&facts, &auto());
    let Action::Create { image, .. } = &plan.disks[0].action else { panic!() };
    let wanted = NewImage {
        path: "/new/vda.qcow2".into(),
        format: Format::Qcow2,
        virtual_size: SIZE,
        cluster_size: Some(2 * MIB),
        extended_l2: true,
    };
    assert_eq!(*image, wanted);
}

#[test]
fn the_size_is_the_hypervisors_in_whole_sectors() {
    let size = |facts: &Facts| match &planned(facts, &auto()).disks[0].action {
        Action::Create { image, .. } => image.virtual_size,
        other => panic!("{other:?}"),
    };
    let mut facts = guest(vec![overlay()]);
    raw(&mut facts);
    layers(&mut facts)[0].virtual_size = 1_000_001;
    vda(&mut facts).live_capacity = Some(1_000_448);
    assert_eq!(size(&facts), 1_000_448);
    shut_off(&mut facts);
    vda(&mut facts).live_capacity = None;
    assert_eq!(size(&facts), 1_000_448);

    // It has been resized since the header was read.
    let mut facts = guest(vec![overlay()]);
    vda(&mut facts).live_capacity = Some(2 * SIZE);
    assert_eq!(size(&facts), 2 * SIZE);
}

#[test]
fn a_base_is_brought_under_a_name_that_is_free() {
    let name = |facts: &Facts| match base_of(&planned(facts, &thin())) {
        Some(BasePlan::BaseCopy { path, .. }) => path.clone(),
        other => panic!("{other:?}"),
    };
    let mut facts = guest(vec![overlay()]);
    assert_eq!(name(&facts), PathBuf::from("/new/base.qcow2"));
    // A template of the same name and size, and other content.
    let mut other = base("/new/base.qcow2");
    other.content = Content::Different;
    place(&mut facts).bases.push(other);
    assert_eq!(name(&facts), PathBuf::from("/new/base-0123456789ab.qcow2"));
    // And that name is taken, too.
    let mut other = base("/new/base-0123456789ab.qcow2");
    other.content = Content::Unknown { why: "?".into() };
    place(&mut facts).bases.push(other);
    let plan = planned(&facts, &thin());
    assert_eq!((plan.copy, base_of(&plan)), (CopyMode::Full, None));
    assert_eq!(codes(&plan), ["thin-not-possible"]);
}

#[test]
fn disks_on_one_template_bring_it_once_and_others_do_not_share_its_name() {
    let second = |digest: &str| {
        let mut second = overlay();
        second.target = "vdb".into();
        destination(&mut second).path = "/new/vdb.qcow2".into();
        chain(&mut second).layers[0].path = "/old/vdb.qcow2".into();
        second.live_chain =
            XmlChain { layers: named(&chain(&mut second).layers), terminated: true };
        chain(&mut second).below = Some(digest.into());
        second
    };
    let base_copies = |facts: &Facts| -> Vec<PathBuf> {
        let plan = planned(facts, &thin());
        plan.disks
            .iter()
            .map(|disk| match &disk.action {
                Action::Create { base: Some(BasePlan::BaseCopy { path, .. }), .. } => path.clone(),
                other => panic!("{other:?}"),
            })
            .collect()
    };
    let facts = guest(vec![overlay(), second(DIGEST)]);
    assert_eq!(base_copies(&facts), [PathBuf::from("/new/base.qcow2"), "/new/base.qcow2".into()]);
    let plan = planned(&facts, &thin());
    assert!(plan.disks[0].transfer_bytes > plan.disks[1].transfer_bytes, "counted once");

    let other = "f".repeat(64);
    let facts = guest(vec![overlay(), second(&other)]);
    let names = [PathBuf::from("/new/base.qcow2"), "/new/base-ffffffffffff.qcow2".into()];
    assert_eq!(base_copies(&facts), names);

    // A disk may have the name that a base would like.
    let mut facts = guest(vec![overlay(), alone("vdb")]);
    destination(&mut facts.disks[1]).path = "/new/base.qcow2".into();
    let Action::Create { base: Some(BasePlan::BaseCopy { path, .. }), .. } =
        &planned(&facts, &thin()).disks[0].action
    else {
        panic!()
    };
    assert_eq!(*path, PathBuf::from("/new/base-0123456789ab.qcow2"));
}

#[test]
fn one_lower_layer_is_copied_as_it_is_and_several_become_one() {
    let how = |facts: &Facts| match base_of(&planned(facts, &thin())) {
        Some(BasePlan::BaseCopy { how, format, .. }) => (how.clone(), *format),
        other => panic!("{other:?}"),
    };
    let mut facts = guest(vec![overlay()]);
    of(
        &mut facts,
        vec![layer("/old/vda.qcow2", 10, Format::Qcow2), layer("/old/base.raw", 11, Format::Raw)],
    );
    assert_eq!(
        how(&facts),
        (BaseCopyMethod::CopyFile { from: "/old/base.raw".into() }, Format::Raw)
    );
    deleted(&mut facts);
    assert_eq!(
        how(&facts),
        (BaseCopyMethod::CopyFile { from: "/proc/7/fd/12".into() }, Format::Raw)
    );
    of(
        &mut facts,
        vec![
            layer("/old/vda.qcow2", 10, Format::Qcow2),
            layer("/old/middle.qcow2", 12, Format::Qcow2),
            layer("/old/base.raw", 11, Format::Raw),
        ],
    );
    let flatten =
        BaseCopyMethod::Flatten { from: "/old/middle.qcow2".into(), format: Format::Qcow2 };
    assert_eq!(how(&facts), (flatten, Format::Qcow2));
}

#[test]
fn two_disks_never_go_to_one_place() {
    let mut facts = guest(vec![overlay(), alone("vdb")]);
    destination(&mut facts.disks[1]).path = "/new/vda.qcow2".into();
    assert_eq!(refused(&facts, &auto()), ["D23", "D23"]);
}

#[test]
fn the_xml_gets_the_whole_chain_of_an_overlay_and_an_end_otherwise() {
    let mut facts = guest_with_base();
    let lowest = NamedLayer { path: "/new/lowest.raw".into(), format: Some("raw".into()) };
    place(&mut facts).bases[0].chain.push(lowest.clone());
    facts.disks.push(alone("vdb"));
    let (_, edits) = decide(&facts, &auto()).unwrap();
    let base = NamedLayer { path: "/new/base.qcow2".into(), format: Some("qcow2".into()) };
    let moved = |target: &str, below| DiskEdit {
        target: target.into(),
        change: Change::Move {
            path: format!("/new/{target}.qcow2").into(),
            block: false,
            format: Format::Qcow2,
            below,
            slice: None,
        },
    };
    assert_eq!(edits, [moved("vda", vec![base, lowest]), moved("vdb", vec![])]);
}

#[test]
fn of_a_larger_device_only_as_much_is_used_as_the_disk_has() {
    let mut facts = guest(vec![overlay()]);
    raw(&mut facts);
    for (size, slice) in [(SIZE, None), (SIZE + MIB, Some(SIZE))] {
        place(&mut facts).object = Some(device(size));
        let (_, edits) = decide(&facts, &adopt()).unwrap();
        let wanted = Change::Move {
            path: "/new/vda.qcow2".into(),
            block: true,
            format: Format::Raw,
            below: vec![],
            slice,
        };
        assert_eq!(edits[0].change, wanted);
    }
}

#[test]
fn what_does_not_come_along_is_said() {
    let mut facts = guest(vec![overlay()]);
    let all = header(vda(&mut facts), 0);
    all.snapshots.push("old".into());
    all.bitmaps.push("backup".into());
    facts.domain.checkpoints.push("monday".into());
    facts.domain.persistent = false;
    layers(&mut facts)[0].identity.size = 2 * SIZE;
    let policy = thin().drop_internal_snapshots(true);
    let plan = planned(&facts, &policy);
    let wanted = [
        "checkpoints-not-migrated",
        "not-persistent",
        "thin-not-possible",
        "internal-snapshots-lost",
        "bitmaps",
        "preallocation-lost",
    ];
    assert_eq!(codes(&plan), wanted);
}

#[test]
fn a_thin_wish_that_fails_names_the_reason_and_the_bytes() {
    let mut facts = guest_with_base();
    facts.disks.push(alone("vdb"));
    header(&mut facts.disks[1], 0).snapshots.push("old".into());
    let policy = thin().drop_internal_snapshots(true);
    let plan = planned(&facts, &policy);
    let warning = plan.warnings.iter().find(|it| it.code == "thin-not-possible").unwrap();
    assert_eq!(warning.disk.as_deref(), Some("vda"));
    assert!(warning.message.contains("'vdb' must be copied whole"), "{warning:?}");
    assert!(warning.message.contains(&(84 * MIB).to_string()), "{warning:?}");
}
