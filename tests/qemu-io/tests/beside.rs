//! The tool beside QEMU's: the same commands print the same and leave disks that read the same.

use std::path::Path;
use std::process::{Command, Output};

use fixtures::{Scratch, needs_qemu, qemu};

fn run(program: &str, dir: &Path, words: &[&str]) -> Output {
    Command::new(program).args(words).current_dir(dir).output().unwrap()
}

/// Without the time that a request took.
fn timeless(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output).into_owned();
    let line = |line: &str| match line.split_once("ops; ") {
        Some((before, _)) => format!("{before}\n"),
        None => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

/// Runs both in directories that were set up alike, and compares what they print and make.
fn both(scratch: &Scratch, words: &[&str]) -> Output {
    let (ours, theirs) = (scratch.path("ours"), scratch.path("theirs"));
    let [own, qemu] =
        [run(env!("CARGO_BIN_EXE_qemu-io"), &ours, words), run("qemu-io", &theirs, words)];
    let said = |output: &Output| {
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), timeless(&output.stdout), err)
    };
    assert_eq!(said(&own), said(&qemu), "{words:?}");
    let [a, b] = [ours.join("a.qcow2"), theirs.join("a.qcow2")];
    assert!(qemu::raw_of("qcow2", &a) == qemu::raw_of("qcow2", &b), "{words:?}");
    qemu::assert_clean(&a);
    own
}

fn set_up() -> Scratch {
    let scratch = Scratch::new();
    for side in ["ours", "theirs"] {
        let dir = scratch.path(side);
        std::fs::create_dir(&dir).unwrap();
        let script = "qemu-img create -q -f qcow2 base.qcow2 8M
            qemu-io -f qcow2 -c 'write -P 1 0 8M' base.qcow2 >/dev/null
            qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 a.qcow2";
        assert!(run("sh", &dir, &["-ec", script]).status.success());
    }
    scratch
}

#[test]
fn the_same_commands_print_the_same_and_leave_the_same() {
    needs_qemu!();
    let scratch = set_up();
    let ok = |words: &[&str]| assert!(both(&scratch, words).status.success(), "{words:?}");
    let fails = |words: &[&str]| assert!(!both(&scratch, words).status.success(), "{words:?}");
    let on = |commands: &[&'static str]| {
        let with_c = commands.iter().flat_map(|command| ["-c", command]);
        ["-f", "qcow2"].into_iter().chain(with_c).chain(["a.qcow2"]).collect::<Vec<_>>()
    };
    ok(&on(&["map", "length", "alloc 0 4M", "read -P 1 0 8M"]));
    ok(&on(&["write -P 0xa 1000 70000", "read -P 10 1000 70000", "read -P 1 0 1000"]));
    ok(&on(&["writev -P 3 2M 64k 512 1k", "readv -P 3 2M 66048", "r -q -P3 2M 1"]));
    ok(&on(&["write -z 3M 100k", "write -z -u 4M 1M", "read -P 0 4M 1M", "map"]));
    ok(&on(&["write -c -P 9 6M 128k", "read -P 9 -s 64k -l 512 6M 128k", "alloc 6M 1M"]));
    ok(&on(&["discard 0 1M", "read 0 1M", "flush", "alloc 0", "read -v 6M 40"]));
    ok(&on(&["aio_write -P 5 5M 64k", "aio_flush", "aio_read -P 5 5M 64k"]));
    ok(&["-r", "-f", "qcow2", "-c", "read -P 5 5M 64k", "-c", "map", "a.qcow2"]);
    ok(&["-s", "-f", "qcow2", "-c", "write 0 64k", "-c", "read -P 0xcd 0 64k", "a.qcow2"]);
    ok(&["-c", "open -r a.qcow2", "-c", "read 0 512", "-c", "close"]);
    ok(&on(&["reopen -r", "read 0 1", "reopen -w", "write 0 1"]));
    fails(&on(&["read 7M 2M", "write 8M 1"]));
    fails(&on(&["read -P 77 0 64k"]));
    fails(&on(&["foo"]));
    fails(&on(&["write -P foo 0 1", "write -c 1000 512", "write -z -P 1 0 1", "read 1x 1"]));
    fails(&["-r", "-f", "qcow2", "-c", "write 0 1", "a.qcow2"]);
    fails(&["-f", "qcow2", "-c", "read 0 1", "nothere"]);
    fails(&["-c", "read 0 1"]);
}

#[test]
fn commands_come_from_standard_input_too_and_a_signal_ends_it_all() {
    needs_qemu!();
    let scratch = set_up();
    let script =
        "printf 'write -P 4 0 64k\\n\\nread -P 4 0 64k\\nquit\\nfoo\\n' | $0 -f qcow2 a.qcow2";
    let said = |program: &str, side: &str| {
        timeless(&run("sh", &scratch.path(side), &["-ec", script, program]).stdout)
    };
    assert_eq!(said(env!("CARGO_BIN_EXE_qemu-io"), "ours"), said("qemu-io", "theirs"));
    let words = ["-f", "qcow2", "-c", "write 0 4M", "-c", "sigraise 9", "a.qcow2"];
    let killed = run(env!("CARGO_BIN_EXE_qemu-io"), &scratch.path("ours"), &words);
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&killed.status), Some(9));
}
