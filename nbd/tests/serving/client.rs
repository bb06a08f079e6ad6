//! A client that does what a test says, on one end of a socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use nbd::wire::{
    Chunk, ClientFlags, Command, CommandFlags, Errno, Extent, Greeting, Headers, MetaQuery,
    OptionCode, OptionHead, OptionReply, ReplyCode, ReplyHead, Request, Wanted,
};
use nbd::{Server, Socket};

/// A client, and the thread that serves it.
pub struct Client {
    pub stream: UnixStream,
    pub headers: Headers,
    cookie: u64,
    received: Vec<u8>,
    served: Option<JoinHandle<()>>,
}

/// What a request gave.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answer {
    pub bytes: Vec<u8>,
    pub extents: Vec<(u32, Vec<Extent>)>,
    /// Chunks with content.
    pub chunks: usize,
}

impl Client {
    /// Connects, and greets.
    pub fn connect(server: &Arc<Server>) -> Self {
        let (stream, other) = UnixStream::pair().unwrap();
        let server = Arc::clone(server);
        let served = Some(thread::spawn(move || server.serve(Arc::new(Socket::from(other)))));
        Self { served, ..Self::over(stream) }
    }

    /// Greets a server that somebody else runs.
    pub fn over(stream: UnixStream) -> Self {
        let (headers, received) = (Headers::Simple, Vec::new());
        let mut client = Self { stream, headers, cookie: 0, received, served: None };
        let mut greeting = [0; 18];
        client.stream.read_exact(&mut greeting).unwrap();
        Greeting::parse(&greeting).unwrap().unwrap();
        let flags = ClientFlags::FIXED_NEWSTYLE | ClientFlags::NO_ZEROES;
        client.send(&flags.bits().to_be_bytes());
        client
    }

    /// Connects, and agrees on everything.
    pub fn of(server: &Arc<Server>, headers: Headers, name: &str, contexts: &[&str]) -> Self {
        let mut client = Self::connect(server);
        client.agree(headers, name, contexts);
        client
    }

