//! Every geometry that qemu-img and qemu-io can make reads back as `qemu-img convert -O raw` has it:
//! through `flatten -O raw` byte for byte, and through `checksum`.

use std::fs;
use std::path::Path;

use common::{content_like_qemu, qcowtool_in, reads_like_qemu, snapshot_like_qemu};
use fixtures::chains::{self, Scribble};
use fixtures::pattern::{noise, write_raw};
use fixtures::{Scratch, args, assert_bytes, needs_qemu, qemu, qemu_img, qemu_io};

/// An image of at least 128 KiB and eight clusters and a half, with writes all over.
fn scribbled(image: &Path, options: &str, cluster: u64, compress: bool) {
    let disk = (cluster * 8 + cluster / 2).max(128 << 10);
    qemu::create(image, &format!("cluster_size={cluster},{options}"), &disk.to_string());
    Scribble { seed: cluster, disk, cluster, writes: 40, compress }.on(image);
}

fn cluster_sizes() -> impl Iterator<Item = u64> {
    (9..=21).map(|bits| 1 << bits)
}

#[test]
fn every_cluster_size_of_version_2() {
    needs_qemu!();
    let scratch = Scratch::new();
    for cluster in cluster_sizes() {
        let image = scratch.path(format!("{cluster}.qcow2"));
        scribbled(&image, "compat=0.10", cluster, false);
        reads_like_qemu(&image);
    }
}

#[test]
fn every_cluster_size_of_version_3() {
    needs_qemu!();
    let scratch = Scratch::new();
    for cluster in cluster_sizes() {
        let image = scratch.path(format!("{cluster}.qcow2"));
        scribbled(&image, "compat=1.1", cluster, false);
        reads_like_qemu(&image);
    }
}

#[test]
fn every_refcount_width() {
    needs_qemu!();
    let scratch = Scratch::new();
    for bits in [1, 2, 4, 8, 16, 32, 64] {
        let image = scratch.path(format!("{bits}.qcow2"));
        scribbled(&image, &format!("refcount_bits={bits},lazy_refcounts=on"), 4096, false);
        reads_like_qemu(&image);
    }
}

#[test]
fn extended_l2_at_every_cluster_size() {
    needs_qemu!();
    let scratch = Scratch::new();
    for cluster in cluster_sizes().filter(|&size| size >= 16 << 10) {
        let image = scratch.path(format!("{cluster}.qcow2"));
        scribbled(&image, "extended_l2=on", cluster, false);
        reads_like_qemu(&image);
    }
}

#[test]
fn trap_43_44_45_zlib_at_every_cluster_size() {
    needs_qemu!();
    let scratch = Scratch::new();
    for cluster in cluster_sizes() {
        let image = scratch.path(format!("{cluster}.qcow2"));
        scribbled(&image, "compression_type=zlib", cluster, true);
        reads_like_qemu(&image);
    }
}

#[test]
fn trap_52_zstd_at_every_cluster_size() {
    needs_qemu!();
    let scratch = Scratch::new();
    for cluster in cluster_sizes() {
        let image = scratch.path(format!("{cluster}.qcow2"));
        scribbled(&image, "compression_type=zstd", cluster, true);
        reads_like_qemu(&image);
    }
}

#[test]
fn compressed_clusters_with_extended_l2() {
    needs_qemu!();
    let scratch = Scratch::new();
    for kind in ["zlib", "zstd"] {
        let image = scratch.path(format!("{kind}.qcow2"));
        scribbled(&image, &format!("extended_l2=on,compression_type={kind}"), 32768, true);
        reads_like_qemu(&image);
    }
}

#[test]
fn trap_57_a_converted_image_with_a_partial_last_cluster() {
    needs_qemu!();
    let scratch = Scratch::new();
    let raw = scratch.file("disk.raw", &fixtures::pattern::mixed(5, (64 << 10) * 3 + 512 * 7));
    for kind in ["zlib", "zstd"] {
        let image = scratch.path(format!("{kind}.qcow2"));
        let options = format!("compression_type={kind}");
        qemu_img(&args!["convert", "-f", "raw", "-O", "qcow2", "-c", "-o", options, raw, image]);
        let content = reads_like_qemu(&image);
        assert_bytes!(content, fs::read(&raw).unwrap());
    }
}

