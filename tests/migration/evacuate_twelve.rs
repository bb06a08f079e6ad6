//! Twelve guests leave for two hosts, and one kind of fault comes in each phase in turn. After each attempt every guest is
//! on exactly one host, with right content; in the end all have arrived. `make test-long` runs these.

use std::collections::{BTreeMap, BTreeSet};
use std::thread::{scope, sleep};
use std::time::Duration;

use serde_json::Value;

use crate::evacuation::{
    copies, empty, evacuate, fill, kill_qemu, nothing_is_left, report, slow_alone, small_images,
    to_both, told, whole,
};
use crate::trial::{Running, Trial, Way, needs_migration};
use rig::{Host, Ran, Rig, wait_for};

/// What breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    ToolKilled,
    ToolAborted,
    SourceDaemonKilled,
    DestinationDaemonKilled,
    SourceQemuKilled,
    DestinationQemuKilled,
    LinkCut,
    DiskFull,
}

/// All that a guest, running or shut off, comes through.
const PHASES: [&str; 8] =
    ["prepare", "migrate", "define", "outcome", "verify", "resume", "retire", ROLL_BACK];
/// What a guest comes to only if something failed.
const ROLL_BACK: &str = "roll-back";

struct World<'a> {
    rig: &'a Rig,
    fault: Fault,
    trials: Vec<Trial<'a>>,
    /// Phases in which nothing has broken yet.
    pending: BTreeSet<&'static str>,
    /// Guests that are shut off, or whose QEMU was killed.
    may_be_off: BTreeSet<String>,
    /// Guests that are somewhere else, and were found whole there.
    arrived: BTreeSet<String>,
}

/// Where an attempt was hit.
struct Hit {
    phase: &'static str,
    guest: String,
    /// There was something to break.
    hurt: bool,
}

impl<'a> World<'a> {
    fn new(rig: &'a Rig, fault: Fault) -> Self {
        small_images(rig, 700);
        let make = |number: usize| {
            let name = format!("guest{number}");
            match number {
                // One whose QEMU dies needs its template afterwards.
                0..6 if fault != Fault::SourceQemuKilled => {
                    let mut trial = Trial::new(rig, &name, Way::Agent);
                    trial.run_slow_orphan("writeback");
                    trial
                }
                _ => slow_alone(rig, &name, number < 10),
            }
        };
        let make = &make;
        let trials: Vec<_> = (0..12)
            .step_by(3)
            .flat_map(|first| {
                scope(|scope| {
                    let three = [0, 1, 2].map(|more| scope.spawn(move || make(first + more)));
                    three.map(|one| one.join().unwrap())
                })
            })
            .collect();
        let may_be_off = trials[10..].iter().map(|trial| trial.guest.name.clone()).collect();
        let pending = PHASES.into();
        Self { rig, fault, trials, pending, may_be_off, arrived: BTreeSet::new() }
    }

