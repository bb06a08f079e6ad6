//! Block devices as targets, and direct I/O. Needs the right to set up loop devices and to mount; says
//! so when it has none.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{checksum, flattened, qcowtool};
use fixtures::pattern::{mixed, noise, write_raw};
use fixtures::{
    Loop, Mounted, Scratch, args, assert_bytes, needs_qemu, qemu, qemu_img, qemu_io, skipped,
};

const SIZE: u64 = (12 << 20) + 1536;

/// A chain of two with data, zeros, holes and a short last cluster.
fn chain(scratch: &Scratch) -> PathBuf {
    let raw = scratch.path("base.raw");
    let (noise, mixed) = (noise(1, 1 << 20), mixed(2, 1 << 20));
    write_raw(&raw, SIZE, &[(4096, &noise), (6 << 20, &mixed), (SIZE - 700, &noise[..600])]);
    let top = scratch.path("top.qcow2");
    qemu::overlay(&top, &raw, "raw", "", "");
    qemu_io("qcow2", &top, &["write -P 7 3M 300k", "write -z 6200k 200k", "write -P 0 9M 1M"]);
    top
}

/// A device of 16 MiB that is full of something else.
fn used(scratch: &Scratch) -> Option<Loop> {
    Loop::over(&scratch.file("volume", &vec![0xa5; 16 << 20]))
}

fn words(options: &str) -> Vec<std::ffi::OsString> {
    options.split_whitespace().map(Into::into).collect()
}

#[test]
fn a_raw_image_on_a_device_that_held_something_else() {
    needs_qemu!();
    let scratch = Scratch::new();
    let top = chain(&scratch);
    let expected = flattened(&top, &[]);
    let Some(device) = used(&scratch) else { return };
    for options in ["", "--threads 1 --digest", "--direct --threads 3"] {
        fs::write(&device.0, vec![0xa5; 16 << 20]).unwrap();
        let arguments = args!["flatten", "-O", "raw", "--device"];
        qcowtool([arguments, words(options), args![top, device.0]].concat()).ok();
        let there = fs::read(&device.0).unwrap();
        assert_bytes!(there[..expected.len()], expected, "{options}");
        let rest = vec![0xa5; there.len() - expected.len()];
        assert_bytes!(there[expected.len()..], rest, "{options}: what lies behind the disk");
    }
}

#[test]
fn a_qcow2_image_on_a_device_that_held_something_else() {
    needs_qemu!();
    let scratch = Scratch::new();
    let top = chain(&scratch);
    let Some(device) = used(&scratch) else { return };
    for options in ["", "-c", "-c -o cluster_size=512", "-o extended_l2=on --direct", "--direct"] {
        fs::write(&device.0, vec![0xa5; 16 << 20]).unwrap();
        qcowtool([args!["flatten", "--device"], words(options), args![top, device.0]].concat())
            .ok();
        qemu_img(&args!["check", "-q", "-f", "qcow2", device.0]);
        qemu::assert_same("qcow2", &top, "qcow2", &device.0);
        assert_eq!(checksum(&device.0, &[]), checksum(&top, &[]), "{options}");
    }
}

#[test]
fn a_device_said_to_hold_zeros_is_not_zeroed() {
    needs_qemu!();
    let scratch = Scratch::new();
    let top = chain(&scratch);
    let Some(device) = used(&scratch) else { return };
    let zeros = args!["flatten", "-O", "raw", "--device", "--target-is-zero", top, device.0];
    // It is not: what is left there shows that nothing was written.
    qcowtool(zeros.clone()).ok();
    let there = fs::read(&device.0).unwrap();
    assert_eq!(there[9 << 20], 0xa5);
    fs::write(&device.0, vec![0; 16 << 20]).unwrap();
    qcowtool(zeros).ok();
    let expected = flattened(&top, &[]);
    assert_bytes!(fs::read(&device.0).unwrap()[..expected.len()], expected);
}

