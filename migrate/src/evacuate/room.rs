//! What is left of one destination while guests are given to it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::fleet::{Candidate, Capacity, Destination};
use super::value::{Share, Taken};
use crate::plan::Refusal;
use crate::preflight::{Base, Demand};
use crate::{Error, Remedy, Result};

/// A destination, and what is given to guests of it.
#[derive(Debug, Clone)]
pub(super) struct Room<'a> {
    destination: &'a Destination,
    memory: u64,
    vcpus: u64,
    space: BTreeMap<&'a str, u64>,
    /// Who makes what is at a path.
    paths: BTreeMap<&'a Path, usize>,
    /// Bases that come, and the guests that need them.
    bases: BTreeMap<&'a Path, (&'a Base, Vec<usize>)>,
    guests: usize,
}

/// A part of a host, in thousandths of it.
const WHOLE: u64 = 1000;

impl<'a> Room<'a> {
    pub(super) fn of(destination: &'a Destination) -> Self {
        Self {
            destination,
            memory: 0,
            vcpus: 0,
            space: BTreeMap::new(),
            paths: BTreeMap::new(),
            bases: BTreeMap::new(),
            guests: 0,
        }
    }

    /// Bases that would have to come for it.
    fn missing<'b>(&'b self, demand: &'a Demand) -> impl Iterator<Item = &'a Base> + 'b {
        demand.bases.iter().filter(|base| !self.bases.contains_key(base.path.as_path()))
    }

    /// Bytes by file system that it would take, bases that come for it included.
    fn space_for(&self, demand: &'a Demand) -> BTreeMap<&'a str, u64> {
        let mut space: BTreeMap<&str, u64> = BTreeMap::new();
        let own = demand.space.iter().map(|(filesystem, bytes)| (filesystem.as_str(), *bytes));
        let bases = self.missing(demand).map(|base| (base.filesystem.as_str(), base.bytes));
        for (filesystem, bytes) in own.chain(bases) {
            add(space.entry(filesystem).or_default(), bytes);
        }
        space
    }

    /// Why the guest does not fit; nothing if it does.
    pub(super) fn refuse(&self, guest: &Candidate, demand: &'a Demand) -> Vec<Refusal> {
        let mut refusals = self.destination.obstacles.clone();
        if let Some(Capacity { memory, vcpus }) = self.destination.capacity {
            refusals.extend(short("memory", "bytes of memory", guest.memory, self.memory, memory));
            refusals.extend(short("vcpus", "virtual processors", guest.vcpus, self.vcpus, vcpus));
        }
        for (filesystem, bytes) in self.space_for(demand) {
            if let Some(free) = self.destination.filesystems.get(filesystem) {
                let used = self.space.get(filesystem).copied().unwrap_or(0);
                refusals.extend(short("space", "bytes of storage", bytes, used, *free));
            }
        }
        refusals.extend(self.collision(demand));
        refusals
    }

    pub(super) fn fits(&self, guest: &Candidate, demand: &'a Demand) -> bool {
        self.refuse(guest, demand).is_empty()
    }

    /// Another guest makes something else at one of its paths.
    fn collision(&self, demand: &Demand) -> Option<Refusal> {
        demand.paths.iter().find_map(|path| {
            let shared = demand.bases.iter().find(|base| base.path == *path);
            let taken = match (shared, self.bases.get(path.as_path())) {
                (Some(own), Some((other, _))) => own.digest != other.digest,
                (None, None) => self.paths.contains_key(path.as_path()),
                (Some(_), None) => self.paths.contains_key(path.as_path()),
                (None, Some(_)) => true,
            };
            taken.then(|| Refusal {
                code: "target".into(),
                disk: None,
                message: format!("another guest's disk goes to '{}' too", path.display()),
                way_out: Remedy::MapPath,
            })
        })
    }

    /// How full the host would be, in thousandths of what is scarcest there; and bytes of bases that would come.
    pub(super) fn filled_by(&self, guest: &Candidate, demand: &'a Demand) -> (u64, u64) {
        let mut fullest = 0;
        if let Some(Capacity { memory, vcpus }) = self.destination.capacity {
            fullest = part(self.memory.saturating_add(guest.memory), memory)
                .max(part(self.vcpus.saturating_add(guest.vcpus), vcpus));
        }
        for (filesystem, bytes) in self.space_for(demand) {
            if let Some(free) = self.destination.filesystems.get(filesystem) {
                let used = self.space.get(filesystem).copied().unwrap_or(0);
                fullest = fullest.max(part(used.saturating_add(bytes), *free));
            }
        }
        (fullest, self.missing(demand).map(|base| base.bytes).fold(0, u64::saturating_add))
    }

    /// Guests that have a place there.
    pub(super) fn guests(&self) -> usize {
        self.guests
    }

    /// Gives the guest its place.
    pub(super) fn take(&mut self, at: usize, guest: &Candidate, demand: &'a Demand) {
        for (filesystem, bytes) in self.space_for(demand) {
            add(self.space.entry(filesystem).or_default(), bytes);
        }
        for base in &demand.bases {
            let (_, users) = self.bases.entry(&base.path).or_insert_with(|| (base, Vec::new()));
            users.push(at);
        }
        let own = |path: &&'a PathBuf| demand.bases.iter().all(|base| base.path != **path);
        self.paths.extend(demand.paths.iter().filter(own).map(|path| (path.as_path(), at)));
        add(&mut self.memory, guest.memory);
        add(&mut self.vcpus, guest.vcpus);
        self.guests = self.guests.saturating_add(1);
    }

    /// Takes the place back that the guest was given.
    pub(super) fn give_back(&mut self, at: usize, guest: &Candidate, demand: &'a Demand) {
        for base in &demand.bases {
            let Some((_, users)) = self.bases.get_mut(base.path.as_path()) else { continue };
            users.retain(|user| *user != at);
            if users.is_empty() {
                self.bases.remove(base.path.as_path());
            }
        }
        // What is missing now came for it alone.
        for (filesystem, bytes) in self.space_for(demand) {
            if let Some(sum) = self.space.get_mut(filesystem) {
                *sum = sum.saturating_sub(bytes);
            }
        }
        self.paths.retain(|_, by| *by != at);
        self.memory = self.memory.saturating_sub(guest.memory);
        self.vcpus = self.vcpus.saturating_sub(guest.vcpus);
        self.guests = self.guests.saturating_sub(1);
    }

    /// What the guests take, for the plan.
    pub(super) fn share(&self) -> Share {
        let capacity = self.destination.capacity;
        let of = |filesystem: &str| self.destination.filesystems.get(filesystem).copied();
        let space = self.space.iter().map(|(filesystem, taken)| {
            ((*filesystem).to_owned(), Taken { taken: *taken, of: of(filesystem) })
        });
        Share {
            to: self.destination.uri.clone(),
            guests: self.guests,
            memory: Taken { taken: self.memory, of: capacity.map(|it| it.memory) },
            vcpus: Taken { taken: self.vcpus, of: capacity.map(|it| it.vcpus) },
            space: space.collect(),
            obstacles: self.destination.obstacles.clone(),
        }
    }
}

