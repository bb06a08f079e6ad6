//! `convert -n --bitmap`: what a bitmap has as dirty, copied onto an earlier copy, with qemu-img as the judge.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::qcowtool;
use fixtures::pattern::Random;
use fixtures::{Scratch, args, needs_qemu, qemu, qemu_img};

/// A disk over a base with data everywhere, and a bitmap that is clean.
fn source(scratch: &Scratch, granularity: &str) -> PathBuf {
    let (base, image) = (scratch.path("base.qcow2"), scratch.path("vm.qcow2"));
    let _ = (fs::remove_file(&base), fs::remove_file(&image));
    qemu::create(&base, "", "9437696");
    qemu::qemu_io("qcow2", &base, &["write -P 1 0 9437696"]);
    qemu::overlay(&image, "base.qcow2", "qcow2", "", "");
    qemu::qemu_io("qcow2", &image, &["write -P 2 1M 2M", "write -z 4M 1M"]);
    qemu_img(&args!["bitmap", "--add", "-g", granularity, image, "since"]);
    image
}

/// Writes of every kind: data, zeros, and what is discarded and shows the base.
fn change(image: &Path, seed: u64) {
    let mut random = Random::new(seed);
    let mut writes = Vec::new();
    for round in 0..30 {
        let (at, len) = (random.below(18000) * 512, (1 + random.below(400)) * 512);
        writes.push(match round % 4 {
            0 => format!("write -z {at} {len}"),
            1 => format!("discard {at} {len}"),
            _ => format!("write -P {} {at} {len}", 3 + round),
        });
    }
    writes.push("write -P 77 9437184 512".into());
    qemu::qemu_io("qcow2", image, &writes);
}

#[test]
fn an_earlier_copy_becomes_one_of_now_in_every_format_and_over_another_copy() {
    needs_qemu!();
    let scratch = Scratch::new();
    for (seed, granularity) in [(1, "512"), (2, "64k"), (3, "2M")] {
        let image = source(&scratch, granularity);
        let copies = [
            ("full.qcow2", "qcow2", "-o cluster_size=4k"),
            ("large.qcow2", "qcow2", "-o cluster_size=2M,compression_type=zstd -c"),
            ("full.raw", "raw", ""),
        ];
        for (name, format, options) in copies {
            let words = options.split_whitespace().map(Into::into).collect();
            let files = args![image, scratch.path(name)];
            qemu_img(&[args!["convert", "-O", format], words, files].concat());
        }
        let increment = scratch.path("increment.qcow2");
        qemu::overlay(&increment, "full.qcow2", "qcow2", "", "");
        change(&image, seed);
        becomes_one_of_now(&image, &increment, "qcow2");
        // Nothing is written below an overlay.
        fs::remove_file(increment).unwrap();
        for (name, format, _) in copies {
            becomes_one_of_now(&image, &scratch.path(name), format);
        }
    }
}

fn becomes_one_of_now(image: &Path, copy: &Path, format: &str) {
    let words = args!["convert", "--output", "json", "-n", "-O", format, "--bitmap", "since"];
    let run = qcowtool([words, args![image, copy]].concat());
    assert_eq!(run.stderr(), "", "the bitmap is there for this copy: it is no loss");
    let outcome = run.json();
    assert!(outcome.get("not-carried-over").is_none(), "{outcome}");
    assert_eq!(outcome["verified"], true);
    assert_eq!(outcome["format"], format);
    let written = ["data-bytes", "zero-bytes"].map(|key| outcome[key].as_u64().unwrap());
    let ranges = qcowtool(args!["bitmap", "--output", "json", image, "since"]).json();
    let dirty = ranges.as_array().unwrap().iter().map(|range| range["length"].as_u64().unwrap());
    assert_eq!(written.iter().sum::<u64>(), dirty.sum::<u64>());
    qemu_img(&args!["compare", "-f", "qcow2", "-F", format, image, copy]);
    if format == "qcow2" {
        qemu::assert_clean(copy);
    }
}

#[test]
fn what_is_no_earlier_copy_or_has_no_sound_bitmap_is_not_written_to() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = source(&scratch, "64k");
    let (copy, larger) = (scratch.path("copy.qcow2"), scratch.path("larger.qcow2"));
    qemu_img(&args!["convert", "-O", "qcow2", image, copy]);
    qemu::create(&larger, "", "10M");
    change(&image, 4);
    let refused = |more: Vec<std::ffi::OsString>, target: &Path, words: &str| {
        let before = fs::read(target).unwrap();
        let run = qcowtool([args!["convert", "-n"], more, args![image, target]].concat());
        assert_eq!(run.code(), Some(1), "{words}: {}", run.stdout());
        assert!(run.stderr().contains(words), "{words}: {}", run.stderr());
        assert_eq!(fs::read(target).unwrap(), before, "{words}");
    };
    refused(args!["--bitmap", "other"], &copy, "no bitmap named 'other'");
    refused(args!["--bitmap", "since"], &larger, "the earlier copy has 10485760 bytes");
    refused(args!["--bitmap", "since", "-l", "x"], &copy, "cannot be used with");
    // As a killed program leaves it.
    let mut dying = Command::new("qemu-io");
    dying.args(args!["-f", "qcow2", "-c", "write 0 4k", "-c", "abort", image]);
    assert!(!dying.output().unwrap().status.success());
    refused(args!["--bitmap", "since"], &copy, "was not stored cleanly");
}
