//! `map`: what it says is what qemu-img says, byte for byte.

use std::path::Path;

use common::{qcowtool, small};
use fixtures::chains::{self, Scribble};
use fixtures::{Scratch, args, needs_qemu, pattern, qemu, qemu_img, qemu_io, try_qemu_img};
use serde_json::Value;

/// Asserts that the JSON is the same text, and so is the table as far as qemu-img gets: it gives
/// up at the first compressed cluster.
#[track_caller]
fn maps_like_qemu(format: &str, image: &Path, options: &[&str]) {
    let shown = image.display();
    let words = |output| {
        let fixed = args!["map", "-U", "-f", format, "--output", output];
        [fixed, options.iter().map(Into::into).collect(), args![image]].concat()
    };
    let ours = qcowtool(words("json")).ok();
    assert_eq!(ours, qemu_img(&words("json")), "{shown} {options:?}");

    let ours = qcowtool(words("human")).ok();
    match try_qemu_img(&words("human")) {
        Ok(theirs) => assert_eq!(ours, theirs, "{shown} {options:?}"),
        Err(_) => assert!(ours.contains("compressed"), "{shown} {options:?}: {ours}"),
    }
}

fn entries(image: &Path, options: &[&str]) -> Vec<Value> {
    let options = options.iter().map(Into::into).collect();
    let map = qcowtool([args!["map", "--output", "json"], options, args![image]].concat()).json();
    map.as_array().expect("a list").clone()
}

#[test]
fn every_cluster_size_with_compression_and_zeros() {
    needs_qemu!();
    let scratch = Scratch::new();
    for bits in [9, 12, 16, 21] {
        let (cluster, disk) = (1u64 << bits, (40u64 << bits).max(1 << 20));
        let image = scratch.path(format!("bits{bits}.qcow2"));
        qemu::create(&image, &format!("cluster_size={cluster}"), &disk.to_string());
        let writes = Scribble { seed: bits, disk, cluster, writes: 40, compress: true };
        writes.on(&image);
        maps_like_qemu("qcow2", &image, &[]);
    }
}

#[test]
fn trap_136_chains_tell_the_depth_and_zero_clusters_are_present() {
    needs_qemu!();
    let scratch = Scratch::new();
    let chain = chains::template_with_overlays(scratch.dir(), 4);
    maps_like_qemu("qcow2", chain.top(), &[]);
    let entries = entries(chain.top(), &[]);
    let some = |key: &str, value: Value| entries.iter().any(|entry| entry[key] == value);
    assert!(some("depth", 0.into()) && some("depth", 4.into()), "{entries:?}");
    assert!(entries.iter().any(|e| e["zero"] == true && e["present"] == true), "{entries:?}");
}

#[test]
fn random_chains_of_random_geometry_on_raw_and_shorter_bases() {
    needs_qemu!();
    for seed in 0..8 {
        let scratch = Scratch::new();
        let mut random = pattern::Random::new(seed);
        let piece = pattern::noise(seed, 70_000);
        pattern::write_raw(scratch.path("base.raw"), 700_000 + seed * 512, &[(90_112, &piece)]);
        let (mut below, mut format) = ("base.raw".to_owned(), "raw");
        for depth in 0..3 {
            let bits = 14 + random.below(4);
            let disk = (600 << 10) + random.below(1000) * 512;
            let extended = if random.below(2) == 0 { "on" } else { "off" };
            let image = scratch.path(format!("layer{depth}.qcow2"));
            let options = format!("cluster_size={},extended_l2={extended}", 1 << bits);
            qemu::overlay(&image, &below, format, &options, &disk.to_string());
            let (seed, cluster, writes) = (seed * 8 + depth, 1 << bits, 10);
            Scribble { seed, disk, cluster, writes, compress: extended == "off" }.on(&image);
            maps_like_qemu("qcow2", &image, &[]);
            (below, format) = (format!("layer{depth}.qcow2"), "qcow2");
        }
    }
}

#[test]
fn a_part_of_the_disk() {
    needs_qemu!();
    let scratch = Scratch::new();
    let chain = chains::template_with_overlays(scratch.dir(), 2);
    for options in [
        &["--start-offset", "64k"][..],
        &["-s", "5000", "-l", "70001"],
        &["--max-length", "1M"],
        &["--max-length", "0"],
        &["-s", "2M"],
        &["-s", "3M", "-l", "1G"],
    ] {
        maps_like_qemu("qcow2", chain.top(), options);
    }
    for wrong in ["-1", "8E", "1x"] {
        let run = qcowtool(args!["map", format!("--start-offset={wrong}"), chain.top()]);
        assert_eq!((run.code(), run.stdout()), (Some(1), String::new()), "{wrong}");
    }
}

#[test]
fn raw_files_with_holes_and_odd_sizes() {
    needs_qemu!();
    let scratch = Scratch::new();
    let piece = pattern::noise(1, 5000);
    for (name, size) in [("even", 1 << 20), ("odd", 100_001), ("empty", 0)] {
        let pieces: &[(u64, &[u8])] = if size > 0 { &[(0, &piece), (65_536, &piece)] } else { &[] };
        let image = scratch.path(name);
        pattern::write_raw(&image, size, pieces);
        maps_like_qemu("raw", &image, &[]);
    }
}

#[test]
fn metadata_preallocation_is_data_that_is_zero() {
    needs_qemu!();
    let scratch = Scratch::new();
    for options in ["preallocation=metadata", "preallocation=metadata,extended_l2=on"] {
        let image = scratch.path(format!("{options}.qcow2"));
        qemu::create(&image, options, "20M");
        qemu_io("qcow2", &image, &["write -P 5 1M 100k", "write -P 6 15M 2M"]);
        maps_like_qemu("qcow2", &image, &[]);
        // Without subclusters the clusters count as data, though the file has holes for them.
        let entries = entries(&image, &[]);
        let both = entries.iter().any(|e| e["zero"] == true && e["data"] == true);
        assert_eq!(both, !options.contains("extended_l2"), "{entries:?}");
    }
    let full = scratch.path("full.qcow2");
    qemu::create(&full, "preallocation=full", "4M");
    maps_like_qemu("qcow2", &full, &[]);
}

