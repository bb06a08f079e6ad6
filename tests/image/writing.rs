//! `io`: a disk is read and written in place.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use common::{command, qcowtool};
use fixtures::pattern::Random;
use fixtures::{Holder, Loop, Mounted, Scratch, args, assert_bytes, needs_qemu, qemu, qemu_img};

#[test]
fn what_io_writes_qemu_reads_and_the_backing_file_is_left_alone() {
    needs_qemu!();
    let scratch = Scratch::new();
    let base = scratch.file("base.raw", &vec![0xb5; 3 << 20]);
    let image = scratch.path("top.qcow2");
    let options = format!("backing_file={},backing_fmt=raw", base.display());
    qemu::create(&image, &options, "4M");
    let commands = [
        "write 1M 64k 0xff",
        "write 100 1000 7  # within a cluster",
        "compress 2M 128k 9",
        "flush",
        "zero 1M 4k",
        "discard 2M 64k",
        "read 1100 10 0xb5",
        "read 3M 1M 0",
    ];
    let mut arguments = args!["io"];
    arguments.extend(commands.iter().flat_map(|command| args!["-c", command]));
    let text = qcowtool([arguments, args![image]].concat()).ok();
    assert_eq!(text.lines().count(), commands.len(), "{text}");
    assert!(text.contains("read 3M 1M 0: all bytes are 0x00"), "{text}");
    let reads = [
        "read -P 0 1M 4k",
        "read -P 0xff 1028k 60k",
        "read -P 7 100 1000",
        "read -P 0xb5 0 100",
        "read -P 0 2M 64k",
        "read -P 9 2112k 64k",
        "read -P 0xb5 2176k 64k",
        "read -P 0 3M 1M",
    ];
    qemu::qemu_io("qcow2", &image, &reads);
    qemu::assert_clean(&image);
    assert_bytes!(fs::read(&base).unwrap(), vec![0xb5; 3 << 20], "the backing file");
    // And QEMU goes on writing where we stopped.
    qemu::qemu_io("qcow2", &image, &["write -P 3 0 4M"]);
    qcowtool(args!["io", "-c", "read 0 4M 3", image]).ok();
    qemu::assert_clean(&image);
}

#[test]
fn a_script_comes_from_standard_input_and_is_understood_before_anything_is_written() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = scratch.path("image.qcow2");
    qemu::create(&image, "", "1M");
    let before = fs::read(&image).unwrap();
    let run = |script: &str| {
        let mut child = command(&args!["io", "--output", "json", image])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let output = run("write 0 4k 1\nwrote 0 4k 1\n");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("wrote 0 4k 1"));
    assert_bytes!(fs::read(&image).unwrap(), before, "nothing was written");
    let output = run("write 0 4k 1\n\n# nothing\nread 0 8k\nmap 0 1M\n");
    assert!(output.status.success());
    let done: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(done[0]["command"], "write 0 4k 1");
    assert!(done[1].get("byte").is_none(), "two values");
    assert_eq!(done[2]["ranges"][0]["kind"], "data");
    assert_eq!(done[2]["ranges"][1]["kind"], "backing");
    // What came before a failed command is kept.
    let output = run("write 64k 4k 2\nread 64k 4k 3\nwrite 128k 4k 4\n");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("expected 0x03"));
    qemu::qemu_io("qcow2", &image, &["read -P 2 64k 4k", "read -P 0 128k 4k"]);
}

#[test]
fn an_image_that_another_process_uses_is_refused_and_left_alone() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = scratch.path("image.qcow2");
    qemu::create(&image, "", "1M");
    let before = fs::read(&image).unwrap();
    for options in [&[][..], &["-r"]] {
        let holder = Holder::new(options, &image);
        let run = qcowtool(args!["io", "-c", "write 0 4k 1", image]);
        run.refused_naming(&["in use"]);
        drop(holder);
        assert_bytes!(fs::read(&image).unwrap(), before, "the image");
    }
    qcowtool(args!["io", "-c", "write 0 4k 1", image]).ok();
}

