//! The facts that must still be so when a plan is carried out, as one digest.

use crate::facts::{ChainFacts, Device, DiskFacts, DomainState, Facts, Storage, TargetFacts};

use super::disk::source_path;

/// Set before what is digested, so that it is never taken for the digest of anything else.
const CONTEXT: &str = "qcowtool facts fingerprint 1";

impl Facts {
    /// Digest of the facts that a plan rests on: it stays the same while a guest runs as usual, and
    /// changes when something does that would make the plan wrong.
    ///
    /// Not part of it: what a guest changes by running (length, times and allocation of its active
    /// layers), free space, and the documents that the hypervisor rewrites all the time. Hexadecimal.
    pub fn fingerprint(&self) -> String {
        let facts = without_what_passes(self);
        // A path that is no UTF-8 has no JSON; any form will do that tells different facts apart.
        let text = serde_json::to_vec(&facts).unwrap_or_else(|_| format!("{facts:?}").into_bytes());
        blake3::Hasher::new_derive_key(CONTEXT).update(&text).finalize().to_hex().to_string()
    }
}

/// The same, without what changes by itself.
fn without_what_passes(facts: &Facts) -> Facts {
    let mut facts = facts.clone();
    let alive = facts.domain.state != DomainState::ShutOff;
    facts.domain.live_xml.clear();
    facts.domain.migratable_xml.clear();
    if alive {
        // Paused or not: the plan is the same.
        facts.domain.state = DomainState::Running;
    }
    for disk in &mut facts.disks {
        let written = alive && !disk.readonly && disk.device != Device::Cdrom;
        let on_itself = stays(disk);
        if let Some(chain) = &mut disk.chain {
            forget_allocation(chain, written);
        }
        if let Some(destination) = &mut disk.destination {
            forget_free_space(destination, written && on_itself);
        }
    }
    for file in &mut facts.files {
        file.destination.available = None;
        if alive && file.role.is_state() {
            // QEMU writes to it.
            file.file = None;
        }
    }
    facts
}

/// The disk's own image is what is at its place there.
fn stays(disk: &DiskFacts) -> bool {
    disk.destination.as_ref().is_some_and(|destination| {
        destination.storage == Storage::Shared
            && source_path(&disk.source) == Some(&destination.path)
    })
}

fn forget_allocation(chain: &mut ChainFacts, written: bool) {
    chain.top_bytes = 0;
    chain.guest_bytes = None;
    let Some(top) = chain.layers.first_mut().filter(|_| written) else { return };
    top.identity.size = 0;
    top.identity.mtime_ns = 0;
    top.identity.ctime_ns = 0;
    if let Some(qcow2) = &mut top.qcow2 {
        qcow2.dirty = false;
    }
}

fn forget_free_space(destination: &mut TargetFacts, written: bool) {
    destination.available = None;
    if let Some(object) = destination.object.as_mut().filter(|_| written) {
        object.identity.size = 0;
        object.identity.mtime_ns = 0;
        object.identity.ctime_ns = 0;
        object.in_use = None;
    }
}
