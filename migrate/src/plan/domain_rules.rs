//! What keeps a guest from being moved at all, whatever its disks are: rules R1 to R12.
//!
//! R4 (tunnelled) and R8 (TLS over a socket that cannot have it) need no check: a plan has no word for
//! either. R9 (versions too old for anything but full copies) refuses nothing; see
//! [`copy_mode`](super::copy_mode).

use super::policy::Policy;
use super::tuning;
use super::value::{Mode, Refusal};
use super::words::{list, refuse};
use crate::Remedy;
use crate::domain::obstacles;
use crate::facts::{DomainState, Facts};

type Rule = fn(&Facts) -> Option<Refusal>;

/// The rules, in their order.
const RULES: [Rule; 7] =
    [no_job, no_snapshots, not_transient, settled, no_clash, two_hosts, not_saved];

/// All refusals of the domain as a whole.
pub(super) fn check(facts: &Facts, policy: &Policy) -> Vec<Refusal> {
    let mut refusals: Vec<_> = RULES.iter().filter_map(|rule| rule(facts)).collect();
    refusals.extend(migratable(facts, policy));
    refusals.extend(tuning::possible(facts, &policy.tuning, mode(facts.domain.state)));
    refusals
}

/// How a guest in this state moves.
pub(super) fn mode(state: DomainState) -> Mode {
    match state {
        DomainState::ShutOff => Mode::Offline,
        _ => Mode::Live,
    }
}

/// R1: nothing else is at work on the guest or one of its disks.
fn no_job(facts: &Facts) -> Option<Refusal> {
    let way_out =
        "wait until it has ended, or abort it (virsh domjobabort, virsh blockjob --abort)";
    if let Some(job) = &facts.domain.job {
        return Some(refuse("R1", None, format!("a job runs on the guest: {job}"), way_out));
    }
    let (disk, job) =
        facts.disks.iter().find_map(|disk| Some((&disk.target, disk.block_job.as_ref()?)))?;
    Some(refuse("R1", Some(disk), format!("a job runs on the disk: {job}"), way_out))
}

/// R2: libvirt does not migrate a guest whose snapshots it knows.
fn no_snapshots(facts: &Facts) -> Option<Refusal> {
    let names = &facts.domain.snapshots;
    (!names.is_empty()).then(|| {
        refuse(
            "R2",
            None,
            format!("libvirt knows snapshots of the guest: {}", list(names)),
            "save each with virsh snapshot-dumpxml, delete its metadata only \
             (virsh snapshot-delete --metadata), and redefine it afterwards",
        )
    })
}

/// R3: what is thrown away at the end cannot go elsewhere before.
fn not_transient(facts: &Facts) -> Option<Refusal> {
    let disk = facts.disks.iter().find(|disk| disk.transient)?;
    Some(refuse(
        "R3",
        Some(&disk.target),
        "the disk's changes are thrown away when the guest stops (<transient/>)",
        "take <transient/> out of the definition and restart the guest",
    ))
}

/// R5: the guest runs, is paused, or is shut off. Anything else passes.
fn settled(facts: &Facts) -> Option<Refusal> {
    (facts.domain.state == DomainState::Other).then(|| {
        refuse(
            "R5",
            None,
            "the guest neither runs nor is it paused or shut off",
            "wait until it is one of these",
        )
    })
}

/// R6: no guest at the destination has the guest's name or UUID.
fn no_clash(facts: &Facts) -> Option<Refusal> {
    // What is there is the guest itself.
    if one_host(facts) {
        return None;
    }
    facts.clash.as_ref().map(|clash| {
        refuse(
            "R6",
            None,
            format!("the destination has such a guest already: {clash}"),
            "make sure that it is not needed there, then undefine it",
        )
    })
}

/// Both ends are reached as hosts, and are one.
fn one_host(facts: &Facts) -> bool {
    facts.source.uuid.is_some() && facts.source.uuid == facts.destination.uuid
}

/// R7: the two hosts are two hosts.
fn two_hosts(facts: &Facts) -> Option<Refusal> {
    let (source, destination) = (&facts.source.uuid, &facts.destination.uuid);
    if one_host(facts) {
        return Some(refuse(
            "R7",
            None,
            "source and destination have the same host UUID",
            Remedy::OtherHost,
        ));
    }
    // Two directories in place of two hosts: another program moves the guest.
    let mixed = source.is_none() != destination.is_none();
    (mixed && mode(facts.domain.state) == Mode::Live).then(|| {
        refuse(
            "R7",
            None,
            "a guest with a process can only go to another host's libvirt",
            "give a libvirt URI for both hosts, or shut the guest off",
        )
    })
}

/// R10: libvirt keeps the memory of a guest that was saved; its disks alone would be those of a crash.
fn not_saved(facts: &Facts) -> Option<Refusal> {
    facts.domain.saved.then(|| {
        refuse(
            "R10",
            None,
            "the guest is shut off with its memory saved, and that stays behind",
            "start it (virsh start) and migrate it running, or shut it down; or discard the saved \
             memory (virsh managedsave-remove)",
        )
    })
}

/// R11: libvirt and QEMU will migrate all of its devices. XML that cannot be read is refused elsewhere.
fn migratable(facts: &Facts, policy: &Policy) -> Vec<Refusal> {
    if mode(facts.domain.state) == Mode::Offline {
        return Vec::new();
    }
    let found = obstacles(&facts.domain.live_xml).unwrap_or_default();
    found
        .into_iter()
        .filter(|obstacle| !(obstacle.maybe && policy.try_devices))
        .map(|obstacle| {
            let message = format!("a running guest with this is not migrated: {}", obstacle.what);
            let way_out = match obstacle.maybe {
                true => Remedy::DetachOrTry(obstacle.way_out.to_owned()),
                false => obstacle.way_out.into(),
            };
            refuse("R11", None, message, way_out)
        })
        .collect()
}
