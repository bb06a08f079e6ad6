//! `create`: what it makes is what `qemu-img create` makes of the same options, and clean; what QEMU
//! cannot make is refused and leaves nothing.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use common::{qcowtool, same_json};
use fixtures::{Scratch, args, needs_qemu, qemu, qemu_img, qemu_io, try_qemu_img};
use serde_json::Value;

/// Runs the same `create` with qemu-img and with us, each in an empty directory of the same name, and
/// asserts that both refuse, or that both make the same image and ours is clean.
#[track_caller]
fn created_alike(options: Vec<OsString>, size: &str) {
    let scratch = Scratch::new();
    let dir = scratch.path("images");
    let image = dir.join("disk.qcow2");
    let mut arguments = [args!["create", "-q", "-f", "qcow2"], options, args![image]].concat();
    if !size.is_empty() {
        arguments.push(size.into());
    }
    let fresh = || {
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("base.raw"), vec![0xba; 100_000]).unwrap();
        qemu::overlay(dir.join("base.qcow2"), "base.raw", "raw", "cluster_size=4k", "3M");
    };
    for argument in &mut arguments {
        *argument = argument.to_string_lossy().replace("DIR", &dir.to_string_lossy()).into();
    }

    fresh();
    let theirs = try_qemu_img(&arguments).map(|_| (shown(&image), clusters(&image)));
    fresh();
    let ours = qcowtool(arguments.clone());
    match theirs {
        Err(_) => {
            ours.refused();
            let names: Vec<_> =
                fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
            assert_eq!(names.len(), 2, "{arguments:?} leaves something: {names:?}");
        }
        Ok((info, clusters_of_theirs)) => {
            assert_eq!(ours.ok(), "", "-q prints nothing");
            qemu::assert_clean(&image);
            same_json(&shown(&image), &info, &format!("{arguments:?}"));
            assert_eq!(clusters(&image), clusters_of_theirs, "{arguments:?}: allocated clusters");
        }
    }
}

/// With these words after `-o`.
#[track_caller]
fn with_options(options: &str, size: &str) {
    created_alike(if options.is_empty() { vec![] } else { args!["-o", options] }, size);
}

/// `qemu-img info` without what depends on how the file is laid out.
fn shown(image: &Path) -> Value {
    let mut info = qemu::info(image);
    let object = info.as_object_mut().unwrap();
    object.remove("actual-size");
    object.remove("children");
    info
}

/// How many clusters `qemu-img check` counts as allocated to the guest.
fn clusters(image: &Path) -> Value {
    let arguments = args!["check", "--output", "json", qemu::alone(image)];
    let report: Value = serde_json::from_str(&qemu_img(&arguments)).unwrap();
    report["allocated-clusters"].clone()
}

#[test]
fn every_cluster_size() {
    needs_qemu!();
    for size in
        ["512", "1k", "2K", "4096", "8k", "16k", "32k", "64k", "128k", "256k", "512k", "1M", "2M"]
    {
        with_options(&format!("cluster_size={size}"), "10M");
    }
    for size in ["0", "1", "256", "511", "513", "1000", "3k", "4M", "2G", "-1", "x", ""] {
        with_options(&format!("cluster_size={size}"), "10M");
    }
}

#[test]
fn every_version() {
    needs_qemu!();
    for compat in ["0.10", "1.1", "v2", "v3", "V2", "2", "1.0", ""] {
        with_options(&format!("compat={compat}"), "1M");
    }
    for option in [
        "refcount_bits=8",
        "lazy_refcounts=on",
        "extended_l2=on",
        "compression_type=zstd",
        "data_file=DIR/x",
    ] {
        with_options(&format!("compat=0.10,{option}"), "1M");
        with_options(&format!("compat=1.1,{option}"), "1M");
    }
    with_options("compat=v2,refcount_bits=16,lazy_refcounts=off,compression_type=zlib", "1M");
}

#[test]
fn every_refcount_width() {
    needs_qemu!();
    for bits in ["1", "2", "4", "8", "16", "32", "64", "0", "3", "128", "-16", "x"] {
        with_options(&format!("refcount_bits={bits}"), "64M");
    }
    for bits in [1, 64] {
        with_options(
            &format!("refcount_bits={bits},cluster_size=512,preallocation=metadata"),
            "3M",
        );
    }
}

#[test]
fn extended_l2_and_other_switches() {
    needs_qemu!();
    for size in ["8k", "16k", "64k", "2M"] {
        with_options(&format!("extended_l2=on,cluster_size={size}"), "100M");
    }
    for value in ["on", "off", "yes", "no", "true", "false", "y", "n", "1", "ON", ""] {
        with_options(&format!("lazy_refcounts={value}"), "1M");
    }
    for kind in ["zlib", "zstd", "ZLIB", "lz4", ""] {
        with_options(&format!("compression_type={kind}"), "1M");
    }
    with_options("lazy_refcounts", "1M");
    with_options("cluster_size=4k,cluster_size=8k", "1M");
    with_options("no_such_option=1", "1M");
    with_options("=1", "1M");
    created_alike(args!["-o", "cluster_size=4k", "-o", "refcount_bits=1"], "1M");
}

