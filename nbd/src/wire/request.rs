//! Requests, as they follow each other after the negotiation.

use bitflags::bitflags;

use super::bytes::Bytes;
use super::{Headers, Malformed};

const REQUEST_MAGIC: u32 = 0x2560_9513;
const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;

bitflags! {
    /// What an export can do, as the negotiation says it.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct TransmissionFlags: u16 {
        /// Always set.
        const HAS_FLAGS = 1;
        /// Writing is refused.
        const READ_ONLY = 1 << 1;
        /// `NBD_CMD_FLUSH` is offered.
        const SEND_FLUSH = 1 << 2;
        /// `NBD_CMD_FLAG_FUA` is offered.
        const SEND_FUA = 1 << 3;
        /// It has the latencies of a rotating disk.
        const ROTATIONAL = 1 << 4;
        /// `NBD_CMD_TRIM` is offered.
        const SEND_TRIM = 1 << 5;
        /// `NBD_CMD_WRITE_ZEROES` is offered.
        const SEND_WRITE_ZEROES = 1 << 6;
        /// `NBD_CMD_FLAG_DF` is offered; only with structured replies.
        const SEND_DF = 1 << 7;
        /// Several connections see one disk: a flush on one covers what was answered on all.
        const CAN_MULTI_CONN = 1 << 8;
        /// `NBD_CMD_CACHE` is offered.
        const SEND_CACHE = 1 << 10;
        /// `NBD_CMD_FLAG_FAST_ZERO` is offered.
        const SEND_FAST_ZERO = 1 << 11;
        /// Block status takes a payload.
        const BLOCK_STATUS_PAYLOAD = 1 << 12;
        const _ = !0;
    }

    /// The flags of one request.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct CommandFlags: u16 {
        /// What is written is durable before the reply.
        const FUA = 1;
        /// Zeros stay allocated.
        const NO_HOLE = 1 << 1;
        /// One chunk of content at most.
        const DF = 1 << 2;
        /// One extent only.
        const REQ_ONE = 1 << 3;
        /// Zero only if that is faster than writing zeros.
        const FAST_ZERO = 1 << 4;
        /// The length is that of a payload.
        const PAYLOAD_LEN = 1 << 5;
        const _ = !0;
    }
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Command {
    /// 0: bytes of the disk.
    Read,
    /// 1: bytes for the disk follow.
    Write,
    /// 2: the client goes; no reply.
    Disconnect,
    /// 3: what was answered before becomes durable.
    Flush,
    /// 4: a range is not needed any more.
    Trim,
    /// 5: a range will be read.
    Cache,
    /// 6: a range becomes zeros.
    WriteZeroes,
    /// 7: what a range is.
    BlockStatus,
    /// Any other number.
    Other(u16),
}

impl Command {
    /// The number on the wire.
    pub fn code(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Disconnect => 2,
            Self::Flush => 3,
            Self::Trim => 4,
            Self::Cache => 5,
            Self::WriteZeroes => 6,
            Self::BlockStatus => 7,
            Self::Other(code) => code,
        }
    }

    /// The command of this number.
    pub fn from_code(code: u16) -> Self {
        match code {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disconnect,
            3 => Self::Flush,
            4 => Self::Trim,
            5 => Self::Cache,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            code => Self::Other(code),
        }
    }
}

/// One request, without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// What is asked for.
    pub command: Command,
    /// How.
    pub flags: CommandFlags,
    /// The client's number for it, which the reply carries.
    pub cookie: u64,
    /// Where on the disk, in bytes.
    pub offset: u64,
    /// How many bytes; of 32 bits without extended headers.
    pub len: u64,
}

impl Request {
    /// The length of a request's head.
    pub fn head_len(headers: Headers) -> usize {
        if headers == Headers::Extended { 32 } else { 28 }
    }

    /// Takes a request from the front of `bytes`, with the number of bytes that it took.
    ///
    /// # Errors
    /// If it is none: there is no way to find the next one.
    pub fn parse(headers: Headers, bytes: &[u8]) -> Result<Option<(Self, usize)>, Malformed> {
        let extended = headers == Headers::Extended;
        let expected = if extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
        let mut rest = Bytes(bytes);
        let Some(magic) = rest.u32() else { return Ok(None) };
        if magic != expected {
            return Err(Malformed("a request without its magic"));
        }
        let mut fields = || {
            Some(Self {
                flags: CommandFlags::from_bits_retain(rest.u16()?),
                command: Command::from_code(rest.u16()?),
                cookie: rest.u64()?,
                offset: rest.u64()?,
                len: if extended { rest.u64()? } else { rest.u32()?.into() },
            })
        };
        Ok(fields().map(|request| (request, Self::head_len(headers))))
    }

    /// Appends the request, for a client. Without extended headers the length is cut to 32 bits.
    pub fn write(&self, headers: Headers, out: &mut Vec<u8>) {
        let extended = headers == Headers::Extended;
        let magic = if extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
        out.extend(magic.to_be_bytes());
        out.extend(self.flags.bits().to_be_bytes());
        out.extend(self.command.code().to_be_bytes());
        out.extend(self.cookie.to_be_bytes());
        out.extend(self.offset.to_be_bytes());
        if extended {
            out.extend(self.len.to_be_bytes());
        } else {
            out.extend(u32::try_from(self.len).unwrap_or(u32::MAX).to_be_bytes());
        }
    }

    /// How many bytes of payload follow.
    pub fn payload(&self, headers: Headers) -> u64 {
        let extended = headers == Headers::Extended;
        let announced = extended && self.flags.contains(CommandFlags::PAYLOAD_LEN);
        if self.command == Command::Write || announced { self.len } else { 0 }
    }
}