#[test]
fn trap_30_plain_and_allocated_zeros_hide_the_backing_file() {
    needs_qemu!();
    let scratch = Scratch::new();
    write_raw(scratch.path("base.raw"), 1 << 20, &[(0, &noise(1, 1 << 20))]);
    let image = scratch.path("top.qcow2");
    qemu::overlay(&image, "base.raw", "raw", "", "");
    qemu_io(
        "qcow2",
        &image,
        &["write -z -u 0 128k", "write -P 9 256k 128k", "write -z 256k 64k", "discard 512k 64k"],
    );
    let content = reads_like_qemu(&image);
    assert!(content[..128 << 10].iter().all(|&b| b == 0), "plain zeros");
    assert!(content[256 << 10..320 << 10].iter().all(|&b| b == 0), "allocated zeros");
    assert!(content[128 << 10..256 << 10].iter().any(|&b| b != 0), "the base shows elsewhere");
}

#[test]
fn chains_of_mixed_cluster_sizes_on_a_raw_base() {
    needs_qemu!();
    let scratch = Scratch::new();
    write_raw(scratch.path("l0"), 3 << 20, &[(4096, &noise(1, 1 << 20))]);
    let sizes = [65536, 512, 2 << 20, 16384, 1 << 20, 4096];
    for (i, cluster) in sizes.into_iter().enumerate() {
        let image = scratch.path(format!("l{}", i + 1));
        let format = if i == 0 { "raw" } else { "qcow2" };
        let options =
            format!("cluster_size={cluster}{}", if i == 3 { ",extended_l2=on" } else { "" });
        qemu::overlay(&image, format!("l{i}"), format, &options, "3M");
        let compress = i % 2 == 1;
        Scribble { seed: i as u64, disk: 3 << 20, cluster, writes: 12, compress }.on(&image);
        reads_like_qemu(&image);
    }
}

#[test]
fn trap_105_107_shorter_and_longer_backing_files() {
    needs_qemu!();
    let scratch = Scratch::new();
    // Sizes from the template up, in sectors; every layer is full of its own bytes where it is written.
    for (i, sizes) in
        [[100, 300, 200], [300, 100, 200], [200, 37, 500], [129, 128, 127]].iter().enumerate()
    {
        for (depth, sectors) in sizes.iter().enumerate() {
            let image = scratch.path(format!("{i}-{depth}"));
            let size = (sectors * 512).to_string();
            if depth == 0 {
                qemu::create(&image, "cluster_size=4k", &size);
                qemu_io("qcow2", &image, &[format!("write -P 1 0 {size}")]);
            } else {
                qemu::overlay(
                    &image,
                    format!("{i}-{}", depth - 1),
                    "qcow2",
                    "cluster_size=2k",
                    &size,
                );
                qemu_io("qcow2", &image, &[format!("write -P {} 10k 5k", depth + 1)]);
            }
        }
        reads_like_qemu(&scratch.path(format!("{i}-2")));
    }
}

#[test]
fn trap_107_a_grown_overlay_does_not_show_the_rest_of_its_base() {
    needs_qemu!();
    let scratch = Scratch::new();
    write_raw(scratch.path("base"), 1 << 20, &[(0, &noise(3, 1 << 20))]);
    let image = scratch.path("top");
    qemu::overlay(&image, "base", "raw", "", "256k");
    qemu_img(&args!["resize", "-q", "-f", "qcow2", image, "768k"]);
    let content = reads_like_qemu(&image);
    assert!(content[256 << 10..].iter().all(|&b| b == 0));
}

#[test]
fn trap_106_raw_bases_of_odd_size() {
    needs_qemu!();
    let scratch = Scratch::new();
    for size in [0_usize, 1, 511, 513, 1000, 65535, 65537, 200_001] {
        scratch.file(format!("base{size}"), &noise(7, size));
        for overlay_size in ["", "256k"] {
            let image = scratch.path(format!("top{size}-{overlay_size}"));
            qemu::overlay(&image, format!("base{size}"), "raw", "cluster_size=4k", overlay_size);
            reads_like_qemu(&image);
        }
    }
}

