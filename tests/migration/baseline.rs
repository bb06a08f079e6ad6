//! What libvirt and QEMU do by themselves with targets of all kinds. The planner's rules rest on this; what
//! is different in another version shows here.

use std::fs;

use fixtures::Holder;
use rig::{Disk, Guest, Kind, Ran, Rig, Template, needs_rig};

const FULL: &str = "--copy-storage-all";
const INCREMENTAL: &str = "--copy-storage-inc";

/// The guest arrived paused; its disk on B is what it was on A at that moment, and it goes on there.
#[track_caller]
fn arrived_whole(guest: &Guest<'_>, rig: &Rig, migrated: Ran) {
    migrated.ok();
    let disk = guest.path("disk.qcow2");
    assert_eq!(guest.state(&rig.b).as_deref(), Some("paused"));
    let (a, b) = (rig.a.raw_copy(&disk), rig.b.raw_copy(&disk));
    assert!(fs::read(a.path()).unwrap() == fs::read(b.path()).unwrap(), "the disks differ");
    guest.template.check(b.path(), Kind::Boot).unwrap();
    rig.b.virsh(["resume", &guest.name]).ok();
    guest.goes_on(&rig.b);
}

/// libvirt says that all is well, and the disk is not what it was. This is what qcowtool is for.
#[track_caller]
fn arrived_corrupt(guest: &Guest<'_>, rig: &Rig, migrated: Ran) {
    migrated.ok();
    assert_eq!(guest.state(&rig.a), None, "the source is gone");
    rig.b.check(&guest.path("disk.qcow2"), &guest.template, Kind::Boot).unwrap_err();
}

/// libvirt refuses, and the guest goes on where it is.
#[track_caller]
fn stayed(guest: &Guest<'_>, rig: &Rig, migrated: Ran, words: &str) {
    migrated.fails_with(words);
    guest.goes_on(&rig.a);
    guest.check_disk(&rig.a, &guest.path("disk.qcow2"), Kind::Boot);
    assert_ne!(guest.state(&rig.b).as_deref(), Some("running"));
}

fn copy_to_b(guest: &Guest<'_>, rig: &Rig, file: &str) {
    let path = guest.path(file);
    fs::copy(rig.a.outside(&path), rig.b.outside(&path)).unwrap();
}

fn empty_target(guest: &Guest<'_>, rig: &Rig, size: &str) {
    rig.b.qemu_img(["create", "-q", "-f", "qcow2", &guest.path("disk.qcow2"), size]).ok();
}

#[test]
fn nothing_prepared_is_an_error_either_way() {
    needs_rig!();
    let rig = Rig::shared();
    let guest = Guest::new(rig, "unprepared");
    guest.run_on_template();
    let full = guest.virsh_migrate(&[FULL]);
    stayed(&guest, rig, full, "no storage pool with matching target path");
    let incremental = guest.virsh_migrate(&[INCREMENTAL]);
    assert!(incremental.stderr().contains("pre-creation of storage target"), "{incremental}");
    stayed(&guest, rig, incremental, "incremental storage migration");
}

#[test]
fn without_copying_libvirt_finds_it_unsafe() {
    needs_rig!();
    let rig = Rig::shared();
    let guest = Guest::new(rig, "uncopied");
    guest.run_on_template();
    stayed(&guest, rig, guest.virsh_migrate(&[]), "Migration without shared storage is unsafe");
}

#[test]
fn an_overlay_without_its_template_is_an_error() {
    needs_rig!();
    let rig = Rig::shared();
    let guest = Guest::new(rig, "baseless");
    guest.run_on_template();
    let (disk, template) = (guest.path("disk.qcow2"), guest.path("template.qcow2"));
    rig.b
        .qemu_img([
            "create", "-q", "-f", "qcow2", "-u", "-b", &template, "-F", "qcow2", &disk, "64M",
        ])
        .ok();
    let migrated = guest.virsh_migrate(&[INCREMENTAL]);
    stayed(&guest, rig, migrated, &format!("Cannot access backing file '{template}'"));
}

#[test]
fn a_full_copy_onto_an_empty_target_is_right() {
    needs_rig!();
    let rig = Rig::shared();
    let guest = Guest::new(rig, "full");
    guest.run_on_template();
    empty_target(&guest, rig, "64M");
    arrived_whole(&guest, rig, guest.virsh_migrate(&[FULL, "--suspend"]));
}

