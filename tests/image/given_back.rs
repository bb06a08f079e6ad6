//! Work in place that cannot go on: what it had taken of the disk is given back.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use common::{checksum, command, qcowtool};
use fixtures::{Mounted, Scratch, args, needs_qemu, qemu};

/// Runs a command that changes `image`, first with too little space for it, then with enough.
fn on_a_full_disk(system: &Mounted, image: &Path, guest: &Path, command: Vec<OsString>) {
    let filler = system.fill(1 << 20);
    let state = || (fs::metadata(image).unwrap().len(), system.used(), checksum(guest, &[]));
    let before = state();
    let refused = qcowtool(command.clone());
    let what = format!("{command:?}: {}", refused.stderr());
    assert!(refused.stderr().contains("No space left"), "{what}");
    assert!(refused.stderr().contains("free some space, then try again"), "{what}");
    let after = state();
    // The tables of what was overwritten can have become longer.
    let used = after.1.saturating_sub(before.1);
    assert!(used <= 64 << 10, "{used} bytes are still taken: {what}");
    assert_eq!((after.0, after.2), (before.0, before.2), "{what}");
    qemu::assert_clean(image);
    fs::remove_file(filler).unwrap();
    qcowtool(command).ok();
    qemu::assert_clean(image);
}

#[test]
fn what_does_not_fit_on_the_disk_leaves_it_as_full_as_before() {
    needs_qemu!();
    let scratch = Scratch::new();
    let Some(system) = Mounted::tmpfs(scratch.subdir("full")) else { return };
    let (there, here) = (system.0.join("image.qcow2"), scratch.path("other.qcow2"));

    qemu::create(&here, "", "16M");
    qemu::qemu_io("qcow2", &here, &["write -P 1 0 2M", "write -P 2 4M 512k"]);
    qemu::overlay(&there, "../other.qcow2", "qcow2", "", "");
    qemu::qemu_io("qcow2", &there, &["write -P 3 1M 100k"]);
    on_a_full_disk(&system, &there, &there, args!["rebase", "-q", "-b", "", there]);
    fs::remove_file(&there).unwrap();

    qemu::create(&there, "", "16M");
    qemu::qemu_io("qcow2", &there, &["write -P 1 0 100k"]);
    fs::remove_file(&here).unwrap();
    qemu::overlay(&here, "full/image.qcow2", "qcow2", "", "");
    qemu::qemu_io("qcow2", &here, &["write -P 4 8M 1M", "write -P 5 12M 300k"]);
    on_a_full_disk(&system, &there, &here, args!["commit", "-q", "-d", here]);

    let grow = args!["resize", "-q", "--preallocation", "full", there, "+1500k"];
    on_a_full_disk(&system, &there, &here, grow);
}

/// Starts a command and sends it SIGINT as soon as `image` has grown. False if it was faster.
fn interrupted(command_line: &[OsString], image: &Path) -> bool {
    let len = || fs::metadata(image).unwrap().len();
    let before = len();
    let mut child = command(command_line).stderr(Stdio::null()).spawn().unwrap();
    while child.try_wait().unwrap().is_none() {
        if len() > before {
            let id = nix::unistd::Pid::from_raw(child.id() as i32);
            nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGINT).unwrap();
            break;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    let status = child.wait().unwrap();
    assert!([Some(0), Some(130)].contains(&status.code()), "{status}");
    !status.success()
}

#[test]
fn an_interrupted_rebase_or_commit_leaves_the_file_as_long_as_before() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (base, top) = (scratch.path("base.qcow2"), scratch.path("top.qcow2"));
    let make = || {
        qemu::create(&base, "", "96M");
        qemu::qemu_io("qcow2", &base, &["write -P 1 0 8M", "write -P 2 40M 40M"]);
        let _ = fs::remove_file(&top);
        qemu::overlay(&top, "base.qcow2", "qcow2", "", "");
        qemu::qemu_io("qcow2", &top, &["write -P 3 12M 28M"]);
    };
    let commands = [
        (args!["commit", "-q", "-d", "--threads", "1", top], &base),
        (args!["rebase", "-q", "--threads", "1", "-b", "", top], &top),
    ];
    for (command, grows) in commands {
        let stopped = (0..20).any(|_| {
            make();
            let (len, guest) = (fs::metadata(grows).unwrap().len(), checksum(&top, &[]));
            let stopped = interrupted(&command, grows);
            assert_eq!(checksum(&top, &[]), guest);
            qemu::assert_clean(grows);
            if stopped {
                assert_eq!(fs::metadata(grows).unwrap().len(), len, "{command:?}");
                qcowtool(command.clone()).ok();
                assert_eq!(checksum(&top, &[]), guest);
            }
            stopped
        });
        assert!(stopped, "{command:?} was never stopped in the middle");
    }
}
