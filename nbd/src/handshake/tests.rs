//! The negotiation as a table: options in, replies out.

use super::*;
use crate::backend::{Backend, Failed};
use crate::context::Extents;

#[derive(Debug)]
struct Nothing;

impl Backend for Nothing {
    fn size(&self) -> u64 {
        1 << 20
    }

    fn read_at(&self, _: &mut [u8], _: u64) -> Result<(), Failed> {
        Ok(())
    }

    fn extents(&self, _: &Context, _: u64, len: u64, found: &mut Extents) -> Result<(), Failed> {
        found.push(len, 0);
        Ok(())
    }
}

fn exports() -> Vec<Export> {
    let bitmap = Context::DirtyBitmap("b0".to_owned());
    let first = Export::new("first", Box::new(Nothing)).context(Context::Depth).context(bitmap);
    vec![first.description("a disk"), Export::new("second", Box::new(Nothing))]
}

fn shake<'a>(exports: &'a [Export], encryption: Encryption) -> Handshake<'a> {
    let client = ClientFlags::FIXED_NEWSTYLE | ClientFlags::NO_ZEROES;
    Handshake::new(exports, client, encryption).unwrap()
}

/// The replies' codes and data.
fn ask(
    handshake: &mut Handshake<'_>,
    option: OptionCode,
    data: &[u8],
) -> (Step, Vec<(ReplyCode, Vec<u8>)>) {
    let mut out = Vec::new();
    let step = handshake.option(option, data, &mut out);
    let mut replies = Vec::new();
    let mut rest = &out[..];
    while let Some((reply, used)) = OptionReply::parse(rest).unwrap() {
        assert_eq!(reply.option, option);
        replies.push((reply.code, reply.data.to_vec()));
        rest = &rest[used..];
    }
    assert!(rest.is_empty());
    (step, replies)
}

fn last(handshake: &mut Handshake<'_>, option: OptionCode, data: &[u8]) -> ReplyCode {
    ask(handshake, option, data).1.pop().unwrap().0
}

fn go(name: &str) -> Vec<u8> {
    Wanted { name: name.as_bytes(), infos: vec![] }.to_bytes()
}

fn query(name: &str, queries: &[&str]) -> Vec<u8> {
    let queries = queries.iter().map(|query| query.as_bytes()).collect();
    MetaQuery { name: name.as_bytes(), queries }.to_bytes()
}

fn contexts(replies: &[(ReplyCode, Vec<u8>)]) -> Vec<String> {
    let named = replies.iter().filter(|(code, _)| *code == ReplyCode::MetaContext);
    named.map(|(_, data)| String::from_utf8(data[4..].to_vec()).unwrap()).collect()
}

#[test]
fn options_that_make_no_sense_are_answered_and_the_next_one_is_taken() {
    let exports = exports();
    let mut handshake = shake(&exports, Encryption::None);
    for (option, data, expected) in [
        (OptionCode::Other(4), &b""[..], ReplyCode::Unsupported),
        (OptionCode::Other(77), b"data", ReplyCode::Unsupported),
        (OptionCode::List, b"x", ReplyCode::Invalid),
        (OptionCode::StructuredReply, b"x", ReplyCode::Invalid),
        (OptionCode::Go, b"\0\0\0\x7fshort\0\0", ReplyCode::Invalid),
        (OptionCode::Info, b"", ReplyCode::Invalid),
        (OptionCode::Go, &go("third"), ReplyCode::Unknown),
        // With two of them, none is the default one.
        (OptionCode::Go, &go(""), ReplyCode::Unknown),
        (OptionCode::StartTls, b"", ReplyCode::Policy),
        // Before structured replies.
        (OptionCode::SetMetaContext, &query("first", &["base:allocation"]), ReplyCode::Invalid),
        (OptionCode::StructuredReply, b"", ReplyCode::Ack),
        (OptionCode::StructuredReply, b"", ReplyCode::Invalid),
        (OptionCode::SetMetaContext, &query("third", &[]), ReplyCode::Unknown),
        (OptionCode::ExtendedHeaders, b"", ReplyCode::Ack),
        (OptionCode::StructuredReply, b"", ReplyCode::ExtendedHeadersRequired),
        (OptionCode::ExtendedHeaders, b"", ReplyCode::Invalid),
    ] {
        let (step, replies) = ask(&mut handshake, option, data);
        assert_eq!((step, replies.last().unwrap().0), (Step::Next, expected), "{option:?}");
    }
    let (step, replies) = ask(&mut handshake, OptionCode::Go, &go("second"));
    let agreed = Agreed { export: 1, headers: Headers::Extended, contexts: vec![] };
    assert_eq!(step, Step::Transmit(agreed));
    let infos: Vec<_> = replies.iter().filter_map(|(_, data)| Info::parse(data)).collect();
    assert!(matches!(infos[..], [Info::BlockSize(1, 4096, _), Info::Export(0x10_0000, _)]));
}

