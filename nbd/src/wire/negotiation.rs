//! The negotiation: greeting, options and replies to them.

use bitflags::bitflags;

use super::bytes::{Bytes, len32, put_text};
use super::{MAX_STRING, Malformed, TransmissionFlags};

const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Length of the head of an option.
pub const OPTION_HEAD: usize = 16;
/// Zeros behind the answer to `NBD_OPT_EXPORT_NAME`, unless both sides do without.
pub const EXPORT_NAME_PADDING: usize = 124;
/// Longest reply to an option that a client takes.
const MAX_REPLY: u32 = 1 << 20;

bitflags! {
    /// What the server says of itself.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct ServerFlags: u16 {
        /// Options have replies: always.
        const FIXED_NEWSTYLE = 1;
        /// The zeros behind the answer to `NBD_OPT_EXPORT_NAME` can be left out.
        const NO_ZEROES = 2;
        const _ = !0;
    }

    /// What the client says of itself.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct ClientFlags: u32 {
        /// It understands replies to options.
        const FIXED_NEWSTYLE = 1;
        /// It does without the zeros.
        const NO_ZEROES = 2;
        const _ = !0;
    }
}

/// What a server says first; a client answers with its [`ClientFlags`].
pub fn greeting(flags: ServerFlags) -> [u8; 18] {
    let mut bytes = [0; 18];
    let fields = [&GREETING_MAGIC.to_be_bytes()[..], &OPTION_MAGIC.to_be_bytes()];
    let fields = fields.into_iter().flatten().copied().chain(flags.bits().to_be_bytes());
    bytes.iter_mut().zip(fields).for_each(|(byte, field)| *byte = field);
    bytes
}

/// The greeting, as a client finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Greeting {
    /// What the server says of itself.
    pub flags: ServerFlags,
}

impl Greeting {
    /// Takes the greeting from the front of `bytes`, with the number of bytes that it took.
    ///
    /// # Errors
    /// If it is none, or that of the old negotiation.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, Malformed> {
        let mut rest = Bytes(bytes);
        match rest.u64() {
            Some(GREETING_MAGIC) => {}
            Some(_) => return Err(Malformed("no greeting")),
            None => return Ok(None),
        }
        match rest.u64() {
            Some(OPTION_MAGIC) => {}
            Some(_) => return Err(Malformed("a greeting of the old style")),
            None => return Ok(None),
        }
        let flags = rest.u16().map(ServerFlags::from_bits_retain);
        Ok(flags.map(|flags| (Self { flags }, 18)))
    }
}

/// An option's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum OptionCode {
    /// 1: this export, now; there is no reply but the export's size.
    ExportName,
    /// 2: the client goes.
    Abort,
    /// 3: which exports are there?
    List,
    /// 5: encryption from here on.
    StartTls,
    /// 6: what is this export?
    Info,
    /// 7: this export, now.
    Go,
    /// 8: replies in chunks.
    StructuredReply,
    /// 9: which contexts has this export?
    ListMetaContext,
    /// 10: these contexts.
    SetMetaContext,
    /// 11: lengths of 64 bits.
    ExtendedHeaders,
    /// Any other number.
    Other(u32),
}

impl OptionCode {
    /// The number on the wire.
    pub fn code(self) -> u32 {
        match self {
            Self::ExportName => 1,
            Self::Abort => 2,
            Self::List => 3,
            Self::StartTls => 5,
            Self::Info => 6,
            Self::Go => 7,
            Self::StructuredReply => 8,
            Self::ListMetaContext => 9,
            Self::SetMetaContext => 10,
            Self::ExtendedHeaders => 11,
            Self::Other(code) => code,
        }
    }

    /// The option of this number.
    pub fn from_code(code: u32) -> Self {
        match code {
            1 => Self::ExportName,
            2 => Self::Abort,
            3 => Self::List,
            5 => Self::StartTls,
            6 => Self::Info,
            7 => Self::Go,
            8 => Self::StructuredReply,
            9 => Self::ListMetaContext,
            10 => Self::SetMetaContext,
            11 => Self::ExtendedHeaders,
            code => Self::Other(code),
        }
    }
}

/// The head of an option; its data follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHead {
    /// Which option.
    pub option: OptionCode,
    /// Bytes of data.
    pub len: u32,
}

