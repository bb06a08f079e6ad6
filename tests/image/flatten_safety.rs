//! `flatten`: what it never touches, never replaces, and never leaves behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use common::{qcowtool, qcowtool_in};
use fixtures::chains::{self, Chain};
use fixtures::{Scratch, args, assert_bytes, needs_qemu, qemu};

/// A chain of three images in a directory of its own, and a place for targets.
fn chain(scratch: &Scratch) -> (Chain, PathBuf) {
    (chains::template_with_overlays(&scratch.subdir("source"), 2), scratch.subdir("out"))
}

fn state(chain: &Chain) -> Vec<(Vec<u8>, SystemTime)> {
    let state =
        |path: &PathBuf| (fs::read(path).unwrap(), fs::metadata(path).unwrap().modified().unwrap());
    chain.layers.iter().map(state).collect()
}

fn names(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name());
    names.map(|name| name.to_string_lossy().into_owned()).collect()
}

#[test]
fn trap_20_source_files_are_left_as_they_were() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (chain, out) = chain(&scratch);
    let before = state(&chain);
    for (i, options) in ["-O raw", "", "-c", "-O raw --force"].into_iter().enumerate() {
        let mut arguments = args!["flatten"];
        arguments.extend(options.split_whitespace().map(Into::into));
        qcowtool([arguments, args![chain.top(), out.join(i.to_string())]].concat()).ok();
        qcowtool(args!["info", "--backing-chain", chain.top()]).ok();
        qcowtool(args!["checksum", chain.top()]).ok();
    }
    assert!(state(&chain) == before, "bytes and times of modification");
    assert_eq!(names(&scratch.path("source")).len(), 3, "no file beside them");
}

#[test]
fn an_existing_target_is_refused_and_kept() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (chain, out) = chain(&scratch);
    let target = out.join("precious");
    fs::write(&target, b"precious").unwrap();
    for options in [args![], args!["-O", "raw"], args!["-c"]] {
        let run = qcowtool([args!["flatten"], options, args![chain.top(), target]].concat());
        run.refused_naming(&["precious", "--force"]);
        assert_bytes!(fs::read(&target).unwrap(), b"precious");
    }
    assert_eq!(names(&out), ["precious"]);
    qcowtool(args!["flatten", "--force", chain.top(), target]).ok();
    qemu::assert_same("qcow2", chain.top(), "qcow2", &target);
    assert_eq!(names(&out), ["precious"]);
}

#[test]
fn a_file_of_the_chain_is_no_target_even_by_force() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (chain, out) = chain(&scratch);
    let before = state(&chain);
    let alias = out.join("alias");
    fs::hard_link(chain.template(), &alias).unwrap();
    let link = out.join("link");
    std::os::unix::fs::symlink(chain.template(), &link).unwrap();
    for target in chain.layers.iter().chain([&alias, &link]) {
        for options in [args![], args!["--force"], args!["--force", "-O", "raw"]] {
            let run = qcowtool([args!["flatten"], options, args![chain.top(), target]].concat());
            run.refused();
        }
    }
    assert!(state(&chain) == before);
    assert_eq!(fs::read_link(&link).unwrap(), chain.template(), "the link is still one");
}

#[test]
fn refused_requests_write_nothing() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (chain, out) = chain(&scratch);
    let target = out.join("target");
    let source = chain.top();
    let many_threads = args!["--threads", "x"];
    for options in [
        args!["-o", "cluster_size=3"],
        args!["-o", "no_such_option=1"],
        args!["-o", "compat=0.10,extended_l2=on"],
        args!["-o", "compat=0.10,compression_type=zstd", "-c"],
        args!["-O", "raw", "-c"],
        args!["-O", "raw", "-o", "cluster_size=4k"],
        args!["-O", "vmdk"],
        args!["-c", "-o", "preallocation=metadata"],
        args!["-c", "-o", format!("data_file={}", out.join("data").display())],
        args!["-o", "data_file_raw=on"],
        args!["-o", "backing_file=base,backing_fmt=raw"],
        args!["--snapshot", "no such snapshot"],
        args!["-f", "raw", "--snapshot", "1"],
        many_threads,
        args!["--no-such-option"],
    ] {
        let run = qcowtool([args!["flatten"], options, args![source, target]].concat());
        assert_eq!(run.code(), Some(1), "{run:?}");
        assert_eq!(names(&out), [""; 0], "{run:?}");
    }
    qcowtool(args!["flatten", source, out.join("missing/target")]).refused();
    qcowtool(args!["flatten", source, out]).refused();
    qcowtool(args!["flatten", out.join("nowhere"), target]).refused_naming(&["nowhere"]);
    assert_eq!(names(&out), [""; 0]);
}

#[test]
fn a_source_damaged_in_the_middle_leaves_no_target() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (chain, out) = chain(&scratch);
    let mut template = fixtures::Patch::open(chain.template());
    // An unaligned offset that is found only when the tables are read.
    let last = (0..512).rev().find(|n| template.l2_entry(n * 4096) > 1).unwrap();
    template.set_l2_entry(last * 4096, template.l2_entry(last * 4096) | 512).save();
    for options in [args![], args!["-O", "raw"], args!["-c"], args!["--digest"]] {
        let target = out.join("target");
        let run = qcowtool([args!["flatten"], options, args![chain.template(), target]].concat());
        run.refused_naming(&["template.qcow2"]);
        assert_eq!(names(&out), [""; 0]);
    }
}

#[test]
fn the_target_may_be_on_another_file_system() {
    needs_qemu!();
    let elsewhere = Path::new("/dev/shm");
    if !elsewhere.is_dir() {
        return;
    }
    let scratch = Scratch::new();
    let (chain, _) = chain(&scratch);
    let out = elsewhere.join(format!("qcowtool-test-{}", std::process::id()));
    fs::create_dir(&out).unwrap();
    let run = qcowtool(args!["flatten", chain.top(), out.join("target")]);
    let sparse = qcowtool(args!["flatten", "-O", "raw", chain.top(), out.join("raw")]);
    let same = || {
        qemu::assert_same("qcow2", chain.top(), "qcow2", out.join("target"));
        qemu::assert_same("qcow2", chain.top(), "raw", out.join("raw"));
    };
    let verdict = std::panic::catch_unwind(same);
    fs::remove_dir_all(&out).unwrap();
    run.ok();
    sparse.ok();
    verdict.unwrap();
}

#[test]
fn progress_and_quiet_speak_on_stderr_only() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (chain, out) = chain(&scratch);
    let run = |options: &[&str], name: &str| {
        let mut arguments = args!["flatten"];
        arguments.extend(options.iter().map(Into::into));
        let run = qcowtool_in(&out, [arguments, args![chain.top(), name]].concat());
        run.ok();
        run
    };
    assert_eq!(run(&["-q"], "a").stdout() + &run(&["-q"], "b").stderr(), "");
    assert_ne!(run(&["--progress", "always"], "c").stderr(), "");
    assert_eq!(run(&["--progress", "never"], "d").stderr(), "");
    // Not a terminal.
    assert_eq!(run(&["--progress", "auto"], "e").stderr(), "");
    let json = run(&["--progress", "always", "--output", "json"], "f").json();
    assert!(json.is_object());
}
