//! Requests that are submitted and answered later, for asynchronous callers: a bounded number of threads carries them
//! out, and a [`Ticket`] is a [`Future`] that any runtime can await, or a thread can wait for.
//!
//! ```
//! # use std::sync::Arc;
//! # use qcow::{chain::Format, io::MemoryStorage};
//! use qcow::disk::{Disk, WriteOptions};
//! use qcow::disk::queue::{Queue, Request};
//!
//! # let storage = Arc::new(MemoryStorage::new(vec![0; 1 << 20]));
//! # let disk = Disk::from_storage(storage, Format::Raw, WriteOptions::new())?;
//! let queue = Queue::new(Arc::new(disk), 4)?;
//! let writes: Vec<_> = (0..8)
//!     .map(|n| queue.submit(Request::Write { at: n * 4096, buf: vec![n as u8; 4096] }))
//!     .collect();
//! for write in writes {
//!     write.wait()?; // or `write.await?`
//! }
//! queue.submit(Request::Flush).wait()?;
//! let read = queue.submit(Request::Read { at: 5 * 4096, buf: vec![0; 4096] });
//! assert_eq!(read.wait()?, [5; 4096]);
//! # Ok::<(), qcow::Error>(())
//! ```
//!
//! Requests that are in the queue at the same time are carried out in any order, as by a disk: await a write before you
//! submit what is to come after it. A flush makes durable what was answered before it was submitted.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;

use super::Disk;
use crate::io::Zeroes;
use crate::sync::{Condvar, Mutex, lock};
use crate::{Error, Result};

/// What a disk is asked to do. Buffers come back with the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Request {
    /// [`Disk::read_at`], as many bytes as `buf` has.
    Read {
        /// Where it starts on the disk, in bytes.
        at: u64,
        /// What is filled.
        buf: Vec<u8>,
    },
    /// [`Disk::write_at`].
    Write {
        /// Where it starts on the disk, in bytes.
        at: u64,
        /// What is written.
        buf: Vec<u8>,
    },
    /// [`Disk::write_durable_at`].
    WriteDurable {
        /// Where it starts on the disk, in bytes.
        at: u64,
        /// What is written.
        buf: Vec<u8>,
    },
    /// [`Disk::write_zeroes`].
    Zeroes {
        /// Where it starts on the disk, in bytes.
        at: u64,
        /// Its length in bytes.
        len: u64,
        /// Whether space is kept.
        how: Zeroes,
    },
    /// [`Disk::discard`].
    Discard {
        /// Where it starts on the disk, in bytes.
        at: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// [`Disk::flush`].
    Flush,
}

/// A disk and the threads that carry out what is submitted. Dropping it waits until all that was submitted is done; it does
/// not flush.
#[derive(Debug)]
pub struct Queue {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    disk: Arc<Disk>,
    waiting: Mutex<Waiting>,
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    requests: VecDeque<(Request, Answering)>,
    closed: bool,
}

impl Queue {
    /// Starts `threads` threads, one at least, for `disk`: so many requests are carried out at once. How many may wait is the
    /// caller's business, who holds their tickets.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io) if a thread cannot be started.
    pub fn new(disk: Arc<Disk>, threads: usize) -> Result<Self> {
        let shared =
            Arc::new(Shared { disk, waiting: Mutex::default(), arrived: Condvar::default() });
        let mut queue = Self { shared, threads: Vec::new() };
        for _ in 0..threads.max(1) {
            let shared = Arc::clone(&queue.shared);
            let thread = std::thread::Builder::new().name("disk queue".into());
            let thread = thread.spawn(move || shared.work());
            let failed = |error| Error::io("could not start a thread", error);
            queue.threads.push(thread.map_err(failed)?);
        }
        Ok(queue)
    }

    /// The disk, for what is not submitted.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.shared.disk
    }

    /// Has a request carried out. Returns at once; whether the ticket is awaited or dropped changes nothing.
    pub fn submit(&self, request: Request) -> Ticket {
        let answer = Arc::new(Answer::default());
        let answering = Answering(Some(Arc::clone(&answer)));
        lock(&self.shared.waiting).requests.push_back((request, answering));
        self.shared.arrived.notify_one();
        Ticket(answer)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        lock(&self.shared.waiting).closed = true;
        self.shared.arrived.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn work(&self) {
        while let Some((request, answering)) = self.next() {
            answering.answer(carry_out(&self.disk, request));
        }
    }

    fn next(&self) -> Option<(Request, Answering)> {
        let mut waiting = lock(&self.waiting);
        loop {
            if let Some(next) = waiting.requests.pop_front() {
                return Some(next);
            }
            if waiting.closed {
                return None;
            }
            waiting = self.arrived.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn carry_out(disk: &Disk, request: Request) -> Result<Vec<u8>> {
    match request {
        Request::Read { at, mut buf } => disk.read_at(&mut buf, at).map(|()| buf),
        Request::Write { at, buf } => disk.write_at(&buf, at).map(|()| buf),
        Request::WriteDurable { at, buf } => disk.write_durable_at(&buf, at).map(|()| buf),
        Request::Zeroes { at, len, how } => disk.write_zeroes(at, len, how).map(|()| Vec::new()),
        Request::Discard { at, len } => disk.discard(at, len).map(|()| Vec::new()),
        Request::Flush => disk.flush().map(|()| Vec::new()),
    }
}

#[derive(Debug, Default)]
struct Answer {
    state: Mutex<State>,
    answered: Condvar,
}

#[derive(Debug, Default)]
struct State {
    result: Option<Result<Vec<u8>>>,
    waker: Option<Waker>,
}

impl Answer {
    fn give(&self, result: Result<Vec<u8>>) {
        let mut state = lock(&self.state);
        state.result = Some(result);
        let waker = state.waker.take();
        drop(state);
        self.answered.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Whoever has this answers, also by dropping it: nobody waits for a thread that panicked.
#[derive(Debug)]
struct Answering(Option<Arc<Answer>>);

impl Answering {
    fn answer(mut self, result: Result<Vec<u8>>) {
        if let Some(answer) = self.0.take() {
            answer.give(result);
        }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        if let Some(answer) = self.0.take() {
            answer.give(Err(Error::internal("a request to a disk was not carried out")));
        }
    }
}

/// The answer to a request, when it is there: the buffer that came with it.
#[derive(Debug)]
#[must_use = "it tells whether the request succeeded"]
pub struct Ticket(Arc<Answer>);

impl Ticket {
    /// Waits for the answer.
    ///
    /// # Errors
    /// Those of the method of [`Disk`] that the request is for.
    pub fn wait(self) -> Result<Vec<u8>> {
        let mut state = lock(&self.0.state);
        loop {
            if let Some(result) = state.result.take() {
                return result;
            }
            state = self.0.answered.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Future for Ticket {
    type Output = Result<Vec<u8>>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = lock(&self.0.state);
        match state.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}
