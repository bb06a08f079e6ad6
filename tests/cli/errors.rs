//! Errors as people and programs see them: one line, or one JSON object; exit code 1; nothing written.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use common::{Run, qcowtool, refused_by_us, small, small_overlay};
use fixtures::patch::{COPIED, field, magic};
use fixtures::pattern::Random;
use fixtures::{Patch, Scratch, args, needs_qemu};
use serde_json::Value;

/// The error of one command, as JSON; asserts that the same command without JSON says it in one line.
#[track_caller]
fn error_of(arguments: Vec<OsString>) -> Value {
    qcowtool(arguments.clone()).refused();
    let (command, rest) = arguments.split_first().unwrap();
    qcowtool([args![command, "--output", "json"], rest.to_vec()].concat()).refused_json()
}

#[test]
fn errors_say_whose_fault_it_is_where_and_what_to_do() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = small(&scratch, "");
    let path = image.path.clone();
    let file = path.to_str().unwrap();

    image.or_u64(image.l2_entry_at(0), 512).save();
    let error = error_of(args!["checksum", path]);
    assert_eq!(error["kind"], "corrupt");
    assert_eq!(error["file"], file);
    assert!(error["structure"].as_str().is_some_and(|s| s.contains("L2")), "{error}");

    let mut image = small(&scratch, "");
    image.set_u64(field::INCOMPATIBLE, 1 << 20).save();
    let error = error_of(args!["info", path]);
    assert_eq!(error["kind"], "unsupported");
    assert_eq!(error["file"], file);

    let mut image = small(&scratch, "");
    image.set_u32(field::L1_SIZE, u32::MAX).save();
    assert!(
        ["limit", "corrupt"].contains(&error_of(args!["info", path])["kind"].as_str().unwrap())
    );

    let mut overlay = small_overlay(&scratch, "");
    overlay.set_header_area(112, &[], true).set_backing(256, b"base.raw").save();
    let error = error_of(args!["checksum", overlay.path]);
    assert_eq!(error["kind"], "denied");
    assert!(error["hint"].as_str().is_some_and(|h| h.contains("--backing-format")), "{error}");

    let error = error_of(args!["checksum", scratch.path("nowhere")]);
    assert_eq!(error["kind"], "not-found");
    let error = error_of(args!["create", "-f", "qcow2", path, "1M"]);
    assert_eq!(error["kind"], "exists");
    assert!(error["hint"].as_str().is_some_and(|h| h.contains("--force")), "{error}");
    let error = error_of(args!["checksum", "-f", "qcow2", scratch.path("base.raw")]);
    assert_eq!(error["kind"], "wrong-format");
    let error =
        error_of(args!["create", "-f", "qcow2", "-o", "cluster_size=3", scratch.path("x"), "1M"]);
    assert_eq!(error["kind"], "usage");
}

#[test]
fn mistakes_on_the_command_line_are_one_line_too() {
    for arguments in [
        args!["no-such-command"],
        args!["info"],
        args!["info", "--no-such-option", "x"],
        args!["info", "-f", "vmdk", "x"],
        args!["create", "-f", "qcow2"],
        args!["create", "-f", "qcow2", "-b", "x", "-F", "no-such-format", "y", "1M"],
        args!["flatten", "x"],
        args!["flatten", "-O", "vmdk", "x", "y"],
        args!["flatten", "--threads", "many", "x", "y"],
        args!["flatten", "--progress", "sometimes", "x", "y"],
        args!["checksum", "x", "y"],
        args!["info", "x\n\x1b[31my"],
    ] {
        let run = qcowtool(arguments.clone());
        let line = run.refused();
        assert!(line.len() > "qcowtool: ".len(), "{arguments:?}: {line:?}");
    }
}

#[test]
fn mistakes_on_the_command_line_are_json_when_asked_for() {
    for arguments in [
        args!["info", "--output", "json", "--no-such-option", "x"],
        args!["flatten", "--output", "json", "x"],
        args!["create", "--output=json", "-f", "vmdk", "x", "1M"],
    ] {
        let error = qcowtool(arguments).refused_json();
        assert_eq!(error["kind"], "usage");
    }
}

#[test]
fn help_and_version_succeed_on_stdout() {
    for arguments in
        [args!["--help"], args!["--version"], args!["info", "--help"], args!["flatten", "-h"]]
    {
        let run = qcowtool(arguments);
        assert!(!run.ok().is_empty());
        assert_eq!(run.stderr(), "");
    }
}

#[test]
fn a_name_with_control_characters_is_shown_escaped() {
    let scratch = Scratch::new();
    let path = scratch.path("no\x1b[31m\nsuch\rfile");
    for command in ["info", "checksum"] {
        qcowtool(args![command, path]).refused();
    }
    qcowtool(args!["flatten", path, scratch.path("x")]).refused();
    let image = scratch.path("made\x1b[31m\nhere");
    let run = qcowtool(args!["create", "-f", "qcow2", image, "1M"]);
    assert!(!run.ok().contains('\x1b'), "{run:?}");
    let run = qcowtool(args!["info", image]);
    assert!(!run.ok().contains('\x1b'), "{run:?}");
    // A program gets the name itself.
    let json = qcowtool(args!["info", "--output", "json", image]).json();
    assert_eq!(json["filename"], image.to_str().unwrap());
}

