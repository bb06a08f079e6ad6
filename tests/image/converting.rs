//! `convert`, `dd` and `bench`, with the options of `qemu-img`.

use std::fs;
use std::path::PathBuf;

use common::qcowtool;
use fixtures::{Scratch, args, assert_bytes, crc32_hex, needs_qemu, qemu, qemu_img};

/// An overlay with all kinds of clusters on a base.
fn overlay(scratch: &Scratch) -> PathBuf {
    let (base, top) = (scratch.path("base.qcow2"), scratch.path("top.qcow2"));
    qemu::create(&base, "", "4M");
    qemu::qemu_io("qcow2", &base, &["write -P 1 0 1M", "write -P 2 3M 512k"]);
    qemu::overlay(&top, "base.qcow2", "qcow2", "", "");
    let writes = [
        "write -P 3 512k 300k",
        "write -z 3M 64k",
        "write -P 4 12345 20000",
        "write -c -P 9 2M 64k",
    ];
    qemu::qemu_io("qcow2", &top, &writes);
    top
}

#[test]
fn a_source_is_named_by_driver_options_as_qemu_img_takes_them() {
    needs_qemu!();
    let scratch = Scratch::new();
    let top = overlay(&scratch);
    let comma = scratch.path("a,b.qcow2");
    fs::copy(&top, &comma).unwrap();
    let raw = scratch.file("disk.raw", &fixtures::pattern::noise(1, 1 << 20));
    let other = scratch.path("other.qcow2");
    qemu::create(&other, "", "4M");
    qemu::qemu_io("qcow2", &other, &["write -P 5 0 4M"]);
    let (top, raw, other) = (top.display(), raw.display(), other.display());
    for options in [
        format!("driver=qcow2,file.filename={top}"),
        format!("driver=qcow2,file.driver=file,file.filename={top},cache.direct=off"),
        format!("file.filename={top},driver=qcow2,read-only=on,file.locking=off"),
        format!("driver=qcow2,file.filename={}", comma.display().to_string().replace(',', ",,")),
        format!("driver=raw,file.filename={raw}"),
        format!("driver=raw,offset=4096,size=65536,file.filename={raw}"),
        format!(
            "driver=qcow2,file.filename={top},backing.driver=qcow2,backing.file.filename={other}"
        ),
    ] {
        let (ours, theirs) = (scratch.path("ours"), scratch.path("theirs"));
        qcowtool(args!["convert", "-q", "--force", "--image-opts", options, ours]).ok();
        qemu_img(&args!["convert", "-O", "qcow2", "--image-opts", options, theirs]);
        qemu::assert_same("qcow2", &ours, "qcow2", &theirs);
    }
    let gone = scratch.path("gone");
    for (options, words) in [
        (format!("{top}"), "Cannot find device"),
        (format!("driver=qcow2,file.filename={top},foo=1"), "does not support the option 'foo'"),
        (format!("driver=vmdk,file.filename={top}"), "Unknown driver 'vmdk'"),
        (format!("driver=qcow2,file.driver=nbd,file.filename={top}"), "nbd"),
    ] {
        let refused = qcowtool(args!["convert", "--image-opts", options, gone]);
        refused.refused_naming(&[words]);
        assert!(!gone.exists(), "{options}");
    }
    let both = args!["convert", "-f", "qcow2", "--image-opts", "file.filename=x", gone];
    qcowtool(both).refused_naming(&["cannot be used with"]);
}

