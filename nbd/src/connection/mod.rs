//! One connection: its negotiation, its requests, its end.
//!
//! One thread receives. Short requests it answers itself, as long as they take no time to speak of, and sends
//! the replies of all that came together at once; the others go to the pool, whose threads send what they
//! have. Nobody else waits for a client that does not read: see [`Out`](crate::link::Out).

mod common;
mod input;
mod negotiate;
mod perform;
mod requests;
mod session;

use std::sync::Arc;

use crate::budget::lock;
use crate::link::Link;

pub(crate) use common::Common;
use common::End;
use negotiate::Negotiated;
use session::Session;

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
