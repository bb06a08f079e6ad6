//! `convert --bitmaps`: the persistent bitmaps of a source in its copy, with qemu-img and qemu-nbd as the judges.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::qcowtool;
use fixtures::pattern::Random;
use fixtures::{Scratch, args, needs_qemu, qemu, qemu_img};
use serde_json::{Value, json};

use crate::bitmap::{bitmaps, dirty_by_qemu};

const NAMES: [&str; 4] = ["fine", "usual", "ended", "all"];

/// A disk of an odd size with an enabled bitmap of the finest granularity, one of the usual, a disabled one, and one that
/// is dirty everywhere.
fn source(scratch: &Scratch) -> PathBuf {
    let (base, image) = (scratch.path("base.qcow2"), scratch.path("vm.qcow2"));
    qemu::create(&base, "", "9437696");
    qemu::overlay(&image, "base.qcow2", "qcow2", "", "");
    qemu_img(&args!["bitmap", "--add", "-g", "512", image, "fine"]);
    qemu_img(&args!["bitmap", "--add", image, "usual"]);
    qemu_img(&args!["bitmap", "--add", "-g", "2M", image, "ended"]);
    let mut random = Random::new(15);
    let mut writes = Vec::new();
    for _ in 0..40 {
        writes.push(format!("write -P 5 {} 512", random.below(18433) * 512));
    }
    writes.push("write -P 6 9437184 512".into());
    qemu::qemu_io("qcow2", &image, &writes[..20]);
    qemu_img(&args!["bitmap", "--disable", image, "ended"]);
    qemu::qemu_io("qcow2", &image, &writes[20..]);
    qemu_img(&args!["bitmap", "--add", "-g", "4k", image, "all"]);
    qemu::qemu_io("qcow2", &image, &["write -z 0 9437696"]);
    qemu::qemu_io("qcow2", &image, &writes);
    image
}

/// What QEMU says about all bitmaps: the list, and where each is dirty.
fn all_by_qemu(image: &Path, scratch: &Scratch) -> (Value, Vec<Value>) {
    let dirty = NAMES.map(|name| dirty_by_qemu(image, name, scratch));
    (bitmaps(image), dirty.into())
}

#[test]
fn every_bitmap_is_in_the_copy_as_it_was_in_the_source() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = source(&scratch);
    let expected = all_by_qemu(&image, &scratch);
    assert!(expected.1.iter().all(|dirty| !dirty.as_array().unwrap().is_empty()));
    let existing = scratch.path("existing.qcow2");
    qemu::create(&existing, "cluster_size=4k", "9437696");
    for options in [
        "",
        "-c",
        "-c -o cluster_size=2M,compression_type=zstd",
        "-o cluster_size=512,refcount_bits=1",
        "-o extended_l2=on",
        &format!("-o data_file={}", scratch.path("data.raw").display()),
        "-o preallocation=falloc",
        "-S 0",
        "-B base.qcow2 -F qcow2",
        "-B base.qcow2 -F qcow2 -c -o cluster_size=4k",
        "-n -O qcow2",
    ] {
        let copy =
            if options.starts_with("-n") { existing.clone() } else { scratch.path("copy.qcow2") };
        let force = (!options.starts_with("-n")).then(|| "--force".into());
        let words = options.split_whitespace().map(Into::into).chain(force);
        let convert = [args!["convert", "--bitmaps"], words.collect()].concat();
        let said = qcowtool([convert, args![image, copy]].concat()).ok();
        assert!(said.contains("bitmaps: 'fine', 'usual', 'ended', 'all'\n"), "{said}");
        qemu::assert_clean(&copy);
        qemu::assert_same("qcow2", &image, "qcow2", &copy);
        assert_eq!(all_by_qemu(&copy, &scratch), expected, "{options}");
    }
    // QEMU goes on with them.
    let copy = scratch.path("copy.qcow2");
    qcowtool(args!["convert", "-q", "--force", "--bitmaps", image, copy]).ok();
    qemu_img(&args!["bitmap", "--clear", copy, "usual"]);
    qemu::qemu_io("qcow2", &copy, &["write -P 7 1M 64k"]);
    let json = qcowtool(args!["bitmap", "--output", "json", copy, "usual"]).json();
    assert_eq!(json, json!([{ "start": 1 << 20, "length": 64 << 10 }]));
    qemu::assert_clean(&copy);
}

