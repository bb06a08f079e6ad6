//! Which guest goes where, and in which order. Pure.
//!
//! The guests that are hardest to place choose first: those that the fewest destinations can take, then the largest.
//! A guest goes where its host is least full afterwards. Where its backing files are brought anyway it is taken for
//! emptier than it is, by up to a quarter: copying them to one more host costs more than an uneven spread. If no host has
//! room for a guest, one guest that has its place already is given another one if that makes room.
//!
//! The order of going is that of a preflight: the least bytes first, so that whatever stops an evacuation stops it late.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::path::PathBuf;

use super::fleet::{Candidate, Fleet};
use super::room::{Room, within};
use super::value::{Assignment, At, EvacuationPlan, Left, SCHEMA, Share, Total};
use crate::Result;
use crate::preflight::Demand;

/// So much fuller a host may get to save the copy of backing files, in thousandths.
const FOR_BASES: u64 = 250;

/// Guests that are tried to be placed anew for one that has no place.
const MOVES: usize = 256;

/// Plans an evacuation. No destination is given more than it has.
///
/// ```
/// use migrate::evacuate::{Fleet, place};
/// let plan = place(&Fleet::default());
/// assert_eq!((plan.total.guests, plan.guests.len()), (0, 0));
/// ```
pub fn place(fleet: &Fleet) -> EvacuationPlan {
    let mut search = Search {
        fleet,
        rooms: fleet.destinations.iter().map(Room::of).collect(),
        places: vec![None; fleet.guests.len()],
    };
    let mut hardest: Vec<_> = fleet.guests.iter().enumerate().collect();
    hardest.sort_by_key(|(_, guest)| {
        let hosts = guest.demands.iter().flatten().count();
        let space = guest.demands.iter().flatten().map(space_of).max();
        (hosts, Reverse((guest.memory, space, guest.vcpus)), &guest.name)
    });
    for (at, _) in hardest {
        search.settle(at);
    }
    search.plan()
}

fn space_of(demand: &Demand) -> u64 {
    demand.space.values().copied().fold(0, u64::saturating_add)
}

struct Search<'a> {
    fleet: &'a Fleet,
    rooms: Vec<Room<'a>>,
    /// The destination of each guest.
    places: Vec<Option<usize>>,
}

