//! A connection whose negotiation is over.

use std::sync::Arc;

use super::common::Common;
use crate::budget::Permit;
use crate::export::Export;
use crate::handshake::Agreed;
use crate::link::Link;
use crate::stats::ExportStats;
use crate::wire::Headers;

/// A connection that takes requests.
#[derive(Debug)]
pub(super) struct Session {
    common: Arc<Common>,
    link: Arc<Link>,
    agreed: Agreed,
    stats: Arc<ExportStats>,
}

impl Session {
    pub(super) fn new(common: &Arc<Common>, link: &Arc<Link>, agreed: Agreed) -> Self {
        let export = common.exports.get(agreed.export);
        let stats = export.map(|export| Arc::clone(export.stats())).unwrap_or_default();
        Self { common: Arc::clone(common), link: Arc::clone(link), agreed, stats }
    }

    pub(super) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    pub(super) fn common(&self) -> &Common {
        &self.common
    }

    pub(super) fn stats(&self) -> &ExportStats {
        &self.stats
    }

    pub(super) fn headers(&self) -> Headers {
        self.agreed.headers
    }

    pub(super) fn contexts(&self) -> &[u32] {
        &self.agreed.contexts
    }

    pub(super) fn export(&self) -> Option<&Export> {
        self.common.exports.get(self.agreed.export)
    }

    /// Waits for memory; `None` if there is none, or nobody to answer.
    pub(super) fn permit(&self, len: usize) -> Option<Permit> {
        let lives = || !self.link.is_gone();
        self.common.budget.take(self.link.own(), len, lives)
    }
}
