//! Twelve guests leave for two hosts, and faults come in all phases. After each attempt every guest is on exactly one host,
//! with right content; in the end all have arrived. `make test-long` runs these.

use std::collections::{BTreeMap, BTreeSet};
use std::thread::{scope, sleep};
use std::time::Duration;

use serde_json::Value;

use crate::evacuation::{
    alone, copies, empty, evacuate, fill, kill_qemu, nothing_is_left, report, small_images,
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

/// All that a guest, running or shut off, comes through, as an evacuation calls it.
const PHASES: [&str; 8] =
    ["prepare", ROLL_BACK, "migrate", "define", "outcome", "verify", "resume", "retire"];
/// What a guest comes to only if something failed.
const ROLL_BACK: &str = "roll-back";

impl Fault {
    /// Whether there is something to break in a phase.
    fn matters_in(self, phase: &str) -> bool {
        match self {
            Self::SourceQemuKilled => ["prepare", "migrate", ROLL_BACK].contains(&phase),
            Self::DestinationQemuKilled => !["prepare", "define", ROLL_BACK].contains(&phase),
            _ => true,
        }
    }
}

struct World<'a> {
    rig: &'a Rig,
    trials: Vec<Trial<'a>>,
    /// Guests that are shut off, or whose QEMU was killed.
    may_be_off: BTreeSet<String>,
    /// Guests that are somewhere else, and were found whole there.
    arrived: BTreeSet<String>,
}

/// Where an attempt was hit.
struct Hit {
    fault: Fault,
    phase: &'static str,
    guest: String,
}

impl<'a> World<'a> {
    fn new(rig: &'a Rig) -> Self {
        small_images(rig);
        let make = |number: usize| {
            let mut trial = Trial::new(rig, &format!("guest{number}"), Way::Agent);
            // Twelve of them need the processors.
            trial.guest.template.pause = 6;
            match number {
                0..4 => trial.run_slow_orphan("writeback"),
                _ => alone(&mut trial, number < 10),
            }
            trial
        };
        let make = &make;
        let mut trials = Vec::new();
        for first in (0..12).step_by(3) {
            scope(|scope| {
                let three = [0, 1, 2].map(|more| scope.spawn(move || make(first + more)));
                trials.extend(three.map(|one| one.join().unwrap()));
            });
        }
        let may_be_off = trials[10..].iter().map(|trial| trial.guest.name.clone()).collect();
        Self { rig, trials, may_be_off, arrived: BTreeSet::new() }
    }

