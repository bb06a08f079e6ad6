//! Replies: simple ones, and chunks of structured ones.

use super::bytes::Bytes;
use super::{Errno, Headers, MAX_PAYLOAD, Malformed, cut};

const SIMPLE_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_MAGIC: u32 = 0x668e_33ef;
const EXTENDED_MAGIC: u32 = 0x6e8a_278c;

/// No more chunks follow for this request.
const DONE: u16 = 1;

/// What a chunk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChunkKind {
    /// 0: nothing.
    None,
    /// 1: an offset and bytes.
    Data,
    /// 2: an offset and a length in 32 bits that reads as zeros.
    Hole,
    /// 5: extents of one context, in 32 bits.
    Status,
    /// 6: extents of one context, in 64 bits.
    StatusExtended,
    /// 32769: an error number and a text.
    Error,
    /// 32770: the same, and where.
    ErrorAt,
    /// Any other number. From 32768 on it is an error.
    Other(u16),
}

impl ChunkKind {
    /// The number on the wire.
    pub fn code(self) -> u16 {
        match self {
            Self::None => 0,
            Self::Data => 1,
            Self::Hole => 2,
            Self::Status => 5,
            Self::StatusExtended => 6,
            Self::Error => 32769,
            Self::ErrorAt => 32770,
            Self::Other(code) => code,
        }
    }

    /// The kind of this number.
    pub fn from_code(code: u16) -> Self {
        match code {
            0 => Self::None,
            1 => Self::Data,
            2 => Self::Hole,
            5 => Self::Status,
            6 => Self::StatusExtended,
            32769 => Self::Error,
            32770 => Self::ErrorAt,
            code => Self::Other(code),
        }
    }
}

/// Where a chunk stands in its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkStatus {
    /// The client's number of the request.
    pub cookie: u64,
    /// The request's offset, which extended headers repeat.
    pub offset: u64,
    /// Whether it is the last one.
    pub done: bool,
}

/// A part of the disk of which a context says one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Bytes; of 32 bits without extended headers.
    pub len: u64,
    /// What the context says.
    pub flags: u32,
}

/// Appends a simple reply; the data of a read follows it.
pub fn write_simple(out: &mut Vec<u8>, cookie: u64, error: Option<Errno>) {
    out.extend(SIMPLE_MAGIC.to_be_bytes());
    out.extend(error.map_or(0, Errno::code).to_be_bytes());
    out.extend(cookie.to_be_bytes());
}

/// Appends the head of a chunk, behind which `len` bytes are to follow.
pub fn write_chunk_head(
    out: &mut Vec<u8>,
    headers: Headers,
    status: ChunkStatus,
    kind: ChunkKind,
    len: u32,
) {
    let extended = headers == Headers::Extended;
    let magic = if extended { EXTENDED_MAGIC } else { STRUCTURED_MAGIC };
    out.extend(magic.to_be_bytes());
    out.extend(if status.done { DONE } else { 0 }.to_be_bytes());
    out.extend(kind.code().to_be_bytes());
    out.extend(status.cookie.to_be_bytes());
    if extended {
        out.extend(status.offset.to_be_bytes());
        out.extend(u64::from(len).to_be_bytes());
    } else {
        out.extend(len.to_be_bytes());
    }
}

/// Appends a chunk that says that `len` bytes at `at` are zeros.
pub fn write_hole(out: &mut Vec<u8>, headers: Headers, status: ChunkStatus, at: u64, len: u32) {
    write_chunk_head(out, headers, status, ChunkKind::Hole, 12);
    out.extend(at.to_be_bytes());
    out.extend(len.to_be_bytes());
}

/// Appends an error chunk. The text is cut to [`MAX_STRING`](super::MAX_STRING).
pub fn write_error(
    out: &mut Vec<u8>,
    headers: Headers,
    status: ChunkStatus,
    error: Errno,
    text: &str,
) {
    let text = cut(text).as_bytes();
    let text_len = u16::try_from(text.len()).unwrap_or_default();
    write_chunk_head(out, headers, status, ChunkKind::Error, u32::from(text_len).saturating_add(6));
    out.extend(error.code().to_be_bytes());
    out.extend(text_len.to_be_bytes());
    out.extend(text);
}

/// Appends a chunk with the extents of one context. There are few enough of them for 32 bits.
pub fn write_status(
    out: &mut Vec<u8>,
    headers: Headers,
    status: ChunkStatus,
    context: u32,
    extents: &[Extent],
) {
    let count = u32::try_from(extents.len()).unwrap_or(u32::MAX);
    if headers == Headers::Extended {
        let len = count.saturating_mul(16).saturating_add(8);
        write_chunk_head(out, headers, status, ChunkKind::StatusExtended, len);
        out.extend(context.to_be_bytes());
        out.extend(count.to_be_bytes());
        for extent in extents {
            out.extend(extent.len.to_be_bytes());
            out.extend(u64::from(extent.flags).to_be_bytes());
        }
    } else {
        let len = count.saturating_mul(8).saturating_add(4);
        write_chunk_head(out, headers, status, ChunkKind::Status, len);
        out.extend(context.to_be_bytes());
        for extent in extents {
            out.extend(u32::try_from(extent.len).unwrap_or(u32::MAX).to_be_bytes());
            out.extend(extent.flags.to_be_bytes());
        }
    }
}

/// The head of a reply, as a client finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyHead {
    /// A simple reply; if it is to a read and without error, its data follows.
    Simple {
        /// The client's number of the request.
        cookie: u64,
        /// What went wrong.
        error: Option<Errno>,
    },
    /// A chunk, with so many bytes behind it.
    Chunk {
        /// Where it stands.
        status: ChunkStatus,
        /// What it holds.
        kind: ChunkKind,
        /// Bytes that follow.
        len: u32,
    },
}

