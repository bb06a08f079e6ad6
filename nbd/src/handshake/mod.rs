//! The negotiation, from the server's side: an option in, replies out. No I/O.

use crate::context::Context;
use crate::export::{Export, find};
use crate::wire::{
    ClientFlags, EXPORT_NAME_PADDING, Headers, Info, MAX_STRING, MetaQuery, OptionCode,
    OptionReply, ReplyCode, Wanted,
};

/// What follows an option.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// The next option.
    Next,
    /// Encryption; then everything from the beginning, without a greeting.
    StartTls,
    /// Requests.
    Transmit(Agreed),
    /// The end of the connection.
    End,
}

/// What was agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreed {
    /// Number of the export.
    pub export: usize,
    /// How replies look.
    pub headers: Headers,
    /// Numbers of the export's contexts, in ascending order. A context's number on the wire is the same.
    pub contexts: Vec<u32>,
}

/// Whether connections are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Encryption {
    /// It is not offered.
    #[default]
    None,
    /// Nothing is told or given before it.
    Required,
    /// It is in place.
    Active,
}

/// One client's negotiation.
#[derive(Debug)]
pub struct Handshake<'a> {
    exports: &'a [Export],
    client: ClientFlags,
    encryption: Encryption,
    headers: Headers,
    /// For which export contexts were asked for, and which.
    contexts: Option<(usize, Vec<u32>)>,
}

impl<'a> Handshake<'a> {
    /// A negotiation about `exports`, with a client that has said so much of itself. `None` if a flag is unknown: such a
    /// client is to be left alone.
    pub fn new(exports: &'a [Export], client: ClientFlags, encryption: Encryption) -> Option<Self> {
        let known = ClientFlags::FIXED_NEWSTYLE | ClientFlags::NO_ZEROES;
        known.contains(client).then_some(Self {
            exports,
            client,
            encryption,
            headers: Headers::Simple,
            contexts: None,
        })
    }

    /// Answers an option with `data`: appends the replies to `out`.
    ///
    /// ```
    /// use nbd::handshake::{Encryption, Handshake, Step};
    /// use nbd::wire::{ClientFlags, OptionCode};
    /// let client = ClientFlags::FIXED_NEWSTYLE;
    /// let mut handshake = Handshake::new(&[], client, Encryption::None).unwrap();
    /// let mut replies = Vec::new();
    /// assert_eq!(handshake.option(OptionCode::Abort, b"", &mut replies), Step::End);
    /// assert_eq!(replies.len(), 20); // an acknowledgement
    /// ```
    pub fn option(&mut self, option: OptionCode, data: &[u8], out: &mut Vec<u8>) -> Step {
        let fixed = self.client.contains(ClientFlags::FIXED_NEWSTYLE);
        if option == OptionCode::ExportName {
            return self.export_name(data, out);
        }
        if !fixed {
            // It would not understand any reply.
            return Step::End;
        }
        let code = match option {
            OptionCode::Abort => {
                reply(out, option, ReplyCode::Ack, b"");
                return Step::End;
            }
            OptionCode::StartTls => return self.start_tls(data, out),
            _ if self.encryption == Encryption::Required => ReplyCode::TlsRequired,
            OptionCode::List => self.list(data, out),
            OptionCode::Info | OptionCode::Go => match self.info(option, data, out) {
                Ok(agreed) if option == OptionCode::Go => {
                    reply(out, option, ReplyCode::Ack, b"");
                    return Step::Transmit(agreed);
                }
                Ok(_) => ReplyCode::Ack,
                Err(code) => code,
            },
            OptionCode::StructuredReply => self.raise(data, Headers::Structured),
            OptionCode::ExtendedHeaders => self.raise(data, Headers::Extended),
            OptionCode::ListMetaContext | OptionCode::SetMetaContext => {
                self.meta(option, data, out).unwrap_or_else(|code| code)
            }
            _ => ReplyCode::Unsupported,
        };
        let text = match code {
            ReplyCode::Ack => "",
            ReplyCode::TlsRequired => "this server wants encryption first",
            ReplyCode::Unsupported => "this server does not know the option",
            ReplyCode::Unknown => "there is no export of this name",
            ReplyCode::ExtendedHeadersRequired => "extended headers are agreed on already",
            _ => "the option's data makes no sense here",
        };
        reply(out, option, code, text.as_bytes());
        Step::Next
    }

    /// Answers an option whose data was too long to be taken.
    pub fn too_big(&self, option: OptionCode, out: &mut Vec<u8>) -> Step {
        if option == OptionCode::ExportName || !self.client.contains(ClientFlags::FIXED_NEWSTYLE) {
            return Step::End;
        }
        reply(out, option, ReplyCode::TooBig, b"the option's data is too long");
        Step::Next
    }

    fn start_tls(&self, data: &[u8], out: &mut Vec<u8>) -> Step {
        let code = match self.encryption {
            _ if !data.is_empty() => ReplyCode::Invalid,
            Encryption::None => ReplyCode::Policy,
            Encryption::Active => ReplyCode::Invalid,
            Encryption::Required => ReplyCode::Ack,
        };
        reply(out, OptionCode::StartTls, code, b"");
        if code == ReplyCode::Ack { Step::StartTls } else { Step::Next }
    }

