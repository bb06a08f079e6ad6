//! `convert -S` and `-r`, beside QEMU's program.

use fixtures::{args, needs_qemu, qemu_img};

use crate::beside::Beside;

/// An overlay with zeros that its tables know, and zeros in its data, next to small pieces of data.
const SOURCE: &str = "qemu-img create -q -f qcow2 base 8M; qemu-img create -q -f qcow2 -b base -F qcow2 top
    qemu-io -f qcow2 -c 'write -P 1 0 5M' base >/dev/null
    qemu-io -f qcow2 -c 'write -P 2 64k 1k' -c 'write -P 0 1M 300k' -c 'write -P 3 1300k 4k' -c 'write -z 2M 1M' \\
        -c 'write -P 0 3M 1M' -c 'write -P 4 3500k 512' -c 'write -P 0 6M 1M' -c 'write -P 5 6200k 1k' top >/dev/null
    qemu-img create -q -f qcow2 ready 8M; qemu-io -f qcow2 -c 'write -P 9 0 8M' ready >/dev/null
    qemu-img convert -O raw ready ready.raw";

/// Which parts have data, as QEMU sees it.
fn allocated(beside: &Beside, name: &str, format: &str) -> [Vec<serde_json::Value>; 2] {
    beside.dirs().map(|dir| {
        let map = qemu_img(&args!["map", "-f", format, "--output", "json", dir.join(name)]);
        let mut ranges: Vec<serde_json::Value> = serde_json::from_str(&map).unwrap();
        for range in &mut ranges {
            range.as_object_mut().unwrap().remove("offset");
        }
        ranges
    })
}

#[test]
fn a_new_raw_file_begins_with_a_block_of_data() {
    needs_qemu!();
    let beside = Beside::new();
    for words in ["new 512", "new 3k", "new 8G", "-o preallocation=falloc new 1M"] {
        beside.same(&format!("create -q -f raw {words}"));
        let [ours, theirs] = allocated(&beside, "new", "raw");
        assert_eq!(ours, theirs, "{words}");
        assert_eq!(ours[0]["data"], true, "{words}");
    }
}

#[test]
fn zeros_are_left_out_in_the_blocks_that_qemu_leaves_out() {
    needs_qemu!();
    let beside = Beside::new();
    beside.set_up(SOURCE);
    for line in [
        "-O qcow2 top new.qcow2",
        "-O qcow2 -S 0 top new.qcow2",
        "-O qcow2 -S 0 -c top new.qcow2",
        "-O qcow2 -S 0 -o extended_l2=on top new.qcow2",
        "-O qcow2 -S 3584 -o cluster_size=512 top new.qcow2",
        "-O qcow2 -S 64k -o cluster_size=4k top new.qcow2",
        "-O qcow2 -S 8k -o extended_l2=on top new.qcow2",
        "-O qcow2 -S 256k top new.qcow2",
        "-O qcow2 -S 1M -c top new.qcow2",
        "-O qcow2 -S 16M top new.qcow2",
        "-O raw -S 0 top new.raw",
        "-O raw -S 512 top new.raw",
        "-O raw -S 64k top new.raw",
        "-O raw -S 1M top new.raw",
        "-n -O qcow2 -S 0 top ready",
        "-n -O qcow2 -S 256k top ready",
        "-n -O raw -S 64k top ready.raw",
        "-n -O raw -S 0 top ready.raw",
    ] {
        let made = line.rsplit_once(' ').unwrap().1;
        let format = if line.contains("-O raw") { "raw" } else { "qcow2" };
        if !line.starts_with("-n") {
            beside.set_up(&format!("rm -f {made}"));
        }
        assert_eq!(beside.same(&format!("convert {line}")), "", "{line}");
        beside.same_content(made, format);
        let [ours, theirs] = allocated(&beside, made, format);
        assert_eq!(ours, theirs, "{line}");
    }
}

#[test]
fn with_a_limit_of_bytes_a_second_the_same_is_written() {
    needs_qemu!();
    let beside = Beside::new();
    beside.set_up(SOURCE);
    for (line, made, format) in [
        ("convert -r 64M -O qcow2 top new.qcow2", "new.qcow2", "qcow2"),
        ("convert -r 0 -O raw top new.raw", "new.raw", "raw"),
        ("convert -p -n -r 64M -O qcow2 top ready", "ready", "qcow2"),
    ] {
        beside.both(&line.split(' ').collect::<Vec<_>>()).ok();
        beside.same_content(made, format);
    }
}

#[test]
fn onto_a_backing_file_zeros_are_data_if_all_is_to_be_data() {
    needs_qemu!();
    let beside = Beside::new();
    beside.set_up(SOURCE);
    for (compress, kind) in [("", false), (" -c", true)] {
        let line = format!("convert -O qcow2 -S 0{compress} -B base -F qcow2 top new.qcow2");
        beside.same(&line);
        beside.same_content("new.qcow2", "qcow2");
        let [ours, _] = allocated(&beside, "new.qcow2", "qcow2");
        // The zeros that the overlay has over data of its backing file.
        let zeros = ours.iter().find(|range| {
            let start = range["start"].as_u64().unwrap();
            start <= 2 << 20 && start + range["length"].as_u64().unwrap() > 2 << 20
        });
        let zeros = zeros.unwrap();
        assert_eq!((&zeros["depth"], &zeros["data"]), (&0.into(), &true.into()), "{zeros}");
        assert_eq!(zeros["compressed"], kind, "{zeros}");
    }
}
