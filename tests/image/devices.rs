//! Block devices as raw images, and full file systems. Needs the right to set up loop devices and to
//! mount; says so when it has none.

use std::path::PathBuf;
use std::process::Command;

use common::{checksum, qcowtool, reads_like_qemu};
use fixtures::pattern::{noise, write_raw};
use fixtures::{
    Loop, Scratch, args, assert_bytes, crc32_hex, needs_qemu, qemu, qemu_img, qemu_io, skipped,
};

#[test]
fn a_block_device_as_the_raw_base_of_a_chain() {
    needs_qemu!();
    let scratch = Scratch::new();
    let file = scratch.path("volume");
    write_raw(&file, 2 << 20, &[(4096, &noise(1, 1 << 20))]);
    let Some(device) = Loop::over(&file) else { return };
    let top = scratch.path("top.qcow2");
    qemu::overlay(&top, &device.0, "raw", "", "");
    qemu_io("qcow2", &top, &["write -P 7 512k 64k", "write -z 600k 4k"]);
    reads_like_qemu(&top);
    let target = scratch.path("standalone.qcow2");
    qcowtool(args!["flatten", top, target]).ok();
    qemu::assert_clean(&target);
    qemu::assert_same("qcow2", &top, "qcow2", &target);
}

#[test]
fn a_block_device_as_the_source() {
    needs_qemu!();
    let scratch = Scratch::new();
    let content = noise(2, 1 << 20);
    let Some(device) = Loop::over(&scratch.file("volume", &content)) else { return };
    assert_eq!(checksum(&device.0, &["-f", "raw"]), crc32_hex(&content));
    let target = scratch.path("flat.raw");
    qcowtool(args!["flatten", "-O", "raw", "-f", "raw", device.0, target]).ok();
    assert_bytes!(std::fs::read(target).unwrap(), content);
    let info = qcowtool(args!["info", "-f", "raw", "--output", "json", device.0]).json();
    assert_eq!(info["virtual-size"], 1 << 20);
}

#[test]
fn a_qcow2_image_on_a_block_device() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = scratch.path("image.qcow2");
    qemu::create(&image, "", "1M");
    qemu_io("qcow2", &image, &["write -P 9 100k 300k"]);
    let content = qemu::raw_of("qcow2", &image);
    // The volume is longer than the image in it.
    std::fs::OpenOptions::new().write(true).open(&image).unwrap().set_len(4 << 20).unwrap();
    let Some(device) = Loop::over(&image) else { return };
    assert_eq!(checksum(&device.0, &[]), crc32_hex(&content));
    assert_bytes!(reads_like_qemu(&device.0), content);
}

#[test]
fn a_block_device_is_no_target() {
    let scratch = Scratch::new();
    let content = noise(3, 1 << 20);
    let file = scratch.file("volume", &content);
    let Some(device) = Loop::over(&file) else { return };
    let source = scratch.file("source", &[1; 65536]);
    for force in [args![], args!["--force"]] {
        qcowtool([args!["flatten", "-f", "raw"], force.clone(), args![source, device.0]].concat())
            .refused();
        qcowtool([args!["create", "-f", "qcow2"], force, args![device.0, "1M"]].concat()).refused();
    }
    assert_bytes!(std::fs::read(&file).unwrap(), content);
    assert!(device.0.exists(), "the device node is still there");
}

/// A file system of 8 MiB, unmounted when dropped.
struct Small(PathBuf);

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_full_file_system_is_an_error_and_nothing_is_left_on_it() {
    let scratch = Scratch::new();
    let dir = scratch.subdir("small");
    let mount =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=8M", "none"]).arg(&dir).output();
    if !mount.is_ok_and(|output| output.status.success()) {
        return skipped("not allowed to mount");
    }
    let small = Small(dir);
    let source = scratch.file("source.raw", &noise(4, 12 << 20));
    for options in ["-O raw", "-O qcow2", "-c -o compression_type=zstd", "-o preallocation=full"] {
        let mut arguments = args!["flatten", "-f", "raw"];
        arguments.extend(options.split(' ').map(Into::into));
        qcowtool([arguments, args![source, small.0.join("target")]].concat())
            .refused_naming(&["space"]);
        assert_eq!(std::fs::read_dir(&small.0).unwrap().count(), 0, "{options}");
    }
    let create = args!["create", "-f", "qcow2", "-o", "preallocation=full"];
    qcowtool([create, args![small.0.join("disk"), "20M"]].concat()).refused_naming(&["space"]);
    assert_eq!(std::fs::read_dir(&small.0).unwrap().count(), 0);
}

#[test]
fn a_block_device_keeps_its_size() {
    needs_qemu!();
    let scratch = Scratch::new();
    let Some(device) = Loop::over(&scratch.file("volume", &noise(3, 1 << 20))) else { return };
    for arguments in [
        args!["resize", "-f", "raw", device.0, "2M"],
        args!["resize", "-f", "raw", "--shrink", device.0, "512k"],
    ] {
        qcowtool(arguments).refused_naming(&["block device", "change the size of the partition"]);
    }
    // An image on it may become larger, as far as its tables have room.
    qemu::create(&device.0, "", "1M");
    qcowtool(args!["resize", device.0, "8M"]).ok();
    qemu_img(&args!["check", "-q", device.0]);
    assert_eq!(qemu::info(&device.0)["virtual-size"], 8 << 20);
}
