//! Remedies for images that are in use, missing or damaged.

use std::fs;

use fixtures::patch::{COPIED, field};
use fixtures::{Holder, Patch, Scratch, args, needs_qemu, qemu, qemu_img};

use super::shell::{advised, ends, image, refused, shell, works};

#[test]
fn what_is_in_use() {
    needs_qemu!();
    let scratch = Scratch::new();
    image(&scratch, "image", "");
    let old = image(&scratch, "old", "");
    let guest = Holder::new(&[], &old);
    refused(&scratch, "qcowtool flatten --force image old", "stop what uses it");
    let into = "qcowtool flatten -n -O raw image old";
    refused(&scratch, into, "stop the process that uses it");
    refused(&scratch, "qcowtool check -r all old", "stop the process that uses it");
    works(&scratch, "cp old other");
    drop(guest);
    works(&scratch, "qcowtool check -r all old");
    works(&scratch, "qcowtool flatten --force image old");
    works(&scratch, "truncate -s 2M old");
    works(&scratch, into);
    // Replaced while it is in use.
    let guest = Holder::new(&[], &scratch.path("other"));
    let line = "qcowtool flatten --force image other";
    refused(&scratch, line, "give --force-in-use");
    works(&scratch, &line.replace("--force", "--force-in-use"));
    drop(guest);
}

#[test]
fn what_changes() {
    needs_qemu!();
    let scratch = Scratch::new();
    fs::write(scratch.path("disk"), fixtures::pattern::noise(1, 4 << 20)).unwrap();
    // The pipe is full before the end of the disk is read.
    let copy = "qcowtool flatten -f raw -O qcow2 disk -";
    let line = format!("{copy} | {{ head -c 1; echo >> disk; cat; }} > copy");
    refused(&scratch, &line, "make sure that no other process changes the image");
    works(&scratch, &format!("{copy} > copy"));
    works(&scratch, "qemu-img compare -f raw -F qcow2 disk copy");
}

#[test]
fn what_is_missing() {
    needs_qemu!();
    let scratch = Scratch::new();
    image(&scratch, "base", "");
    qemu::overlay(scratch.path("top"), "base", "qcow2", "", "");
    works(&scratch, "mv base away");
    for command in ["checksum", "check"] {
        let said = refused(&scratch, &format!("qcowtool {command} top"), "restore the file");
        assert!(said.contains("give --alone"), "{said}");
        works(&scratch, &format!("qcowtool {command} --alone top"));
    }
    works(&scratch, "mv away base && qcowtool checksum top && qcowtool check top");
}

#[test]
fn a_data_file_that_is_missing_fails_the_check_as_that_of_qemu_img() {
    needs_qemu!();
    let scratch = Scratch::new();
    image(&scratch, "base", &format!("data_file={}", scratch.path("data").display()));
    qemu::overlay(scratch.path("top"), "base", "qcow2", "", "");
    works(&scratch, "qcowtool check base && qcowtool check top");
    works(&scratch, "mv data away");
    for image in ["base", "top"] {
        ends(&scratch, &format!("qemu-img check {image}"), 1);
        for line in [format!("qcowtool check {image}"), format!("qcowtool check -r all {image}")] {
            let said = refused(&scratch, &line, "restore the file");
            assert!(said.contains("data: data file: could not open"), "{said}");
            works(&scratch, &line.replace("check", "check --alone"));
        }
    }
    works(&scratch, "mv away data && qcowtool check base && qcowtool check top");
}

#[test]
fn what_is_damaged() {
    needs_qemu!();
    let scratch = Scratch::new();
    let path = image(&scratch, "image", "cluster_size=4k");
    let damaged = |name: &str, change: fn(&mut Patch)| {
        let mut patch = Patch::open(&path);
        change(&mut patch);
        patch.save_as(scratch.path(name));
    };
    // Not aligned.
    damaged("unaligned", |image| {
        image.set_l2_entry(8 << 10, image.l2_entry(8 << 10) + 0x200);
    });
    for line in ["qcowtool check -r all unaligned", "qcowtool flatten unaligned copy"] {
        let said = refused(&scratch, line, "`qcowtool flatten --salvage`");
        works(&scratch, "rm -f copy");
        let salvage = advised(&said, "qcowtool flatten --salvage", &[]);
        ends(&scratch, &format!("{salvage} unaligned copy"), 7);
        works(&scratch, "qcowtool check copy");
        let check = advised(&said, "qcowtool check", &[]);
        ends(&scratch, &format!("{check} unaligned"), 2);
        works(&scratch, "rm -f copy");
    }
    // One cluster is in use twice.
    damaged("twice", |image| {
        image.set_l2_entry(8 << 10, image.l2_entry(0));
    });
    let said = refused(&scratch, "qcowtool checksum --untrusted -f qcow2 twice", "tells more");
    ends(&scratch, &format!("{} twice", advised(&said, "qcowtool check", &[])), 2);
    // That are more references than a refcount of one bit can express.
    let path = image(&scratch, "narrow", "cluster_size=4k,refcount_bits=1");
    let mut narrow = Patch::open(&path);
    let entry = narrow.l2_entry(0) & !COPIED;
    narrow.set_l2_entry(0, entry);
    narrow.set_l2_entry(4 << 10, entry);
    narrow.save();
    let said = refused(&scratch, "qcowtool check -r all narrow", "copy the image with");
    works(&scratch, &format!("{} narrow copy", advised(&said, "qcowtool flatten", &[])));
    works(&scratch, "qcowtool check copy");
    // More snapshots than there may be.
    let path = image(&scratch, "snapshots", "cluster_size=4k");
    qemu_img(&args!["snapshot", "-c", "before", path]);
    let mut patch = Patch::open(&path);
    patch.set_u32(field::SNAPSHOTS, 65_537).set(8 << 20, &[0]).save();
    let said = refused(&scratch, "qcowtool checksum snapshots", "removes the snapshots");
    works(&scratch, &format!("{} snapshots", advised(&said, "qemu-img check", &[])));
    works(&scratch, "qcowtool checksum snapshots");
}

#[test]
fn a_chain_that_is_too_deep() {
    needs_qemu!();
    let scratch = Scratch::new();
    image(&scratch, "n000", "cluster_size=4k");
    qemu::overlay(scratch.path("n001"), "n000", "qcow2", "cluster_size=4k", "");
    let overlay = fs::read(scratch.path("n001")).unwrap();
    let at = overlay.windows(4).position(|name| name == b"n000").unwrap();
    for number in 2..=200 {
        let mut overlay = overlay.clone();
        overlay[at..at + 4].copy_from_slice(format!("n{:03}", number - 1).as_bytes());
        fs::write(scratch.path(format!("n{number:03}")), overlay).unwrap();
    }
    let said = refused(&scratch, "qcowtool checksum n200", "copy the lower images of the chain");
    let flatten = advised(&said, "qcowtool flatten", &[]);
    works(&scratch, &format!("{flatten} n100 lower && mv lower n100"));
    works(&scratch, "qcowtool compare n200 n000");
}

#[test]
fn what_has_no_direct_io() {
    needs_qemu!();
    let scratch = Scratch::new();
    image(&scratch, "image", "");
    let copied = shell(&scratch, "qcowtool flatten --direct image new");
    let said = String::from_utf8_lossy(&copied.stderr).into_owned();
    // Most file systems have it.
    assert!(copied.status.success() || said.contains("leave out --direct"), "{said}");
    works(&scratch, "rm -f new; qcowtool flatten image new");
}
