//! QEMU and we see each other: an image in use by one is left alone by the other.

use common::qcowtool;
use fixtures::{Holder, Scratch, args, needs_qemu, qemu};

fn chain(scratch: &Scratch) -> std::path::PathBuf {
    let top = scratch.path("top.qcow2");
    qemu::create(scratch.path("base.qcow2"), "", "1M");
    qemu::overlay(&top, "base.qcow2", "qcow2", "", "");
    top
}

#[test]
fn an_image_that_qemu_may_write_to_is_read_only_when_forced() {
    needs_qemu!();
    let scratch = Scratch::new();
    let top = chain(&scratch);
    let holder = Holder::new(&[], &top);
    for command in ["info", "checksum"] {
        let message = qcowtool(args![command, top]).refused();
        assert!(message.contains("in use") && message.contains("-U"), "{message}");
        qcowtool(args![command, "-U", top]).ok();
    }
    let target = scratch.path("flat.qcow2");
    qcowtool(args!["flatten", "-q", top, target]).refused();
    assert!(!target.exists());
    // The layers below are only read by the guest, so they can be read by anybody.
    qcowtool(args!["flatten", "-q", scratch.path("base.qcow2"), target]).ok();
    drop(holder);
    qcowtool(args!["checksum", top]).ok();
}

#[test]
fn an_image_that_qemu_only_reads_is_shared() {
    needs_qemu!();
    let scratch = Scratch::new();
    let top = chain(&scratch);
    let _holder = Holder::new(&["-r"], &top);
    qcowtool(args!["checksum", top]).ok();
}
