//! What is different from QEMU's program on purpose, all on the side of not losing data (docs/qemu-img.md).

use std::fs;
use std::process::{Command, Stdio};

use fixtures::needs_qemu;

use crate::beside::Beside;

#[test]
fn a_create_or_convert_that_is_refused_leaves_the_image_that_was_there() {
    needs_qemu!();
    let beside = Beside::new();
    beside.set_up("printf precious > kept; qemu-img create -q -f qcow2 source 1M");
    for line in [
        "create -f qcow2 -o cluster_size=3k kept 1M",
        "create -f qcow2 -b nothere -F qcow2 kept 1M",
        "create -f qcow2 kept 7E",
        "create -f raw -o preallocation=metadata kept 1M",
        "convert -O qcow2 -o refcount_bits=3 source kept",
        "convert -O qcow2 -o foo=1 source kept",
        "convert -O raw nothere kept",
    ] {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(beside.ours(&words).code, Some(1), "{line}");
        assert_eq!(fs::read(beside.ours_dir().join("kept")).unwrap(), b"precious", "{line}");
    }
}

#[test]
fn output_that_cannot_be_written_is_a_failure() {
    needs_qemu!();
    let beside = Beside::new();
    beside.set_up("qemu-img create -q -f qcow2 a 1M");
    for command in ["info", "map", "check"] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let ended = Command::new(common::binary())
            .args(["qemu-img", command, "a"])
            .current_dir(beside.ours_dir())
            .stdout(full)
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert_eq!(ended.code(), Some(1), "{command}");
    }
}

#[test]
fn a_target_that_is_zero_and_has_a_backing_file_is_a_failure() {
    needs_qemu!();
    let beside = Beside::new();
    beside.set_up("qemu-img create -q -f qcow2 a 1M; qemu-img create -q -f qcow2 b 1M");
    let words = ["convert", "-n", "--target-is-zero", "-B", "b", "a", "c"];
    assert_eq!(beside.ours(&words).code, Some(1));
}

#[test]
fn a_snapshot_that_cannot_be_taken_changes_nothing() {
    needs_qemu!();
    let beside = Beside::new();
    beside.set_up("qemu-img create -q -f qcow2 -o refcount_bits=1 a 1M; qemu-io -f qcow2 -c 'write 0 64k' a >/dev/null");
    let before = fs::read(beside.ours_dir().join("a")).unwrap();
    let said = beside.both(&["snapshot", "-c", "s", "a"]).refused();
    assert_eq!(said, "qemu-img: Could not create snapshot 's': Invalid argument\n");
    assert!(fs::read(beside.ours_dir().join("a")).unwrap() == before);
}

#[test]
fn an_existing_image_that_cannot_have_the_bitmaps_is_not_written_to() {
    needs_qemu!();
    let beside = Beside::new();
    beside.set_up(crate::bitmaps::SOURCE);
    beside.set_up(
        "qemu-img bitmap --add ready b1; qemu-io -f qcow2 -c 'write -P 3 0 1M' ready >/dev/null",
    );
    let ready = beside.ours_dir().join("ready");
    let before = fs::read(&ready).unwrap();
    beside.ours(&["convert", "--bitmaps", "-n", "-O", "qcow2", "a", "ready"]).refused();
    assert!(fs::read(&ready).unwrap() == before);
}

#[test]
fn zeros_that_rebase_copies_take_no_space() {
    needs_qemu!();
    let beside = Beside::new();
    beside.set_up(
        "qemu-img create -q -f qcow2 old 1M; qemu-io -f qcow2 -c 'write -P 1 0 1M' -c 'write -P 0 256k 256k' old >/dev/null
         qemu-img create -q -f qcow2 new 1M; qemu-io -f qcow2 -c 'write -P 2 0 1M' new >/dev/null
         qemu-img create -q -f qcow2 -b old -F qcow2 top",
    );
    beside.same("rebase -b new -F qcow2 top");
    beside.same_content("top", "qcow2");
    let mapped = beside.ours(&["map", "--output", "json", "top"]).ok();
    assert!(mapped.contains("\"start\": 262144, \"length\": 262144, \"depth\": 0, \"present\": true, \"zero\": true, \"data\": false"), "{mapped}");
}

#[test]
fn an_image_with_errors_in_its_metadata_is_not_changed() {
    needs_qemu!();
    let beside = Beside::new();
    // The refcounts of the header and of all tables are lost.
    beside.set_up(
        "qemu-img create -q -f qcow2 a 1M; dd if=/dev/zero of=a bs=1k seek=128 count=1 conv=notrunc status=none
         qemu-img create -q -f raw b 1M",
    );
    let before = fs::read(beside.ours_dir().join("a")).unwrap();
    let said = beside.ours(&["convert", "-n", "-O", "qcow2", "b", "a"]).refused();
    assert!(said.contains("errors in its metadata"), "{said}");
    assert!(fs::read(beside.ours_dir().join("a")).unwrap() == before);
}
