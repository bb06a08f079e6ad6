//! One connection: its negotiation, its requests, its end.
//!
//! One thread receives. Short requests it answers itself, as long as they take no time to speak of, and sends
//! the replies of all that came together at once; the others go to the pool, whose threads send what they
//! have. Nobody else waits for a client that does not read: see [`out`].

mod input;
mod link;
mod negotiate;
mod out;
mod perform;
mod requests;

use std::sync::Arc;
use std::time::Duration;

use crate::budget::{Budget, lock};
use crate::export::Export;
use crate::pool::Pool;
use crate::stats::Stats;
use crate::transport::Transport;

pub(crate) use link::Link;
use negotiate::Negotiated;
use requests::Session;

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
enum End {
    /// The client said so, or the server is ending: what was asked for is answered.
    Orderly,
    /// The client is gone, or what it sends makes no sense.
    Lost,
}

/// A connection before its first byte.
pub(crate) fn link(transport: Arc<dyn Transport>) -> Arc<Link> {
    Arc::new(Link::new(transport))
}

/// Serves a client until it goes. `link` is what others stop it by.
pub(crate) fn serve(common: &Arc<Common>, link: &Arc<Link>) {
    if let Some(Negotiated { agreed, input }) = negotiate::negotiate(common, link) {
        if let Some(export) = common.exports.get(agreed.export) {
            lock(&export.links).push(Arc::downgrade(link));
        }
        let session = Arc::new(Session::new(common, link, agreed));
        session.stats().connected();
        transmit(&session, input);
        session.stats().disconnected();
    }
    link.cut();
    link.finish();
}

fn transmit(session: &Arc<Session>, input: input::Input) {
    let link = session.link();
    if requests::take(session, input) == End::Lost {
        link.lose();
    }
    link.out().wait_until_sent();
    link.wait_until_idle();
    link.out().close();
}
