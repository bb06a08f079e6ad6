//! `measure`: the figures of qemu-img, and with `--exact` the length of what flatten writes.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use common::qcowtool;
use fixtures::chains::{self, Scribble};
use fixtures::{Scratch, args, needs_qemu, pattern, qemu, qemu_img, qemu_io, try_qemu_img};

/// Asserts that both print the same, as text and as JSON, or that both refuse.
#[track_caller]
fn like_qemu(words: Vec<OsString>) {
    for output in ["human", "json"] {
        let words = [args!["measure", "--output", output], words.clone()].concat();
        let ours = qcowtool(words.clone());
        match try_qemu_img(&words) {
            Ok(theirs) => assert_eq!(ours.ok(), theirs, "{words:?}"),
            Err(error) => assert_eq!(ours.code(), Some(1), "{words:?}: qemu-img says {error}"),
        }
    }
}

const OPTIONS: [&str; 10] = [
    "cluster_size=64k",
    "cluster_size=512",
    "cluster_size=2M",
    "extended_l2=on",
    "extended_l2=on,cluster_size=16k",
    "refcount_bits=1",
    "refcount_bits=64,cluster_size=4k",
    "compat=0.10",
    "preallocation=metadata",
    "preallocation=full",
];

#[test]
fn empty_disks_of_every_size_and_option() {
    needs_qemu!();
    let sizes = ["0", "1", "1000", "64k", "1G", "1G1", "20000001k", "1T", "64T", "3P", "7E"];
    for size in sizes {
        like_qemu(args!["-O", "raw", "--size", size]);
        for options in OPTIONS {
            like_qemu(args!["-O", "qcow2", "-o", options, "--size", size]);
        }
    }
    like_qemu(args!["-O", "qcow2", "-o", "backing_file=x,backing_fmt=raw", "--size", "1G"]);
    like_qemu(args!["-O", "qcow2", "-o", "data_file=x", "--size", "1G"]);
    like_qemu(args!["-O", "raw", "-o", "preallocation=falloc", "--size", "1G"]);
}

#[test]
fn trap_137_images_count_the_clusters_that_get_data() {
    needs_qemu!();
    let scratch = Scratch::new();
    let chain = chains::template_with_overlays(scratch.dir(), 3);
    let packed = scratch.path("packed.qcow2");
    qemu_img(&args!["convert", "-c", "-O", "qcow2", chain.top(), packed]);
    let preallocated = scratch.path("preallocated.qcow2");
    qemu::create(&preallocated, "preallocation=metadata", "8M");
    qemu_io("qcow2", &preallocated, &["write -P 1 1M 100k", "write -P 1 5000k 1k"]);
    let old = scratch.path("old.qcow2");
    qemu::create(&old, "compat=0.10", "1M");
    for image in [chain.top(), &packed, &preallocated, &old] {
        for options in OPTIONS {
            like_qemu(args!["-f", "qcow2", "-O", "qcow2", "-o", options, image]);
        }
        like_qemu(args!["-O", "raw", image]);
        like_qemu(args!["-O", "qcow2", "-o", "backing_file=x,backing_fmt=raw", image]);
    }
    let raw = scratch.path("raw");
    pattern::write_raw(&raw, 1_000_001, &[(0, &[1; 10]), (200_000, &[1; 70_000])]);
    for options in OPTIONS {
        like_qemu(args!["-f", "raw", "-O", "qcow2", "-o", options, raw]);
    }
}

#[test]
fn bitmaps_and_snapshots() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = scratch.path("disk.qcow2");
    qemu::create(&image, "cluster_size=4k", "300M");
    qemu_io("qcow2", &image, &["write -P 1 0 100k"]);
    qemu_img(&args!["snapshot", "-c", "before", image]);
    qemu_io("qcow2", &image, &["write -P 1 1M 3M"]);
    for (name, granularity) in [("b0", "512"), ("a-longer-name", "64k"), ("c", "2M")] {
        qemu_img(&args!["bitmap", "--add", "-g", granularity, image, name]);
        like_qemu(args!["-O", "qcow2", "-o", "cluster_size=512", image]);
        like_qemu(args!["-O", "qcow2", image]);
    }
    like_qemu(args!["-O", "qcow2", "-l", "before", image]);
}

