//! `flatten`: every target option makes an image that QEMU finds clean and equal; the same bytes for
//! any number of threads; nothing written for zeros.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use common::qcowtool;
use fixtures::chains::{self, Scribble};
use fixtures::deflate::longest_distance;
use fixtures::patch::{COMPRESSED, field};
use fixtures::pattern::{mixed, noise, write_raw};
use fixtures::{
    Patch, Scratch, args, assert_bytes, crc32_hex, needs_qemu, qemu, qemu_img, qemu_io,
};
use serde_json::Value;

/// A chain with every kind of cluster, 2 MiB and a bit, and its raw content.
fn source(scratch: &Scratch) -> (PathBuf, Vec<u8>) {
    let chain = chains::template_with_overlays(scratch.dir(), 2);
    let top = scratch.path("top.qcow2");
    let below = chain.top().file_name().unwrap();
    qemu::overlay(&top, below, "qcow2", "cluster_size=64k,extended_l2=on", "2102784");
    Scribble { seed: 77, disk: 2_102_784, cluster: 65536, writes: 10, compress: true }.on(&top);
    let raw = qemu::raw_of("qcow2", &top);
    (top, raw)
}

/// Flattens with these options and returns the new image.
#[track_caller]
fn flatten(scratch: &Scratch, options: &str, source: &Path) -> PathBuf {
    let target = scratch.path("target");
    let _ = fs::remove_file(&target);
    let mut arguments = args!["flatten"];
    arguments.extend(options.split_whitespace().map(Into::into));
    qcowtool([arguments, args![source, target]].concat()).ok();
    target
}

/// Flattens and asserts that QEMU finds the image clean, standalone and equal; returns its `info`.
#[track_caller]
fn good(scratch: &Scratch, options: &str, source: &Path) -> Value {
    let target = flatten(scratch, options, source);
    qemu::assert_clean(&target);
    qemu::assert_same("qcow2", source, "qcow2", &target);
    let info = qemu::info(&target);
    assert_eq!(info["backing-filename"], Value::Null, "standalone");
    info
}

#[test]
fn raw_targets() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (top, raw) = source(&scratch);
    for options in [
        "-O raw",
        "-O raw -o preallocation=off",
        "-O raw -o preallocation=falloc",
        "-O raw -o preallocation=full",
    ] {
        let target = flatten(&scratch, options, &top);
        assert_bytes!(fs::read(target).unwrap(), raw, "{options}");
    }
}

#[test]
fn every_cluster_size_and_compression() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (top, _) = source(&scratch);
    for bits in 9..=21 {
        let size = 1 << bits;
        let options = format!("cluster_size={size}");
        let info = good(&scratch, &format!("-o {options}"), &top);
        assert_eq!(info["cluster-size"], size);
        if [9, 12, 16, 21].contains(&bits) {
            good(&scratch, &format!("-c -o {options}"), &top);
        }
        let info = good(&scratch, &format!("-c -o {options},compression_type=zstd"), &top);
        assert_eq!(info["format-specific"]["data"]["compression-type"], "zstd");
    }
}

#[test]
fn every_other_target_option() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (top, _) = source(&scratch);
    for (options, key, value) in [
        ("compat=0.10", "compat", Value::from("0.10")),
        ("compat=v3", "compat", "1.1".into()),
        ("refcount_bits=1", "refcount-bits", 1.into()),
        ("refcount_bits=2,cluster_size=512", "refcount-bits", 2.into()),
        ("refcount_bits=8", "refcount-bits", 8.into()),
        ("refcount_bits=64,cluster_size=512", "refcount-bits", 64.into()),
        ("extended_l2=on", "extended-l2", true.into()),
        ("extended_l2=on,cluster_size=16k", "extended-l2", true.into()),
        ("extended_l2=on,cluster_size=2M", "extended-l2", true.into()),
        ("lazy_refcounts=on", "lazy-refcounts", true.into()),
        ("preallocation=metadata", "compat", "1.1".into()),
        ("preallocation=metadata,cluster_size=512", "compat", "1.1".into()),
        ("preallocation=falloc", "compat", "1.1".into()),
        ("preallocation=full,extended_l2=on", "compat", "1.1".into()),
    ] {
        let info = good(&scratch, &format!("-o {options}"), &top);
        assert_eq!(info["format-specific"]["data"][key], value, "{options}");
    }
    for options in
        ["-c -o compat=0.10", "-c -o extended_l2=on", "-c -o refcount_bits=8,cluster_size=4k"]
    {
        good(&scratch, options, &top);
    }
}