#[test]
fn preallocation_of_every_kind() {
    needs_qemu!();
    for kind in ["off", "metadata", "falloc", "full", "some", ""] {
        with_options(&format!("preallocation={kind}"), "3M");
        with_options(&format!("preallocation={kind},cluster_size=512"), "200k");
        with_options(&format!("preallocation={kind},extended_l2=on,cluster_size=16k"), "1000000");
    }
    with_options("preallocation=metadata,cluster_size=512", "40M");
    with_options("preallocation=metadata", "100G");
    with_options("preallocation=metadata,compat=0.10", "2G");
    with_options("preallocation=full", "0");
}

#[test]
fn preallocation_takes_the_room_it_promises() {
    needs_qemu!();
    let scratch = Scratch::new();
    for format in ["qcow2", "raw"] {
        for (kind, least) in [("off", 0), ("falloc", 8 << 20), ("full", 8 << 20)] {
            let image = scratch.path(format!("{kind}.{format}"));
            let options = format!("preallocation={kind}");
            qcowtool(args!["create", "-f", format, "-o", options, image, "8M"]).ok();
            let allocated = fs::metadata(&image).unwrap().blocks() * 512;
            assert!(allocated >= least, "{kind} {format}: {allocated}");
            assert!(least > 0 || allocated < 1 << 20, "{kind} {format}: {allocated}");
        }
    }
}

#[test]
fn preallocation_with_a_backing_file() {
    needs_qemu!();
    for kind in ["metadata", "falloc", "full"] {
        for extended in ["on", "off"] {
            let options = format!("preallocation={kind},extended_l2={extended}");
            created_alike(args!["-b", "base.raw", "-F", "raw", "-o", options], "");
        }
    }
}

#[test]
fn data_files() {
    needs_qemu!();
    with_options("data_file=DIR/disk.data", "1M");
    with_options("data_file=DIR/disk.data,data_file_raw=on", "1M");
    with_options(
        "data_file=DIR/disk.data,data_file_raw=on,extended_l2=on,cluster_size=16k",
        "1000k",
    );
    with_options("data_file_raw=on", "1M");
    for kind in ["metadata", "falloc", "full"] {
        with_options(&format!("data_file=DIR/disk.data,preallocation={kind}"), "1M");
    }
    created_alike(args!["-b", "base.raw", "-F", "raw", "-o", "data_file=DIR/d"], "");
    created_alike(
        args!["-b", "base.raw", "-F", "raw", "-o", "data_file=DIR/d,data_file_raw=on"],
        "",
    );
}

#[test]
fn sizes_as_qemu_img_reads_them() {
    needs_qemu!();
    let sizes = [
        "0",
        "1",
        "511",
        "512",
        "513",
        "1000",
        "65535",
        "65536",
        "1b",
        "1B",
        "1k",
        "1K",
        "1m",
        "1M",
        "1G",
        "1g",
        "3T",
        "1P",
        "1p",
        "1E",
        "1.5M",
        "0.5k",
        "1.7k",
        ".5M",
        "1.",
        "1.5",
        "0x10000",
        "0x1k",
        "1e3",
        "1e3k",
        " 1M",
        "1M ",
        "+1M",
        "-1",
        "1MB",
        "1MiB",
        "12X",
        "x",
        "1kk",
        "8E",
        "7E",
        "9223372036854775807",
        "9223372036854775296",
        "18446744073709551615",
        "99999999999999999999",
        "1_000",
        "١",
        "inf",
        "nan",
    ];
    for size in sizes {
        // 2 MiB clusters, so that the largest sizes are not refused for another reason.
        with_options("cluster_size=2M", size);
    }
    with_options("size=3M", "");
    with_options("size=3M,cluster_size=4k", "2M");
    with_options("", "");
}

#[test]
fn the_largest_disk_of_a_cluster_size() {
    needs_qemu!();
    with_options("cluster_size=512", "128G");
    with_options("cluster_size=512", "137438953984");
    with_options("cluster_size=4k", "8T");
    with_options("cluster_size=4k", "9T");
    with_options("", "2P");
    with_options("", "3P");
    with_options("extended_l2=on", "1P");
    with_options("extended_l2=on", "2P");
    with_options("", "64T");
}

