//! `rescue --candidates`: only a digest makes a file the base that is lost.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use fixtures::{Holder, Scratch, args, needs_qemu, pattern, qemu};
use serde_json::Value;

use super::{Found, names};
use common::qcowtool;

/// A stopped guest's overlay whose template is gone, and what it once held.
struct Orphan {
    scratch: Scratch,
    disk: Vec<u8>,
}

impl Orphan {
    fn new() -> Self {
        let scratch = Scratch::new();
        let (store, backup) = (scratch.subdir("store"), scratch.subdir("backup"));
        let template = store.join("template");
        qemu::create(&template, "cluster_size=4k", "16M");
        let content = scratch.file("content", &pattern::mixed(5, 1 << 20));
        let source = content.display();
        let writes = [format!("write -q -s {source} 0 1M"), format!("write -q -s {source} 9M 1M")];
        qemu::qemu_io("qcow2", &template, &writes);
        let manifest = scratch.path("template.manifest");
        let arguments =
            args!["checksum", "--algorithm", "blake3-tree", "--manifest", manifest, template];
        qcowtool(arguments).ok();
        qemu::overlay(scratch.path("middle"), "store/template", "qcow2", "", "");
        qemu::qemu_io("qcow2", scratch.path("middle"), &["write -q -P 1 64k 64k"]);
        qemu::overlay(scratch.path("top"), "middle", "qcow2", "", "");
        qemu::qemu_io(
            "qcow2",
            scratch.path("top"),
            &["write -q -P 2 256k 64k", "write -q -z 1M 64k"],
        );
        let disk = qemu::raw_of("qcow2", scratch.path("top"));
        fs::rename(template, backup.join("a name that says nothing")).unwrap();
        Self { scratch, disk }
    }

    fn backup(&self) -> PathBuf {
        self.scratch.path("backup")
    }

    fn search(&self, options: Vec<std::ffi::OsString>) -> Found {
        let mut arguments = args!["rescue", "--output", "json", "--candidates", self.backup()];
        arguments.extend(options);
        arguments.push(self.scratch.path("top").into());
        Found::of(qcowtool(arguments))
    }

    fn manifest(&self) -> Vec<std::ffi::OsString> {
        args!["--manifest", self.scratch.path("template.manifest")]
    }
}

/// The verdict on a file.
fn verdict<'a>(found: &'a Found, path: &Path) -> &'a Value {
    let candidates = found.json["base"]["candidates"].as_array().unwrap();
    let candidate = candidates.iter().find(|one| one["path"] == path.to_str().unwrap());
    &candidate.unwrap_or_else(|| panic!("no {} in {:#}", path.display(), found.json))["verdict"]
}

/// The ranges of a disk that qemu-img takes from the template, by the depth that it tells.
fn from_template(orphan: &Orphan) -> Vec<(u64, u64)> {
    // An empty one in its place: what is read from it, or from nowhere, is lost.
    let template = orphan.scratch.path("store/template");
    qemu::create(&template, "", "16M");
    let map = qemu::qemu_img(&args!["map", "--output", "json", orphan.scratch.path("top")]);
    fs::remove_file(template).unwrap();
    let map: Vec<Value> = serde_json::from_str(&map).unwrap();
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for entry in map.iter().filter(|entry| entry["present"] == false) {
        let (start, length) = (entry["start"].as_u64().unwrap(), entry["length"].as_u64().unwrap());
        match ranges.last_mut() {
            Some(last) if last.0 + last.1 == start => last.1 += length,
            _ => ranges.push((start, length)),
        }
    }
    ranges
}

fn lost(found: &Found) -> Vec<(u64, u64)> {
    let ranges = found.json["base"]["lost"].as_array().unwrap().iter();
    ranges
        .map(|range| (range["start"].as_u64().unwrap(), range["length"].as_u64().unwrap()))
        .collect()
}

#[test]
fn without_a_manifest_candidates_are_refused_and_what_is_lost_is_listed() {
    needs_qemu!();
    let orphan = Orphan::new();
    // The right name and size prove nothing, and neither does the right content.
    qemu::create(orphan.backup().join("template"), "", "16M");
    let found = orphan.search(args!["--restore"]).ends(2);
    assert_eq!(*verdict(&found, &orphan.backup().join("template")), "unproven");
    assert_eq!(*verdict(&found, &orphan.backup().join("a name that says nothing")), "unproven");
    let expected = from_template(&orphan);
    assert_eq!(lost(&found), expected);
    assert_eq!(expected.len(), 4, "the test is worth something");
    let bytes: u64 = expected.iter().map(|range| range.1).sum();
    assert_eq!(found.json["base"]["lost-bytes"], bytes);
    assert_eq!(names(orphan.scratch.path("store")), [""; 0]);
}

