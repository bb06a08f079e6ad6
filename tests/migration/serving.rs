//! A guest whose disk comes over NBD from `serve`: it boots from it, writes to it all the time, and does not notice that
//! the server is started again.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::command;
use fixtures::{Scratch, args, needs_qemu, qemu, qemu_img};
use rig::rig::skipped;
use rig::{Kind, Template, wait_for};
use rustix::process::{Pid, Signal, kill_process};

/// A process that goes with this value.
struct Running(Child);

impl Running {
    /// Ends it by a signal; its exit code.
    fn end(mut self) -> Option<i32> {
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
        self.0.wait().unwrap().code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(socket: &Path, image: &Path) -> Running {
    let pid_file = socket.with_extension("pid");
    let words = args!["serve", "-q", "--socket", socket, "--pid-file", pid_file, image];
    let server = Running(command(&words).stdout(Stdio::null()).spawn().unwrap());
    wait_for(60, "the server", || pid_file.exists().then_some(()));
    server
}

/// QEMU with the export as its only disk.
fn boot(socket: &Path, console: &Path) -> Running {
    let disk = format!(
        "driver=nbd,node-name=disk,server.type=unix,server.path={},reconnect-delay=120",
        socket.display()
    );
    let serial = format!("file:{}", console.display());
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-machine", "pc,accel=tcg", "-m", "64", "-nodefaults", "-display", "none"]);
    qemu.args(["-blockdev", &disk, "-device", "virtio-blk-pci,drive=disk", "-serial", &serial]);
    Running(qemu.stdin(Stdio::null()).spawn().unwrap())
}

/// The number of the last write that the guest reported.
#[track_caller]
fn reported(console: &Path) -> Option<u32> {
    let text = fs::read_to_string(console).unwrap_or_default();
    assert!(!text.contains("BAD ") && !text.contains("ERROR"), "{text}");
    let whole = &text[..text.rfind('\n')?];
    u32::from_str_radix(whole.lines().last()?, 16).ok()
}

#[test]
fn a_guest_boots_from_an_export_and_writes_on_while_its_server_is_started_again() {
    needs_qemu!();
    if !Path::new("/usr/bin/qemu-system-x86_64").exists() {
        return skipped("there is no qemu-system-x86_64");
    }
    let scratch = Scratch::new();
    let (base, disk) = (scratch.path("template.raw"), scratch.path("vm.qcow2"));
    let template = Template { size: 32 << 20, ..Template::default() };
    template.write(&base);
    qemu::overlay(&disk, &base, "raw", "", "");
    let (socket, console) = (scratch.path("s"), scratch.path("console"));
    let mut server = serve(&socket, &disk);
    let guest = boot(&socket, &console);
    let mut last = 0;
    for _ in 0..3 {
        let goal = last + 300;
        last = wait_for(120, "the guest to write", || {
            reported(&console).filter(|number| *number >= goal)
        });
        assert_eq!(server.end(), Some(0));
        qemu::assert_clean(&disk);
        server = serve(&socket, &disk);
    }
    last = wait_for(120, "the guest to write on", || {
        reported(&console).filter(|number| *number > last + 100)
    });
    assert_eq!(guest.end(), Some(0));
    assert_eq!(server.end(), Some(0));
    qemu::assert_clean(&disk);
    let raw = scratch.path("disk.raw");
    qemu_img(&args!["convert", "-O", "raw", disk, raw]);
    let written = template.check(&raw, Kind::Boot).unwrap();
    assert!(written >= last, "{written} writes are on the disk, and {last} were reported");
}
