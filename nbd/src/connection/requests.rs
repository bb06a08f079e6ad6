//! Takes requests off the stream, and has them done: here, or by the pool.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::common::End;
use super::input::Input;
use super::perform;
use super::session::Session;
use crate::backend::Failed;
use crate::budget::OWN;
use crate::link::Reply;
use crate::wire::{Command, CommandFlags, Errno, Headers, MAX_PAYLOAD, Request};

/// Requests up to this length may be done by the thread that takes them.
const SHORT: u64 = 256 << 10;
/// Replies up to this length are sent together; payloads up to this length are written from where they were received.
const SMALL: u64 = 16 << 10;
/// Replies that are sent together, in bytes.
const BATCH: usize = 64 << 10;
/// A payload that is too long is taken off the stream up to this length; behind a longer one the connection ends.
const SKIPPED: u64 = 2 * MAX_PAYLOAD as u64;

/// Takes requests until the client goes.
pub(super) fn take(session: &Arc<Session>, input: Input) -> End {
    let mut taker = Taker { session, input, batch: Vec::new() };
    let end = loop {
        match taker.next() {
            Ok(None) => {}
            Ok(Some(end)) => break end,
            Err(_) if session.link().is_stopping() => break End::Orderly,
            Err(_) => break End::Lost,
        }
    };
    if end == End::Orderly {
        taker.send_batch();
    }
    end
}

struct Taker<'a> {
    session: &'a Arc<Session>,
    input: Input,
    /// Replies that were not sent yet.
    batch: Vec<u8>,
}

impl Taker<'_> {
    /// Takes one request and has it done. How it ended, if it did.
    fn next(&mut self) -> io::Result<Option<End>> {
        let session = self.session;
        let link = session.link();
        if link.is_stopping() {
            return Ok(Some(End::Orderly));
        }
        let parsed = Request::parse(session.headers(), self.input.buffered());
        let Some((request, used)) = parsed.map_err(io::Error::other)? else {
            self.send_batch();
            let received = self.input.fill(link.transport(), None)?;
            let end = if link.is_stopping() { End::Orderly } else { End::Lost };
            return Ok((received == 0).then_some(end));
        };
        self.input.consume(used);
        if request.command == Command::Disconnect {
            return Ok(Some(End::Orderly));
        }
        let payload = request.payload(session.headers());
        if let Err(failed) = check(session, &request) {
            if payload > SKIPPED {
                return Ok(Some(End::Lost));
            }
            // Whatever is wrong, the payload is not the next request (traps W-95, W-96).
            self.input.skip(link.transport(), payload, None)?;
            perform::refused(session, &request, &failed, &mut self.batch);
        } else if request.command == Command::Write {
            self.write(request)?;
        } else {
            self.start(request);
        }
        if self.batch.len() >= BATCH {
            self.send_batch();
        }
        Ok(None)
    }

    fn send_batch(&mut self) {
        if !self.batch.is_empty() {
            let batch = std::mem::replace(&mut self.batch, Vec::with_capacity(BATCH));
            self.session.link().out().push_waiting(Reply::of(batch));
        }
    }

    /// Whether a request of this length is to be done by this thread.
    fn is_short(&self, request: &Request) -> bool {
        let durable = request.flags.contains(CommandFlags::FUA)
            && !matches!(request.command, Command::Read | Command::BlockStatus);
        request.len <= SHORT && !durable && self.session.link().is_quick()
    }

    fn write(&mut self, request: Request) -> io::Result<()> {
        let session = self.session;
        let transport = session.link().transport();
        let len = usize::try_from(request.len).unwrap_or(usize::MAX);
        let short = self.is_short(&request);
        if short && request.len <= SMALL {
            if self.input.buffered().len() < len {
                self.send_batch();
            }
            let payload = self.input.need(transport, len, None)?;
            let start = Instant::now();
            perform::write(session, &request, payload, start, &mut self.batch);
            session.link().took(start.elapsed(), request.len);
            self.input.consume(len);
            return Ok(());
        }
        self.send_batch();
        if short {
            let mut payload = session.common().budget.buffer(len);
            self.input.read(transport, &mut payload)?;
            let start = Instant::now();
            perform::write(session, &request, &payload, start, &mut self.batch);
            session.link().took(start.elapsed(), request.len);
            return Ok(());
        }
        let slot = session.link().slot();
        let Some(permit) = session.permit(len.min(OWN)) else {
            return Err(io::ErrorKind::ConnectionAborted.into());
        };
        let mut payload = session.common().budget.buffer(len.min(OWN));
        if len > OWN {
            // In pieces, so that a client that is slow to send holds no more than others.
            let mut pieces = perform::Pieces::new(session, request);
            while let Some(piece) = pieces.next_len() {
                let piece = payload.get_mut(..piece).unwrap_or_default();
                self.input.read(transport, piece)?;
                pieces.write(piece);
            }
            pieces.end(&mut self.batch);
            return Ok(());
        }
        self.input.read(transport, &mut payload)?;
        let asked = Instant::now();
        let session = Arc::clone(session);
        self.session.common().pool.run(Box::new(move || {
            if session.link().is_gone() {
                return;
            }
            let mut reply = Reply { _slot: Some(slot), ..Reply::default() };
            let start = Instant::now();
            perform::write(&session, &request, &payload, asked, &mut reply.heads);
            if !request.flags.contains(CommandFlags::FUA) {
                session.link().took(start.elapsed(), request.len);
            }
            drop((payload, permit));
            session.link().out().push(reply);
        }));
        Ok(())
    }

    /// Does a request without payload, or gives it to the pool.
    fn start(&mut self, request: Request) {
        let session = self.session;
        let asked = Instant::now();
        let status = request.command == Command::BlockStatus;
        let inline =
            matches!(request.command, Command::Read | Command::WriteZeroes | Command::Trim);
        if (inline && self.is_short(&request)) || (status && session.link().is_quick()) {
            let long = request.command == Command::Read && request.len > SMALL;
            if long {
                self.send_batch();
                let mut reply = Reply::default();
                perform::read(session, &request, asked, &mut reply);
                session.link().took(asked.elapsed(), request.len);
                session.link().out().push_waiting(reply);
            } else {
                perform::short(session, &request, asked, &mut self.batch);
                session.link().took(asked.elapsed(), SMALL);
            }
            return;
        }
        // What was done already is not to wait for it.
        self.send_batch();
        match request.command {
            Command::Read if request.len > OWN as u64 && perform::in_pieces(session, &request) => {
                perform::read_in_pieces(session, request, asked);
            }
            Command::Read | Command::BlockStatus => self.start_read(request, asked),
            _ => {
                let slot = session.link().slot();
                let session = Arc::clone(session);
                self.session.common().pool.run(Box::new(move || {
                    if session.link().is_gone() {
                        return;
                    }
                    let mut reply = Reply { _slot: Some(slot), ..Reply::default() };
                    perform::short(&session, &request, asked, &mut reply.heads);
                    session.link().out().push(reply);
                }));
            }
        }
    }

    /// Gives the pool a request whose reply takes memory.
    fn start_read(&mut self, request: Request, asked: Instant) {
        let session = self.session;
        let len = match request.command {
            Command::BlockStatus => perform::status_room(&request),
            _ => usize::try_from(request.len).unwrap_or(usize::MAX),
        };
        let slot = session.link().slot();
        let Some(permit) = session.permit(len) else {
            let failed = Failed::new(Errno::Memory, "too much is being read at once");
            return perform::refused(session, &request, &failed, &mut self.batch);
        };
        let session = Arc::clone(session);
        self.session.common().pool.run(Box::new(move || {
            if session.link().is_gone() {
                return;
            }
            let mut reply = Reply { _slot: Some(slot), permit: Some(permit), ..Reply::default() };
            let start = Instant::now();
            let timed = request.command != Command::Read || request.len <= SHORT;
            match request.command {
                Command::Read => perform::read(&session, &request, asked, &mut reply),
                _ => perform::short(&session, &request, asked, &mut reply.heads),
            }
            if timed {
                let len = if request.command == Command::Read { request.len } else { 0 };
                session.link().took(start.elapsed(), len);
            }
            let len = reply.heads.len().saturating_add(reply.data.len());
            if let Some(permit) = &mut reply.permit {
                permit.shrink(len);
            }
            session.link().out().push(reply);
        }));
    }
}

