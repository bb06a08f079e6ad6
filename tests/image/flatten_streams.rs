//! Images that go to standard output and come from standard input.

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Output, Stdio};
use std::thread;

use common::{checksum, command, flattened, qcowtool};
use fixtures::pattern::{mixed, noise, write_raw};
use fixtures::{Scratch, args, assert_bytes, crc32_hex, needs_qemu, qemu, qemu_io};
use serde_json::Value;

/// Two layers with data that packs, data that does not, zeros, holes and a short last cluster.
fn chain(scratch: &Scratch) -> std::path::PathBuf {
    let raw = scratch.path("base.raw");
    let (packs, noise) = (mixed(1, 5 << 18), noise(2, 5 << 20));
    let both: Vec<u8> = (0..16)
        .flat_map(|i| [&packs[i << 16..][..70_000], &noise[i << 16..][..50_000]].concat())
        .collect();
    write_raw(
        &raw,
        (48 << 20) + 1536,
        &[
            (4096, &packs),
            (8 << 20, &noise),
            (17 << 20, &both),
            (30 << 20, &[0; 1 << 20]),
            (48 << 20, &[3; 1000]),
        ],
    );
    let top = scratch.path("top.qcow2");
    qemu::overlay(&top, &raw, "raw", "cluster_size=4k", "");
    qemu_io("qcow2", &top, &["write -P 7 5M 1M", "write -z 9M 2M", "write -P 8 100k 3k"]);
    top
}

fn words(options: &str) -> Vec<OsString> {
    options.split_whitespace().map(Into::into).collect()
}

/// Runs with standard output into a pipe.
fn sent(options: &str, source: &Path) -> Output {
    command(&[args!["flatten"], words(options), args![source, "-"]].concat()).output().unwrap()
}

