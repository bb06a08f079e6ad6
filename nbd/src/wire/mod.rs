//! The protocol's bytes: what a client sends and what a server answers, parsed and written by pure
//! functions, for both sides.
//!
//! Specification: the NBD project's `doc/proto.md`. Only the fixed newstyle negotiation is here; all
//! numbers are big-endian. Parsers take a slice and give back what they found and how many bytes it took,
//! or `None` if more bytes are needed; nothing they return is longer than the slice.
//!
//! ```
//! use nbd::wire::{Command, CommandFlags, Headers, Request};
//! let request = Request {
//!     command: Command::Read,
//!     flags: CommandFlags::empty(),
//!     cookie: 7,
//!     offset: 4096,
//!     len: 512,
//! };
//! let mut bytes = Vec::new();
//! request.write(Headers::Structured, &mut bytes);
//! let (parsed, used) = Request::parse(Headers::Structured, &bytes)?.unwrap();
//! assert_eq!((parsed, used), (request, 28));
//! # Ok::<(), nbd::wire::Malformed>(())
//! ```

mod bytes;
mod negotiation;
mod reply;
mod request;

use std::fmt;

pub use negotiation::{
    ClientFlags, EXPORT_NAME_PADDING, Greeting, Info, MetaQuery, OPTION_HEAD, OptionCode,
    OptionHead, OptionReply, ReplyCode, ServerFlags, Wanted, greeting,
};
pub use reply::{
    Chunk, ChunkKind, ChunkStatus, Extent, ReplyHead, write_chunk_head, write_error, write_hole,
    write_simple, write_status,
};
pub use request::{Command, CommandFlags, Request, TransmissionFlags};

/// Largest payload of a request or of the reply to a read, in bytes; larger ones are refused.
pub const MAX_PAYLOAD: u32 = 32 << 20;
/// Longest name of an export, and longest text of any kind, in bytes.
pub const MAX_STRING: usize = 4096;

/// As much of a text as may be sent.
pub(crate) fn cut(text: &str) -> &str {
    let end = (0..=MAX_STRING)
        .rev()
        .find(|end| text.is_char_boundary((*end).min(text.len())))
        .unwrap_or_default();
    text.get(..end.min(text.len())).unwrap_or(text)
}

/// Bytes that are not the protocol: the connection cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(pub(crate) &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not the NBD protocol: {}", self.0)
    }
}

impl std::error::Error for Malformed {}

/// How replies look, and requests: what was negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Headers {
    /// One reply per request, the data of a read behind it.
    #[default]
    Simple,
    /// Replies in chunks.
    Structured,
    /// Replies in chunks, and lengths of 64 bits.
    Extended,
}

/// The protocol's error numbers, which are Linux's but the same everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Errno {
    /// 1, `NBD_EPERM`: the export is read-only.
    Permission,
    /// 5, `NBD_EIO`: reading or writing failed.
    Io,
    /// 12, `NBD_ENOMEM`: no memory for it now.
    Memory,
    /// 22, `NBD_EINVAL`: the request makes no sense here.
    Invalid,
    /// 28, `NBD_ENOSPC`: no space, or past the end of the disk.
    NoSpace,
    /// 75, `NBD_EOVERFLOW`: the reply would be too long.
    Overflow,
    /// 95, `NBD_ENOTSUP`: zeroing would not be fast.
    Unsupported,
    /// 108, `NBD_ESHUTDOWN`: the server is ending.
    Shutdown,
    /// Any other number; a client treats it as `EINVAL`.
    Other(u32),
}

impl Errno {
    /// The number on the wire.
    pub fn code(self) -> u32 {
        match self {
            Self::Permission => 1,
            Self::Io => 5,
            Self::Memory => 12,
            Self::Invalid => 22,
            Self::NoSpace => 28,
            Self::Overflow => 75,
            Self::Unsupported => 95,
            Self::Shutdown => 108,
            Self::Other(code) => code,
        }
    }

    /// The error of this number; `None` for 0, which is success.
    pub fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            0 => return None,
            1 => Self::Permission,
            5 => Self::Io,
            12 => Self::Memory,
            22 => Self::Invalid,
            28 => Self::NoSpace,
            75 => Self::Overflow,
            95 => Self::Unsupported,
            108 => Self::Shutdown,
            code => Self::Other(code),
        })
    }
}

#[cfg(test)]
mod tests;
