//! `check`: its counts, text and exit codes, held against `qemu-img check`.

use std::process::Command;

use crate::check_common::{Places, built, copy, everything, judged_alike, leak, ours, theirs};
use common::qcowtool;
use fixtures::{Patch, Scratch, args, needs_qemu, qemu_img, qemu_io};

#[test]
fn a_sound_image_with_everything_in_it_is_clean() {
    needs_qemu!();
    let scratch = Scratch::new();
    let verdict = judged_alike(&copy(&scratch, everything()).path, "nothing");
    assert_eq!((verdict.code, verdict.findings.len()), (Some(0), 0));
}

#[test]
fn trap_116_the_luks_header_is_counted_without_its_key() {
    needs_qemu!();
    let scratch = Scratch::new();
    let path = scratch.path("luks.qcow2");
    let secret = ["--object", "secret,id=s,data=abc"];
    let options = "cluster_size=4k,encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    let mut create = args!["create", "-q", "-f", "qcow2", "-o", options];
    create.extend(args![secret[0], secret[1], path, "128k"]);
    qemu_img(&create);
    let check = |path: &std::path::Path| {
        let mut command = Command::new("qemu-img");
        command.args(["check", "--output", "json"]).args(secret).arg("--image-opts");
        let options = format!("driver=qcow2,encrypt.key-secret=s,file.filename={}", path.display());
        let output = command.arg(options).output().unwrap();
        let outcome: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code(), outcome)
    };
    for refcount in [1, 0, 2] {
        let mut image = Patch::open(&path);
        image.set_u16(image.refcount_at(7), refcount);
        image.save();
        let (code, theirs) = check(&path);
        let verdict = ours(&path);
        assert_eq!(verdict.code, code);
        for key in ["corruptions", "leaks", "image-end-offset", "check-errors"] {
            assert_eq!(verdict.count(key), theirs[key].as_u64().unwrap_or(0), "{key}");
        }
    }
}

#[test]
fn fragmentation_is_counted_as_qemu_counts_it() {
    needs_qemu!();
    let image = built("cluster_size=4k", |image| {
        let writes: Vec<_> = (0..32).rev().map(|i| format!("write {} 4k", (i * 4) << 10)).collect();
        qemu_io("qcow2", image, &writes);
    });
    let scratch = Scratch::new();
    let verdict = judged_alike(&copy(&scratch, &image).path, "written backwards");
    assert_eq!(verdict.count("fragmented-clusters"), 31);
}

#[test]
fn trap_142_a_table_that_every_entry_names_is_counted_for_each() {
    needs_qemu!();
    let image = built("cluster_size=4k", |image| {
        qemu_img(&args!["resize", "-q", image, "1G"]);
        qemu_io("qcow2", image, &["write 0 4k"]);
    });
    let scratch = Scratch::new();
    let mut patch = copy(&scratch, &image);
    let (l1, l2) = (patch.u64(patch.l1_entry_at(0)), patch.l2());
    let data = patch.l2_entry(0);
    for index in 0..512 {
        patch.set_u64(l2 + 8 * index, data);
        patch.set_u64(patch.l1_entry_at((index as u64) << 21), l1);
    }
    patch.save();
    let verdict = judged_alike(&patch.path, "512 times 512 references to one cluster");
    assert_eq!(verdict.count("allocated-clusters"), 512 * 512);
    assert!(verdict.found("refcount-overflow"));
}

