//! Rules for all commands: arguments, numbers, names of files, words of errors.

use fixtures::needs_qemu;

use crate::beside::Beside;

#[test]
fn options_stand_anywhere_and_are_bundled_shortened_and_ended() {
    needs_qemu!();
    let beside = Beside::new();
    beside.same("create -fqcow2 a 1M -o cluster_size=4k -o lazy_refcounts=on");
    for line in [
        "info a --output json -U",
        "info --out json --force a",
        "info -- a",
        "info --output=json -f qcow2 a",
        "check -qf qcow2 a",
        "create a.raw 0x1000",
        "create -q b.raw .5M",
        "create -f raw c.raw 1000",
        "info -f raw c.raw",
    ] {
        beside.same(line);
    }
}

#[test]
fn wrong_arguments_are_refused_in_the_words_of_qemus_release() {
    needs_qemu!();
    let beside = Beside::new();
    beside.set_up("qemu-img create -q -f qcow2 a 1M");
    let hint = "Try 'qemu-img --help' for more information\n";
    for (line, words, hinted) in [
        ("", "Not enough arguments", true),
        ("foo", "Command not found: foo", true),
        ("flatten a b", "Command not found: flatten", true),
        ("create -z a 1M", "unrecognized option '-z'", true),
        ("create -f", "missing argument for option '-f'", true),
        ("info", "Expecting one image file name", true),
        ("info a b", "Expecting one image file name", true),
        ("create", "Expecting image file name", true),
        ("create a 1M 2M", "Unexpected argument: 2M", true),
        ("compare a", "Expecting two image file names", true),
        ("convert a", "Must specify image file name", true),
        ("info --output xml a", "--output must be used with human or json as argument.", false),
        (
            "info nothere",
            "Could not open 'nothere': Could not open 'nothere': No such file or directory",
            false,
        ),
        ("info -f vmdk a", "Could not open 'a': Unknown driver 'vmdk'", false),
        ("info nbd:x", "Could not open 'nbd:x': Unknown protocol 'nbd'", false),
        ("create -f vmdk x 1M", "x: Unknown file format 'vmdk'", false),
        ("create -f qcow2 x:y 1M", "x:y: Unknown protocol 'x'", false),
        ("create -f qcow2 -o ,a x 1M", "Invalid option list: ,a", false),
        ("create -f qcow2 -o foo=1 x 1M", "x: Invalid parameter 'foo'", false),
        ("create -f qcow2 x", "x: Image creation needs a size parameter", false),
        ("convert -O raw -c a x", "Compression not supported for this file format", false),
        ("check -r some a", "Unknown option value for -r (expecting 'leaks' or 'all'): some", true),
        ("convert -t foo a x", "Invalid cache option: foo", false),
    ] {
        let parts: Vec<&str> = line.split_whitespace().collect();
        let expected = format!("qemu-img: {words}\n{}", if hinted { hint } else { "" });
        assert_eq!(beside.ours(&parts).refused(), expected, "{line}");
    }
    assert_eq!(beside.ours(&["compare", "a", "nothere"]).code, Some(2));
    assert!(!beside.ours_dir().join("x").exists(), "what is refused makes nothing");
}

#[test]
fn sizes_are_refused_in_the_words_of_qemus_release() {
    needs_qemu!();
    let beside = Beside::new();
    let units = "qemu-img: Invalid image size specified. You may use k, M, G, T, P or E suffixes for\n\
                 qemu-img: kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes.\n";
    let range =
        "qemu-img: Invalid image size specified. Must be between 0 and 9223372036854775807.\n";
    for (size, words) in [
        ("1Q", units),
        ("1MB", units),
        ("1.5", units),
        ("-1k", units),
        ("8E", range),
        ("-1024", range),
    ] {
        assert_eq!(beside.ours(&["create", "--", "a", size]).refused(), words, "{size}");
    }
}

