//! What is no disk's own bytes does not pass for a raw disk: images of other formats, compressed
//! downloads, archives, as files and from standard input. What a refusal advises is carried out.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{binary, checksum, command, qcowtool};
use fixtures::pattern::noise;
use fixtures::{Scratch, args, crc32_hex, needs_qemu, qemu_img};

/// A raw disk of 3 MiB with something in it, and its digest.
fn disk(scratch: &Scratch) -> (std::path::PathBuf, String) {
    let mut bytes = vec![0; 3 << 20];
    bytes[1 << 20..2 << 20].copy_from_slice(&noise(7, 1 << 20));
    bytes[510..512].copy_from_slice(b"\x55\xaa");
    (scratch.file("disk.raw", &bytes), crc32_hex(&bytes))
}

/// Runs a command line of the shell in a directory.
#[track_caller]
fn shell(dir: &Path, line: &str) {
    let output = Command::new("sh").args(["-ec", line]).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
}

/// `flatten` with a file as what comes from standard input, through a pipe.
fn received(words: &[OsString], source: &Path, target: &Path) -> Output {
    let arguments = [args!["flatten"], words.to_vec(), args!["-", target]].concat();
    let mut command = command(&arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut stdin, bytes) = (child.stdin.take().unwrap(), fs::read(source).unwrap());
    // It may end early, and then nothing reads.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&bytes)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

/// The command that a message advises, between backquotes, with names in it.
fn advice(message: &str, new: &str, file: &str) -> String {
    let line = message.split('`').nth(1).unwrap_or_else(|| panic!("no advice in {message}"));
    line.replace("FILE", file).replace("NEW", new)
}

/// Whether there is a program; without it a line says what was not tried.
fn has(program: &str) -> bool {
    let there = Command::new("sh").args(["-c", &format!("command -v {program}")]).output();
    let there = there.is_ok_and(|output| output.status.success());
    if !there {
        let _ = writeln!(std::io::stderr(), "SKIPPED: {program} not found");
        assert!(std::env::var_os("CI").is_none(), "{program} not found");
    }
    there
}

#[test]
fn images_of_other_formats_are_refused_with_advice_that_works() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (raw, digest) = disk(&scratch);
    for (driver, options, said) in [
        ("vmdk", "subformat=monolithicSparse", "a VMDK image"),
        ("vmdk", "subformat=monolithicFlat", "a VMDK image"),
        ("vdi", "static=off", "a VDI image"),
        ("vhdx", "subformat=dynamic", "a VHDX image"),
        ("vpc", "subformat=dynamic,force_size=on", "a VHD image"),
        ("vpc", "subformat=fixed,force_size=on", "a VHD image"),
        ("qcow", "encryption=off", "a QCOW version 1 image"),
        ("qed", "cluster_size=64k", "a QED image"),
        ("parallels", "cluster_size=1M", "a Parallels image"),
    ] {
        let image = scratch.path("other.img");
        qemu_img(&args!["convert", "-O", driver, "-o", options, raw, image]);
        let target = scratch.path("target.qcow2");
        let message = qcowtool(args!["flatten", image, target]).refused();
        assert!(message.contains(said), "{driver} {options}: {message}");
        // Without a stated format by no other command either.
        for command in ["info", "checksum", "map", "measure"] {
            qcowtool(args![command, image]).refused_naming(&[said]);
        }
        shell(scratch.dir(), &advice(&message, "new.qcow2", "other.img"));
        assert_eq!(checksum(&scratch.path("new.qcow2"), &[]), digest, "{driver} {options}");
        // Who states raw gets the file's bytes, and a warning.
        let run = qcowtool(args!["flatten", "-q", "-f", "raw", image, target]);
        run.ok();
        let warning = run.stderr();
        assert!(warning.contains("warning") && warning.contains(said), "{warning}");
        assert_eq!(warning.lines().count(), 1, "{warning}");
        assert_eq!(checksum(&target, &[]), crc32_hex(&fs::read(&image).unwrap()));
        qcowtool(args!["flatten", "--force", "--untrusted", "-f", "raw", image, target])
            .refused_naming(&[said]);
        for name in ["target.qcow2", "new.qcow2", "other.img"] {
            fs::remove_file(scratch.path(name)).unwrap();
        }
    }
}

#[test]
fn a_dmg_is_refused_by_its_trailer_and_by_its_name_as_in_qemu() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut bytes = vec![1; 8192];
    bytes.extend(b"koly\0\0\0\x04\0\0\x02\0");
    bytes.resize(8192 + 512, 0);
    let by_trailer = scratch.file("x.img", &bytes);
    let by_name = scratch.file("disk.dmg", &[0; 4096]);
    for image in [&by_trailer, &by_name] {
        qcowtool(args!["flatten", image, scratch.path("target")]).refused_naming(&["a DMG image"]);
        qcowtool(args!["info", "-f", "raw", image]).ok();
    }
    fixtures::try_qemu_img(&args!["info", by_name]).unwrap_err();
}

