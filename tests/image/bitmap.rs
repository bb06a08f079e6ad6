//! `bitmap`: the same as `qemu-img bitmap` does, and what QEMU makes of it afterwards.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{qcowtool, same_json};
use fixtures::pattern::Random;
use fixtures::{Holder, Scratch, args, needs_qemu, qemu, qemu_img, try_qemu_img};
use serde_json::Value;

/// The bitmaps as `qemu-img info` shows them.
pub(crate) fn bitmaps(image: &Path) -> Value {
    let info = qemu::info(image);
    info["format-specific"]["data"]["bitmaps"].clone()
}

/// Where the bitmap is dirty, as qemu-nbd tells a client: `qemu-img map` of it. A copy is looked at, in which it
/// does not record.
pub(crate) fn dirty_by_qemu(image: &Path, name: &str, scratch: &Scratch) -> Value {
    let (copy, socket) = (scratch.path("shown.qcow2"), scratch.path("socket"));
    fs::copy(image, &copy).unwrap();
    let _ = fs::remove_file(&socket);
    qemu_img(&args!["bitmap", "--disable", copy, name]);
    let mut server = Command::new("qemu-nbd");
    server.args(args!["-r", "-t", "-f", "qcow2", "-B", name, "-k", socket, copy]);
    let mut server = server.spawn().unwrap();
    for _ in 0..500 {
        if socket.exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let options = format!(
        "driver=nbd,server.type=unix,server.path={},x-dirty-bitmap=qemu:dirty-bitmap:{name}",
        socket.display()
    );
    let map = try_qemu_img(&args!["map", "--output", "json", "--image-opts", options]);
    server.kill().unwrap();
    server.wait().unwrap();
    serde_json::from_str(&map.unwrap()).unwrap()
}

#[test]
fn a_bitmap_that_was_added_is_kept_by_qemu_and_used_for_an_incremental_backup() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = scratch.path("vm.qcow2");
    qemu::create(&image, "", "10M");
    let text = qcowtool(args!["bitmap", "--add", "-g", "128k", image, "monday"]).ok();
    assert!(text.contains("monday  granularity 131072, enabled"), "{text}");
    qemu::qemu_io("qcow2", &image, &["write -P 7 1M 100", "write -P 8 5M 1M"]);
    qemu::assert_clean(&image);
    // The next bitmap begins, and the first ends.
    qcowtool(args!["bitmap", "--add", image, "tuesday"]).ok();
    qcowtool(args!["bitmap", "-q", "--disable", image, "monday"]).ok();
    qemu::qemu_io("qcow2", &image, &["write -P 9 9M 100"]);
    let map = dirty_by_qemu(&image, "monday", &scratch);
    let dirty = |map: &Value| -> Vec<(u64, u64)> {
        let ranges = map.as_array().unwrap().iter().filter(|range| range["data"] == false);
        ranges.map(|r| (r["start"].as_u64().unwrap(), r["length"].as_u64().unwrap())).collect()
    };
    assert_eq!(dirty(&map), [(1 << 20, 128 << 10), (5 << 20, 1 << 20)]);
    assert_eq!(dirty(&dirty_by_qemu(&image, "tuesday", &scratch)), [(9 << 20, 64 << 10)]);
    let merge = args!["bitmap", "--add", "--disable", "--merge", "monday", "--merge", "tuesday"];
    qcowtool([merge, args![image, "both"]].concat()).ok();
    let both = dirty_by_qemu(&image, "both", &scratch);
    assert_eq!(dirty(&both), [(1 << 20, 128 << 10), (5 << 20, 1 << 20), (9 << 20, 64 << 10)]);
    let listed = qcowtool(args!["bitmap", image]).ok();
    assert_eq!(
        listed,
        "monday  granularity 131072, disabled\n\
         tuesday  granularity 65536, enabled\n\
         both  granularity 65536, disabled\n"
    );
    // Its own image is not another one.
    let again = args!["bitmap", "--merge", "monday", "-b", image, image, "both"];
    qcowtool(again).ok();
    let text = qcowtool(args!["bitmap", image, "both"]).ok();
    assert_eq!(text, "1048576 131072\n5242880 1048576\n9437184 65536\n");
    let json = qcowtool(args!["bitmap", "--output", "json", image, "tuesday"]).json();
    assert_eq!(json, serde_json::json!([{ "start": 9437184, "length": 65536 }]));
    let json = qcowtool(args!["bitmap", "--output", "json", image]).json();
    same_json(&json, &bitmaps(&image), "the list");
    for name in ["monday", "tuesday", "both"] {
        qcowtool(args!["bitmap", "--remove", image, name]).ok();
        qemu::assert_clean(&image);
    }
    assert_eq!(bitmaps(&image), Value::Null);
}

