//! `resize`: the disk reads as before with zeros behind it, or cut, and QEMU agrees; what would be lost is said.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use common::{qcowtool, snapshot_like_qemu};
use fixtures::{Holder, Patch, Scratch, args, needs_qemu, qemu, qemu_img, qemu_io};

/// Asserts that it is refused with all of `words`, and that the image is untouched.
#[track_caller]
fn refused(image: &Path, arguments: &[&str], words: &[&str]) {
    let before = fs::read(image).unwrap();
    let mut all = args!["resize"];
    let (size, options) = arguments.split_last().unwrap();
    all.extend(options.iter().map(|word| word.into()));
    all.extend(args![image, size]);
    qcowtool(all).refused_naming(words);
    assert!(fs::read(image).unwrap() == before, "{arguments:?} wrote something");
}

fn of_len(mut bytes: Vec<u8>, len: usize) -> Vec<u8> {
    bytes.resize(len, 0);
    bytes
}

#[test]
fn a_disk_grows_and_shrinks_and_reads_as_before_with_zeros_behind() {
    needs_qemu!();
    for options in [
        "cluster_size=64k",
        "cluster_size=512",
        "cluster_size=16k,extended_l2=on",
        "compat=0.10,cluster_size=4k",
        "cluster_size=4k,refcount_bits=1",
    ] {
        let scratch = Scratch::new();
        let path = scratch.path("disk.qcow2");
        qemu::create(&path, options, "1000k");
        qemu_io("qcow2", &path, &["write -c -P 2 896k 64k", "write -P 1 0 896k"]);
        // The size each time, and what QEMU writes then.
        let steps = [
            (vec!["--shrink"], "-100500", "write -P 3 100k 50k"),
            (vec![], "+3M", "write -P 4 2M 64k"),
            (vec!["--shrink", "--preallocation", "off"], "300k", "write -P 5 200k 100k"),
            (vec!["--preallocation=metadata"], "2M", "write -P 6 1M 64k"),
            (vec!["-q"], "0x300000", "write -P 7 2M 64k"),
        ];
        for (flags, size, write) in steps {
            let before = qemu::raw_of("qcow2", &path);
            let size = if size == "-100500" { "-100352" } else { size };
            let mut arguments = args!["resize"];
            arguments.extend(flags.iter().map(|flag| flag.into()));
            arguments.extend(args![path, size]);
            qcowtool(arguments).ok();
            qemu::assert_clean(&path);
            let after = qemu::raw_of("qcow2", &path);
            assert!(after == of_len(before, after.len()), "{options}: {size}");
            qemu_io("qcow2", &path, &[write]);
            qemu::assert_clean(&path);
        }
        assert_eq!(qemu::info(&path)["virtual-size"], 3 << 20);
    }
}

#[test]
fn what_a_longer_backing_file_has_is_not_seen_when_the_overlay_grows() {
    needs_qemu!();
    for (options, size) in [
        ("cluster_size=64k", 1000),
        ("cluster_size=4k", 999),
        ("cluster_size=32k,extended_l2=on", 1001),
    ] {
        let scratch = Scratch::new();
        let base = scratch.file("base.raw", &vec![0xb5; 3 << 20]);
        let path = scratch.path("top.qcow2");
        let options = format!("{options},backing_file={},backing_fmt=raw", base.display());
        qemu::create(&path, &options, &format!("{size}k"));
        qemu_io("qcow2", &path, &["write -P 1 100k 5k"]);
        let before = qemu::raw_of("qcow2", &path);
        let said = qcowtool(args!["resize", path, "4M"]).ok();
        assert!(said.contains("of the longer backing file stay hidden"), "{said}");
        qemu::assert_clean(&path);
        let after = qemu::raw_of("qcow2", &path);
        assert!(after == of_len(before.clone(), 4 << 20), "{options}");
        assert!(fs::metadata(&path).unwrap().len() < 1 << 20, "zeros were written");
        // Cut where QEMU then lengthens it.
        qcowtool(args!["resize", "--shrink", path, "950k"]).ok();
        qemu_img(&args!["resize", "-q", path, "2M"]);
        let cut = of_len(before, 950 << 10);
        assert!(qemu::raw_of("qcow2", &path) == of_len(cut, 2 << 20), "{options}: by QEMU");
        assert_eq!(fs::read(&base).unwrap(), vec![0xb5; 3 << 20]);
    }
    let scratch = Scratch::new();
    let base = scratch.file("base.raw", &vec![0xb5; 3 << 20]);
    let path = scratch.path("old.qcow2");
    let options = format!("compat=0.10,backing_file={},backing_fmt=raw", base.display());
    qemu::create(&path, &options, "1M");
    refused(&path, &["2M"], &["version 2 has no zero clusters", "flatten"]);
}

