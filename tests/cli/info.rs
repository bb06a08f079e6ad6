//! `info`: the same keys and values as qemu-img's JSON, and the same lines as its text.

use std::fs;
use std::path::{Path, PathBuf};

use common::{info_like_qemu, qcowtool, qcowtool_in, same_json, small};
use fixtures::{Scratch, args, chains, needs_qemu, qemu, qemu_img, qemu_io};
use serde_json::Value;

/// Asserts that both the JSON and the text are qemu-img's.
#[track_caller]
fn shown_alike(image: &Path, options: &[&str]) {
    info_like_qemu(image, options);
    let run = |tool: &dyn Fn(Vec<std::ffi::OsString>) -> String| {
        let mut arguments = args!["info"];
        arguments.extend(options.iter().map(Into::into));
        arguments.push(image.into());
        tool(arguments)
    };
    let ours = run(&|arguments| qcowtool(arguments).ok());
    let theirs = run(&|arguments| qemu_img(&arguments));
    for (ours, theirs) in ours.lines().zip(theirs.lines()) {
        assert_eq!(ours, theirs, "{}", image.display());
    }
    assert_eq!(ours, theirs, "{}", image.display());
}

/// One image for each line that `info` may print.
fn images(scratch: &Scratch) -> Vec<PathBuf> {
    let kinds = [
        ("plain", ""),
        ("v2", "compat=0.10"),
        ("lazy", "lazy_refcounts=on"),
        ("extended", "extended_l2=on"),
        ("zstd", "compression_type=zstd"),
        ("narrow", "refcount_bits=1"),
        ("wide", "refcount_bits=64,cluster_size=512"),
        ("large-clusters", "cluster_size=2M"),
        ("preallocated", "preallocation=metadata"),
    ];
    let mut images = Vec::new();
    for (name, options) in kinds {
        let image = scratch.path(name);
        qemu::create(&image, options, "20M");
        images.push(image);
    }
    let snapshots = scratch.path("snapshots");
    qemu::create(&snapshots, "", "1M");
    for name in ["first", "a much longer name than the column is wide", "ümläut", "ключ", "鍵鍵鍵"]
    {
        qemu_io("qcow2", &snapshots, &["write -P 1 0 64k"]);
        qemu_img(&args!["snapshot", "-c", name, snapshots]);
    }
    qemu_img(&args!["bitmap", "--add", snapshots, "b0"]);
    qemu_img(&args!["bitmap", "--add", "--disable", "-g", "512", snapshots, "b1"]);
    images.push(snapshots);
    for raw in ["on", "off"] {
        let image = scratch.path(format!("data-{raw}"));
        let data = scratch.path(format!("data-{raw}.data"));
        let options = format!("data_file={},data_file_raw={raw}", data.display());
        qemu::create(&image, &options, "1M");
        images.push(image);
    }
    for (name, bits) in [("dirty", 1_u64), ("corrupt", 2), ("both", 3)] {
        let mut image = small(scratch, "lazy_refcounts=on");
        image.set_u64(fixtures::patch::field::INCOMPATIBLE, bits);
        image.save_as(scratch.path(name));
        images.push(scratch.path(name));
    }
    images
}

#[test]
fn every_kind_of_image() {
    needs_qemu!();
    let scratch = Scratch::new();
    for image in images(&scratch) {
        shown_alike(&image, &[]);
        shown_alike(&image, &["-f", "qcow2"]);
    }
}

#[test]
fn encrypted_images() {
    needs_qemu!();
    let scratch = Scratch::new();
    for format in ["aes", "luks"] {
        let image = scratch.path(format);
        let secret = "secret,id=s,data=geheim";
        let iterations = if format == "luks" { ",encrypt.iter-time=10" } else { "" };
        let options = format!("encrypt.format={format},encrypt.key-secret=s{iterations}");
        let create = args!["create", "-q", "-f", "qcow2", "--object", secret, "-o", options];
        qemu_img(&[create, args![image, "1M"]].concat());
        shown_alike(&image, &[]);
    }
}

#[test]
fn the_file_itself_pinned_as_raw() {
    needs_qemu!();
    let scratch = Scratch::new();
    for (name, size) in [("empty", 0), ("odd", 1000), ("sector", 512), ("larger", 70_000)] {
        let image = scratch.file(name, &vec![1; size]);
        let run = qcowtool(args!["info", "--output", "json", "-f", "raw", image]).json();
        let theirs = qemu::try_info(&image, &["-f", "raw"]).unwrap();
        same_json(&run, &theirs, name);
        let text = qcowtool(args!["info", "-f", "raw", image]).ok();
        assert_eq!(text, qemu_img(&args!["info", "-f", "raw", image]));
    }
}

#[test]
fn backing_chains() {
    needs_qemu!();
    let scratch = Scratch::new();
    let chain = chains::template_with_overlays(scratch.dir(), 3);
    for layer in &chain.layers {
        shown_alike(layer, &[]);
        shown_alike(layer, &["--backing-chain"]);
    }
    let orphan = chains::orphan(scratch.dir());
    shown_alike(orphan.top(), &["--backing-chain"]);
    // On a raw base of odd size, seen from elsewhere.
    scratch.file("odd.raw", &[1; 12_345]);
    let top = scratch.path("top");
    qemu::overlay(&top, "odd.raw", "raw", "", "");
    shown_alike(&top, &["--backing-chain"]);
}