#[test]
fn an_image_whose_backing_file_is_missing_cannot_be_checked_unless_it_is_to_be_checked_alone() {
    needs_qemu!();
    let scratch = Scratch::new();
    let overlay = |name: &str, base: &str, format: &str| {
        let path = scratch.path(name);
        qemu_img(&args!["create", "-q", "-u", "-f", "qcow2", "-b", base, "-F", format, path, "1M"]);
        path
    };
    let top = overlay("top", "middle", "qcow2");
    let middle = overlay("middle", "gone.raw", "raw");
    for image in [&top, &middle] {
        assert_eq!((theirs(image).code, ours(image).code), (Some(1), Some(1)), "{image:?}");
        let run = qcowtool(args!["check", image]);
        run.refused_naming(&["gone.raw", "No such file", "--alone"]);
        qcowtool(args!["check", "-r", "all", image]).refused_naming(&["gone.raw", "--alone"]);
        // What the message says can be done.
        for sandbox in ["on", "off"] {
            let alone = args!["check", "--alone", "--sandbox", sandbox, image];
            assert_eq!(qcowtool(alone).code(), Some(0));
        }
        assert_eq!(qcowtool(args!["check", "--alone", "-r", "all", image]).code(), Some(0));
        // Nothing else is opened of an image that is not trusted.
        assert_eq!(qcowtool(args!["check", "--untrusted", "-f", "qcow2", image]).code(), Some(0));
    }
    scratch.file("gone.raw", &[0; 512]);
    for image in [&top, &middle] {
        assert_eq!((theirs(image).code, ours(image).code), (Some(0), Some(0)), "{image:?}");
        assert_eq!(qcowtool(args!["check", "-r", "all", image]).code(), Some(0));
    }
    // What we do not open, QEMU may: an image is not called unsound because of that.
    let unread = overlay("unread", "nbd://192.0.2.1/disk", "raw");
    assert_eq!(ours(&unread).code, Some(0));
}

#[test]
fn the_names_of_qemus_cache_modes_are_accepted_and_no_others() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = copy(&scratch, everything()).path;
    for mode in ["none", "off", "writeback", "writethrough", "directsync", "unsafe", "on", "x"] {
        let theirs =
            Command::new("qemu-img").args(["check", "-q", "-T", mode]).arg(&image).output();
        let ours = qcowtool(args!["check", "-q", "-T", mode, image]);
        assert_eq!(ours.code(), theirs.unwrap().status.code(), "{mode}");
        let ours = qcowtool(args!["compare", "-q", "-T", mode, image, image]);
        assert_eq!(ours.succeeded(), mode.len() > 2, "{mode}");
    }
}

#[test]
fn the_text_has_the_findings_and_qemus_summary() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = copy(&scratch, everything());
    let cluster = image.cluster_of(image.l2_entry(0));
    image.set_u16(image.refcount_at(cluster), 0);
    leak(&mut image);
    image.save();
    let run = qcowtool(args!["check", image.path]);
    let mut qemu = Command::new("qemu-img");
    let theirs = qemu.arg("check").arg(&image.path).output().unwrap();
    assert_eq!(run.code(), Some(2));
    let text = run.stdout();
    assert!(text.ends_with(&String::from_utf8(theirs.stdout).unwrap()), "{text}");
    let expected =
        format!("cluster entry {cluster}, at byte {:#x}: the refcount is 0", cluster * 4096);
    assert!(text.contains(&expected), "{text}");
    assert_eq!(qcowtool(args!["check", "-q", image.path]).stdout(), "");
}

#[test]
fn formats_without_anything_to_check_have_their_own_exit_code() {
    let scratch = Scratch::new();
    let raw = scratch.file("disk.raw", &[0; 4096]);
    for arguments in [args!["check", raw], args!["check", "-f", "raw", "--output", "json", raw]] {
        let run = qcowtool(arguments);
        assert_eq!((run.code(), run.stdout().as_str()), (Some(63), ""));
    }
    assert_eq!(qcowtool(args!["check", scratch.path("missing")]).code(), Some(1));
    assert_eq!(qcowtool(args!["check", "-f", "qcow2", raw]).code(), Some(1));
}

#[test]
fn the_findings_do_not_depend_on_threads_and_are_bounded() {
    needs_qemu!();
    let image = built("cluster_size=512", |image| {
        let path = image.to_str().unwrap().to_owned();
        qemu_img(&args!["resize", "-q", path, "2M"]);
        qemu_io("qcow2", image, &["write 0 2M"]);
    });
    let scratch = Scratch::new();
    let mut patch = copy(&scratch, &image);
    let table = patch.reftable();
    patch.set_u64(table, 0).set_u64(table + 8, 0).set_u64(table + 16, 0);
    patch.save();
    let run = |threads: &str| {
        qcowtool(args!["check", "--output", "json", "--threads", threads, patch.path]).stdout()
    };
    let one: serde_json::Value = serde_json::from_str(&run("1")).unwrap();
    let many: serde_json::Value = serde_json::from_str(&run("7")).unwrap();
    assert_eq!(one, many);
    assert_eq!(one["findings"].as_array().unwrap().len(), 1000);
    assert!(one["findings-left-out"].as_u64().unwrap() > 0);
}
