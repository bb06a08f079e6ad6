//! What goes wrong in the middle. Whatever it is, afterwards the guest runs on exactly one host with the right
//! disk, nothing of ours is left but what the journal names, and nothing that is not ours is gone.
//!
//! Each story that harms its hosts has hosts of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::thread::sleep;
use std::time::Duration;

use crate::trial::{CHANGED, INTERRUPTED, REFUSED, Trial, Way, both_ways, needs_migration};
use rig::{Disk, Ran, Rig, wait_for};

const DISKS: &[&str] = &["disk.qcow2", "data.qcow2"];

/// Where the run left its transaction open, this puts back what it made.
fn roll_back_if_open(trial: &Trial<'_>) {
    for id in trial.transactions() {
        trial.go_on("rollback", &id);
    }
}

both_ways! {
    fn somebody_aborts_the_job(way: Way) {
        let rig = Rig::up();
        let trial = Trial::slow_orphan(&rig, way);
        let running = trial.start_slowly(&[]);
        rig.a.virsh(["domjobabort", &trial.guest.name]).ok();
        let ran = running.end();
        assert!(!ran.succeeded(), "{ran}");
        trial.stayed();
        // What is left of the attempt is no obstacle to the next.
        trial.arrived(trial.migrate(&[]), DISKS);
    }

    fn the_operator_interrupts(way: Way) {
        let rig = Rig::up();
        let trial = Trial::slow_orphan(&rig, way);
        let running = trial.start_slowly(&[]);
        running.signal("INT");
        let ran = running.end();
        assert_eq!(ran.code(), Some(INTERRUPTED), "{ran}");
        trial.stayed();
    }

    fn killed_and_rolled_back(way: Way) {
        let rig = Rig::up();
        let trial = Trial::slow_orphan(&rig, way);
        let running = trial.start_slowly(&[]);
        running.signal("KILL");
        running.end();
        trial.go_on("rollback", &trial.transaction()).ok();
        trial.stayed();
        // Nothing is in the way of the next attempt.
        trial.arrived(trial.migrate(&[]), DISKS);
    }

    fn killed_and_resumed(way: Way) {
        let rig = Rig::up();
        let trial = Trial::slow_orphan(&rig, way);
        let running = trial.start_slowly(&[]);
        running.signal("KILL");
        running.end();
        // The hosts do not need qcowtool to go on.
        wait_for(40, "guest on B", || trial.guest.state(&rig.a).is_none().then_some(()));
        trial.arrived(trial.go_on("resume", &trial.transaction()), DISKS);
    }

    fn the_destination_dies(way: Way) {
        let rig = Rig::up();
        let trial = Trial::slow_orphan(&rig, way);
        let running = trial.start_slowly(&[]);
        rig.b.crash();
        let ran = running.end();
        assert!(!ran.succeeded(), "{ran}");
        trial.guest.goes_on(&rig.a);
        rig.revive(&rig.b);
        if way == Way::Libvirt {
            rig.b.virsh(["pool-start", &trial.guest.name]);
        }
        roll_back_if_open(&trial);
        trial.stayed();
    }
}

/// A raw image has no header that tells it from others: the journal knows that nothing was there, and its length.
#[test]
fn killed_with_a_raw_disk_and_rolled_back() {
    needs_migration!();
    let rig = Rig::up();
    let mut trial = Trial::new(&rig, "raw", Way::Libvirt);
    trial.guest.template.burst = 1;
    let (disk, data) = (trial.disk(), trial.path("data.raw"));
    rig.a.make_template(&disk, &trial.guest.template);
    rig.a.run(["dd", "if=/dev/urandom", "bs=1M", "count=48", &format!("of={data}")]).ok();
    trial.run(&[Disk::qcow2(disk), Disk::raw(data)]);
    let running = trial.start_slowly(&[]);
    running.signal("KILL");
    running.end();
    trial.go_on("rollback", &trial.transaction()).ok();
    trial.stayed();
}

/// A guest that writes as fast as its disk is copied does so for ever, unless its writes wait.
#[test]
fn a_guest_that_outruns_the_copy() {
    needs_migration!();
    let rig = Rig::up();
    let mut trial = Trial::new(&rig, "outrun", Way::Agent);
    trial.guest.template.burst = 64;
    let disk = trial.disk();
    rig.a.make_template(&disk, &trial.guest.template);
    trial.run(&[Disk::qcow2(disk)]);
    let slow = ["--bandwidth", "2M", "--progress", "always"];
    let ran = trial.migrate(&[&slow[..], &["--stall", "12"]].concat());
    assert!(!ran.succeeded(), "{ran}");
    for words in ["as fast as they are copied", "--sync-writes"] {
        assert!(ran.stderr().contains(words), "{ran}");
    }
    // Of a total that grows nothing is done: what is said is how much of the disk is equal.
    let lines = ran.stderr();
    let lines: Vec<_> = lines.lines().filter(|line| line.starts_with("disks ")).collect();
    assert!(!lines.is_empty(), "{ran}");
    for line in lines {
        let numbers: Vec<u64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
        assert!(numbers[1] == 0 || numbers[0] < numbers[1] && numbers[1] <= 64 << 20, "{line}");
    }
    trial.stayed();
    trial.arrived(trial.migrate(&["--bandwidth", "4M", "--sync-writes"]), &["disk.qcow2"]);
}

