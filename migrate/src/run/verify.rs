//! Comparing what arrived with what was there, while the guest stands still.

use std::path::Path;

use qcow::chain::{Chain, OpenOptions};
use qcow::ops::digest::tree_hash;

use super::{Phase, Run, Verified};
use crate::facts::{Content, DomainState};
use crate::plan::{Action, DiskPlan, Verify};
use crate::store::Wanted;
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
        if !matches!(
            self.ends.destination.state(uuid)?,
            Some(DomainState::Paused | DomainState::ShutOff)
        ) {
            self.report.note("the guest runs already: its content cannot be compared any more");
            return Ok(Verified::Structure);
        }
        for disk in self.plan().disks.clone() {
            self.same_content(&disk)?;
        }
        Ok(Verified::Content)
    }

    /// The guest that runs there uses exactly the images that were prepared.
    fn definition_names_the_targets(&self) -> Result<()> {
        let plan = self.plan();
        let Some(domain) = self.ends.destination.domain(&plan.uuid)? else { return Ok(()) };
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

    fn same_content(&self, disk: &DiskPlan) -> Result<()> {
        let (Action::Create { .. } | Action::Adopt { .. }, Some(path)) =
            (&disk.action, disk.action.path())
        else {
            return Ok(());
        };
        let facts = self.facts.disks.iter().find(|facts| facts.target == disk.target);
        let layers = facts.and_then(|facts| facts.chain.as_ref()).map(|chain| &*chain.layers);
        let chain = self.held.open(layers.unwrap_or_default())?;
        let observer = self.report.observer();
        let digest = tree_hash(&chain, 0, observer, self.cancel)?.root.to_string();
        let format = disk.action.format().unwrap_or(qcow::chain::Format::Qcow2);
        let wanted = Wanted { digest: &digest, file: None };
        let found = self.ends.store.same_content(path, format, &wanted, observer, self.cancel)?;
        match found {
            Content::Equal { .. } => Ok(()),
            Content::Different => Err(self.unequal(disk, "does not hold what it held")),
            Content::Unknown { .. } => self.same_content_here(disk, path, format, &digest),
        }
    }

    /// Where the other end cannot hash disks, its image comes here. Only one that stands alone can be
    /// read without its host.
    fn same_content_here(
        &self,
        disk: &DiskPlan,
        path: &Path,
        format: qcow::chain::Format,
        digest: &str,
    ) -> Result<()> {
        if matches!(&disk.action, Action::Create { base: Some(_), .. }) {
            self.report.note(&format!(
                "{}: the content of an overlay can only be compared with --rsh",
                disk.target
            ));
            return Ok(());
        }
        let copy = self.ends.store.fetch(path, u64::MAX)?;
        let open = OpenOptions { format: Some(format), force_share: true, ..Default::default() };
        let chain = Chain::open_alone(&crate::prepare::name_of(&copy), &open)?;
        let found = tree_hash(&chain, 0, self.report.observer(), self.cancel)?;
        if found.root.to_string() == digest {
            return Ok(());
        }
        Err(self.unequal(disk, "does not hold what it held"))
    }

    fn unequal(&self, disk: &DiskPlan, how: &str) -> Error {
        Error::new(ErrorKind::Unverified, format!("the disk {} {how}", disk.target))
            .on(&self.facts.destination.hostname)
            .hint(format!(
                "nothing was removed: the source's files are as they were when the guest left; \
                 if it is paused there, it can be destroyed and started here (transaction {})",
                self.id()
            ))
    }
}
