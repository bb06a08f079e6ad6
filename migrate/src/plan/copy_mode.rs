//! How libvirt copies: one mode and one set of flags for the whole guest.

use super::disk::Copy;
use super::policy::{Policy, Verify};
use super::value::{CopyMode, Flag, Mode};
use crate::facts::{DomainState, Facts, HostFacts, Version};

/// Below either of these only full copies are made, without new parameters (R9).
pub(crate) const LIBVIRT_FLOOR: Version = Version::new(8, 0, 0);
pub(crate) const QEMU_FLOOR: Version = Version::new(6, 2, 0);
/// From here on libvirt can look for zeros in what it copies.
pub(crate) const DETECTS_ZEROES: Version = Version::new(10, 9, 0);

const MIB: u64 = 1 << 20;

/// Why a guest whose disks are copied thus cannot have overlays at the destination; `None` if it can, or if
/// none is wanted.
pub(super) fn alone_because(facts: &Facts, mode: Mode, copies: &[(&str, &Copy)]) -> Option<String> {
    let wanted = copies.iter().any(|(_, copy)| copy.base.is_some());
    if mode == Mode::Offline || !wanted {
        return None;
    }
    if !modern(facts) {
        return Some(format!(
            "both hosts need libvirt {LIBVIRT_FLOOR} and QEMU {QEMU_FLOOR} for anything but full copies"
        ));
    }
    let (target, why) =
        copies.iter().find_map(|(target, copy)| Some((target, copy.whole.as_ref()?)))?;
    Some(format!("'{target}' must be copied whole, and libvirt copies all disks in one way: {why}"))
}

/// The mode for disks that are copied thus.
pub(super) fn choose(mode: Mode, copies: &[(&str, &Copy)]) -> CopyMode {
    if mode == Mode::Offline || copies.is_empty() {
        CopyMode::None
    } else if copies.iter().any(|(_, copy)| copy.base.is_some()) {
        CopyMode::Incremental
    } else {
        CopyMode::Full
    }
}

/// libvirt's flags.
pub(super) fn flags(facts: &Facts, policy: &Policy, mode: Mode, copy: CopyMode) -> Vec<Flag> {
    if mode == Mode::Offline {
        return Vec::new();
    }
    let mut flags = Vec::new();
    if facts.domain.state == DomainState::Running {
        flags.push(Flag::Live);
    }
    flags.push(Flag::PeerToPeer);
    if facts.domain.persistent {
        flags.extend([Flag::PersistDest, Flag::UndefineSource]);
    }
    if policy.verify >= Verify::Sample {
        flags.push(Flag::Paused);
    }
    match copy {
        CopyMode::None => {}
        CopyMode::Full => flags.push(Flag::NonSharedDisk),
        CopyMode::Incremental => flags.push(Flag::NonSharedInc),
    }
    flags.extend([Flag::ChangeProtection, Flag::AbortOnError]);
    if policy.tls {
        flags.push(Flag::Tls);
    }
    if synchronous(facts, policy, copy) {
        flags.push(Flag::NonSharedSynchronousWrites);
    }
    flags.extend(policy.tuning.flags());
    flags
}

/// Whether guest writes wait for the copy.
pub(super) fn synchronous(facts: &Facts, policy: &Policy, copy: CopyMode) -> bool {
    policy.sync_writes && copy != CopyMode::None && modern(facts)
}

/// Whether zeros can be looked for.
pub(super) fn detects_zeroes(facts: &Facts) -> bool {
    modern(facts) && hosts(facts).iter().all(|host| at_least(host.libvirt, DETECTS_ZEROES))
}

/// The share of one stream: libvirt applies the figure to each disk and to the memory.
pub(super) fn bandwidth_mib(bytes: u64, disks: usize) -> u64 {
    let streams = u64::try_from(disks).unwrap_or(u64::MAX).saturating_add(1);
    bytes.checked_div(streams).map_or(1, |share| share / MIB).max(1)
}

fn modern(facts: &Facts) -> bool {
    // A directory has nothing that could be too old; the program that moves the guest has to check that.
    let directory = |host: &&HostFacts| host.libvirt.is_none() && host.uri.starts_with("dir:");
    hosts(facts).iter().all(|host| {
        directory(host) || at_least(host.libvirt, LIBVIRT_FLOOR) && at_least(host.qemu, QEMU_FLOOR)
    })
}

fn hosts(facts: &Facts) -> [&HostFacts; 2] {
    [&facts.source, &facts.destination]
}

/// A version that is not known is too old.
fn at_least(version: Option<Version>, floor: Version) -> bool {
    version.is_some_and(|version| version >= floor)
}
