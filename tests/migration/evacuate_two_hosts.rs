//! A host is emptied onto two others while its guests write, and something breaks in each attempt: the cable to one of
//! them, a QEMU that a guest arrives in, a libvirtd, the room at the destination. After each, every guest is on exactly
//! one host and whole; in the end all have arrived.

use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;

use crate::trial::{Running, Trial, Way, binary, needs_migration};
use rig::{Host, Kind, Ran, Rig, wait_for};

const GUESTS: [&str; 4] = ["east", "north", "south", "west"];

fn evacuate(rig: &Rig, words: &[&str]) -> Command {
    let mut command = rig.a.command(binary());
    command.args(["evacuate", "--connect", "qemu:///system", "--output", "json"]).args(words);
    command
}

#[track_caller]
fn report(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout()).unwrap_or_else(|error| panic!("{error}: {ran}"))
}

/// Whether libvirt copies the guest's disks now.
fn copies(rig: &Rig, trial: &Trial<'_>) -> bool {
    let job = rig.a.virsh(["domjobinfo", &trial.guest.name]).stdout();
    let done = job.lines().find_map(|l| l.strip_prefix("File processed:").map(str::trim));
    done.is_some_and(|amount| !amount.starts_with("0.000"))
}

/// Where the guest runs, which is one host and no other.
#[track_caller]
fn place<'r>(rig: &'r Rig, trial: &Trial<'_>) -> &'r Host {
    let guest = &trial.guest;
    // Where a migration has just failed, libvirt takes a moment to forget the guest.
    wait_for(60, &format!("end of the uncertainty about {}", guest.name), || {
        let known: Vec<_> =
            rig.all().into_iter().filter(|host| guest.state(host).is_some()).collect();
        let [only] = known[..] else { return None };
        (guest.state(only).as_deref() == Some("running")).then_some(only)
    })
}

/// Every guest is on one host, and all that it and its disks hold is right. How many have left A.
#[track_caller]
fn all_whole(rig: &Rig, trials: &[Trial<'_>]) -> usize {
    let mut gone = 0;
    for trial in trials {
        let (host, guest) = (place(rig, trial), &trial.guest);
        // They write little, so that their disks can be copied.
        guest.wait_writes(host, guest.writes(host) + 10);
        if std::ptr::eq(host, &rig.a) {
            // Its template has no name any more: what it reads back itself is what is known.
            assert_eq!(guest.complaint(host), None);
            continue;
        }
        gone += 1;
        guest.check_disk(host, &trial.disk(), Kind::Boot);
        let data = std::fs::read(host.raw_copy(&trial.path("data.qcow2")).path()).unwrap();
        assert!(data.len() == 48 << 20 && data.iter().all(|byte| *byte == 90), "{}", guest.name);
        assert!(guest.writes(host) >= guest.writes(&rig.a));
    }
    gone
}

/// Waits until a guest's disks are copied to C.
fn under_way_to_c(rig: &Rig, trials: &[Trial<'_>], running: &mut Running) -> String {
    wait_for(60, "a migration to C under way", || {
        running.still_runs();
        let on_c = |trial: &&Trial<'_>| trial.guest.state(rig.c()).is_some();
        let trial = trials.iter().filter(on_c).find(|trial| copies(rig, trial))?;
        Some(trial.guest.name.clone())
    })
}

#[test]
fn whatever_breaks_every_guest_is_on_one_host_and_in_the_end_all_have_arrived() {
    needs_migration!();
    let rig = Rig::up_with_third();
    let trials: Vec<_> = GUESTS
        .iter()
        .map(|name| {
            let mut trial = Trial::new(&rig, name, Way::Agent);
            trial.run_slow_orphan("none");
            trial
        })
        .collect();
    let (b, c, shell) = (rig.b.uri(), rig.c().uri(), rig.b.remote_shell());
    let shell = shell.replace("host-b", "{host}");
    let there = ["--to", &b, "--to", &c, "-e", &shell];

    let plan = evacuate(&rig, &[&there[..], &["--dry-run"]].concat()).output().unwrap();
    let plan = report(&Ran::of("evacuate --dry-run", plan));
    let guests: Vec<_> =
        plan["destinations"].as_array().unwrap().iter().map(|it| &it["guests"]).collect();
    assert_eq!(guests, [2, 2], "{plan:#}");

    // The cable to C is cut for longer than the libvirtds wait for each other.
    let slow = ["--parallel", "4", "--bandwidth", "72M", "--timeout", "90"];
    let words = [&there[..], &slow].concat();
    let mut running = Running::start(&rig, &mut evacuate(&rig, &words));
    under_way_to_c(&rig, &trials, &mut running);
    rig.c().link(false);
    sleep(Duration::from_secs(7));
    rig.c().link(true);
    let ran = running.end();
    assert!(!ran.succeeded(), "{ran}");
    let gone = all_whole(&rig, &trials);
    assert!(gone >= 2, "those to B have arrived: {ran}");

    // The QEMU in which a guest arrives is killed.
    let mut running = Running::start(&rig, &mut evacuate(&rig, &["--resume"]));
    let name = under_way_to_c(&rig, &trials, &mut running);
    let pid = rig.c().run(["cat", &format!("/run/libvirt/qemu/{name}.pid")]).ok();
    rig.c().run(["kill", "-KILL", pid.trim()]).ok();
    let ran = running.end();
    assert!(!ran.succeeded(), "{ran}");
    let gone = all_whole(&rig, &trials);
    assert!(gone < GUESTS.len(), "{ran}");

    // The operator stops all that is under way.
    let mut running = Running::start(&rig, &mut evacuate(&rig, &["--resume"]));
    under_way_to_c(&rig, &trials, &mut running);
    running.signal("INT");
    // Sooner, it would be taken for the first one.
    sleep(Duration::from_millis(700));
    running.signal("INT");
    let ran = running.end();
    assert_eq!(ran.code(), Some(130), "{ran}");
    all_whole(&rig, &trials);

    // libvirtd of the destination dies, and is started again.
    let mut running = Running::start(&rig, &mut evacuate(&rig, &["--resume"]));
    under_way_to_c(&rig, &trials, &mut running);
    rig.c().stop_daemon();
    sleep(Duration::from_millis(500));
    rig.c().start_daemon();
    running.end();
    all_whole(&rig, &trials);

    let ran = evacuate(&rig, &["--resume"]).output().unwrap();
    let ran = Ran::of("evacuate --resume", ran);
    assert!(ran.succeeded(), "{ran}");
    let said = report(&ran);
    let endings: Vec<_> =
        said["guests"].as_array().unwrap().iter().map(|it| &it["ending"]).collect();
    assert_eq!(endings, ["moved"; 4], "{said:#}");
    assert_eq!(all_whole(&rig, &trials), GUESTS.len());
    for trial in &trials {
        let host = place(&rig, trial);
        assert_eq!(host.list(trial.guest.directory()), ["data.qcow2", "disk.qcow2"]);
        let others = rig
            .all()
            .into_iter()
            .filter(|other| !std::ptr::eq(*other, host) && !std::ptr::eq(*other, &rig.a));
        for other in others {
            assert!(other.list(trial.guest.directory()).is_empty(), "{}", trial.guest.name);
        }
    }
}