    fn trial(&self, name: &str) -> &Trial<'a> {
        self.trials.iter().find(|trial| trial.guest.name == name).unwrap()
    }

    /// The host that a guest goes to.
    fn host(&self, to: &str) -> &'a Host {
        self.rig.all().into_iter().find(|host| host.uri() == to).unwrap()
    }

    /// Runs an evacuation until it ends, and breaks something at the first chance in a phase in which that was not done
    /// yet. No other guest begins after that.
    fn attempt(&mut self, words: &[&str]) -> (Option<Hit>, Ran) {
        // While there are guests enough.
        let roll_back = self.pending.len() < PHASES.len() && self.pending.contains(ROLL_BACK);
        let mut provoke = roll_back;
        let words = [words, &["--progress", "json"]].concat();
        let mut running = Running::start(self.rig, &mut evacuate(self.rig, &words));
        let (mut read, mut destinations, mut hit) = (0, BTreeMap::new(), None);
        while !running.has_ended() {
            let said = running.said_behind(read);
            let whole = said.rfind('\n').map_or(0, |end| end + 1);
            read += whole;
            for line in said[..whole].lines() {
                let Ok(event) = serde_json::from_str::<Value>(line) else { continue };
                let guest = event["guest"].as_str().unwrap_or_default();
                if event["event"] == "started" {
                    destinations.insert(guest.to_owned(), event["to"].as_str().unwrap().to_owned());
                }
                let phase = event["phase"].as_str().unwrap_or_default();
                if hit.is_some() || phase.is_empty() {
                    continue;
                }
                let to = self.host(&destinations[guest]);
                if provoke && phase == "migrate" {
                    // Something has to fail, for something to be rolled back.
                    let trial = self.trial(guest);
                    wait_for(20, "copying", || copies(self.rig, trial).then_some(()));
                    kill_qemu(to, guest);
                    provoke = false;
                }
                let wanted = |wanted: &&'static str| (*wanted == ROLL_BACK) == roll_back;
                let Some(phase) = self.pending.get(phase).copied().filter(wanted) else { continue };
                if self.fault == Fault::DiskFull && !std::ptr::eq(to, self.rig.c()) {
                    continue;
                }
                hit = self.hit(&running, phase, guest, to);
            }
            sleep(Duration::from_millis(5));
        }
        let ran = running.end();
        if self.fault == Fault::DiskFull {
            empty(self.rig);
        }
        (hit, ran)
    }

    /// Breaks it.
    fn hit(
        &mut self,
        running: &Running,
        phase: &'static str,
        guest: &str,
        to: &Host,
    ) -> Option<Hit> {
        if phase == "migrate" {
            let trial = self.trial(guest);
            wait_for(20, "copying", || copies(self.rig, trial).then_some(()));
        } else {
            running.signal("STOP");
        }
        let (a, mut hurt) = (&self.rig.a, true);
        match self.fault {
            Fault::ToolKilled => running.signal("KILL"),
            Fault::ToolAborted => {}
            Fault::SourceDaemonKilled => restart(a),
            Fault::DestinationDaemonKilled => restart(to),
            Fault::SourceQemuKilled => hurt = kill_qemu(a, guest),
            Fault::DestinationQemuKilled => hurt = kill_qemu(to, guest),
            Fault::LinkCut => {
                to.link(false);
                running.signal("CONT");
                sleep(Duration::from_secs(7));
                to.link(true);
            }
            Fault::DiskFull => fill(self.rig),
        }
        if matches!(self.fault, Fault::SourceQemuKilled | Fault::DestinationQemuKilled) && hurt {
            self.may_be_off.insert(guest.to_owned());
        }
        if self.fault != Fault::ToolKilled {
            running.signal("CONT");
            running.signal("INT");
        }
        if self.fault == Fault::ToolAborted {
            // Sooner, it would be taken for the first one.
            sleep(Duration::from_millis(700));
            running.try_signal("INT");
        }
        self.pending.remove(phase);
        Some(Hit { phase, guest: guest.to_owned(), hurt })
    }

    /// Every guest is on one host and whole.
    #[track_caller]
    fn all_whole(&mut self) {
        for trial in &self.trials {
            let name = &trial.guest.name;
            // Those that arrived are looked at again at the end.
            if self.arrived.contains(name) {
                continue;
            }
            let host = whole(self.rig, trial, self.may_be_off.contains(name));
            if !std::ptr::eq(host, &self.rig.a) {
                self.arrived.insert(name.clone());
            }
        }
    }

    /// What the report says of a guest that the fault ended.
    fn is_told(&self, hit: &Hit, ran: &Ran) {
        let guest = &self.trial(&hit.guest).guest;
        let told = |words: &str| {
            let said = report(ran);
            let why = told(&said, &hit.guest)["error"].as_str().unwrap_or_default().to_owned();
            assert!(why.contains(words), "{}: {ran}", hit.phase);
        };
        match self.fault {
            Fault::SourceQemuKilled if hit.hurt && hit.phase == "migrate" => {
                assert_eq!(guest.state(&self.rig.a).as_deref(), Some("shut off"));
                told("stopped while it was copied");
            }
            // It had arrived.
            Fault::DestinationQemuKilled
                if hit.hurt && ["outcome", "verify", "resume"].contains(&hit.phase) =>
            {
                assert_eq!(guest.state(&self.rig.a), None);
                told("has stopped since");
            }
            _ => {}
        }
    }
}

fn restart(host: &Host) {
    host.stop_daemon();
    host.start_daemon();
}

fn in_every_phase(fault: Fault) {
    if std::env::var_os("QCOWTOOL_LONG").is_none() {
        return;
    }
    needs_migration!();
    let rig = Rig::up_with_third();
    let mut world = World::new(&rig, fault);
    let there = to_both(&rig);
    let mut words: Vec<&str> = there.iter().map(String::as_str).collect();
    words.extend(["--verify", "content", "--timeout", "120"]);
    words.extend(["--parallel", "2", "--bandwidth", "64M"]);
    while !world.pending.is_empty() {
        let (hit, ran) = world.attempt(&words);
        words = vec!["--resume"];
        world.all_whole();
        let Some(hit) = hit else {
            // All that could go has gone.
            assert!(ran.succeeded(), "{ran}");
            break;
        };
        eprintln!(
            "{fault:?} in {} of {}: {:?}; {} arrived",
            hit.phase,
            hit.guest,
            ran.code(),
            world.arrived.len()
        );
        world.is_told(&hit, &ran);
    }
    let ran = evacuate(&rig, &["--resume"]).output().unwrap();
    let ran = Ran::of("evacuate --resume", ran);
    let said = report(&ran);
    let endings: Vec<_> =
        said["guests"].as_array().unwrap().iter().map(|it| &it["ending"]).collect();
    assert_eq!(endings, ["moved"; 12], "{ran}");
    world.arrived.clear();
    world.all_whole();
    assert_eq!(world.arrived.len(), 12);
    nothing_is_left(&rig, &world.trials);
    eprintln!("{fault:?}: not come to: {:?}", world.pending);
}

macro_rules! tests {
    ($($name:ident: $fault:ident;)*) => {$(
        #[test]
        fn $name() {
            in_every_phase(Fault::$fault);
        }
    )*};
}

tests! {
    the_tool_is_killed: ToolKilled;
    the_operator_stops_it: ToolAborted;
    libvirtd_of_the_source_is_killed: SourceDaemonKilled;
    libvirtd_of_a_destination_is_killed: DestinationDaemonKilled;
    qemu_of_the_source_is_killed: SourceQemuKilled;
    qemu_of_a_destination_is_killed: DestinationQemuKilled;
    the_link_is_cut: LinkCut;
    a_disk_fills: DiskFull;
}