    pub fn agree(&mut self, headers: Headers, name: &str, contexts: &[&str]) {
        let option = match headers {
            Headers::Simple => None,
            Headers::Structured => Some(OptionCode::StructuredReply),
            Headers::Extended => Some(OptionCode::ExtendedHeaders),
        };
        if let Some(option) = option {
            assert_eq!(self.option(option, b""), ReplyCode::Ack);
        }
        let name = name.as_bytes();
        if !contexts.is_empty() {
            let queries = contexts.iter().map(|context| context.as_bytes()).collect();
            let query = MetaQuery { name, queries }.to_bytes();
            assert_eq!(self.option(OptionCode::SetMetaContext, &query), ReplyCode::Ack);
        }
        let wanted = Wanted { name, infos: vec![] }.to_bytes();
        assert_eq!(self.option(OptionCode::Go, &wanted), ReplyCode::Ack);
        self.headers = headers;
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The last reply to an option.
    pub fn option(&mut self, option: OptionCode, data: &[u8]) -> ReplyCode {
        let mut bytes = Vec::new();
        OptionHead::write(option, data, &mut bytes);
        self.send(&bytes);
        loop {
            if let Some((reply, used)) = OptionReply::parse(&self.received).unwrap() {
                let code = reply.code;
                self.received.drain(..used);
                if code == ReplyCode::Ack || code.is_error() {
                    return code;
                }
            } else {
                self.receive();
            }
        }
    }

    fn receive(&mut self) {
        let mut more = [0; 65536];
        let len = self.stream.read(&mut more).unwrap();
        assert!(len > 0, "the server hung up");
        self.received.extend(&more[..len]);
    }

    /// Whether the server has hung up, once all that it has sent is read.
    pub fn is_cut(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }

    /// Sends a request and gives back its cookie.
    pub fn ask(&mut self, command: Command, flags: CommandFlags, at: u64, len: u64) -> u64 {
        self.cookie += 1;
        let request = Request { command, flags, cookie: self.cookie, offset: at, len };
        let mut bytes = Vec::new();
        request.write(self.headers, &mut bytes);
        self.send(&bytes);
        self.cookie
    }

    /// Sends a request with a payload.
    pub fn ask_write(&mut self, flags: CommandFlags, at: u64, payload: &[u8]) -> u64 {
        let extended = self.headers == Headers::Extended;
        let flags = if extended { flags | CommandFlags::PAYLOAD_LEN } else { flags };
        let cookie = self.ask(Command::Write, flags, at, payload.len() as u64);
        self.send(payload);
        cookie
    }

    /// The reply to the request that is answered next, if it is this one; `len` of a read.
    pub fn answer(&mut self, cookie: u64, at: u64, len: usize) -> Result<Answer, Errno> {
        let mut answer = Answer { bytes: vec![0; len], ..Answer::default() };
        let mut result = Ok(());
        loop {
            let Some((head, used)) = ReplyHead::parse(self.headers, &self.received).unwrap() else {
                self.receive();
                continue;
            };
            match head {
                ReplyHead::Simple { cookie: found, error } => {
                    assert_eq!(found, cookie);
                    let data = if error.is_none() { len } else { 0 };
                    let payload = self.payload(used, data);
                    answer.bytes[..data].copy_from_slice(&payload);
                    return error.map_or(Ok(answer), Err);
                }
                ReplyHead::Chunk { status, kind, len } => {
                    assert_eq!(status.cookie, cookie);
                    let payload = self.payload(used, len as usize);
                    match Chunk::parse(kind, &payload).unwrap() {
                        Chunk::Data { at: place, bytes } => {
                            let start = (place - at) as usize;
                            answer.bytes[start..start + bytes.len()].copy_from_slice(bytes);
                            answer.chunks += 1;
                        }
                        Chunk::Hole { .. } => answer.chunks += 1,
                        Chunk::Status { context, extents } => {
                            answer.extents.push((context, extents));
                        }
                        Chunk::Error { error, .. } => result = Err(error),
                        Chunk::None => {}
                    }
                    if status.done {
                        return result.map(|()| answer);
                    }
                }
            }
        }
    }

    fn payload(&mut self, head: usize, len: usize) -> Vec<u8> {
        while self.received.len() < head + len {
            self.receive();
        }
        let payload = self.received[head..head + len].to_vec();
        self.received.drain(..head + len);
        payload
    }

    pub fn read(&mut self, at: u64, len: usize) -> Result<Vec<u8>, Errno> {
        let cookie = self.ask(Command::Read, CommandFlags::empty(), at, len as u64);
        self.answer(cookie, at, len).map(|answer| answer.bytes)
    }

    pub fn write(&mut self, at: u64, payload: &[u8]) -> Result<(), Errno> {
        let cookie = self.ask_write(CommandFlags::empty(), at, payload);
        self.answer(cookie, 0, 0).map(drop)
    }

    /// A request without payload and content.
    pub fn change(
        &mut self,
        command: Command,
        flags: CommandFlags,
        at: u64,
        len: u64,
    ) -> Result<(), Errno> {
        let cookie = self.ask(command, flags, at, len);
        self.answer(cookie, at, 0).map(drop)
    }

    /// The extents of the only context.
    pub fn status(&mut self, flags: CommandFlags, at: u64, len: u64) -> Vec<(u64, u32)> {
        let cookie = self.ask(Command::BlockStatus, flags, at, len);
        let mut answer = self.answer(cookie, at, 0).unwrap();
        assert_eq!(answer.extents.len(), 1);
        answer.extents.remove(0).1.iter().map(|extent| (extent.len, extent.flags)).collect()
    }

    /// Goes without a word, and waits until the server is done with it.
    pub fn vanish(mut self) {
        let served = self.served.take();
        drop(self);
        served.unwrap().join().unwrap();
    }

    /// Goes as the protocol says: the server hangs up, without a word more.
    pub fn leave(mut self) {
        self.ask(Command::Disconnect, CommandFlags::empty(), 0, 0);
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, [0; 0]);
        if let Some(served) = self.served.take() {
            served.join().unwrap();
        }
    }
}