#[test]
fn a_smaller_disk_is_asked_for_and_what_goes_is_said() {
    needs_qemu!();
    let scratch = Scratch::new();
    let path = scratch.path("disk.qcow2");
    qemu::create(&path, "", "64M");
    qemu_io("qcow2", &path, &["write -P 1 0 1M", "write -P 2 60M 4M"]);
    refused(&path, &["32M"], &["4194304 allocated bytes behind its end", "then give --shrink"]);
    refused(&path, &["--shrink", "0"], &["larger than 0"]);
    refused(&path, &["--shrink", "-64M"], &["larger than 0"]);
    refused(&path, &["+100"], &["not a multiple of 512"]);
    refused(&path, &["4E"], &["too many for clusters", "use larger clusters"]);
    refused(&path, &["8E"], &["too large"]);
    refused(&path, &["--shrink", "--preallocation", "full", "-1M"], &["becomes larger by"]);
    refused(&path, &["--preallocation", "some", "+1M"], &["no way to preallocate"]);
    let before = fs::read(&path).unwrap();
    let arguments = args!["resize", "--shrink", "--dry-run", path, "32M"];
    let said = qcowtool(arguments).ok();
    assert!(said.contains("4 MiB of allocated data behind the new end would be dropped"), "{said}");
    assert!(fs::read(&path).unwrap() == before);
    let arguments = args!["resize", "--shrink", "--output", "json", path, "32M"];
    let json = qcowtool(arguments).json();
    assert_eq!((&json["size"], &json["data-lost"]), (&(32 << 20).into(), &(4 << 20).into()));
    assert_eq!(json["file-size"], fs::metadata(&path).unwrap().len());
    assert!(fs::metadata(&path).unwrap().blocks() < 4096, "the space was not given back");
    qemu::assert_clean(&path);
    let holder = Holder::new(&["-f", "qcow2"], &path);
    refused(&path, &["+1M"], &["in use"]);
    holder.finish("quit\n");
}

/// Places of the refcount blocks.
fn refcount_blocks(image: &Path) -> Vec<usize> {
    let image = Patch::open(image);
    let table = image.u64(48) as usize;
    let entries = image.u32(56) as usize * 512 / 8;
    let places = (0..entries).map(|entry| image.u64(table + entry * 8) as usize);
    places.filter(|place| *place != 0).collect()
}

#[test]
fn refcount_blocks_that_count_nothing_are_given_up_when_a_disk_shrinks() {
    needs_qemu!();
    for order in [(0..12).collect::<Vec<u64>>(), (0..12).rev().collect()] {
        let scratch = Scratch::new();
        let path = scratch.path("disk.qcow2");
        qemu::create(&path, "cluster_size=512,refcount_bits=64", "3M");
        for at in order {
            qemu_io("qcow2", &path, &[&format!("write -P 7 {}k 256k", at * 256)]);
        }
        let before = refcount_blocks(&path).len();
        for size in ["1M", "100k", "512"] {
            let content = qemu::raw_of("qcow2", &path);
            let theirs = scratch.path("theirs.qcow2");
            fs::copy(&path, &theirs).unwrap();
            qemu_img(&args!["resize", "-q", "--shrink", theirs, size]);
            qcowtool(args!["resize", "--shrink", path, size]).ok();
            qemu::assert_clean(&path);
            let after = qemu::raw_of("qcow2", &path);
            assert!(after == of_len(content, after.len()), "{size}");
            let bytes = fs::read(&path).unwrap();
            let counts = |place: &usize| bytes[*place..*place + 512].iter().any(|byte| *byte != 0);
            assert!(refcount_blocks(&path).iter().all(counts), "{size}");
            let theirs = fs::metadata(&theirs).unwrap().len();
            assert!(bytes.len() as u64 <= theirs, "{size}: {}, {theirs}", bytes.len());
        }
        assert!(refcount_blocks(&path).len() < before);
    }
}

