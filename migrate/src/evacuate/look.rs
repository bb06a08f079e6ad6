//! Looks at the guests and at all destinations.

use std::collections::BTreeMap;
use std::path::Path;

use qcow::{CancelToken, Observer};
use serde::{Deserialize, Serialize};

use super::fleet::{Candidate, Capacity, Destination, Fleet};
use crate::Result;
use crate::driver::Hypervisor;
use crate::facts::DomainState;
use crate::hosts::Connections;
use crate::plan::{Policy, Refusal};
use crate::preflight::{Needs, Offer, Seeing, offers};
use crate::probe::Probing;

/// How far destinations may be filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Limits {
    /// Bytes of memory that stay free at each destination, for the host itself and for QEMU.
    pub memory_reserve: u64,
    /// Virtual processors for each processor of a destination.
    pub vcpus_per_cpu: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { memory_reserve: 512 << 20, vcpus_per_cpu: 4 }
    }
}

/// A destination as it is reached, and what is wanted of guests that go there: paths may differ.
#[derive(Debug)]
pub struct Way {
    /// Both hosts.
    pub connections: Connections,
    /// What the operator wants.
    pub policy: Policy,
}

/// How looking goes about it; as [`Probing`], whose policy differs by destination.
#[derive(Clone, Copy)]
pub struct Looking<'a> {
    /// How far destinations may be filled.
    pub limits: Limits,
    /// Directory where digests are kept; `None` keeps none.
    pub cache: Option<&'a Path>,
    /// Is told how far the reading of bases is.
    pub observer: &'a dyn Observer,
    /// Stops it.
    pub cancel: &'a CancelToken,
}

impl std::fmt::Debug for Looking<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Looking").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// Looks at every destination and, from each of them, at the guests of these names, as a
/// [preflight](crate::preflight::preflight) does, and changes nothing either.
///
/// # Errors
/// As that one.
pub fn look(ways: &[Way], names: &[String], looking: &Looking<'_>) -> Result<Fleet> {
    let mut fleet = Fleet::default();
    for Way { connections, policy } in ways {
        let Looking { limits, cache, observer, cancel } = *looking;
        let probing = Probing { policy, cache, observer, cancel };
        let participants = connections.participants();
        let seeing = crate::preflight::look(&participants, names, &probing)?;
        fleet.from.clone_from(&seeing.source.uri);
        let capacity = capacity(participants.hosts.destination, &limits)?;
        let (offers, obstacles) = offers(&seeing, policy);
        let obstacle = |check: crate::preflight::Check| Refusal {
            code: check.check.to_owned(),
            disk: None,
            message: check.message,
            way_out: check.way_out.unwrap_or_else(|| "look at it there".into()),
        };
        fleet.destinations.push(Destination {
            uri: connections.route().to.clone(),
            capacity,
            filesystems: filesystems(&seeing),
            obstacles: obstacles.into_iter().map(obstacle).collect(),
        });
        merge(&mut fleet.guests, offers);
    }
    Ok(fleet)
}

/// Adds what each guest needs of one more destination. All of them were asked for the same guests.
fn merge(guests: &mut Vec<Candidate>, offers: Vec<Offer>) {
    if guests.is_empty() {
        guests.extend(offers.into_iter().map(candidate));
        return;
    }
    for guest in guests.iter_mut() {
        guest.demands.push(Err(vec![gone()]));
    }
    for offer in offers {
        let known = guests.iter_mut().find(|guest| match &offer.uuid {
            Some(uuid) => guest.uuid == *uuid,
            None => guest.name == offer.name,
        });
        if let Some(last) = known.and_then(|guest| guest.demands.last_mut()) {
            *last = offer.demand;
        }
    }
}

fn gone() -> Refusal {
    Refusal {
        code: "look".into(),
        disk: None,
        message: "it was not there any more when this destination was looked at".into(),
        way_out: "repeat it".into(),
    }
}

fn candidate(offer: Offer) -> Candidate {
    let runs = !matches!(offer.state, Some(DomainState::ShutOff) | None);
    Candidate {
        uuid: offer.uuid.unwrap_or_else(|| offer.name.clone()),
        name: offer.name,
        state: offer.state,
        memory: if runs { offer.memory } else { 0 },
        vcpus: if runs { offer.vcpus } else { 0 },
        demands: vec![offer.demand],
    }
}

/// Free bytes of the file systems that guests go to; of several answers the least.
fn filesystems(seeing: &Seeing) -> BTreeMap<String, u64> {
    let mut free: BTreeMap<String, u64> = BTreeMap::new();
    for room in seeing.directories.values().flatten() {
        let known = free.entry(room.filesystem.clone()).or_insert(room.available);
        *known = room.available.min(*known);
    }
    free
}

/// What a host has left: of its memory what neither its guests may use nor anything uses now, and of its processors
/// what its guests leave.
fn capacity(host: &dyn Hypervisor, limits: &Limits) -> Result<Option<Capacity>> {
    let Some(resources) = host.resources()? else { return Ok(None) };
    let (mut memory, mut vcpus) = (0_u64, 0_u64);
    for domain in host.domains()? {
        if domain.state != DomainState::ShutOff {
            let needs = Needs::read(&domain.live_xml)?;
            memory = memory.saturating_add(needs.memory);
            vcpus = vcpus.saturating_add(needs.vcpus);
        }
    }
    let uncommitted = resources.memory.saturating_sub(memory);
    let left = uncommitted.min(resources.memory_available);
    Ok(Some(Capacity {
        memory: left.saturating_sub(limits.memory_reserve),
        vcpus: resources.cpus.saturating_mul(limits.vcpus_per_cpu).saturating_sub(vcpus),
    }))
}
