//! Every advice that an error gives is carried out: the command that is refused, what its message advises,
//! and the same with the advice followed, which must succeed.
//!
//! The words are in `src/remedies.rs`, one for each remedy of the library. Advice that is tried elsewhere:
//! `check -r` and `flatten --salvage` for damage that is not repaired (`repair::what_is_not_understood_is_not_touched`), `--alone`
//! (`check::an_image_whose_backing_file_is_missing_cannot_be_checked_unless_it_is_to_be_checked_alone`),
//! "try again" after a change of the source and after a full disk (`faults`), devices (`flatten_devices`).

use std::ffi::OsString;
use std::fs;

use common::{Run, qcowtool_in};
use fixtures::patch::field;
use fixtures::{Holder, Patch, Scratch, args, needs_qemu, qemu, qemu_img, qemu_io};

/// What is refused, what the message advises, and what is done then. Words are parted by blanks.
type Row = (&'static str, &'static str, &'static [&'static str]);

fn run(scratch: &Scratch, line: &str) -> Run {
    qcowtool_in(scratch.dir(), line.split(' ').map(OsString::from).collect())
}

#[track_caller]
fn carried_out(scratch: &Scratch, rows: &[Row]) {
    for (wrong, advice, right) in rows {
        let refused = run(scratch, wrong);
        assert_eq!(refused.code(), Some(1), "{wrong}: {}", refused.stderr());
        assert!(refused.stderr().contains(advice), "{wrong}: {}", refused.stderr());
        for line in *right {
            let done = run(scratch, line);
            assert!(done.succeeded(), "{wrong}: {line}: {:?} {}", done.code(), done.stderr());
        }
    }
}

/// An image with data, a snapshot and an overlay, in a directory.
fn images() -> Scratch {
    let scratch = Scratch::new();
    let base = scratch.path("base");
    qemu::create(&base, "cluster_size=4k", "1M");
    qemu_io("qcow2", &base, &["write -P 1 0 64k"]);
    qemu_img(&args!["snapshot", "-c", "before", base]);
    qemu::overlay(scratch.path("middle"), "base", "qcow2", "cluster_size=4k", "");
    qemu::overlay(scratch.path("top"), "middle", "qcow2", "cluster_size=4k", "");
    fs::write(scratch.path("raw"), vec![7; 1 << 20]).unwrap();
    scratch
}

#[test]
fn advice_about_options_is_right() {
    needs_qemu!();
    let long = "n".repeat(600);
    let scratch = images();
    fs::copy(scratch.path("base"), scratch.path(&long)).ok();
    carried_out(
        &scratch,
        &[
            ("create -f qcow2 n1", "give a size", &["create -f qcow2 n1 1M"]),
            (
                "create -f raw -b base -F qcow2 n2",
                "leave out -f raw",
                &["create -b base -F qcow2 n2"],
            ),
            (
                "create -f qcow2 -F qcow2 n3 1M",
                "name it with -b",
                &["create -f qcow2 -F qcow2 -b base n3"],
            ),
            ("create -f qcow2 -b base n4", "-F qcow2", &["create -f qcow2 -b base -F qcow2 n4"]),
            (
                "create -f raw -o preallocation=metadata n5 1M",
                "preallocation=off, falloc or full",
                &["create -f raw -o preallocation=full n5 1M"],
            ),
            (
                "create -f qcow2 -o cluster_size=512 n6 1T",
                "use a larger cluster_size",
                &["create -f qcow2 -o cluster_size=64k n6 1T"],
            ),
            (
                "measure -O qcow2 -o cluster_size=512 --size 1T",
                "use a larger cluster_size",
                &["measure -O qcow2 -o cluster_size=64k --size 1T"],
            ),
            ("measure -O qcow2", "see --help", &["measure --help"]),
            (
                "create -f qcow2 -o cluster_sise=4k n7 1M",
                "did you mean 'cluster_size'",
                &["create -f qcow2 -o help", "create -f qcow2 -o cluster_size=4k n7 1M"],
            ),
            (
                "create -f raw -o cluster_size=4k n8 1M",
                "it belongs to qcow2",
                &["create -f qcow2 -o cluster_size=4k n8 1M"],
            ),
            (
                "create -f qcow2 -o cluster_size=4k, n9 1M",
                "',,'",
                &["create -f qcow2 -o data_file=a,,b n9 1M"],
            ),
            (
                "create -f qcow2 base 1M",
                "--force",
                &["create -f qcow2 n10 1M", "create -f qcow2 --force n10 1M"],
            ),
            (
                "create -f qcow2 n11 1x",
                "a number with a suffix k, M, G",
                &["create -f qcow2 n11 1.5G"],
            ),
            ("flatten -O raw -c base n12", "use -O qcow2", &["flatten -O qcow2 -c base n12"]),
            (
                "flatten -o preallocation=full base -",
                "write to a file that has a name",
                &["flatten -o preallocation=full base n13"],
            ),
            (
                "flatten --salvage base -",
                "name a file instead of '-'",
                &["flatten --salvage base n14"],
            ),
            ("flatten --device base raw", "leave out --device", &["flatten base n15"]),
            (
                "flatten --snapshot x base n16",
                "`qcowtool info` lists",
                &["info base", "flatten --snapshot before base n16"],
            ),
            (
                "checksum --algorithm sha256 --manifest n17 base",
                "leave out --algorithm",
                &["checksum --manifest n17 base"],
            ),
            ("checksum --max-depth 2 top", "--max-depth", &["checksum --max-depth 3 top"]),
            (
                "checksum --max-virtual-size 64k base",
                "--max-virtual-size",
                &["checksum --max-virtual-size 1M base"],
            ),
            (
                "checksum --max-metadata 512 base",
                "--max-metadata",
                &["checksum --max-metadata 1M base"],
            ),
            ("checksum --untrusted base", "-f qcow2", &["checksum --untrusted -f qcow2 base"]),
            (
                "checksum --untrusted -f qcow2 top",
                "--allow-dir",
                &["checksum --untrusted -f qcow2 --allow-dir . top"],
            ),
            ("checksum --allow-dir /usr top", "--allow-dir", &["checksum --allow-dir . top"]),
        ],
    );
}