#[test]
fn snapshots_and_bitmaps_keep_what_they_are_for() {
    needs_qemu!();
    let scratch = Scratch::new();
    let path = scratch.path("disk.qcow2");
    qemu::create(&path, "cluster_size=4k", "1M");
    qemu_io("qcow2", &path, &["write -P 1 0 1M"]);
    qemu_img(&args!["snapshot", "-c", "one", path]);
    qemu_img(&args!["bitmap", "--add", "-g", "64k", path, "daily"]);
    let one = snapshot_like_qemu(&path, "one");
    for size in ["3M", "500k", "1M"] {
        qcowtool(args!["resize", "--shrink", path, size]).ok();
        qemu::assert_clean(&path);
        qemu_io("qcow2", &path, &["write -P 2 0 64k"]);
    }
    assert!(snapshot_like_qemu(&path, "one") == one);
    let bitmaps = &qemu::info(&path)["format-specific"]["data"]["bitmaps"];
    assert_eq!((&bitmaps[0]["name"], &bitmaps[0]["flags"][0]), (&"daily".into(), &"auto".into()));
    // The bitmap gets another number of clusters, and back.
    for size in ["16G", "3M"] {
        qcowtool(args!["resize", "--shrink", path, size]).ok();
        qemu::assert_clean(&path);
        qemu_io("qcow2", &path, &["write -P 3 0 64k", "write -P 4 2M 64k"]);
        qemu::assert_clean(&path);
        let bitmaps = &qemu::info(&path)["format-specific"]["data"]["bitmaps"];
        assert_eq!(bitmaps[0]["flags"], serde_json::json!(["auto"]), "{size}");
    }
    // One that a crash left in use.
    let entry = {
        let mut image = Patch::open(&path);
        let flags = directory_flags(&image);
        let in_use = image.u32(flags) | 1;
        image.set_u32(flags, in_use);
        image.save_as(scratch.path("in-use"));
        scratch.path("in-use")
    };
    refused(&entry, &["16G"], &["bitmap 'daily'", "not stored cleanly", "bitmap --remove"]);

    let old = scratch.path("old.qcow2");
    qemu::create(&old, "compat=0.10", "1M");
    qemu_img(&args!["snapshot", "-c", "one", old]);
    refused(&old, &["2M"], &["version 2", "internal snapshots", "flatten"]);
}

#[test]
fn vm_state_is_not_seen_when_the_disk_grows() {
    needs_qemu!();
    let scratch = Scratch::new();
    let path = scratch.path("disk.qcow2");
    qemu::create(&path, "cluster_size=4k", "1M");
    qemu_io("qcow2", &path, &["write -P 1 0 1M", "write -b -P 9 0 3M"]);
    let before = qemu::raw_of("qcow2", &path);
    qcowtool(args!["resize", path, "9M"]).ok();
    qemu::assert_clean(&path);
    assert!(qemu::raw_of("qcow2", &path) == of_len(before, 9 << 20));
}

/// Where the flags of the first bitmap lie.
fn directory_flags(image: &Patch) -> usize {
    let mut at = image.u32(100) as usize;
    while image.u32(at) != 0x2385_2875 {
        at += 8 + (image.u32(at + 4) as usize).next_multiple_of(8);
    }
    image.u64(at + 24) as usize + 12
}