#[test]
fn data_file_targets() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (top, raw) = source(&scratch);
    let data = scratch.path("target.data");
    for raw_bit in ["off", "on"] {
        let options = format!("data_file={},data_file_raw={raw_bit}", data.display());
        let info = good(&scratch, &format!("-o {options}"), &top);
        assert_eq!(info["format-specific"]["data"]["data-file-raw"], raw_bit == "on");
        if raw_bit == "on" {
            assert_bytes!(fs::read(&data).unwrap(), raw, "the data file alone is the disk");
        }
        fs::remove_file(&data).unwrap();
    }
}

#[test]
fn the_same_bytes_for_any_number_of_threads() {
    needs_qemu!();
    let scratch = Scratch::new();
    // Larger than a few work items.
    let chain = fixtures::big::big_chain(&scratch.subdir("big"), 3, 8 << 20);
    let (small, _) = source(&scratch);
    for (source, options) in [
        (chain.top(), "-O raw"),
        (chain.top(), ""),
        (chain.top(), "-o extended_l2=on,preallocation=metadata"),
        (&small, "-c -o compression_type=zstd"),
        (&small, "-c -o cluster_size=16k"),
        (chain.top(), "-c --compression-level 7"),
        (&small, "-o cluster_size=512"),
        (&small, "-o cluster_size=2M"),
    ] {
        let digest = |threads: u32| {
            let target = flatten(&scratch, &format!("--threads {threads} {options}"), source);
            (fixtures::crc32_of_file(&target), fs::metadata(&target).unwrap().len())
        };
        let one = digest(1);
        for threads in [2, 3, 8] {
            assert_eq!(digest(threads), one, "{threads} threads, {options}");
        }
    }
}

#[test]
fn holes_are_kept_and_zeros_are_not_written() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = scratch.path("sparse.qcow2");
    qemu::create(&image, "", "1G");
    // Four clusters of data far apart; zeros written as data, as zero clusters, and within clusters.
    let source = scratch.file("noise", &noise(1, 65536));
    let mut commands: Vec<_> =
        [0, 100, 500, 1000].map(|mib| format!("write -s {} {mib}M 64k", source.display())).into();
    commands
        .extend(["write -P 0 200M 8M", "write -z 300M 8M", "write -P 0 100M 32k"].map(Into::into));
    qemu_io("qcow2", &image, &commands);

    let raw = flatten(&scratch, "-O raw", &image);
    let length = fs::metadata(&raw).unwrap().len();
    let allocated = fs::metadata(&raw).unwrap().blocks() * 512;
    assert_eq!(length, 1 << 30);
    assert!(allocated <= 5 * 65536, "{allocated} bytes allocated for 4 clusters");

    for options in ["", "-c", "-o extended_l2=on", "-o compat=0.10"] {
        let target = flatten(&scratch, options, &image);
        qemu::assert_same("qcow2", &image, "qcow2", &target);
        let check = qemu_img(&args!["check", "-f", "qcow2", "--output", "json", target]);
        let check: Value = serde_json::from_str(&check).unwrap();
        assert_eq!(check["allocated-clusters"], 4, "{options}");
        assert!(fs::metadata(&target).unwrap().blocks() * 512 < 1 << 20, "{options}");
    }
}

#[test]
fn an_empty_disk_of_64_tib_is_a_small_file() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = scratch.path("empty.qcow2");
    qemu::create(&image, "", "64T");
    let target = flatten(&scratch, "", &image);
    qemu::assert_clean(&target);
    assert_eq!(qemu::info(&target)["virtual-size"], 64_u64 << 40);
    assert!(fs::metadata(&target).unwrap().blocks() * 512 < 2 << 20);
}

#[test]
fn an_orphan_becomes_one_standalone_image() {
    needs_qemu!();
    let scratch = Scratch::new();
    let orphan = chains::orphan(scratch.dir());
    let expected = qemu::raw_of("qcow2", orphan.top());
    let target = scratch.path("standalone.qcow2");
    let outcome =
        qcowtool(args!["flatten", "--digest", "--output", "json", orphan.top(), target]).json();
    assert_eq!(outcome["crc32"], crc32_hex(&expected));
    orphan.layers.iter().for_each(|layer| fs::remove_file(layer).unwrap());
    assert_bytes!(qemu::raw_of("qcow2", &target), expected);
}

