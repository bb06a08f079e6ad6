//! A host is emptied onto two others while its guests write, and something breaks in each attempt: the cable to one of
//! them, the QEMU that a guest arrives in, the room at the destination, a libvirtd. After each, every guest
//! is on exactly one host and whole; in the end all have arrived.

use std::thread::sleep;
use std::time::Duration;

use crate::evacuation::{
    copies, empty, evacuate, fill, kill_qemu, nothing_is_left, report, small_images, to_both, told,
    whole,
};
use crate::trial::{Running, Trial, Way, needs_migration};
use rig::{Ran, Rig, wait_for};

const GUESTS: [&str; 4] = ["east", "north", "south", "west"];

struct World<'a> {
    rig: &'a Rig,
    trials: Vec<Trial<'a>>,
}

impl World<'_> {
    /// Every guest is on one host, and all that it and its disks hold is right. How many have left A.
    #[track_caller]
    fn all_whole(&self) -> usize {
        let left = |trial: &&Trial<'_>| !std::ptr::eq(whole(self.rig, trial, &[]), &self.rig.a);
        self.trials.iter().filter(left).count()
    }

    fn start(&self, words: &[&str]) -> Running {
        Running::start(self.rig, &mut evacuate(self.rig, words))
    }

    /// Waits until a guest's disks are copied to C.
    fn under_way(&self, running: &mut Running) -> String {
        wait_for(60, "a migration to C under way", || {
            running.still_runs();
            let on_c = |trial: &&Trial<'_>| trial.guest.state(self.rig.c()).is_some();
            let trial = self.trials.iter().filter(on_c).find(|trial| copies(self.rig, trial))?;
            Some(trial.guest.name.clone())
        })
    }

    /// Waits until a guest that is still on A has a disk on C for what is going to be copied.
    fn prepared(&self, running: &mut Running) -> String {
        wait_for(60, "a target on C", || {
            running.still_runs();
            let target = |trial: &&Trial<'_>| {
                trial.guest.state(&self.rig.a).is_some()
                    && self.rig.c().run(["test", "-e", &trial.disk()]).succeeded()
            };
            self.trials.iter().find(target).map(|trial| trial.guest.name.clone())
        })
    }
}

#[test]
fn whatever_breaks_every_guest_is_on_one_host_and_in_the_end_all_have_arrived() {
    needs_migration!();
    let rig = Rig::up_with_third();
    small_images(&rig);
    let trials: Vec<_> = GUESTS
        .iter()
        .map(|name| {
            let mut trial = Trial::new(&rig, name, Way::Agent);
            trial.run_slow_orphan("writeback");
            trial
        })
        .collect();
    let world = World { rig: &rig, trials };
    let there = to_both(&rig);
    let there: Vec<&str> = there.iter().map(String::as_str).collect();

    let plan = evacuate(&rig, &[&there[..], &["--dry-run"]].concat()).output().unwrap();
    let plan = report(&Ran::of("evacuate --dry-run", plan));
    let guests: Vec<_> =
        plan["destinations"].as_array().unwrap().iter().map(|it| &it["guests"]).collect();
    assert_eq!(guests, [2, 2], "{plan:#}");

    // The cable to C is cut for longer than the libvirtds wait for each other.
    let slow = ["--parallel", "4", "--bandwidth", "72M", "--timeout", "90"];
    let words = [&there[..], &slow].concat();
    let mut running = world.start(&words);
    world.under_way(&mut running);
    rig.c().link(false);
    sleep(Duration::from_secs(7));
    rig.c().link(true);
    let ran = running.end();
    assert!(!ran.succeeded(), "{ran}");
    let gone = world.all_whole();
    assert!(gone >= 2, "those to B have arrived: {ran}");

    // The QEMU in which a guest arrives is killed.
    let mut running = world.start(&["--resume"]);
    let name = world.under_way(&mut running);
    assert!(kill_qemu(rig.c(), &name));
    let ran = running.end();
    assert!(!ran.succeeded(), "{ran}");
    let gone = world.all_whole();
    assert!(gone < world.trials.len(), "{ran}");

    // The operator stops all that is under way.
    let mut running = world.start(&["--resume"]);
    world.under_way(&mut running);
    running.signal("INT");
    // Sooner, it would be taken for the first one.
    sleep(Duration::from_millis(700));
    running.signal("INT");
    let ran = running.end();
    assert_eq!(ran.code(), Some(130), "{ran}");
    world.all_whole();

    // C has no room any more, which was there when the guest was planned.
    let mut running = world.start(&["--resume"]);
    let name = world.prepared(&mut running);
    fill(&rig);
    let ran = running.end();
    assert_eq!(ran.code(), Some(6), "{ran}");
    assert_eq!(told(&report(&ran), &name)["ending"], "failed", "{ran}");
    empty(&rig);
    world.all_whole();

    // libvirtd of the destination dies, and is started again.
    let mut running = world.start(&["--resume"]);
    world.under_way(&mut running);
    rig.c().stop_daemon();
    sleep(Duration::from_millis(500));
    rig.c().start_daemon();
    running.end();
    world.all_whole();

    let ran = evacuate(&rig, &["--resume"]).output().unwrap();
    let ran = Ran::of("evacuate --resume", ran);
    assert!(ran.succeeded(), "{ran}");
    let said = report(&ran);
    let endings: Vec<_> =
        said["guests"].as_array().unwrap().iter().map(|it| &it["ending"]).collect();
    assert_eq!(endings, ["moved"; 4], "{said:#}");
    assert_eq!(world.all_whole(), world.trials.len());
    nothing_is_left(&rig, &world.trials);
}
