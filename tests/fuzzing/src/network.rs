//! Targets for the network block device protocol: a whole server before a client that sends anything, and what a client makes of anything
//! that a server sends.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use nbd::wire::{
    Chunk, ClientFlags, Command, CommandFlags, Greeting, Headers, Info, MetaQuery, OptionCode,
    OptionHead, OptionReply, ReplyHead, Request, Wanted,
};
use nbd::{DiskBackend, Export, Server, ServerOptions, Transport, Wait};
use qcow::chain::Format;
use qcow::disk::{Disk, WriteOptions};
use qcow::io::MemoryStorage;

const DISK: usize = 256 << 10;

/// A stream whose other side has sent everything at the beginning, and takes everything.
#[derive(Debug)]
struct Script {
    input: Mutex<(Vec<u8>, usize)>,
    output: Mutex<Vec<u8>>,
}

impl Transport for Script {
    fn receive(&self, buf: &mut [u8], _: Option<Instant>) -> io::Result<usize> {
        let mut input = self.input.lock().unwrap();
        let (bytes, at) = &mut *input;
        let len = buf.len().min(bytes.len() - *at);
        buf[..len].copy_from_slice(&bytes[*at..*at + len]);
        *at += len;
        Ok(len)
    }

    fn send(&self, bufs: &[IoSlice<'_>], _: Wait) -> io::Result<usize> {
        let mut output = self.output.lock().unwrap();
        bufs.iter().for_each(|buf| output.extend_from_slice(buf));
        Ok(bufs.iter().map(|buf| buf.len()).sum())
    }

    fn wait_to_send(&self, _: Wait) -> io::Result<()> {
        Ok(())
    }

    fn stop_receiving(&self) {}

    fn cut(&self) {}

    fn peer_is_gone(&self) -> bool {
        false
    }
}

/// What a server says to a client that has sent `input` and goes on listening.
fn answers(input: Vec<u8>) -> Vec<u8> {
    let storage = Arc::new(MemoryStorage::new(vec![0; DISK]));
    let disk = Disk::from_storage(storage, Format::Raw, WriteOptions::new()).expect("a raw disk");
    let export = Export::new("disk", Box::new(DiskBackend::new(disk)));
    let options = ServerOptions::new().threads(1);
    let server = Server::new(vec![export], &options).expect("a server");
    let script = Arc::new(Script { input: Mutex::new((input, 0)), output: Mutex::default() });
    server.serve(script.clone());
    server.close().expect("the disk is in memory");
    std::mem::take(&mut script.output.lock().unwrap())
}

/// Options that agree on these headers and on the export.
fn agreement(headers: Headers) -> Vec<u8> {
    let flags = ClientFlags::FIXED_NEWSTYLE | ClientFlags::NO_ZEROES;
    let mut input = flags.bits().to_be_bytes().to_vec();
    let option = match headers {
        Headers::Simple => OptionCode::Other(500),
        Headers::Structured => OptionCode::StructuredReply,
        Headers::Extended => OptionCode::ExtendedHeaders,
    };
    OptionHead::write(option, b"", &mut input);
    let query = MetaQuery { name: b"", queries: vec![b"base:allocation"] }.to_bytes();
    OptionHead::write(OptionCode::SetMetaContext, &query, &mut input);
    OptionHead::write(
        OptionCode::Go,
        &Wanted { name: b"disk", infos: vec![] }.to_bytes(),
        &mut input,
    );
    input
}

/// A client: anything at all, or options out of the bytes, or requests out of the bytes, each of which must have one reply.
pub fn nbd_server(data: &[u8]) {
    let Some((how, data)) = data.split_first() else { return };
    let headers = [Headers::Simple, Headers::Structured, Headers::Extended][usize::from(how % 3)];
    match how / 64 {
        0 => drop(answers(data.to_vec())),
        1 => drop(answers([agreement(headers), data.to_vec()].concat())),
        2 => options(data),
        _ => requests(headers, data),
    }
}

/// Each option is answered by replies to it, of which the last, and no other, is an acknowledgement or an error.
fn options(data: &[u8]) {
    let mut input = ClientFlags::FIXED_NEWSTYLE.bits().to_be_bytes().to_vec();
    let mut sent = Vec::new();
    for piece in data.chunks(16) {
        let code = u32::from(piece[0] % 14);
        let option = OptionCode::from_code(code);
        OptionHead::write(option, &piece[1..], &mut input);
        sent.push(option);
        if matches!(option, OptionCode::ExportName | OptionCode::Abort) {
            break;
        }
    }
    let output = answers(input);
    let (_, used) = Greeting::parse(&output).unwrap().expect("a greeting");
    let mut rest = &output[used..];
    let mut sent = sent.into_iter();
    let mut now = sent.next();
    while let Ok(Some((reply, used))) = OptionReply::parse(rest) {
        assert_eq!(Some(reply.option), now, "a reply to another option");
        if reply.code == nbd::wire::ReplyCode::Ack || reply.code.is_error() {
            now = sent.next();
        }
        rest = &rest[used..];
    }
}

fn requests(headers: Headers, data: &[u8]) {
    let mut input = agreement(headers);
    let mut sent = BTreeMap::new();
    for (cookie, piece) in (1..).zip(data.chunks(6).take(200)) {
        let field = |at: usize| u64::from(piece.get(at).copied().unwrap_or_default());
        let mut command = Command::from_code((field(0) % 10) as u16);
        if command == Command::Disconnect {
            command = Command::Read;
        }
        let mut flags = CommandFlags::from_bits_retain((field(1) % 32) as u16);
        flags.set(
            CommandFlags::PAYLOAD_LEN,
            headers == Headers::Extended && command == Command::Write,
        );
        let (offset, len) = (field(2) << 10 | field(3), field(4) << (field(5) % 8));
        let request = Request { command, flags, cookie, offset, len };
        request.write(headers, &mut input);
        input.resize(input.len() + request.payload(headers) as usize, 0x5a);
        sent.insert(cookie, request);
    }
    // Nothing is to be left undone because the client went.
    let end = Request {
        command: Command::Disconnect,
        flags: CommandFlags::empty(),
        cookie: 0,
        offset: 0,
        len: 0,
    };
    end.write(headers, &mut input);
    let output = answers(input);
    let (_, used) = Greeting::parse(&output).unwrap().expect("a greeting");
    let mut rest = &output[used..];
    while let Ok(Some((_, used))) = OptionReply::parse(rest) {
        rest = &rest[used..];
    }
    while !rest.is_empty() {
        let (head, used) = ReplyHead::parse(headers, rest).unwrap().expect("a whole reply");
        rest = &rest[used..];
        let (cookie, len, done) = match head {
            ReplyHead::Simple { cookie, error } => {
                let request = sent.get(&cookie).expect("a reply to something else");
                let read = request.command == Command::Read && error.is_none();
                assert!(!read || headers == Headers::Simple, "a simple reply to a read");
                (cookie, if read { request.len as usize } else { 0 }, true)
            }
            ReplyHead::Chunk { status, kind, len } => {
                let payload = &rest[..len as usize];
                check_chunk(
                    sent.get(&status.cookie),
                    &Chunk::parse(kind, payload).expect("a chunk"),
                );
                (status.cookie, len as usize, status.done)
            }
        };
        rest = &rest[len..];
        if done {
            assert!(sent.remove(&cookie).is_some(), "two replies to one request");
        }
    }
    assert!(sent.is_empty(), "without a reply: {sent:?}");
}

/// A chunk lies within its request.
fn check_chunk(request: Option<&Request>, chunk: &Chunk<'_>) {
    let request = request.expect("a chunk for something else");
    let end = request.offset + request.len;
    match chunk {
        Chunk::Data { at, bytes } => {
            assert!(*at >= request.offset && at + bytes.len() as u64 <= end);
        }
        Chunk::Hole { at, len } => assert!(*at >= request.offset && at + u64::from(*len) <= end),
        Chunk::Status { extents, .. } => {
            let sum: u64 = extents.iter().map(|extent| extent.len).sum();
            assert!(sum <= request.len);
            assert!(extents.len() == 1 || !request.flags.contains(CommandFlags::REQ_ONE));
        }
        Chunk::Error { .. } | Chunk::None => {}
    }
}

/// What a server may send: parsers take what they say, and no more than there is.
pub fn nbd_client(data: &[u8]) {
    let whole = |used: usize| assert!(used <= data.len());
    if let Ok(Some((_, used))) = Greeting::parse(data) {
        whole(used);
    }
    if let Ok(Some((reply, used))) = OptionReply::parse(data) {
        whole(used);
        let mut again = Vec::new();
        reply.write(&mut again);
        assert_eq!(again, data[..used]);
    }
    if let Some(info) = Info::parse(data) {
        assert_eq!(info.to_bytes(), data);
    }
    for headers in [Headers::Simple, Headers::Structured, Headers::Extended] {
        if let Ok(Some((_, used))) = ReplyHead::parse(headers, data) {
            whole(used);
        }
        if let Ok(Some((request, used))) = Request::parse(headers, data) {
            let mut again = Vec::new();
            request.write(headers, &mut again);
            assert_eq!(again, data[..used]);
        }
    }
    let kind = |code| nbd::wire::ChunkKind::from_code(code);
    for code in [0, 1, 2, 3, 5, 6, 32769, 32770, 40000] {
        if let Ok(Chunk::Status { extents, .. }) = Chunk::parse(kind(code), data) {
            assert!(extents.iter().all(|extent| extent.len > 0));
            assert!(extents.len() * 8 <= data.len());
        }
    }
    if let Some(query) = MetaQuery::parse(data) {
        assert_eq!(query.to_bytes(), data);
    }
    if let Some(wanted) = Wanted::parse(data) {
        assert_eq!(wanted.to_bytes(), data);
    }
}
