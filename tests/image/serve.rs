//! `serve`: what NBD's own tools and QEMU's find, beside `qemu-nbd`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::{command, qcowtool};
use fixtures::pattern::{mixed, write_raw};
use fixtures::{Scratch, args, needs_qemu, qemu, qemu_img, skipped};
use rustix::process::{Pid, Signal, kill_process};

/// Returns from a test, with a visible line, when one of these programs is not there.
macro_rules! needs {
    ($($program:literal)*) => {
        $(if !Path::new("/usr/bin").join($program).exists() {
            skipped(concat!($program, " is not installed"));
            return;
        })*
    };
}

pub(crate) use needs;

/// A server, and how clients name it.
pub(crate) struct Served {
    child: Child,
    pub(crate) uri: String,
}

impl Served {
    /// `qcowtool serve` on a socket in `scratch`.
    pub(crate) fn start(scratch: &Scratch, arguments: &str, images: &[&Path]) -> Self {
        let socket = scratch.path("our.sock");
        let mut words = args!["serve", "--socket", socket];
        words.extend(arguments.split_whitespace().map(Into::into));
        words.extend(images.iter().map(Into::into));
        let mut child = command(&words).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("serving: nbd"), "{words:?}: {line:?}");
        Self { child, uri: format!("nbd+unix:///?socket={}", socket.display()) }
    }

    /// `qemu-nbd`, read-only.
    pub(crate) fn qemu(scratch: &Scratch, arguments: &str, image: &Path) -> Self {
        let socket = scratch.path("qemu.sock");
        let _ = fs::remove_file(&socket);
        let mut command = Command::new("qemu-nbd");
        command.args(["-r", "-t", "-A", "-k"]).arg(&socket).args(arguments.split_whitespace());
        let child = command.arg(image).spawn().unwrap();
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            std::thread::yield_now();
        }
        Self { child, uri: format!("nbd+unix:///?socket={}", socket.display()) }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as an operator does; its exit code.
    pub(crate) fn end(self) -> Option<i32> {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Its exit code, when it ends.
    pub(crate) fn wait(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a program prints, if it succeeds.
#[track_caller]
pub(crate) fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// Images of several kinds, and the format of each.
fn images(scratch: &Scratch) -> Vec<(PathBuf, &'static str)> {
    let path = |name: &str| scratch.path(name);
    write_raw(
        path("base.raw"),
        24 << 20,
        &[(1 << 20, &mixed(1, 3 << 20)), (20 << 20, &[7; 70_000])],
    );
    let create = |words: &str| {
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2"]).args(words.split(' '));
        assert!(create.current_dir(path(".")).status().unwrap().success(), "{words}");
    };
    let io = |name: &str, commands: &[&str]| qemu::qemu_io("qcow2", path(name), commands);
    // Backing files that are shorter, explicit zeros, a discarded cluster.
    create("-b base.raw -F raw middle.qcow2 32M");
    io("middle.qcow2", &["write -P 3 2M 1M", "write -z 9M 1M", "write -P 8 25M 100k"]);
    create("-b middle.qcow2 -F qcow2 top.qcow2 40M");
    let last = ["write -P 9 3M 4k", "write -z 5M 64k", "write -P 1 35M 64k", "discard 35M 64k"];
    io("top.qcow2", &last);
    create("-o extended_l2=on,cluster_size=128k -b base.raw -F raw sub.qcow2 24M");
    io("sub.qcow2", &["write -P 9 3M 4k", "write -z 5M 8k", "write -P 1 1052672 12k"]);
    create("-o preallocation=metadata metadata.qcow2 8M");
    io("metadata.qcow2", &["write -P 9 3M 4k"]);
    create("-o compat=0.10 old.qcow2 8M");
    io("old.qcow2", &["write -P 9 3M 100k", "discard 3M 64k"]);
    let (from, to) = (path("base.raw"), path("packed.qcow2"));
    qemu_img(&args!["convert", "-c", "-f", "raw", "-O", "qcow2", from, to]);
    let qcow2 = ["top", "sub", "metadata", "old", "packed"];
    let qcow2 = qcow2.iter().map(|name| (path(&format!("{name}.qcow2")), "qcow2"));
    qcow2.chain([(path("base.raw"), "raw")]).collect()
}

#[test]
fn every_map_is_that_of_qemu_nbd() {
    needs_qemu!();
    needs!("nbdinfo" "qemu-nbd");
    let scratch = Scratch::new();
    for (image, format) in images(&scratch) {
        let theirs = Served::qemu(&scratch, &format!("-f {format}"), &image);
        let maps = |uri: &str| {
            ["--map", "--map=qemu:allocation-depth"].map(|map| output("nbdinfo", &[map, uri]))
        };
        let expected = maps(&theirs.uri);
        // Extended headers, which only QEMU knows.
        let seen = |uri: &str| output("qemu-img", &["map", "--output=json", "-f", "raw", uri]);
        let by_qemu = seen(&theirs.uri);
        drop(theirs);
        for writing in ["--read-only", ""] {
            if writing.is_empty() && image.ends_with("metadata.qcow2") {
                // Space that is kept and was never written to is data, for who may write there.
                continue;
            }
            let ours =
                Served::start(&scratch, &format!("--depth -f {format} {writing}"), &[&image]);
            let name = image.display();
            assert_eq!(maps(&ours.uri), expected, "{name} {writing}");
            assert_eq!(seen(&ours.uri), by_qemu, "{name} {writing}");
            assert_eq!(ours.end(), Some(0), "{name} {writing}");
        }
    }
}

#[test]
fn disks_and_snapshots_and_single_layers_are_copied_and_compared_by_other_tools() {
    needs_qemu!();
    needs!("nbdcopy" "nbdinfo");
    let scratch = Scratch::new();
    for (image, format) in images(&scratch) {
        let ours = Served::start(&scratch, &format!("-r -f {format}"), &[&image]);
        qemu_img(&args!["compare", "-f", "raw", "-F", format, ours.uri, image]);
        let copy = scratch.path("copy.raw");
        for options in [&["--connections=4", "--request-size=65536"][..], &["--no-extents"]] {
            let _ = fs::remove_file(&copy);
            let words = [options, &[ours.uri.as_str(), copy.to_str().unwrap()]].concat();
            output("nbdcopy", &words);
            qemu_img(&args!["compare", "-f", "raw", "-F", format, copy, image]);
        }
    }
    let top = scratch.path("top.qcow2");
    qemu_img(&args!["snapshot", "-c", "before", top]);
    let before = qemu::raw_of("qcow2", &top);
    qemu::qemu_io("qcow2", &top, &["write -P 77 0 8M"]);
    let expected = scratch.file("before.raw", &before);
    let ours = Served::start(&scratch, "--snapshot before", &[&top]);
    qemu_img(&args!["compare", "-f", "raw", "-F", "raw", ours.uri, expected]);
    drop(ours);
    let ours = Served::start(&scratch, "--alone --depth", &[&scratch.path("middle.qcow2")]);
    let map = output("nbdinfo", &["--map=qemu:allocation-depth", "--totals", &ours.uri]);
    assert!(map.contains("local") && !map.contains("backing"), "{map}");
}

#[test]
fn what_others_write_is_there_when_the_server_has_ended() {
    needs_qemu!();
    needs!("nbdcopy");
    let scratch = Scratch::new();
    let source = scratch.path("source.raw");
    let content = mixed(7, 6 << 20);
    write_raw(&source, 24 << 20, &[(70_000, &content), (20 << 20, &content[..1 << 20])]);
    let top = scratch.path("top.qcow2");
    for options in ["", "cluster_size=4k", "extended_l2=on,cluster_size=128k", "compat=0.10"] {
        let _ = fs::remove_file(&top);
        qemu::create(&top, options, "24M");
        qemu::qemu_io("qcow2", &top, &["write -P 1 0 24M"]);
        qemu_img(&args!["snapshot", "-c", "before", top]);
        let ours = Served::start(&scratch, "", &[&top]);
        output("nbdcopy", &["--connections=4", source.to_str().unwrap(), &ours.uri]);
        let commands = ["write -f -P 5 100k 300k", "write -z -u 10M 1M", "discard 12M 1M", "flush"];
        qemu::qemu_io("raw", &ours.uri, &commands);
        qemu::qemu_io("raw", &ours.uri, &["read -P 5 100k 300k", "read -P 0 10M 1M"]);
        // Nobody else may write meanwhile.
        let second = qcowtool(args!["serve", "--socket", scratch.path("x.sock"), top]);
        second.refused_naming(&["in use"]);
        assert_eq!(ours.end(), Some(0), "{options}");
        qemu::assert_clean(&top);
        qemu::qemu_io("raw", &source, &["write -P 5 100k 300k", "write -z 10M 1M"]);
        if options != "compat=0.10" {
            qemu::qemu_io("raw", &source, &["write -z 12M 1M"]);
        }
        qemu_img(&args!["compare", "-f", "raw", "-F", "qcow2", source, top]);
    }
}

#[test]
fn fio_finds_what_it_wrote_through_four_connections() {
    needs_qemu!();
    needs!("fio");
    let scratch = Scratch::new();
    let top = scratch.path("top.qcow2");
    qemu::create(&top, "cluster_size=16k", "64M");
    let ours = Served::start(&scratch, "", &[&top]);
    let uri = format!("--uri={}", ours.uri);
    let job = [
        "--name=x",
        "--ioengine=nbd",
        &uri,
        "--rw=randrw",
        "--bsrange=512-96k",
        "--bs_unaligned",
        "--verify=crc32c",
        "--verify_state_save=0",
        "--verify_fatal=1",
        "--iodepth=16",
        "--numjobs=4",
        "--size=12M",
        "--offset_increment=16M",
        "--io_size=12M",
        "--fsync=40",
        "--group_reporting",
    ];
    output("fio", &job);
    assert_eq!(ours.end(), Some(0));
    qemu::assert_clean(&top);
}

#[test]
fn after_a_kill_the_image_is_sound_and_has_what_was_flushed() {
    needs_qemu!();
    needs!("fio");
    let scratch = Scratch::new();
    let top = scratch.path("top.qcow2");
    qemu::create(&top, "cluster_size=4k", "64M");
    for round in 1..=4 {
        let mut ours = Served::start(&scratch, "", &[&top]);
        let pattern = format!("write -P {round} 0 1M");
        qemu::qemu_io("raw", &ours.uri, &[&pattern, "flush"]);
        let uri = format!("--uri={}", ours.uri);
        let mut fio = Command::new("fio")
            .args(["--name=x", "--ioengine=nbd", &uri, "--rw=randwrite", "--bs=4k", "--iodepth=32"])
            .args(["--offset=1M", "--size=60M", "--fsync=100", "--runtime=20", "--time_based"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let grown = fs::metadata(&top).unwrap().len() + (1 << 20);
        while fs::metadata(&top).unwrap().len() < grown && round < 4 {
            std::thread::yield_now();
        }
        ours.child.kill().unwrap();
        ours.child.wait().unwrap();
        let _ = fio.wait();
        // Leaks at most, which QEMU says with exit code 3.
        let check = Command::new("qemu-img").args(["check", "-q"]).arg(&top).status().unwrap();
        assert!(matches!(check.code(), Some(0 | 3)), "{check:?}");
        qemu::qemu_io("qcow2", &top, &[&format!("read -P {round} 0 1M")]);
    }
}

#[test]
fn an_incremental_backup_by_the_script_in_the_documentation_equals_the_disk() {
    needs_qemu!();
    needs!("nbdinfo" "qemu-nbd");
    if !Command::new("/usr/bin/python3")
        .args(["-c", "import nbd; nbd.NBD"])
        .status()
        .is_ok_and(|s| s.success())
    {
        skipped("python3-libnbd is not installed");
        return;
    }
    let scratch = Scratch::new();
    let (disk, copy) = (scratch.path("vm.qcow2"), scratch.path("full.qcow2"));
    qemu::create(&disk, "", "64M");
    qemu::qemu_io("qcow2", &disk, &["write -P 1 0 10M", "write -P 2 40M 1M"]);
    qemu_img(&args!["bitmap", "--add", disk, "backup-0"]);
    qcowtool(args!["flatten", disk, copy]).ok();
    let changes = ["write -P 3 5M 300k", "discard 40M 64k", "write -P 4 60M 5k", "write -z 1M 1M"];
    qemu::qemu_io("qcow2", &disk, &changes);
    // The ranges are those of qemu-nbd.
    let theirs = Served::qemu(&scratch, "-f qcow2 -B backup-0", &disk);
    let map = "--map=qemu:dirty-bitmap:backup-0";
    let expected = output("nbdinfo", &[map, &theirs.uri]);
    drop(theirs);
    let source = Served::start(&scratch, "--read-only --bitmap backup-0", &[&disk]);
    assert_eq!(output("nbdinfo", &[map, &source.uri]), expected);
    let other = Scratch::new();
    let target = Served::start(&other, "", &[&copy]);
    let text = include_str!("../../docs/serve.md");
    let script = text.split("```python\n").nth(1).unwrap().split("```").next().unwrap();
    output("/usr/bin/python3", &["-c", script, &source.uri, &target.uri, "backup-0"]);
    assert_eq!((source.end(), target.end()), (Some(0), Some(0)));
    qcowtool(args!["compare", disk, copy]).ok();
    qemu_img(&args!["compare", disk, copy]);
}

#[test]
fn what_cannot_be_served_is_refused_with_a_reason() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (image, raw) = (scratch.path("vm.qcow2"), scratch.file("vm.raw", &[0; 4096]));
    qemu::create(&image, "", "1M");
    let socket = scratch.path("s");
    let serve = |words: &str, images: &[&Path]| {
        let mut arguments = args!["serve", "--socket", socket];
        arguments.extend(words.split_whitespace().map(Into::into));
        arguments.extend(images.iter().map(Into::into));
        qcowtool(arguments)
    };
    qcowtool(args!["serve", image]).refused_naming(&["nothing to listen on", "--socket"]);
    serve("--bitmap b0", &[&image]).refused_naming(&["bitmap", "--read-only"]);
    serve("-r --bitmap b1", &[&image]).refused_naming(&["no bitmap named 'b1'", "vm.qcow2"]);
    serve("", &[&raw]).refused_naming(&["format", "-f"]);
    serve("-r", &[&image, &image]).refused_naming(&["two images are named 'vm.qcow2'"]);
    serve("-r --export x", &[&image, &raw]).refused_naming(&["--export names one image"]);
    // What is advised helps.
    qemu_img(&args!["bitmap", "--add", image, "b0"]);
    for words in ["--read-only --bitmap b0", "--read-only --export another"] {
        assert_eq!(Served::start(&scratch, words, &[&image]).end(), Some(0));
    }
    serve("--snapshot none", &[&image]).refused_naming(&["none"]);
    // What is at the socket's place stays, unless it is a socket that nobody listens to.
    fs::write(&socket, "a file").unwrap();
    serve("-r", &[&image]).refused_naming(&["in use"]);
    assert_eq!(fs::read_to_string(&socket).unwrap(), "a file");
    let ours = Served::start(&scratch, "-r", &[&image]);
    let again = qcowtool(args!["serve", "-r", "--socket", scratch.path("our.sock"), image]);
    again.refused_naming(&["in use"]);
    ours.signal(Signal::KILL);
    drop(ours);
    assert!(scratch.path("our.sock").exists());
    let ours = Served::start(&scratch, "-r", &[&image]);
    assert_eq!(ours.end(), Some(0));
    assert!(!scratch.path("our.sock").exists());
}

#[test]
fn several_exports_and_a_server_that_its_client_starts() {
    needs_qemu!();
    needs!("nbdinfo");
    let scratch = Scratch::new();
    let (one, two) = (scratch.path("one.qcow2"), scratch.path("two.qcow2"));
    qemu::create(&one, "", "1M");
    qemu::create(&two, "", "2M");
    let pid_file = scratch.path("pid");
    let ours =
        Served::start(&scratch, &format!("--pid-file {}", pid_file.display()), &[&one, &two]);
    assert_eq!(fs::read_to_string(&pid_file).unwrap(), format!("{}\n", ours.child.id()));
    let list = output("nbdinfo", &["--list", "--json", &ours.uri]);
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let sizes: Vec<_> =
        list["exports"].as_array().unwrap().iter().map(|e| &e["export-size"]).collect();
    assert_eq!(sizes, [1 << 20, 2 << 20]);
    let named = ours.uri.replace(":///?", ":///two.qcow2?");
    for can in ["multi-conn", "trim", "zero", "fast-zero", "fua", "flush", "cache", "df"] {
        output("nbdinfo", &["--can", can, &named]);
    }
    assert_eq!(ours.end(), Some(0));
    assert!(!pid_file.exists());
    let binary = common::binary();
    let words = [
        "--size",
        "--",
        "[",
        binary.to_str().unwrap(),
        "serve",
        "-r",
        "-q",
        two.to_str().unwrap(),
        "]",
    ];
    assert_eq!(output("nbdinfo", &words), "2097152\n");
    // One that ends when its client has gone.
    let socket = scratch.path("last.sock");
    let words = args!["serve", "--exit-after-last", "--output", "json", "--socket", socket, one];
    let mut child = command(&words).stdout(Stdio::piped()).spawn().unwrap();
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    while Command::new("qemu-io")
        .args(["-f", "raw", "-c", "write -P 1 0 64k", &uri])
        .output()
        .is_ok_and(|o| !o.status.success())
    {}
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let shown: serde_json::Value = serde_json::from_reader(child.stdout.take().unwrap()).unwrap();
    assert_eq!(shown["exports"][0]["contexts"], serde_json::json!(["base:allocation"]));
    assert_eq!(shown["uris"], serde_json::json!([uri]));
    qemu::qemu_io("qcow2", &one, &["read -P 1 0 64k"]);
    qemu::assert_clean(&one);
}