#[test]
fn space_is_reserved_as_asked_for() {
    needs_qemu!();
    for (how, allocated) in [("off", false), ("metadata", false), ("falloc", true), ("full", true)]
    {
        let scratch = Scratch::new();
        let path = scratch.path("disk.qcow2");
        qemu::create(&path, "cluster_size=64k", "1000k");
        qemu_io("qcow2", &path, &["write -P 1 0 1000k", "discard 0 512k"]);
        let before = qemu::raw_of("qcow2", &path);
        qcowtool(args!["resize", "--preallocation", how, path, "9M"]).ok();
        qemu::assert_clean(&path);
        assert!(qemu::raw_of("qcow2", &path) == of_len(before, 9 << 20), "{how}");
        let blocks = fs::metadata(&path).unwrap().blocks() * 512;
        assert_eq!(blocks > 8 << 20, allocated, "{how}: {blocks}");
        let raw = scratch.file("disk.raw", &vec![7; 100_001]);
        if how == "metadata" {
            refused(&raw, &["-f", "raw", "--preallocation", how, "9M"], &["no metadata"]);
            continue;
        }
        qcowtool(args!["resize", "-f", "raw", "--preallocation", how, raw, "9000001"]).ok();
        assert!(fs::read(&raw).unwrap() == of_len(vec![7; 100_001], 9_000_001), "{how}");
        assert_eq!(fs::metadata(&raw).unwrap().blocks() * 512 > 8 << 20, allocated, "{how}");
    }
}

#[test]
fn a_raw_disk_gets_another_length_where_its_format_is_stated() {
    needs_qemu!();
    let scratch = Scratch::new();
    let path = scratch.file("disk.raw", &vec![7; 1 << 20]);
    refused(&path, &["2M"], &["format of a raw disk must be stated", "-f raw"]);
    refused(&path, &["-f", "raw", "1000001"], &["48575 allocated bytes", "then give --shrink"]);
    qcowtool(args!["resize", "-f", "raw", "--shrink", path, "1000001"]).ok();
    qcowtool(args!["resize", "-f", "raw", path, "+1M"]).ok();
    assert!(fs::read(&path).unwrap() == of_len(vec![7; 1_000_001], 1_000_001 + (1 << 20)));
}

fn outside(scratch: &Scratch, raw: &str) -> (PathBuf, PathBuf) {
    let (path, data) = (scratch.path("disk.qcow2"), scratch.path("data"));
    let options = format!("data_file={},data_file_raw={raw},cluster_size=4k", data.display());
    qemu::create(&path, &options, "1000k");
    qemu_io("qcow2", &path, &["write -P 1 0 1000k"]);
    (path, data)
}

#[test]
fn an_external_data_file_grows_and_is_cut_with_its_disk() {
    needs_qemu!();
    for raw in ["off", "on"] {
        let scratch = Scratch::new();
        let (path, data) = outside(&scratch, raw);
        // A longer file than the disk: what is behind it is not the disk's, unless the file is one by itself.
        let mut bytes = fs::read(&data).unwrap();
        bytes.resize(1 << 20, 0xee);
        fs::write(&data, bytes).unwrap();
        for size in ["3M", "502k", "1M"] {
            let before = qemu::raw_of("qcow2", &path);
            qcowtool(args!["resize", "--shrink", path, size]).ok();
            qemu::assert_clean(&path);
            let after = qemu::raw_of("qcow2", &path);
            let behind = if (raw, size) == ("on", "3M") { vec![0xee; 24 << 10] } else { vec![] };
            let grown = [before, behind].concat();
            assert!(after == of_len(grown, after.len()), "raw={raw}: {size}");
            if raw == "on" {
                assert!(fs::read(&data).unwrap() == after, "{size}: the data file is the disk");
            }
        }
        qemu_io("qcow2", &path, &["write -P 2 0 1M"]);
        qemu::assert_clean(&path);
    }
}