#[test]
fn trap_139_a_hostile_backing_name_is_shown_escaped() {
    needs_qemu!();
    let scratch = Scratch::new();
    for format in [&b"raw"[..], b"\x1b[31mx\ny"] {
        let mut overlay = small_overlay(&scratch, "");
        overlay.set_header_area(112, &[(magic::BACKING_FORMAT, format)], true);
        overlay.set_backing(256, b"base\x1b[31m\nbacking file format: raw\r.raw").save();
        refused_by_us(&overlay.path, &[]);
        let text = qcowtool(args!["info", overlay.path]).ok();
        assert!(!text.contains('\x1b') && !text.contains('\r'), "{text:?}");
        let forged = text.lines().filter(|line| line.starts_with("backing file format")).count();
        assert_eq!(forged, 1, "{text:?}");
    }
}

/// Neither crashed nor hung nor ran away with the machine: done, or a clean refusal.
#[track_caller]
fn orderly(run: &Run) -> bool {
    if !run.succeeded() {
        run.refused();
    }
    run.succeeded()
}

#[test]
fn trap_140_to_144_any_flipped_header_byte_ends_orderly() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = small(&scratch, "cluster_size=512");
    let out = scratch.subdir("out");
    let (mut read, mut refused) = (0, 0);
    for at in 0..112 {
        for value in [0xff, 0x80, 0x01] {
            let mut image = image.clone();
            image.bytes[at] ^= value;
            // A larger disk is allowed to take long.
            if image.u64(field::SIZE) > 1 << 40 {
                continue;
            }
            image.save();
            let ok = orderly(&qcowtool(args!["checksum", "-f", "qcow2", image.path]));
            *(if ok { &mut read } else { &mut refused }) += 1;
        }
    }
    assert!(read > 20 && refused > 20, "both happen: {read} read, {refused} refused");
    assert_eq!(std::fs::read_dir(out).unwrap().count(), 0);
}

#[test]
fn trap_140_to_144_random_damage_anywhere_ends_orderly() {
    needs_qemu!();
    let scratch = Scratch::new();
    let kinds = ["cluster_size=512", "compression_type=zstd", "cluster_size=16k,extended_l2=on"];
    for (kind, options) in kinds.into_iter().enumerate() {
        let mut image = small(&scratch, options);
        fixtures::qemu_io("qcow2", &image.path, &["write -c -P 7 48k 16k"]);
        fixtures::qemu_img(&args!["snapshot", "-c", "s", image.path]);
        fixtures::qemu_img(&args!["bitmap", "--add", image.path, "b"]);
        image = Patch::open(&image.path);
        let mut random = Random::new(kind as u64);
        for round in 0..40 {
            let mut image = image.clone();
            for _ in 0..1 + random.below(6) {
                // Anywhere behind the fields that the other test covers.
                let at =
                    usize::try_from(104 + random.below(image.bytes.len() as u64 - 104)).unwrap();
                let value = [0, 0xff, 0x80, 1, 0x40][random.below(5) as usize];
                image.set_u8(at, value);
            }
            image.save();
            let target = scratch.path(format!("target{round}"));
            if !orderly(&qcowtool(args!["flatten", "-q", image.path, target])) {
                assert!(!target.exists());
            }
            let _ = std::fs::remove_file(target);
            orderly(&qcowtool(args!["info", image.path]));
            orderly(&qcowtool(args!["checksum", "--snapshot", "s", image.path]));
        }
    }
}

#[test]
fn trap_143_a_disk_of_bombs_is_read_in_bounded_memory() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = small(&scratch, "cluster_size=2M");
    // One stream of a few KiB stands for each 2 MiB of a disk of 512 MiB.
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut encoder, &vec![0; 2 << 20]).unwrap();
    image.set_u64(field::SIZE, 512 << 20).set_compressed(0, &encoder.finish().unwrap(), 0);
    let entry = image.l2_entry(0);
    for n in 0..256 {
        image.set_l2_entry(n << 21, entry);
    }
    image.save();
    // Less address space than the disk is large.
    let program = common::binary();
    let limited = format!(
        "ulimit -v 400000; exec '{}' checksum --threads 2 '{}'",
        program.display(),
        image.path.display()
    );
    let status = std::process::Command::new("sh").args(["-c", &limited]).status().unwrap();
    assert!(status.success());
}

#[test]
fn files_that_are_no_images_are_refused_as_qcow2() {
    let scratch = Scratch::new();
    for (name, bytes) in [
        ("empty", &b""[..]),
        ("short", b"QFI"),
        ("magic", b"QFI\xfb"),
        ("text", b"this is not an image\n"),
    ] {
        let path = scratch.file(name, bytes);
        refused_by_us(&path, &["-f", "qcow2"]);
        qcowtool(args!["info", "-f", "qcow2", path]).refused();
    }
}