#[test]
fn a_device_is_refused_unless_it_is_asked_for_free_and_large_enough() {
    needs_qemu!();
    let scratch = Scratch::new();
    let top = chain(&scratch);
    let small = scratch.file("small", &vec![0xa5; 2 << 20]);
    let Some(device) = Loop::over(&small) else { return };
    let refused = |options: &str, source: &Path, target: &Path, word: &str| {
        qcowtool([args!["flatten"], words(options), args![source, target]].concat())
            .refused_naming(&[word]);
    };
    refused("", &top, &device.0, "--device");
    refused("-O raw --device", &top, &device.0, "larger device");
    refused("--device", &top, &device.0, "larger device");
    refused("--device -o preallocation=full", &top, &device.0, "preallocated");
    refused("--device -o data_file=data", &top, &device.0, "data file");
    refused("--device", &top, &small, "not a block device");
    refused("--device -f raw", &device.0, &device.0, "being read");
    assert_bytes!(fs::read(&device.0).unwrap(), vec![0xa5; 2 << 20]);
    assert!(device.0.exists(), "the device node is still there");
    assert_eq!(scratch.names(), ["base.raw", "small", "top.qcow2"]);
}

#[test]
fn a_mounted_device_is_refused() {
    needs_qemu!();
    let scratch = Scratch::new();
    let top = chain(&scratch);
    let Some(mounted) = Mounted::xfs(scratch.subdir("xfs")) else { return };
    let source = Command::new("findmnt")
        .args(["--noheadings", "--output", "SOURCE"])
        .arg(&mounted.0)
        .output();
    let device = String::from_utf8(source.unwrap().stdout).unwrap();
    qcowtool(args!["flatten", "--device", "-O", "raw", top, device.trim()])
        .refused_naming(&["in use", "unmount it"]);
    // A loop device that stays when its file system is unmounted, as a disk does.
    let Some(device) = used(&scratch) else { return };
    let made = Command::new("mkfs.ext4").arg("-q").arg(&device.0).status();
    let mount = |program: &str, what: &[&Path]| Command::new(program).args(what).status();
    let at = scratch.subdir("ext4");
    if !made.is_ok_and(|it| it.success())
        || !mount("mount", &[&device.0, &at]).is_ok_and(|it| it.success())
    {
        return skipped("no ext4 can be mounted here");
    }
    let onto = || qcowtool(args!["flatten", "--device", "-O", "raw", top, device.0]);
    onto().refused_naming(&["unmount it"]);
    assert!(mount("umount", &[&at]).unwrap().success());
    onto().ok();
}

#[test]
fn a_file_written_past_the_page_cache_is_the_same() {
    needs_qemu!();
    let scratch = Scratch::new();
    let top = chain(&scratch);
    let (plain, direct) = (scratch.path("plain"), scratch.path("direct"));
    for options in ["-O raw", "", "-c", "-o cluster_size=512", "-o extended_l2=on"] {
        let flatten = |more: &str, target: &Path| {
            let all = [args!["flatten", "--force"], words(options), words(more)].concat();
            qcowtool([all, args![top, target]].concat())
        };
        let run = flatten("--direct", &direct);
        if !run.succeeded() && run.stderr().contains("no direct I/O") {
            return skipped("the file system of temporary files has no direct I/O");
        }
        run.ok();
        flatten("", &plain).ok();
        assert_bytes!(fs::read(&direct).unwrap(), fs::read(&plain).unwrap(), "{options}");
    }
}

#[test]
fn a_stream_onto_a_device() {
    needs_qemu!();
    let scratch = Scratch::new();
    let top = chain(&scratch);
    let raw = scratch.file("raw", &flattened(&top, &[]));
    let Some(device) = used(&scratch) else { return };
    let arguments = args!["flatten", "-O", "raw", "--device", "-", device.0];
    let mut command = common::command(&arguments);
    let status = command.stdin(fs::File::open(&raw).unwrap()).status().unwrap();
    assert!(status.success());
    let expected = fs::read(&raw).unwrap();
    assert_bytes!(fs::read(&device.0).unwrap()[..expected.len()], expected);
}
