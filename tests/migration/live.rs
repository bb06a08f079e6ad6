//! `qcowtool plan` and `migrate` between two real libvirt hosts: each kind of disk that the decision table
//! knows. The guest writes all the time, before, during and after.

use std::fs;

use crate::trial::{Trial, Way, both_ways, needs_migration};
use rig::{Disk, Kind, Rig};

const DISK: &[&str] = &["disk.qcow2"];

both_ways! {
    /// D08a, the case of CloudStack: the guest holds the template open, nobody else has it.
    fn a_running_guest_whose_template_is_deleted(way: Way) {
        let mut trial = Trial::on_template(Rig::shared(), "orphan", way);
        trial.delete_template();
        trial.plans(&[], "full", &["D08a"]);
        trial.arrived(trial.migrate(&[]), DISK);
    }

    /// D19: a template at the source only, and nobody asked for it.
    fn an_overlay_whose_template_is_only_here(way: Way) {
        let trial = Trial::on_template(Rig::shared(), "here", way);
        trial.plans(&[], "full", &["D19"]);
        trial.arrived(trial.migrate(&[]), DISK);
    }

    /// D17: the same template is there.
    fn an_overlay_whose_template_is_there_too(way: Way) {
        let mut trial = Trial::on_template(Rig::shared(), "there", way);
        trial.copy_to_b("template.qcow2");
        trial.watch();
        trial.plans(&[], "incremental", &["D17"]);
        trial.arrived(trial.migrate(&[]), DISK);
        let info = trial.rig.b.qemu_img(["info", "-U", &trial.disk()]).ok();
        assert!(info.contains("template.qcow2"), "it is an overlay there as well: {info}");
    }

    /// D18: the template comes along, and then only the overlay's own content does.
    fn a_template_that_comes_along(way: Way) {
        let trial = Trial::on_template(Rig::shared(), "seeded", way);
        trial.plans(&["--policy", "thin"], "incremental", &["D18"]);
        trial.arrived(trial.migrate(&["--policy", "thin"]), &["disk.qcow2", "template.qcow2"]);
    }

    /// D16: a disk that stands alone.
    fn a_disk_without_template(way: Way) {
        let trial = Trial::alone(Rig::shared(), "alone", way);
        trial.plans(&[], "full", &["D16"]);
        trial.arrived(trial.migrate(&[]), DISK);
    }

    /// D13: a raw disk.
    fn a_raw_disk(way: Way) {
        let rig = Rig::shared();
        let mut trial = Trial::new(rig, "raw", way);
        let disk = trial.path("disk.img");
        trial.guest.template.write(&rig.a.outside(&disk));
        trial.run(&[Disk::raw(&*disk)]);
        trial.plans(&[], "full", &["D13"]);
        trial.migrate(&[]).ok();
        trial.lives_on_b(&["disk.img"]);
        trial.source_is_kept(&disk);
    }

    /// D20: there is something already, which nobody said may be lost.
    fn a_target_that_exists(way: Way) {
        let mut trial = Trial::on_template(Rig::shared(), "exists", way);
        trial.rig.b.qemu_img(["create", "-q", "-f", "qcow2", &trial.disk(), "64M"]).ok();
        trial.watch();
        trial.refused(trial.migrate(&[]), "disk.qcow2");
    }

    /// D23: the disk has another place there.
    fn another_path_there(way: Way) {
        let trial = Trial::on_template(Rig::shared(), "moved", way);
        let (old, new) = (trial.guest.directory(), trial.path("new"));
        fs::create_dir(trial.rig.b.outside(&new)).unwrap();
        trial.rig.b.run(["chmod", "711", &new]).ok();
        if way == Way::Libvirt {
            trial.rig.b.pool(&format!("{}-new", trial.guest.name), &new);
        }
        let ran = trial.migrate(&["--map-path", &format!("{old}={new}")]);
        if way == Way::Libvirt {
            trial.rig.b.virsh(["pool-destroy", &format!("{}-new", trial.guest.name)]);
            trial.rig.b.virsh(["pool-undefine", &format!("{}-new", trial.guest.name)]);
        }
        trial.arrived(ran, &["new/disk.qcow2"]);
    }

    /// Preparation alone, for who drives libvirt himself: what it prints is enough to do that.
    fn preparation_for_another_driver(way: Way) {
        let mut trial = Trial::on_template(Rig::shared(), "prepared", way);
        trial.delete_template();
        let ran = trial.tool("prepare", &["--output", "json"]);
        let prepared: serde_json::Value = serde_json::from_str(&ran.ok()).unwrap();
        let text = |key: &str| {
            prepared[key].as_str().unwrap_or_else(|| panic!("no {key}: {prepared:#}")).to_owned()
        };
        assert_eq!(text("transaction"), trial.transaction());
        let flags = prepared["flags"].to_string().to_lowercase().replace('_', "-");
        assert!(flags.contains("non-shared-disk"), "{flags}");
        assert_eq!(prepared["migrate-disks"], serde_json::json!(["vda"]));
        let a = &trial.rig.a;
        for (name, key) in [("live.xml", "destination-xml"), ("next.xml", "persistent-xml")] {
            fs::write(a.outside(trial.path(name)), text(key)).unwrap();
        }
        let (live, next) = (trial.path("live.xml"), trial.path("next.xml"));
        let flags = ["--copy-storage-all", "--migrate-disks", "vda", "--xml", &live];
        trial.guest.virsh_migrate(&[&flags[..], &["--persistent-xml", &next]].concat()).ok();
        trial.lives_on_b(DISK);
        // What is in use by then is not taken away.
        trial.go_on("rollback", &trial.transaction());
        trial.guest.goes_on(&trial.rig.b);
        assert!(trial.rig.b.has(trial.disk()));
    }

    /// What was prepared and is not wanted any more goes away, and nothing else does.
    fn preparation_that_is_rolled_back(way: Way) {
        let trial = Trial::on_template(Rig::shared(), "unwanted", way);
        trial.tool("prepare", &["--policy", "thin"]).ok();
        assert!(trial.rig.b.has(trial.disk()));
        trial.go_on("rollback", &trial.transaction()).ok();
        trial.stayed();
    }
}