#[test]
fn a_plan_writes_nothing_and_what_is_in_use_or_not_understood_is_refused() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = scratch.path("vm.qcow2");
    qemu::create(&image, "", "10M");
    let before = fs::read(&image).unwrap();
    let plan = qcowtool(args!["bitmap", "--dry-run", "--add", image, "b"]).ok();
    assert!(plan.starts_with("The image would have these bitmaps:\nb  "), "{plan}");
    for (arguments, words) in [
        (args!["--add", image], "the name of the bitmap is missing"),
        (args![image, "b"], "no bitmap named 'b'"),
        (args!["-U", "--add", image, "b"], "-U is for listing"),
        (args!["--remove", image, "b"], "no bitmap named 'b'"),
        (args!["--add", "--remove", "--clear", image, "b"], "no bitmap named 'b'"),
        (args!["--add", "-g", "5000", image, "b"], "power of two"),
        (args!["--add", "-f", "raw", image, "b"], "raw images have no bitmaps"),
        (args!["--add", "--merge", "x", "-b", scratch.path("gone"), image, "b"], "gone"),
    ] {
        qcowtool([args!["bitmap"], arguments].concat()).refused_naming(&[words]);
    }
    for wrong in [args!["-g", "64k", image, "b"], args!["--add", "-b", "x", image, "b"]] {
        assert!(!qcowtool([args!["bitmap"], wrong].concat()).succeeded());
    }
    assert!(fs::read(&image).unwrap() == before);
    let holder = Holder::new(&["-f", "qcow2"], &image);
    qcowtool(args!["bitmap", "--add", image, "b"]).refused_naming(&["stop the process"]);
    assert_eq!(qcowtool(args!["bitmap", "-U", image]).ok(), "");
    drop(holder);
    let old = scratch.path("old.qcow2");
    qemu::create(&old, "compat=0.10", "1M");
    qcowtool(args!["bitmap", "--add", old, "b"]).refused_naming(&["version 2", "version to 3"]);
    // What is advised works.
    qcowtool(args!["amend", "-o", "compat=1.1", old]).ok();
    qcowtool(args!["bitmap", "--add", old, "b"]).ok();
    let huge = scratch.path("huge.qcow2");
    qemu::create(&huge, "", "8T");
    let add = |size: &str| qcowtool(args!["bitmap", "--add", "-g", size, huge, "b"]);
    add("512").refused_naming(&["use a coarser granularity"]);
    add("64k").ok();
}

/// The same commands for qemu-img and for us, each on an image of its own that began as the same.
#[test]
fn a_row_of_commands_leaves_what_qemu_img_leaves() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (ours, theirs) = (scratch.path("ours.qcow2"), scratch.path("theirs.qcow2"));
    let other = scratch.path("other.qcow2");
    let names = ["a", "b", "c"];
    for (seed, options) in [
        (1, "cluster_size=64k"),
        (2, "cluster_size=512,refcount_bits=64"),
        (3, "cluster_size=4k,refcount_bits=1"),
    ] {
        let mut random = Random::new(seed);
        let mut pick = |count: usize| random.below(count as u64) as usize;
        qemu::create(&ours, options, "3000k");
        qemu::qemu_io("qcow2", &ours, &["write -P 1 0 200k"]);
        fs::copy(&ours, &theirs).unwrap();
        qemu::create(&other, "", "3000k");
        qemu_img(&args!["bitmap", "--add", "-g", "4k", other, "a"]);
        qemu::qemu_io("qcow2", &other, &["write 500k 9k", "write 2M 1k"]);
        for step in 0..28 {
            let name = names[pick(3)];
            let mut actions: Vec<OsString> = Vec::new();
            match pick(9) {
                0..=2 => {
                    let granularity = ["512", "4k", "32k", "1M"][pick(4)];
                    actions.extend(args!["--add", "-g", granularity]);
                    if pick(2) == 0 {
                        actions.push("--disable".into());
                    }
                }
                3 => actions.extend(args!["--remove"]),
                4 => actions.extend(args!["--clear"]),
                5 => actions.extend(args!["--enable"]),
                6 => actions.extend(args!["--disable"]),
                7 => actions.extend(args!["--merge", names[pick(3)]]),
                _ => actions.extend(args!["--merge", "a", "-b", other, "-F", "qcow2"]),
            }
            let run =
                |image: &Path| [args!["bitmap"], actions.clone(), args![image, name]].concat();
            let what = format!("seed {seed}, step {step}: {actions:?} {name}");
            let before = fs::read(&ours).unwrap();
            let expected = try_qemu_img(&run(&theirs));
            let done = qcowtool(run(&ours));
            assert_eq!(done.succeeded(), expected.is_ok(), "{what}: {}", done.stderr());
            if expected.is_err() {
                assert!(fs::read(&ours).unwrap() == before, "{what}: changed");
            }
            same_json(&bitmaps(&ours), &bitmaps(&theirs), &what);
            if step % 4 == 0 {
                let at = pick(2900);
                let write = format!("write -P 5 {at}k 70k");
                [&ours, &theirs].iter().for_each(|image| qemu::qemu_io("qcow2", image, &[&write]));
            }
            qemu::assert_clean(&ours);
            qcowtool(args!["check", "-q", ours]).ok();
        }
        for bitmap in bitmaps(&ours).as_array().into_iter().flatten() {
            let name = bitmap["name"].as_str().unwrap();
            let shown = [&ours, &theirs].map(|image| dirty_by_qemu(image, name, &scratch));
            assert_eq!(shown[0], shown[1], "seed {seed}: {name}");
        }
        assert!(qemu::raw_of("qcow2", &ours) == qemu::raw_of("qcow2", &theirs), "seed {seed}");
    }
}

#[test]
fn what_a_bitmap_of_an_image_with_a_data_file_has_as_dirty_is_listed() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = scratch.path("vm.qcow2");
    qemu::create(&image, &format!("data_file={}", scratch.path("data").display()), "1M");
    qemu_img(&args!["bitmap", "--add", image, "b"]);
    qemu::qemu_io("qcow2", &image, &["write 64k 64k"]);
    assert_eq!(qcowtool(args!["bitmap", image, "b"]).ok(), "65536 65536\n");
}
