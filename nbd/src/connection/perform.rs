//! Does requests and writes their replies.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Instant;

use qcow::codec::is_zero;

use super::session::Session;
use crate::backend::{Backend, Failed, Result, Zero};
use crate::budget::{Buffer, OWN, lock};
use crate::context::{Context, Extents, MAX_EXTENTS};
use crate::link::{Part, Reply};
use crate::wire::{
    ChunkKind, ChunkStatus, Command, CommandFlags, Errno, Headers, Request, write_chunk_head,
    write_error, write_hole, write_simple, write_status,
};

/// Zeros of a long read are found in pieces of this many bytes.
const GRAIN: usize = 32 << 10;
/// Bytes that a client says it will read, of which so many are read.
const AHEAD: u64 = 64 << 20;
/// Bytes of disk that one block status request is about; for the rest, the client asks again.
const STATUS_SPAN: u64 = 256 << 30;

/// The end of a request that has no content, or failed.
fn done(session: &Session, request: &Request, result: &Result<()>, out: &mut Vec<u8>) {
    let headers = session.headers();
    match result {
        Err(failed) => {
            session.stats().failed(request);
            session.common().stats.keep(failed);
            error(session, request, failed, out);
        }
        Ok(()) if headers == Headers::Extended => {
            write_chunk_head(out, headers, last(request), ChunkKind::None, 0);
        }
        Ok(()) => write_simple(out, request.cookie, None),
    }
}

fn error(session: &Session, request: &Request, failed: &Failed, out: &mut Vec<u8>) {
    if session.headers() == Headers::Simple {
        write_simple(out, request.cookie, Some(failed.errno));
    } else {
        write_error(out, session.headers(), last(request), failed.errno, &failed.message);
    }
}

fn last(request: &Request) -> ChunkStatus {
    ChunkStatus { cookie: request.cookie, offset: request.offset, done: true }
}

fn backend(session: &Session) -> Result<&dyn Backend> {
    let export = session.export().ok_or_else(|| Failed::new(Errno::Shutdown, "no export"))?;
    Ok(export.backend())
}

/// Answers a request that cannot be done.
pub(super) fn refused(session: &Session, request: &Request, failed: &Failed, out: &mut Vec<u8>) {
    session.stats().failed(request);
    error(session, request, failed, out);
}

/// Does a request whose reply is written at once.
pub(super) fn short(session: &Session, request: &Request, asked: Instant, out: &mut Vec<u8>) {
    match request.command {
        Command::Read => read_short(session, request, out),
        Command::BlockStatus => status(session, request, out),
        _ => {
            let result = change(session, request);
            done(session, request, &result, out);
        }
    }
    session.stats().done(request, asked.elapsed());
}

/// Does a request that has neither payload nor content.
fn change(session: &Session, request: &Request) -> Result<()> {
    let backend = backend(session)?;
    let (at, len) = (request.offset, request.len);
    match request.command {
        Command::Flush => return backend.flush(),
        Command::Cache => return ahead(session, at, len.min(AHEAD)),
        Command::Trim => backend.discard(at, len)?,
        Command::WriteZeroes if len > 0 => backend.write_zeroes(
            at,
            len,
            Zero {
                unmap: !request.flags.contains(CommandFlags::NO_HOLE),
                fast: request.flags.contains(CommandFlags::FAST_ZERO),
            },
        )?,
        _ => {}
    }
    durable(backend, request)
}

fn durable(backend: &dyn Backend, request: &Request) -> Result<()> {
    if request.flags.contains(CommandFlags::FUA) { backend.flush() } else { Ok(()) }
}

/// Reads a range so that the system has it in memory.
fn ahead(session: &Session, at: u64, len: u64) -> Result<()> {
    let backend = backend(session)?;
    let mut buffer = session.common().budget.buffer(OWN);
    let end = at.saturating_add(len);
    let mut now = at;
    let mut result = Ok(());
    while now < end && result.is_ok() && !session.link().is_gone() {
        let piece = usize::try_from(end.saturating_sub(now)).unwrap_or(OWN).min(OWN);
        result = backend.read_at(buffer.get_mut(..piece).unwrap_or_default(), now);
        now = now.saturating_add(piece as u64);
    }
    result
}

/// Writes a payload.
pub(super) fn write(
    session: &Session,
    request: &Request,
    payload: &[u8],
    asked: Instant,
    out: &mut Vec<u8>,
) {
    let write = || {
        let backend = backend(session)?;
        backend.write_at(payload, request.offset)?;
        durable(backend, request)
    };
    let result = write();
    session.stats().done(request, asked.elapsed());
    done(session, request, &result, out);
}