#[test]
fn raw_files_of_odd_size_as_the_source() {
    needs_qemu!();
    let scratch = Scratch::new();
    for size in [0_usize, 1, 512, 1000, 65537] {
        let image = scratch.file(format!("disk{size}"), &noise(8, size));
        content_like_qemu("raw", &image, &["-f", "raw"]);
        content_like_qemu("raw", &image, &[]);
    }
}

#[test]
fn data_files_raw_and_not() {
    needs_qemu!();
    let scratch = Scratch::new();
    for raw in ["off", "on"] {
        let image = scratch.path(format!("{raw}.qcow2"));
        let data = scratch.path(format!("{raw}.data"));
        let options = format!("data_file={},data_file_raw={raw},cluster_size=4k", data.display());
        qemu_img(&args!["create", "-q", "-f", "qcow2", "-o", options, image, "300k"]);
        Scribble { seed: 4, disk: 300 << 10, cluster: 4096, writes: 30, compress: false }
            .on(&image);
        reads_like_qemu(&image);
        let top = scratch.path(format!("{raw}-top.qcow2"));
        qemu::overlay(&top, format!("{raw}.qcow2"), "qcow2", "", "");
        qemu_io("qcow2", &top, &["write -P 3 64k 64k"]);
        reads_like_qemu(&top);
    }
}

#[test]
fn snapshots_as_the_source_by_name_and_by_id() {
    needs_qemu!();
    for (compat, extended) in [("0.10", "off"), ("1.1", "off"), ("1.1", "on")] {
        let scratch = Scratch::new();
        let image = scratch.path("disk.qcow2");
        write_raw(scratch.path("base"), 1 << 20, &[(0, &noise(9, 1 << 20))]);
        let options = format!("compat={compat},extended_l2={extended},cluster_size=16k");
        qemu::overlay(&image, "base", "raw", &options, "");
        for (i, name) in ["first", "second state", "dritter Stand: ü"].into_iter().enumerate() {
            let scribble = Scribble {
                seed: i as u64,
                disk: 1 << 20,
                cluster: 16384,
                writes: 9,
                compress: i == 0,
            };
            scribble.on(&image);
            qemu_img(&args!["snapshot", "-c", name, image]);
        }
        qemu_io("qcow2", &image, &["write -P 1 0 1M"]);
        let named = snapshot_like_qemu(&image, "second state");
        assert_bytes!(named, snapshot_like_qemu(&image, "2"), "by id");
        snapshot_like_qemu(&image, "first");
        snapshot_like_qemu(&image, "dritter Stand: ü");
        reads_like_qemu(&image);
    }
}

#[test]
fn a_chain_of_200_layers() {
    needs_qemu!();
    let scratch = Scratch::new();
    let chain = chains::deep(scratch.dir(), 200);
    let content = reads_like_qemu(chain.top());
    assert_eq!(content[(199 * 37) % 64 * 512], 200, "the top layer's own sector");
}

#[test]
fn the_fixtures_chains_read_alike() {
    needs_qemu!();
    let scratch = Scratch::new();
    let chain = chains::template_with_overlays(scratch.dir(), 3);
    chain.layers.iter().for_each(|layer| drop(reads_like_qemu(layer)));
    reads_like_qemu(chains::orphan(scratch.dir()).top());
    let chain = fixtures::big::big_chain(&scratch.subdir("big"), 3, 6 << 20);
    reads_like_qemu(chain.top());
}

#[test]
fn trap_102_relative_names_resolve_beside_their_image_not_in_the_working_directory() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (there, here) = (scratch.subdir("volumes/a"), scratch.subdir("elsewhere"));
    scratch.subdir("volumes/b");
    write_raw(scratch.path("volumes/b/base"), 65536, &[(0, &[1; 65536])]);
    // What a resolver that starts in the working directory would find instead.
    scratch.subdir("b");
    write_raw(scratch.path("b/base"), 65536, &[(0, &[2; 65536])]);
    qemu::overlay(there.join("mid"), "../b/base", "raw", "", "");
    qemu::overlay(there.join("top"), "mid", "qcow2", "", "");
    let outcome =
        qcowtool_in(&here, args!["checksum", "--output", "json", "../volumes/a/top"]).json();
    assert_eq!(outcome["crc32"], fixtures::crc32_hex(&[1; 65536]));
    assert_eq!(outcome["virtual-size"], 65536);
    assert_eq!(outcome["filename"], "../volumes/a/top");
}
