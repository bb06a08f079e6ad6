//! `amend`: the same as `qemu-img amend` does, with refusals where that would lose something.

use std::fs;
use std::path::Path;

use common::{qcowtool, same_json};
use fixtures::pattern::Random;
use fixtures::{Scratch, args, needs_qemu, qemu, qemu_img, try_qemu_img};
use serde_json::Value;

/// What `qemu-img info` shows of the format.
fn shown(image: &Path) -> Value {
    let mut info = qemu::info(image);
    info["format-specific"]["data"].take()
}

#[test]
fn what_is_asked_for_is_there_afterwards_and_nothing_else_is_different() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = scratch.path("vm.qcow2");
    qemu::create(&image, "compat=0.10", "10M");
    qemu::qemu_io("qcow2", &image, &["write -P 7 1M 3M"]);
    qemu_img(&args!["snapshot", "-c", "one", image]);
    let text = qcowtool(args!["amend", "-o", "compat=1.1,lazy_refcounts=on", image]).ok();
    assert_eq!(text, "compat: 1.1, was 0.10\nlazy_refcounts: on, was off\n");
    let text = qcowtool(args!["amend", "--dry-run", "-o", "refcount_bits=64", image]).ok();
    assert_eq!(text, "refcount_bits: would be 64, was 16\n");
    assert_eq!(shown(&image)["refcount-bits"], 16);
    let json = args!["amend", "--output", "json", "-o", "refcount_bits=64", image];
    let outcome = qcowtool(json).json();
    assert_eq!(outcome["changes"][0]["to"], "64");
    assert_eq!(outcome["file-length"], fs::metadata(&image).unwrap().len());
    let now = shown(&image);
    assert_eq!((&now["refcount-bits"], &now["lazy-refcounts"]), (&64.into(), &true.into()));
    let same = qcowtool(args!["amend", "-o", "refcount_bits=64", image]).ok();
    assert_eq!(same, "Nothing is different.\n");
    qemu::assert_clean(&image);
    qcowtool(args!["amend", "-o", "compat=0.10,refcount_bits=16,lazy_refcounts=off", image]).ok();
    assert_eq!(shown(&image)["compat"], "0.10");
    qemu::assert_clean(&image);
    qemu::qemu_io("qcow2", &image, &["read -P 7 1M 3M", "write -P 8 2M 6M"]);
    qemu::assert_clean(&image);
    let help = qcowtool(args!["amend", "-o", "help"]).ok();
    assert!(help.contains("refcount_bits") && !help.contains("cluster_size"), "{help}");
}

#[test]
fn what_cannot_be_amended_is_refused_with_the_reason_and_what_is_advised_works() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = scratch.path("vm.qcow2");
    qemu::create(&image, "", "1M");
    let amend = |options: &str| qcowtool(args!["amend", "-o", options, image]);
    let before = fs::read(&image).unwrap();
    for (options, words) in [
        ("cluster_size=4k", "only a new image"),
        ("size=2M", "only a new image"),
        ("backing_file=x", "the backing file is not amended"),
        ("nonsense=1", "no option 'nonsense'"),
        ("compat=2", "0.10 or v2, 1.1 or v3"),
        ("refcount_bits=7", "power of two"),
        ("refcount_bits=1,compat=0.10", "ask for version 3, or for 16 bits"),
        ("compat=0.10,lazy_refcounts=on", "ask for version 3"),
        ("data_file=x", "no external data file"),
        ("data_file_raw=on", "cannot become one"),
    ] {
        amend(options).refused_naming(&[words]);
    }
    assert!(fs::read(&image).unwrap() == before);
    // Bitmaps.
    qemu_img(&args!["bitmap", "--add", image, "b"]);
    amend("compat=0.10").refused_naming(&["remove the bitmaps first"]);
    let text = qcowtool(args!["amend", "--drop-bitmaps", "-o", "compat=0.10", image]).ok();
    assert_eq!(text, "compat: 0.10, was 1.1\nbitmaps: 1 were removed\n");
    qemu::assert_clean(&image);
    // A snapshot of another size.
    amend("compat=1.1").ok();
    qemu_img(&args!["snapshot", "-c", "small", image]);
    qemu_img(&args!["resize", "-q", image, "2M"]);
    amend("compat=0.10").refused_naming(&["delete the snapshot first"]);
    qemu_img(&args!["snapshot", "-d", "small", image]);
    amend("compat=0.10").ok();
    // A data file.
    let (data, copy) = (scratch.path("data"), scratch.path("copy"));
    qemu::create(&image, &format!("data_file={},data_file_raw=on", data.display()), "1M");
    qemu::qemu_io("qcow2", &image, &["write -P 7 0 64k"]);
    fs::write(&copy, vec![0; 1 << 20]).unwrap();
    let to_copy = format!("data_file={}", copy.display());
    amend(&to_copy).refused_naming(&["differs", "insist on this file"]);
    qcowtool(args!["amend", "--unchecked", "-o", to_copy, image]).ok();
    amend(&format!("data_file={}", data.display())).refused_naming(&["name a copy"]);
    fs::copy(&data, &copy).unwrap();
    amend(&format!("data_file={}", data.display())).ok();
    amend("data_file_raw=off").ok();
    assert_eq!(shown(&image)["data-file-raw"], false);
    assert_eq!(qemu::raw_of("qcow2", &image)[..65536], [7; 65536]);
}