#[test]
fn advice_about_images_is_right() {
    needs_qemu!();
    let scratch = images();
    // No format is recorded.
    let overlay = scratch.path("unrecorded");
    fs::copy(scratch.path("middle"), &overlay).unwrap();
    Patch::open(&overlay).set_header_area(112, &[], true).set_backing(256, b"base").save();
    // Headers that keep readers out.
    let damage = |name: &str, damage: fn(&mut Patch)| {
        let path = scratch.path(name);
        fs::copy(scratch.path("base"), &path).unwrap();
        let mut patch = Patch::open(&path);
        damage(&mut patch);
        patch.save();
    };
    damage("uncounted", |image| {
        image.set_u32(field::REFTABLE_CLUSTERS, 0);
    });
    qemu_img(&args!["create", "-q", "-f", "vmdk", scratch.path("vmdk"), "1M"]);
    qemu_img(&args!["bitmap", "--add", scratch.path("middle"), "bitmap"]);
    let bitmaps = scratch.path("bitmaps");
    fs::copy(scratch.path("middle"), &bitmaps).unwrap();
    let mut patch = Patch::open(&bitmaps);
    let extension = patch.bytes.windows(4).position(|word| word == 0x2385_2875_u32.to_be_bytes());
    let directory = patch.u64(extension.unwrap() + 8 + 16) as usize;
    patch.set_u32(directory + 12, 1 << 20).save();
    carried_out(
        &scratch,
        &[
            (
                "checksum unrecorded",
                "--backing-format",
                &["checksum --backing-format qcow2 unrecorded"],
            ),
            (
                "checksum uncounted",
                "`qcowtool check -r all`",
                &["check -r all uncounted", "checksum uncounted"],
            ),
            ("checksum vmdk", "give -f raw", &["checksum -f raw vmdk"]),
            (
                "checksum bitmaps",
                "`qcowtool check -r all`",
                &["check -r all bitmaps", "checksum bitmaps"],
            ),
        ],
    );
    qemu_img(&args!["convert", "-O", "qcow2", scratch.path("vmdk"), scratch.path("converted")]);
    assert!(run(&scratch, "checksum converted").succeeded());
    // A guest has it open.
    let image = scratch.path("base");
    let holder = Holder::new(&["-f", "qcow2"], &image);
    let (refused, check) = (run(&scratch, "checksum base"), run(&scratch, "check base"));
    for (run, line) in [(refused, "checksum -U base"), (check, "check -U base")] {
        assert!(run.stderr().contains("give -U"), "{}", run.stderr());
        let done = self::run(&scratch, line);
        assert!(done.succeeded(), "{line}: {}", done.stderr());
    }
    holder.finish("");
    // A manifest that is no longer true.
    run(&scratch, "checksum --manifest manifest base").ok();
    qemu_io("qcow2", &image, &["write -P 2 0 4k"]);
    let stale = run(&scratch, "checksum --cached manifest base");
    assert!(stale.succeeded() && stale.stderr().contains("`qcowtool checksum --manifest`"));
    run(&scratch, "checksum --manifest manifest --force base").ok();
}