#[test]
fn compressed_downloads_and_archives_are_refused_with_advice_that_works() {
    let scratch = Scratch::new();
    let (_, digest) = disk(&scratch);
    for (program, pack, said) in [
        ("gzip", "gzip -c disk.raw > packed", "gzip-compressed data"),
        ("xz", "xz -0 -c disk.raw > packed", "xz-compressed data"),
        ("zstd", "zstd -q -c disk.raw > packed", "zstd-compressed data"),
        ("bzip2", "bzip2 -c disk.raw > packed", "bzip2-compressed data"),
        ("lz4", "lz4 -q -c disk.raw > packed", "lz4-compressed data"),
    ] {
        if !has(program) {
            continue;
        }
        shell(scratch.dir(), pack);
        let packed = scratch.path("packed");
        let target = scratch.path("target.qcow2");
        let message = qcowtool(args!["flatten", packed, target]).refused();
        assert!(message.contains(said), "{message}");
        shell(scratch.dir(), &advice(&message, "new.raw", "packed"));
        assert_eq!(checksum(&scratch.path("new.raw"), &[]), digest, "{program}");
        // And from a stream.
        let output = received(&args!["-q"], &packed, &target);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(message.contains(said), "{message}");
        let line = advice(&message, "", "packed").replace("DST", "target.qcow2");
        shell(scratch.dir(), &line.replace("qcowtool", binary().to_str().unwrap()));
        assert_eq!(checksum(&target, &[]), digest, "{program}");
        fs::remove_file(target).unwrap();
    }
    for (program, pack, said, unpack) in [
        ("tar", "tar -cf packed disk.raw", "a tar (OVA) archive", "tar -xf"),
        ("zip", "zip -q - disk.raw > packed", "a zip archive", "unzip"),
    ] {
        if !has(program) || !has(unpack.split(' ').next().unwrap()) {
            continue;
        }
        shell(scratch.dir(), pack);
        let message = qcowtool(args!["info", scratch.path("packed")]).refused();
        assert!(message.contains(said), "{message}");
        let out = scratch.path("out");
        fs::create_dir(&out).unwrap();
        let line = advice(&message, "", "../packed");
        assert!(line.starts_with(unpack), "{line}");
        shell(&out, &line);
        assert_eq!(checksum(&out.join("disk.raw"), &[]), digest, "{program}");
        fs::remove_dir_all(out).unwrap();
    }
}

#[test]
fn a_stream_that_is_no_raw_disk_becomes_no_disk() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (raw, _) = disk(&scratch);
    let target = scratch.path("target.qcow2");
    let before = ["disk.raw", "source"];
    for (driver, options, said) in [
        ("qcow2", "cluster_size=64k", "a QCOW2 image"),
        ("vmdk", "subformat=streamOptimized", "a VMDK image"),
        // Only the end of it tells, when all of it has come.
        ("vpc", "subformat=fixed,force_size=on", "a VHD image"),
    ] {
        let source = scratch.path("source");
        qemu_img(&args!["convert", "-O", driver, "-o", options, raw, source]);
        let refusals: [&[OsString]; 5] = [
            &[],
            &args!["-O", "raw"],
            &args!["--size", fs::metadata(&source).unwrap().len().to_string()],
            &args!["--untrusted", "-f", "raw"],
            &args!["--untrusted"],
        ];
        for words in refusals {
            let output = received(words, &source, &target);
            assert_eq!(output.status.code(), Some(1), "{driver} {words:?}: {output:?}");
            let message = String::from_utf8(output.stderr).unwrap();
            let stated = words != args!["--untrusted"].as_slice();
            let said = if stated { said } else { "must be stated" };
            assert!(message.contains(said), "{driver} {words:?}: {message}");
            assert_eq!(scratch.names(), before, "{driver} {words:?}");
        }
        // Stated, it is a disk's own bytes.
        let output = received(&args!["-q", "-f", "raw"], &source, &target);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(checksum(&target, &[]), checksum(&source, &["-f", "raw"]), "{driver}");
        fs::remove_file(&target).unwrap();
    }
    let source = scratch.path("source");
    fs::write(&source, b"QFI\xfb\0\0\0\x03").unwrap();
    let output = received(&args!["-q", "-f", "raw"], &source, &target);
    let warning = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && warning.contains("looks like a QCOW2 image"), "{warning}");
    assert_eq!(warning.lines().count(), 1, "{warning}");
}

#[test]
fn disks_with_ordinary_first_sectors_are_raw() {
    let scratch = Scratch::new();
    let mut gpt = vec![0; 1 << 20];
    gpt[510..512].copy_from_slice(b"\x55\xaa");
    gpt[512..520].copy_from_slice(b"EFI PART");
    let mut ext4 = vec![0; 1 << 20];
    ext4[1080..1082].copy_from_slice(b"\x53\xef");
    // A master boot record whose code happens to have the letters of a tar header.
    let mut mbr = gpt.clone();
    mbr[257..262].copy_from_slice(b"ustar");
    for (name, bytes) in [
        ("zeros", vec![0; 4096]),
        ("empty", Vec::new()),
        ("odd", vec![b'x'; 1001]),
        ("text", b"#!/bin/sh\necho version=1\n".to_vec()),
        ("gpt", gpt),
        ("ext4", ext4),
        ("mbr", mbr),
    ] {
        let image = scratch.file(name, &bytes);
        let target = scratch.path("target.qcow2");
        let run = qcowtool(args!["flatten", "-q", image, target]);
        run.ok();
        assert_eq!(run.stderr(), "", "{name}");
        let mut padded = bytes.clone();
        padded.resize(bytes.len().next_multiple_of(512), 0);
        assert_eq!(checksum(&target, &[]), crc32_hex(&padded), "{name}");
        fs::remove_file(&target).unwrap();
        let output = received(&args!["-q"], &image, &target);
        assert!(output.status.success() && output.stderr.is_empty(), "{name}: {output:?}");
        assert_eq!(checksum(&target, &[]), crc32_hex(&padded), "{name}");
        fs::remove_file(&target).unwrap();
    }
}