/// D08c: there is nobody left who has the template.
#[test]
fn a_stopped_guest_whose_template_is_deleted_is_refused() {
    needs_migration!();
    let mut trial = Trial::on_template(Rig::shared(), "lost", Way::Agent);
    let (guest, a) = (&trial.guest, &trial.rig.a);
    a.virsh(["suspend", &guest.name]).ok();
    a.virsh(["destroy", &guest.name]).ok();
    let template = trial.path("template.qcow2");
    let content = fs::read(a.outside(&template)).unwrap();
    fs::remove_file(a.outside(&template)).unwrap();
    let ran = trial.migrate(&[]);
    assert_eq!(ran.code(), Some(crate::trial::REFUSED), "{ran}");
    crate::trial::says(&ran, "template.qcow2");
    assert!(trial.rig.b.list(trial.guest.directory()).is_empty());
    // With the template back, the guest is what it was.
    fs::write(a.outside(&template), content).unwrap();
    trial.guest.start(&trial.rig.a);
    trial.watch();
    trial.stayed();
}

/// D09: the chain that runs is in the XML, and the header knows nothing of it.
#[test]
fn a_chain_that_only_the_xml_knows() {
    needs_migration!();
    let rig = Rig::shared();
    let mut trial = Trial::new(rig, "xml-chain", Way::Agent);
    let (disk, template) = (trial.disk(), trial.path("template.qcow2"));
    rig.a.make_template(&template, &trial.guest.template);
    rig.a.qemu_img(["create", "-q", "-f", "qcow2", &disk, "64M"]).ok();
    trial.run(&[Disk::qcow2(&*disk).over(&[(&template, "qcow2")])]);
    trial.plans(&[], "full", &["D09"]);
    trial.migrate(&[]).ok();
    trial.lives_on_b(DISK);
}

