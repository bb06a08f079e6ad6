//! The ways that bytes can go into a new image: cloned on a file system where files share space, or
//! through memory. The file systems are an XFS and a Btrfs on loop devices; says so where there can be none.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use common::{checksum, qcowtool};
use fixtures::pattern::{noise, write_raw};
use fixtures::{Mounted, Scratch, args, needs_qemu, qemu, qemu_img, qemu_io};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// A chain of two on `dir`: 64 MiB of noise below, 4 MiB of other data, some zeros and a part of a
/// cluster above.
fn chain(scratch: &Scratch, dir: &Path, options: &str) -> std::path::PathBuf {
    // XFS gives the space of removed files back later, which would spoil the sums: none is removed.
    let (raw, base, top) = (scratch.path("raw"), dir.join("base.qcow2"), dir.join("top.qcow2"));
    write_raw(&raw, 80 * MIB, &[(0, &noise(1, 64 << 20))]);
    let options = if options.is_empty() { "cluster_size=64k" } else { options };
    qemu_img(&args!["convert", "-O", "qcow2", "-o", options, "-f", "raw", raw, base]);
    qemu::overlay(&top, &base, "qcow2", options, "");
    let noise = scratch.file("noise", &noise(2, 4 << 20));
    let write = format!("write -s {} 20M 4M", noise.display());
    qemu_io("qcow2", &top, &[&write, "write -z 30M 1M", "write -P 7 70001k 3k"]);
    top
}

/// Flattens as told and returns the outcome.
fn flatten(arguments: &[&str], source: &Path, target: &Path) -> Value {
    let mut all = args!["flatten", "--output", "json"];
    all.extend(arguments.iter().map(Into::into));
    all.extend(args![source, target]);
    qcowtool(all).json()
}

fn bytes(outcome: &Value, key: &str) -> u64 {
    outcome[key].as_u64().unwrap_or_else(|| panic!("{key} in {outcome}"))
}

#[test]
fn a_clone_takes_no_space_and_reads_as_its_source() {
    needs_qemu!();
    let scratch = Scratch::new();
    for system in [Mounted::xfs, Mounted::btrfs] {
        let Some(system) = system(scratch.subdir("shared")) else { continue };
        clones_take_no_space(&scratch, &system);
    }
}

fn clones_take_no_space(scratch: &Scratch, system: &Mounted) {
    let top = chain(scratch, &system.0, "");
    for (format, options) in [
        ("qcow2", "cluster_size=64k"),
        ("qcow2", "cluster_size=4k"),
        ("qcow2", "cluster_size=2M"),
        ("qcow2", "extended_l2=on"),
        ("qcow2", "preallocation=metadata"),
        ("raw", "preallocation=off"),
    ] {
        let target = system.0.join(format!("{format},{options}"));
        let before = system.used();
        let outcome = flatten(&["-O", format, "-o", options], &top, &target);
        let taken = system.used() - before;
        // Clusters of 2 MiB come from many places: what is not a whole one is copied.
        let copied = if options.contains("2M") { 10 * MIB } else { MIB };
        let cloned = bytes(&outcome, "cloned-bytes");
        assert!(cloned >= 64 * MIB - copied, "{format} {options}: {outcome}");
        assert!(bytes(&outcome, "written-bytes") < copied, "{format} {options}: {outcome}");
        assert!(taken < copied + 2 * MIB, "{format} {options}: took {taken} bytes");
        if format == "qcow2" {
            qemu::assert_clean(&target);
        }
        qemu::assert_same("qcow2", &top, format, &target);
    }
}

