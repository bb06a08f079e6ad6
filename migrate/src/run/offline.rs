//! Guests that are shut off: preparation has copied and compared their disks already.

use super::{Phase, Run, Verified};
use crate::Result;

impl Run<'_> {
    /// Defines the guest at the destination.
    pub(super) fn move_definition(&mut self) -> Result<Verified> {
        self.phase(Phase::Define)?;
        let plan = self.plan();
        let xml = plan.persistent_xml.as_deref().unwrap_or(&plan.destination_xml);
        self.hosts.destination.define(xml)?;
        Ok(Verified::Content)
    }
}
