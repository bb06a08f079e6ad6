//! Compares what arrived with the source, while the guest is paused.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use qcow::chain::{Chain, Format, OpenOptions};
use qcow::ops::digest::LEAF;

use super::{Phase, Run, Verified};
use crate::facts::DomainState;
use crate::plan::{Action, DiskPlan, Verify};
use crate::store::Part;
use crate::{Error, ErrorKind, Result};

impl Run<'_> {
    /// Compares as thoroughly as the policy asks. The source's files are still what they were when the
    /// guest left.
    pub(super) fn verify(&mut self) -> Result<Verified> {
        let level = self.plan().policy.verify;
        if level == Verify::None {
            return Ok(Verified::Nothing);
        }
        self.phase(Phase::Verify)?;
        self.definition_names_the_targets()?;
        if level < Verify::Sample {
            return Ok(Verified::Structure);
        }
        let uuid = &self.plan().uuid;
        // One that was resumed before, and has stopped since, has written to its disks.
        let ran = self.has_begun(Phase::Resume);
        let state = self.hosts.destination.state(uuid)?;
        if ran || !matches!(state, Some(DomainState::Paused | DomainState::ShutOff)) {
            self.report
                .note("the guest has run there already: its content cannot be compared any more");
            return Ok(Verified::Structure);
        }
        let mut verified =
            if level == Verify::Content { Verified::Content } else { Verified::Sample };
        for disk in self.plan().disks.clone() {
            verified = verified.min(self.same_content(&disk, level)?);
        }
        Ok(verified)
    }

    /// The guest that runs there uses exactly the images that were prepared.
    fn definition_names_the_targets(&self) -> Result<()> {
        let plan = self.plan();
        let Some(domain) = self.hosts.destination.domain(&plan.uuid)? else { return Ok(()) };
        let live = crate::domain::parse(&domain.live_xml)?;
        for disk in &plan.disks {
            let Some(wanted) = disk.action.path() else { continue };
            let found = live.disks.iter().find(|live| live.target == disk.target);
            let path = found.and_then(|disk| disk.chain.layers.first()).map(|layer| &*layer.path);
            if path != Some(wanted) {
                return Err(self.unequal(disk, "is not on the image that was made for it"));
            }
        }
        Ok(())
    }

    /// Compares a disk, all of it or a part; says how thoroughly that could be done.
    fn same_content(&self, disk: &DiskPlan, level: Verify) -> Result<Verified> {
        let (Action::Create { .. } | Action::Adopt { .. }, Some(path), Some(format)) =
            (&disk.action, disk.action.path(), disk.action.format())
        else {
            return Ok(Verified::Content);
        };
        let chain = match self.pinned.open(self.facts.layers(&disk.target)) {
            Ok(chain) => chain,
            // A deleted layer went with the run that held it open.
            Err(error) => {
                let target = &disk.target;
                self.report.note(&format!("{target}: there is nothing to compare with: {error}"));
                return Ok(Verified::Structure);
            }
        };
        let (leaves, verified) = match level {
            Verify::Content => (None, Verified::Content),
            _ => (Some(sample(&chain)?), Verified::Sample),
        };
        let part = match (leaves, self.larger(disk)) {
            (leaves, Some(size)) => Part::Within { size, leaves },
            (None, None) => Part::Whole,
            (Some(leaves), None) => Part::Leaves(leaves),
        };
        let observer = self.report.observer();
        let found = self.hosts.store.still_digest(path, format, &part, observer, self.cancel)?;
        let found = match found {
            Some(found) => found,
            // Only an image without a backing file can be read without its host.
            None if matches!(&disk.action, Action::Create { base: Some(_), .. }) => {
                self.report.note(&format!(
                    "{}: the content of an overlay is only compared where a process at the destination serves its files",
                    disk.target
                ));
                return Ok(Verified::Structure);
            }
            None => {
                let copy = self.hosts.store.fetch(path, u64::MAX)?;
                let open = OpenOptions::default().format(format);
                let copy = Chain::open_alone(&crate::fs::fd_path(&copy), &open)?;
                part.digest(&copy, observer, self.cancel)?
            }
        };
        if found == part.digest(&chain, observer, self.cancel)? {
            return Ok(verified);
        }
        Err(self.unequal(disk, "does not have the content that it had"))
    }

    /// The size of a disk that is on a device which is larger.
    fn larger(&self, disk: &DiskPlan) -> Option<u64> {
        let facts = self.facts.disks.iter().find(|facts| facts.target == disk.target)?;
        let object = facts.destination.as_ref()?.object.as_ref()?;
        let own = facts.chain.as_ref()?.layers.first()?.virtual_size;
        let raw = disk.action.format() == Some(Format::Raw);
        (raw && object.block_device && object.identity.size > own).then_some(own)
    }

    fn unequal(&self, disk: &DiskPlan, how: &str) -> Error {
        Error::new(ErrorKind::Unverified, format!("the disk {} {how}", disk.target))
            .on(&self.facts.destination.hostname)
            .hint(format!(
                "nothing was removed: the source's files are as they were when the guest left; \
                 if it is paused at the destination, it can be destroyed and started at the source (transaction {})",
                self.id()
            ))
    }
}

/// Leaves that are compared where a sample will do: at most 256 MiB of the disk.
const SAMPLE: usize = 64;

/// Some of the leaves that hold data, drawn at random; and the last, which has its own ways to go wrong.
fn sample(chain: &Chain) -> Result<Vec<u64>> {
    let mut with_data = Vec::new();
    for extent in chain.extents() {
        let extent = extent?;
        if extent.is_zero() {
            continue;
        }
        let (first, last) = (extent.guest.0 / LEAF, extent.end().saturating_sub(1) / LEAF);
        let known = with_data.last().map_or(0, |last: &u64| last.saturating_add(1));
        with_data.extend(first.max(known)..=last);
    }
    let random = RandomState::new();
    with_data.sort_by_cached_key(|leaf| random.hash_one(leaf));
    with_data.truncate(SAMPLE);
    with_data.push(chain.virtual_size().saturating_sub(1) / LEAF);
    with_data.sort_unstable();
    with_data.dedup();
    Ok(with_data)
}