#[test]
fn the_digest_is_that_of_the_content_in_text_and_json() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (top, raw) = source(&scratch);
    for options in [args!["-O", "raw"], args![], args!["-c"]] {
        let target = scratch.path("target");
        let _ = fs::remove_file(&target);
        let common = [args!["flatten", "--digest"], options, args![top, target]].concat();
        let text = qcowtool(common.clone()).ok();
        assert!(text.contains(&crc32_hex(&raw)), "{text}");
        fs::remove_file(&target).unwrap();
        let json = qcowtool([common, args!["--output", "json"]].concat()).json();
        assert_eq!(json["crc32"], crc32_hex(&raw));
    }
}

#[test]
fn a_snapshot_becomes_an_image_of_its_own() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (top, before) = source(&scratch);
    qemu_img(&args!["snapshot", "-c", "kept", top]);
    qemu_io("qcow2", &top, &["write -P 0xee 0 2M"]);
    let target = scratch.path("kept.qcow2");
    qcowtool(args!["flatten", "--snapshot", "kept", top, target]).ok();
    qemu::assert_clean(&target);
    assert_bytes!(qemu::raw_of("qcow2", &target), before);
    assert_eq!(qemu::info(&target)["snapshots"], Value::Null, "trap 100: snapshots stay behind");
}

#[test]
fn trap_131_a_raw_file_of_1000_bytes_becomes_a_disk_of_1024() {
    needs_qemu!();
    let scratch = Scratch::new();
    let raw = scratch.file("odd.raw", &noise(2, 1000));
    for options in ["-f raw", "-f raw -c", "-f raw -o cluster_size=512", "-f raw -O raw"] {
        let target = flatten(&scratch, options, &raw);
        let format = if options.contains("-O raw") { "raw" } else { "qcow2" };
        let mut expected = noise(2, 1000);
        expected.resize(1024, 0);
        assert_bytes!(qemu::raw_of(format, &target), expected, "{options}");
    }
}

#[test]
fn trap_56_what_does_not_compress_is_stored_plain() {
    needs_qemu!();
    let scratch = Scratch::new();
    let raw = scratch.path("mixed.raw");
    write_raw(&raw, 256 << 10, &[(0, &noise(3, 128 << 10)), (128 << 10, &mixed(3, 128 << 10))]);
    for kind in ["zlib", "zstd"] {
        let target = flatten(&scratch, &format!("-f raw -c -o compression_type={kind}"), &raw);
        qemu::assert_clean(&target);
        assert_bytes!(qemu::raw_of("qcow2", &target), fs::read(&raw).unwrap());
        let image = Patch::open(&target);
        let compressed = [0, 1, 2, 3].map(|n| image.l2_entry(n << 16) & COMPRESSED != 0);
        assert_eq!(compressed, [false, false, true, true], "{kind}");
    }
}

#[test]
fn trap_56_any_amount_of_what_does_not_compress() {
    needs_qemu!();
    let scratch = Scratch::new();
    // Many clusters for one encoder, none of which it can finish, and then some that it can.
    let raw = scratch.file("noise.raw", &[noise(5, 300 << 10), mixed(5, 100 << 10)].concat());
    for cluster in ["512", "1k", "4k", "64k"] {
        for kind in ["zlib", "zstd"] {
            let options = format!("-f raw -c -o cluster_size={cluster},compression_type={kind}");
            let target = flatten(&scratch, &options, &raw);
            qemu::assert_clean(&target);
            assert_bytes!(qemu::raw_of("qcow2", &target), fs::read(&raw).unwrap(), "{options}");
        }
    }
}

#[test]
fn trap_47_deflate_streams_need_a_window_of_4_kib_only() {
    let scratch = Scratch::new();
    // What a 32 KiB window would find far back, and what a small one finds near.
    let far = noise(4, 16_384).repeat(4);
    let mut wide = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut wide, &far).unwrap();
    let widest = longest_distance(&wide.finish().unwrap(), far.len());
    assert_eq!(widest, Some(16_384), "this test can fail");
    let raw = scratch.file("far.raw", &[far, mixed(4, 192 << 10)].concat());
    for cluster in ["64k", "256k"] {
        let target = flatten(&scratch, &format!("-f raw -c -o cluster_size={cluster}"), &raw);
        let image = Patch::open(&target);
        let size = image.cluster_size();
        for guest in (0..image.u64(field::SIZE)).step_by(size) {
            let entry = image.l2_entry(guest);
            if entry & COMPRESSED != 0 {
                let host = entry & ((1 << (62 - (image.u32(field::CLUSTER_BITS) - 8))) - 1);
                let stream = &image.bytes[usize::try_from(host).unwrap()..];
                let distance = longest_distance(stream, size);
                assert!(distance.expect("a deflate stream") <= 4096, "{distance:?} at {guest}");
            }
        }
    }
}