#[test]
fn new_images_have_the_content_that_qemu_img_gives_them() {
    needs_qemu!();
    let scratch = Scratch::new();
    let top = overlay(&scratch);
    let small = [scratch.file("one.raw", &[1; 1000]), scratch.file("two.raw", &[2; 700])];
    qemu_img(&args!["snapshot", "-c", "s", top]);
    qemu::qemu_io("qcow2", &top, &["write -P 8 0 64k"]);
    let cases: [(&str, &str, &[&PathBuf]); 11] = [
        ("-O qcow2", "", &[&top]),
        ("-O qcow2", "-c -o cluster_size=4k,size=1M -m 2 -W -t none", &[&top]),
        ("-O raw", "-S 0", &[&top]),
        ("-O raw", "-S 64k -C -T none", &[&top]),
        ("-O qcow2", "-S 0", &[&top]),
        ("-O qcow2", "-S 0 -c", &[&top]),
        ("-O qcow2", "-S 128k -o extended_l2=on -r 1G", &[&top]),
        ("-O qcow2", "-l s", &[&top]),
        ("-O raw", "-l snapshot.name=s", &[&top]),
        ("-O qcow2", "-f raw", &[&small[0], &small[1]]),
        ("-O raw", "", &[&top, &scratch.path("base.qcow2")]),
    ];
    for (number, (format, options, sources)) in cases.into_iter().enumerate() {
        let (ours, theirs) =
            (scratch.path(format!("ours{number}")), scratch.path(format!("theirs{number}")));
        let words: Vec<_> =
            format!("{format} {options}").split_whitespace().map(Into::into).collect();
        let sources: Vec<_> = sources.iter().map(|path| path.as_os_str().to_owned()).collect();
        // Not everywhere can the page cache be passed by, and -C goes with no -S.
        let drop =
            |word: &std::ffi::OsString| !["-t", "-T", "none", "-C"].iter().any(|w| word == w);
        let kept: Vec<_> = words.iter().filter(|word| drop(word)).cloned().collect();
        qcowtool([args!["convert", "-q"], kept.clone(), sources.clone(), args![ours]].concat())
            .ok();
        qemu_img(&[args!["convert"], kept, sources, args![theirs]].concat());
        let format = format.trim_start_matches("-O ");
        qemu::assert_same(format, &ours, format, &theirs);
        if format == "qcow2" {
            qemu::assert_clean(&ours);
        }
    }
}

#[test]
fn onto_a_backing_file_only_what_differs_is_stored() {
    needs_qemu!();
    let scratch = Scratch::new();
    let top = overlay(&scratch);
    let expected = qemu::raw_of("qcow2", &top);
    let other = scratch.file("other.raw", &vec![1; 3 << 20]);
    for (backing, format, options) in [
        ("base.qcow2", "qcow2", ""),
        ("base.qcow2", "qcow2", "-c -o cluster_size=4k"),
        ("other.raw", "raw", "-o compat=0.10"),
        ("other.raw", "raw", "-o extended_l2=on"),
    ] {
        let new = scratch.path("new.qcow2");
        let options: Vec<_> = options.split_whitespace().map(Into::into).collect();
        let onto =
            args!["convert", "--force", "--output", "json", "-B", backing, "-F", format, top, new];
        let done = qcowtool([onto, options].concat()).json();
        assert_eq!(done["verified"], true);
        assert_bytes!(qemu::raw_of("qcow2", &new), expected, "onto {backing}");
        qemu::assert_clean(&new);
        let stored = done["data-bytes"].as_u64().unwrap();
        assert!(stored > 0 && stored < 2 << 20, "{done}");
        assert_eq!(qemu::info(&new)["backing-filename"], backing);
    }
    assert_bytes!(fs::read(other).unwrap(), vec![1; 3 << 20], "the backing file");
    qcowtool(args!["convert", "-B", "other.raw", top, scratch.path("x")])
        .refused_naming(&["-F qcow2"]);
    qcowtool(args!["convert", "-B", "gone", "-F", "raw", top, scratch.path("x")])
        .refused_naming(&["gone"]);
    assert!(!scratch.path("x").exists(), "nothing is left");
}

