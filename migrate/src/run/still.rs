//! Last looks: is everything that the plan rests on still so?

use std::os::unix::fs::MetadataExt;

use super::Run;
use crate::facts::{Content, Identity, LayerFacts};
use crate::fs::mtime_ns;
use crate::journal::Side;
use crate::plan::{Action, BasePlan};
use crate::{Error, Result};

impl Run<'_> {
    /// The source's layers below the active ones have not changed since the probe (`SourceLayersFixed`).
    pub(super) fn lower_layers_are_still_the_same(&self) -> Result<()> {
        for disk in &self.facts.disks {
            let layers = disk.chain.as_ref().and_then(|chain| chain.layers.get(1..));
            for layer in layers.unwrap_or_default() {
                if !self.is_still(layer) {
                    return Err(Error::changed(format!(
                        "{}, a backing file of {}, was changed",
                        layer.path.display(),
                        disk.target
                    ))
                    .on(&self.facts.source.hostname)
                    .hint(
                        "find the process that writes to it: every guest that uses it is damaged",
                    ));
                }
            }
        }
        Ok(())
    }

    fn is_still(&self, layer: &LayerFacts) -> bool {
        std::fs::metadata(self.pinned.place(layer)).is_ok_and(|now| {
            let same =
                Some(now.dev()) == layer.identity.device && Some(now.ino()) == layer.identity.inode;
            same && mtime_ns(&now) == layer.identity.mtime_ns
                && (layer.block_device || now.len() == layer.identity.size)
        })
    }

    /// What this run made at the destination is still what is there (`MadeByThisRun`).
    pub(super) fn targets_are_still_ours(&self) -> Result<()> {
        for made in &self.journal.transaction().objects {
            let Some(identity) = &made.identity else { continue };
            if made.host == Side::Destination && !made.directory {
                self.is_still_there(&made.path, identity)?;
            }
        }
        self.bases_are_still_the_same()
    }

    /// Bases that were at the destination before are still what was compared (`BaseFixed`).
    pub(super) fn bases_are_still_the_same(&self) -> Result<()> {
        for disk in &self.journal.transaction().plan.disks {
            let Action::Create { base: Some(BasePlan::Existing { chain, .. }), .. } = &disk.action
            else {
                continue;
            };
            let facts = self.facts.disks.iter().find(|facts| facts.target == disk.target);
            let destination = facts.and_then(|facts| facts.destination.as_ref());
            let base = destination
                .into_iter()
                .flat_map(|destination| &destination.bases)
                .find(|base| base.chain == *chain && matches!(base.content, Content::Equal { .. }));
            let Some(base) = base else {
                return Err(Error::changed(format!("{} has lost its base", disk.target)));
            };
            self.is_still_there(&base.path, &base.identity)?;
        }
        Ok(())
    }

    fn is_still_there(&self, path: &std::path::Path, then: &Identity) -> Result<()> {
        let changed = |how: &str| {
            Err(Error::changed(format!("{} {how}", path.display()))
                .on(&self.facts.destination.hostname)
                .hint("something else works on the destination's files: stop it, then plan again"))
        };
        let Some(object) = self.hosts.store.look(path)? else { return changed("is gone") };
        let now = object.identity;
        // Owner and mode may have changed: libvirt sees to that.
        let same = (now.device, now.inode, now.size, now.mtime_ns)
            == (then.device, then.inode, then.size, then.mtime_ns);
        if same { Ok(()) } else { changed("was changed") }
    }
}
