//! What `convert` shows of its progress, and where it places clusters; and what of a snapshot is applied.

use std::process::Command;

use fixtures::needs_qemu;

use crate::beside::Beside;

/// An image with four pieces of data, far apart, over one that is full.
fn pieces() -> Beside {
    let beside = Beside::new();
    beside.set_up(
        "qemu-img create -q -f qcow2 base 64M; qemu-io -f qcow2 -c 'write -P 1 0 64M' base >/dev/null
         qemu-img create -q -f qcow2 top 128M
         qemu-img create -q -f qcow2 -b base -F qcow2 over
         for at in 0 2M 4M 32M; do
           for image in top over; do qemu-io -f qcow2 -c \"write -P 7 $at 1M\" $image >/dev/null; done
         done",
    );
    beside
}

#[test]
fn progress_is_that_through_the_data() {
    needs_qemu!();
    let beside = pieces();
    for (line, made) in [
        ("convert -p -O qcow2 top new", "new"),
        ("convert -p -O raw -f qcow2 top new.raw", "new.raw"),
        ("convert -p -n -O raw -f qcow2 --target-is-zero top new.raw", "new.raw"),
    ] {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (ours, theirs) = (beside.ours(&words).ok(), beside.theirs(&words).ok());
        assert_eq!(ours, theirs, "{line}");
        beside.same_content(made, if made.ends_with("raw") { "raw" } else { "qcow2" });
    }
}

#[test]
fn clusters_of_a_copy_over_a_backing_file_lie_in_the_order_of_the_disk() {
    needs_qemu!();
    let beside = pieces();
    beside.same("convert -O qcow2 -B base -F qcow2 over copy");
    beside.same_content("copy", "qcow2");
    let mapped = beside.same("map --output json copy");
    assert!(mapped.contains("\"depth\": 0"), "{mapped}");
}

#[test]
fn the_state_of_the_machine_comes_back_with_its_snapshot() {
    needs_qemu!();
    let beside = Beside::new();
    beside.set_up(
        "qemu-img create -q -f qcow2 -o cluster_size=4k a 4M
         qemu-io -f qcow2 -c 'write -P 3 0 1M' -c 'write -b -P 9 0 200k' a >/dev/null",
    );
    beside.same("snapshot -c with a");
    beside.same("snapshot -c without a");
    // QEMU leaves the state in the active image when it has taken a snapshot; here only the snapshot has it.
    let state_is = |byte: &str| {
        let read = format!("read -b -P {byte} 0 200k");
        let found = Command::new("qemu-io")
            .args(["-f", "qcow2", "-c", &read, "a"])
            .current_dir(beside.ours_dir())
            .output()
            .unwrap();
        assert!(found.status.success(), "{byte}: {found:?}");
        beside.same_content("a", "qcow2");
    };
    state_is("0");
    beside.same("snapshot -a with a");
    state_is("9");
    beside.same("snapshot -d with a");
    state_is("9");
    beside.same("snapshot -a without a");
    state_is("0");
}
