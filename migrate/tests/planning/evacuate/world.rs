//! A world of hosts in memory for evacuations, which watches its own rules: a guest is on one host, no host gets more
//! than it has, no more guests are under way than were asked for, and the link is not given away twice.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;

use migrate::evacuate::*;
use migrate::run::Report;
use migrate::{CancelToken, Error, ErrorKind, Result};

/// What goes wrong with a guest whenever its turn comes, until it is mended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    Before,
    Refused,
    InPreparation,
    InMigration,
    Unverified,
    InDoubt,
    After,
}

pub(crate) const FAULTS: [Fault; 8] = [
    Fault::None,
    Fault::Before,
    Fault::Refused,
    Fault::InPreparation,
    Fault::InMigration,
    Fault::Unverified,
    Fault::InDoubt,
    Fault::After,
];

/// How far a guest's own run is, as its journal has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Begun,
    Prepared,
    Called,
    Arrived,
    Done,
    RolledBack,
}

#[derive(Debug, Clone, Default)]
struct State {
    /// The destination of each guest that has left.
    left: BTreeMap<String, usize>,
    runs: BTreeMap<String, (usize, Stage)>,
    /// Images at the destinations that no guest uses (yet).
    images: BTreeSet<String>,
    /// Backing files, and who brought them.
    bases: BTreeMap<(usize, PathBuf), String>,
    steps: usize,
}

/// The world as a process sees it, and what was so when that process was killed.
pub(crate) struct World<'a> {
    pub(crate) fleet: &'a Fleet,
    pub(crate) faults: &'a BTreeMap<String, Fault>,
    state: Mutex<State>,
    /// After so many steps it is looked what a kill would leave: the world, and the journal.
    kill_at: usize,
    journal: PathBuf,
    killed: Mutex<Option<(State, Vec<u8>)>>,
    orders: Orders,
    under_way: Mutex<BTreeMap<String, u64>>,
}

impl<'a> World<'a> {
    pub(crate) fn new(
        fleet: &'a Fleet,
        faults: &'a BTreeMap<String, Fault>,
        orders: &Orders,
    ) -> Self {
        Self {
            fleet,
            faults,
            state: Mutex::default(),
            kill_at: usize::MAX,
            journal: PathBuf::new(),
            killed: Mutex::default(),
            orders: orders.clone(),
            under_way: Mutex::default(),
        }
    }

    /// The same world, whose next process is killed after so many steps; `journal` is that of its evacuation.
    pub(crate) fn killing_at(mut self, step: usize, journal: PathBuf) -> Self {
        let steps = self.state.get_mut().unwrap().steps;
        (self.kill_at, self.journal) = (steps + step, journal);
        self
    }

    /// The world and the journal as a kill left them; `None` if the process ended before.
    pub(crate) fn once_killed(self) -> (Self, Option<Vec<u8>>) {
        let killed = self.killed.into_inner().unwrap();
        let (state, journal) = match killed {
            Some((state, journal)) => (state, Some(journal)),
            None => (self.state.into_inner().unwrap(), None),
        };
        let world = Self::new(self.fleet, self.faults, &self.orders);
        (Self { state: Mutex::new(state), ..world }, journal)
    }

    /// Something happens, and all must be well afterwards.
    fn step<T>(&self, what: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock().unwrap();
        state.steps += 1;
        let done = what(&mut state);
        self.check(&state);
        if state.steps == self.kill_at {
            let journal = fs::read(&self.journal).unwrap();
            *self.killed.lock().unwrap() = Some((state.clone(), journal));
        }
        done
    }

    fn check(&self, state: &State) {
        for (host, destination) in self.fleet.destinations.iter().enumerate() {
            let here = |uuid: &str| {
                let coming = state.runs.get(uuid).is_some_and(|(to, stage)| {
                    *to == host && !matches!(stage, Stage::Done | Stage::RolledBack)
                });
                state.left.get(uuid) == Some(&host) || coming
            };
            let guests: Vec<_> = self.fleet.guests.iter().filter(|it| here(&it.uuid)).collect();
            let capacity = destination.capacity.unwrap();
            assert!(guests.iter().map(|guest| guest.memory).sum::<u64>() <= capacity.memory);
            assert!(guests.iter().map(|guest| guest.vcpus).sum::<u64>() <= capacity.vcpus);
            let mut space: BTreeMap<&str, u64> = BTreeMap::new();
            for guest in guests {
                for (filesystem, bytes) in &guest.demands[host].as_ref().unwrap().space {
                    *space.entry(filesystem).or_default() += bytes;
                }
            }
            for ((at, path), by) in &state.bases {
                if *at == host {
                    let base = self.base(by, host, path);
                    *space.entry(base.0).or_default() += base.1;
                }
            }
            for (filesystem, bytes) in space {
                assert!(bytes <= destination.filesystems[filesystem], "{bytes} in {filesystem}");
            }
        }
    }

