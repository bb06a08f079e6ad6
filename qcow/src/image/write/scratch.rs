//! Memory of requests that need some for a moment, kept for the next ones: to get it from the kernel each time would take
//! longer than what is done in it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::exact::{Exact, to_usize};
use crate::{Error, Result};

/// Bytes that are kept while nobody uses them, or one piece of memory if that is more.
const KEPT: usize = 4 << 20;
/// To addresses that are no multiple of it some processors copy four times as slowly in the kernel.
const PAGE: usize = 4096;

/// Pieces of memory of one length.
#[derive(Debug)]
pub(super) struct Pool {
    /// With what is left over before the page boundary.
    len: usize,
    free: Mutex<Vec<Memory>>,
}

/// Bytes of which those from `start` on are used, which is at a page boundary. What is allocated as zeros is not
/// touched, and takes no memory until it is.
#[derive(Debug)]
struct Memory {
    bytes: Vec<u8>,
    start: usize,
}

/// A piece of memory: starts at a page boundary, and has whatever the last user left in it.
#[derive(Debug)]
pub(super) struct Scratch<'a> {
    pool: &'a Pool,
    /// There until it goes back.
    memory: Option<Memory>,
}

impl Pool {
    /// Pieces of `len` bytes; none is there yet.
    ///
    /// # Errors
    /// [`Internal`](crate::ErrorKind::Internal) if nothing can be that long.
    pub(super) fn new(len: u64) -> Result<Self> {
        Ok(Self { len: to_usize(len).plus(PAGE)?, free: Mutex::default() })
    }

    /// A piece that nobody else has, until it is dropped.
    pub(super) fn take(&self) -> Scratch<'_> {
        let kept = self.free().pop();
        Scratch { pool: self, memory: Some(kept.unwrap_or_else(|| Memory::new(self.len))) }
    }

    fn free(&self) -> MutexGuard<'_, Vec<Memory>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    fn new(len: usize) -> Self {
        let bytes = vec![0; len];
        let start = bytes.as_ptr().align_offset(PAGE);
        // Where that cannot be told, any place will do.
        Self { bytes, start: if start < PAGE { start } else { 0 } }
    }

    fn first(&mut self, len: usize) -> Option<&mut [u8]> {
        self.bytes.get_mut(self.start..)?.get_mut(..len)
    }
}

impl Scratch<'_> {
    /// Its first `len` bytes.
    ///
    /// # Errors
    /// [`Limit`](crate::ErrorKind::Limit) if it is not that long.
    pub(super) fn first(&mut self, len: u64) -> Result<&mut [u8]> {
        let bytes = self.memory.as_mut().and_then(|memory| memory.first(to_usize(len)));
        bytes.ok_or_else(|| Error::limit("a piece is longer than its memory"))
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        let mut free = self.pool.free();
        let most = KEPT.checked_div(self.pool.len).unwrap_or(1).max(1);
        if free.len() < most {
            free.extend(self.memory.take());
        }
    }
}