#[test]
fn one_that_was_not_stored_cleanly_is_refused_by_name_or_left_out_and_said() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (image, copy) = (scratch.path("vm.qcow2"), scratch.path("copy.qcow2"));
    qemu::create(&image, "", "1M");
    qemu_img(&args!["bitmap", "--add", image, "broken"]);
    // The bitmaps of an image that is not closed stay marked as in use.
    let mut dying = Command::new("qemu-io");
    dying.args(args!["-f", "qcow2", "-c", "write 0 4k", "-c", "abort", image]);
    assert!(!dying.output().unwrap().status.success());
    qemu_img(&args!["bitmap", "--add", image, "sound"]);
    assert_eq!(bitmaps(&image)[0]["flags"], json!(["in-use", "auto"]));
    let (base, existing) = (scratch.path("base.qcow2"), scratch.path("existing.qcow2"));
    for path in [&base, &existing] {
        qemu::create(path, "", "1M");
    }
    for (number, (options, dst)) in
        [("", &copy), ("-B base.qcow2 -F qcow2", &copy), ("-n -O qcow2", &existing)]
            .into_iter()
            .enumerate()
    {
        let before = fs::read(&existing).unwrap();
        let words: Vec<_> = options.split_whitespace().map(Into::into).collect();
        let convert = [args!["convert", "--bitmaps"], words, args![image, dst]].concat();
        let refused = qcowtool(convert.clone());
        refused.refused_naming(&["'broken' was not stored cleanly", "give --skip-broken-bitmaps"]);
        assert!(fs::read(&existing).unwrap() == before, "nothing was written: {options}");
        assert!(!copy.exists(), "{options}");
        let done = qcowtool([convert, args!["--skip-broken-bitmaps"]].concat());
        assert!(done.succeeded(), "{number}");
        assert!(
            done.stderr().contains("1 broken persistent bitmap ('broken')"),
            "{}",
            done.stderr()
        );
        let list = bitmaps(dst);
        assert_eq!((list.as_array().unwrap().len(), &list[0]["name"]), (1, &json!("sound")));
        qemu::assert_clean(dst);
        let _ = fs::remove_file(&copy);
    }
    // The other way out.
    qcowtool(args!["bitmap", "-q", "--remove", image, "broken"]).ok();
    qcowtool(args!["convert", "-q", "--bitmaps", image, copy]).ok();
    assert_eq!(bitmaps(&copy)[0]["name"], "sound");
}

#[test]
fn what_cannot_have_them_is_refused_before_anything_is_written() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = source(&scratch);
    let raw = scratch.file("disk.raw", &[1; 4096]);
    let old = scratch.path("old.qcow2");
    qemu::create(&old, "compat=0.10", "1M");
    let (same, other) = (scratch.path("same.qcow2"), scratch.path("other.qcow2"));
    qemu::create(&same, "", "9437696");
    qemu_img(&args!["bitmap", "--add", same, "ended"]);
    qemu::create(&other, "", "10M");
    qemu_img(&args!["snapshot", "-c", "s", other]);
    let new = scratch.path("new.qcow2");
    let before = [&same, &other, &old].map(|path| fs::read(path).unwrap());
    for (arguments, words) in [
        (args!["-O", "raw", image, new], "new.qcow2: the target cannot have bitmaps"),
        (args!["-o", "compat=0.10", image, new], "new.qcow2: the target cannot have bitmaps"),
        (args!["-f", "raw", raw, new], "disk.raw: the source cannot have bitmaps"),
        (args![old, new], "old.qcow2: the source cannot have bitmaps"),
        (args![image, image, new], "from one source"),
        (args!["-l", "s", other, new], "--bitmaps"),
        (args!["--alone", image, new], "a part of it"),
        (args!["-n", image, same], "already has a bitmap named 'ended'"),
        (args!["-n", image, other], "bitmaps of different sizes"),
        (args!["-n", other, old], "does not fit"),
        (args!["-n", old, same], "the source cannot have bitmaps"),
    ] {
        qcowtool([args!["convert", "--bitmaps"], arguments].concat()).refused_naming(&[words]);
        assert!(!new.exists(), "{words}");
    }
    assert!([&same, &other, &old].map(|path| fs::read(path).unwrap()) == before);
}

#[test]
fn without_being_asked_for_them_a_copy_says_what_it_lacks() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = source(&scratch);
    let existing = scratch.path("existing.qcow2");
    qemu::create(&existing, "", "9437696");
    for (options, dst) in [
        ("", "new"),
        ("-O raw", "raw"),
        ("-B base.qcow2 -F qcow2", "overlay"),
        ("-n -O qcow2", "existing.qcow2"),
    ] {
        let words: Vec<_> = options.split_whitespace().map(Into::into).collect();
        let convert = [args!["convert"], words, args![image, scratch.path(dst)]].concat();
        let done = qcowtool(convert);
        assert!(done.succeeded(), "{options}: {}", done.stderr());
        let said = "4 persistent bitmaps ('fine', 'usual', 'ended' and 1 more)";
        assert!(done.stderr().contains(said), "{options}: {}", done.stderr());
    }
}
