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

#[test]
fn an_image_is_made_like_and_on_a_running_guests_disk_as_qemu_img_does() {
    needs_qemu!();
    let scratch = Scratch::new();
    let top = chain(&scratch);
    let _holder = Holder::new(&[], &top);
    let new = |name: &str| scratch.path(name);
    fixtures::qemu_img(&args![
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        top,
        "-F",
        "qcow2",
        new("theirs")
    ]);
    for (number, share) in [&[][..], &["-U"], &["--force-share"]].into_iter().enumerate() {
        let share: Vec<_> = share.iter().map(Into::into).collect();
        let (like, on) = (new(&format!("like{number}")), new(&format!("on{number}")));
        qcowtool([args!["create", "-q"], share.clone(), args!["--like", top, like]].concat()).ok();
        let backing = args!["-b", top, "-F", "qcow2", on];
        qcowtool([args!["create", "-q"], share, backing].concat()).ok();
        let size = |path: &std::path::Path| {
            let info = qcowtool(args!["info", "--output", "json", path]).json();
            info["virtual-size"].as_u64()
        };
        assert_eq!([size(&like), size(&on)], [Some(1 << 20); 2]);
    }
}

#[test]
fn every_command_that_is_told_to_give_force_share_has_it() {
    needs_qemu!();
    let scratch = Scratch::new();
    let top = chain(&scratch);
    let _holder = Holder::new(&[], &top);
    let target = scratch.path("target");
    for words in [
        args!["info"],
        args!["map"],
        args!["measure"],
        args!["checksum"],
        args!["check"],
        args!["flatten", "-q", top, target],
        args!["compare", top, top],
    ] {
        let words = if words.len() == 1 { [words, args![top]].concat() } else { words };
        let run = qcowtool(words.clone());
        assert!(!run.succeeded() && run.stderr().contains("give -U"), "{}", run.stderr());
        qcowtool([words, args!["-U"]].concat()).ok();
    }
}
