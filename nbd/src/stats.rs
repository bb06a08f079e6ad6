//! What a server has done, in numbers.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::backend::Failed;
use crate::budget::lock;
use crate::wire::{Command, Errno, Request};

/// Commands that are counted, by their numbers.
const COMMANDS: usize = 8;
/// Messages of failed requests that are kept until they are asked for.
const MESSAGES: usize = 16;

/// The limits between the classes of [`Count::latency`].
pub const LATENCY_BOUNDS: [Duration; 12] = [
    Duration::from_micros(10),
    Duration::from_micros(50),
    Duration::from_micros(100),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(5),
];

/// Counters of a server: the sums of those of its exports. They only grow, but for `connections`.
#[derive(Debug, Default)]
pub struct Stats {
    exports: Vec<Arc<ExportStats>>,
    messages: Mutex<Vec<String>>,
}

/// Counters of one export. They only grow, but for `connections`.
///
/// ```
/// # use std::sync::Arc;
/// # use qcow::chain::{Chain, Format};
/// # use qcow::io::MemoryStorage;
/// use nbd::wire::Command;
/// use nbd::{ChainBackend, Export};
/// # let disk = Arc::new(MemoryStorage::new(vec![0; 512]));
/// # let chain = Chain::builder().layer("memory", disk, Format::Raw).open()?;
/// let export = Export::new("disk", Box::new(ChainBackend::new(chain)));
/// let stats = Arc::clone(export.stats());
/// // Any thread may ask, while a server has the export and afterwards.
/// let reads = stats.of(Command::Read);
/// assert_eq!((reads.requests, reads.errors, reads.bytes), (0, 0, 0));
/// # Ok::<(), qcow::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct ExportStats {
    connections: AtomicU64,
    served: AtomicU64,
    commands: [Counters; COMMANDS],
    /// Commands that do not exist.
    unknown: AtomicU64,
}

/// Counters of one command.
#[derive(Debug, Default)]
struct Counters {
    errors: AtomicU64,
    bytes: AtomicU64,
    nanoseconds: AtomicU64,
    latency: [AtomicU64; LATENCY_BOUNDS.len() + 1],
}

/// What is known about one kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Count {
    /// How many were done, whether they succeeded or failed.
    pub requests: u64,
    /// How many failed, or were refused.
    pub errors: u64,
    /// Bytes of disk that they were about.
    pub bytes: u64,
    /// Time that they took, all together: from when a request was there until its reply was ready to be sent.
    pub time: Duration,
    /// How many took up to each of [`LATENCY_BOUNDS`] and longer than the one before; last, those that took longer.
    pub latency: [u64; LATENCY_BOUNDS.len() + 1],
}

impl Count {
    fn plus(self, other: Self) -> Self {
        let mut latency = self.latency;
        for (count, more) in latency.iter_mut().zip(other.latency) {
            *count = count.saturating_add(more);
        }
        Self {
            requests: self.requests.saturating_add(other.requests),
            errors: self.errors.saturating_add(other.errors),
            bytes: self.bytes.saturating_add(other.bytes),
            time: self.time.saturating_add(other.time),
            latency,
        }
    }
}

impl Stats {
    pub(crate) fn new(exports: Vec<Arc<ExportStats>>) -> Self {
        Self { exports, messages: Mutex::default() }
    }

    /// Clients that have an export now.
    pub fn connections(&self) -> u64 {
        self.exports.iter().map(|export| export.connections()).sum()
    }

    /// Clients that have had one.
    pub fn served(&self) -> u64 {
        self.exports.iter().map(|export| export.served()).sum()
    }

    /// Requests that failed, or were refused.
    pub fn errors(&self) -> u64 {
        self.exports.iter().map(|export| export.errors()).sum()
    }

    /// What is known about requests of this kind.
    pub fn of(&self, command: Command) -> Count {
        let counts = self.exports.iter().map(|export| export.of(command));
        counts.fold(Count::default(), Count::plus)
    }

    /// Messages of requests that failed since this was last asked: the first few of them.
    pub fn take_messages(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.messages))
    }

    pub(crate) fn keep(&self, failed: &Failed) {
        // Clients know what they have asked for; the operator wants to know of the disk.
        if !matches!(failed.errno, Errno::Io | Errno::Memory | Errno::NoSpace) {
            return;
        }
        let mut messages = lock(&self.messages);
        if messages.len() < MESSAGES {
            messages.push(failed.message.clone());
        }
    }
}

impl ExportStats {
    /// Clients that have it now.
    pub fn connections(&self) -> u64 {
        self.connections.load(Relaxed)
    }

    /// Clients that have had it, those of now included.
    pub fn served(&self) -> u64 {
        self.served.load(Relaxed)
    }

    /// Requests that failed, or were refused.
    pub fn errors(&self) -> u64 {
        let counted = self.commands.iter().map(|counters| counters.errors.load(Relaxed));
        counted.sum::<u64>().saturating_add(self.unknown.load(Relaxed))
    }

    /// What is known about requests of this kind.
    pub fn of(&self, command: Command) -> Count {
        let Some(counters) = self.counters(command) else { return Count::default() };
        let mut latency = [0; LATENCY_BOUNDS.len() + 1];
        for (count, counter) in latency.iter_mut().zip(&counters.latency) {
            *count = counter.load(Relaxed);
        }
        Count {
            requests: latency.iter().sum(),
            errors: counters.errors.load(Relaxed),
            bytes: counters.bytes.load(Relaxed),
            time: Duration::from_nanos(counters.nanoseconds.load(Relaxed)),
            latency,
        }
    }

    fn counters(&self, command: Command) -> Option<&Counters> {
        self.commands.get(usize::from(command.code()))
    }

    pub(crate) fn connected(&self) {
        self.connections.fetch_add(1, Relaxed);
        self.served.fetch_add(1, Relaxed);
    }

    pub(crate) fn disconnected(&self) {
        self.connections.fetch_sub(1, Relaxed);
    }

    pub(crate) fn done(&self, request: &Request, time: Duration) {
        let Some(counters) = self.counters(request.command) else { return };
        let class = LATENCY_BOUNDS.partition_point(|bound| *bound < time);
        if let Some(counter) = counters.latency.get(class) {
            counter.fetch_add(1, Relaxed);
        }
        counters.bytes.fetch_add(request.len, Relaxed);
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        counters.nanoseconds.fetch_add(nanoseconds, Relaxed);
    }

    pub(crate) fn failed(&self, request: &Request) {
        let counters = self.counters(request.command);
        counters.map_or(&self.unknown, |counters| &counters.errors).fetch_add(1, Relaxed);
    }
}
