//! What a result does not have of its source is said: images that were cut short, and what a new image
//! does not get.

use std::fs::{self, File};
use std::path::Path;

use common::qcowtool;
use fixtures::{Scratch, args, needs_qemu, qemu, qemu_img, qemu_io};
use serde_json::{Value, json};

/// Cuts a file short.
fn cut(path: &Path, len: u64) {
    File::options().write(true).open(path).unwrap().set_len(len).unwrap();
}

/// An image with 16 MiB of data, cut short at 8 MiB; and what is to be said of it.
fn truncated(scratch: &Scratch) -> (std::path::PathBuf, Value) {
    let image = scratch.path("vm.qcow2");
    qemu::create(&image, "", "64M");
    qemu_io("qcow2", &image, &["write -P 1 0 16M"]);
    let map: Value =
        serde_json::from_str(&qemu_img(&args!["map", "--output", "json", image])).unwrap();
    let data = map[0]["offset"].as_u64().unwrap();
    cut(&image, 8 << 20);
    let missing = data + (16 << 20) - (8 << 20);
    let expected = json!([{
        "filename": image,
        "file-length": 8 << 20,
        "missing-bytes": missing,
        "unmapped-bytes": 0,
    }]);
    (image, expected)
}

#[test]
fn an_image_that_was_cut_short_is_read_as_qemu_reads_it_and_it_is_said() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (image, expected) = truncated(&scratch);
    let whole = scratch.path("whole.raw");
    fs::write(&whole, qemu::raw_of("qcow2", &image)).unwrap();
    let target = scratch.path("target.qcow2");
    let commands = [
        args!["flatten", "-q", "--force", image, target],
        args!["flatten", "-q", "--force", "-O", "raw", image, target],
        args!["checksum", image],
        args!["checksum", "--algorithm", "sha256", image],
        args!["checksum", "--algorithm", "blake3-tree", image],
        args!["measure", image],
        args!["measure", "--exact", image],
        args!["compare", image, whole],
    ];
    for words in commands {
        let run = qcowtool(words.clone());
        run.ok();
        let warning = run.stderr();
        assert_eq!(warning.lines().count(), 1, "{words:?}: {warning}");
        assert!(warning.contains("warning") && warning.contains("8388608 bytes"), "{warning}");
        let words = [words, args!["--output", "json"]].concat();
        let outcome = qcowtool(words.clone()).json();
        assert_eq!(outcome["truncated"], expected, "{words:?}: {outcome}");
    }
    // The list is qemu-img's; what it lacks is said beside it.
    let run = qcowtool(args!["map", "--output", "json", image]);
    assert_eq!(run.ok(), qemu_img(&args!["map", "--output", "json", image]));
    assert_eq!(run.stderr().lines().count(), 1, "{}", run.stderr());
    // A range without anything missing needs no look at the rest.
    let run = qcowtool(args!["map", "--start-offset", "32M", image]);
    run.ok();
    assert_eq!(run.stderr(), "");
    // What reads from another layer is another layer's.
    let top = scratch.path("top.qcow2");
    qemu::overlay(&top, "vm.qcow2", "qcow2", "", "");
    let outcome = qcowtool(args!["checksum", "--output", "json", top]).json();
    assert_eq!(outcome["truncated"], expected, "{outcome}");
}

#[test]
fn where_tables_are_cut_off_what_they_mapped_is_counted() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (image, _) = truncated(&scratch);
    // Between the L1 table and the L2 table; and before the L1 table.
    for len in [4 << 16, 3 << 16] {
        cut(&image, len);
        let outcome = qcowtool(args!["checksum", "--output", "json", image]).json();
        let expected = json!([{
            "filename": image, "file-length": len, "missing-bytes": 0, "unmapped-bytes": 64 << 20,
        }]);
        assert_eq!(outcome["truncated"], expected, "{len}");
    }
}

#[test]
fn whole_images_are_not_called_cut_short() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = scratch.path("vm.qcow2");
    for options in [
        "",
        "cluster_size=512",
        "cluster_size=2M",
        "extended_l2=on,cluster_size=16k",
        "preallocation=metadata",
        "data_file=data.raw",
    ] {
        let size = if options.contains("512") { "3M" } else { "300M" };
        let _ = fs::remove_file(scratch.path("data.raw"));
        let create = args!["create", "-q", "-f", "qcow2", "-o"];
        let options = if options.is_empty() { "compat=1.1" } else { options };
        let options = options.replace("data.raw", scratch.path("data.raw").to_str().unwrap());
        qemu_img(&[create, args![options, image, size]].concat());
        for commands in [&[][..], &["write -P 1 100k 3k", "write -P 2 2M 512", "discard 0 1M"]] {
            if !commands.is_empty() {
                qemu_io("qcow2", &image, commands);
            }
            let run = qcowtool(args!["checksum", image]);
            run.ok();
            assert_eq!(run.stderr(), "", "{options}");
            let packed = scratch.path("packed.qcow2");
            qemu_img(&args!["convert", "-c", "-O", "qcow2", image, packed]);
            assert_eq!(qcowtool(args!["checksum", packed]).stderr(), "", "{options}");
            let audit = qcowtool(args!["audit", scratch.dir()]).stdout();
            assert!(!audit.contains("truncated"), "{options}: {audit}");
        }
        fs::remove_file(&image).unwrap();
    }
    // The last sector of a raw disk may be cut off.
    let raw = scratch.file("odd.raw", &[1; 1001]);
    let run = qcowtool(args!["checksum", raw]);
    run.ok();
    assert_eq!(run.stderr(), "");
}

