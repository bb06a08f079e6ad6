//! Who begins when. Pure: it is told what ended, and says who may begin.
//!
//! In the plan's order, so many at a time. Of guests that need a backing file that is not there yet, one goes first, at
//! each destination: it brings the file, and the others find it. If that one fails, the next brings it.
//!
//! The host's link is shared: whoever begins gets an equal part of what is not given to those that run, counted by the
//! guests that can begin beside it. It keeps that part to its end, because libvirt cannot change the rate at which disks
//! of a migration are copied once it has begun; the last ones get all that is left.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::value::Assignment;

/// libvirt takes a rate in this unit, for each stream.
const MIB: u64 = 1 << 20;

/// Who waits, who is on the way, and what is there by now.
#[derive(Debug, Clone)]
pub struct Schedule {
    waiting: Vec<Assignment>,
    running: BTreeMap<String, Running>,
    /// Backing files that a guest brought which has arrived: destination and path.
    there: BTreeSet<(String, PathBuf)>,
    at_once: usize,
    bandwidth: Option<u64>,
    stopped: bool,
}

#[derive(Debug, Clone)]
struct Running {
    guest: Assignment,
    share: Option<u64>,
}

/// A guest that begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begins {
    /// The guest.
    pub guest: Assignment,
    /// Bytes a second for all of its streams; `None` is not limited.
    pub bandwidth: Option<u64>,
}

/// The least that a guest can be given, in bytes a second.
pub(super) fn least(guest: &Assignment) -> u64 {
    guest.streams.max(1).saturating_mul(MIB)
}

impl Schedule {
    /// `guests` in their order, `at_once` of them at a time (at least one), with so many bytes a second for all
    /// together.
    ///
    /// ```
    /// use migrate::evacuate::Schedule;
    /// let mut schedule = Schedule::new(&[], 2, None);
    /// assert!(schedule.next().is_none() && schedule.is_over());
    /// ```
    pub fn new(guests: &[Assignment], at_once: usize, bandwidth: Option<u64>) -> Self {
        Self {
            waiting: guests.to_vec(),
            running: BTreeMap::new(),
            there: BTreeSet::new(),
            at_once: at_once.max(1),
            bandwidth,
            stopped: false,
        }
    }

    /// The next guest that may begin now; it counts as begun from here on.
    #[allow(clippy::should_implement_trait, reason = "an end is not the end: more may begin later")]
    pub fn next(&mut self) -> Option<Begins> {
        if self.stopped || self.running.len() >= self.at_once {
            return None;
        }
        let at = self.waiting.iter().position(|guest| self.may_begin(guest))?;
        let guest = self.waiting.get(at)?.clone();
        let share = match self.bandwidth {
            None => None,
            Some(all) => Some(self.share(all, &guest)?),
        };
        self.waiting.remove(at);
        self.running.insert(guest.uuid.clone(), Running { guest: guest.clone(), share });
        Some(Begins { guest, bandwidth: share })
    }

    /// No other guest on the way may be bringing a backing file that it needs.
    fn may_begin(&self, guest: &Assignment) -> bool {
        let comes = |base: &PathBuf| {
            self.running
                .values()
                .any(|other| other.guest.to == guest.to && other.guest.bases.contains(base))
        };
        let there = |base: &PathBuf| self.there.contains(&(guest.to.clone(), base.clone()));
        guest.bases.iter().all(|base| there(base) || !comes(base))
    }

    /// What the guest gets of the link; `None` if that is too little for now.
    fn share(&self, all: u64, guest: &Assignment) -> Option<u64> {
        let given = self.running.values().filter_map(|it| it.share).fold(0, u64::saturating_add);
        let left = all.saturating_sub(given);
        let beside = self.waiting.iter().filter(|other| self.may_begin(other)).count();
        let slots = self.at_once.saturating_sub(self.running.len()).min(beside).max(1);
        let part = left.checked_div(u64::try_from(slots).unwrap_or(u64::MAX)).unwrap_or(left);
        let share = part.max(least(guest)).min(left);
        let enough = share >= least(guest) || self.running.is_empty();
        enough.then_some(share)
    }

    /// A guest is not on the way any more: it arrived, or it stayed.
    pub fn ended(&mut self, uuid: &str, arrived: bool) {
        let Some(Running { guest, .. }) = self.running.remove(uuid) else { return };
        if arrived {
            let bases = guest.bases.into_iter().map(|base| (guest.to.clone(), base));
            self.there.extend(bases);
        }
    }

    /// Nothing more begins.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// Whether no guest is on the way and none will begin.
    pub fn is_over(&self) -> bool {
        self.running.is_empty() && (self.stopped || self.waiting.is_empty())
    }

    /// Guests that have not begun.
    pub fn waiting(&self) -> &[Assignment] {
        &self.waiting
    }
}
