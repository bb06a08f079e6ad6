//! `create`: where it writes, what it never replaces, and targets like another image.

use std::fs;

use common::qcowtool;
use fixtures::{Scratch, args, assert_bytes, chains, needs_qemu, qemu, qemu_img, qemu_io};
use serde_json::Value;

#[test]
fn an_existing_file_is_never_replaced_unless_forced() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = scratch.file("precious", b"precious");
    let create = |force: &[&str]| {
        let mut arguments = args!["create", "-f", "qcow2", image, "1M"];
        arguments.extend(force.iter().map(Into::into));
        qcowtool(arguments)
    };
    create(&[]).refused_naming(&["precious", "--force"]);
    assert_bytes!(fs::read(&image).unwrap(), b"precious");
    create(&["--force"]).ok();
    qemu::assert_clean(&image);
    assert_eq!(qemu::info(&image)["virtual-size"], 1 << 20);
    assert_eq!(scratch.names(), ["precious"], "nothing else is left");
}

#[test]
fn a_forced_create_that_is_refused_leaves_the_old_file() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = scratch.file("precious", b"precious");
    for options in
        ["cluster_size=3", "extended_l2=on,cluster_size=4k", "compat=0.10,refcount_bits=1"]
    {
        qcowtool(args!["create", "-f", "qcow2", "--force", "-o", options, image, "1M"]).refused();
    }
    qcowtool(args!["create", "-f", "qcow2", "--force", "-b", "nowhere", "-F", "raw", image])
        .refused();
    assert_bytes!(fs::read(&image).unwrap(), b"precious");
    assert_eq!(scratch.names(), ["precious"]);
}

#[test]
fn a_forced_create_is_atomic_for_whoever_has_the_old_file_open() {
    use std::io::Read;
    needs_qemu!();
    let scratch = Scratch::new();
    let image = scratch.file("precious", b"precious");
    let mut open = fs::File::open(&image).unwrap();
    qcowtool(args!["create", "-f", "qcow2", "--force", image, "1M"]).ok();
    let mut bytes = Vec::new();
    open.read_to_end(&mut bytes).unwrap();
    assert_bytes!(bytes, b"precious", "renamed over, not written into");
}

#[test]
fn a_dangling_link_or_a_directory_is_not_a_place_for_an_image() {
    let scratch = Scratch::new();
    std::os::unix::fs::symlink("nowhere", scratch.path("link")).unwrap();
    scratch.subdir("dir");
    for name in ["link", "dir", "missing/parent"] {
        qcowtool(args!["create", "-f", "qcow2", scratch.path(name), "1M"]).refused();
    }
    assert_eq!(scratch.names(), ["dir", "link"]);
}

#[test]
fn an_existing_data_file_is_never_emptied_unless_forced() {
    let scratch = Scratch::new();
    let data = scratch.file("precious.data", &[7; 4096]);
    let options = format!("data_file={}", data.display());
    let image = scratch.path("disk.qcow2");
    qcowtool(args!["create", "-f", "qcow2", "-o", options, image, "1M"])
        .refused_naming(&["precious.data"]);
    assert_bytes!(fs::read(data).unwrap(), [7; 4096]);
    assert_eq!(scratch.names(), ["precious.data"]);
}

/// The keys of `qemu-img info` that an empty target takes over from its model.
fn geometry(image: &std::path::Path) -> Value {
    let info = qemu::info(image);
    let keys = ["virtual-size", "cluster-size", "format", "format-specific"];
    keys.iter().map(|&key| (key.to_owned(), info[key].clone())).collect()
}

#[test]
fn like_takes_size_and_geometry_and_nothing_else() {
    needs_qemu!();
    for options in [
        "",
        "cluster_size=4k",
        "cluster_size=2M",
        "compat=0.10",
        "extended_l2=on",
        "refcount_bits=1",
        "refcount_bits=64",
        "compression_type=zstd",
        "lazy_refcounts=on",
        "compat=0.10,cluster_size=512",
    ] {
        let scratch = Scratch::new();
        let base = scratch.path("base");
        qemu::create(&base, "", "5M");
        let (model, target) = (scratch.path("model"), scratch.path("target"));
        qemu::overlay(&model, "base", "qcow2", options, "7000064");
        qemu_io("qcow2", &model, &["write -P 1 0 1M"]);
        // The chain below need not be there.
        fs::remove_file(base).unwrap();
        qcowtool(args!["create", "--like", model, target]).ok();
        qemu::assert_clean(&target);
        assert_eq!(geometry(&target), geometry(&model), "{options}");
        assert_eq!(qemu::info(&target)["backing-filename"], Value::Null);
        assert!(qemu::raw_of("qcow2", &target).iter().all(|&b| b == 0));
    }
}

#[test]
fn like_a_raw_image_an_image_with_snapshots_or_one_with_a_data_file() {
    needs_qemu!();
    let scratch = Scratch::new();
    let target = scratch.path("target");
    let raw = scratch.file("model.raw", &[1; 10_000]);
    qcowtool(args!["create", "--like", raw, target]).ok();
    // The size as qemu-img sees it: whole sectors.
    assert_eq!(qemu::info(&target)["virtual-size"], 10_240);
    fs::remove_file(&target).unwrap();

    let model = scratch.path("model.qcow2");
    qemu::create(&model, "cluster_size=4k", "1M");
    qemu_img(&args!["snapshot", "-c", "kept", model]);
    qemu_img(&args!["bitmap", "--add", model, "b"]);
    qcowtool(args!["create", "--like", model, target]).ok();
    let info = qemu::info(&target);
    assert_eq!(info["snapshots"], Value::Null);
    assert_eq!(info["format-specific"]["data"]["bitmaps"], Value::Null);
    fs::remove_file(&target).unwrap();

    let model = scratch.path("external.qcow2");
    let options = format!("data_file={}", scratch.path("disk.data").display());
    qemu::create(&model, &options, "1M");
    qcowtool(args!["create", "--like", model, target]).ok();
    let info = qemu::info(&target);
    assert_eq!(info["format-specific"]["data"]["data-file"], Value::Null);
    assert_eq!(info["virtual-size"], 1 << 20);
}

#[test]
fn the_orphans_target_is_made_though_the_template_is_gone() {
    needs_qemu!();
    let scratch = Scratch::new();
    let orphan = chains::orphan(scratch.dir());
    fs::remove_file(orphan.template()).unwrap();
    let target = scratch.path("target.qcow2");
    let outcome = qcowtool(args!["create", "--output", "json", "--like", orphan.top(), target]);
    assert!(outcome.json().is_object());
    assert_eq!(geometry(&target), geometry(orphan.top()));
}

#[test]
fn like_refuses_what_contradicts_it_and_what_is_no_image() {
    let scratch = Scratch::new();
    let target = scratch.path("target");
    qcowtool(args!["create", "--like", scratch.path("nowhere"), target]).refused();
    let vdi =
        scratch.file("model.vdi", &[&[0; 64][..], &[0x7f, 0x10, 0xda, 0xbe], &[0; 444]].concat());
    qcowtool(args!["create", "--like", vdi, target]).refused_naming(&["vdi"]);
    assert_eq!(scratch.names(), ["model.vdi"]);
}
