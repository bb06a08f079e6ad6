//! What all connections of a server share, and how each ends.

use std::sync::Arc;
use std::time::Duration;

use crate::budget::Budget;
use crate::export::Export;
use crate::pool::Pool;
use crate::stats::Stats;

/// What all connections of a server share.
#[derive(Debug)]
pub(crate) struct Common {
    pub(crate) exports: Vec<Export>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) pool: Pool,
    pub(crate) stats: Arc<Stats>,
    pub(crate) handshake: Duration,
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<crate::tls::TlsConfig>,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The client said so, or the server is ending: what was asked for is answered.
    Orderly,
    /// The client is gone, or what it sends makes no sense.
    Lost,
}