/// With libvirt alone files are made under their names from the start: half of one is ours, too.
#[test]
fn killed_while_a_template_is_sent_and_rolled_back() {
    needs_migration!();
    let rig = Rig::up();
    let mut trial = Trial::new(&rig, "sent", Way::Libvirt);
    trial.guest.run_on_template();
    let (a, template) = (&rig.a, trial.path("template.qcow2"));
    // 200 MiB that no guest reads, for something to take a while.
    a.run([
        "dd",
        "if=/dev/urandom",
        "bs=1M",
        "count=200",
        "oflag=append",
        "conv=notrunc",
        &format!("of={template}"),
    ])
    .ok();
    trial.watch();
    let mut child = a.command("timeout");
    child.args(["-s", "KILL", "1.2"]).arg(crate::trial::binary());
    child.args([
        "migrate",
        &trial.guest.name,
        "--to",
        &rig.b.uri(),
        "--policy",
        "thin",
        "--state-dir",
    ]);
    child.arg(format!("/var/lib/libvirt/qcowtool/{}", trial.guest.name));
    child.output().unwrap();
    // libvirtd 11.3 may block for ever when a client goes away in the middle of an upload.
    rig.b.stop_daemon();
    rig.b.start_daemon();
    for id in trial.open_transactions() {
        trial.go_on("rollback", &id).ok();
    }
    trial.stayed();
}

/// Before libvirt is asked for anything, and at any other moment of the run.
fn killed_after(milliseconds: u64) {
    needs_migration!();
    let rig = Rig::up();
    let trial = Trial::slow_orphan(&rig, Way::Agent);
    let mut child = rig.a.command("timeout");
    let words = ["-s", "KILL", &format!("{}.{:03}", milliseconds / 1000, milliseconds % 1000)];
    child.args(words).arg(crate::trial::binary());
    child.args(["migrate", &trial.guest.name, "--connect", "qemu:///system", "--to", &rig.b.uri()]);
    child.args(["-e", &rig.b.remote_shell(), "--state-dir"]);
    child.arg(format!("/var/lib/libvirt/qcowtool/{}", trial.guest.name));
    child.output().unwrap();
    // libvirt may be at it still, and then it comes to one end or the other.
    wait_for(40, "end of the job", || {
        let state = trial.guest.state(&rig.a);
        let job = rig.a.virsh(["domjobinfo", &trial.guest.name]).stdout();
        (state.is_none() || job.contains("None")).then_some(())
    });
    if trial.guest.state(&rig.a).is_none() {
        trial.guest.goes_on(&rig.b);
        // On a fast machine it was done before it could be killed.
        for id in trial.open_transactions() {
            trial.go_on("resume", &id).ok();
        }
        trial.lives_on_b(DISKS);
    } else {
        for id in trial.open_transactions() {
            trial.go_on("rollback", &id).ok();
        }
        trial.stayed();
    }
}

#[test]
fn killed_after_100_ms() {
    killed_after(100);
}

#[test]
fn killed_after_300_ms() {
    killed_after(300);
}

#[test]
fn killed_after_600_ms() {
    killed_after(600);
}

#[test]
fn killed_after_1000_ms() {
    killed_after(1000);
}

#[test]
fn killed_after_1500_ms() {
    killed_after(1500);
}

#[test]
fn the_destinations_libvirtd_is_started_anew() {
    needs_migration!();
    let rig = Rig::up();
    let trial = Trial::slow_orphan(&rig, Way::Agent);
    let running = trial.start_slowly(&[]);
    rig.b.stop_daemon();
    rig.b.start_daemon();
    let ran = running.end();
    assert!(!ran.succeeded(), "{ran}");
    trial.guest.goes_on(&rig.a);
    roll_back_if_open(&trial);
    trial.stayed();
}

#[test]
fn the_sources_libvirtd_is_started_anew() {
    needs_migration!();
    let rig = Rig::up();
    let trial = Trial::slow_orphan(&rig, Way::Agent);
    let running = trial.start_slowly(&[]);
    rig.a.stop_daemon();
    rig.a.start_daemon();
    let ran = running.end();
    assert!(!ran.succeeded(), "{ran}");
    trial.guest.goes_on(&rig.a);
    roll_back_if_open(&trial);
    trial.stayed();
}

/// libvirt may wait for ever then, for block jobs that it has cancelled already; hence the time limit.
#[test]
fn the_cable_is_cut_and_mended() {
    needs_migration!();
    let rig = Rig::up();
    let trial = Trial::slow_orphan(&rig, Way::Agent);
    let running = trial.start_slowly(&["--timeout", "12"]);
    rig.a.link(false);
    // Longer than the hosts' libvirtds wait for each other.
    sleep(Duration::from_secs(7));
    rig.a.link(true);
    let ran = running.end();
    roll_back_if_open(&trial);
    if ran.succeeded() {
        trial.lives_on_b(DISKS);
    } else {
        trial.stayed();
    }
}