#[test]
fn relative_names_are_shown_as_qemu_shows_them() {
    needs_qemu!();
    let scratch = Scratch::new();
    scratch.subdir("a/b");
    scratch.subdir("work");
    scratch.file("a/base", &[1; 4096]);
    qemu::overlay(scratch.path("a/b/mid"), "../base", "raw", "", "");
    qemu::overlay(scratch.path("a/b/top"), "mid", "qcow2", "", "");
    for (dir, path) in [("", "a/b/top"), ("work", "../a/b/top"), ("a/b", "top"), ("a/b", "./top")] {
        let (dir, arguments) = (scratch.path(dir), args!["info", "--backing-chain", path]);
        let ours = qcowtool_in(&dir, arguments.clone()).ok();
        let mut command = std::process::Command::new("qemu-img");
        let theirs = command.args(&arguments).current_dir(&dir).output().unwrap().stdout;
        assert_eq!(ours, String::from_utf8(theirs).unwrap(), "{path}");
    }
}

#[test]
fn trap_132_sizes_of_sparse_files() {
    needs_qemu!();
    let scratch = Scratch::new();
    for size in ["1T", "1023", "1536k", "1000000", "9999999999", "2P"] {
        let image = scratch.path(size);
        qemu::create(&image, "cluster_size=2M", size);
        shown_alike(&image, &[]);
    }
    // A file whose length is no multiple of a sector.
    let image = scratch.path("cut");
    qemu::create(&image, "", "1M");
    let length = fs::metadata(&image).unwrap().len();
    fs::OpenOptions::new().write(true).open(&image).unwrap().set_len(length + 100).unwrap();
    shown_alike(&image, &[]);
}

#[test]
fn trap_138_sizes_in_text_round_as_qemu_rounds_them() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = scratch.path("disk");
    let sizes = (10..56).step_by(5).flat_map(|bits| {
        let unit = 1_u64 << bits;
        [
            unit,
            unit + unit / 2,
            unit / 1024 * 1023,
            unit + unit / 200,
            unit / 1000 * 999,
            unit / 3 * 2,
        ]
    });
    let mut raw = fixtures::patch::Patch::open(&small(&scratch, "cluster_size=2M").path);
    for size in sizes.filter(|size| *size >= 512 && *size < 1 << 56) {
        // The header alone says the size; a table long enough for it need not hold anything.
        raw.set_u64(fixtures::patch::field::SIZE, size);
        let entries = u32::try_from(size.div_ceil(1 << 39).max(1)).unwrap();
        raw.set_u32(fixtures::patch::field::L1_SIZE, entries).save_as(&image);
        if qemu::try_info(&image, &["-f", "qcow2"]).is_ok() {
            shown_alike(&image, &[]);
        }
    }
}

#[test]
fn human_output_is_pinned() {
    let scratch = Scratch::new();
    let create = args!["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "disk.qcow2", "3M"];
    qcowtool_in(scratch.dir(), create).ok();
    let text = qcowtool_in(scratch.dir(), args!["info", "disk.qcow2"]).ok();
    // How much room the file takes is the file system's business.
    let stable: Vec<_> = text
        .lines()
        .filter(|line| !line.contains("disk size") && !line.contains("length"))
        .collect();
    assert_eq!(
        stable.join("\n"),
        "image: disk.qcow2
file format: qcow2
virtual size: 3 MiB (3145728 bytes)
cluster_size: 4096
Format specific information:
    compat: 1.1
    compression type: zlib
    lazy refcounts: false
    refcount bits: 16
    corrupt: false
    extended l2: false
Child node '/file':
    filename: disk.qcow2
    protocol type: file"
    );
}

#[test]
fn info_of_a_snapshot_shows_that_one_only() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = small(&scratch, "").path;
    for name in ["one", "two"] {
        qemu_img(&args!["snapshot", "-c", name, image]);
    }
    for wanted in ["two", "2"] {
        let info = qcowtool(args!["info", "--output", "json", "--snapshot", wanted, image]).json();
        let snapshots = info["snapshots"].as_array().unwrap();
        assert_eq!(snapshots.len(), 1);
        assert_eq!(snapshots[0]["name"], "two");
    }
}

#[test]
fn trap_114_only_the_image_itself_is_opened_unless_the_chain_is_asked_for() {
    needs_qemu!();
    let scratch = Scratch::new();
    let orphan = chains::orphan(scratch.dir());
    fs::remove_file(orphan.template()).unwrap();
    shown_alike(orphan.top(), &[]);
    let info = qcowtool(args!["info", "--output", "json", orphan.top()]).json();
    assert_ne!(info["backing-filename"], Value::Null);
    let error = qcowtool(args!["info", "--output", "json", "--backing-chain", orphan.top()]);
    let name = orphan.template().file_name().unwrap().to_string_lossy().into_owned();
    assert_eq!(error.code(), Some(1));
    assert!(error.stderr().contains(&name), "{}", error.stderr());
    assert!(error.stdout().contains("backing-filename"), "what is above is shown");
}