    fn base(&self, guest: &str, host: usize, path: &PathBuf) -> (&str, u64) {
        let demand = self.candidate(guest).demands[host].as_ref().unwrap();
        let base = demand.bases.iter().find(|base| base.path == *path).unwrap();
        (&base.filesystem, base.bytes)
    }

    fn candidate(&self, uuid: &str) -> &Candidate {
        self.fleet.guests.iter().find(|guest| guest.uuid == uuid).unwrap()
    }

    fn host(&self, to: &str) -> usize {
        self.fleet.destinations.iter().position(|host| host.uri == to).unwrap()
    }

    fn enter(&self, uuid: &str, stage: Stage) {
        self.step(|state| state.runs.get_mut(uuid).unwrap().1 = stage);
    }

    fn prepare(&self, uuid: &str, host: usize) {
        let bases = &self.candidate(uuid).demands[host].as_ref().unwrap().bases;
        self.step(|state| {
            assert!(state.images.insert(uuid.to_owned()), "the images exist");
            for base in bases {
                state.bases.entry((host, base.path.clone())).or_insert_with(|| uuid.to_owned());
            }
            state.runs.get_mut(uuid).unwrap().1 = Stage::Prepared;
        });
    }

    fn arrive(&self, uuid: &str, host: usize) {
        self.step(|state| {
            assert!(state.images.remove(uuid), "it needs its images");
            for base in &self.candidate(uuid).demands[host].as_ref().unwrap().bases {
                assert!(state.bases.contains_key(&(host, base.path.clone())), "and what is below");
            }
            assert_eq!(state.left.insert(uuid.to_owned(), host), None, "it is there already");
            state.runs.get_mut(uuid).unwrap().1 = Stage::Arrived;
        });
    }

    fn roll_back(&self, uuid: &str, host: usize) {
        self.step(|state| {
            state.images.remove(uuid);
            let users = |state: &State, path: &PathBuf| {
                let mut others = state.runs.iter().filter(|(other, (at, stage))| {
                    *other != uuid && *at == host && *stage != Stage::RolledBack
                });
                others.any(|(other, _)| {
                    let demand = self.candidate(other).demands[host].as_ref().unwrap();
                    demand.bases.iter().any(|base| base.path == *path)
                })
            };
            let own: Vec<_> = state
                .bases
                .iter()
                .filter(|(_, by)| *by == uuid)
                .map(|(key, _)| key.clone())
                .collect();
            for key in own {
                assert!(!users(state, &key.1), "another guest uses what is removed");
                state.bases.remove(&key);
            }
            state.runs.get_mut(uuid).unwrap().1 = Stage::RolledBack;
        });
    }

    /// Nothing is half done, and what is not at the source is at one destination.
    pub(crate) fn assert_settled(&self) -> BTreeMap<String, usize> {
        let state = self.state.lock().unwrap();
        assert!(state.images.is_empty(), "left: {:?}", state.images);
        let open =
            state.runs.values().filter(|run| !matches!(run.1, Stage::Done | Stage::RolledBack));
        // Those that an operator has to look at.
        let doubtful =
            self.faults.values().filter(|it| matches!(it, Fault::InDoubt | Fault::Unverified));
        assert!(open.count() <= doubtful.count());
        state.left.clone()
    }

    /// What a new look finds: guests that are still here, and what the destinations have left.
    pub(crate) fn look(&self, remaining: &[String]) -> Fleet {
        let state = self.state.lock().unwrap();
        let mut fleet = self.fleet.clone();
        for (host, destination) in fleet.destinations.iter_mut().enumerate() {
            for (uuid, at) in &state.left {
                if *at == host {
                    let guest = self.candidate(uuid);
                    let capacity = destination.capacity.as_mut().unwrap();
                    capacity.memory -= guest.memory;
                    capacity.vcpus -= guest.vcpus;
                    for (filesystem, bytes) in &guest.demands[host].as_ref().unwrap().space {
                        *destination.filesystems.get_mut(filesystem).unwrap() -= bytes;
                    }
                }
            }
            for ((at, path), by) in &state.bases {
                if *at == host {
                    let (filesystem, bytes) = self.base(by, host, path);
                    *destination.filesystems.get_mut(filesystem).unwrap() -= bytes;
                }
            }
        }
        fleet.guests.retain(|guest| remaining.contains(&guest.uuid));
        for guest in &mut fleet.guests {
            for (host, demand) in guest.demands.iter_mut().enumerate() {
                let Ok(demand) = demand else { continue };
                let there = |path: &PathBuf| state.bases.contains_key(&(host, path.clone()));
                demand.paths.retain(|path| !there(path));
                demand.bases.retain(|base| !there(&base.path));
                // Others' disks are there by now, and are refused as the planner does.
                let taken = |path: &PathBuf| {
                    state.left.iter().any(|(uuid, at)| {
                        *at == host
                            && self.candidate(uuid).demands[host]
                                .as_ref()
                                .unwrap()
                                .paths
                                .contains(path)
                    })
                };
                if demand.paths.iter().any(taken) {
                    guest.demands[host] = Err(vec![super::fleets::refusal("D20")]);
                    break;
                }
            }
        }
        fleet
    }

