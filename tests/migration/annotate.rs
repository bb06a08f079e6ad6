//! `monitor --annotate`: what a guest's metadata says of its disks follows what is done to them.

use std::fs;

use crate::trial::{Running, binary, needs_migration};
use rig::{Guest, Ran, Rig, wait_for};

/// The guest's metadata of ours; empty if there is none.
fn metadata(guest: &Guest<'_>, rig: &Rig) -> String {
    let said = rig.a.virsh(["metadata", &guest.name, "--uri", "urn:qcowtool:disks:1"]).stdout();
    said.replace('"', "'")
}

/// The digest of what an image on A shows, without asking what uses it.
fn digest(rig: &Rig, path: &str) -> String {
    let mut command = rig.a.command(binary());
    command.args(["checksum", "--algorithm", "blake3-tree", "--output", "json", "-U", path]);
    let ran = Ran::of("checksum", command.output().unwrap());
    let said: serde_json::Value = serde_json::from_str(&ran.ok()).unwrap();
    said["blake3-tree"].as_str().unwrap().to_owned()
}

#[test]
fn the_monitor_keeps_it_true() {
    needs_migration!();
    let rig = Rig::up();
    let guest = Guest::new(&rig, "watched");
    guest.run_on_template();
    let textfile = guest.path("monitor.prom");
    let mut command = rig.a.command(binary());
    command.args(["monitor", "--annotate", "--connect", "qemu:///system", "--interval", "1"]);
    let mut monitor = Running::start(&rig, command.args(["--textfile", &textfile]));
    let mut wait = |what: &str, words: &[&str], not: &str| {
        wait_for(60, what, || {
            monitor.still_runs();
            let said = metadata(&guest, &rig);
            let all = words.iter().all(|word| said.contains(word));
            (all && (not.is_empty() || !said.contains(not))).then_some(())
        });
    };
    let (disk, template) = (guest.path("disk.qcow2"), guest.path("template.qcow2"));
    let base = digest(&rig, &template);
    wait("metadata", &["virtual-size='67108864'", &format!("base-digest='{base}'")], "");
    rig.a.virsh(["blockresize", &guest.name, &disk, "80M"]).ok();
    wait("new size", &["virtual-size='83886080'"], "67108864' cluster");

    // A snapshot puts a layer in between, of which an incremental copy over the template would know nothing.
    let snapshot = ["snapshot-create-as", &guest.name, "s", "--disk-only", "--no-metadata"];
    rig.a.virsh(snapshot).ok();
    wait("digest of both layers", &["base-digest="], &base);

    // What is below cannot be read any more: what was known of it does not stay.
    rig.a.virsh(["destroy", &guest.name]).ok();
    fs::remove_file(rig.a.outside(&template)).unwrap();
    wait("end of the digest", &["virtual-size='83886080'"], "base-");
    let metrics = wait_for(60, "a finding", || {
        let text = fs::read_to_string(rig.a.outside(&textfile)).unwrap();
        text.contains("\nqcowtool_monitor_unannotated_guests 1\n").then_some(text)
    });
    assert!(metrics.contains("\nqcowtool_monitor_annotated_guests 0\n"), "{metrics}");
    monitor.signal("TERM");
    let ran = monitor.end();
    assert_eq!(ran.code(), Some(0), "{ran}");
    assert!(ran.stderr().contains("watched: disk 'vda': "), "{ran}");

    // Once, for a timer, with a verdict.
    let mut command = rig.a.command(binary());
    command.args(["monitor", "--annotate", "--connect", "qemu:///system", "--once"]);
    let output = command.args(["--textfile", &textfile]).output().unwrap();
    let ran = Ran::of("monitor --once --annotate", output);
    assert_eq!(ran.code(), Some(6), "{ran}");
}
