//! Memory of requests that need some for a moment, kept for the next ones: to get it from the kernel each time would take
//! longer than what is done in it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::Result;
use crate::exact::to_usize;
use crate::io::Buffer;

/// Bytes that are kept while nobody uses them, or one piece of memory if that is more.
const KEPT: usize = 4 << 20;

/// Pieces of memory of one length.
#[derive(Debug)]
pub(super) struct Pool {
    len: usize,
    free: Mutex<Vec<Buffer>>,
}

/// A piece of memory: starts at a page boundary, and has whatever the last user left in it.
#[derive(Debug)]
pub(super) struct Scratch<'a> {
    pool: &'a Pool,
    /// There until it goes back.
    buffer: Option<Buffer>,
}

impl Pool {
    /// Pieces of `len` bytes; none is there yet.
    pub(super) fn new(len: u64) -> Self {
        Self { len: to_usize(len), free: Mutex::default() }
    }

    /// A piece that nobody else has, until it is dropped.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io) if there is no memory.
    pub(super) fn take(&self) -> Result<Scratch<'_>> {
        let kept = self.free().pop();
        let buffer = kept.map_or_else(|| Buffer::new(self.len), Ok)?;
        Ok(Scratch { pool: self, buffer: Some(buffer) })
    }

    fn free(&self) -> MutexGuard<'_, Vec<Buffer>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Scratch<'_> {
    /// Its first `len` bytes.
    ///
    /// # Errors
    /// [`Limit`](crate::ErrorKind::Limit) if it is not that long.
    pub(super) fn first(&mut self, len: u64) -> Result<&mut [u8]> {
        match &mut self.buffer {
            Some(buffer) => buffer.first(to_usize(len)),
            None => Ok(&mut []),
        }
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        let mut free = self.pool.free();
        let most = KEPT.checked_div(self.pool.len).unwrap_or(1).max(1);
        if free.len() < most {
            free.extend(self.buffer.take());
        }
    }
}