/// Whether a request can be done at all.
fn check(session: &Session, request: &Request) -> Result<(), Failed> {
    let Some(export) = session.export() else {
        return Err(Failed::new(Errno::Shutdown, "there is no export"));
    };
    let invalid = |message: &str| Err(Failed::new(Errno::Invalid, message));
    let extended = session.headers() == Headers::Extended;
    let allowed = CommandFlags::FUA
        | match request.command {
            Command::Read if session.headers() > Headers::Simple => CommandFlags::DF,
            Command::Write if extended => CommandFlags::PAYLOAD_LEN,
            Command::WriteZeroes => CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO,
            Command::BlockStatus => CommandFlags::REQ_ONE,
            _ => CommandFlags::empty(),
        };
    let writes = matches!(request.command, Command::Write | Command::Trim | Command::WriteZeroes);
    if let Command::Other(_) | Command::Disconnect = request.command {
        return invalid("the command is unknown");
    }
    if writes && export.is_read_only() {
        return Err(Failed::new(Errno::Permission, "the export is read-only"));
    }
    if !allowed.contains(request.flags) {
        return invalid("a flag does not belong to the command");
    }
    if request.command == Command::Flush {
        return Ok(());
    }
    if request.offset.checked_add(request.len).is_none_or(|end| end > export.size()) {
        let past = "the range passes the end of the disk";
        return match request.command {
            Command::Write | Command::WriteZeroes => Err(Failed::new(Errno::NoSpace, past)),
            _ => invalid(past),
        };
    }
    let data = matches!(request.command, Command::Read | Command::Write);
    if data && request.len > MAX_PAYLOAD.into() {
        return invalid("more than 32 MiB at once");
    }
    if request.command == Command::BlockStatus {
        if session.contexts().is_empty() {
            return invalid("no metadata context was agreed on");
        }
        if request.len == 0 {
            return invalid("a range without bytes has no status");
        }
    }
    Ok(())
}
