//! The images kept in git: table, README, qemu-img and we agree on every one of them.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;

use common::{qcowtool_in, same_json};
use fixtures::kept::{self, Expected, Row};
use fixtures::{Scratch, args, needs_qemu};
use serde_json::Value;

/// Runs `qemu-img` beside the images; what it printed, or nothing.
fn qemu_img(arguments: Vec<OsString>) -> Option<String> {
    let mut command = std::process::Command::new("qemu-img");
    let output = command.args(arguments).current_dir(kept::dir()).output().unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

fn snapshot(row: &Row, option: &str) -> Vec<OsString> {
    row.snapshot.as_ref().map_or(vec![], |snapshot| args![option, snapshot])
}

#[test]
fn we_read_what_the_table_says() {
    let scratch = Scratch::new();
    for row in kept::table() {
        let common =
            [args!["-f", row.format], snapshot(&row, "--snapshot"), args![row.file]].concat();
        let checksum = [args!["checksum", "--output", "json"], common.clone()].concat();
        let run = qcowtool_in(&kept::dir(), checksum);
        let target = scratch.path("target");
        let flatten = [args!["flatten", "-O", "raw"], common, args![target]].concat();
        let flattened = qcowtool_in(&kept::dir(), flatten);
        if let Expected::Reads(crc) = row.expected {
            let outcome = run.json();
            assert_eq!(outcome["crc32"], format!("{crc:08x}"), "{}", row.file);
            assert_eq!(outcome["virtual-size"], row.virtual_size.unwrap(), "{}", row.file);
            flattened.ok();
            assert_eq!(fixtures::crc32_of_file(&target), crc, "{}", row.file);
            fs::remove_file(target).unwrap();
        } else {
            run.refused_json();
            flattened.refused();
            assert!(!target.exists());
        }
    }
}

#[test]
fn we_list_what_the_table_says() {
    for row in kept::table() {
        let info = args!["info", "--output", "json", "-f", row.format, row.file];
        let run = qcowtool_in(&kept::dir(), info);
        if row.expected == Expected::Refused {
            run.refused_json();
        } else {
            assert_eq!(run.json()["virtual-size"], row.virtual_size.unwrap(), "{}", row.file);
        }
    }
}

#[test]
fn qemu_img_says_what_the_table_says() {
    needs_qemu!();
    let scratch = Scratch::new();
    for row in kept::table() {
        let raw = scratch.path("raw");
        let convert = args!["convert", "-f", row.format, "-O", "raw"];
        let converted = qemu_img([convert, snapshot(&row, "-l"), args![row.file, raw]].concat());
        let info = qemu_img(args!["info", "-U", "-f", row.format, "--output", "json", row.file]);
        match row.expected {
            Expected::Reads(crc) => assert_eq!(fixtures::crc32_of_file(&raw), crc, "{}", row.file),
            Expected::InfoOnly | Expected::Refused => assert_eq!(converted, None, "{}", row.file),
            Expected::Denied => assert!(converted.is_some(), "{}", row.file),
        }
        assert_eq!(info.is_some(), row.expected != Expected::Refused, "{}", row.file);
        if let Some(info) = info {
            let info: Value = serde_json::from_str(&info).unwrap();
            assert_eq!(info["virtual-size"].as_u64(), row.virtual_size, "{}", row.file);
        }
    }
}

#[test]
fn info_of_every_kept_image_is_qemu_imgs() {
    needs_qemu!();
    for row in kept::table() {
        for chain in [args![], args!["--backing-chain"]] {
            let whole = !chain.is_empty();
            let arguments =
                [args!["info", "-f", row.format, "--output", "json"], chain, args![row.file]]
                    .concat();
            let ours = qcowtool_in(&kept::dir(), arguments.clone());
            let theirs = qemu_img([args!["info", "-U"], arguments[1..].to_vec()].concat());
            match theirs {
                Some(theirs) if ours.succeeded() || row.expected != Expected::Denied => {
                    let theirs: Value = serde_json::from_str(&theirs).unwrap();
                    same_json(&ours.json(), &theirs, &row.file);
                }
                // What is above the fault is shown.
                _ if whole => assert_eq!(ours.code(), Some(1)),
                _ => drop(ours.refused_json()),
            }
        }
    }
}

#[test]
fn the_table_the_readme_and_the_directory_list_the_same_images() {
    let readme = fs::read_to_string(kept::dir().join("../README.md")).unwrap();
    let table = kept::table();
    for row in &table {
        let fate = match &row.expected {
            Expected::Reads(crc) => format!("`{crc:08x}`"),
            Expected::InfoOnly => "*info only*".into(),
            Expected::Denied => "*denied*".into(),
            Expected::Refused => "*refused*".into(),
        };
        let (file, feature) = (&row.file, &row.feature);
        let snapshot = row.snapshot.as_deref().unwrap_or_default();
        let size = row.virtual_size.map(|size| size.to_string()).unwrap_or_default();
        let line = format!("| {file} | {snapshot} | {size} | {fate} | {feature} |");
        assert!(readme.lines().any(|l| l == line), "README.md lacks: {line}");
    }
    let rows = readme.lines().filter(|line| line.contains(".qcow2 |") || line.contains(".raw |"));
    assert_eq!(rows.count(), table.len(), "rows of README.md");
    let listed: HashSet<_> = table.iter().map(|row| row.file.clone()).collect();
    for entry in fs::read_dir(kept::dir()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let aside = name == "table.tsv" || name.ends_with(".data");
        assert!(aside || listed.contains(&name), "{name} is in no row");
    }
}
