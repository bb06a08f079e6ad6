//! `flatten --salvage`: what can be read is in the new image, what cannot is zeros and is listed.

use std::fs::{self, File};
use std::path::Path;

use common::{Run, qcowtool};
use fixtures::{
    Loop, Patch, Scratch, args, assert_bytes, needs_qemu, pattern::noise, qemu, qemu_img, qemu_io,
};
use serde_json::Value;

/// The exit code that says that something was lost.
const SALVAGED: Option<i32> = Some(7);
const CLUSTER: usize = 4 << 10;

fn salvage(format: &str, threads: usize, source: &Path, target: &Path) -> Run {
    let threads = threads.to_string();
    qcowtool(args![
        "flatten",
        "--salvage",
        "--output",
        "json",
        "-O",
        format,
        "--threads",
        threads,
        source,
        target
    ])
}

/// Salvages `source` in all ways, and asserts that each time the result is `expected` and the ranges in
/// `lost` (start and length) are listed. Returns the list.
#[track_caller]
fn salvaged(source: &Path, expected: &[u8], lost: &[(u64, u64)]) -> Vec<Value> {
    let scratch = Scratch::new();
    let before = fs::read(source).ok().filter(|bytes| !bytes.is_empty());
    let (mut images, mut lists) = (Vec::new(), Vec::new());
    for format in ["qcow2", "raw"] {
        for threads in [1, 5] {
            let target = scratch.path(format!("{format}-{threads}"));
            let run = salvage(format, threads, source, &target);
            let code = if lost.is_empty() { Some(0) } else { SALVAGED };
            assert_eq!(run.code(), code, "{}{}", run.stdout(), run.stderr());
            let outcome: Value = serde_json::from_str(&run.stdout()).unwrap();
            assert_bytes!(qemu::raw_of(format, &target), expected);
            let damage = &outcome["damage"];
            let listed: Vec<_> = damage["ranges"].as_array().unwrap().clone();
            let number = |range: &Value, key: &str| range[key].as_u64().unwrap();
            let ranges: Vec<_> = listed
                .iter()
                .map(|range| (number(range, "guest-offset"), number(range, "length")))
                .collect();
            assert_eq!(ranges, lost, "{outcome}");
            let bytes: u64 = lost.iter().map(|(_, length)| length).sum();
            assert_eq!((number(damage, "bytes"), number(damage, "ranges-left-out")), (bytes, 0));
            images.push(fs::read(&target).unwrap());
            lists.push(listed);
        }
    }
    assert!(images[0] == images[1] && images[2] == images[3], "threads decide about bytes");
    assert!(lists.iter().all(|list| *list == lists[0]), "one list, however it is made");
    if let Some(before) = before {
        assert!(fs::read(source).unwrap() == before, "the source is not written to");
    }
    lists.remove(0)
}

/// An image of 16 MiB with 4 KiB clusters and data all over its first 6 MiB, so that it has three L2
/// tables in use; and its content.
fn image(scratch: &Scratch) -> (Patch, Vec<u8>) {
    let path = scratch.path("image");
    let mut content = noise(5, 6 << 20);
    content.resize(16 << 20, 0);
    let raw = scratch.file("content", &content);
    qemu_img(&args!["convert", "-O", "qcow2", "-o", "cluster_size=4k", raw, path]);
    (Patch::open(path), content)
}

fn blank(content: &mut [u8], from: usize, len: usize) {
    content[from..from + len].fill(0);
}