impl ReplyHead {
    /// Takes the head of a reply from the front of `bytes`, with the number of bytes that it took.
    ///
    /// # Errors
    /// If it is none, or longer than any that was asked for.
    pub fn parse(headers: Headers, bytes: &[u8]) -> Result<Option<(Self, usize)>, Malformed> {
        let mut rest = Bytes(bytes);
        let Some(magic) = rest.u32() else { return Ok(None) };
        let head = match (magic, headers) {
            (SIMPLE_MAGIC, Headers::Simple | Headers::Structured) => {
                let mut fields = || {
                    let error = Errno::from_code(rest.u32()?);
                    Some((Self::Simple { error, cookie: rest.u64()? }, 16))
                };
                fields()
            }
            (STRUCTURED_MAGIC, Headers::Structured) | (EXTENDED_MAGIC, Headers::Extended) => {
                chunk_head(rest, headers)?
            }
            _ => return Err(Malformed("a reply without its magic")),
        };
        Ok(head)
    }
}

fn chunk_head(
    mut rest: Bytes<'_>,
    headers: Headers,
) -> Result<Option<(ReplyHead, usize)>, Malformed> {
    let extended = headers == Headers::Extended;
    let mut fields = || {
        let (flags, kind, cookie) = (rest.u16()?, rest.u16()?, rest.u64()?);
        let offset = if extended { rest.u64()? } else { 0 };
        let len = if extended { rest.u64()? } else { rest.u32()?.into() };
        let status = ChunkStatus { cookie, offset, done: flags & DONE != 0 };
        Some((status, ChunkKind::from_code(kind), len))
    };
    let Some((status, kind, len)) = fields() else { return Ok(None) };
    // The payload of a read, and the offset before it.
    let len = u32::try_from(len).ok().filter(|len| *len <= MAX_PAYLOAD.saturating_add(8));
    let len = len.ok_or(Malformed("a chunk that is too long"))?;
    Ok(Some((ReplyHead::Chunk { status, kind, len }, if extended { 32 } else { 20 })))
}

/// What a chunk holds, taken from its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chunk<'a> {
    /// Nothing.
    None,
    /// Bytes of the disk.
    Data {
        /// Where they start.
        at: u64,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// Zeros.
    Hole {
        /// Where they start.
        at: u64,
        /// How many.
        len: u32,
    },
    /// What a context says.
    Status {
        /// The context's number.
        context: u32,
        /// In ascending order, from the request's offset on; none has no length.
        extents: Vec<Extent>,
    },
    /// An error.
    Error {
        /// Its number.
        error: Errno,
        /// What the server says about it.
        text: &'a [u8],
        /// Where it is, if that is said.
        at: Option<u64>,
    },
}

impl<'a> Chunk<'a> {
    /// Takes apart the payload of a chunk.
    ///
    /// # Errors
    /// If it is not what its kind says.
    pub fn parse(kind: ChunkKind, payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut rest = Bytes(payload);
        let parsed = match kind {
            ChunkKind::None => payload.is_empty().then_some(Self::None),
            ChunkKind::Data => data(&mut rest),
            ChunkKind::Hole => hole(&mut rest),
            ChunkKind::Status => status(&mut rest),
            ChunkKind::StatusExtended => status_extended(&mut rest),
            ChunkKind::Error | ChunkKind::ErrorAt => error(&mut rest, kind),
            ChunkKind::Other(code) if code >= 1 << 15 => error(&mut rest, kind),
            ChunkKind::Other(_) => None,
        };
        parsed.ok_or(Malformed("a chunk that is not what its kind says"))
    }
}

fn data<'a>(rest: &mut Bytes<'a>) -> Option<Chunk<'a>> {
    let at = rest.u64()?;
    (!rest.is_empty()).then_some(Chunk::Data { at, bytes: rest.0 })
}

fn hole<'a>(rest: &mut Bytes<'a>) -> Option<Chunk<'a>> {
    let (at, len) = (rest.u64()?, rest.u32()?);
    (len > 0 && rest.is_empty()).then_some(Chunk::Hole { at, len })
}

fn status<'a>(rest: &mut Bytes<'a>) -> Option<Chunk<'a>> {
    let context = rest.u32()?;
    let mut extents = Vec::new();
    while !rest.is_empty() {
        extents.push(Extent { len: rest.u32()?.into(), flags: rest.u32()? });
    }
    checked(context, extents)
}

fn status_extended<'a>(rest: &mut Bytes<'a>) -> Option<Chunk<'a>> {
    let (context, count) = (rest.u32()?, rest.u32()?);
    let mut extents = Vec::new();
    while !rest.is_empty() {
        extents.push(Extent { len: rest.u64()?, flags: u32::try_from(rest.u64()?).ok()? });
    }
    if extents.len() != usize::try_from(count).ok()? {
        return None;
    }
    checked(context, extents)
}

fn checked<'a>(context: u32, extents: Vec<Extent>) -> Option<Chunk<'a>> {
    let sound = !extents.is_empty() && extents.iter().all(|extent| extent.len > 0);
    sound.then_some(Chunk::Status { context, extents })
}

fn error<'a>(rest: &mut Bytes<'a>, kind: ChunkKind) -> Option<Chunk<'a>> {
    let error = Errno::from_code(rest.u32()?)?;
    let len = rest.u16()?;
    let text = rest.take(len.into())?;
    let at = if kind == ChunkKind::ErrorAt { Some(rest.u64()?) } else { None };
    let whole = rest.is_empty() || matches!(kind, ChunkKind::Other(_));
    whole.then_some(Chunk::Error { error, text, at })
}