#[test]
fn names_are_files_protocols_and_trees_of_options() {
    needs_qemu!();
    let beside = Beside::new();
    beside.same("create -q -f qcow2 file:x:y.qcow2 1M");
    assert!(beside.ours_dir().join("x:y.qcow2").exists());
    beside.same("info file:x:y.qcow2");
    beside.same("info ./x:y.qcow2");
    beside.set_up("qemu-img create -q -f qcow2 a 1M; qemu-img create -q -f qcow2 -b a -F qcow2 b");
    for name in [
        r#"json:{"driver":"qcow2","file.filename":"a"}"#,
        r#"json:{"file.filename":"a"}"#,
        r#"json:{'driver':'qcow2','file':{'driver':'file','filename':'b'}}"#,
    ] {
        beside.both(&["info", "--output", "json", name]).ok();
    }
    for list in ["driver=qcow2,file.filename=b", "file.filename=b,driver=qcow2,file.locking=off"] {
        beside.both(&["map", "--output", "json", "--image-opts", list]).ok();
        beside.both(&["compare", "--image-opts", list, "driver=qcow2,file.filename=a"]).ok();
    }
    // A file that does not end with a sector is read to the end of it.
    beside.set_up("qemu-img create -q -f raw r 1M; truncate -s 1048575 r; qemu-io -f raw -c 'write 960k 64k' r >/dev/null; truncate -s 1048575 r");
    for direct in ["on", "off"] {
        let list = format!("driver=raw,file.filename=r,cache.direct={direct}");
        beside.both(&["map", "--output", "json", "--image-opts", &list]).ok();
        beside.both(&["map", "--image-opts", &list]).ok();
    }
    let secret = ["--object", "secret,id=s0,data=abc"];
    beside.both(&[&["info"], &secret[..], &["a"]].concat()).ok();
}

#[test]
fn a_version_is_found_and_the_help_holds_what_programs_look_for() {
    let beside = Beside::new();
    let version = beside.ours(&["--version"]).ok();
    assert!(version.starts_with("qemu-img version 10.0.2 "), "{version}");
    let help = beside.ours(&["--help"]).ok();
    assert_eq!(beside.ours(&["info", "-h"]).ok(), help);
    assert!(
        help.lines()
            .any(|line| line.starts_with("  bitmap (") && line.ends_with(" filename bitmap"))
    );
    let called = common::qcowtool(fixtures::args!["qemu-img", "--version"]).ok();
    assert_eq!(called, version, "without a link too");
}

#[test]
fn option_lists_explain_themselves() {
    needs_qemu!();
    let beside = Beside::new();
    let names = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| line.starts_with("  ") && line.contains(" - "));
        lines.map(|line| line.split('=').next().unwrap().trim().to_owned()).collect()
    };
    for line in ["create -f qcow2 -o help", "create -f qcow2 -o ? x", "create -f raw -o help"] {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (ours, theirs) = (beside.ours(&words).ok(), beside.theirs_says(&words));
        assert_eq!(ours.lines().next(), theirs.lines().next(), "{line}");
        let known: Vec<String> =
            names(&theirs).into_iter().filter(|name| !name.starts_with("encrypt")).collect();
        let ours: Vec<String> =
            names(&ours).into_iter().filter(|name| !name.starts_with("encrypt")).collect();
        assert_eq!(ours, known, "{line}");
    }
}

#[test]
fn a_backing_format_that_is_not_known_is_said_to_be_the_backing_files() {
    needs_qemu!();
    let beside = Beside::new();
    beside.set_up(
        "qemu-img create -q -f qcow2 base 1M
         qemu-img create -q -f qcow2 -b base -F qcow2 a
         at=$(grep -abo qcow2 a | head -n 1 | cut -d : -f 1)
         printf other | dd of=a bs=1 seek=\"$at\" conv=notrunc status=none",
    );
    for line in ["map a", "convert -O raw a b", "compare a base"] {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ours = beside.both(&words);
        assert_eq!(ours, beside.theirs(&words), "{line}");
    }
}
