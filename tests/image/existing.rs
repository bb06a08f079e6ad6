//! `flatten -n`: a raw image goes into a file that exists, which keeps its length, owner and mount.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use common::{flattened, qcowtool};
use fixtures::{Holder, Loop, Scratch, args, assert_bytes, needs_qemu, qemu, qemu_img, skipped};

/// Data, zeros that are said, and ranges that are nowhere.
fn image(scratch: &Scratch) -> PathBuf {
    let image = scratch.path("image.qcow2");
    qemu::create(&image, "", "1M");
    qemu::qemu_io(
        "qcow2",
        &image,
        &["write -P 5 64k 100k", "write -z 300k 64k", "write -P 6 1020k 4k"],
    );
    image
}

#[test]
fn a_raw_image_goes_into_a_file_and_leaves_what_lies_behind_it() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = image(&scratch);
    let expected = flattened(&image, &[]);
    let theirs = scratch.file("theirs", &vec![0xa5; (2 << 20) + 100]);
    qemu_img(&args!["convert", "-n", "-O", "raw", image, theirs]);
    for options in [args![], args!["--threads", "1", "--digest"], args!["--direct"]] {
        let target = scratch.file("disk", &vec![0xa5; (2 << 20) + 100]);
        let number = target.metadata().unwrap().ino();
        let run =
            qcowtool([args!["flatten", "-n", "-O", "raw"], options, args![image, target]].concat());
        if !run.succeeded() && run.stderr().contains("no direct I/O") {
            skipped("the file system of temporary files has no direct I/O");
            continue;
        }
        run.ok();
        let there = fs::read(&target).unwrap();
        assert_bytes!(there[..1 << 20], expected);
        assert_bytes!(there[1 << 20..], vec![0xa5; (1 << 20) + 100], "what lies behind the disk");
        assert_bytes!(there, fs::read(&theirs).unwrap(), "as qemu-img convert -n");
        assert_eq!(target.metadata().unwrap().ino(), number);
    }
    assert_eq!(scratch.names(), ["disk", "image.qcow2", "theirs"]);
}

#[test]
fn a_file_said_to_hold_zeros_is_not_zeroed() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = image(&scratch);
    let target = scratch.file("disk", &vec![0xa5; 1 << 20]);
    qcowtool(args!["flatten", "-n", "--target-is-zero", "-O", "raw", image, target]).ok();
    assert_eq!(fs::read(&target).unwrap()[0], 0xa5, "zeros were written");
    qcowtool(args!["flatten", "--target-is-zero", "-O", "raw", image, scratch.path("new")])
        .refused_naming(&["only what exists"]);
}

#[test]
fn what_is_mounted_cannot_be_replaced_and_the_way_that_is_advised_writes_into_it() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = image(&scratch);
    let volume = scratch.file("volume", &vec![0xa5; 1 << 20]);
    let target = scratch.file("disk.img", b"");
    let mounted = Command::new("mount").arg("--bind").args([&volume, &target]).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        return skipped("no mounts here");
    }
    let replaced = [
        qcowtool(args!["flatten", "-O", "raw", image, target]),
        qcowtool(args!["flatten", "--force", image, target]),
        qcowtool(args!["flatten", "--force-in-use", image, target]),
        qcowtool(args!["create", "--force", target, "1M"]),
    ];
    let written = qcowtool(args!["flatten", "-n", "-O", "raw", image, target]);
    let unmounted = Command::new("umount").arg(&target).status().unwrap();
    assert!(unmounted.success());
    for run in replaced {
        run.refused_naming(&["mount point", "flatten -n -O raw"]);
    }
    written.ok();
    assert_bytes!(fs::read(&volume).unwrap(), flattened(&image, &[]));
    assert_eq!(scratch.names(), ["disk.img", "image.qcow2", "volume"]);
}

#[test]
fn what_cannot_be_written_into_is_refused_untouched() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = image(&scratch);
    let (small, large) =
        (scratch.file("small", &[0xa5; 4096]), scratch.file("large", &vec![0xa5; 4 << 20]));
    let refused = |options: &[&str], target: &str, words: &[&str]| {
        let options = options.iter().map(Into::into).collect();
        let arguments = [args!["flatten"], options, args![image, scratch.path(target)]].concat();
        qcowtool(arguments).refused_naming(words);
    };
    refused(&["-n", "-O", "raw"], "small", &["has 4096", "choose a larger file"]);
    refused(&["-n", "-O", "raw"], "nothing", &["No such file", "leave out -n"]);
    refused(&["-n", "-O", "qcow2"], "large", &["only a raw image", "-O raw"]);
    refused(&["-n", "-O", "raw", "-o", "preallocation=full"], "large", &["preallocated"]);
    refused(&["-n", "-O", "raw", "--force"], "large", &["cannot be used with"]);
    refused(&["-n", "-O", "raw"], ".", &["neither a regular file nor a block device"]);
    qcowtool(args!["flatten", "-n", "-O", "raw", image, image]).refused_naming(&["being read"]);
    let other = scratch.path("other.qcow2");
    qemu::create(&other, "", "1M");
    let guest = Holder::new(&[], &other);
    qcowtool(args!["flatten", "-n", "-O", "raw", image, other]).refused_naming(&["in use"]);
    drop(guest);
    assert_bytes!(fs::read(&small).unwrap(), vec![0xa5; 4096]);
    assert_bytes!(fs::read(&large).unwrap(), vec![0xa5; 4 << 20]);
    // What is advised.
    qcowtool(args!["flatten", "-n", "-O", "raw", image, large]).ok();
    qcowtool(args!["flatten", "-O", "raw", image, scratch.path("nothing")]).ok();
}

#[test]
fn a_device_and_a_stream_go_the_same_way() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = image(&scratch);
    let expected = flattened(&image, &[]);
    let volume = scratch.file("volume", &vec![0xa5; 2 << 20]);
    if let Some(device) = Loop::over(&volume) {
        qcowtool(args!["flatten", "-n", "-O", "raw", image, device.0]).ok();
        assert_bytes!(fs::read(&device.0).unwrap()[..1 << 20], expected);
    }
    let target = scratch.file("disk", &vec![0xa5; 2 << 20]);
    let raw = scratch.file("raw", &expected);
    let mut command = common::command(&args!["flatten", "-n", "-O", "raw", "-", target]);
    assert!(command.stdin(fs::File::open(&raw).unwrap()).status().unwrap().success());
    let there = fs::read(&target).unwrap();
    assert_bytes!(there[..1 << 20], expected);
    assert_bytes!(there[1 << 20..], vec![0xa5; 1 << 20]);
}
