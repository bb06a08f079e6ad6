//! Everything that looks as if less could be copied, and is not so. Plain libvirt ends each of these with exit
//! code 0 and a guest on wrong data (`migration_baseline.rs`); here it ends with the right data or a refusal.

use std::fs;

use crate::trial::{Trial, Way, both_ways, needs_migration};
use fixtures::Holder;
use rig::{Disk, Rig, Template};

const DISK: &[&str] = &["disk.qcow2"];
const THIN: &[&str] = &["--policy", "thin"];

/// Makes B have another image under the template's name.
fn another_template(trial: &mut Trial<'_>) {
    let other = Template { tag: *b"ELSE", ..trial.guest.template };
    trial.rig.b.make_template(&trial.path("template.qcow2"), &other);
    trial.watch();
}

both_ways! {
    fn another_template_of_the_same_name_and_size(way: Way) {
        let mut trial = Trial::on_template(Rig::shared(), "other", way);
        another_template(&mut trial);
        assert_eq!(trial.plan(&[])["copy"], "full");
        trial.arrived(trial.migrate(&[]), DISK);
    }

    /// As much as one bit.
    fn a_template_with_one_other_sector(way: Way) {
        let mut trial = Trial::on_template(Rig::shared(), "sector", way);
        trial.copy_to_b("template.qcow2");
        let template = trial.path("template.qcow2");
        trial.rig.b.run(["qemu-io", "-f", "qcow2", "-c", "write -P 1 50M 512", &template]).ok();
        trial.watch();
        trial.arrived(trial.migrate(&[]), DISK);
    }
}

/// Thin is wanted, and the name is taken by another image: that is not touched, and not used.
#[test]
fn a_template_that_comes_along_to_where_its_name_is_taken() {
    needs_migration!();
    let mut trial = Trial::on_template(Rig::shared(), "taken", Way::Agent);
    another_template(&mut trial);
    let ran = trial.migrate(THIN);
    if ran.code() == Some(crate::trial::REFUSED) {
        return trial.stayed();
    }
    ran.ok();
    let names = trial.rig.b.list(trial.guest.directory());
    let new: Vec<_> =
        names.iter().filter(|n| **n != "template.qcow2").map(String::as_str).collect();
    assert_eq!(new.len(), 2, "{names:?}");
    trial.lives_on_b(&new);
}

#[test]
fn an_empty_target() {
    needs_migration!();
    for options in [&[], THIN] {
        let mut trial = Trial::on_template(Rig::shared(), "stub", Way::Agent);
        trial.rig.b.qemu_img(["create", "-q", "-f", "qcow2", &trial.disk(), "64M"]).ok();
        trial.watch();
        trial.refused(trial.migrate(options), "disk.qcow2");
    }
}

#[test]
fn junk_where_the_target_of_a_disk_without_template_shall_be() {
    needs_migration!();
    let mut trial = Trial::alone(Rig::shared(), "junk", Way::Agent);
    another_template(&mut trial);
    fs::rename(
        trial.rig.b.outside(trial.path("template.qcow2")),
        trial.rig.b.outside(trial.disk()),
    )
    .unwrap();
    trial.watch();
    trial.refused(trial.migrate(&[]), "disk.qcow2");
}

#[test]
fn a_used_overlay_on_the_right_template() {
    needs_migration!();
    let mut trial = Trial::on_template(Rig::shared(), "used", Way::Agent);
    trial.copy_to_b("template.qcow2");
    trial.rig.b.make_overlay(&trial.disk(), &trial.path("template.qcow2"));
    trial.rig.b.run(["qemu-io", "-f", "qcow2", "-c", "write -P 90 40M 64k", &trial.disk()]).ok();
    trial.watch();
    trial.refused(trial.migrate(THIN), "disk.qcow2");
}

/// The lowest layer is there; what the middle one holds is not.
#[test]
fn a_middle_layer_that_is_only_here() {
    needs_migration!();
    for options in [&[], THIN] {
        let rig = Rig::shared();
        let mut trial = Trial::new(rig, "middle", Way::Agent);
        let (disk, middle, base) =
            (trial.disk(), trial.path("middle-template.qcow2"), trial.path("base-template.qcow2"));
        for host in rig.hosts() {
            host.qemu_img(["create", "-q", "-f", "qcow2", &base, "64M"]).ok();
        }
        rig.a.make_template(&middle, &trial.guest.template);
        rig.a.qemu_img(["rebase", "-u", "-b", &base, "-F", "qcow2", &middle]).ok();
        rig.a.make_overlay(&disk, &middle);
        trial.run(&[Disk::qcow2(disk)]);
        trial.migrate(options).ok();
        // How it is called there, if it came along, is the planner's business.
        let mut names = rig.b.list(trial.guest.directory());
        names.retain(|name| name != "base-template.qcow2");
        names.sort_by_key(|name| name != "disk.qcow2");
        trial.lives_on_b(&names.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

/// The template is there, and somebody may write to it.
#[test]
fn a_template_that_is_in_use_by_a_writer() {
    needs_migration!();
    let mut trial = Trial::on_template(Rig::shared(), "writer", Way::Agent);
    trial.copy_to_b("template.qcow2");
    trial.watch();
    let template = trial.path("template.qcow2");
    let holder = Holder::by(trial.rig.b.command("qemu-io").args(["-f", "qcow2", &template]));
    let ran = trial.migrate(&[]);
    drop(holder);
    trial.arrived_or_refused(ran, DISK);
}

/// A template that the guest's disk was made from once, before it was made larger.
#[test]
fn a_disk_that_is_larger_than_its_template() {
    needs_migration!();
    let rig = Rig::shared();
    let mut trial = Trial::new(rig, "larger", Way::Agent);
    let (disk, template) = (trial.disk(), trial.path("template.qcow2"));
    rig.a.make_template(&template, &trial.guest.template);
    trial.copy_to_b("template.qcow2");
    trial.guest.template.size = 100_663_808;
    let size = trial.guest.template.size.to_string();
    rig.a
        .qemu_img(["create", "-q", "-f", "qcow2", "-b", &template, "-F", "qcow2", &disk, &size])
        .ok();
    trial.run(&[Disk::qcow2(disk)]);
    trial.plans(&[], "incremental", &["D17"]);
    trial.arrived(trial.migrate(&[]), DISK);
}

/// A template that is longer there, with something behind the end of the one here.
#[test]
fn a_template_that_is_longer_there() {
    needs_migration!();
    let rig = Rig::shared();
    let mut trial = Trial::new(rig, "longer", Way::Agent);
    let (disk, template) = (trial.disk(), trial.path("template.qcow2"));
    rig.a.make_template(&template, &trial.guest.template);
    trial.copy_to_b("template.qcow2");
    rig.b.qemu_img(["resize", "-q", "-f", "qcow2", &template, "80M"]).ok();
    rig.b.run(["qemu-io", "-f", "qcow2", "-c", "write -P 1 70M 64k", &template]).ok();
    trial.guest.template.size = 96 << 20;
    rig.a
        .qemu_img(["create", "-q", "-f", "qcow2", "-b", &template, "-F", "qcow2", &disk, "96M"])
        .ok();
    trial.run(&[Disk::qcow2(disk)]);
    trial.arrived(trial.migrate(&[]), DISK);
}