/// The same commands for qemu-img and for us, each on an image of its own that began as the same.
#[test]
fn a_row_of_commands_leaves_what_qemu_img_leaves() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (ours, theirs) = (scratch.path("ours.qcow2"), scratch.path("theirs.qcow2"));
    let base = scratch.file("base.raw", &vec![0xba; 700_000]);
    let over = format!("backing_file={},backing_fmt=raw", base.display());
    for (seed, options) in [
        (1, "cluster_size=64k".to_owned()),
        (2, format!("cluster_size=4k,{over}")),
        (3, format!("cluster_size=512,{over}")),
    ] {
        let mut random = Random::new(seed);
        let mut pick = |count: usize| random.below(count as u64) as usize;
        qemu::create(&ours, &options, "1M");
        qemu::qemu_io("qcow2", &ours, &["write -P 1 0 200k", "write -z 64k 64k"]);
        qemu_img(&args!["snapshot", "-c", "one", ours]);
        qemu::qemu_io("qcow2", &ours, &["write -P 2 10k 4k", "write -z 512k 64k"]);
        fs::copy(&ours, &theirs).unwrap();
        for step in 0..14 {
            let mut wanted = Vec::new();
            if pick(2) == 0 {
                wanted.push(["compat=0.10", "compat=1.1"][pick(2)].to_owned());
            }
            if pick(2) == 0 {
                wanted.push(format!("refcount_bits={}", 1 << pick(7)));
            }
            if pick(3) == 0 || wanted.is_empty() {
                wanted.push(["lazy_refcounts=on", "lazy_refcounts=off"][pick(2)].to_owned());
            }
            let wanted = wanted.join(",");
            let what = format!("seed {seed}, step {step}: {wanted}");
            let before = fs::read(&theirs).unwrap();
            let expected = try_qemu_img(&args!["amend", "-o", wanted, theirs]);
            let done = qcowtool(args!["amend", "-q", "-o", wanted, ours]);
            assert_eq!(
                done.succeeded(),
                expected.is_ok(),
                "{what}: {} {expected:?}",
                done.stderr()
            );
            if expected.is_err() {
                // Of what it refuses QEMU may have done a part.
                fs::write(&theirs, before).unwrap();
            }
            same_json(&shown(&ours), &shown(&theirs), &what);
            qemu::assert_clean(&ours);
            qcowtool(args!["check", "-q", ours]).ok();
            if step % 3 == 0 {
                let write = format!("write -P {} {}k 9k", step + 10, pick(1000));
                [&ours, &theirs].iter().for_each(|image| qemu::qemu_io("qcow2", image, &[&write]));
            }
        }
        for snapshot in [None, Some("one")] {
            let read = |image: &Path| qemu::try_raw_of("qcow2", image, snapshot).unwrap();
            assert!(read(&ours) == read(&theirs), "seed {seed}: {snapshot:?}");
        }
    }
}