#[test]
fn a_damaged_entry_costs_its_cluster_and_a_damaged_table_what_it_maps() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (mut image, mut content) = image(&scratch);
    let entry = image.l2_entry(0x5000);
    // Neighbours are one range.
    image.set_l2_entry(0x5000, entry + 0x200).set_l2_entry(0x6000, entry + 0x400);
    let entry = image.l2_entry(0x9000);
    image.set_l2_entry(0x9000, entry | 1 << 9);
    let table = image.l1_entry_at(2 << 20);
    image.or_u64(table, 0x200).save();
    blank(&mut content, 0x5000, 0x2000);
    blank(&mut content, 0x9000, 0x1000);
    blank(&mut content, 2 << 20, 2 << 20);
    // Without --salvage nothing is written, and the error leads to it where repair refuses.
    let target = scratch.path("target");
    qcowtool(args!["flatten", image.path, target]).refused_naming(&["flatten --salvage"]);
    let list =
        salvaged(&image.path, &content, &[(0x5000, 0x2000), (0x9000, 0x1000), (2 << 20, 2 << 20)]);
    assert_eq!(list[0]["structure"], "L2 table");
    assert_eq!(list[2]["structure"], "L1 table");
    assert!(
        list[0]["reason"].as_str().unwrap().contains("a multiple of the cluster size"),
        "{list:?}"
    );
    assert_eq!(list[0]["filename"], image.path.to_str().unwrap());
    // As text it is said too, and what was there before is replaced as ever.
    let run = qcowtool(args!["flatten", "--salvage", image.path, target]);
    assert_eq!(run.code(), SALVAGED);
    assert!(run.stdout().contains("unreadable: 8192 bytes at guest offset 0x5000"));
    assert!(run.stderr().contains("2109440 bytes could not be read"), "{}", run.stderr());
    let again = qcowtool(args!["flatten", "--salvage", image.path, target]);
    again.refused_naming(&["exists"]);
    assert_eq!(
        qcowtool(args!["flatten", "--salvage", "--force", image.path, target]).code(),
        SALVAGED
    );
    qemu::assert_clean(&target);
}

#[test]
fn what_is_damaged_in_one_layer_does_not_show_what_lies_below() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (base, mut content) = image(&scratch);
    let mut base = Patch::open(&base.path);
    let top = scratch.path("top");
    qemu::overlay(&top, "image", "qcow2", "cluster_size=4k", "");
    qemu_io("qcow2", &top, &["write -P 7 0 64k"]);
    content[..64 << 10].fill(7);
    // Damage in the base behind the top's data does not matter.
    let entry = base.l2_entry(0x8000);
    base.set_l2_entry(0x8000, entry + 0x200);
    let entry = base.l2_entry(1 << 20);
    base.set_l2_entry(1 << 20, entry + 0x200).save();
    let mut top = Patch::open(&top);
    let entry = top.l2_entry(0x4000);
    top.set_l2_entry(0x4000, entry + 0x200).save();
    blank(&mut content, 0x4000, CLUSTER);
    blank(&mut content, 1 << 20, CLUSTER);
    let list =
        salvaged(&top.path, &content, &[(0x4000, CLUSTER as u64), (1 << 20, CLUSTER as u64)]);
    assert_eq!((&list[0]["depth"], &list[1]["depth"]), (&0.into(), &1.into()));
}

#[test]
fn damaged_compressed_clusters_are_lost_one_by_one() {
    needs_qemu!();
    let scratch = Scratch::new();
    let path = scratch.path("image");
    // Compresses, and no two clusters are the same.
    let content: Vec<u8> = (0..2 << 20).map(|at: u32| (at / 96 % 251) as u8).collect();
    let raw = scratch.file("content", &content);
    for kind in ["zlib", "zstd"] {
        let options = format!("cluster_size=4k,compression_type={kind}");
        qemu_img(&args!["convert", "-c", "-O", "qcow2", "-o", options, raw, path]);
        let mut image = Patch::open(&path);
        let host = |image: &Patch, guest| (image.l2_entry(guest) & ((1 << 58) - 1)) as usize;
        let at = host(&image, 0x5000);
        image.set(at, &[0xff; 8]);
        let far = image.compressed_entry(1 << 30, 0);
        image.set_l2_entry(0x9000, far).save();
        let mut content = content.clone();
        blank(&mut content, 0x5000, CLUSTER);
        blank(&mut content, 0x9000, CLUSTER);
        let list = salvaged(&path, &content, &[(0x5000, 4096), (0x9000, 4096)]);
        assert_eq!(list[0]["structure"], "compressed cluster");
    }
    // Nothing is wrong: nothing is listed, and the code is 0.
    qemu_img(&args!["convert", "-c", "-O", "qcow2", "-o", "cluster_size=4k", raw, path]);
    salvaged(&path, &content, &[]);
}