/// A payload that is written piece by piece, as it comes.
pub(super) struct Pieces<'a> {
    session: &'a Session,
    request: Request,
    written: u64,
    result: Result<()>,
    start: Instant,
}

impl<'a> Pieces<'a> {
    pub(super) fn new(session: &'a Session, request: Request) -> Self {
        Self { session, request, written: 0, result: Ok(()), start: Instant::now() }
    }

    /// The length of the next piece, if there is one.
    pub(super) fn next_len(&self) -> Option<usize> {
        let left = self.request.len.saturating_sub(self.written).min(OWN as u64);
        usize::try_from(left).ok().filter(|len| *len > 0)
    }

    /// Writes the next piece, unless an earlier one failed.
    pub(super) fn write(&mut self, piece: &[u8]) {
        let at = self.request.offset.saturating_add(self.written);
        if self.result.is_ok() {
            self.result = backend(self.session).and_then(|backend| backend.write_at(piece, at));
        }
        self.written = self.written.saturating_add(piece.len() as u64);
    }

    /// Answers.
    pub(super) fn end(self, out: &mut Vec<u8>) {
        let durable = || durable(backend(self.session)?, &self.request);
        let result = self.result.and_then(|()| durable());
        self.session.stats().done(&self.request, self.start.elapsed());
        done(self.session, &self.request, &result, out);
    }
}

/// Reads, with the content right behind its head.
fn read_short(session: &Session, request: &Request, out: &mut Vec<u8>) {
    let headers = session.headers();
    let begin = out.len();
    let len = u32::try_from(request.len).unwrap_or(u32::MAX);
    if headers == Headers::Simple {
        write_simple(out, request.cookie, None);
    } else if len == 0 {
        return write_chunk_head(out, headers, last(request), ChunkKind::None, 0);
    } else {
        write_chunk_head(out, headers, last(request), ChunkKind::Data, len.saturating_add(8));
        out.extend(request.offset.to_be_bytes());
    }
    let content = out.len();
    out.resize(content.saturating_add(usize::try_from(len).unwrap_or_default()), 0);
    let bytes = out.get_mut(content..).unwrap_or_default();
    match backend(session).and_then(|backend| backend.read_at(bytes, request.offset)) {
        Err(failed) => {
            out.truncate(begin);
            done(session, request, &Err(failed), out);
        }
        Ok(()) if headers > Headers::Simple && is_zero(bytes) => {
            out.truncate(begin);
            write_hole(out, headers, last(request), request.offset, len);
        }
        Ok(()) => {}
    }
}

/// Reads into memory that the reply has a permit for.
pub(super) fn read(session: &Session, request: &Request, asked: Instant, reply: &mut Reply) {
    let len = usize::try_from(request.len).unwrap_or_default();
    reply.data = session.common().budget.buffer(len);
    let result = backend(session).and_then(|b| b.read_at(&mut reply.data, request.offset));
    match result {
        Err(failed) => {
            reply.data = Buffer::default();
            done(session, request, &Err(failed), &mut reply.heads);
        }
        Ok(()) if session.headers() == Headers::Simple => {
            write_simple(&mut reply.heads, request.cookie, None);
            reply.parts.push(Part { head: reply.heads.len(), skip: 0, data: len });
        }
        Ok(()) if len == 0 => {
            let (heads, kind) = (&mut reply.heads, ChunkKind::None);
            write_chunk_head(heads, session.headers(), last(request), kind, 0);
        }
        Ok(()) => {
            let whole = request.flags.contains(CommandFlags::DF);
            chunks(session.headers(), last(request), request.offset, whole, reply);
        }
    }
    session.stats().done(request, asked.elapsed());
}

/// Writes the heads of what was read: runs of zeros are holes, unless it is to be one chunk.
fn chunks(headers: Headers, status: ChunkStatus, at: u64, whole: bool, reply: &mut Reply) {
    let grain = if whole { reply.data.len().max(1) } else { GRAIN };
    // Runs of one kind.
    let mut runs: Vec<(bool, usize)> = Vec::new();
    for piece in reply.data.chunks(grain) {
        let zero = is_zero(piece);
        match runs.last_mut() {
            Some((kind, len)) if *kind == zero => *len = len.saturating_add(piece.len()),
            _ => runs.push((zero, piece.len())),
        }
    }
    let mut now = at;
    let mut pending = 0;
    let count = runs.len();
    for (number, (zero, len)) in (1..).zip(runs) {
        let begin = reply.heads.len();
        let status = ChunkStatus { done: status.done && number == count, ..status };
        let long = u32::try_from(len).unwrap_or(u32::MAX);
        if zero {
            write_hole(&mut reply.heads, headers, status, now, long);
            // Its bytes are left out before the next ones.
            let head = reply.heads.len().saturating_sub(begin);
            reply.parts.push(Part { head, skip: 0, data: 0 });
            pending = len;
        } else {
            write_chunk_head(
                &mut reply.heads,
                headers,
                status,
                ChunkKind::Data,
                long.saturating_add(8),
            );
            reply.heads.extend(now.to_be_bytes());
            let skip = std::mem::take(&mut pending);
            let head = reply.heads.len().saturating_sub(begin);
            reply.parts.push(Part { head, skip, data: len });
        }
        now = now.saturating_add(len as u64);
    }
}