#[test]
fn contexts_belong_to_one_export_and_wildcards_are_for_lists() {
    let exports = exports();
    let mut handshake = shake(&exports, Encryption::None);
    ask(&mut handshake, OptionCode::StructuredReply, b"");
    let list = |handshake: &mut Handshake<'_>, queries: &[&str]| {
        contexts(&ask(handshake, OptionCode::ListMetaContext, &query("first", queries)).1)
    };
    let all = ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:b0"];
    assert_eq!(list(&mut handshake, &[]), all);
    assert_eq!(list(&mut handshake, &["qemu:"]), all[1..]);
    assert_eq!(list(&mut handshake, &["qemu:dirty-bitmap:"]), all[2..]);
    assert_eq!(list(&mut handshake, &["base:", "nobody:knows"]), all[..1]);
    let mut set = |queries: &[&str]| {
        contexts(&ask(&mut handshake, OptionCode::SetMetaContext, &query("first", queries)).1)
    };
    assert!(set(&["base:", "qemu:", ""]).is_empty());
    assert_eq!(set(&["qemu:dirty-bitmap:b0", "x:y", "base:allocation"]), [all[0], all[2]]);
    // For the other export they mean nothing.
    let chosen =
        |handshake: &mut Handshake<'_>, name: &str| match ask(handshake, OptionCode::Go, &go(name))
            .0
        {
            Step::Transmit(agreed) => agreed.contexts,
            step => panic!("{step:?}"),
        };
    assert_eq!(chosen(&mut handshake, "second"), [0; 0]);
    assert_eq!(chosen(&mut handshake, "first"), [0, 2]);
    // One that fails takes back what was set.
    last(&mut handshake, OptionCode::SetMetaContext, b"");
    assert_eq!(chosen(&mut handshake, "first"), [0; 0]);
}

#[test]
fn without_encryption_nothing_is_told_where_it_is_required() {
    let exports = exports();
    let mut handshake = shake(&exports, Encryption::Required);
    for option in [
        OptionCode::List,
        OptionCode::Go,
        OptionCode::Info,
        OptionCode::StructuredReply,
        OptionCode::SetMetaContext,
        OptionCode::Other(99),
    ] {
        let (_, replies) = ask(&mut handshake, option, b"");
        assert!(matches!(replies[..], [(ReplyCode::TlsRequired, _)]), "{option:?}");
    }
    assert_eq!(ask(&mut handshake, OptionCode::ExportName, b"first").0, Step::End);
    assert_eq!(last(&mut handshake, OptionCode::StartTls, b"x"), ReplyCode::Invalid);
    assert_eq!(ask(&mut handshake, OptionCode::StartTls, b"").0, Step::StartTls);
    let mut handshake = shake(&exports, Encryption::Active);
    assert_eq!(last(&mut handshake, OptionCode::StartTls, b""), ReplyCode::Invalid);
    assert_eq!(last(&mut handshake, OptionCode::List, b""), ReplyCode::Ack);
}

#[test]
fn old_clients_get_their_export_by_name_and_nothing_else() {
    let exports = exports();
    let mut out = Vec::new();
    let mut old = Handshake::new(&exports, ClientFlags::empty(), Encryption::None).unwrap();
    assert_eq!(old.option(OptionCode::List, b"", &mut out), Step::End);
    assert!(out.is_empty());
    assert!(matches!(
        old.option(OptionCode::ExportName, b"first", &mut out),
        Step::Transmit(Agreed { export: 0, .. })
    ));
    assert_eq!(out.len(), 8 + 2 + EXPORT_NAME_PADDING);
    let unknown = ClientFlags::from_bits_retain(1 << 9);
    assert!(Handshake::new(&exports, unknown, Encryption::None).is_none());
    let mut new = shake(&exports, Encryption::None);
    out.clear();
    new.option(OptionCode::ExportName, b"first", &mut out);
    assert_eq!(out.len(), 10);
    assert_eq!(new.option(OptionCode::ExportName, b"", &mut out), Step::End);
    let long = "n".repeat(MAX_STRING + 1);
    assert_eq!(new.option(OptionCode::ExportName, long.as_bytes(), &mut out), Step::End);
    assert_eq!(last(&mut new, OptionCode::Go, &go(&long)), ReplyCode::Invalid);
}
