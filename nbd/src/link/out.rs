//! Replies on their way out: any thread adds one, one thread at a time sends.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use super::flight::Slot;
use super::stream::Stream;
use crate::budget::{Buffer, Permit, lock};
use crate::transport::{Transport, Wait};

/// Slices that are sent at once.
const SLICES: usize = 64;
/// A batch of small replies waits while more than this is to be sent.
const QUEUED: usize = 512 << 10;

/// One or more whole replies, and what they hold until they are sent.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    /// Everything but the bytes of long reads.
    pub(crate) heads: Vec<u8>,
    /// What was read.
    pub(crate) data: Buffer,
    /// How they alternate; without any, the heads alone.
    pub(crate) parts: Vec<Part>,
    pub(crate) permit: Option<Permit>,
    pub(crate) _slot: Option<Slot>,
    /// Bytes that are sent already.
    pub(crate) sent: usize,
}

/// Bytes of the heads, and behind them of the data, of which some are left out first.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    pub(crate) head: usize,
    pub(crate) skip: usize,
    pub(crate) data: usize,
}

impl Reply {
    /// A reply that is its heads alone.
    pub(crate) fn of(heads: Vec<u8>) -> Self {
        Self { heads, ..Self::default() }
    }

    fn len(&self) -> usize {
        if self.parts.is_empty() {
            return self.heads.len();
        }
        let part = |part: &Part| part.head.saturating_add(part.data);
        self.parts.iter().map(part).fold(0, usize::saturating_add)
    }

    /// Calls `each` with what is still to be sent.
    fn slices<'a>(&'a self, each: &mut impl FnMut(&'a [u8])) {
        let mut skip = self.sent;
        let mut add = |bytes: &'a [u8]| {
            let (_, rest) = bytes.split_at(skip.min(bytes.len()));
            skip = skip.saturating_sub(bytes.len());
            if !rest.is_empty() {
                each(rest);
            }
        };
        if self.parts.is_empty() {
            return add(&self.heads);
        }
        let (mut heads, mut data) = (&self.heads[..], &self.data[..]);
        for part in &self.parts {
            let (head, later) = heads.split_at(part.head.min(heads.len()));
            let skipped = data.split_at(part.skip.min(data.len())).1;
            let (bytes, rest) = skipped.split_at(part.data.min(skipped.len()));
            (heads, data) = (later, rest);
            add(head);
            add(bytes);
        }
    }
}

/// The queue of a connection.
#[derive(Debug)]
pub(crate) struct Out {
    stream: Arc<Stream>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Reply>,
    queued: usize,
    /// A thread sends, or the writer is to.
    sending: bool,
    /// The writer is to.
    handed: bool,
    failed: bool,
    closed: bool,
    writer: Option<JoinHandle<()>>,
}

impl Out {
    pub(super) fn new(stream: Arc<Stream>) -> Self {
        Self { stream, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Adds a reply. If nobody sends, this thread does, as long as the other side reads.
    pub(crate) fn push(self: &Arc<Self>, reply: Reply) {
        if self.add(reply) {
            self.drain(Wait::No);
        }
    }

    /// Adds a reply and waits until there is room for more.
    pub(crate) fn push_waiting(self: &Arc<Self>, reply: Reply) {
        if self.add(reply) {
            return self.drain(Wait::Forever);
        }
        let mut state = lock(&self.state);
        while state.queued > QUEUED && !state.failed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether this thread is to send.
    fn add(&self, reply: Reply) -> bool {
        let mut state = lock(&self.state);
        if state.failed {
            drop(state);
            return false;
        }
        state.queued = state.queued.saturating_add(reply.len());
        state.queue.push_back(reply);
        !std::mem::replace(&mut state.sending, true)
    }

    /// Sends until nothing is left, or the other side does not read and the writer has to go on.
    fn drain(self: &Arc<Self>, wait: Wait) {
        loop {
            let mut taken: VecDeque<Reply> = {
                let mut state = lock(&self.state);
                if state.queue.is_empty() || state.failed {
                    let left = std::mem::take(&mut state.queue);
                    (state.sending, state.queued) = (false, 0);
                    self.changed.notify_all();
                    drop(state);
                    drop(left);
                    return;
                }
                let most = SLICES.min(state.queue.len());
                state.queue.drain(..most).collect()
            };
            match send(self.stream.transport(), &mut taken, wait) {
                Ok(sent) => {
                    let mut state = lock(&self.state);
                    state.queued = state.queued.saturating_sub(sent);
                    self.changed.notify_all();
                }
                Err((error, sent)) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut state = lock(&self.state);
                    state.queued = state.queued.saturating_sub(sent);
                    while let Some(reply) = taken.pop_back() {
                        state.queue.push_front(reply);
                    }
                    state.handed = true;
                    if state.writer.is_none() && !self.start_writer(&mut state) {
                        drop(state);
                        self.fail();
                        self.stream.cut();
                    }
                    self.changed.notify_all();
                    return;
                }
                Err(_) => {
                    self.fail();
                    self.stream.cut();
                }
            }
        }
    }

    /// Starts the thread that waits for a client that does not read.
    fn start_writer(self: &Arc<Self>, state: &mut State) -> bool {
        let out = Arc::clone(self);
        let writer = thread::Builder::new().name("nbd-writer".to_owned());
        state.writer = writer.spawn(move || out.write()).ok();
        state.writer.is_some()
    }

    fn write(self: &Arc<Self>) {
        loop {
            let mut state = lock(&self.state);
            while !state.handed && !state.closed {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if !std::mem::take(&mut state.handed) {
                return;
            }
            drop(state);
            self.drain(Wait::Forever);
        }
    }

    /// Forgets what is to be sent, now and later: nobody receives it.
    pub(crate) fn fail(&self) {
        let left = {
            let mut state = lock(&self.state);
            state.failed = true;
            state.queued = 0;
            self.changed.notify_all();
            std::mem::take(&mut state.queue)
        };
        drop(left);
    }

    /// Waits until everything is sent, or cannot be.
    pub(crate) fn wait_until_sent(&self) {
        let mut state = lock(&self.state);
        while state.sending && !state.failed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends the writer, if there is one.
    pub(crate) fn close(&self) {
        let writer = {
            let mut state = lock(&self.state);
            state.closed = true;
            self.changed.notify_all();
            state.writer.take()
        };
        if let Some(writer) = writer {
            let _ = writer.join();
        }
    }
}

/// Sends all of `replies`; those that are sent are taken off. On an error, with how many bytes were sent.
fn send(
    transport: &dyn Transport,
    replies: &mut VecDeque<Reply>,
    wait: Wait,
) -> Result<usize, (io::Error, usize)> {
    let mut total: usize = 0;
    while !replies.is_empty() {
        let sent = {
            let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(SLICES);
            for reply in &*replies {
                reply.slices(&mut |bytes| {
                    if slices.len() < SLICES {
                        slices.push(IoSlice::new(bytes));
                    }
                });
                if slices.len() >= SLICES {
                    break;
                }
            }
            transport.send(&slices, wait).map_err(|error| (error, total))?
        };
        total = total.saturating_add(sent);
        let mut left = sent;
        while let Some(first) = replies.front_mut() {
            let rest = first.len().saturating_sub(first.sent);
            if left < rest {
                first.sent = first.sent.saturating_add(left);
                break;
            }
            left = left.saturating_sub(rest);
            replies.pop_front();
        }
    }
    transport.flush(wait).map_err(|error| (error, total))?;
    Ok(total)
}
