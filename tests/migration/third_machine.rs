//! The command is given on neither of the two hosts: here by B's shell about a guest of A, whose files B has not.

use std::fs;

use crate::trial::{Trial, Way, binary, needs_migration, says};
use rig::{Ran, Rig};

/// `qcowtool` on B, which reaches both libvirts.
fn on_b(rig: &Rig, words: &[&str]) -> Ran {
    let mut command = rig.b.command(binary());
    let from = format!("qemu+tcp://{}/system", rig.a.name());
    command.args(words).args(["--connect", &from, "--to", &rig.b.uri()]);
    Ran::of(format!("qcowtool {} on b", words.join(" ")), command.output().expect("it starts"))
}

#[test]
fn what_a_third_machine_is_refused_it_does_on_the_guests_host() {
    needs_migration!();
    let rig = Rig::up();
    let trial = Trial::alone(&rig, "far", Way::Agent);
    // Something else of that name is on B, which is not to be taken for the guest's disk.
    let name = trial.guest.name.clone();
    let elsewhere = format!("{}/elsewhere", trial.guest.directory());
    let map = format!("{}={elsewhere}", trial.guest.directory());
    let guest = ["--guest", &name];
    for words in [
        &["plan", &name, "--map-path", &map][..],
        &["migrate", &name, "--map-path", &map],
        &["preflight", &name, "--map-path", &map],
        &[&["evacuate", "--map-path", &map][..], &guest].concat(),
        &[&["evacuate", "--dry-run", "--map-path", &map][..], &guest].concat(),
    ] {
        let ran = on_b(&rig, words);
        trial.refused(ran, "the guest is on host-a, and this is host-b");
        says(&on_b(&rig, words), "ssh -t host-a qcowtool");
    }
    // What only looks at files of the guest, or changes them where they are, says the same.
    let from = format!("qemu+tcp://{}/system", rig.a.name());
    for words in [
        &["annotate", &name][..],
        &["annotate", "--all"],
        &["rescue", &name],
        &["flatten", "--live", &name, "vda"],
        &["relocate", &name, "--target-dir", &elsewhere],
    ] {
        let mut command = rig.b.command(binary());
        command.args(words).args(["--connect", &from]);
        let ran = Ran::of(words.join(" "), command.output().expect("it starts"));
        trial.refused(ran, "the guest is on host-a, and this is host-b");
    }
    let xml = rig.a.virsh(["dumpxml", &name]).ok();
    assert!(!xml.contains("urn:qcowtool:disks"), "{xml}");
    assert!(!rig.b.has(&elsewhere));
    assert!(!rig.b.has("/var/lib/libvirt/qcowtool/transactions"), "a journal was begun");

    // As it says: the same by ssh, without --connect.
    let (to, back) = (rig.b.uri(), rig.b.remote_shell());
    let shell = rig.a.remote_shell();
    let run = |words: &str| {
        let line: Vec<&str> = shell.split(' ').chain([words]).collect();
        rig.b.run(line)
    };
    let program = fs::canonicalize(binary()).unwrap();
    let tool = program.display();
    let there = format!("--to {to} -e '{back}' --mkdir --map-path {map}");
    run(&format!("{tool} plan {name} {there}")).ok();
    run(&format!("{tool} preflight {name} {there}")).ok();
    run(&format!("{tool} evacuate --guest {name} {there}")).ok();
    let (guest, disk) = (&trial.guest, format!("{elsewhere}/disk.qcow2"));
    assert_eq!((guest.state(&rig.a), guest.state(&rig.b).as_deref()), (None, Some("running")));
    guest.wait_writes(&rig.b, guest.writes(&rig.a) + 100);
    guest.check_disk(&rig.b, &disk, rig::Kind::Boot);
}
