//! Frames as bytes.

use std::io::{Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::message::{Hello, MAGIC};
use crate::store::content::PIECE;
use crate::{Error, Result};

/// Bytes of a frame before its payload.
pub(crate) const HEADER: usize = 5;
/// The longest message.
const LONGEST_MESSAGE: usize = 8 << 20;
/// Bytes of a piece's offset.
const OFFSET: usize = 8;

const MESSAGE: u8 = 1;
const DATA: u8 = 2;

/// What travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    /// A message, still in JSON.
    Message(Vec<u8>),
    /// A piece of a file.
    Data { offset: u64, bytes: Vec<u8> },
}

impl Frame {
    /// Length of the payload that follows `header`, if it is one.
    pub(crate) fn payload_len(header: &[u8]) -> Result<usize> {
        let &[kind, one, two, three, four] = header else { return Err(garbage("a short header")) };
        let len = u32::from_be_bytes([one, two, three, four]);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let longest = match kind {
            MESSAGE => LONGEST_MESSAGE,
            DATA => usize::try_from(PIECE).unwrap_or_default().saturating_add(OFFSET),
            _ => return Err(garbage("an unknown kind of frame")),
        };
        if len > longest {
            return Err(garbage("a frame that is too long"));
        }
        Ok(len)
    }

    /// The frame with this header, which has been checked, and payload.
    pub(crate) fn of(header: &[u8], payload: &[u8]) -> Result<Self> {
        if header.first() == Some(&MESSAGE) {
            return Ok(Self::Message(payload.to_vec()));
        }
        let (offset, bytes) =
            payload.split_first_chunk::<OFFSET>().ok_or_else(|| garbage("a short piece"))?;
        Ok(Self::Data { offset: u64::from_be_bytes(*offset), bytes: bytes.to_vec() })
    }

    /// Waits for the next frame; `None` if the other end has closed the stream between two.
    pub(crate) fn read(reader: &mut impl Read) -> Result<Option<Self>> {
        let mut header = Vec::with_capacity(HEADER);
        let mut payload = Vec::new();
        read_upto(reader, HEADER, &mut header)?;
        if header.is_empty() {
            return Ok(None);
        }
        let len = Self::payload_len(&header)?;
        read_upto(reader, len, &mut payload)?;
        if payload.len() < len {
            return Err(garbage("the end of the stream within a frame"));
        }
        Self::of(&header, &payload).map(Some)
    }
}

/// Memory grows with what comes, not with what is announced.
fn read_upto(reader: &mut impl Read, len: usize, into: &mut Vec<u8>) -> Result<()> {
    let read = reader.take(len as u64).read_to_end(into);
    read.map(drop).map_err(|error| Error::io("the connection was closed", error))
}

/// A message as a frame.
pub(crate) fn message(message: &impl Serialize) -> Result<Vec<u8>> {
    let json = serde_json::to_vec(message)
        .map_err(|error| Error::usage(format!("it cannot be said in JSON: {error}")))?;
    if json.len() > LONGEST_MESSAGE {
        return Err(Error::environment("the message is too long"));
    }
    Ok(frame(MESSAGE, &[&json]))
}

/// A piece of a file as a frame.
pub(crate) fn data(offset: u64, bytes: &[u8]) -> Vec<u8> {
    frame(DATA, &[&offset.to_be_bytes(), bytes])
}

fn frame(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let len = parts.iter().fold(0usize, |len, part| len.saturating_add(part.len()));
    let mut bytes = Vec::with_capacity(len.saturating_add(HEADER));
    bytes.push(kind);
    bytes.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

/// Understands a message.
pub(crate) fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T> {
    serde_json::from_slice(json)
        .map_err(|error| garbage(&format!("a message that is none: {error}")))
}

/// What each end sends first.
pub(crate) fn greeting() -> Result<Vec<u8>> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(message(&Hello::ours())?);
    Ok(bytes)
}

/// Sends all of it now.
pub(crate) fn write(writer: &mut impl Write, bytes: &[u8]) -> Result<()> {
    writer
        .write_all(bytes)
        .and_then(|()| writer.flush())
        .map_err(|error| Error::io("the connection was closed", error))
}

/// The other end does not keep to the protocol.
pub(crate) fn garbage(what: &str) -> Error {
    Error::environment(format!("the other end sent {what}"))
}