#[test]
fn data_behind_the_end_of_a_file_that_was_cut_short_is_said_to_be_lost() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (image, mut content) = image(&scratch);
    let last = image.l2_entry((6 << 20) - 0x1000) & fixtures::patch::OFFSET_MASK;
    // qemu-img lays data out in order: all from here on is cut off, but for a part of the first cluster.
    File::options().write(true).open(&image.path).unwrap().set_len(last - 0x3000 + 100).unwrap();
    let from = (6 << 20) - 0x4000;
    content[from + 100..].fill(0);
    let list = salvaged(&image.path, &content, &[(from as u64 + 0x1000, 0x3000)]);
    assert!(list[0]["reason"].as_str().unwrap().contains("past the end"), "{list:?}");
}

#[test]
fn tables_behind_the_end_of_a_file_that_was_cut_short_do_not_show_what_lies_below() {
    needs_qemu!();
    let scratch = Scratch::new();
    let base = scratch.path("base");
    qemu::create(&base, "cluster_size=4k", "8M");
    qemu_io("qcow2", &base, &["write -P 3 0 8M"]);
    let top = scratch.path("top");
    qemu::overlay(&top, "base", "qcow2", "cluster_size=4k", "");
    qemu_io("qcow2", &top, &["write -P 7 1M 64k", "write -P 7 6M 4k"]);
    let mut content = vec![3; 8 << 20];
    content[1 << 20..(1 << 20) + (64 << 10)].fill(7);
    let cut = |len: u64| File::options().write(true).open(&top).unwrap().set_len(len).unwrap();
    let image = Patch::open(&top);
    let table = image.u64(image.l1_entry_at(6 << 20)) & fixtures::patch::OFFSET_MASK;
    // Three entries of the last table are there, and say "not allocated".
    cut(table + 24);
    let lost = (6 << 20) + (3 * CLUSTER);
    content[6 << 20..lost].fill(3);
    content[lost..8 << 20].fill(0);
    let mut image = Patch::open(&top);
    image.set(table as usize, &[0; 24]).save();
    let list = salvaged(&top, &content, &[(lost as u64, (8 << 20) - lost as u64)]);
    assert_eq!(list[0]["structure"], "L2 table");
    // A larger L1 table is written behind all else; here two of its entries are left.
    qemu::overlay(&top, "base", "qcow2", "cluster_size=4k", "");
    qemu_io("qcow2", &top, &["write -P 7 1M 64k"]);
    qemu_img(&args!["resize", "-q", top, "16M"]);
    let l1 = Patch::open(&top).u64(fixtures::patch::field::L1_OFFSET);
    cut(l1 + 16);
    let mut content = vec![3; 16 << 20];
    content[1 << 20..(1 << 20) + (64 << 10)].fill(7);
    content[4 << 20..].fill(0);
    let list = salvaged(&top, &content, &[(4 << 20, 12 << 20)]);
    assert_eq!(list[0]["structure"], "L1 table");
}