#[test]
fn without_a_format_the_figures_are_of_a_qcow2_image() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = scratch.path("disk.qcow2");
    qemu::create(&image, "", "3M");
    qemu_io("qcow2", &image, &["write -P 1 0 1M"]);
    for what in [args!["--size", "1G"], args![image]] {
        let theirs = qemu_img(&[args!["measure", "-O", "qcow2"], what.clone()].concat());
        assert_eq!(qcowtool([args!["measure"], what].concat()).ok(), theirs);
    }
}

#[test]
fn wrong_questions() {
    let scratch = Scratch::new();
    let image = scratch.file("disk", &[0; 512]);
    for words in [
        args![],
        args!["--size", "1G", image],
        args!["--size", "x"],
        args!["-O", "qcow2", "-o", "nonsense=1", "--size", "1G"],
        args!["-c", image],
        args!["--exact", "--size", "1G"],
    ] {
        assert_eq!(qcowtool([args!["measure"], words].concat()).code(), Some(1));
    }
}

/// Asserts that `--exact` foretells the length of the file that flatten then writes.
#[track_caller]
fn exact(image: &Path, options: &[&str]) {
    let options: Vec<OsString> = options.iter().map(Into::into).collect();
    let fixed = args!["measure", "--exact", "--output", "json"];
    let told = qcowtool([fixed, options.clone(), args![image]].concat()).json();
    let scratch = Scratch::new();
    let flat = scratch.path("flat");
    qcowtool([args!["flatten", "-q"], options.clone(), args![image, flat]].concat()).ok();
    let length = fs::metadata(&flat).unwrap().len();
    assert_eq!(told["required"], length, "{options:?}");
}

#[test]
fn exact_is_the_length_of_what_flatten_writes() {
    needs_qemu!();
    let scratch = Scratch::new();
    let chain = chains::template_with_overlays(scratch.dir(), 2);
    let large = scratch.path("large.qcow2");
    qemu::create(&large, "", "40M");
    let writes = Scribble { seed: 1, disk: 40 << 20, cluster: 65536, writes: 60, compress: true };
    writes.on(&large);
    qemu_io("qcow2", &large, &["write -P 0 20M 5M"]);
    for image in [chain.top(), &large] {
        exact(image, &["-O", "raw"]);
        for options in OPTIONS {
            exact(image, &["-O", "qcow2", "-o", options]);
        }
        for options in ["cluster_size=4k", "compression_type=zstd", "refcount_bits=1"] {
            for threads in ["1", "3"] {
                exact(image, &["-O", "qcow2", "-c", "-o", options, "--threads", threads]);
            }
        }
    }
}

#[test]
fn with_a_data_file_both_files_count() {
    needs_qemu!();
    let scratch = Scratch::new();
    let raw = scratch.path("raw");
    pattern::write_raw(&raw, 3_000_001, &[(0, &[1; 10]), (200_000, &[1; 70_000])]);
    let split = scratch.path("split.qcow2");
    qemu::create(&split, &format!("data_file={}", scratch.path("split.raw").display()), "5M");
    qemu_io("qcow2", &split, &["write -P 1 1M 1M"]);
    for (format, image) in [("raw", &raw), ("qcow2", &split)] {
        // A source's data is data wherever it lies.
        like_qemu(args!["-f", format, "-O", "qcow2", image]);
        like_qemu(args!["-f", format, "-O", "raw", image]);
        let (flat, data) = (scratch.path("flat.qcow2"), scratch.path("flat.raw"));
        for more in ["", ",data_file_raw=on", ",preallocation=full"] {
            let options = format!("data_file={}{more}", data.display());
            like_qemu(args!["-f", format, "-O", "qcow2", "-o", options, image]);
            let words = args!["-f", format, "-O", "qcow2", "-o", options, image];
            let fixed = args!["measure", "--exact", "--output", "json"];
            let told = qcowtool([fixed, words.clone()].concat()).json();
            assert!(!data.exists(), "measuring writes nothing");
            qcowtool([args!["flatten", "-q"], words.clone(), args![flat]].concat()).ok();
            let length = |path: &Path| fs::metadata(path).unwrap().len();
            assert_eq!(told["data-file"], length(&data), "{options}");
            assert_eq!(told["required"], length(&flat) + length(&data), "{options}");
            let text = qcowtool([args!["measure", "--exact"], words].concat()).ok();
            let size = length(&data);
            assert!(text.ends_with(&format!("\ndata file size: {size}\n")), "{text}");
            fs::remove_file(&flat).unwrap();
            fs::remove_file(&data).unwrap();
        }
        exact(image, &["-f", format, "-O", "qcow2"]);
    }
}