#[test]
fn a_file_system_that_is_too_small_is_refused() {
    needs_migration!();
    let rig = Rig::up();
    let mut trial = Trial::new(&rig, "small", Way::Agent);
    rig.b.small_file_system(&trial.guest.directory(), 20);
    trial.run_slow_orphan("writeback"); // some kernels' tmpfs can do no more
    trial.refused(trial.migrate(&[]), "space");
}

/// There was room when it was planned.
#[test]
fn a_file_system_that_becomes_full() {
    needs_migration!();
    let rig = Rig::up();
    let mut trial = Trial::new(&rig, "full", Way::Agent);
    rig.b.small_file_system(&trial.guest.directory(), 100);
    trial.run_slow_orphan("writeback");
    let running = trial.start_slowly(&[]);
    let junk = trial.path("junk");
    rig.b.run(["dd", "if=/dev/zero", "bs=64k", &format!("of={junk}")]);
    let ran = running.end();
    assert!(!ran.succeeded(), "{ran}");
    fs::remove_file(rig.b.outside(&junk)).unwrap();
    roll_back_if_open(&trial);
    trial.stayed();
}

/// Makes a plan, changes something, and carries the plan out.
fn planned_before(change: impl FnOnce(&mut Trial<'_>)) {
    needs_migration!();
    let rig = Rig::up();
    let mut trial = Trial::on_template(&rig, "planned", Way::Agent);
    trial.copy_to_b("template.qcow2");
    trial.watch();
    let plan = trial.tool("plan", &["--output", "json"]).ok();
    let file = format!("/run/{}.json", trial.guest.name);
    fs::write(rig.a.outside(&file), plan).unwrap();
    change(&mut trial);
    trial.watch();
    let ran = trial.migrate(&["--plan", &file]);
    assert!(matches!(ran.code(), Some(CHANGED | REFUSED)), "{ran}");
    trial.stayed();
}

#[test]
fn a_target_that_appears_after_the_plan() {
    planned_before(|trial| {
        trial.rig.b.qemu_img(["create", "-q", "-f", "qcow2", &trial.disk(), "64M"]).ok();
    });
}

#[test]
fn a_base_that_changes_after_the_plan() {
    planned_before(|trial| {
        let template = trial.path("template.qcow2");
        trial.rig.b.run(["qemu-io", "-f", "qcow2", "-c", "write -P 1 50M 512", &template]).ok();
    });
}

#[test]
fn a_chain_that_grows_after_the_plan() {
    planned_before(|trial| {
        let flags = ["--disk-only", "--no-metadata", "--diskspec"];
        let spec = format!("vda,file={}", trial.path("top.qcow2"));
        let words = ["snapshot-create-as", &trial.guest.name].into_iter().chain(flags);
        trial.rig.a.virsh(words.chain([&*spec])).ok();
    });
}

#[test]
fn another_guest_of_the_same_name_there_is_refused() {
    needs_migration!();
    let rig = Rig::up();
    let trial = Trial::slow_orphan(&rig, Way::Agent);
    trial.guest.define(&rig.b, &[Disk::qcow2("/nowhere")]);
    let ran = trial.migrate(&[]);
    assert_eq!(ran.code(), Some(REFUSED), "{ran}");
    rig.b.virsh(["undefine", &trial.guest.name]).ok();
    trial.stayed();
}

/// qcowtool on B is older, and does not know all that it might be asked for.
#[test]
fn an_older_program_at_the_destination_is_refused_before_anything_is_done() {
    needs_migration!();
    let rig = Rig::shared();
    let trial = Trial::on_template(rig, "older", Way::Libvirt);
    let older = rig.directory().join("older");
    let hello = r#"{"protocol":3,"program":"0.0.9"}"#;
    let greets = format!(
        "#!/bin/sh\nprintf '\\000qcwagt\\n\\001\\000\\000\\000\\{:o}{hello}'\ncat >/dev/null\n",
        hello.len()
    );
    fs::write(&older, greets).unwrap();
    fs::set_permissions(&older, fs::Permissions::from_mode(0o755)).unwrap();
    let older = older.to_str().unwrap();
    let ran = trial.migrate(&["-e", older]);
    let evacuate = ["--guest", &trial.guest.name, "--to", &rig.b.uri(), "-e", older];
    let evacuated = crate::evacuation::evacuate(rig, &evacuate).output().unwrap();
    for ran in [ran, Ran::of("qcowtool evacuate", evacuated)] {
        assert_eq!(ran.code(), Some(6), "{ran}");
        for words in ["has version 0.0.9 (protocol 3), and host-a has", "install the same version"]
        {
            assert!(ran.stderr().contains(words), "{words}: {ran}");
        }
    }
    assert!(trial.transactions().is_empty());
    trial.stayed();
}