/// The same chain in header and XML, as snapshots and some management software leave it.
#[test]
fn a_chain_that_the_xml_spells_out() {
    needs_migration!();
    let rig = Rig::shared();
    let mut trial = Trial::new(rig, "spelt-out", Way::Agent);
    let (disk, template) = (trial.disk(), trial.path("template.qcow2"));
    rig.a.make_template(&template, &trial.guest.template);
    rig.a.make_overlay(&disk, &template);
    trial.run(&[Disk::qcow2(&*disk).over(&[(&template, "qcow2")])]);
    trial.delete_template();
    trial.arrived(trial.migrate(&[]), DISK);
}

/// D19 with three layers, one of them made by a snapshot while the guest ran.
#[test]
fn a_chain_with_a_snapshot() {
    needs_migration!();
    let mut trial = Trial::on_template(Rig::shared(), "snapshot", Way::Agent);
    let (a, guest) = (&trial.rig.a, &trial.guest);
    let flags = ["--disk-only", "--no-metadata", "--diskspec"];
    let spec = format!("vda,file={}", trial.path("top.qcow2"));
    a.virsh(["snapshot-create-as", &guest.name].into_iter().chain(flags).chain([&*spec])).ok();
    guest.goes_on(a);
    trial.watch();
    trial.migrate(&[]).ok();
    trial.lives_on_b(&["top.qcow2"]);
    trial.source_is_kept(&trial.path("top.qcow2"));
    assert!(a.has(trial.disk()), "lower layers stay as they are");
}

/// D22: bitmaps do not come along, and are no reason to refuse.
#[test]
fn a_disk_with_bitmaps() {
    needs_migration!();
    let rig = Rig::shared();
    let mut trial = Trial::new(rig, "bitmaps", Way::Agent);
    let disk = trial.disk();
    rig.a.make_template(&disk, &trial.guest.template);
    rig.a.qemu_img(["bitmap", "--add", &disk, "backup"]).ok();
    trial.run(&[Disk::qcow2(disk)]);
    trial.arrived(trial.migrate(&[]), DISK);
}

/// Two disks that are written to, one of which has to be copied whole: then so is the other.
#[test]
fn one_disk_that_must_be_copied_whole_decides_for_both() {
    needs_migration!();
    let rig = Rig::shared();
    let mut trial = Trial::new(rig, "mixed", Way::Agent);
    trial.guest.template.disks = 2;
    let (disk, data) = (trial.disk(), trial.path("data.qcow2"));
    let (template, empty) = (trial.path("template.qcow2"), trial.path("empty.qcow2"));
    rig.a.make_template(&template, &trial.guest.template);
    rig.a.make_overlay(&disk, &template);
    trial.copy_to_b("template.qcow2");
    rig.a.qemu_img(["create", "-q", "-f", "qcow2", &empty, "64M"]).ok();
    rig.a.make_overlay(&data, &empty);
    trial.run(&[Disk::qcow2(disk), Disk::qcow2(&*data)]);
    fs::remove_file(rig.a.outside(&empty)).unwrap();
    trial.watch();
    assert_eq!(trial.plan(&[])["copy"], "full");
    trial.migrate(&[]).ok();
    let second = trial.guest.check_disk(&rig.b, &data, Kind::Data(1));
    assert!(second >= trial.guest.writes(&rig.a));
    trial.lives_on_b(&["disk.qcow2", "data.qcow2"]);
}