/// Whether the reply to a long read may come in pieces.
pub(super) fn in_pieces(session: &Session, request: &Request) -> bool {
    session.headers() > Headers::Simple && !request.flags.contains(CommandFlags::DF)
}

/// Reads a long range in pieces that the pool does at the same time; the last that is done ends the reply.
pub(super) fn read_in_pieces(session: &Arc<Session>, request: Request, asked: Instant) {
    let count = usize::try_from(request.len.div_ceil(OWN as u64)).unwrap_or(usize::MAX);
    // One more for this loop: the end comes behind the last piece.
    let left = Arc::new((AtomicUsize::new(count.saturating_add(1)), std::sync::Mutex::new(Ok(()))));
    let finish = move |session: &Arc<Session>,
                       left: &(AtomicUsize, std::sync::Mutex<Result<()>>)| {
        if left.0.fetch_sub(1, SeqCst) != 1 {
            return;
        }
        let result = std::mem::replace(&mut *lock(&left.1), Ok(()));
        let mut reply = Reply { _slot: Some(session.link().slot_beyond()), ..Reply::default() };
        match &result {
            Ok(()) => write_chunk_head(
                &mut reply.heads,
                session.headers(),
                last(&request),
                ChunkKind::None,
                0,
            ),
            Err(_) => done(session, &request, &result, &mut reply.heads),
        }
        session.stats().done(&request, asked.elapsed());
        session.link().out().push(reply);
    };
    let mut at = request.offset;
    let end = request.offset.saturating_add(request.len);
    while at < end {
        let len = usize::try_from(end.saturating_sub(at)).unwrap_or(OWN).min(OWN);
        let slot = session.link().slot();
        let Some(permit) = session.permit(len) else { return };
        let (session, left, place) = (Arc::clone(session), Arc::clone(&left), at);
        let pool = Arc::clone(&session);
        pool.common().pool.run(Box::new(move || {
            if session.link().is_gone() {
                return;
            }
            let mut reply = Reply { _slot: Some(slot), permit: Some(permit), ..Reply::default() };
            reply.data = session.common().budget.buffer(len);
            match backend(&session).and_then(|b| b.read_at(&mut reply.data, place)) {
                Ok(()) => {
                    let status = ChunkStatus { done: false, ..last(&request) };
                    chunks(session.headers(), status, place, false, &mut reply);
                    session.link().out().push(reply);
                }
                Err(failed) => *lock(&left.1) = Err(failed),
            }
            finish(&session, &left);
        }));
        at = at.saturating_add(len as u64);
    }
    finish(session, &left);
}

/// Extents that one context of this request can have.
fn most_extents(request: &Request, contexts: usize) -> usize {
    if request.flags.contains(CommandFlags::REQ_ONE) {
        return 1;
    }
    MAX_EXTENTS.checked_div(contexts).unwrap_or(1).max(1)
}

/// Memory that the reply to a block status request may take.
pub(super) fn status_room(request: &Request) -> usize {
    const EXTENT: usize = 16;
    most_extents(request, 1).saturating_mul(EXTENT)
}

/// Tells what a range is: one chunk for each context.
fn status(session: &Session, request: &Request, out: &mut Vec<u8>) {
    let begin = out.len();
    let numbers = session.contexts();
    let most = most_extents(request, numbers.len());
    let mut tell = || {
        let export = session.export().ok_or_else(|| Failed::new(Errno::Shutdown, "no export"))?;
        for (nth, number) in (1..).zip(numbers) {
            let index = usize::try_from(*number).unwrap_or(usize::MAX);
            let context = export.contexts().get(index).unwrap_or(&Context::Allocation);
            let mut found = Extents::new(most);
            let len = request.len.min(STATUS_SPAN);
            export.backend().extents(context, request.offset, len, &mut found)?;
            let list = found.into_list();
            if list.is_empty() {
                return Err(Failed::new(Errno::Io, "nothing is known about the range"));
            }
            let done = nth == numbers.len();
            let status = ChunkStatus { done, ..last(request) };
            write_status(out, session.headers(), status, *number, &list);
        }
        Ok(())
    };
    if let Err(failed) = tell() {
        out.truncate(begin);
        done(session, request, &Err(failed), out);
    }
}
