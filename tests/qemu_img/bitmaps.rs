//! `convert --bitmaps`, beside QEMU's program.

use fixtures::needs_qemu;

use crate::beside::Beside;

/// An image with an enabled and a disabled bitmap.
pub(crate) const SOURCE: &str = "qemu-img create -q -f qcow2 a 1M; qemu-img bitmap --add -g 4k a b0; qemu-img bitmap --add a b1;
    qemu-io -f qcow2 -c 'write -P 8 128k 4k' a >/dev/null; qemu-img bitmap --disable a b1; qemu-img snapshot -c s a;
    qemu-img create -q -f qcow2 base 1M; qemu-img create -q -f qcow2 ready 1M; qemu-img bitmap --add ready b2";

#[test]
fn bitmaps_are_copied_as_ovirt_has_it_done() {
    needs_qemu!();
    let beside = Beside::new();
    beside.set_up(SOURCE);
    for (line, made) in [
        ("convert --bitmaps -f qcow2 -O qcow2 a 1.img", "1.img"),
        (
            "convert -p -t none -T none -f qcow2 -O qcow2 -o compat=1.1 -c -W --bitmaps a 2.img",
            "2.img",
        ),
        ("convert --bitmaps -l s -O qcow2 a 3.img", "3.img"),
        ("convert --bitmaps -O qcow2 -B base -F qcow2 a 4.img", "4.img"),
        ("convert --bitmaps --skip-broken-bitmaps -n -O qcow2 a ready", "ready"),
        ("convert --bitmaps -O qcow2 base 5.img", "5.img"),
    ] {
        beside.same(line);
        beside.same_content(made, "qcow2");
        let info = beside.same(&format!("info --output=json {made}"));
        assert_eq!(info.contains("\"b0\""), made != "5.img", "{line}");
        // A copy of the bitmap in an image of its own, by QEMU's program: where it is dirty is where the other is.
        if made != "5.img" {
            beside.set_up(&format!(
                "for b in b0 b1; do rm -f of; qemu-img create -q -f qcow2 of 1M; qemu-img bitmap --add -g 512 --disable of of;
                 qemu-img bitmap --merge $b -b {made} -F qcow2 of of; cp of $b.of; done"
            ));
            let [ours, theirs] = beside.dirs().map(|dir| {
                ["b0", "b1"].map(|name| {
                    common::qcowtool(fixtures::args![
                        "bitmap",
                        dir.join(format!("{name}.of")),
                        "of"
                    ])
                    .ok()
                })
            });
            assert_eq!(ours, theirs, "{line}");
        }
    }
}

#[test]
fn what_cannot_be_copied_is_refused_in_the_same_words() {
    needs_qemu!();
    let beside = Beside::new();
    beside.set_up(SOURCE);
    beside.set_up(
        "qemu-img create -q -f raw raw 1M; qemu-img create -q -f qcow2 -o compat=0.10 old 1M; cp a broken;
         qemu-io -f qcow2 -c 'write 0 4k' -c abort broken >/dev/null 2>&1 || true;
         qemu-img create -q -f qcow2 long 2M; qemu-img create -q -f qcow2 taken 1M; qemu-img bitmap --add taken b1",
    );
    for (line, words) in [
        ("--bitmaps -O raw a x", "Format driver 'raw' does not support bitmaps"),
        ("--bitmaps -O qcow2 -o compat=0.10 a x", "Format driver 'qcow2' does not support bitmaps"),
        ("--bitmaps -O qcow2 -n a old", "Format driver 'qcow2' does not support bitmaps"),
        ("--bitmaps -f raw -O qcow2 raw x", "Source lacks bitmap support"),
        ("--bitmaps -O qcow2 old x", "Source lacks bitmap support"),
        ("--bitmaps -O qcow2 a a x", "Copying bitmaps only possible with single source"),
        ("--skip-broken-bitmaps -O qcow2 a x", "Use of --skip-broken-bitmaps requires --bitmaps"),
        ("--bitmaps -O qcow2 -n a taken", "Failed to create bitmap b1: Bitmap already exists: b1"),
        (
            "--bitmaps -O qcow2 -n a long",
            "Failed to populate bitmap b1: Bitmaps are of different sizes (destination size is 2097152, source size is \
             1048576) and can't be merged",
        ),
        (
            "--bitmaps -O qcow2 broken x",
            "Cannot copy inconsistent bitmap 'b1'\n\
             Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it",
        ),
    ] {
        let words_of: Vec<&str> = format!("convert {line}").leak().split(' ').collect();
        let theirs = beside.theirs(&words_of).err;
        let ours = beside.ours(&words_of).refused();
        assert_eq!(ours, format!("qemu-img: {words}\n"), "{line}");
        assert_eq!(theirs, ours, "{line}");
        assert!(!beside.ours_dir().join("x").exists(), "{line}");
    }
    let skipped = ["convert", "--bitmaps", "--skip-broken-bitmaps", "-O", "qcow2", "broken", "x"];
    let said = beside.both(&skipped);
    let skipping =
        |name: &str| format!("qemu-img: warning: Skipping inconsistent bitmap '{name}'\n");
    assert_eq!(said.err, skipping("b1") + &skipping("b0"));
    beside.same("info --output=json x");
    beside.same_content("x", "qcow2");
}
