//! Putting the source's files away, once the guest lives elsewhere.

use std::path::{Path, PathBuf};

use super::{Phase, Retained, Run};
use crate::Result;
use crate::facts::{DomainState, Identity, LayerFacts};
use crate::journal::{Record, Side};
use crate::plan::Action;
use crate::store::Store;

impl Run<'_> {
    /// Gives the active layers of the moved disks, and NVRAM that was copied, another name, or removes them if they are not to be
    /// kept. Their backing files stay: other guests may use them too.
    pub(super) fn archive(&mut self) -> Result<Vec<Retained>> {
        self.phase(Phase::Archive)?;
        let plan = self.plan().clone();
        // A definition that stayed would start the guest a second time from the files that it names.
        let defined = self.hosts.source.state(&plan.uuid);
        match defined {
            Ok(None) => {}
            Ok(Some(DomainState::ShutOff)) if plan.mode == crate::plan::Mode::Offline => {
                self.hosts.source.undefine(&plan.uuid)?;
            }
            Ok(Some(_)) => {
                self.report.note("the source still has the guest's definition: its files stay");
                return Ok(Vec::new());
            }
            Err(error) => {
                self.report.note(&format!("the source cannot be asked: its files stay: {error}"));
                return Ok(Vec::new());
            }
        }
        let disks = plan.disks.iter().filter_map(|disk| {
            let moved = matches!(disk.action, Action::Create { .. } | Action::Adopt { .. });
            self.facts.layers(&disk.target).first().filter(|_| moved)
        });
        // What other guests may use as well stays.
        let files = self.facts.files.iter().filter_map(|file| {
            let copied = plan.files.iter().any(|plan| plan.made() == Some(file.path.as_path()));
            file.file.as_ref().filter(|_| copied && file.role.is_state())
        });
        let moved: Vec<_> = disks.chain(files).filter_map(file_of).collect();
        let mut retained = Vec::new();
        for (path, identity) in moved {
            let kept = archived_name(&path, self.id());
            // A run that was cut off may have got so far already.
            let renamed = &self.journal.transaction().renamed;
            if !renamed.iter().any(|renamed| renamed.from == path) {
                // The guest wrote to it after the probe: its times are others, it is the same file.
                if let Err(error) = self.source_store.rename(&path, &kept, &identity) {
                    self.report.note(&format!("{} stays under its name: {error}", path.display()));
                    continue;
                }
                let (from, to) = (path.clone(), kept.clone());
                self.journal.write(Record::Renamed { from, to, identity })?;
            }
            let keep = plan.policy.retain_days > 0;
            if !keep {
                // Gone already is as good.
                self.source_store.remove(&kept, &identity)?;
                let host = Side::Source;
                self.journal.write(Record::Removed { host, path: kept.clone() })?;
            }
            retained.push(Retained { was: path, is: keep.then_some(kept) });
        }
        Ok(retained)
    }
}

/// The file of a disk's active layer; `None` for devices and for files that have no name any more.
fn file_of(top: &LayerFacts) -> Option<(PathBuf, Identity)> {
    (!top.block_device && !top.deleted).then(|| (top.path.clone(), top.identity))
}

/// The name under which the source's file is kept.
fn archived_name(path: &Path, id: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".migrated-{id}"));
    path.with_file_name(name)
}