#[test]
fn a_raw_disk_is_written_to_only_if_its_format_is_stated() {
    let scratch = Scratch::new();
    let disk = scratch.file("disk.raw", &vec![1; 100_000]);
    qcowtool(args!["io", "-c", "write 0 1 2", disk]).refused_naming(&["format", "-f"]);
    qcowtool(args!["io", "-f", "raw", "-c", "write 5 10 2", "-c", "zero 50000 1k", disk]).ok();
    let mut expected = vec![1; 100_000];
    expected[5..15].fill(2);
    expected[50_000..51_024].fill(0);
    assert_bytes!(fs::read(&disk).unwrap(), expected);
}

/// W-62: a raw data file is read by itself too.
#[test]
fn a_raw_data_file_has_what_the_image_has_after_zeroing_and_discarding() {
    needs_qemu!();
    let scratch = Scratch::new();
    for raw in ["on", "off"] {
        let (image, data) = (scratch.path("image.qcow2"), scratch.path("data.raw"));
        let options = format!("data_file={},data_file_raw={raw}", data.display());
        qemu::create(&image, &options, "2M");
        let commands = [
            "write 0 1M 5",
            "zero 64k 70k",
            "discard 512k 128k",
            "write 100 3 6",
            "zero 1M 4k keep",
        ];
        let mut arguments = args!["io"];
        arguments.extend(commands.iter().flat_map(|command| args!["-c", command]));
        qcowtool([arguments, args![image]].concat()).ok();
        let reads =
            ["read -P 0 64k 70k", "read -P 5 140k 200k", "read -P 0 512k 128k", "read -P 6 100 3"];
        qemu::qemu_io("qcow2", &image, &reads);
        qemu_img(&args!["check", image]);
        if raw == "on" {
            qemu_img(&args!["compare", "-f", "qcow2", "-F", "raw", image, data]);
        }
        fs::remove_file(&image).unwrap();
        fs::remove_file(&data).unwrap();
    }
}

/// W-75: a block device does not grow.
#[test]
fn an_image_on_a_block_device_is_written_to_until_it_is_full() {
    needs_qemu!();
    let scratch = Scratch::new();
    let file = scratch.path("device");
    fs::File::create(&file).unwrap().set_len(2 << 20).unwrap();
    let Some(device) = Loop::over(&file) else { return };
    let path = &device.0;
    qemu_img(&args!["create", "-q", "-f", "qcow2", path, "16M"]);
    qcowtool(args!["io", "-c", "write 0 1M 5", path]).ok();
    qcowtool(args!["io", "-c", "write 4M 4M 6", path]).refused_naming(&["storage space", "grow"]);
    qemu::qemu_io("qcow2", path, &["read -P 5 0 1M"]);
    qemu_img(&args!["check", "-f", "qcow2", path]);
}

/// W-73, W-74 on a real file system: what does not fit is refused, what was there stays, and with some space all goes on. A
/// snapshot needs room for the tables that change, also to be deleted; without it the image stays as it was.
#[test]
fn on_a_full_file_system_the_image_stays_sound_and_goes_on_when_there_is_space() {
    needs_qemu!();
    let scratch = Scratch::new();
    let Some(system) = Mounted::ext4(scratch.subdir("full")) else { return };
    let image = system.0.join("image.qcow2");
    qemu::create(&image, "cluster_size=4k", "8M");
    qemu::qemu_io("qcow2", &image, &["write -P 1 0 256k"]);
    qemu_img(&args!["snapshot", "-c", "one", image]);
    let filler = system.fill(64 << 10);
    // The first part finds room, the rest does not.
    let run =
        qcowtool(args!["io", "-c", "write 1M 16k 2", "-c", "flush", "-c", "write 2M 4M 3", image]);
    assert!(!run.succeeded() && run.stderr().contains("No space"), "{}", run.stderr());
    let kept = ["read -P 1 0 256k", "read -P 2 1M 16k"];
    qemu::qemu_io("qcow2", &image, &kept);
    assert!(matches!(qcowtool(args!["check", image]).code(), Some(0 | 3)));
    let before = fs::read(&image).unwrap();
    let run = qcowtool(args!["snapshot", "-d", "one", image]);
    if !run.succeeded() {
        assert!(run.stderr().contains("No space"), "{}", run.stderr());
        assert_bytes!(fs::read(&image).unwrap()[..before.len()], before, "a failed deletion");
    }
    fs::remove_file(filler).unwrap();
    if !run.succeeded() {
        qcowtool(args!["snapshot", "-q", "-d", "one", image]).ok();
    }
    qcowtool(args!["io", "-q", "-c", "write 2M 1M 3", image]).ok();
    qemu::qemu_io("qcow2", &image, &kept);
    qemu::qemu_io("qcow2", &image, &["read -P 3 2M 1M"]);
    qcowtool(args!["check", "-q", "-r", "leaks", image]).ok();
    qemu::assert_clean(&image);
}