#[test]
fn a_full_copy_onto_junk_is_right() {
    needs_rig!();
    let rig = Rig::shared();
    let guest = Guest::new(rig, "junk");
    guest.run_on_template();
    rig.b.make_template(&guest.path("disk.qcow2"), &Template { tag: *b"ELSE", ..guest.template });
    arrived_whole(&guest, rig, guest.virsh_migrate(&[FULL, "--suspend"]));
}

#[test]
fn a_full_copy_of_a_chain_whose_template_is_deleted_is_right() {
    needs_rig!();
    let rig = Rig::shared();
    let guest = Guest::new(rig, "deleted");
    guest.run_on_template();
    let template = fs::read(rig.a.outside(guest.path("template.qcow2"))).unwrap();
    fs::remove_file(rig.a.outside(guest.path("template.qcow2"))).unwrap();
    empty_target(&guest, rig, "64M");
    guest.virsh_migrate(&[FULL, "--suspend"]).ok();
    fs::write(rig.a.outside(guest.path("template.qcow2")), template).unwrap(); // for the comparison
    arrived_whole(&guest, rig, rig.a.run(["true"]));
}

#[test]
fn an_incremental_copy_onto_an_overlay_on_an_equal_template_is_right() {
    needs_rig!();
    let rig = Rig::shared();
    let guest = Guest::new(rig, "incremental");
    guest.run_on_template();
    copy_to_b(&guest, rig, "template.qcow2");
    rig.b.make_overlay(&guest.path("disk.qcow2"), &guest.path("template.qcow2"));
    arrived_whole(&guest, rig, guest.virsh_migrate(&[INCREMENTAL, "--suspend"]));
}

#[test]
fn an_incremental_copy_onto_an_empty_target_is_silent_corruption() {
    needs_rig!();
    let rig = Rig::shared();
    let guest = Guest::new(rig, "stub");
    guest.run_on_template();
    empty_target(&guest, rig, "64M");
    arrived_corrupt(&guest, rig, guest.virsh_migrate(&[INCREMENTAL, "--suspend"]));
}

#[test]
fn an_incremental_copy_onto_another_template_is_silent_corruption() {
    needs_rig!();
    let rig = Rig::shared();
    let guest = Guest::new(rig, "other");
    guest.run_on_template();
    rig.b.make_template(
        &guest.path("template.qcow2"),
        &Template { tag: *b"ELSE", ..guest.template },
    );
    rig.b.make_overlay(&guest.path("disk.qcow2"), &guest.path("template.qcow2"));
    arrived_corrupt(&guest, rig, guest.virsh_migrate(&[INCREMENTAL, "--suspend"]));
}

#[test]
fn an_incremental_copy_onto_a_used_overlay_is_silent_corruption() {
    needs_rig!();
    let rig = Rig::shared();
    let guest = Guest::new(rig, "used");
    guest.run_on_template();
    copy_to_b(&guest, rig, "template.qcow2");
    let disk = guest.path("disk.qcow2");
    rig.b.make_overlay(&disk, &guest.path("template.qcow2"));
    rig.b.run(["qemu-io", "-f", "qcow2", "-c", "write -P 90 40M 64k", &disk]).ok();
    arrived_corrupt(&guest, rig, guest.virsh_migrate(&[INCREMENTAL, "--suspend"]));
}

#[test]
fn an_incremental_copy_that_skips_a_middle_layer_is_silent_corruption() {
    needs_rig!();
    let rig = Rig::shared();
    let guest = Guest::new(rig, "middle");
    let (disk, middle, base) =
        (guest.path("disk.qcow2"), guest.path("middle.qcow2"), guest.path("base.qcow2"));
    for host in rig.hosts() {
        host.qemu_img(["create", "-q", "-f", "qcow2", &base, "64M"]).ok();
    }
    rig.a.make_template(&middle, &guest.template);
    rig.a.qemu_img(["rebase", "-u", "-b", &base, "-F", "qcow2", &middle]).ok();
    rig.a.make_overlay(&disk, &middle);
    guest.define(&rig.a, &[Disk::qcow2(&*disk)]);
    guest.start(&rig.a);
    rig.b.make_overlay(&disk, &base);
    arrived_corrupt(&guest, rig, guest.virsh_migrate(&[INCREMENTAL, "--suspend"]));
}