    fn list(&self, data: &[u8], out: &mut Vec<u8>) -> ReplyCode {
        if !data.is_empty() {
            return ReplyCode::Invalid;
        }
        for export in self.exports {
            let name = export.name().as_bytes();
            let mut data = u32::try_from(name.len()).unwrap_or_default().to_be_bytes().to_vec();
            data.extend(name);
            data.extend(export.text().as_bytes());
            reply(out, OptionCode::List, ReplyCode::Server, &data);
        }
        ReplyCode::Ack
    }

    fn info(
        &self,
        option: OptionCode,
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Agreed, ReplyCode> {
        let wanted = Wanted::parse(data).ok_or(ReplyCode::Invalid)?;
        let index = find(self.exports, wanted.name).ok_or(ReplyCode::Unknown)?;
        let export = self.exports.get(index).ok_or(ReplyCode::Unknown)?;
        let mut tell = |info: Info<'_>| reply(out, option, ReplyCode::Info, &info.to_bytes());
        if wanted.infos.contains(&Info::NAME) {
            tell(Info::Name(export.name().as_bytes()));
        }
        if wanted.infos.contains(&Info::DESCRIPTION) && !export.text().is_empty() {
            tell(Info::Description(export.text().as_bytes()));
        }
        let (least, best, largest) = export.block_sizes();
        tell(Info::BlockSize(least, best, largest));
        tell(Info::Export(export.size(), export.flags(self.headers > Headers::Simple)));
        Ok(self.agreed(index))
    }

    fn agreed(&self, export: usize) -> Agreed {
        // Contexts are those of one export, and mean nothing for another.
        let contexts = match &self.contexts {
            Some((of, contexts)) if *of == export && self.headers > Headers::Simple => {
                contexts.clone()
            }
            _ => Vec::new(),
        };
        Agreed { export, headers: self.headers, contexts }
    }

    fn export_name(&self, data: &[u8], out: &mut Vec<u8>) -> Step {
        let found = find(self.exports, data).filter(|_| data.len() <= MAX_STRING);
        let export = found.and_then(|index| self.exports.get(index));
        let (Some(index), Some(export)) = (found, export) else { return Step::End };
        if self.encryption == Encryption::Required {
            return Step::End;
        }
        out.extend(export.size().to_be_bytes());
        out.extend(export.flags(self.headers > Headers::Simple).bits().to_be_bytes());
        if !self.client.contains(ClientFlags::NO_ZEROES) {
            out.extend([0; EXPORT_NAME_PADDING]);
        }
        Step::Transmit(self.agreed(index))
    }

    fn raise(&mut self, data: &[u8], headers: Headers) -> ReplyCode {
        if !data.is_empty() {
            return ReplyCode::Invalid;
        }
        match self.headers {
            Headers::Extended if headers < Headers::Extended => ReplyCode::ExtendedHeadersRequired,
            known if known == headers => ReplyCode::Invalid,
            _ => {
                self.headers = headers;
                ReplyCode::Ack
            }
        }
    }

    fn meta(
        &mut self,
        option: OptionCode,
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<ReplyCode, ReplyCode> {
        let set = option == OptionCode::SetMetaContext;
        if set {
            // Whatever becomes of it, it replaces what was asked for before.
            self.contexts = None;
        }
        if self.headers < Headers::Structured {
            return Err(ReplyCode::Invalid);
        }
        let query = MetaQuery::parse(data).ok_or(ReplyCode::Invalid)?;
        let index = find(self.exports, query.name).ok_or(ReplyCode::Unknown)?;
        let export = self.exports.get(index).ok_or(ReplyCode::Unknown)?;
        let mut chosen = Vec::new();
        for (number, context) in (0..).zip(export.contexts()) {
            let named = query.queries.iter().any(|query| matches(query, context, !set));
            if named || (!set && query.queries.is_empty()) {
                let number: u32 = number;
                let mut data = if set { number } else { 0 }.to_be_bytes().to_vec();
                data.extend(context.to_string().bytes());
                reply(out, option, ReplyCode::MetaContext, &data);
                chosen.push(number);
            }
        }
        if set {
            self.contexts = Some((index, chosen));
        }
        Ok(ReplyCode::Ack)
    }
}

/// Whether a query means this context; a list may ask for whole families.
fn matches(query: &[u8], context: &Context, families: bool) -> bool {
    let name = context.to_string();
    let family = [&b"base:"[..], b"qemu:", b"qemu:dirty-bitmap:"].contains(&query);
    name.as_bytes() == query || (families && family && name.as_bytes().starts_with(query))
}

fn reply(out: &mut Vec<u8>, option: OptionCode, code: ReplyCode, data: &[u8]) {
    OptionReply { option, code, data }.write(out);
}

#[cfg(test)]
mod tests;
