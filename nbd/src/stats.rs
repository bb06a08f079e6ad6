//! What a server has done, in numbers.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::backend::Failed;
use crate::budget::lock;
use crate::wire::{Command, Errno, Request};

/// Commands that are counted, by their numbers.
const COMMANDS: usize = 8;
/// Messages of failed requests that are kept until they are asked for.
const MESSAGES: usize = 16;

/// Counters of a server. They only grow, but for `connections`.
#[derive(Debug, Default)]
pub struct Stats {
    connections: AtomicU64,
    served: AtomicU64,
    requests: [AtomicU64; COMMANDS],
    nanoseconds: [AtomicU64; COMMANDS],
    bytes: [AtomicU64; COMMANDS],
    errors: AtomicU64,
    messages: Mutex<Vec<String>>,
}

/// What is known about one kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Count {
    /// How many were answered.
    pub requests: u64,
    /// Bytes of disk that they were about.
    pub bytes: u64,
    /// Time that they took, all together.
    pub time: Duration,
}

impl Stats {
    /// Clients that have an export now.
    pub fn connections(&self) -> u64 {
        self.connections.load(Relaxed)
    }

    /// Clients that had one.
    pub fn served(&self) -> u64 {
        self.served.load(Relaxed)
    }

    /// Requests that failed, or were refused.
    pub fn errors(&self) -> u64 {
        self.errors.load(Relaxed)
    }

    /// What is known about requests of this kind.
    pub fn of(&self, command: Command) -> Count {
        let load = |counters: &[AtomicU64; COMMANDS]| {
            counters.get(usize::from(command.code())).map_or(0, |counter| counter.load(Relaxed))
        };
        Count {
            requests: load(&self.requests),
            bytes: load(&self.bytes),
            time: Duration::from_nanos(load(&self.nanoseconds)),
        }
    }

    /// Messages of requests that failed since this was last asked: the first few of them.
    pub fn take_messages(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.messages))
    }

    pub(crate) fn connected(&self) {
        self.connections.fetch_add(1, Relaxed);
        self.served.fetch_add(1, Relaxed);
    }

    pub(crate) fn disconnected(&self) {
        self.connections.fetch_sub(1, Relaxed);
    }

    pub(crate) fn done(&self, request: &Request, time: Duration) {
        let index = usize::from(request.command.code());
        let add = |counters: &[AtomicU64; COMMANDS], value| {
            if let Some(counter) = counters.get(index) {
                counter.fetch_add(value, Relaxed);
            }
        };
        add(&self.requests, 1);
        add(&self.bytes, request.len);
        add(&self.nanoseconds, u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(crate) fn refused(&self) {
        self.errors.fetch_add(1, Relaxed);
    }

    pub(crate) fn failed(&self, failed: &Failed) {
        self.errors.fetch_add(1, Relaxed);
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