#[test]
fn an_incremental_copy_of_a_disk_without_template_onto_junk_is_silent_corruption() {
    needs_rig!();
    let rig = Rig::shared();
    let guest = Guest::new(rig, "unbacked");
    rig.a.make_template(&guest.path("disk.qcow2"), &guest.template);
    guest.define(&rig.a, &[Disk::qcow2(guest.path("disk.qcow2"))]);
    guest.start(&rig.a);
    empty_target(&guest, rig, "64M");
    let junk = ["qemu-io", "-f", "qcow2", "-c", "write -P 90 40M 1M", &guest.path("disk.qcow2")];
    rig.b.run(junk).ok();
    arrived_corrupt(&guest, rig, guest.virsh_migrate(&[INCREMENTAL, "--suspend"]));
}

#[test]
fn a_target_of_another_size_is_an_error() {
    needs_rig!();
    let rig = Rig::shared();
    let guest = Guest::new(rig, "sizes");
    guest.run_on_template();
    for size in ["67108352", "67174400"] {
        fs::remove_file(rig.b.outside(guest.path("disk.qcow2"))).ok();
        empty_target(&guest, rig, size);
        stayed(&guest, rig, guest.virsh_migrate(&[FULL]), "different sizes");
    }
}

#[test]
fn a_chain_in_the_xml_must_exist_at_the_destination() {
    needs_rig!();
    let rig = Rig::shared();
    let guest = Guest::new(rig, "explicit");
    let (disk, template) = (guest.path("disk.qcow2"), guest.path("template.qcow2"));
    rig.a.make_template(&template, &guest.template);
    rig.a.make_overlay(&disk, &template);
    guest.define(&rig.a, &[Disk::qcow2(disk).over(&[(&*template, "qcow2")])]);
    guest.start(&rig.a);
    empty_target(&guest, rig, "64M");
    // The target needs no template, but the XML that goes along names one.
    stayed(&guest, rig, guest.virsh_migrate(&[FULL]), &template);
}

#[test]
fn a_cdrom_is_not_copied_and_must_not_be_asked_for() {
    needs_rig!();
    let rig = Rig::shared();
    let guest = Guest::new(rig, "cdrom");
    let disk = guest.path("disk.qcow2");
    rig.a.make_template(&disk, &guest.template);
    for host in rig.hosts() {
        fs::write(host.outside(guest.path("medium.iso")), [7; 1 << 20]).unwrap();
    }
    guest.define(&rig.a, &[Disk::qcow2(disk), Disk::cdrom(guest.path("medium.iso"))]);
    guest.start(&rig.a);
    empty_target(&guest, rig, "64M");
    let migrated = guest.virsh_migrate(&[FULL, "--migrate-disks", "vda,hda"]);
    stayed(&guest, rig, migrated, "read-only");
    arrived_whole(&guest, rig, guest.virsh_migrate(&[FULL, "--suspend", "--migrate-disks", "vda"]));
}

#[test]
fn a_disk_that_is_not_asked_for_makes_it_unsafe_and_two_arrive_in_step() {
    needs_rig!();
    let rig = Rig::shared();
    let mut guest = Guest::new(rig, "two");
    guest.template.disks = 2;
    let data = guest.path("data.qcow2");
    rig.a.qemu_img(["create", "-q", "-f", "qcow2", &data, "64M"]).ok();
    rig.a.make_template(&guest.path("disk.qcow2"), &guest.template);
    guest.define(&rig.a, &[Disk::qcow2(guest.path("disk.qcow2")), Disk::qcow2(&*data)]);
    guest.start(&rig.a);
    empty_target(&guest, rig, "64M");
    rig.b.qemu_img(["create", "-q", "-f", "qcow2", &data, "64M"]).ok();
    stayed(&guest, rig, guest.virsh_migrate(&[FULL, "--migrate-disks", "vda"]), "unsafe");
    guest.virsh_migrate(&[FULL, "--suspend"]).ok();
    let boot = rig.b.check(&guest.path("disk.qcow2"), &guest.template, Kind::Boot).unwrap();
    let second = rig.b.check(&data, &guest.template, Kind::Data(1)).unwrap();
    // The guest writes to the second disk first.
    assert!(
        second == boot || second == boot + 1,
        "{boot} writes on one disk, {second} on the other"
    );
    rig.b.virsh(["resume", &guest.name]).ok();
    guest.goes_on(&rig.b);
}

#[test]
fn a_target_that_another_process_writes_to_is_an_error() {
    needs_rig!();
    let rig = Rig::shared();
    let guest = Guest::new(rig, "locked");
    guest.run_on_template();
    empty_target(&guest, rig, "64M");
    let disk = guest.path("disk.qcow2");
    let holder = Holder::by(rig.b.command("qemu-io").args(["-f", "qcow2", &disk]));
    stayed(&guest, rig, guest.virsh_migrate(&[FULL]), "block-export-add");
    drop(holder);
}