#[test]
fn a_manifest_finds_the_base_under_any_name_and_it_is_put_back() {
    needs_qemu!();
    let orphan = Orphan::new();
    qemu::create(orphan.backup().join("template"), "", "16M");
    let right = orphan.backup().join("a name that says nothing");
    let found = orphan.search(orphan.manifest()).ends(0);
    assert_eq!(*verdict(&found, &right), "equal");
    assert_eq!(*verdict(&found, &orphan.backup().join("template")), "different");
    assert_eq!(names(orphan.scratch.path("store")), [""; 0], "nobody asked for it");
    let found = orphan.search([orphan.manifest(), args!["--restore"]].concat()).ends(0);
    assert_eq!(found.json["base"]["restored"], true);
    assert_eq!(names(orphan.scratch.path("store")), ["template"]);
    assert!(qemu::raw_of("qcow2", orphan.scratch.path("top")) == orphan.disk);
    let whole = orphan.search(orphan.manifest()).ends(0);
    assert!(whole.json["base"].is_null(), "{:#}", whole.json);
}

#[test]
fn one_changed_byte_is_not_the_base() {
    needs_qemu!();
    let orphan = Orphan::new();
    let right = orphan.backup().join("a name that says nothing");
    let before = fs::metadata(&right).unwrap();
    qemu::qemu_io("qcow2", &right, &["write -q -P 3 9M 512"]);
    let file = fs::File::options().write(true).open(&right).unwrap();
    file.set_modified(before.modified().unwrap()).unwrap();
    assert_eq!(fs::metadata(&right).unwrap().size(), before.size());
    let found = orphan.search([orphan.manifest(), args!["--restore"]].concat()).ends(2);
    assert_eq!(*verdict(&found, &right), "different");
    assert_eq!(names(orphan.scratch.path("store")), [""; 0]);
    // Where the base was zeros, nothing is lost: 4 MiB at 0, and the leaf with 9 MiB.
    let data = |(start, length): (u64, u64)| {
        let parts = [(0, 4 << 20), (8 << 20, 12 << 20)];
        parts.map(|(from, to)| (start.max(from), (start + length).min(to)))
    };
    let expected: Vec<_> = from_template(&orphan)
        .into_iter()
        .flat_map(data)
        .filter(|(start, end)| start < end)
        .map(|(start, end)| (start, end - start))
        .collect();
    assert_eq!(lost(&found), expected);
}

#[test]
fn the_same_content_in_another_format_is_found_and_not_put_in_its_place() {
    needs_qemu!();
    let orphan = Orphan::new();
    let right = orphan.backup().join("a name that says nothing");
    let raw = orphan.backup().join("raw");
    qemu::qemu_img(&args!["convert", "-O", "raw", right, raw]);
    fs::remove_file(right).unwrap();
    let found = orphan.search([orphan.manifest(), args!["--restore"]].concat()).ends(2);
    assert_eq!(*verdict(&found, &raw), "equal");
    assert!(found.json["base"]["unrestored"].as_str().unwrap().contains("format"));
    assert_eq!(names(orphan.scratch.path("store")), [""; 0]);
}

#[test]
fn manifests_of_a_directory_are_taken_by_name_unless_they_contradict() {
    needs_qemu!();
    let orphan = Orphan::new();
    let manifests = orphan.scratch.subdir("manifests");
    let one = manifests.join("one.json");
    let text = fs::read_to_string(orphan.scratch.path("template.manifest")).unwrap();
    fs::write(&one, &text).unwrap();
    fs::write(manifests.join("notes"), "no manifest").unwrap();
    orphan.search(args!["--manifest", manifests]).ends(0);
    // A later template of the same name.
    let template = orphan.scratch.path("store/template");
    qemu::create(&template, "", "16M");
    let second = manifests.join("two.json");
    qcowtool(args!["checksum", "--algorithm", "blake3-tree", "--manifest", second, template]).ok();
    fs::remove_file(template).unwrap();
    let top = orphan.scratch.path("top");
    let arguments = args!["rescue", "--candidates", orphan.backup(), "--manifest", manifests, top];
    let error = qcowtool(arguments);
    assert_eq!(error.code(), Some(1), "{}", error.stdout());
    assert!(error.stderr().contains("different contents"), "{}", error.stderr());
    assert!(error.stderr().contains("name the right one with --manifest"), "{}", error.stderr());
    orphan.search(args!["--manifest", one]).ends(0);
}

#[test]
fn the_disk_of_a_guest_that_runs_is_not_searched_for() {
    needs_qemu!();
    let orphan = Orphan::new();
    let template = orphan.scratch.path("store/template");
    fs::copy(orphan.backup().join("a name that says nothing"), &template).unwrap();
    let holder = Holder::new(&["-f", "qcow2"], &orphan.scratch.path("top"));
    fs::remove_file(&template).unwrap();
    let top = orphan.scratch.path("top");
    let run = qcowtool(args!["rescue", "--candidates", orphan.backup(), top]);
    assert_eq!(run.code(), Some(2), "{}", run.stdout());
    assert!(run.stderr().contains("give the guest's name, or --pid"), "{}", run.stderr());
    qcowtool(args!["rescue", "--restore", "--pid", holder.pid().to_string()]).ok();
    assert!(template.exists());
}