#[test]
fn external_data_files_are_named() {
    needs_qemu!();
    let scratch = Scratch::new();
    for raw in ["off", "on"] {
        let image = scratch.path(format!("raw-{raw}.qcow2"));
        let data = scratch.path(format!("raw-{raw}.data"));
        qemu::create(&image, &format!("data_file={},data_file_raw={raw}", data.display()), "1M");
        qemu_io("qcow2", &image, &["write -P 5 64k 100k", "write -z 512k 64k"]);
        maps_like_qemu("qcow2", &image, &[]);
        let table = qcowtool(args!["map", image]).ok();
        assert!(table.contains(&*data.to_string_lossy()), "{table}");
    }
}

#[test]
fn a_snapshot_maps_as_if_it_had_been_gone_back_to() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = scratch.path("disk.qcow2");
    qemu::create(&image, "", "4M");
    qemu_io("qcow2", &image, &["write -P 1 0 320k", "write -z 1M 64k"]);
    qemu_img(&args!["snapshot", "-c", "before", image]);
    qemu_io("qcow2", &image, &["write -P 2 64k 2M"]);
    let words = args!["map", "--output", "json", "--snapshot", "before", image];
    let ours = qcowtool(words).ok();
    qemu_img(&args!["snapshot", "-a", "before", image]);
    assert_eq!(ours, qemu_img(&args!["map", "--output", "json", image]));
}

#[test]
fn compressed_data_is_listed_where_qemu_img_gives_up() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = scratch.path("disk.qcow2");
    qemu::create(&image, "", "1M");
    qemu_io("qcow2", &image, &["write -c -P 1 64k 128k", "write -P 2 512k 64k"]);
    let table = qcowtool(args!["map", image]).ok();
    let rows: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(rows[1][..3], ["0x10000", "0x20000", "compressed"], "{table}");
    assert_eq!(rows[2][..2], ["0x80000", "0x10000"], "{table}");
}

#[test]
fn an_entry_that_cannot_be_read_ends_the_list_with_an_error() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut patch = small(&scratch, "");
    let entry = patch.l2_entry(0x4000);
    patch.set_l2_entry(0x4000, entry + 512).save();
    let run = qcowtool(args!["map", patch.path]);
    assert_eq!(run.code(), Some(1));
    assert!(run.stderr().contains("L2 table, entry 4"), "{}", run.stderr());
    assert!(!entries(&patch.path, &["--max-length", "16k"]).is_empty(), "the part before it");
}

#[test]
fn a_picture_names_the_layers_and_what_they_hold() {
    needs_qemu!();
    let scratch = Scratch::new();
    qemu::create(scratch.path("a<&b.qcow2"), "", "8M");
    qemu_io("qcow2", scratch.path("a<&b.qcow2"), &["write -P 1 0 3M", "write -c -P 1 4M 64k"]);
    let top = scratch.path("top.qcow2");
    qemu::overlay(&top, "a<&b.qcow2", "qcow2", "", "");
    qemu_io("qcow2", &top, &["write -P 1 1M 1M", "write -z 6M 1M"]);
    let svg = scratch.path("map.svg");
    assert_eq!(qcowtool(args!["map", "--picture", svg, top]).ok(), "");
    let drawn = std::fs::read_to_string(&svg).unwrap();
    for words in ["top.qcow2, 8 MiB", "layer 1: a&lt;&amp;b.qcow2", "1 MiB data, 1 MiB zeros"] {
        assert!(drawn.contains(words), "{words}: {drawn}");
    }
    assert!(drawn.contains("2 MiB data, 64 KiB compressed"), "{drawn}");
}

#[test]
fn a_picture_shortens_the_middle_of_long_names() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = scratch.path(format!("first-{}-last.qcow2", "x".repeat(200)));
    qemu::create(&image, "", "8M");
    let svg = scratch.path("map.svg");
    qcowtool(args!["map", "--picture", svg, image]).ok();
    let drawn = std::fs::read_to_string(&svg).unwrap();
    let lines = || drawn.lines().map(str::trim);
    assert!(!drawn.contains(&"x".repeat(200)), "{drawn}");
    assert!(
        lines().any(|line| line.starts_with("first-x") && line.ends_with("x-last.qcow2, 8 MiB"))
    );
    assert!(
        lines().any(|line| line.starts_with("layer 0: first-x") && line.ends_with("-last.qcow2"))
    );
}

#[test]
fn a_picture_is_png_by_name_and_replaces_nothing_unasked() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = scratch.path("disk.qcow2");
    qemu::create(&image, "", "64T");
    let png = scratch.path("map.PNG");
    qcowtool(args!["map", "--picture", png, image]).ok();
    let bytes = std::fs::read(&png).unwrap();
    assert_eq!(bytes[..8], *b"\x89PNG\r\n\x1a\n");
    qcowtool(args!["map", "--picture", png, image]).refused_naming(&["exists", "--force"]);
    qcowtool(args!["map", "--picture", png, "--force", image]).ok();
    assert_eq!(std::fs::read(&png).unwrap(), bytes, "the same map, the same picture");
    qcowtool(args!["map", "--picture", scratch.path("map.gif"), image]).refused_naming(&[".svg"]);
    assert_eq!(scratch.names(), ["disk.qcow2", "map.PNG"]);
}