#[test]
fn an_entry_far_outside_every_limit_is_harmless() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = small(&scratch, "");
    for entry in
        [u64::MAX, u64::MAX >> 1, COPIED | u64::MAX >> 8, 1 << 62, (1 << 62) | ((1 << 62) - 1)]
    {
        let mut image = image.clone();
        image.set_l2_entry(0, entry).save();
        orderly(&qcowtool(args!["checksum", image.path]));
        orderly(&qcowtool(args!["flatten", "-q", "-O", "raw", image.path, scratch.path("raw")]));
        let _ = std::fs::remove_file(scratch.path("raw"));
        let mut image = small(&scratch, "");
        image.set_u64(image.l1_entry_at(0), entry).save();
        orderly(&qcowtool(args!["checksum", image.path]));
    }
}

/// A program that links a library must not be told of options and programs that it does not have.
#[test]
fn the_library_names_no_option_and_no_program() {
    // Names that are data: of files, directories, hashes, forms of JSON, and QEMU's and the shell's own options.
    const DATA: &[&str] = &[
        ".qcowtool.",
        ".qcowtool-",
        "qcowtool tree hash",
        "qcowtool sample of leaves",
        "qcowtool leaves within a size",
        "qcowtool facts fingerprint",
        "qcowtool plan digest",
        "qcowtool-plan/",
        "qcowtool-preflight/",
        "qcowtool-evacuation/",
        "qcowtool-evacuated/",
        "qcowtool-{:016x}",
        "/var/lib/qcowtool/",
        "/run/qcowtool/",
        "/etc/qcowtool/",
        "/var/log/libvirt/qemu/qcowtool-hook.log",
        "urn:qcowtool:disks:1",
        "-----BEGIN CERTIFICATE-----",
        "-----END CERTIFICATE-----",
    ];
    const OPTIONS_OF_OTHERS: &[&str] = &["-flat", "-uuid", "-name", "-c"];
    let data = |text: &str| {
        DATA.iter().any(|name| text.contains(name)) || OPTIONS_OF_OTHERS.contains(&text)
    };
    // The hook is run by a script that it installs, which names this program; its reasons are read in libvirt's errors.
    let hook = |file: &PathBuf| file.components().any(|part| part.as_os_str() == "hook");
    let mut found = Vec::new();
    let migrate = product_files("migrate/src").into_iter().filter(|file| !hook(file));
    for file in product_files("qcow/src").into_iter().chain(migrate) {
        let text = std::fs::read_to_string(&file).unwrap();
        let text = text.split("#[cfg(test)]\nmod").next().unwrap();
        for literal in literals(text).into_iter().filter(|literal| !data(literal)) {
            if names_a_program_or_an_option(&literal) {
                found.push(format!("{}: {literal:?}", file.display()));
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
    assert_eq!(literals("a(\"x -U\", '\"'); // \"no\"\n\"b\\\"c\""), ["x -U", "b\\\"c"]);
    assert!(names_a_program_or_an_option("see (virsh list --all), or give --force"));
    assert!(!names_a_program_or_an_option("see (virsh list --all), well-known"));
}

/// `virsh`, which every user of libvirt has, and its options do not count.
fn names_a_program_or_an_option(literal: &str) -> bool {
    let option = |word: &str| {
        let word = word.trim_start_matches(['`', '(', '\'']).strip_prefix('-');
        word.is_some_and(|rest| rest.starts_with(|c: char| c == '-' || c.is_alphabetic()))
    };
    let mut pieces = literal.split("virsh ");
    let first = pieces.next().unwrap_or_default().to_owned();
    let end = |piece: &str| piece.find(['`', ')', ';', ',']).unwrap_or(piece.len());
    let rest = pieces.fold(first, |text, piece| text + &piece[end(piece)..]);
    ["qcowtool", "qemu-img"].iter().any(|name| rest.contains(name))
        || rest.split_whitespace().any(option)
}

/// The sources below `folder` that are not tests.
fn product_files(folder: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.join(folder)];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let tests = path.components().any(|part| part.as_os_str() == "tests")
                || path.file_name().is_some_and(|name| name == "tests.rs");
            match path.extension() {
                _ if tests => {}
                None => folders.push(path),
                Some(_) => files.push(path),
            }
        }
    }
    assert!(files.len() > 50);
    files
}

/// The string literals of a source text, comments left out. Raw strings have no quotes inside here.
fn literals(text: &str) -> Vec<String> {
    let mut literals = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(['"', '/', '\'']) {
        let (before, found) = rest.split_at(at);
        rest = &found[1..];
        if found.starts_with("//") {
            rest = found.split_once('\n').map_or("", |(_, next)| next);
        } else if let Some(next) = ["'\"'", "'\\\"'"].iter().find_map(|c| found.strip_prefix(c)) {
            rest = next;
        } else if found.starts_with('"') {
            let escapes = !before.ends_with('r');
            let mut escaped = false;
            let end = rest.find(|c| {
                let ends = c == '"' && !escaped;
                escaped = escapes && c == '\\' && !escaped;
                ends
            });
            let (literal, next) = rest.split_at(end.unwrap());
            literals.push(literal.to_owned());
            rest = &next[1..];
        }
    }
    literals
}
