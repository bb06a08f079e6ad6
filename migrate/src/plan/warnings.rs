//! What the operator should know: what does not come along, and what turns out otherwise than wished.

use super::copy_mode;
use super::disk::{Copy, Disk};
use super::policy::Policy;
use super::predicted::saved_by_overlay;
use super::value::{CopyMode, Row, Warning};
use super::words::{list, warn};
use crate::domain::obstacles;
use crate::facts::{DomainState, Facts, FormatFrom};

/// What file systems that are written to without a cache may ask sizes to be multiples of.
const BLOCK: u64 = 4096;

/// What concerns the guest as a whole.
pub(super) fn of_guest(facts: &Facts, policy: &Policy, copy: CopyMode) -> Vec<Warning> {
    let mut all = Vec::new();
    if !facts.domain.checkpoints.is_empty() {
        all.push(warn(
            "checkpoints-not-migrated",
            None,
            format!(
                "checkpoints have to be redefined at the destination: {}",
                list(&facts.domain.checkpoints)
            ),
        ));
    }
    if policy.sync_writes && copy != CopyMode::None && !copy_mode::synchronous(facts, policy, copy)
    {
        all.push(warn(
            "sync-writes-not-possible",
            None,
            "libvirt or QEMU is too old on one of the hosts for writes that wait for the copy",
        ));
    }
    if facts.domain.state != DomainState::ShutOff && !facts.domain.persistent {
        all.push(warn(
            "not-persistent",
            None,
            "the guest is not defined, and will not be at the destination either",
        ));
    }
    let offline = facts.domain.state == DomainState::ShutOff;
    for obstacle in obstacles(&facts.domain.live_xml).unwrap_or_default() {
        if offline && obstacle.of_host {
            let message = format!("the destination must have this too: {}", obstacle.what);
            all.push(warn("host-device", None, message));
        } else if !offline && obstacle.maybe && policy.try_devices {
            let message = format!("libvirt or QEMU may refuse: {}", obstacle.what);
            all.push(warn("host-device", None, message));
        }
    }
    all
}

/// What concerns a disk that is copied.
pub(super) fn of_copy(disk: &Disk<'_>, row: Row, copy: &Copy) -> Vec<Warning> {
    let mut all = Vec::new();
    let mut say = |code: &str, message: String| {
        all.push(warn(code, Some(&disk.disk.target), message));
    };
    if let Some(why) = copy.not_thin.as_ref().filter(|_| copy.base.is_none()) {
        say(
            "thin-not-possible",
            format!(
                "it cannot be an overlay at the destination, and takes up to {} bytes more: {why}",
                saved_by_overlay(disk, row)
            ),
        );
    }
    if let Some(layer) = disk.below().iter().find(|layer| layer.format_from == FormatFrom::Nowhere)
    {
        say(
            "backing-format-missing",
            format!("the format of '{}' is not recorded", layer.path.display()),
        );
    }
    if row == Row::LayerDeleted || row == Row::LayerRescued {
        say(
            "layer-deleted",
            "only the guest's process still has the deleted layer: do not shut the guest off"
                .into(),
        );
    }
    if row == Row::ChainInDoubt {
        say("chains-differ", copy.why.clone());
    }
    let direct = matches!(disk.disk.cache.as_deref(), Some("none" | "directsync"));
    if row == Row::RawFile && disk.live() && direct && !disk.size().is_multiple_of(BLOCK) {
        say(
            "raw-unaligned",
            format!(
                "its size is not a multiple of {BLOCK} bytes: with this cache mode the destination may \
                 refuse it, and the run is rolled back"
            ),
        );
    }
    let Some((top, qcow2)) = disk.top().and_then(|top| Some((top, top.qcow2.as_ref()?))) else {
        return all;
    };
    if !qcow2.snapshots.is_empty() {
        say(
            "internal-snapshots-lost",
            format!("internal snapshots are not copied: {}", list(&qcow2.snapshots)),
        );
    }
    if !qcow2.bitmaps.is_empty() {
        say(
            "bitmaps",
            format!(
                "whether bitmaps are copied depends on libvirt; check at the destination: {}",
                list(&qcow2.bitmaps)
            ),
        );
    }
    let whole_file = !top.block_device && top.identity.size >= top.virtual_size;
    if whole_file && disk.chain().is_some_and(|chain| chain.top_bytes < top.virtual_size) {
        say("preallocation-lost", "the image has space set aside; the copy will not".to_owned());
    }
    all
}