impl OptionHead {
    /// Takes it from the front of `bytes`.
    ///
    /// # Errors
    /// If it is none.
    pub fn parse(bytes: &[u8; OPTION_HEAD]) -> Result<Self, Malformed> {
        let mut rest = Bytes(bytes);
        let mut fields = || Some((rest.u64()?, rest.u32()?, rest.u32()?));
        match fields() {
            Some((OPTION_MAGIC, option, len)) => {
                Ok(Self { option: OptionCode::from_code(option), len })
            }
            _ => Err(Malformed("an option without its magic")),
        }
    }

    /// Appends an option with its data, for a client.
    pub fn write(option: OptionCode, data: &[u8], out: &mut Vec<u8>) {
        out.extend(OPTION_MAGIC.to_be_bytes());
        out.extend(option.code().to_be_bytes());
        out.extend(len32(data).to_be_bytes());
        out.extend(data);
    }
}

/// The data of `NBD_OPT_INFO` and `NBD_OPT_GO`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// The export; empty for the default one.
    pub name: &'a [u8],
    /// What more to tell about it.
    pub infos: Vec<u16>,
}

impl<'a> Wanted<'a> {
    /// Takes the data apart; `None` if it is something else, or a name is too long.
    pub fn parse(data: &'a [u8]) -> Option<Self> {
        let mut rest = Bytes(data);
        let name = rest.text().filter(|name| name.len() <= MAX_STRING)?;
        let count = rest.u16()?;
        let infos = (0..count).map(|_| rest.u16()).collect::<Option<_>>()?;
        rest.is_empty().then_some(Self { name, infos })
    }

    /// The data, for a client.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_text(&mut out, self.name);
        out.extend(u16::try_from(self.infos.len()).unwrap_or(u16::MAX).to_be_bytes());
        out.extend(self.infos.iter().flat_map(|info| info.to_be_bytes()));
        out
    }
}

/// The data of `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaQuery<'a> {
    /// The export; empty for the default one.
    pub name: &'a [u8],
    /// Names of contexts, or their beginnings.
    pub queries: Vec<&'a [u8]>,
}

impl<'a> MetaQuery<'a> {
    /// Takes the data apart; `None` if it is something else, or a text is too long.
    pub fn parse(data: &'a [u8]) -> Option<Self> {
        let mut rest = Bytes(data);
        let mut text = || rest.text().filter(|text| text.len() <= MAX_STRING);
        let name = text()?;
        let count = rest.u32()?;
        let mut queries = Vec::new();
        for _ in 0..count {
            queries.push(rest.text().filter(|text| text.len() <= MAX_STRING)?);
        }
        rest.is_empty().then_some(Self { name, queries })
    }

    /// The data, for a client.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_text(&mut out, self.name);
        out.extend(u32::try_from(self.queries.len()).unwrap_or(u32::MAX).to_be_bytes());
        self.queries.iter().for_each(|query| put_text(&mut out, query));
        out
    }
}

/// What a reply to an option is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReplyCode {
    /// 1: done, and no more replies to this option.
    Ack,
    /// 2: the name of an export.
    Server,
    /// 3: something about an export.
    Info,
    /// 4: a context and its number.
    MetaContext,
    /// 2^31 + 1: the option is unknown.
    Unsupported,
    /// 2^31 + 2: not wanted here.
    Policy,
    /// 2^31 + 3: the option makes no sense.
    Invalid,
    /// 2^31 + 5: only after `NBD_OPT_STARTTLS`.
    TlsRequired,
    /// 2^31 + 6: there is no such export.
    Unknown,
    /// 2^31 + 7: the server is ending.
    Shutdown,
    /// 2^31 + 9: too much was asked for.
    TooBig,
    /// 2^31 + 10: extended headers are agreed on already.
    ExtendedHeadersRequired,
    /// Any other number.
    Other(u32),
}

const ERROR: u32 = 1 << 31;

impl ReplyCode {
    /// The number on the wire.
    pub fn code(self) -> u32 {
        match self {
            Self::Ack => 1,
            Self::Server => 2,
            Self::Info => 3,
            Self::MetaContext => 4,
            Self::Unsupported => ERROR | 1,
            Self::Policy => ERROR | 2,
            Self::Invalid => ERROR | 3,
            Self::TlsRequired => ERROR | 5,
            Self::Unknown => ERROR | 6,
            Self::Shutdown => ERROR | 7,
            Self::TooBig => ERROR | 9,
            Self::ExtendedHeadersRequired => ERROR | 10,
            Self::Other(code) => code,
        }
    }