    fn fault(&self, uuid: &str) -> Fault {
        self.faults.get(uuid).copied().unwrap_or(Fault::None)
    }
}

fn failed(kind: ErrorKind) -> Error {
    Error::new(kind, "as was asked for")
}

impl Work for World<'_> {
    fn before(&self, guest: &Assignment) -> Result<()> {
        self.step(|_| ());
        match self.fault(&guest.uuid) {
            Fault::Before => Err(failed(ErrorKind::Environment)),
            _ => Ok(()),
        }
    }

    fn migrate(
        &self,
        guest: &Assignment,
        bandwidth: Option<u64>,
        report: &dyn Report,
        _cancel: &CancelToken,
    ) -> Result<Moved> {
        let (uuid, host, fault) = (&guest.uuid, self.host(&guest.to), self.fault(&guest.uuid));
        {
            let mut under_way = self.under_way.lock().unwrap();
            under_way.insert(uuid.clone(), bandwidth.unwrap_or(0));
            assert!(under_way.len() <= self.orders.at_once);
            assert!(under_way.values().sum::<u64>() <= self.orders.bandwidth.unwrap_or(u64::MAX));
        }
        let done = self.move_one(uuid, host, fault, report);
        self.under_way.lock().unwrap().remove(uuid);
        done
    }

    fn after(&self, outcome: &Outcome) -> Result<()> {
        self.step(|_| ());
        match self.fault(&outcome.uuid) {
            Fault::After => Err(failed(ErrorKind::Environment)),
            _ => Ok(()),
        }
    }

    fn settle(
        &self,
        guest: &Assignment,
        _begun: &str,
        _report: &dyn Report,
        _cancel: &CancelToken,
    ) -> Result<Option<Moved>> {
        let uuid = &guest.uuid;
        let run = self.step(|state| state.runs.get(uuid).copied());
        Ok(match run {
            None | Some((_, Stage::RolledBack)) => None,
            Some((host, Stage::Begun | Stage::Prepared)) => {
                self.roll_back(uuid, host);
                None
            }
            // libvirt went on by itself, to the one end or to the other.
            Some((host, Stage::Called)) if host == 0 => {
                self.roll_back(uuid, host);
                None
            }
            Some((host, stage)) => {
                if stage == Stage::Called {
                    self.arrive(uuid, host);
                }
                self.enter(uuid, Stage::Done);
                Some(Moved::default())
            }
        })
    }
}

impl World<'_> {
    fn move_one(
        &self,
        uuid: &str,
        host: usize,
        fault: Fault,
        report: &dyn Report,
    ) -> Result<Moved> {
        if fault == Fault::Refused {
            return Err(failed(ErrorKind::Refused));
        }
        self.step(|state| {
            assert!(!state.left.contains_key(uuid), "it is not here any more");
            state.runs.insert(uuid.to_owned(), (host, Stage::Begun));
        });
        report.phase(migrate::run::Phase::Prepare);
        self.prepare(uuid, host);
        if fault == Fault::InPreparation {
            self.roll_back(uuid, host);
            return Err(failed(ErrorKind::Environment));
        }
        report.phase(migrate::run::Phase::Migrate);
        self.enter(uuid, Stage::Called);
        if fault == Fault::InMigration {
            self.roll_back(uuid, host);
            return Err(failed(ErrorKind::Environment));
        }
        self.arrive(uuid, host);
        match fault {
            Fault::Unverified => return Err(failed(ErrorKind::Unverified)),
            Fault::InDoubt => return Err(failed(ErrorKind::InDoubt)),
            _ => {}
        }
        self.enter(uuid, Stage::Done);
        Ok(Moved::default())
    }
}

/// Hears nothing.
pub(crate) struct Deaf;

impl Watcher for Deaf {
    fn event(&self, _: &Event<'_>) {}
}