/// A real process, killed at any moment, again and again; QEMU writes to what is left. What was flushed is there, and
/// what was not is old or new. `QCOWTOOL_KILLS` says how often.
#[test]
fn a_killed_process_leaves_a_sound_image() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = scratch.path("image.qcow2");
    qemu::create(&image, "cluster_size=4k", "8M");
    qemu::qemu_io("qcow2", &image, &["write -P 1 0 8M"]);
    qemu_img(&args!["snapshot", "-c", "one", image]);
    // The script, which of its lines are flushes, and for each cluster the lines that change it, and to what.
    let (mut script, mut flushes) = (Vec::new(), Vec::new());
    let mut changes: Vec<Vec<(usize, u8)>> = vec![Vec::new(); 2048];
    for round in 2..60usize {
        for number in 0..64 {
            let at = (number * 37 + round * 11) % 2048;
            changes[at].push((script.len(), round as u8));
            script.push(format!("write {} 4k {round}", at * 4096));
            if number % 16 == 0 {
                flushes.push(script.len());
                script.push("flush".into());
                let at = (at + 16) % 2046;
                changes[at].push((script.len(), 0));
                changes[at + 1].push((script.len(), 0));
                script.push(format!("discard {} 8k", at * 4096));
            }
        }
    }
    let script = scratch.file("script", script.join("\n").as_bytes());
    let kills = std::env::var("QCOWTOOL_KILLS").ok().and_then(|kills| kills.parse().ok());
    let mut random = Random::new(u64::from(std::process::id()));
    let mut model = vec![1; 2048];
    for kill in 0..kills.unwrap_or(20) {
        let mut child = command(&args!["io", "-q", image])
            .stdin(fs::File::open(&script).unwrap())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(random.below(300)));
        let _ = child.kill();
        child.wait().unwrap();
        let found = sound(&image);
        // What is new tells how far it came at least, and so which flush had returned.
        let line = |cluster: &usize| {
            let value = found[*cluster];
            let new = value != model[*cluster] && value != 0;
            let wrote = |(_, written): &&(usize, u8)| new && *written == value;
            changes[*cluster].iter().find(wrote).map(|(line, _)| *line)
        };
        let reached = (0..2048).filter_map(|cluster| line(&cluster)).max().unwrap_or(0);
        let flushed = flushes.iter().copied().rfind(|line| *line < reached).unwrap_or(0);
        for (cluster, found) in found.iter().enumerate() {
            let (before, later): (Vec<_>, Vec<_>) =
                changes[cluster].iter().partition(|(line, _)| *line < flushed);
            let durable = before.last().map_or(model[cluster], |(_, value)| *value);
            assert!(
                durable == *found || later.iter().any(|(_, value)| value == found),
                "kill {kill} after line {reached}, flushed at {flushed}: cluster {cluster} has \
                 {found}, it had {durable}, then {later:?}"
            );
        }
        model = found;
        // Life goes on, with QEMU.
        let at = random.below(2048);
        qemu::qemu_io("qcow2", &image, &[format!("write -P 200 {} 4k", at * 4096)]);
        model[at as usize] = 200;
    }
}

/// No corruption; each cluster has one value, which is given; the snapshot has what it had.
fn sound(image: &Path) -> Vec<u8> {
    let run = qcowtool(args!["check", image]);
    assert!(matches!(run.code(), Some(0 | 3)), "{}{}", run.stdout(), run.stderr());
    let theirs = std::process::Command::new("qemu-img").arg("check").arg(image).output().unwrap();
    assert!(matches!(theirs.status.code(), Some(0 | 3)), "{theirs:?}");
    let raw = qemu::raw_of("qcow2", image);
    for (number, cluster) in raw.chunks(4096).enumerate() {
        assert!(cluster.iter().all(|byte| byte == &cluster[0]), "cluster {number}");
    }
    let snapshot = common::snapshot_like_qemu(image, "one");
    assert!(snapshot.iter().all(|byte| *byte == 1), "the snapshot");
    raw.chunks(4096).map(|cluster| cluster[0]).collect()
}
