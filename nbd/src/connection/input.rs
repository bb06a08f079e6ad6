//! Bytes that were received and not used yet.

use std::io;
use std::time::Instant;

use crate::transport::Transport;

/// Several requests of 4 KiB each are received at once.
const SIZE: usize = 256 << 10;

/// A buffer before the stream.
#[derive(Debug)]
pub(crate) struct Input {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Input {
    pub(crate) fn new() -> Self {
        Self { bytes: vec![0; SIZE], start: 0, end: 0 }
    }

    /// What is there.
    pub(crate) fn buffered(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    /// Forgets the first `len` bytes of it.
    pub(crate) fn consume(&mut self, len: usize) {
        self.start = self.start.saturating_add(len).min(self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Receives more; 0 at the end of the stream.
    pub(crate) fn fill(
        &mut self,
        transport: &dyn Transport,
        deadline: Option<Instant>,
    ) -> io::Result<usize> {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end.saturating_sub(self.start));
        }
        let room = self.bytes.get_mut(self.end..).unwrap_or_default();
        if room.is_empty() {
            return Err(io::Error::other("a message that is longer than the buffer"));
        }
        let received = transport.receive(room, deadline)?;
        self.end = self.end.saturating_add(received);
        Ok(received)
    }

    /// Receives until `len` bytes are there, which must be less than the buffer has.
    pub(crate) fn need(
        &mut self,
        transport: &dyn Transport,
        len: usize,
        deadline: Option<Instant>,
    ) -> io::Result<&[u8]> {
        while self.buffered().len() < len {
            if self.fill(transport, deadline)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.buffered().get(..len).unwrap_or_default())
    }

    /// Fills `buf`: what is not there yet is received into it.
    pub(crate) fn read(&mut self, transport: &dyn Transport, buf: &mut [u8]) -> io::Result<()> {
        let there = self.buffered().len().min(buf.len());
        let (now, mut rest) = buf.split_at_mut(there);
        now.copy_from_slice(self.buffered().get(..there).unwrap_or_default());
        self.consume(there);
        while !rest.is_empty() {
            let received = transport.receive(rest, None)?;
            if received == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            rest = rest.split_at_mut(received).1;
        }
        Ok(())
    }

    /// Takes `len` bytes off the stream.
    pub(crate) fn skip(
        &mut self,
        transport: &dyn Transport,
        len: u64,
        deadline: Option<Instant>,
    ) -> io::Result<()> {
        let mut left = len;
        while left > 0 {
            if self.buffered().is_empty() && self.fill(transport, deadline)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let there = self.buffered().len();
            let now = usize::try_from(left).unwrap_or(usize::MAX).min(there);
            self.consume(now);
            left = left.saturating_sub(now as u64);
        }
        Ok(())
    }
}