#[test]
fn without_reflink_nothing_is_cloned() {
    needs_qemu!();
    let scratch = Scratch::new();
    let Some(xfs) = Mounted::xfs(scratch.subdir("xfs")) else { return };
    let top = chain(&scratch, &xfs.0, "");
    let (cloned, copied) = (xfs.0.join("cloned"), xfs.0.join("copied"));
    assert!(bytes(&flatten(&["--threads", "3"], &top, &cloned), "cloned-bytes") > 60 * MIB);
    let before = xfs.used();
    let outcome = flatten(&["--no-reflink"], &top, &copied);
    assert_eq!(bytes(&outcome, "cloned-bytes"), 0, "{outcome}");
    assert!(bytes(&outcome, "written-bytes") > 60 * MIB, "{outcome}");
    assert!(xfs.used() - before > 60 * MIB);
    qemu::assert_same("qcow2", &cloned, "qcow2", &copied);

    // Where clusters lie in the order of the disk, it makes no difference how they got there.
    let how = ["--force", "-o", "preallocation=metadata"];
    assert!(bytes(&flatten(&how, &top, &cloned), "cloned-bytes") > 60 * MIB);
    flatten(&[&how[..], &["--no-reflink"]].concat(), &top, &copied);
    assert!(fs::read(&cloned).unwrap() == fs::read(&copied).unwrap(), "the files differ");
}

/// A guest writes here and there, an image grows at its end: what lies in a row in the image is all over
/// the disk. One call of the file system clones such a row, and it is a row again.
#[test]
fn what_lies_side_by_side_in_a_source_does_so_in_the_clone() {
    needs_qemu!();
    let scratch = Scratch::new();
    let Some(xfs) = Mounted::xfs(scratch.subdir("xfs")) else { return };
    let source = fixtures::big::big_chain(&xfs.0, 1, 40 * MIB).layers.remove(0);
    let (one, many) = (xfs.0.join("one"), xfs.0.join("many"));
    flatten(&["--threads", "1"], &source, &one);
    flatten(&["--threads", "5"], &source, &many);
    assert!(fs::read(&one).unwrap() == fs::read(&many).unwrap(), "threads make a difference");
    qemu::assert_clean(&one);
    qemu::assert_same("qcow2", &source, "qcow2", &one);
    let measured =
        qcowtool(args!["measure", "--exact", "-O", "qcow2", "--output", "json", source]).json();
    assert_eq!(bytes(&measured, "required"), fs::metadata(&one).unwrap().len(), "{measured}");
    // How far each run has moved within its file; the tables of so small an image are at its ends.
    let runs = |file: &Path| {
        let entries = qcowtool(args!["map", "--output", "json", file]).json();
        let run = |entry: &Value| Some((entry["start"].as_u64()?, entry["offset"].as_i64()?));
        entries.as_array().unwrap().iter().filter_map(run).collect::<Vec<_>>()
    };
    let (before, after) = (runs(&source), runs(&one));
    assert!(before.len() > 20, "{before:?}");
    assert_eq!(before.len(), after.len());
    let moved: BTreeSet<_> = before.iter().zip(&after).map(|(a, b)| b.1 - a.1).collect();
    assert_eq!(moved.len(), 1, "{moved:?}");
}

#[test]
fn a_clone_has_the_digest_of_its_source_and_is_the_same_for_any_number_of_threads() {
    needs_qemu!();
    let scratch = Scratch::new();
    let Some(xfs) = Mounted::xfs(scratch.subdir("xfs")) else { return };
    let top = chain(&scratch, &xfs.0, "cluster_size=4k");
    let expected = checksum(&top, &[]);
    let mut files = Vec::new();
    for threads in ["1", "2", "7"] {
        let target = xfs.0.join(threads);
        let outcome = flatten(&["--digest", "--threads", threads], &top, &target);
        assert_eq!(outcome["crc32"], expected.as_str(), "{outcome}");
        assert!(bytes(&outcome, "cloned-bytes") > 60 * MIB, "{outcome}");
        files.push(fs::read(&target).unwrap());
    }
    assert!(files.iter().all(|file| *file == files[0]), "the files differ");
}

#[test]
fn zeros_stored_as_data_are_cloned_and_not_looked_for() {
    needs_qemu!();
    let scratch = Scratch::new();
    let Some(xfs) = Mounted::xfs(scratch.subdir("xfs")) else { return };
    let source = xfs.0.join("source");
    fs::write(&source, vec![0; 8 << 20]).unwrap();
    let target = xfs.0.join("target");
    let outcome = flatten(&["-f", "raw"], &source, &target);
    assert_eq!(bytes(&outcome, "data-bytes"), 8 * MIB);
    assert_eq!(bytes(&outcome, "cloned-bytes"), 8 * MIB);
    qemu::assert_clean(&target);
    qemu::assert_same("raw", &source, "qcow2", &target);
    let outcome = flatten(&["-f", "raw", "--no-reflink", "--force"], &source, &target);
    assert_eq!(bytes(&outcome, "data-bytes"), 0);
}