#[test]
fn sectors_that_cannot_be_read_cost_a_page_each_and_not_the_rest() {
    needs_qemu!();
    let scratch = Scratch::new();
    // A loop device whose file has been cut short answers EIO for what is gone, each time.
    let (image, mut content) = image(&scratch);
    let volume = scratch.path("volume");
    fs::copy(&image.path, &volume).unwrap();
    let len = fs::metadata(&volume).unwrap().len().next_multiple_of(4096);
    let file = File::options().write(true).open(&volume).unwrap();
    file.set_len(len).unwrap();
    let Some(device) = Loop::over(&volume) else { return };
    let last = image.l2_entry((6 << 20) - 0x1000) & fixtures::patch::OFFSET_MASK;
    file.set_len(last - 0x3000).unwrap();
    let from = (6 << 20) - 0x4000;
    content[from..].fill(0);
    let target = scratch.path("target");
    qcowtool(args!["flatten", "-f", "qcow2", device.0, target])
        .refused_naming(&["could not read", "--salvage"]);
    assert!(!target.exists());
    let list = salvaged(&device.0, &content, &[(from as u64, 0x4000)]);
    assert_eq!(list[0]["structure"], "data cluster");
    assert!(list[0]["reason"].as_str().unwrap().contains("Input/output error"), "{list:?}");
}

#[test]
fn the_list_ends_where_it_would_be_too_long_and_the_rest_is_counted() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (mut image, _) = image(&scratch);
    for guest in (0..6 << 20).step_by(2 * CLUSTER) {
        // The second table's are compressed clusters that are none, found by the workers.
        let table = guest >> 21;
        let entry = image.l2_entry(guest);
        let far = image.compressed_entry(1 << 30, 0);
        image.set_l2_entry(guest, if table == 1 { far } else { entry + 0x200 });
    }
    image.save();
    let (mut lists, target) = (Vec::new(), scratch.path("target"));
    for threads in [1, 4] {
        let run = salvage("raw", threads, &image.path, &target);
        let outcome: Value = serde_json::from_str(&run.stdout()).unwrap();
        let damage = outcome["damage"].clone();
        assert_eq!(damage["bytes"], 3 << 20);
        assert_eq!(damage["ranges"].as_array().unwrap().len(), 768);
        lists.push(damage);
        fs::remove_file(&target).unwrap();
    }
    assert_eq!(lists[0], lists[1]);
    // Smaller clusters, more ranges: only the first thousand are listed.
    let path = scratch.path("small");
    qemu::create(&path, "cluster_size=512", "4M");
    qemu_io("qcow2", &path, &["write -P 1 0 2M"]);
    let mut image = Patch::open(&path);
    for guest in (0..2 << 20).step_by(1024) {
        let entry = image.l2_entry(guest);
        // Not aligned to clusters cannot be said in clusters of a sector; these are compressed, and bad.
        let far = image.compressed_entry(1 << 30, 0);
        image.set_l2_entry(guest, if entry == 0 { 0 } else { far });
    }
    image.save();
    let run = qcowtool(args!["flatten", "--salvage", "--output", "json", path, target]);
    let outcome: Value = serde_json::from_str(&run.stdout()).unwrap();
    let damage = &outcome["damage"];
    assert_eq!(damage["ranges"].as_array().unwrap().len(), 1000);
    assert_eq!((&damage["ranges-left-out"], &damage["bytes"]), (&1048.into(), &(1 << 20).into()));
    fs::remove_file(&target).unwrap();
    let run = qcowtool(args!["flatten", "--salvage", path, target]);
    assert!(run.stdout().ends_with("unreadable: 1048 more ranges\n"), "{}", run.stdout());
}

#[test]
fn a_salvage_goes_neither_with_a_digest_nor_with_a_stream() {
    let scratch = Scratch::new();
    let image = scratch.path("image");
    qcowtool(args!["create", "-f", "qcow2", image, "1M"]).ok();
    let target = scratch.path("target");
    qcowtool(args!["flatten", "--salvage", "--digest", image, target])
        .refused_naming(&["--digest"]);
    qcowtool(args!["flatten", "--salvage", image, "-"]).refused_naming(&["name a file"]);
    qcowtool(args!["flatten", "--salvage", "-", target]).refused_naming(&["name a file"]);
    assert_eq!(scratch.names(), ["image"]);
    qcowtool(args!["flatten", "--salvage", image, target]).ok();
}
