//! `serve` as QEMU's block layer uses it: mirrors into it, converts into it, reconnects to it, asks it for bitmaps.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fixtures::pattern::{mixed, write_raw};
use fixtures::{Scratch, args, needs_qemu, qemu, qemu_img, skipped};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::serve::{Served, needs, output};

/// `qemu-storage-daemon`: QEMU's block layer without a machine.
struct Daemon {
    child: Child,
    monitor: BufReader<UnixStream>,
}

impl Daemon {
    fn start(scratch: &Scratch, arguments: &[&str]) -> Self {
        let socket = scratch.path("qmp.sock");
        let chardev = format!("socket,id=c,path={},server=on,wait=off", socket.display());
        let child = Command::new("qemu-storage-daemon")
            .args(["--chardev", &chardev, "--monitor", "chardev=c"])
            .args(arguments)
            .spawn()
            .unwrap();
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(_) => std::thread::yield_now(),
            }
        };
        let mut daemon = Self { child, monitor: BufReader::new(stream) };
        daemon.message();
        daemon.execute("qmp_capabilities", json!({}));
        daemon
    }

    fn message(&mut self) -> Value {
        let mut line = String::new();
        self.monitor.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    fn execute(&mut self, command: &str, arguments: Value) {
        let message = json!({"execute": command, "arguments": arguments});
        self.monitor.get_mut().write_all(format!("{message}\n").as_bytes()).unwrap();
        loop {
            let answer = self.message();
            assert!(answer.get("error").is_none(), "{command}: {answer}");
            if answer.get("return").is_some() {
                return;
            }
        }
    }

    /// Waits until a job gets there.
    fn wait_for(&mut self, status: &str) {
        loop {
            let event = self.message();
            assert_ne!(event["event"], "BLOCK_JOB_ERROR", "{event}");
            if event["event"] == "JOB_STATUS_CHANGE" && event["data"]["status"] == status {
                return;
            }
        }
    }

    fn end(mut self) {
        self.execute("quit", json!({}));
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// QEMU's name of the export, as an option of a block device.
fn blockdev(socket: &Path, more: &str) -> String {
    format!("driver=nbd,server.type=unix,server.path={}{more}", socket.display())
}

/// A daemon that offers a block device to others, and how they name it.
fn daemon_over(scratch: &Scratch, device: &str) -> (Daemon, String) {
    let exported = scratch.path("qemu.sock");
    let daemon = Daemon::start(
        scratch,
        &[
            "--blockdev",
            &format!("{device},node-name=disk"),
            "--nbd-server",
            &format!("addr.type=unix,addr.path={},max-connections=4", exported.display()),
            "--export",
            "type=nbd,id=e,node-name=disk,name=disk,writable=on",
        ],
    );
    (daemon, format!("nbd+unix:///disk?socket={}", exported.display()))
}

#[test]
fn a_mirror_into_an_export_ends_equal_while_others_write_and_goes_on_there() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (source, target, model) =
        (scratch.path("vm.qcow2"), scratch.path("new.qcow2"), scratch.path("model.raw"));
    write_raw(&model, 48 << 20, &[(1 << 20, &mixed(3, 20 << 20)), (40 << 20, &[7; 70_000])]);
    qemu_img(&args!["convert", "-f", "raw", "-O", "qcow2", model, source]);
    qemu::create(&target, "", "48M");
    let ours = Served::start(&scratch, "", &[&target]);
    let device =
        format!("driver=qcow2,file.driver=file,file.filename={},discard=unmap", source.display());
    let (mut daemon, uri) = daemon_over(&scratch, &device);
    let socket = scratch.path("our.sock");
    daemon.execute(
        "blockdev-add",
        json!({"driver": "nbd", "node-name": "target", "discard": "unmap",
            "server": {"type": "unix", "path": socket.to_str().unwrap()}}),
    );
    let write = |commands: &[&str]| {
        qemu::qemu_io("raw", &uri, commands);
        qemu::qemu_io("raw", &model, commands);
    };
    let job = json!({"job-id": "m", "device": "disk", "target": "target", "sync": "full",
        "speed": 40_000_000, "copy-mode": "background", "auto-dismiss": true});
    daemon.execute("blockdev-mirror", job);
    write(&["write -P 1 0 300k", "write -z 10M 1M", "write -P 2 46M 5k"]);
    daemon.wait_for("ready");
    write(&["write -P 3 20M 2M", "write -z -u 40M 64k", "flush"]);
    daemon.execute("job-complete", json!({"id": "m"}));
    daemon.wait_for("concluded");
    // The daemon's disk is now the export.
    write(&["write -P 4 30M 100k", "write -f -P 5 47M 512", "flush"]);
    daemon.end();
    assert_eq!(ours.end(), Some(0));
    qemu::assert_clean(&target);
    qemu_img(&args!["compare", "-f", "raw", "-F", "qcow2", model, target]);
    let before = qemu::raw_of("qcow2", &source);
    assert!(before[30 << 20..(30 << 20) + 4096] != [4; 4096], "the source is left behind");
}

#[test]
fn qemu_converts_into_an_export_and_asks_it_for_a_bitmap() {
    needs_qemu!();
    needs!("qemu-nbd");
    let scratch = Scratch::new();
    let (source, target) = (scratch.path("source.raw"), scratch.path("vm.qcow2"));
    write_raw(&source, 48 << 20, &[(1 << 20, &mixed(3, 20 << 20)), (40 << 20, &[7; 70_000])]);
    qemu::create(&target, "cluster_size=16k", "48M");
    qemu::qemu_io("qcow2", &target, &["write -P 9 0 48M"]);
    let ours = Served::start(&scratch, "", &[&target]);
    let export = blockdev(&scratch.path("our.sock"), "");
    for words in [&["-W", "-m", "8"][..], &["-S", "0"]] {
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-n", "-f", "raw", "--target-image-opts"]).args(words);
        assert!(convert.arg(&source).arg(&export).status().unwrap().success());
        qemu_img(&args!["compare", "-f", "raw", "-F", "raw", source, ours.uri]);
    }
    assert_eq!(ours.end(), Some(0));
    qemu::assert_clean(&target);
    qemu_img(&args!["bitmap", "--add", target, "b0"]);
    qemu::qemu_io("qcow2", &target, &["write -P 3 5M 300k", "write -z 40M 1M"]);
    let dirty = |socket: &str| {
        let more = ",x-dirty-bitmap=qemu:dirty-bitmap:b0";
        let export = blockdev(&scratch.path(socket), more);
        output("qemu-img", &["map", "--output=json", "--image-opts", &export])
    };
    let theirs = Served::qemu(&scratch, "-f qcow2 -B b0", &target);
    let expected = dirty("qemu.sock");
    drop(theirs);
    let ours = Served::start(&scratch, "--read-only --bitmap b0", &[&target]);
    assert_eq!(dirty("our.sock"), expected);
    assert!(expected.lines().count() > 3, "{expected}");
    drop(ours);
}

#[test]
fn qemu_asks_again_for_what_a_killed_server_had_not_answered() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = scratch.path("vm.qcow2");
    qemu::create(&image, "", "16M");
    let mut ours = Served::start(&scratch, "", &[&image]);
    let (daemon, uri) =
        daemon_over(&scratch, &blockdev(&scratch.path("our.sock"), ",reconnect-delay=120"));
    for round in 1..=3 {
        let flushed = format!("write -P {round} 0 1M");
        qemu::qemu_io("raw", &uri, &[&flushed, "flush"]);
        ours.signal(Signal::STOP);
        let mut client = Command::new("qemu-io")
            .args(["-f", "raw", "-c", &format!("write -P {round} 4M 1M"), "-c", "flush", &uri])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // It is in the socket then, or will be asked for of the next server.
        std::thread::sleep(Duration::from_millis(200));
        assert!(client.try_wait().unwrap().is_none());
        ours.signal(Signal::KILL);
        drop(ours);
        ours = Served::start(&scratch, "", &[&image]);
        assert!(client.wait().unwrap().success());
        let reads = ["0", "4M"].map(|at| format!("read -P {round} {at} 1M"));
        qemu::qemu_io("raw", &uri, &reads);
    }
    daemon.end();
    assert_eq!(ours.end(), Some(0));
    qemu::assert_clean(&image);
    qemu::qemu_io("qcow2", &image, &["read -P 3 0 1M", "read -P 3 4M 1M", "read -P 0 8M 8M"]);
}