#[test]
fn an_existing_image_gets_the_disk_and_keeps_what_follows_it() {
    needs_qemu!();
    let scratch = Scratch::new();
    let top = overlay(&scratch);
    let source = qemu::raw_of("qcow2", &top);
    let existing = scratch.path("existing.qcow2");
    qemu::create(&existing, "cluster_size=4k", "5M");
    qemu::qemu_io("qcow2", &existing, &["write -P 7 0 5M"]);
    qemu_img(&args!["snapshot", "-c", "s", existing]);
    let done =
        qcowtool(args!["convert", "-n", "-O", "qcow2", "--output", "json", top, existing]).json();
    assert_eq!((&done["crc32"], &done["verified"]), (&crc32_hex(&source).into(), &true.into()));
    let mut expected = source.clone();
    expected.resize(5 << 20, 7);
    assert_bytes!(qemu::raw_of("qcow2", &existing), expected, "the existing image");
    assert_bytes!(
        qemu::try_raw_of("qcow2", &existing, Some("s")).unwrap(),
        vec![7; 5 << 20],
        "its snapshot"
    );
    qemu::assert_clean(&existing);
    let small = scratch.path("small.qcow2");
    qemu::create(&small, "", "1M");
    qcowtool(args!["convert", "-n", top, small]).refused_naming(&["does not fit"]);
    let raw = scratch.file("existing.raw", &vec![7; 5 << 20]);
    qcowtool(args!["convert", "-q", "-n", "-O", "raw", top, raw]).ok();
    assert_bytes!(fs::read(raw).unwrap(), expected, "the existing raw disk");
    // Its overlays would read as something else.
    qcowtool(args!["convert", "-n", "-O", "qcow2", existing, scratch.path("base.qcow2")])
        .refused_naming(&["top.qcow2"]);
    for source in ["top.qcow2", "base.qcow2"] {
        let source = scratch.path(source);
        qcowtool(args!["convert", "--force", top, scratch.path("base.qcow2"), source]).refused();
    }
}

#[test]
fn dd_copies_the_blocks_that_qemu_img_dd_copies() {
    needs_qemu!();
    let scratch = Scratch::new();
    let top = overlay(&scratch);
    for operands in [
        "bs=64k count=12 skip=3",
        "bs=1M skip=2",
        "count=3",
        "bs=1000 count=700 skip=13",
        "bs=1M count=9",
    ] {
        let (ours, theirs) = (scratch.path("ours"), scratch.path("theirs"));
        let words: Vec<_> = operands.split(' ').map(Into::into).collect();
        let files =
            |of: &PathBuf| args![format!("if={}", top.display()), format!("of={}", of.display())];
        qcowtool([args!["dd", "-q", "-O", "raw", "--force"], files(&ours), words.clone()].concat())
            .ok();
        qemu_img(&[args!["dd", "-O", "raw"], words, files(&theirs)].concat());
        assert_bytes!(fs::read(&ours).unwrap(), fs::read(&theirs).unwrap(), "{operands}");
    }
    qcowtool(args!["dd", format!("if={}", top.display()), "of=x", "skip=9999999"])
        .refused_naming(&["skip"]);
    qcowtool(args![
        "dd",
        format!("if={}", top.display()),
        format!("of={}", top.display()),
        "--force"
    ])
    .refused_naming(&["one of the images being read"]);
}

#[test]
fn bench_sends_what_was_asked_for() {
    needs_qemu!();
    let scratch = Scratch::new();
    let top = overlay(&scratch);
    let before = fs::read(&top).unwrap();
    let text =
        qcowtool(args!["bench", "-c", "100", "-d", "3", "-s", "64k", "-S", "128k", top]).ok();
    assert!(text.contains("Sending 100 read requests, 65536 bytes each, 3 in parallel"), "{text}");
    assert!(text.contains("Run completed in "), "{text}");
    assert_bytes!(fs::read(&top).unwrap(), before, "reading changes nothing");
    let write = args![
        "bench",
        "-w",
        "-c",
        "64",
        "-d",
        "2",
        "-s",
        "64k",
        "--pattern",
        "0x55",
        "--flush-interval",
        "8",
        "--output",
        "json",
        top
    ];
    let done = qcowtool(write).json();
    assert_eq!((&done["requests"], &done["flushes"]), (&64.into(), &8.into()));
    assert_bytes!(qemu::raw_of("qcow2", &top), vec![0x55; 4 << 20], "all was written");
    qemu::assert_clean(&top);
    // The first request that does not fit before the end fails.
    let failed = qcowtool(args!["bench", "-c", "100", "-s", "64k", "-o", "4000k", top]);
    assert_eq!(failed.code(), Some(1));
    assert!(failed.stderr().contains("past the end") || failed.stderr().contains("pass the end"));
}