#[test]
fn backing_files() {
    needs_qemu!();
    for compat in ["0.10", "1.1"] {
        let options = format!("compat={compat},cluster_size=4k");
        created_alike(args!["-b", "base.raw", "-F", "raw", "-o", options], "");
        created_alike(args!["-b", "base.qcow2", "-F", "qcow2", "-o", options], "");
        created_alike(args!["-b", "DIR/base.qcow2", "-F", "qcow2", "-o", options], "7M");
    }
    created_alike(args!["-o", "backing_file=base.raw,backing_fmt=raw"], "");
    created_alike(args!["-b", "base.raw"], "");
    created_alike(args!["-b", "base.raw"], "1M");
    created_alike(args!["-b", "base.raw", "-F", "qcow2"], "");
    created_alike(args!["-b", "nowhere", "-F", "raw"], "");
    created_alike(args!["-b", "nowhere", "-F", "raw"], "1M");
    created_alike(args!["-u", "-b", "nowhere", "-F", "raw"], "1M");
    created_alike(args!["-u", "-b", "nowhere", "-F", "raw"], "");
    created_alike(args!["-F", "raw"], "1M");
    created_alike(args!["-b", "disk.qcow2", "-F", "qcow2"], "1M");
}

#[test]
fn trap_12_13_the_backing_name_fits_the_first_cluster_or_is_refused() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (ours, theirs) = (scratch.path("ours"), scratch.path("theirs"));
    let kinds =
        ["cluster_size=512", "cluster_size=512,compat=0.10", "cluster_size=1k", "cluster_size=64k"];
    for (kind, length) in kinds.iter().flat_map(|kind| {
        [1, 255, 300, 360, 370, 376, 377, 384, 400, 440, 800, 888, 1000, 1023, 1024, 5000]
            .map(|n| (kind, n))
    }) {
        let name = "n".repeat(length);
        let create =
            args!["create", "-q", "-f", "qcow2", "-u", "-b", name, "-F", "raw", "-o", kind];
        let possible = try_qemu_img(&[create.clone(), args![theirs, "1M"]].concat()).is_ok();
        let run = qcowtool([create, args![ours, "1M"]].concat());
        if run.succeeded() {
            // Possibly where QEMU finds no room any more, but never cut and never over anything.
            qemu::assert_clean(&ours);
            assert_eq!(qemu::info(&ours)["backing-filename"], name);
            assert!(length <= 1023, "QEMU does not open a name of {length} bytes");
            fs::remove_file(&ours).unwrap();
        } else {
            run.refused();
            assert!(!possible, "{kind}: qemu-img can name a backing file in {length} bytes");
        }
    }
}

#[test]
fn an_overlay_shows_its_base() {
    needs_qemu!();
    let scratch = Scratch::new();
    let base = scratch.path("base.qcow2");
    qemu::create(&base, "", "3M");
    qemu_io("qcow2", &base, &["write -P 5 100k 2M"]);
    for (i, options) in
        ["", "cluster_size=512", "compat=0.10", "extended_l2=on"].into_iter().enumerate()
    {
        let overlay = scratch.path(format!("{i}"));
        let options = if options.is_empty() { vec![] } else { args!["-o", options] };
        let create = args!["create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2"];
        qcowtool([create, options, args![overlay]].concat()).ok();
        qemu::assert_same("qcow2", &overlay, "qcow2", &base);
        // And takes writes.
        qemu_io("qcow2", &overlay, &["write -P 6 1M 100k", "write -z 2M 64k", "read -P 6 1M 100k"]);
        qemu::assert_clean(&overlay);
    }
}

#[test]
fn raw_files() {
    needs_qemu!();
    let scratch = Scratch::new();
    for size in ["0", "1", "1000", "1M", "3T", "1.5k"] {
        let (ours, theirs) = (scratch.path("ours"), scratch.path("theirs"));
        qemu_img(&args!["create", "-q", "-f", "raw", theirs, size]);
        qcowtool(args!["create", "-q", "-f", "raw", ours, size]).ok();
        let lengths = [&ours, &theirs].map(|path| fs::metadata(path).unwrap().len());
        assert_eq!(lengths[0], lengths[1], "{size}");
        fs::remove_file(ours).unwrap();
    }
    for arguments in [
        args!["-o", "cluster_size=4k", "x", "1M"],
        args!["-b", "base", "-F", "raw", "x", "1M"],
        args!["-o", "preallocation=metadata", "x", "1M"],
        args!["x"],
    ] {
        common::qcowtool_in(scratch.dir(), [args!["create", "-f", "raw"], arguments].concat())
            .refused();
    }
    assert_eq!(scratch.names(), ["theirs"]);
}

#[test]
fn without_a_format_a_new_image_is_qcow2() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (disk, overlay) = (scratch.path("disk"), scratch.path("overlay"));
    qcowtool(args!["create", disk, "10G"]).ok();
    let info = fixtures::qemu::info(&disk);
    assert_eq!((&info["format"], &info["virtual-size"]), (&"qcow2".into(), &(10u64 << 30).into()));
    qcowtool(args!["create", "-q", "-b", disk, "-F", "qcow2", overlay]).ok();
    assert_eq!(fixtures::qemu::info(&overlay)["virtual-size"], 10u64 << 30);
    let help = qcowtool(args!["create", "-o", "help"]).ok();
    assert!(help.contains("cluster_size"), "{help}");
}