#[test]
fn qemu_writes_on_through_servers_that_end_in_an_orderly_way_and_loses_nothing() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = scratch.path("vm.qcow2");
    // 400 MiB are written: no server ends before its successor is there.
    qemu::create(&image, "cluster_size=16k", "400M");
    let mut ours = Served::start(&scratch, "", &[&image]);
    let export = blockdev(&scratch.path("our.sock"), ",reconnect-delay=60");
    let mut bench = Command::new("qemu-img")
        .args(["bench", "-w", "-q", "-d", "32", "-s", "4096", "-c", "102400", "--pattern=5"])
        .args(["--image-opts", &export])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut restarts = 0;
    while bench.try_wait().unwrap().is_none() && restarts < 4 {
        let grown = std::fs::metadata(&image).unwrap().len() + (8 << 20);
        while std::fs::metadata(&image).unwrap().len() < grown
            && bench.try_wait().unwrap().is_none()
        {
            std::thread::yield_now();
        }
        assert_eq!(ours.end(), Some(0));
        ours = Served::start(&scratch, "", &[&image]);
        restarts += 1;
    }
    assert!(restarts >= 2, "{restarts} restarts");
    assert!(bench.wait().unwrap().success());
    assert_eq!(ours.end(), Some(0));
    qemu::assert_clean(&image);
    qemu::qemu_io("qcow2", &image, &["read -P 5 0 400M"]);
}
