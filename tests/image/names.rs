//! Which file a backing name means, and which names are never followed.

use std::os::unix::fs::symlink;
use std::path::Path;

use common::{
    checksum, content_like_qemu, info_like_qemu, qcowtool, qcowtool_in, reads_like_qemu,
    refused_by_us, small, small_overlay,
};
use fixtures::patch::magic;
use fixtures::pattern::noise;
use fixtures::{
    Patch, Scratch, args, assert_bytes, crc32_hex, needs_qemu, qemu, qemu_img, qemu_io,
};

/// The noise that `small_overlay` shows through.
fn base() -> Vec<u8> {
    noise(0xba5e, 64 << 10)
}

/// An overlay whose header names `backing`, unopened, of the given format.
fn named(scratch: &Scratch, backing: &str, format: &str) -> Patch {
    let mut overlay = small_overlay(scratch, "");
    overlay.set_header_area(112, &[(magic::BACKING_FORMAT, format.as_bytes())], true);
    overlay.set_backing(256, backing.as_bytes()).save();
    overlay
}

#[test]
fn odd_characters_in_relative_names() {
    needs_qemu!();
    let names = [
        "with spaces.raw",
        "./colon:after a slash.raw",
        "sub/a:b.raw",
        "comma,separated=options.raw",
        "Überraschung-鍵-🗝.raw",
        "single'double\".raw",
        "line\nbreak\ttab.raw",
        "percent%20%s%n.raw",
        "back\\slash.raw",
        "#hash?question&and;semi.raw",
        "{brace}[bracket]*.raw",
        "./-dash.raw",
        "../outside.raw",
        "sub/../dots/.././././x.raw",
    ];
    let scratch = Scratch::new();
    for (i, name) in names.into_iter().enumerate() {
        let inner = scratch.subdir(format!("{i}/inner"));
        scratch.subdir(format!("{i}/inner/sub"));
        scratch.subdir(format!("{i}/inner/dots"));
        std::fs::write(inner.join(name), base()).unwrap();
        let overlay = inner.join("overlay.qcow2");
        qemu::overlay(&overlay, name, "raw", "", "");
        assert_bytes!(reads_like_qemu(&overlay), base(), "{name}");
    }
}

#[test]
fn odd_characters_in_the_names_of_source_and_target() {
    needs_qemu!();
    let scratch = Scratch::new();
    for name in ["with spaces", "a:b", "comma,x=y", "鍵", "line\nbreak", "{}", "-dash"] {
        let dir = scratch.subdir(format!("dir of {name}"));
        std::fs::write(dir.join("base"), base()).unwrap();
        let overlay = dir.join(name);
        qemu::overlay(format!("{}", overlay.display()), "base", "raw", "", "");
        assert_eq!(checksum(&overlay, &[]), crc32_hex(&base()), "{name}");
        info_like_qemu(&overlay, &["--backing-chain"]);
        let target = dir.join(format!("target {name}"));
        qcowtool(args!["flatten", "-O", "raw", overlay, target]).ok();
        assert_bytes!(std::fs::read(target).unwrap(), base(), "{name}");
    }
}

#[test]
fn absolute_names() {
    needs_qemu!();
    let scratch = Scratch::new();
    let overlay = scratch.subdir("a").join("overlay.qcow2");
    let place = scratch.file("base.raw", &base());
    qemu::overlay(&overlay, &place, "raw", "", "");
    assert_bytes!(reads_like_qemu(&overlay), base());
    // The name still says where the base is when the overlay has moved.
    let moved = scratch.subdir("b").join("moved.qcow2");
    std::fs::rename(overlay, &moved).unwrap();
    assert_bytes!(reads_like_qemu(&moved), base());
}

#[test]
fn trap_102_a_symbolic_links_own_directory_counts() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (real, links) = (scratch.subdir("real"), scratch.subdir("links"));
    for (dir, fill) in [(&real, 1), (&links, 2)] {
        std::fs::write(dir.join("base.raw"), vec![fill; 65536]).unwrap();
    }
    qemu::overlay(real.join("overlay"), "base.raw", "raw", "", "");
    symlink("../real/overlay", links.join("overlay")).unwrap();
    let content = reads_like_qemu(&links.join("overlay"));
    assert!(content.iter().all(|&b| b == 2), "QEMU resolves beside the link");
}

#[test]
fn trap_103_file_names_with_the_file_prefix() {
    needs_qemu!();
    let scratch = Scratch::new();
    let place = scratch.path("base.raw");
    let overlay = named(&scratch, &format!("file:{}", place.display()), "raw");
    content_like_qemu("qcow2", &overlay.path, &[]);
    assert_eq!(checksum(&overlay.path, &[]), crc32_hex(&base()));
    // As a source too.
    let source = format!("file:{}", overlay.path.display());
    let outcome = qcowtool(args!["checksum", "--output", "json", source]).json();
    assert_eq!(outcome["crc32"], crc32_hex(&base()));
}

