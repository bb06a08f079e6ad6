//! A host is emptied while its guests write, and the tool is killed in the middle.

use serde_json::Value;

use crate::evacuation::{copies, evacuate, kill_qemu, slow_alone, told};
use crate::trial::{Running, Trial, Way, needs_migration};
use rig::{Kind, Ran, Rig, wait_for};

const DISKS: &[&str] = &["disk.qcow2", "data.qcow2"];

/// Guests whose template is deleted, which take some seconds each.
fn orphans<'a>(rig: &'a Rig, names: &[&str]) -> Vec<Trial<'a>> {
    let orphan = |name: &&str| {
        let mut trial = Trial::new(rig, name, Way::Agent);
        trial.run_slow_orphan("none");
        trial
    };
    names.iter().map(orphan).collect()
}

#[track_caller]
fn report(ran: &Ran) -> Value {
    serde_json::from_str(&ran.ok()).unwrap_or_else(|error| panic!("{error}: {ran}"))
}

#[test]
fn killed_in_the_middle_and_resumed_every_guest_arrives() {
    needs_migration!();
    let rig = Rig::up();
    let trials = orphans(&rig, &["one", "two", "three"]);
    let (to, shell) = (rig.b.uri(), rig.b.remote_shell());
    let there = ["--to", &to, "-e", &shell];

    let plan = evacuate(&rig, &[&there[..], &["--dry-run"]].concat()).output().unwrap();
    let plan = report(&Ran::of("evacuate --dry-run", plan));
    assert_eq!((&plan["total"]["placed"], &plan["total"]["refused"]), (&3.into(), &0.into()));
    // What the rig's guests have.
    assert!(plan["destinations"][0]["memory"]["taken"].as_u64() > Some(0), "{plan:#}");

    let slow = ["--parallel", "2", "--bandwidth", "24M"];
    let mut running = Running::start(&rig, &mut evacuate(&rig, &[&there[..], &slow[..]].concat()));
    wait_for(60, "two migrations under way", || {
        running.still_runs();
        let copies = |trial: &&Trial<'_>| copies(&rig, trial);
        (trials.iter().filter(copies).count() == 2).then_some(())
    });
    running.signal("KILL");
    running.end();

    let resumed = evacuate(&rig, &["--resume"]).output().unwrap();
    let report = report(&Ran::of("evacuate --resume", resumed));
    let endings: Vec<_> =
        report["guests"].as_array().unwrap().iter().map(|it| &it["ending"]).collect();
    assert_eq!(endings, ["moved"; 3], "{report:#}");
    for trial in &trials {
        trial.lives_on_b(DISKS);
        trial.source_is_kept(&trial.disk());
    }
}

#[test]
fn ctrl_c_lets_guests_arrive_and_a_second_one_takes_them_back() {
    needs_migration!();
    let rig = Rig::up();
    let trials = orphans(&rig, &["first", "second"]);
    let (to, shell) = (rig.b.uri(), rig.b.remote_shell());
    let words = ["--to", &to, "-e", &shell, "--parallel", "1", "--bandwidth", "18M"];
    // Which of them goes first depends on what they have written.
    let under_way = |running: &mut Running| {
        wait_for(60, "a migration under way", || {
            running.still_runs();
            trials.iter().position(|trial| copies(&rig, trial))
        })
    };
    let mut running = Running::start(&rig, &mut evacuate(&rig, &words));
    let first = under_way(&mut running);
    running.signal("INT");
    let ran = running.end();
    assert_eq!(ran.code(), Some(130), "{ran}");
    trials[first].lives_on_b(DISKS);
    let second = &trials[1 - first];
    second.stayed();

    let mut running = Running::start(&rig, &mut evacuate(&rig, &["--resume"]));
    assert_eq!(under_way(&mut running), 1 - first);
    running.signal("INT");
    // Sooner, it would be taken for the first one.
    std::thread::sleep(std::time::Duration::from_millis(700));
    running.signal("INT");
    let ran = running.end();
    assert_eq!(ran.code(), Some(130), "{ran}");
    second.stayed();
    let resumed = evacuate(&rig, &["--resume"]).output().unwrap();
    report(&Ran::of("evacuate --resume", resumed));
    second.lives_on_b(DISKS);
}

#[test]
fn a_guest_that_dies_while_it_is_copied_stays_with_its_disks_and_the_others_go_on() {
    needs_migration!();
    let rig = Rig::up();
    let dies = slow_alone(&rig, "dies");
    let others = orphans(&rig, &["other"]);
    let (to, shell) = (rig.b.uri(), rig.b.remote_shell());
    let words = ["--to", &to, "-e", &shell, "--parallel", "2", "--bandwidth", "36M"];
    let mut running = Running::start(&rig, &mut evacuate(&rig, &words));
    wait_for(60, "two migrations under way", || {
        running.still_runs();
        [&dies, &others[0]].iter().all(|trial| copies(&rig, trial)).then_some(())
    });
    assert!(kill_qemu(&rig.a, &dies.guest.name));
    let ran = running.end();
    assert_eq!(ran.code(), Some(6), "{ran}");
    let report: Value = serde_json::from_str(&ran.stdout()).unwrap();
    let (name, died) = (&dies.guest.name, told(&report, &dies.guest.name));
    assert_eq!(died["ending"], "failed", "{report:#}");
    let why = died["error"].as_str().unwrap();
    assert!(why.contains("stopped while it was copied") && why.contains("shut off"), "{why}");
    assert_eq!(told(&report, &others[0].guest.name)["ending"], "moved", "{report:#}");
    others[0].lives_on_b(DISKS);
    // It is defined once, what it had written is on its disk, and nothing of the copy is left.
    let states = (dies.guest.state(&rig.a), dies.guest.state(&rig.b));
    assert_eq!((states.0.as_deref(), states.1), (Some("shut off"), None));
    let writes = dies.guest.check_disk(&rig.a, &dies.disk(), Kind::Boot);
    assert!(rig.b.list(dies.guest.directory()).is_empty());

    // It goes as it is.
    let resumed = evacuate(&rig, &["--resume"]).output().unwrap();
    let resumed = Ran::of("evacuate --resume", resumed);
    assert_eq!(told(&self::report(&resumed), name)["ending"], "moved", "{resumed}");
    assert_eq!(dies.guest.state(&rig.b).as_deref(), Some("shut off"));
    assert_eq!(dies.guest.check_disk(&rig.b, &dies.disk(), Kind::Boot), writes);
}
