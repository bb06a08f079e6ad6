//! QEMU and we see each other: an image in use by one is left alone by the other.

#![allow(clippy::restriction, clippy::pedantic, reason = "tests assert by panicking")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::qcowtool;
use fixtures::{Scratch, args, needs_qemu, qemu};

/// A qemu-io that holds an image open until it is dropped.
struct Holder(Child);

impl Holder {
    fn new(options: &[&str], image: &Path) -> Self {
        let mut child = Command::new("qemu-io")
            .args(options)
            .arg(image)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Its answer to a command means that the image is open.
        child.stdin.as_mut().unwrap().write_all(b"length\n").unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

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
