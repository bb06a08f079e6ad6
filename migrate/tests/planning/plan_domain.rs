//! The planner's rules for a guest as a whole, and how the guest is moved.

use crate::plan_facts::*;
use migrate::facts::*;
use migrate::plan::*;
use qcow::chain::Format;

/// A rule's code, and what breaks it.
type Case = (&'static str, fn(&mut Facts));

#[test]
fn a_guest_that_breaks_a_rule_is_refused_by_that_rule_alone() {
    let cases: [Case; 11] = [
        ("R1", |facts| facts.domain.job = Some("migration out".into())),
        ("R1", |facts| facts.disks[0].block_job = Some("block commit".into())),
        ("R2", |facts| facts.domain.snapshots.push("before-update".into())),
        ("R3", |facts| facts.disks[0].transient = true),
        ("R5", |facts| facts.domain.state = DomainState::Other),
        ("R6", |facts| facts.clash = Some("'guest' with UUID x".into())),
        ("R7", |facts| facts.destination.uuid = facts.source.uuid.clone()),
        // What the destination has is the guest itself.
        ("R7", |facts| {
            facts.destination.uuid = facts.source.uuid.clone();
            facts.clash = Some("'guest' with UUID x".into());
        }),
        ("R10", |facts| facts.domain.saved = true),
        ("R7", |facts| facts.destination.uuid = None),
        ("R7", |facts| facts.source.uuid = None),
    ];
    for (code, break_rule) in cases {
        let mut facts = guest(vec![overlay()]);
        break_rule(&mut facts);
        assert_eq!(refused(&facts, &Policy::default()), [code]);
    }
}

#[test]
fn all_refusals_are_told_at_once() {
    let mut facts = guest(vec![overlay(), alone("vdb")]);
    facts.domain.job = Some("dump".into());
    facts.clash = Some("'guest'".into());
    facts.disks[0].shareable = true;
    destination(&mut facts.disks[1]).unusable = Some("no such directory".into());
    assert_eq!(refused(&facts, &Policy::default()), ["R1", "R6", "D06", "D23"]);
}

#[test]
fn a_guest_that_is_shut_off_moves_as_files() {
    // R5: to a directory, too.
    let mut facts = guest_with_base();
    facts.disks.push(alone("vdb"));
    facts.domain.state = DomainState::ShutOff;
    facts.destination.uuid = None;
    let plan = planned(&facts, &Policy::default());
    assert_eq!((plan.mode, plan.copy), (Mode::Offline, CopyMode::None));
    assert_eq!((plan.flags.len(), plan.migrate_disks.len()), (0, 0));
    assert_eq!(
        plan.disks.iter().map(|disk| disk.row).collect::<Vec<_>>(),
        [Row::BasePresent, Row::NoBase]
    );
    assert!(base_of(&plan).is_some(), "the overlay stays one");
}

#[test]
fn offline_each_disk_is_decided_for_itself() {
    let mut facts = guest_with_base();
    facts.domain.state = DomainState::ShutOff;
    let mut with_snapshot = alone("vdb");
    header(&mut with_snapshot, 0).snapshots.push("old".into());
    facts.disks.push(with_snapshot);
    let policy = thin().drop_internal_snapshots(true);
    let plan = planned(&facts, &policy);
    assert!(base_of(&plan).is_some());
    assert_eq!(plan.disks[1].row, Row::InternalSnapshots);
}

#[test]
fn old_or_unknown_versions_get_full_copies_without_new_parameters() {
    // R9
    let old: [fn(&mut Facts); 4] = [
        |facts| facts.source.libvirt = Some(Version::new(7, 10, 0)),
        |facts| facts.destination.libvirt = None,
        |facts| facts.source.qemu = Some(Version::new(6, 1, 0)),
        |facts| facts.destination.qemu = Some(Version::new(5, 2, 0)),
    ];
    let policy = thin().sync_writes(true);
    for make_old in old {
        let mut facts = guest_with_base();
        facts.disks.push(disk("vdb", vec![layer("/old/vdb.raw", 20, Format::Raw)]));
        assert_eq!(planned(&facts, &policy).copy, CopyMode::Incremental);
        make_old(&mut facts);
        let plan = planned(&facts, &policy);
        assert_eq!((plan.copy, base_of(&plan)), (CopyMode::Full, None));
        assert!(!plan.flags.contains(&Flag::NonSharedSynchronousWrites));
        assert!(plan.detect_zeroes.is_empty());
        assert_eq!(codes(&plan), ["sync-writes-not-possible", "thin-not-possible"]);
    }
}

#[test]
fn between_directories_a_live_move_can_be_planned_for_somebody_else() {
    let mut facts = guest_with_base();
    for (host, directory) in [(&mut facts.source, "dir:/a"), (&mut facts.destination, "dir:/b")] {
        (host.uuid, host.libvirt, host.qemu) = (None, None, None);
        host.uri = directory.into();
    }
    // A definition need tell no more than the first layer; the headers tell the rest.
    facts.disks[0].live_chain.layers.truncate(1);
    facts.disks[0].live_chain.terminated = false;
    assert_eq!(planned(&facts, &Policy::default()).copy, CopyMode::Incremental);
}

#[test]
fn nothing_to_copy_means_no_storage_flag_and_no_list() {
    // An empty list would mean: all of them.
    let mut network = alone("vda");
    network.source = Source::Network { protocol: "rbd".into(), local: None };
    network.destination = None;
    let plan = planned(&guest(vec![network]), &Policy::default());
    assert_eq!(plan.copy, CopyMode::None);
    assert!(plan.migrate_disks.is_empty());
    assert!(!plan.flags.contains(&Flag::NonSharedDisk));
    assert!(!plan.flags.contains(&Flag::NonSharedInc));
}

#[test]
fn only_copied_disks_are_listed() {
    let mut cdrom = alone("sda");
    cdrom.device = Device::Cdrom;
    let mut network = alone("vdc");
    network.source = Source::Network { protocol: "nbd".into(), local: None };
    let facts = guest(vec![overlay(), cdrom, network, alone("vdb")]);
    let plan = planned(&facts, &Policy::default());
    assert_eq!(plan.migrate_disks, ["vda", "vdb"]);
}

#[test]
fn flags_follow_state_policy_and_copy() {
    use Flag::*;
    let facts = guest(vec![overlay()]);
    let always =
        |copy| vec![PeerToPeer, PersistDest, UndefineSource, copy, ChangeProtection, AbortOnError];
    let mut running = always(NonSharedDisk);
    running.insert(0, Live);
    assert_eq!(planned(&facts, &Policy::default()).flags, running);

    let mut paused = facts.clone();
    paused.domain.state = DomainState::Paused;
    assert_eq!(planned(&paused, &Policy::default()).flags, always(NonSharedDisk));

    let mut transient = facts.clone();
    transient.domain.persistent = false;
    let plan = planned(&transient, &Policy::default());
    assert!(!plan.flags.contains(&PersistDest) && !plan.flags.contains(&UndefineSource));

    let policy = Policy::default().sync_writes(true).verify(Verify::Sample);
    let plan = planned(&facts, &policy);
    assert!(plan.flags.contains(&NonSharedSynchronousWrites) && plan.flags.contains(&Paused));

    let plan = planned(&guest_with_base(), &Policy::default());
    assert!(plan.flags.contains(&NonSharedInc) && !plan.flags.contains(&NonSharedDisk));
}

#[test]
fn bandwidth_is_shared_by_disks_and_memory() {
    // libvirt gives each stream the whole figure.
    let facts = guest(vec![overlay(), alone("vdb"), alone("vdc")]);
    for (bytes, mib) in [(400 * MIB, 100), (403 * MIB, 100), (1, 1)] {
        let policy = Policy::default().bandwidth(Some(bytes));
        assert_eq!(planned(&facts, &policy).bandwidth_mib, Some(mib));
    }
    assert_eq!(planned(&facts, &Policy::default()).bandwidth_mib, None);
}

#[test]
fn zeros_are_looked_for_in_raw_disks_where_libvirt_can() {
    let raw = disk("vdb", vec![layer("/old/vdb.raw", 20, Format::Raw)]);
    let mut facts = guest(vec![overlay(), raw]);
    assert_eq!(planned(&facts, &Policy::default()).detect_zeroes, ["vdb"]);
    facts.destination.libvirt = Some(Version::new(10, 8, 0));
    assert!(planned(&facts, &Policy::default()).detect_zeroes.is_empty());
}

#[test]
fn what_does_not_fit_is_refused_directory_by_directory() {
    let mut facts = guest(vec![overlay(), alone("vdb")]);
    // Each of them would fit.
    for disk in &mut facts.disks {
        destination(disk).available = Some(150 * MIB);
    }
    assert_eq!(refused(&facts, &Policy::default()), ["space"]);
    destination(&mut facts.disks[1]).path = "/other/vdb.qcow2".into();
    planned(&facts, &Policy::default());
}

#[test]
fn a_full_copy_needs_what_all_layers_hold_and_an_overlay_only_its_own() {
    let full = planned(&guest(vec![overlay()]), &full());
    assert_eq!(full.disks[0].transfer_bytes, 100 * MIB);
    let thin = planned(&guest_with_base(), &Policy::default());
    assert_eq!(thin.disks[0].transfer_bytes, 16 * MIB);
    assert!((16 * MIB..20 * MIB).contains(&thin.predicted.space_bytes));
    assert!((100 * MIB..110 * MIB).contains(&full.predicted.space_bytes));
}

#[test]
fn the_plan_carries_both_documents_and_its_digest() {
    let xml = || {
        String::from(
            "<domain type='kvm'><name>guest</name><uuid>3b9a37ba-8e1c-4a3f-9c0e-8c1a52a6d6a1</uuid>\
             <memory unit='MiB'>64</memory><os><type arch='x86_64'>hvm</type></os><devices>\
             <disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
             <source file='/old/vda.qcow2'/><target dev='vda' bus='virtio'/></disk>\
             </devices></domain>",
        )
    };
    let mut facts = guest_with_base();
    facts.domain.live_xml = xml();
    facts.domain.migratable_xml = xml();
    facts.domain.inactive_xml = Some(xml());
    let made = plan(&facts, &Policy::default()).unwrap();
    assert!(made.destination_xml.contains("/new/vda.qcow2"), "{}", made.destination_xml);
    assert!(made.destination_xml.contains("/new/base.qcow2"), "{}", made.destination_xml);
    assert!(made.destination_xml.contains("<backingStore/>"), "{}", made.destination_xml);
    let persistent = made.persistent_xml.as_ref().unwrap();
    assert!(persistent.contains("/new/vda.qcow2") && !persistent.contains("base"), "{persistent}");
    made.check().unwrap();

    // A guest that is not defined has no next start.
    facts.domain.persistent = false;
    assert_eq!(plan(&facts, &Policy::default()).unwrap().persistent_xml, None);

    facts.domain.migratable_xml = "<domain/>".into();
    let refusals = plan(&facts, &Policy::default()).unwrap_err();
    assert_eq!(refusals[0].code, "xml");
}

fn with_devices(state: DomainState, more: &str) -> Facts {
    let mut facts = guest(vec![overlay()]);
    facts.domain.state = state;
    facts.domain.live_xml = format!("<domain type='kvm'><name>g</name>{more}</domain>");
    facts
}

#[test]
fn what_libvirt_and_qemu_will_not_migrate_is_refused_before_anything_is_made() {
    // With whether some hosts can, and whether it is one of the host's.
    let cases = [
        ("<hostdev mode='subsystem' type='pci'><source/></hostdev>", true, true),
        ("<hostdev mode='subsystem' type='mdev'><source/></hostdev>", true, true),
        (
            "<hostdev mode='subsystem' type='scsi'><source><adapter name='scsi_host0'/></source></hostdev>",
            false,
            true,
        ),
        (
            "<hostdev mode='subsystem' type='scsi_host'><source protocol='vhost'/></hostdev>",
            false,
            true,
        ),
        ("<interface type='hostdev'><source/></interface>", true, true),
        ("<interface type='vdpa'><source dev='/dev/vhost-vdpa-0'/></interface>", true, true),
        ("<shmem name='s'><model type='ivshmem-plain'/></shmem>", false, false),
        ("<shmem name='s' role='peer'/>", false, false),
        (
            "<filesystem type='mount'><driver type='virtiofs'/><target dir='x'/></filesystem>",
            true,
            true,
        ),
        ("<filesystem type='mount'><target dir='x'/></filesystem>", true, true),
        ("<tpm><backend type='passthrough'/></tpm>", false, true),
        ("<input type='passthrough' bus='virtio'/>", false, true),
        ("<smartcard mode='host'/>", false, true),
        ("<sound model='usb'/>", false, false),
        ("<sound model='virtio'/>", false, false),
        ("<crypto model='virtio'/>", false, false),
        ("<iommu model='amd'/>", false, false),
        ("<memory model='sgx-epc'/>", false, true),
        ("<video><model type='virtio'><acceleration accel3d='yes'/></model></video>", false, false),
        ("<video><driver name='vhostuser'/><model type='virtio'/></video>", false, false),
        ("<disk><target dev='nvme0' bus='nvme'/></disk>", false, false),
    ];
    for (device, maybe, of_host) in cases {
        let devices = format!("<devices>{device}</devices>");
        let facts = with_devices(DomainState::Running, &devices);
        let refusals = decide(&facts, &Policy::default()).unwrap_err();
        assert_eq!((refusals.len(), &*refusals[0].code), (1, "R11"), "{device}");
        let tries = matches!(refusals[0].way_out, migrate::Remedy::DetachOrTry(_));
        assert_eq!(tries, maybe, "{device}");
        let tried = Policy::default().try_devices(true);
        match maybe {
            true => assert_eq!(codes(&planned(&facts, &tried)), ["host-device"], "{device}"),
            false => assert_eq!(refused(&facts, &tried), ["R11"], "{device}"),
        }
        // As files it can go; what it had of its host is said.
        let plan = planned(&with_devices(DomainState::ShutOff, &devices), &Policy::default());
        assert_eq!(codes(&plan) == ["host-device"], of_host, "{device}");
    }
    let of_processor = [
        "<cpu><feature policy='require' name='invtsc'/></cpu>",
        "<cpu mode='host-passthrough' migratable='off'/>",
        "<launchSecurity type='sev'/>",
    ];
    for more in of_processor {
        let facts = with_devices(DomainState::Running, more);
        assert_eq!(refused(&facts, &Policy::default()), ["R11"], "{more}");
    }
}

#[test]
fn what_can_be_migrated_is_not_refused_for_its_looks() {
    for more in [
        "<devices><hostdev type='usb'/><hostdev type='scsi'><source protocol='iscsi'/></hostdev></devices>",
        "<devices><hostdev type='pci'><teaming type='transient' persistent='n'/></hostdev></devices>",
        "<devices><interface type='hostdev'><teaming type='transient'/></interface></devices>",
        "<devices><interface type='bridge'/><shmem name='s' role='master'/><iommu model='intel'/></devices>",
        "<devices><smartcard mode='passthrough'/><sound model='ich9'/><input type='tablet'/></devices>",
        "<devices><video><model type='virtio'/></video><tpm><backend type='emulator'/></tpm></devices>",
        "<cpu><feature policy='require' name='invtsc'/></cpu><clock><timer name='tsc' frequency='1'/></clock>",
        "<cpu mode='host-passthrough' migratable='on'/><cpu><feature policy='disable' name='invtsc'/></cpu>",
        "<metadata><hostdev type='pci'/></metadata>",
    ] {
        let facts = with_devices(DomainState::Running, more);
        assert_eq!(codes(&planned(&facts, &Policy::default())), [""; 0], "{more}");
    }
}

#[test]
fn the_way_out_for_an_encrypted_disk_fits_the_guests_state() {
    for (state, shut_off_first) in [(DomainState::Running, true), (DomainState::ShutOff, false)] {
        let mut facts = guest(vec![alone("vda")]);
        facts.domain.state = state;
        header(&mut facts.disks[0], 0).encryption = Some("luks".into());
        let refusals = decide(&facts, &Policy::default()).unwrap_err();
        let way_out = format!("{}", refusals[0]);
        assert_eq!(way_out.contains("shut the guest off"), shut_off_first, "{way_out}");
        assert!(way_out.contains("its secret"), "{way_out}");
    }
}

#[test]
fn a_policy_that_is_not_stated_has_the_form_that_it_had() {
    let text = serde_json::to_string(&Policy::default()).unwrap();
    assert!(!text.contains("stall") && !text.contains("try-devices"), "{text}");
    assert_eq!(serde_json::from_str::<Policy>("{}").unwrap(), Policy::default());
    let other = Policy::default().stall(0).try_devices(true);
    let text = serde_json::to_string(&other).unwrap();
    assert_eq!(serde_json::from_str::<Policy>(&text).unwrap(), other);
}

#[test]
fn how_memory_is_sent_becomes_flags_and_what_a_libvirt_cannot_is_refused() {
    let tuned = |tuning: Tuning| Policy::default().tuning(tuning);
    let several = Tuning::default().connections(4_u8).auto_converge(true);
    let facts = guest(vec![alone("vda")]);
    let plan = planned(&facts, &tuned(several.clone()));
    assert!(plan.flags.contains(&Flag::Parallel) && plan.flags.contains(&Flag::AutoConverge));
    assert!(!planned(&facts, &Policy::default()).flags.contains(&Flag::Parallel));
    let zstd = several.clone().compression(Compression::Zstd);
    assert!(planned(&facts, &tuned(zstd.clone())).flags.contains(&Flag::Compressed));
    // What does not go together.
    let refused_by = |facts: &Facts, tuning: Tuning| refused(facts, &tuned(tuning));
    assert_eq!(refused_by(&facts, several.clone().compression(Compression::Xbzrle)), ["R12"]);
    assert_eq!(refused_by(&facts, Tuning::default().compression(Compression::Zlib)), ["R12"]);
    // What one of them is too old for.
    let mut old = facts.clone();
    old.destination.libvirt = Some(Version::new(9, 0, 0));
    assert_eq!(refused_by(&old, zstd), ["R12"]);
    planned(&old, &tuned(several.clone()));
    old.source.libvirt = Some(Version::new(5, 1, 0));
    assert_eq!(refused_by(&old, several.clone()), ["R12"]);
    // A guest that is shut off has no memory to send.
    old.domain.state = DomainState::ShutOff;
    assert_eq!(planned(&old, &tuned(several)).flags, []);
}