#[test]
fn an_audit_finds_images_that_were_cut_short() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (image, _) = truncated(&scratch);
    let finding =
        |text: &str| text.lines().find(|line| line.contains("truncated:")).map(str::to_owned);
    let found = finding(&qcowtool(args!["audit", scratch.dir()]).stdout());
    let found = found.expect("a finding");
    assert!(found.starts_with("warning") && found.contains("vm.qcow2"), "{found}");
    // The refcounts themselves may be cut off.
    cut(&image, 1 << 16);
    assert!(finding(&qcowtool(args!["audit", scratch.dir()]).stdout()).is_some());
    // As advised, a check tells.
    assert_eq!(qcowtool(args!["check", image]).code(), Some(2));
}

/// An image with a snapshot, a bitmap, and a way to store things that is not the usual one.
fn rich(scratch: &Scratch) -> std::path::PathBuf {
    let image = scratch.path("rich.qcow2");
    qemu::create(&image, "cluster_size=4k,lazy_refcounts=on,compression_type=zstd", "8M");
    qemu_io("qcow2", &image, &["write -P 1 0 1M"]);
    qemu_img(&args!["snapshot", "-c", "keep-me", image]);
    qemu_img(&args!["bitmap", "--add", image, "backup-1"]);
    image
}

fn properties(outcome: &Value) -> Vec<&str> {
    let list = outcome["not-carried-over"].as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().map(|found| found["property"].as_str().unwrap()).collect()
}

#[test]
fn flatten_says_what_it_does_not_carry_over() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (image, target) = (rich(&scratch), scratch.path("target.qcow2"));
    let run = qcowtool(args!["flatten", image, target]);
    run.ok();
    let line = run.stderr();
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(line.contains("1 internal snapshot ('keep-me')"), "{line}");
    assert!(line.contains("1 persistent bitmap ('backup-1')"), "{line}");
    assert!(!line.contains("cluster_size"), "{line}");
    // What is only stored in another way, only to those who want to hear it.
    let run = qcowtool(args!["flatten", "-v", "--force", image, target]);
    let line = run.stderr();
    assert!(line.contains("cluster_size=4096, lazy_refcounts=on, compression_type=zstd"), "{line}");
    let run = qcowtool(args!["flatten", "-q", "--force", image, target]);
    assert_eq!(run.stderr(), "");

    let fixed = args!["flatten", "--force", "--output", "json"];
    let json = |words| qcowtool([fixed.clone(), words].concat()).json();
    let kept = ["internal-snapshots", "bitmaps"];
    let changed = ["cluster-size", "lazy-refcounts", "compression-type"];
    assert_eq!(properties(&json(args![image, target])), [&kept[..], &changed].concat());
    assert_eq!(properties(&json(args!["-O", "raw", image, target])), kept);
    let same = "cluster_size=4k,lazy_refcounts=on,compression_type=zstd";
    assert_eq!(properties(&json(args!["-o", same, image, target])), kept);
    // On standard error, and nothing else is there.
    let run = qcowtool([fixed.clone(), args![image, "-"]].concat());
    let outcome: Value = serde_json::from_str(&run.stderr()).unwrap();
    assert_eq!(properties(&outcome), [&kept[..], &changed].concat());
    // The new image lacks nothing that could be lost.
    let again = scratch.path("again.qcow2");
    json(args![image, target]);
    let outcome = json(args![target, again]);
    assert!(outcome.get("not-carried-over").is_none(), "{outcome}");
}

#[test]
fn an_image_made_like_another_lacks_what_is_said() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (image, target) = (rich(&scratch), scratch.path("target.qcow2"));
    let run = qcowtool(args!["create", "--like", image, target]);
    run.ok();
    let line = run.stderr();
    assert!(line.contains("keep-me") && line.contains("backup-1"), "{line}");
    let like = args!["create", "--force", "--output", "json", "--like"];
    let outcome = qcowtool([like.clone(), args![image, target]].concat()).json();
    assert_eq!(properties(&outcome), ["internal-snapshots", "bitmaps"]);

    let top = scratch.path("top.qcow2");
    qemu::overlay(&top, "rich.qcow2", "qcow2", "", "");
    let run = qcowtool(args!["create", "-q", "--force", "--like", top, target]);
    run.ok();
    assert_eq!(run.stderr(), "");
    let outcome = qcowtool([like.clone(), args![top, target]].concat()).json();
    assert_eq!(properties(&outcome), ["backing-file"]);

    let secret = scratch.path("secret.qcow2");
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    let object = args!["create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=geheim", "-o"];
    qemu_img(&[object, args![options, secret, "1M"]].concat());
    let run = qcowtool(args!["create", "--force", "--like", secret, target]);
    run.ok();
    assert!(run.stderr().contains("encryption (LUKS)"), "{}", run.stderr());

    let plain = scratch.path("plain.qcow2");
    qemu::create(&plain, "cluster_size=4k", "1M");
    let outcome = qcowtool([like, args![plain, target]].concat()).json();
    assert!(outcome.get("not-carried-over").is_none(), "{outcome}");
}