/// Runs with `bytes` in a pipe as standard input.
fn received(options: &str, bytes: Vec<u8>, target: &Path) -> Output {
    let mut command = command(&[args!["flatten"], words(options), args!["-", target]].concat());
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // It may end early, and then nobody reads.
    let writer = thread::spawn(move || drop(stdin.write_all(&bytes)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

fn complaint(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn a_qcow2_stream_is_the_file_byte_for_byte() {
    needs_qemu!();
    let scratch = Scratch::new();
    let top = chain(&scratch);
    let (file, stream) = (scratch.path("file"), scratch.path("stream"));
    for options in [
        "",
        "-o cluster_size=512",
        "-o cluster_size=2M,refcount_bits=1",
        "-o extended_l2=on",
        "-c --threads 1",
        "-c --threads 5",
        "-c --threads 3 -o cluster_size=512",
        "-c -o compression_type=zstd,cluster_size=4k",
        "-c -o compression_type=zstd,cluster_size=2M",
        "-o compat=0.10",
    ] {
        qcowtool([args!["flatten", "--force"], words(options), args![top, file]].concat()).ok();
        let output = sent(options, &top);
        assert!(output.status.success(), "{options}: {output:?}");
        assert_bytes!(output.stdout, fs::read(&file).unwrap(), "{options}");
        fs::write(&stream, &output.stdout).unwrap();
        qemu::assert_clean(&stream);
        qemu::assert_same("qcow2", &top, "qcow2", &stream);
    }
}

#[test]
fn a_raw_stream_is_the_whole_disk() {
    needs_qemu!();
    let scratch = Scratch::new();
    let top = chain(&scratch);
    let output = sent("-O raw --threads 4 --digest", &top);
    assert_bytes!(output.stdout, flattened(&top, &[]));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(&format!("crc32: {}\n", checksum(&top, &[]))), "{said}");
    assert!(said.contains("to '-': raw, 48 MiB"), "{said}");
}

#[test]
fn an_empty_disk_streams_too() {
    needs_qemu!();
    let scratch = Scratch::new();
    let empty = scratch.path("empty");
    qemu::create(&empty, "", "3M");
    assert_bytes!(sent("-q -O raw", &empty).stdout, vec![0; 3 << 20]);
    let stream = scratch.file("stream", &sent("-q", &empty).stdout);
    qemu::assert_clean(&stream);
    qemu::assert_same("qcow2", &empty, "qcow2", &stream);
}

#[test]
fn the_report_of_a_stream_goes_to_standard_error() {
    needs_qemu!();
    let scratch = Scratch::new();
    let top = chain(&scratch);
    let output = sent("--output json --progress always -v", &top);
    let text = String::from_utf8(output.stderr).unwrap();
    let outcome: Value = serde_json::from_str(&text[text.find("\n{").unwrap()..]).unwrap();
    assert_eq!(outcome["filename"], "-");
    assert_eq!(outcome["file-length"], output.stdout.len());
    assert_eq!(outcome["written-bytes"], output.stdout.len());
    assert_eq!(sent("-q", &top).stderr, b"");
}

#[test]
fn a_reader_that_goes_away_is_an_error() {
    needs_qemu!();
    let scratch = Scratch::new();
    let top = chain(&scratch);
    for options in ["-O raw", "", "-c"] {
        let mut command = command(&[args!["flatten"], words(options), args![top, "-"]].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut start = [0; 10_000];
        child.stdout.take().unwrap().read_exact(&mut start).unwrap();
        let line = complaint(&child.wait_with_output().unwrap());
        assert!(line.contains("stream") && line.contains("reader ended"), "{options}: {line}");
    }
}

#[test]
fn what_a_stream_cannot_hold_is_refused() {
    needs_qemu!();
    let scratch = Scratch::new();
    let top = chain(&scratch);
    for (options, word) in [
        ("-o data_file=data", "data file"),
        ("-o preallocation=metadata", "preallocation"),
        ("-O raw -o preallocation=full", "preallocation"),
        ("-O raw -c", "compressed"),
        ("--size 48M", "--size"),
    ] {
        let output = sent(options, &top);
        assert_eq!(output.stdout, b"", "{options}");
        assert!(complaint(&output).contains(word), "{options}: {output:?}");
    }
    let target = scratch.path("target");
    for (options, word) in [
        ("-f qcow2", "raw"),
        ("--snapshot 1", "snapshot"),
        ("-o data_file=data", "data file"),
        ("-o preallocation=falloc", "preallocation"),
        ("-O raw -o preallocation=full", "preallocation"),
    ] {
        let line = complaint(&received(options, vec![1; 512], &target));
        assert!(line.contains(word), "{options}: {line}");
        assert!(!target.exists(), "{options}");
    }
    assert!(complaint(&received("", vec![1; 512], Path::new("-"))).contains("both be streams"));
}

#[test]
fn standard_output_may_not_be_the_source() {
    let scratch = Scratch::new();
    let source = scratch.file("source", &[5; 65536]);
    let append = fs::OpenOptions::new().append(true).open(&source).unwrap();
    let mut command = command(&args!["flatten", "-f", "raw", source, "-"]);
    let output = command.stdout(append).stderr(Stdio::piped()).spawn().unwrap();
    assert!(complaint(&output.wait_with_output().unwrap()).contains("standard output"));
    assert_bytes!(fs::read(&source).unwrap(), [5; 65536]);
}

#[test]
fn a_raw_stream_becomes_an_image() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut disk = vec![0; (9 << 20) + 1000];
    disk[100_000..4_000_000].copy_from_slice(&noise(7, 3_900_000));
    disk[(9 << 20) + 10] = 1;
    let source = scratch.file("disk.raw", &disk);
    let whole = [disk.clone(), vec![0; 24]].concat();
    let target = scratch.path("target");
    for options in [
        "",
        "-O raw",
        "--size 9438184",
        "-c",
        "-c -o cluster_size=512 --threads 3",
        "-o extended_l2=on",
        "-o cluster_size=2M --digest",
        "-O raw --digest --threads 1",
    ] {
        let output = received(&format!("--force {options}"), disk.clone(), &target);
        assert!(output.status.success(), "{options}: {output:?}");
        let format = if options.contains("raw") { "raw" } else { "qcow2" };
        if format == "qcow2" {
            qemu::assert_clean(&target);
        }
        assert_bytes!(qemu::raw_of(format, &target), whole, "{options}");
        if options.contains("digest") {
            let said = String::from_utf8(output.stdout).unwrap();
            assert!(said.contains(&crc32_hex(&whole)), "{said}");
        }
        qemu::assert_same("raw", &source, format, &target);
        let stored = fs::metadata(&target).unwrap();
        use std::os::unix::fs::MetadataExt;
        assert!(stored.blocks() * 512 < 6 << 20, "{options}: zeros are left out");
    }
    let empty = received("--force", Vec::new(), &target);
    assert!(empty.status.success(), "{empty:?}");
    qemu::assert_clean(&target);
    assert_eq!(qemu::info(&target)["virtual-size"], 0);
}

#[test]
fn a_stream_of_another_length_than_said_leaves_nothing() {
    let scratch = Scratch::new();
    let target = scratch.path("target");
    // The first ends within what is read at once.
    let cases = [
        ("1000", 4096, "more than 1000"),
        ("9000000", 10 << 20, "more than 9000000"),
        ("30M", 10 << 20, "ended after 10485760"),
    ];
    for (size, sent, word) in cases {
        let line = complaint(&received(&format!("--size {size}"), noise(1, sent), &target));
        assert!(line.contains(word) && line.contains("--size"), "{line}");
        assert_eq!(scratch.names(), [""; 0]);
    }
}

#[test]
fn from_one_to_the_other_through_a_pipe() {
    needs_qemu!();
    let scratch = Scratch::new();
    let top = chain(&scratch);
    let target = scratch.path("target");
    let mut sender = command(&args!["flatten", "-q", "-O", "raw", top, "-"]);
    let mut sender = sender.stdout(Stdio::piped()).spawn().unwrap();
    let mut receiver = command(&args!["flatten", "-q", "-", target]);
    let status = receiver.stdin(sender.stdout.take().unwrap()).status().unwrap();
    assert!(status.success() && sender.wait().unwrap().success());
    qemu::assert_clean(&target);
    qemu::assert_same("qcow2", &top, "qcow2", &target);
}
