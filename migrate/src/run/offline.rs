//! Guests that are shut off: their disks are copied as files, compared, and the guest is defined at the
//! destination.

use super::{Phase, Run, Verified};
use crate::Result;

impl Run<'_> {
    /// Copies, compares and defines.
    pub(super) fn move_files(&mut self) -> Result<Verified> {
        self.phase(Phase::Copy)?;
        let plan = self.plan().clone();
        let xml = plan.persistent_xml.as_deref().unwrap_or(&plan.destination_xml);
        self.ends.destination.define(xml)?;
        Ok(Verified::Content)
    }
}