#[test]
fn each_run_goes_its_own_way() {
    needs_qemu!();
    let scratch = Scratch::new();
    let Some(xfs) = Mounted::xfs(scratch.subdir("xfs")) else { return };
    // The base is on another file system, an odd tail is no whole block, and raw data starts at
    // an offset that the target's blocks do not share.
    let base = scratch.path("base.raw");
    write_raw(&base, 16 * MIB, &[(0, &noise(3, 5 << 20))]);
    let top = xfs.0.join("top.qcow2");
    qemu::overlay(&top, &base, "raw", "", "");
    qemu_io("qcow2", &top, &["write -P 9 8M 2M", "write -P 5 16252928 65024"]);
    let target = xfs.0.join("target");
    let outcome = flatten(&["-O", "raw"], &top, &target);
    assert!(bytes(&outcome, "cloned-bytes") >= 2 * MIB, "{outcome}");
    assert!((5 * MIB..6 * MIB).contains(&bytes(&outcome, "written-bytes")), "{outcome}");
    qemu::assert_same("qcow2", &top, "raw", &target);
    let said = qcowtool(args!["flatten", "-v", "--force", "-O", "raw", top, target]);
    said.ok();
    let line = "cloned, 0 B copied by the kernel, ";
    assert!(said.stderr().contains(line), "{}", said.stderr());

    let odd = xfs.0.join("odd.raw");
    fs::write(&odd, noise(4, (1 << 20) + 777)).unwrap();
    let outcome = flatten(&["-f", "raw", "--force"], &odd, &target);
    assert_eq!(bytes(&outcome, "cloned-bytes"), MIB);
    qemu::assert_clean(&target);
    let raw = xfs.0.join("raw");
    flatten(&["-O", "raw", "--no-reflink"], &target, &raw);
    assert!(fs::read(&raw).unwrap().starts_with(&fs::read(&odd).unwrap()));
}

#[test]
fn zeros_within_large_clusters_take_no_room() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (source, target) = (scratch.path("source"), scratch.path("target"));
    write_raw(&source, 40 * MIB, &[(0, &noise(5, 40 << 20))]);
    for cluster in 0..20 {
        qemu_io("raw", &source, &[&format!("write -z -u {}k 1536k", cluster * 2048 + 256)]);
    }
    let flatten = |how: &[&str]| {
        let mut all = vec!["-f", "raw", "--force", "-o", "cluster_size=2M"];
        all.extend(how);
        let outcome = flatten(&all, &source, &target);
        qemu::assert_clean(&target);
        qemu::assert_same("raw", &source, "qcow2", &target);
        outcome
    };
    assert!(bytes(&flatten(&[]), "written-bytes") < 11 * MIB);
    assert!(fs::metadata(&target).unwrap().blocks() * 512 < 11 * MIB);
    // Who asks for the space gets it.
    flatten(&["-o", "preallocation=full"]);
    assert!(fs::metadata(&target).unwrap().blocks() * 512 >= 40 * MIB);
}

#[test]
fn compressed_clusters_are_never_cloned() {
    needs_qemu!();
    let scratch = Scratch::new();
    let Some(xfs) = Mounted::xfs(scratch.subdir("xfs")) else { return };
    let top = chain(&scratch, &xfs.0, "");
    let target = xfs.0.join("target");
    let outcome = flatten(&["-c", "-o", "compression_type=zstd"], &top, &target);
    assert_eq!(bytes(&outcome, "cloned-bytes"), 0, "{outcome}");
    qemu::assert_same("qcow2", &top, "qcow2", &target);
    // And from a compressed source only what is not compressed.
    let again = xfs.0.join("again");
    flatten(&["-O", "raw"], &target, &again);
    qemu::assert_same("qcow2", &top, "raw", &again);
}
