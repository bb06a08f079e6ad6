//! libvirt's status XML of a guest (`/run/libvirt/qemu/NAME.xml`), which tells a hook what it is called for.
//!
//! No document describes that file. What is not as expected is [`Unknown`](Status::Unknown), and nothing is refused on
//! its account.

use crate::domain::tree;

/// `VIR_MIGRATE_NON_SHARED_DISK`.
const FULL: u64 = 1 << 6;
/// `VIR_MIGRATE_NON_SHARED_INC`.
const INCREMENTAL: u64 = 1 << 7;
/// `VIR_MIGRATE_POSTCOPY`.
const POSTCOPY: u64 = 1 << 15;

/// What libvirt does with a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// It is arriving from another host.
    Arriving {
        /// How its disks are copied.
        copying: Copying,
        /// It may have run here already: it does, or it can before all of it has arrived (post-copy).
        ran: bool,
    },
    /// It is not arriving: it was started here, runs, or is being stopped.
    Other,
    /// That is not known, and why.
    Unknown(String),
}

/// How an arriving guest's disks are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copying {
    /// Completely (`--copy-storage-all`).
    Full,
    /// The active layers alone (`--copy-storage-inc`).
    Incremental,
    /// Not by libvirt.
    Nothing,
}

/// Reads the status XML of the guest of this name.
pub fn read(xml: &str, guest: &str) -> Status {
    let unknown = |why: &str| Status::Unknown(why.to_owned());
    let document = match tree::read(xml) {
        Ok(document) => document,
        Err(error) => return unknown(error.message()),
    };
    let root = document.root_element();
    if !tree::is(root, "domstatus") {
        return unknown("it is not a <domstatus>");
    }
    let name = tree::child(root, "domain").and_then(|domain| tree::child(domain, "name"));
    if name.is_none_or(|name| tree::text(name) != guest) {
        return unknown("it is not that of this guest");
    }
    let Some(job) = tree::child(root, "job") else { return Status::Other };
    match tree::attribute(job, "async") {
        Some("migration in") => {}
        _ => return Status::Other,
    }
    let flags = tree::attribute(job, "flags").and_then(|flags| flags.strip_prefix("0x"));
    let Some(flags) = flags.and_then(|digits| u64::from_str_radix(digits, 16).ok()) else {
        return unknown("its job has no flags");
    };
    // If both are set, the stricter rule holds.
    let copying = match (flags & INCREMENTAL, flags & FULL) {
        (0, 0) => Copying::Nothing,
        (0, _) => Copying::Full,
        _ => Copying::Incremental,
    };
    let state = tree::attribute(root, "state");
    let ran = flags & POSTCOPY != 0 || !matches!(state, Some("paused" | "shutdown" | "shutoff"));
    Status::Arriving { copying, ran }
}

impl std::fmt::Display for Copying {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Full => "its disks are copied completely",
            Self::Incremental => "the active layers of its disks are copied",
            Self::Nothing => "its disks are not copied",
        })
    }
}