/// A data disk that nobody writes to is moved as well, to the byte. (Of a raw image whose size is no multiple of
/// 4096 QEMU makes no target on storage with sectors of that size.)
#[test]
fn a_data_disk_that_nobody_writes_to() {
    needs_migration!();
    let rig = Rig::shared();
    let mut trial = Trial::new(rig, "data", Way::Agent);
    let (disk, data) = (trial.disk(), trial.path("data.img"));
    rig.a.make_template(&disk, &trial.guest.template);
    let content: Vec<u8> = (0..733 * 4096_u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
    fs::write(rig.a.outside(&data), &content).unwrap();
    trial.run(&[Disk::qcow2(disk), Disk::raw(&*data)]);
    trial.migrate(&[]).ok();
    assert!(fs::read(rig.b.outside(&data)).unwrap() == content);
    trial.lives_on_b(&["disk.qcow2", "data.img"]);
}

/// D02: nothing writes to a medium, and a file of its name is not overwritten even if it is equal.
#[test]
fn a_cdrom_that_is_there_too() {
    needs_migration!();
    let rig = Rig::shared();
    let mut trial = Trial::new(rig, "medium", Way::Agent);
    let (disk, medium) = (trial.disk(), trial.path("medium.iso"));
    rig.a.make_template(&disk, &trial.guest.template);
    fs::write(rig.a.outside(&medium), [7; 1 << 20]).unwrap();
    trial.copy_to_b("medium.iso");
    trial.run(&[Disk::qcow2(disk), Disk::cdrom(medium)]);
    trial.arrived(trial.migrate(&[]), DISK);
}

/// The same where it is not: it comes along.
#[test]
fn a_cdrom_that_is_only_here() {
    needs_migration!();
    let rig = Rig::shared();
    let mut trial = Trial::new(rig, "brought", Way::Agent);
    let (disk, medium) = (trial.disk(), trial.path("medium.iso"));
    rig.a.make_template(&disk, &trial.guest.template);
    fs::write(rig.a.outside(&medium), [7; 1 << 20]).unwrap();
    trial.run(&[Disk::qcow2(disk), Disk::cdrom(&*medium)]);
    trial.migrate(&[]).ok();
    assert_eq!(fs::read(rig.b.outside(&medium)).unwrap(), [7; 1 << 20]);
    trial.lives_on_b(&["disk.qcow2", "medium.iso"]);
}

/// D06: somebody else may write to it.
#[test]
fn a_disk_that_is_shared_with_other_guests_is_refused() {
    needs_migration!();
    let rig = Rig::shared();
    let mut trial = Trial::new(rig, "shareable", Way::Agent);
    let (disk, data) = (trial.disk(), trial.path("data.img"));
    rig.a.make_template(&disk, &trial.guest.template);
    fs::write(rig.a.outside(&data), [7; 1 << 20]).unwrap();
    trial.run(&[Disk::qcow2(disk), Disk::raw(data).with("<shareable/>")]);
    trial.refused(trial.migrate(&[]), "vdb");
}

/// D14: a block device here, a file there.
#[test]
fn a_block_device() {
    needs_migration!();
    let rig = Rig::shared();
    let mut trial = Trial::new(rig, "device", Way::Agent);
    let Some(device) = rig.a.block_device("device", trial.guest.template.size) else {
        return rig::rig::skipped("no loop devices here");
    };
    let raw = trial.path("content");
    trial.guest.template.write(&rig.a.outside(&raw));
    rig.a.run(["dd", "bs=1M", &format!("if={raw}"), &format!("of={device}")]).ok();
    fs::remove_file(rig.a.outside(&raw)).unwrap();
    trial.run(&[Disk::device(&*device)]);
    let target = trial.path("disk.img");
    let ran = trial.migrate(&["--map-path", &format!("{device}={target}")]);
    if ran.code() == Some(crate::trial::REFUSED) {
        return trial.stayed();
    }
    ran.ok();
    trial.lives_on_b(&["disk.img"]);
}

/// What the guest sees is compared, all of it, before it goes on.
#[test]
fn all_content_is_compared_when_asked_for() {
    needs_migration!();
    let mut trial = Trial::on_template(Rig::shared(), "compared", Way::Agent);
    trial.delete_template();
    trial.arrived(trial.migrate(&["--verify", "content"]), DISK);
}

/// It is said how thoroughly: an overlay can be read where its base is.
#[test]
fn what_was_compared_is_said() {
    needs_migration!();
    let trial = Trial::on_template(Rig::shared(), "sampled", Way::Agent);
    let ran = trial.migrate(&["--policy", "thin", "--verify", "sample", "--output", "json"]);
    let said: serde_json::Value = serde_json::from_str(&ran.ok()).unwrap();
    assert_eq!(
        (said["copy"].as_str(), said["verified"].as_str()),
        (Some("incremental"), Some("sample"))
    );
    trial.arrived(ran, &["disk.qcow2", "template.qcow2"]);

    let trial = Trial::on_template(Rig::shared(), "content", Way::Libvirt);
    let ran = trial.migrate(&["--verify", "content", "--output", "json"]);
    let said: serde_json::Value = serde_json::from_str(&ran.ok()).unwrap();
    assert_eq!((said["copy"].as_str(), said["verified"].as_str()), (Some("full"), Some("content")));
    trial.arrived(ran, DISK);
}

/// How B's files are reached changes nothing about what is planned.
#[test]
fn both_ways_plan_the_same() {
    needs_migration!();
    let rig = Rig::shared();
    let trial = Trial::on_template(rig, "same", Way::Agent);
    trial.copy_to_b("template.qcow2");
    rig.b.pool("same", &trial.guest.directory());
    let plan = |way| {
        let mut plan = trial.plan_by(way);
        // What the facts are digested from has identities that only one way can tell, and a running
        // guest writes.
        let keys = ["digest", "facts", "predicted"];
        keys.iter().for_each(|key| drop(plan.as_object_mut().unwrap().remove(*key)));
        for disk in plan["disks"].as_array_mut().unwrap() {
            ["transfer-bytes", "space-bytes"].iter().for_each(|key| {
                drop(disk.as_object_mut().unwrap().remove(*key));
            });
        }
        plan
    };
    let with_libvirt_only = plan(Way::Libvirt);
    assert_eq!(with_libvirt_only, plan(Way::Agent));
    assert_eq!(with_libvirt_only["copy"], "incremental");
    rig.b.virsh(["pool-destroy", "same"]);
    rig.b.virsh(["pool-undefine", "same"]);
}

both_ways! {
    /// A guest that is shut off is copied as files, and starts there.
    fn a_stopped_guest(way: Way) {
        for policy in ["full", "thin"] {
            let name = format!("stopped-{policy}");
            let mut trial = Trial::on_template(Rig::shared(), &name, way);
            let (a, b) = (&trial.rig.a, &trial.rig.b);
            a.virsh(["suspend", &trial.guest.name]).ok();
            a.virsh(["destroy", &trial.guest.name]).ok();
            trial.watch();
            let ran = trial.migrate(&["--policy", policy, "--output", "json"]);
            let said: serde_json::Value = serde_json::from_str(&ran.ok()).unwrap();
            assert_eq!((said["mode"].as_str(), said["verified"].as_str()), (Some("offline"), Some("content")));
            let known = a.virsh(["list", "--all", "--name"]).ok();
            assert!(!known.lines().any(|line| line == trial.guest.name), "still defined on A");
            let (before, boot) = (trial.guest.writes(a), trial.disk());
            let writes = trial.guest.check_disk(b, &boot, Kind::Boot);
            assert!(writes >= before, "{writes} of {before} writes arrived");
            trial.guest.start(b);
            trial.guest.goes_on(b);
            trial.source_is_kept(&boot);
        }
    }
}

/// A guest that is paused stays paused, and its disk is the same to the byte.
#[test]
fn a_paused_guest() {
    needs_migration!();
    let rig = Rig::shared();
    let trial = Trial::on_template(rig, "paused", Way::Agent);
    let name = &trial.guest.name;
    rig.a.virsh(["suspend", name]).ok();
    let before = fs::read(rig.a.raw_copy(&trial.disk()).path()).unwrap();
    trial.migrate(&[]).ok();
    assert_eq!(trial.guest.state(&rig.b).as_deref(), Some("paused"));
    assert!(before == fs::read(rig.b.raw_copy(&trial.disk()).path()).unwrap());
    rig.b.virsh(["resume", name]).ok();
    trial.lives_on_b(DISK);
}

/// A plan may be looked at first, which changes nothing, and carried out later.
#[test]
fn a_plan_that_is_kept_for_later() {
    needs_migration!();
    let mut trial = Trial::on_template(Rig::shared(), "later", Way::Agent);
    trial.delete_template();
    trial.migrate(&["--dry-run"]).ok();
    trial.stayed();
    let plan = trial.tool("plan", &["--output", "json"]).ok();
    trial.stayed();
    // A directory of A's that is not the guest's.
    let file = format!("/run/{}.json", trial.guest.name);
    fs::write(trial.rig.a.outside(&file), plan).unwrap();
    trial.arrived(trial.migrate(&["--plan", &file]), DISK);
}
