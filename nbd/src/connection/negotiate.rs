//! Drives the negotiation over a stream, within bounds of time and bytes.

use std::io::{self, IoSlice};
use std::time::{Duration, Instant};

use super::common::Common;
use super::input::Input;
use crate::handshake::{Agreed, Encryption, Handshake, Step};
use crate::link::Link;
use crate::transport::{Transport, Wait};
use crate::wire::{ClientFlags, OPTION_HEAD, OptionHead, ServerFlags, greeting};

/// Options that a client may send.
const OPTIONS: usize = 4096;
/// Longest data of an option that is looked at, in bytes: some names of the greatest length.
const DATA: u32 = 64 << 10;
/// Bytes that a client may send before its first request.
const BYTES: u64 = 4 << 20;

/// A client that has got as far as requests.
#[derive(Debug)]
pub(super) struct Negotiated {
    pub(super) agreed: Agreed,
    /// What it has sent after its last option.
    pub(super) input: Input,
}

/// `None` if the client went, or was sent away.
pub(super) fn negotiate(common: &Common, link: &Link) -> Option<Negotiated> {
    // Nobody is told what went wrong with a client that no export is given to.
    try_negotiate(common, link).ok().flatten()
}

fn try_negotiate(common: &Common, link: &Link) -> io::Result<Option<Negotiated>> {
    let deadline = deadline(common.handshake);
    let transport = link.transport();
    let flags = ServerFlags::FIXED_NEWSTYLE | ServerFlags::NO_ZEROES;
    send(transport, &greeting(flags), deadline)?;
    let mut input = Input::new();
    let client = input.need(transport, 4, Some(deadline))?;
    let client = <[u8; 4]>::try_from(client).map_or(0, u32::from_be_bytes);
    input.consume(4);
    let client = ClientFlags::from_bits_retain(client);
    let Some(mut handshake) = Handshake::new(&common.exports, client, encryption(common)) else {
        return Ok(None);
    };
    match options(common, link, &mut handshake, &mut input, deadline)? {
        Step::Transmit(agreed) => Ok(Some(Negotiated { agreed, input })),
        // Whatever came before encryption is not what the client has sent behind it.
        Step::StartTls if input.buffered().is_empty() => {
            encrypt(common, link, deadline)?;
            // Nothing that was agreed on before counts.
            let handshake = Handshake::new(&common.exports, client, Encryption::Active);
            let Some(mut handshake) = handshake else { return Ok(None) };
            let mut input = Input::new();
            match options(common, link, &mut handshake, &mut input, deadline)? {
                Step::Transmit(agreed) => Ok(Some(Negotiated { agreed, input })),
                _ => Ok(None),
            }
        }
        _ => Ok(None),
    }
}

#[cfg(feature = "tls")]
fn encryption(common: &Common) -> Encryption {
    common.tls.as_ref().map_or(Encryption::None, |_| Encryption::Required)
}

#[cfg(feature = "tls")]
fn encrypt(common: &Common, link: &Link, deadline: Instant) -> io::Result<()> {
    let config = common.tls.as_ref().ok_or(io::ErrorKind::Unsupported)?;
    link.encrypt(|stream| crate::tls::Tls::accept(stream, config, deadline))
}

#[cfg(not(feature = "tls"))]
fn encryption(_: &Common) -> Encryption {
    Encryption::None
}

#[cfg(not(feature = "tls"))]
fn encrypt(_: &Common, _: &Link, _: Instant) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Answers options until something else follows.
fn options(
    common: &Common,
    link: &Link,
    handshake: &mut Handshake<'_>,
    input: &mut Input,
    deadline: Instant,
) -> io::Result<Step> {
    let transport = link.transport();
    let mut bytes: u64 = 0;
    for _ in 0..OPTIONS {
        let head = input.need(transport, OPTION_HEAD, Some(deadline))?;
        let head = head.first_chunk().ok_or(io::ErrorKind::UnexpectedEof)?;
        let head = OptionHead::parse(head).map_err(io::Error::other)?;
        input.consume(OPTION_HEAD);
        bytes = bytes.saturating_add(head.len.into()).saturating_add(OPTION_HEAD as u64);
        if bytes > BYTES || link.is_stopping() {
            return Ok(Step::End);
        }
        let mut out = Vec::new();
        let step = if head.len > DATA {
            input.skip(transport, head.len.into(), Some(deadline))?;
            handshake.too_big(head.option, &mut out)
        } else {
            let len = usize::try_from(head.len).unwrap_or(usize::MAX);
            let data = input.need(transport, len, Some(deadline))?;
            let step = handshake.option(head.option, data, &mut out);
            input.consume(len);
            step
        };
        if let Step::Transmit(agreed) = &step
            && !left_nothing_behind(common, agreed, deadline)
        {
            return Ok(Step::End);
        }
        send(transport, &out, deadline)?;
        if step != Step::Next {
            return Ok(step);
        }
    }
    Ok(Step::End)
}

/// Waits for connections whose clients are gone, if the export can be written to: one of their writes that came
/// after those of this client would destroy what it has written (trap W-91). Whether that is over.
fn left_nothing_behind(common: &Common, agreed: &Agreed, deadline: Instant) -> bool {
    let Some(export) = common.exports.get(agreed.export).filter(|export| !export.is_read_only())
    else {
        return true;
    };
    let links = export.links();
    let gone = links.iter().filter(|link| link.is_gone() || link.transport().peer_is_gone());
    gone.into_iter().all(|link| link.wait_until_finished(deadline))
}

fn deadline(timeout: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(timeout).unwrap_or(now)
}

fn send(transport: &dyn Transport, bytes: &[u8], deadline: Instant) -> io::Result<()> {
    let mut left = bytes;
    while !left.is_empty() {
        let sent = transport.send(&[IoSlice::new(left)], Wait::Until(deadline))?;
        left = left.split_at(sent.min(left.len())).1;
    }
    transport.flush(Wait::Until(deadline))
}