fn add(sum: &mut u64, bytes: u64) {
    *sum = sum.saturating_add(bytes);
}

fn part(taken: u64, of: u64) -> u64 {
    let part = u128::from(taken).saturating_mul(u128::from(WHOLE)).checked_div(u128::from(of));
    part.map_or(u64::MAX, |part| u64::try_from(part).unwrap_or(u64::MAX))
}

fn short(code: &str, what: &str, needed: u64, used: u64, of: u64) -> Option<Refusal> {
    let left = of.saturating_sub(used);
    (needed > left).then(|| Refusal {
        code: code.into(),
        disk: None,
        message: format!("{needed} {what} are needed, and {left} are left by those before it"),
        way_out: match code {
            "space" => "make room at the destination, map some disks to other directories, or give another destination",
            _ => "make room at the destination, or give another destination",
        }
        .into(),
    })
}

/// What is not limited by what there is: for tests and callers that check a plan.
pub(super) fn within(share: &Share) -> Result<()> {
    let all = [("memory", share.memory), ("vcpus", share.vcpus)];
    let space = share.space.iter().map(|(filesystem, taken)| (filesystem.as_str(), *taken));
    match all.into_iter().chain(space).find(|(_, it)| it.of.is_some_and(|of| it.taken > of)) {
        None => Ok(()),
        Some((what, Taken { taken, of })) => {
            let of = of.unwrap_or(0);
            Err(Error::refused(format!("{}: {what}: {taken} of {of}", share.to)))
        }
    }
}
