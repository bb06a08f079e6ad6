//! `serve` behind nbdkit, whose filters make odd but legal clients of those that ask it.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};

use fixtures::pattern::{mixed, write_raw};
use fixtures::{Scratch, args, needs_qemu, qemu, qemu_img, skipped};

use crate::serve::{Served, needs};

/// `nbdkit`, which passes on what it is asked for.
struct Between {
    child: Child,
    uri: String,
}

impl Between {
    fn start(scratch: &Scratch, words: &str) -> Self {
        let (socket, ready) = (scratch.path("nbdkit.sock"), scratch.path("nbdkit.pid"));
        for old in [&socket, &ready] {
            let _ = fs::remove_file(old);
        }
        let mut command = Command::new("nbdkit");
        command.args(["-f", "--exit-with-parent", "-U"]).arg(&socket).arg("-P").arg(&ready);
        let server = format!("socket={}", scratch.path("our.sock").display());
        let mut child = command.args(words.split(' ')).arg(server).spawn().unwrap();
        while !ready.exists() {
            assert!(child.try_wait().unwrap().is_none(), "nbdkit {words}");
            std::thread::yield_now();
        }
        Self { child, uri: format!("nbd+unix:///?socket={}", socket.display()) }
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_comes_through_filters_of_nbdkit_is_written_as_it_was_meant() {
    needs_qemu!();
    needs!("nbdkit" "nbdcopy");
    let scratch = Scratch::new();
    let (model, image) = (scratch.path("model.raw"), scratch.path("vm.qcow2"));
    write_raw(&model, 24 << 20, &[(70_000, &mixed(7, 6 << 20)), (20 << 20, &[9; 70_000])]);
    for (value, options) in [(77, "cluster_size=4k"), (78, "extended_l2=on,cluster_size=128k")] {
        let _ = fs::remove_file(&image);
        qemu::create(&image, options, "24M");
        qemu::qemu_io("qcow2", &image, &["write -P 1 0 24M"]);
        let ours = Served::start(&scratch, "", &[&image]);
        let copy = |words: &str| {
            let between = Between::start(&scratch, words);
            let mut nbdcopy = Command::new("nbdcopy");
            nbdcopy.args(["--connections=4", "--flush"]).arg(&model).arg(&between.uri);
            nbdcopy.output().unwrap()
        };
        let copied = copy("--filter=blocksize nbd minblock=16384 maxdata=65536 maxlen=1M");
        assert!(copied.status.success(), "{options}: {copied:?}");
        for (nth, words) in [
            "nbd",
            "--filter=blocksize nbd minblock=8192 maxdata=65536 maxlen=1M",
            "--filter=fua nbd fuamode=force",
            "--filter=nozero nbd zeromode=emulate",
            "--filter=delay nbd wdelay=1ms",
            "--filter=cache nbd cache=writeback",
        ]
        .into_iter()
        .enumerate()
        {
            let between = Between::start(&scratch, words);
            let at = nth << 20;
            let commands = [
                format!("write -P {} {} 5000", nth + 2, at + 1000),
                format!("write -f -P {} {} 70000", nth + 20, at + 300_001),
                format!("write -z {} 130000", at + 500_000),
                format!("write -z -u {} 131072", at + 655_360),
                "flush".to_owned(),
            ];
            qemu::qemu_io("raw", &between.uri, &commands);
            qemu::qemu_io("raw", &model, &commands);
            qemu_img(&args!["compare", "-f", "raw", "-F", "raw", model, between.uri]);
        }
        // Nothing is written here: nbdkit compares what would be.
        let checked = copy("--filter=checkwrite nbd");
        assert!(checked.status.success(), "{options}: {checked:?}");
        let odd = format!("write -P {value} 15M 512");
        qemu::qemu_io("raw", &ours.uri, &[&odd]);
        assert!(!copy("--filter=checkwrite nbd").status.success(), "it sees one sector");
        qemu::qemu_io("raw", &model, &[&odd]);
        assert_eq!(ours.end(), Some(0), "{options}");
        qemu::assert_clean(&image);
        qemu_img(&args!["compare", "-f", "raw", "-F", "qcow2", model, image]);
    }
}