impl<'a> Search<'a> {
    fn guest(&self, at: usize) -> Option<&'a Candidate> {
        self.fleet.guests.get(at)
    }

    fn demand(&self, at: usize, host: usize) -> Option<&'a Demand> {
        self.guest(at)?.demands.get(host)?.as_ref().ok()
    }

    /// Gives a guest a place, if there is one.
    fn settle(&mut self, at: usize) {
        match self.best(at, None) {
            Some(host) => self.put(at, host),
            None => self.make_room(at),
        }
    }

    /// The best destination for a guest, but for one.
    fn best(&self, at: usize, other_than: Option<usize>) -> Option<usize> {
        let guest = self.guest(at)?;
        let fitting = self.rooms.iter().enumerate().filter_map(|(host, room)| {
            let demand = self.demand(at, host)?;
            if Some(host) == other_than || !room.fits(guest, demand) {
                return None;
            }
            let (filled, bases) = room.filled_by(guest, demand);
            let all = bases.saturating_add(demand.transfer_bytes);
            let penalty = bases.saturating_mul(FOR_BASES).checked_div(all).unwrap_or(0);
            Some(((filled.saturating_add(penalty), room.guests(), host), host))
        });
        fitting.min().map(|(_, host)| host)
    }

    fn put(&mut self, at: usize, host: usize) {
        let (Some(guest), Some(demand)) = (self.guest(at), self.demand(at, host)) else { return };
        if let (Some(room), Some(place)) = (self.rooms.get_mut(host), self.places.get_mut(at)) {
            room.take(at, guest, demand);
            *place = Some(host);
        }
    }

    fn lift(&mut self, at: usize, host: usize) {
        let (Some(guest), Some(demand)) = (self.guest(at), self.demand(at, host)) else { return };
        if let (Some(room), Some(place)) = (self.rooms.get_mut(host), self.places.get_mut(at)) {
            room.give_back(at, guest, demand);
            *place = None;
        }
    }

    /// Places another guest anew, if that makes room for this one.
    fn make_room(&mut self, at: usize) {
        let placed: Vec<(usize, usize)> = (self.places.iter().enumerate())
            .filter_map(|(other, host)| Some((other, (*host)?)))
            .collect();
        for (other, host) in placed.into_iter().rev().take(MOVES) {
            let (Some(guest), Some(demand)) = (self.guest(at), self.demand(at, host)) else {
                continue;
            };
            self.lift(other, host);
            let fits = self.rooms.get(host).is_some_and(|room| room.fits(guest, demand));
            if fits && let Some(elsewhere) = self.best(other, Some(host)) {
                self.put(other, elsewhere);
                self.put(at, host);
                return;
            }
            self.put(other, host);
        }
    }

    fn plan(self) -> EvacuationPlan {
        let mut order: Vec<(usize, usize)> = (self.places.iter().enumerate())
            .filter_map(|(at, host)| Some((at, (*host)?)))
            .collect();
        order.sort_by_key(|(at, host)| {
            let bytes = self.demand(*at, *host).map_or(0, |demand| demand.transfer_bytes);
            (bytes, self.guest(*at).map(|guest| &guest.name))
        });
        let mut brought: BTreeSet<(usize, PathBuf)> = BTreeSet::new();
        let guests: Vec<_> = order
            .into_iter()
            .filter_map(|(at, host)| self.assignment(at, host, &mut brought))
            .collect();
        let refused: Vec<_> = (self.places.iter().enumerate())
            .filter(|(_, place)| place.is_none())
            .filter_map(|(at, _)| self.left(at))
            .collect();
        let sum = |of: fn(&Assignment) -> u64| guests.iter().map(of).fold(0, u64::saturating_add);
        let total = Total {
            guests: self.fleet.guests.len(),
            placed: guests.len(),
            refused: refused.len(),
            transfer_bytes: sum(|guest| guest.transfer_bytes),
            space_bytes: sum(|guest| guest.space_bytes),
        };
        EvacuationPlan {
            schema: SCHEMA.to_owned(),
            from: self.fleet.from.clone(),
            destinations: self.rooms.iter().map(Room::share).collect(),
            guests,
            refused,
            total,
        }
    }

    fn assignment(
        &self,
        at: usize,
        host: usize,
        brought: &mut BTreeSet<(usize, PathBuf)>,
    ) -> Option<Assignment> {
        let (guest, demand) = (self.guest(at)?, self.demand(at, host)?);
        let (mut transfer, mut space) = (demand.transfer_bytes, space_of(demand));
        let mut brings = Vec::new();
        for base in &demand.bases {
            if brought.insert((host, base.path.clone())) {
                transfer = transfer.saturating_add(base.bytes);
                space = space.saturating_add(base.bytes);
                brings.push(base.path.clone());
            }
        }
        Some(Assignment {
            name: guest.name.clone(),
            uuid: guest.uuid.clone(),
            to: self.fleet.destinations.get(host)?.uri.clone(),
            mode: demand.mode,
            copy: demand.copy,
            transfer_bytes: transfer,
            space_bytes: space,
            memory: guest.memory,
            vcpus: guest.vcpus,
            streams: demand.streams,
            bases: demand.bases.iter().map(|base| base.path.clone()).collect(),
            brings,
        })
    }

    /// Why a guest has no place, by destination.
    fn left(&self, at: usize) -> Option<Left> {
        let guest = self.guest(at)?;
        let why = self.rooms.iter().enumerate().filter_map(|(host, room)| {
            let refusals = match guest.demands.get(host)? {
                Ok(demand) => room.refuse(guest, demand),
                Err(refusals) => refusals.clone(),
            };
            let to = self.fleet.destinations.get(host)?.uri.clone();
            Some(At { to, refusals })
        });
        Some(Left { name: guest.name.clone(), uuid: guest.uuid.clone(), reasons: why.collect() })
    }
}

impl EvacuationPlan {
    /// Checks that no destination is given more than it has.
    ///
    /// # Errors
    /// [`Refused`](crate::ErrorKind::Refused), with what there is too little of.
    pub fn check(&self) -> Result<()> {
        self.destinations.iter().try_for_each(|share: &Share| within(share))
    }
}