    fn trial(&self, name: &str) -> &Trial<'a> {
        self.trials.iter().find(|trial| trial.guest.name == name).unwrap()
    }

    /// The host that a guest goes to.
    fn host(&self, to: &str) -> &'a Host {
        self.rig.all().into_iter().find(|host| host.uri() == to).unwrap()
    }

    fn copying(&self, guest: &str) {
        let trial = self.trial(guest);
        wait_for(60, "copying", || copies(self.rig, trial).then_some(()));
    }

    /// Runs an evacuation until it ends, and breaks something when a guest comes to this phase. No other guest begins
    /// after that.
    fn attempt(
        &mut self,
        words: &[&str],
        fault: Fault,
        wanted: &'static str,
    ) -> (Option<Hit>, Ran) {
        let mut provoke = wanted == ROLL_BACK;
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
                let Some(phase) = event["phase"].as_str().filter(|_| hit.is_none()) else {
                    continue;
                };
                let to = self.host(&destinations[guest]);
                if provoke && phase == "migrate" {
                    // Something has to fail, for something to be rolled back.
                    self.copying(guest);
                    kill_qemu(to, guest);
                    provoke = false;
                }
                if phase != wanted {
                    continue;
                }
                let fits = match fault {
                    Fault::DiskFull => std::ptr::eq(to, self.rig.c()),
                    // Its template would be gone with it.
                    Fault::SourceQemuKilled => !self.trial(guest).lost_its_template(),
                    _ => true,
                };
                if fits && self.hit(&running, fault, phase, guest, to) {
                    hit = Some(Hit { fault, phase: wanted, guest: guest.to_owned() });
                }
            }
            sleep(Duration::from_millis(5));
        }
        let ran = running.end();
        if fault == Fault::DiskFull {
            empty(self.rig);
        }
        (hit, ran)
    }

    /// Breaks it. Whether there was something to break.
    fn hit(
        &mut self,
        running: &Running,
        fault: Fault,
        phase: &str,
        guest: &str,
        to: &Host,
    ) -> bool {
        match phase {
            "migrate" => self.copying(guest),
            // It stays there until the fault has come.
            _ => running.signal("STOP"),
        }
        let mut hurt = true;
        match fault {
            Fault::ToolKilled => running.signal("KILL"),
            Fault::ToolAborted => {}
            Fault::SourceDaemonKilled => restart(&self.rig.a),
            Fault::DestinationDaemonKilled => restart(to),
            Fault::SourceQemuKilled => hurt = kill_qemu(&self.rig.a, guest),
            Fault::DestinationQemuKilled => hurt = kill_qemu(to, guest),
            Fault::LinkCut => {
                to.link(false);
                running.go_on();
                sleep(Duration::from_secs(7));
                to.link(true);
            }
            Fault::DiskFull => fill(self.rig),
        }
        running.go_on();
        if !hurt {
            return false;
        }
        if matches!(fault, Fault::SourceQemuKilled | Fault::DestinationQemuKilled) {
            self.may_be_off.insert(guest.to_owned());
        }
        running.try_signal("INT");
        if fault == Fault::ToolAborted {
            // Sooner, it would be taken for the first one.
            sleep(Duration::from_millis(700));
            running.try_signal("INT");
        }
        true
    }

    /// Every guest is on one host and whole.
    #[track_caller]
    fn all_whole(&mut self, killed: bool) {
        for trial in &self.trials {
            let name = &trial.guest.name;
            // Those that arrived are looked at again at the end.
            if self.arrived.contains(name) {
                continue;
            }
            let mut states = Vec::new();
            states.extend(self.may_be_off.contains(name).then_some("shut off"));
            // It was to be compared when it arrived; the next attempt does that.
            states.extend(killed.then_some("paused"));
            let host = whole(self.rig, trial, &states);
            if !killed && !std::ptr::eq(host, &self.rig.a) {
                self.arrived.insert(name.clone());
            }
        }
    }

    /// What the report says of a guest that the fault ended.
    #[track_caller]
    fn is_told(&self, hit: &Hit, ran: &Ran) {
        let guest = &self.trial(&hit.guest).guest;
        let told = |words: &str| {
            let said = report(ran);
            let why = told(&said, &hit.guest)["error"].as_str().unwrap_or_default().to_owned();
            assert!(why.contains(words), "{}: {ran}", hit.phase);
        };
        match (hit.fault, hit.phase) {
            (Fault::SourceQemuKilled, "migrate") => {
                assert_eq!(guest.state(&self.rig.a).as_deref(), Some("shut off"));
                told("stopped while it was copied");
            }
            (Fault::DestinationQemuKilled, "verify" | "resume") => {
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

/// Twelve guests leave, and in each attempt the next of these faults comes in its phase.
fn twelve_guests(attempts: &[(Fault, &'static str)]) {
    if std::env::var_os("QCOWTOOL_LONG").is_none() {
        return;
    }
    needs_migration!();
    let rig = Rig::up_with_third();
    let mut world = World::new(&rig);
    let there = to_both(&rig);
    let mut words: Vec<&str> = there.iter().map(String::as_str).collect();
    words.extend(["--verify", "content", "--timeout", "300"]);
    words.extend(["--parallel", "2", "--bandwidth", "64M"]);
    for &(fault, phase) in attempts {
        let (hit, ran) = world.attempt(&words, fault, phase);
        words = vec!["--resume"];
        match &hit {
            Some(hit) => eprintln!("{fault:?} in {phase} of {}: {ran}", hit.guest),
            None => eprintln!("{fault:?} not in {phase}: {ran}"),
        }
        world.all_whole(fault == Fault::ToolKilled);
        eprintln!("{} arrived", world.arrived.len());
        if let Some(hit) = hit {
            world.is_told(&hit, &ran);
        }
    }
    let ran = evacuate(&rig, &["--resume"]).output().unwrap();
    let ran = Ran::of("evacuate --resume", ran);
    let said = report(&ran);
    let endings: Vec<_> =
        said["guests"].as_array().unwrap().iter().map(|it| &it["ending"]).collect();
    assert_eq!(endings, ["moved"; 12], "{ran}");
    world.arrived.clear();
    world.all_whole(false);
    assert_eq!(world.arrived.len(), 12);
    nothing_is_left(&rig, &world.trials);
}

/// One kind of fault comes in every phase in which it matters.
fn in_every_phase(fault: Fault) {
    let phases = PHASES.into_iter().filter(|phase| fault.matters_in(phase));
    twelve_guests(&phases.map(|phase| (fault, phase)).collect::<Vec<_>>());
}

#[test]
fn each_fault_comes_once() {
    let attempts = [
        (Fault::ToolKilled, "prepare"),
        (Fault::DestinationDaemonKilled, ROLL_BACK),
        (Fault::SourceDaemonKilled, "migrate"),
        (Fault::DiskFull, "migrate"),
        (Fault::LinkCut, "outcome"),
        (Fault::DestinationQemuKilled, "verify"),
        (Fault::ToolAborted, "resume"),
        // Those whose templates exist leave last: they are larger.
        (Fault::SourceQemuKilled, "migrate"),
    ];
    twelve_guests(&attempts);
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