    /// The reply of this number.
    pub fn from_code(code: u32) -> Self {
        let known = [
            Self::Ack,
            Self::Server,
            Self::Info,
            Self::MetaContext,
            Self::Unsupported,
            Self::Policy,
            Self::Invalid,
            Self::TlsRequired,
            Self::Unknown,
            Self::Shutdown,
            Self::TooBig,
            Self::ExtendedHeadersRequired,
        ];
        known.into_iter().find(|known| known.code() == code).unwrap_or(Self::Other(code))
    }

    /// Whether the option failed.
    pub fn is_error(self) -> bool {
        self.code() & ERROR != 0
    }
}

/// A reply to an option, as a client finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionReply<'a> {
    /// The option that is answered.
    pub option: OptionCode,
    /// The answer.
    pub code: ReplyCode,
    /// What more it says; of an error, a text.
    pub data: &'a [u8],
}

impl<'a> OptionReply<'a> {
    /// Takes a reply from the front of `bytes`, with the number of bytes that it took.
    ///
    /// # Errors
    /// If it is none, or too long.
    pub fn parse(bytes: &'a [u8]) -> Result<Option<(Self, usize)>, Malformed> {
        let mut rest = Bytes(bytes);
        match rest.u64() {
            Some(REPLY_MAGIC) => {}
            Some(_) => return Err(Malformed("a reply to an option without its magic")),
            None => return Ok(None),
        }
        let mut fields = || Some((rest.u32()?, rest.u32()?, rest.u32()?));
        let Some((option, code, len)) = fields() else { return Ok(None) };
        if len > MAX_REPLY {
            return Err(Malformed("a reply to an option that is too long"));
        }
        let data = usize::try_from(len).ok().and_then(|len| rest.take(len));
        let used = bytes.len().saturating_sub(rest.0.len());
        Ok(data.map(|data| {
            let (option, code) = (OptionCode::from_code(option), ReplyCode::from_code(code));
            (Self { option, code, data }, used)
        }))
    }

    /// Appends the reply, for a server.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend(REPLY_MAGIC.to_be_bytes());
        out.extend(self.option.code().to_be_bytes());
        out.extend(self.code.code().to_be_bytes());
        out.extend(len32(self.data).to_be_bytes());
        out.extend(self.data);
    }
}

/// Something about an export: the data of a reply [`ReplyCode::Info`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Info<'a> {
    /// 0: size in bytes, and abilities.
    Export(u64, TransmissionFlags),
    /// 1: its name.
    Name(&'a [u8]),
    /// 2: a text for people.
    Description(&'a [u8]),
    /// 3: the least, the best and the largest size of requests, in bytes.
    BlockSize(u32, u32, u32),
}

impl<'a> Info<'a> {
    /// Number of [`Info::Name`], as a client asks for it.
    pub const NAME: u16 = 1;
    /// Number of [`Info::Description`].
    pub const DESCRIPTION: u16 = 2;
    /// Number of [`Info::BlockSize`].
    pub const BLOCK_SIZE: u16 = 3;

    /// Takes it apart; `None` if it is something else.
    pub fn parse(data: &'a [u8]) -> Option<Self> {
        let mut rest = Bytes(data);
        let info = match rest.u16()? {
            0 => Self::Export(rest.u64()?, TransmissionFlags::from_bits_retain(rest.u16()?)),
            Self::NAME => Self::Name(rest.take(rest.0.len())?),
            Self::DESCRIPTION => Self::Description(rest.take(rest.0.len())?),
            Self::BLOCK_SIZE => Self::BlockSize(rest.u32()?, rest.u32()?, rest.u32()?),
            _ => return None,
        };
        rest.is_empty().then_some(info)
    }

    /// The data, for a server.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Export(size, flags) => {
                out.extend(0_u16.to_be_bytes());
                out.extend(size.to_be_bytes());
                out.extend(flags.bits().to_be_bytes());
            }
            Self::Name(text) => {
                out.extend(Self::NAME.to_be_bytes());
                out.extend(*text);
            }
            Self::Description(text) => {
                out.extend(Self::DESCRIPTION.to_be_bytes());
                out.extend(*text);
            }
            Self::BlockSize(least, best, largest) => {
                out.extend(Self::BLOCK_SIZE.to_be_bytes());
                [least, best, largest].iter().for_each(|size| out.extend(size.to_be_bytes()));
            }
        }
        out
    }
}