#[test]
fn trap_103_protocols_are_refused_by_name_and_still_listed() {
    needs_qemu!();
    let scratch = Scratch::new();
    let names = [
        ("nbd://127.0.0.1:1/export", "nbd"),
        ("nbd:unix:/nowhere/socket", "nbd"),
        ("nbd+unix:///x?socket=/nowhere", "nbd"),
        ("http://127.0.0.1:1/disk.raw", "http"),
        ("https://127.0.0.1:1/disk.raw", "https"),
        ("ssh://127.0.0.1:1/disk.raw", "ssh"),
        ("rbd:pool/image", "rbd"),
        ("iscsi://127.0.0.1:1/x/1", "iscsi"),
        ("gluster://127.0.0.1:1/vol/x", "gluster"),
        ("fat:rw:/tmp", "fat"),
        ("no-such-protocol:thing", "no-such-protocol"),
        (r#"json:{"driver":"raw","file":{"driver":"nbd","host":"127.0.0.1","port":"1"}}"#, "nbd"),
        (
            r#"json:{"driver":"raw","file.driver":"https","file.url":"https://127.0.0.1:1"}"#,
            "https",
        ),
        (r#"json:{"driver":"nbd","host":"127.0.0.1","port":"1"}"#, "nbd"),
    ];
    for (name, protocol) in names {
        let overlay = named(&scratch, name, "raw");
        let message = refused_by_us(&overlay.path, &[]);
        assert!(message.contains(protocol), "{name}: {message}");
        let error = qcowtool(args!["checksum", "--output", "json", overlay.path]).refused_json();
        assert_eq!(error["kind"], "unsupported", "{name}: refused before anything was tried");
        // What does not open the backing file goes on working.
        let info = qcowtool(args!["info", "--output", "json", overlay.path]).json();
        assert_eq!(info["backing-filename"], name);
    }
}

#[test]
fn json_names_of_files() {
    needs_qemu!();
    let scratch = Scratch::new();
    let place = scratch.path("base.raw").display().to_string();
    let inner = scratch.path("inner.qcow2").display().to_string();
    scratch.file("base.raw", &base());
    qemu::overlay(&inner, "base.raw", "raw", "", "");
    let names = [
        format!(r#"json:{{"driver":"raw","file":{{"driver":"file","filename":"{place}"}}}}"#),
        format!(r#"json:{{"driver":"raw","file.driver":"file","file.filename":"{place}"}}"#),
        format!(r#"json:{{"file":{{"filename":"{place}","driver":"file"}},"driver":"raw"}}"#),
        format!(r#"json:{{"driver":"qcow2","file":{{"driver":"file","filename":"{inner}"}}}}"#),
        format!(
            r#"json:{{ "driver" : "qcow2" , "file.driver":"file", "file.filename":"{inner}" }}"#
        ),
        format!(r#"json:{{"file.filename":"{place}"}}"#),
        format!(r#"json:{{"file":{{"filename":"{inner}"}}}}"#),
    ];
    for name in names {
        let format = if name.contains("inner") { "qcow2" } else { "raw" };
        let overlay = named(&scratch, &name, format);
        content_like_qemu("qcow2", &overlay.path, &[]);
        assert_eq!(checksum(&overlay.path, &[]), crc32_hex(&base()), "{name}");
    }
}

#[test]
fn info_shows_json_and_file_names_as_qemu_does() {
    needs_qemu!();
    let scratch = Scratch::new();
    let place = scratch.path("base.raw").display().to_string();
    let names = [
        format!("file:{place}"),
        format!(r#"json:{{"driver":"raw","file":{{"driver":"file","filename":"{place}"}}}}"#),
        format!(r#"json:{{ "file.filename": "{place}", "driver":"raw" }}"#),
    ];
    for name in names {
        let overlay = named(&scratch, &name, "raw");
        info_like_qemu(&overlay.path, &[]);
        info_like_qemu(&overlay.path, &["--backing-chain"]);
    }
}

#[test]
fn json_names_with_more_than_a_file_read_alike_or_are_refused() {
    needs_qemu!();
    let scratch = Scratch::new();
    let place = scratch.path("base.raw").display().to_string();
    let file = format!(r#""file":{{"driver":"file","filename":"{place}"}}"#);
    let names = [
        format!(r#"json:{{"driver":"raw","offset":4096,{file}}}"#),
        format!(r#"json:{{"driver":"raw","offset":"4096","size":"8192",{file}}}"#),
        format!(r#"json:{{"driver":"raw","size":8192,{file}}}"#),
        format!(r#"json:{{"driver":"raw","read-only":true,{file}}}"#),
        format!(r#"json:{{"driver":"throttle","throttle-group":"x",{file}}}"#),
        format!(r#"json:{{"driver":"qcow2","backing":null,{file}}}"#),
        format!(r#"json:{{"driver":"raw","file":{{"driver":"raw",{file}}}}}"#),
        r#"json:{"driver":"null-co","size":65536}"#.into(),
        r#"json:{"driver":"raw","file":"node-name"}"#.into(),
        r#"json:{"driver":"raw"}"#.into(),
        "json:{}".into(),
        "json:[]".into(),
        "json:null".into(),
        "json:".into(),
        r#"json:{"driver":"raw","file":{"driver":"file","filename":17}}"#.into(),
        format!(r#"json:{{"driver":"raw",{file}}} trailing"#),
        format!(r#"json:{{"driver":"raw","driver":"qcow2",{file}}}"#),
        format!("json:{}", "[".repeat(600)),
        format!("json:{}1{}", r#"{"a":"#.repeat(150), "}".repeat(150)),
    ];
    for name in names {
        let overlay = named(&scratch, &name, "raw");
        let ours = qcowtool(args!["checksum", "--output", "json", overlay.path]);
        if ours.succeeded() {
            let theirs = qemu::try_raw_of("qcow2", &overlay.path, None);
            let theirs = theirs.unwrap_or_else(|e| panic!("{name}: only QEMU refuses it: {e}"));
            assert_eq!(ours.json()["crc32"], crc32_hex(&theirs), "{name}");
        } else {
            refused_by_us(&overlay.path, &[]);
        }
    }
}

#[test]
fn trap_104_a_json_name_as_the_source_with_a_relative_backing_name() {
    needs_qemu!();
    let scratch = Scratch::new();
    let overlay = small_overlay(&scratch, "").path;
    let name = format!(
        r#"json:{{"driver":"qcow2","file":{{"driver":"file","filename":"{}"}}}}"#,
        overlay.display()
    );
    // A plain file behind the name, so that the relative backing name still has a directory.
    let outcome = qcowtool(args!["checksum", "--output", "json", name]).json();
    let theirs = qemu::try_raw_of("qcow2", &name, None).unwrap();
    assert_eq!(outcome["crc32"], crc32_hex(&theirs));
}

#[test]
fn trap_101_a_backing_file_of_unrecorded_format_is_refused_with_the_way_out() {
    needs_qemu!();
    let scratch = Scratch::new();
    for compat in ["0.10", "1.1"] {
        let mut overlay = small_overlay(&scratch, &format!("compat={compat}"));
        let header = if compat == "0.10" { 72 } else { 112 };
        overlay.set_header_area(header, &[], true).set_backing(256, b"base.raw").save();
        let message = refused_by_us(&overlay.path, &[]);
        assert!(message.contains("--backing-format") && message.contains("base.raw"), "{message}");
        let digest = checksum(&overlay.path, &["--backing-format", "raw"]);
        assert_eq!(digest, crc32_hex(&base()));
        info_like_qemu(&overlay.path, &[]);
        let run = qcowtool(args!["info", "--backing-chain", overlay.path]);
        assert_eq!(run.code(), Some(1));
        assert!(run.stdout().contains("backing file: base.raw"), "{}", run.stdout());
        qcowtool(args!["info", "--backing-chain", "--backing-format", "raw", overlay.path]).ok();
    }
    // The option does not overrule what is recorded.
    let overlay = small_overlay(&scratch, "").path;
    assert_eq!(checksum(&overlay, &["--backing-format", "qcow2"]), crc32_hex(&base()));
}

#[test]
fn trap_101_145_content_that_looks_like_an_image_is_content() {
    needs_qemu!();
    let scratch = Scratch::new();
    scratch.file("secret", &[0x5e; 65536]);
    // A guest wrote an overlay on a file of the host into its raw disk.
    let disk = scratch.path("guest-disk");
    qemu::overlay(&disk, "secret", "raw", "cluster_size=4k", "64k");
    let bytes = std::fs::read(&disk).unwrap();
    let overlay = scratch.path("overlay");
    qemu::overlay(&overlay, "guest-disk", "raw", "", "");
    assert_bytes!(reads_like_qemu(&overlay)[..bytes.len()], bytes);
    assert_eq!(
        checksum(&disk, &["-f", "raw"]),
        crc32_hex(&qemu::raw_of("raw", &disk)),
        "-f raw pins the format"
    );
    // The disk of a nested guest.
    let outer = scratch.path("outer");
    qemu::create(&outer, "", "1M");
    qemu_io("qcow2", &outer, &[format!("write -s {} 0 {}", disk.display(), bytes.len())]);
    assert_bytes!(reads_like_qemu(&outer)[..bytes.len()], bytes);
}

#[test]
fn other_formats_are_refused_by_name() {
    needs_qemu!();
    let scratch = Scratch::new();
    for (format, said) in [
        ("vmdk", "vmdk"),
        ("vdi", "vdi"),
        ("vhdx", "vhdx"),
        ("vpc", "vhd"),
        ("qcow", "qcow"),
        ("qed", "qed"),
        ("parallels", "parallels"),
    ] {
        let image = scratch.path(format!("disk.{format}"));
        qemu_img(&args!["create", "-q", "-f", format, image, "4M"]);
        let message = refused_by_us(&image, &[]);
        assert!(message.to_lowercase().contains(said), "{format}: {message}");
        qcowtool(args!["info", image]).refused_naming(&[said]);
        // Whoever insists gets the bytes of the file.
        assert_eq!(checksum(&image, &["-f", "raw"]), crc32_hex(&qemu::raw_of("raw", &image)));
        // As a backing format, too.
        let overlay = named(&scratch, &format!("disk.{format}"), format);
        let message = refused_by_us(&overlay.path, &[]);
        assert!(message.contains(format), "{message}");
    }
    let luks = scratch.path("disk.luks");
    let secret = "secret,id=s,data=geheim";
    let options = "key-secret=s,iter-time=10";
    qemu_img(&args!["create", "-q", "-f", "luks", "--object", secret, "-o", options, luks, "1M"]);
    assert!(refused_by_us(&luks, &[]).to_lowercase().contains("luks"));
}

/// Asserts that `info` of the chain shows the image, and ends with an error that contains `words`.
fn broken_below(image: &Path, words: &str) {
    let run = qcowtool(args!["info", "--backing-chain", image]);
    assert_eq!(run.code(), Some(1), "{}", run.stderr());
    assert!(run.stdout().starts_with(&format!("image: {}", image.display())), "{}", run.stdout());
    assert!(run.stderr().contains(words), "{}", run.stderr());
}

#[test]
fn trap_108_a_chain_that_returns_to_itself_ends_in_an_error() {
    needs_qemu!();
    let scratch = Scratch::new();
    let qcow2 = (magic::BACKING_FORMAT, &b"qcow2"[..]);
    let mut own = small(&scratch, "");
    own.set_header_area(112, &[qcow2], true).set_backing(256, b"small.qcow2").save();
    refused_by_us(&own.path, &[]);
    broken_below(&own.path, "small.qcow2");
    qcowtool(args!["info", own.path]).ok();
    // Two files, and the second under another name.
    let mut first = small_overlay(&scratch, "");
    symlink("overlay.qcow2", scratch.path("alias")).unwrap();
    own.set_header_area(112, &[qcow2], true).set_backing(256, b"alias").save();
    first.set_header_area(112, &[qcow2], true).set_backing(256, b"small.qcow2").save();
    refused_by_us(&first.path, &[]);
    broken_below(&first.path, "comes back");
}

#[test]
fn a_missing_backing_file_is_named() {
    needs_qemu!();
    let scratch = Scratch::new();
    let overlay = small_overlay(&scratch, "").path;
    std::fs::remove_file(scratch.path("base.raw")).unwrap();
    let message = refused_by_us(&overlay, &[]);
    assert!(message.contains("base.raw"), "{message}");
    info_like_qemu(&overlay, &[]);
    broken_below(&overlay, "base.raw");
}

#[test]
fn what_is_no_file_is_refused() {
    needs_qemu!();
    let scratch = Scratch::new();
    for name in [Path::new("/dev/null"), Path::new("/dev/zero"), scratch.dir()] {
        let overlay = named(&scratch, &name.display().to_string(), "raw");
        refused_by_us(&overlay.path, &[]);
        refused_by_us(name, &[]);
    }
    let fifo = scratch.path("fifo");
    std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
    refused_by_us(&named(&scratch, "fifo", "raw").path, &[]);
    refused_by_us(&fifo, &[]);
    refused_by_us(&scratch.path("nothing"), &[]);
}

#[test]
fn relative_paths_on_the_command_line() {
    needs_qemu!();
    let scratch = Scratch::new();
    small_overlay(&scratch, "");
    let dir = scratch.subdir("work");
    qcowtool_in(&dir, args!["flatten", "-O", "raw", "../overlay.qcow2", "flat.raw"]).ok();
    assert_bytes!(std::fs::read(dir.join("flat.raw")).unwrap(), base());
    let created =
        args!["create", "-f", "qcow2", "-b", "../overlay.qcow2", "-F", "qcow2", "sub.qcow2"];
    qcowtool_in(&dir, created).ok();
    assert_bytes!(reads_like_qemu(&dir.join("sub.qcow2")), base());
}
