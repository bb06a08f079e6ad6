//! The near end of a connection to the same program elsewhere. Never waits for ever: a far end that stays silent
//! for too long is given up.

use std::collections::VecDeque;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use qcow::{CancelToken, Observer};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::de::DeserializeOwned;

use crate::agent::message::{Hello, MAGIC, Reply, Request, cut, error_of};
use crate::agent::wire::{self, Frame, HEADER, garbage};
use crate::{Error, Remedy, Result};

/// So long may the other end say nothing while something is expected of it.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// So long if the user does not want it any more.
const PATIENCE_AT_THE_END: Duration = Duration::from_secs(5);
/// How often the wish to stop is looked at.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// Not more than this is read ahead.
const AHEAD: usize = 4 << 20;
/// The last of what the command said, in bytes.
const TAIL: usize = 2048;
/// So long may a command take to end when its work is done.
const FAREWELL: Duration = Duration::from_secs(2);

/// Why something was not done.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The other end said so; the connection is well.
    Said(Error),
    /// The connection cannot be used any more.
    Broken(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Broken(error)
    }
}

/// A connection to the program at the far end.
#[derive(Debug)]
pub(super) struct Connection {
    input: OwnedFd,
    /// `None` once nothing more will be said.
    output: Option<OwnedFd>,
    received: VecDeque<u8>,
    /// The other end cannot write what it is sent.
    stopped: bool,
    peer: Option<Peer>,
    patience: Duration,
    cancel: CancelToken,
    /// The other end knows that it is not wanted any more.
    called_off: bool,
}

impl Connection {
    /// Runs a command whose standard input and output lead to the far end.
    pub(super) fn run(words: &[String], patience: Duration) -> Result<Self> {
        let (peer, input, output) = Peer::start(words)?;
        Self::greeted(input, output, Some(peer), patience)
    }

    /// Uses a pair of streams that is there.
    pub(super) fn over(input: OwnedFd, output: OwnedFd, patience: Duration) -> Result<Self> {
        Self::greeted(input, output, None, patience)
    }

    fn greeted(
        input: OwnedFd,
        output: OwnedFd,
        peer: Option<Peer>,
        patience: Duration,
    ) -> Result<Self> {
        for end in [&input, &output] {
            rustix::fs::fcntl_getfl(end)
                .and_then(|flags| rustix::fs::fcntl_setfl(end, flags | OFlags::NONBLOCK))
                .map_err(|error| Error::io("not a stream", error))?;
        }
        let mut new = Self {
            input,
            output: Some(output),
            received: VecDeque::new(),
            stopped: false,
            peer,
            patience,
            cancel: CancelToken::new(),
            called_off: false,
        };
        match new.greet() {
            Ok(hello) => {
                let reached = new.peer.as_ref().map(|peer| &*peer.command);
                hello.check(reached).map(|()| new)
            }
            Err(error) => {
                let error = new.explain(error);
                if error.what_next().is_some() {
                    return Err(error);
                }
                Err(error.hint(Remedy::StartAgent))
            }
        }
    }

    fn greet(&mut self) -> Result<Hello> {
        // If the far end has exited already, what it said is of more interest than that.
        let sent = self.send(&wire::greeting()?);
        while self.received.len() < MAGIC.len() {
            self.wait()?;
        }
        let magic: Vec<u8> = self.received.drain(..MAGIC.len()).collect();
        if magic != MAGIC {
            let more = self.received.iter().take(200).copied();
            let said: Vec<u8> = magic.into_iter().chain(more).collect();
            return Err(Error::environment(format!(
                "it said \"{}\" instead of a greeting",
                qcow::Escaped(String::from_utf8_lossy(&said).trim())
            ))
            .hint(Remedy::OnlyAgent));
        }
        sent?;
        match self.frame()? {
            Frame::Message(json) => wire::parse::<Hello>(&json),
            Frame::Data { .. } => Err(garbage("no greeting")),
        }
    }

    /// Something new begins; this tells whether the user still wants it.
    pub(super) fn heed(&mut self, cancel: &CancelToken) {
        self.cancel = cancel.clone();
        self.stopped = false;
        self.called_off = false;
    }

    /// Asks and waits for the answer.
    pub(super) fn ask<T: DeserializeOwned>(
        &mut self,
        request: &Request,
        observer: &dyn Observer,
    ) -> Result<T, Trouble> {
        // What cannot be said was not said.
        let bytes = wire::message(request).map_err(Trouble::Said)?;
        self.send(&bytes)?;
        self.answer(observer)
    }

    /// Waits for an answer.
    pub(super) fn answer<T: DeserializeOwned>(
        &mut self,
        observer: &dyn Observer,
    ) -> Result<T, Trouble> {
        let mut most = 0;
        loop {
            let Frame::Message(json) = self.frame()? else {
                return Err(garbage("an unrequested piece of a file").into());
            };
            match wire::parse(&json)? {
                Reply::Done { value } => {
                    return serde_json::from_value(value).map_err(|error| {
                        garbage(&format!("an answer to another question: {error}")).into()
                    });
                }
                Reply::Failed { kind, message, hint } => {
                    return Err(Trouble::Said(error_of(&kind, &message, hint.as_deref())));
                }
                Reply::Progress { done, total } => {
                    most = done.min(total).max(most);
                    observer.progress(most, total);
                }
                Reply::Stop => self.stopped = true,
                Reply::Alive => {}
            }
        }
    }

    /// The next frame, when it has come.
    pub(super) fn frame(&mut self) -> Result<Frame> {
        loop {
            if let Some(frame) = self.received_frame()? {
                return Ok(frame);
            }
            if self.cancel.is_cancelled() && !self.called_off {
                self.called_off = true;
                self.send(&wire::message(&Request::Cancel)?)?;
            }
            self.wait()?;
        }
    }

    /// Whether the other end has said that it cannot go on; without waiting.
    pub(super) fn is_stopped(&mut self) -> Result<bool> {
        // What came before the end is heard first.
        while !self.stopped {
            match self.received_frame()? {
                Some(Frame::Message(json)) => match wire::parse(&json)? {
                    Reply::Stop => self.stopped = true,
                    Reply::Alive | Reply::Progress { .. } => {}
                    _ => return Err(garbage("an unrequested answer")),
                },
                Some(Frame::Data { .. }) => {
                    return Err(garbage("an unrequested piece"));
                }
                None if self.receive()? == 0 => break,
                None => {}
            }
        }
        Ok(self.stopped)
    }

    fn received_frame(&mut self) -> Result<Option<Frame>> {
        if self.received.len() < HEADER {
            return Ok(None);
        }
        let header: Vec<u8> = self.received.iter().take(HEADER).copied().collect();
        let end = HEADER.saturating_add(Frame::payload_len(&header)?);
        if self.received.len() < end {
            return Ok(None);
        }
        self.received.make_contiguous();
        let payload = self.received.as_slices().0.get(HEADER..end).unwrap_or_default();
        let frame = Frame::of(&header, payload)?;
        self.received.drain(..end);
        Ok(Some(frame))
    }

    /// Sends all of it, listening meanwhile.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let mut rest = bytes;
        let mut last = Instant::now();
        while !rest.is_empty() {
            let output = self.output.as_ref().ok_or_else(gone)?;
            match rustix::io::write(output, rest) {
                Ok(written) => {
                    rest = rest.get(written..).unwrap_or_default();
                    last = Instant::now();
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let may_listen = self.received.len() < AHEAD;
                    let mut ends = vec![PollFd::new(output, PollFlags::OUT)];
                    if may_listen {
                        ends.push(PollFd::new(&self.input, PollFlags::IN));
                    }
                    pause(&mut ends)?;
                    if may_listen && self.receive()? > 0 {
                        last = Instant::now();
                    }
                    self.check_patience(last)?;
                }
                Err(error) => {
                    return Err(Error::io("it does not listen", error));
                }
            }
        }
        Ok(())
    }

    /// Waits until something has come, or until it is time to look at the wish to stop.
    fn wait(&mut self) -> Result<()> {
        let began = Instant::now();
        let wanted = self.cancel.is_cancelled();
        while self.receive()? == 0 {
            self.check_patience(began)?;
            if self.cancel.is_cancelled() != wanted {
                break;
            }
            pause(&mut [PollFd::new(&self.input, PollFlags::IN)])?;
        }
        Ok(())
    }

    /// Takes what has come. How many bytes that was.
    fn receive(&mut self) -> Result<usize> {
        let mut buffer = [0; 1 << 16];
        match rustix::io::read(&self.input, &mut buffer) {
            Ok(0) => Err(gone()),
            Ok(read) => {
                self.received.extend(buffer.get(..read).unwrap_or_default());
                Ok(read)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            Err(error) => Err(Error::io("it cannot be heard", error)),
        }
    }

    fn check_patience(&self, last: Instant) -> Result<()> {
        let cancelled = self.cancel.is_cancelled();
        let patience =
            if cancelled { self.patience.min(PATIENCE_AT_THE_END) } else { self.patience };
        if last.elapsed() < patience {
            return Ok(());
        }
        Err(Error::environment(format!("nothing was heard of it for {} s", patience.as_secs())))
    }

    /// Says which command it was, how it ended, and what it complained of.
    pub(super) fn explain(mut self, error: Error) -> Error {
        self.output = None;
        let mut message = error.message().to_owned();
        if let Some(reason) = self.last_words() {
            message = format!("{message}; its last words: {reason}");
        }
        if let Some(peer) = self.peer.take() {
            message = format!("{message}; {}", peer.farewell());
        }
        let explained = Error::new(error.kind(), message);
        match error.what_next() {
            Some(hint) => explained.hint(hint.clone()),
            None => explained,
        }
    }
}

impl Connection {
    /// The last complaint that has arrived and was not read yet.
    fn last_words(&mut self) -> Option<String> {
        while self.received.len() < AHEAD && matches!(self.receive(), Ok(1..)) {}
        let mut last = None;
        while let Ok(Some(frame)) = self.received_frame() {
            if let Frame::Message(json) = frame
                && let Ok(Reply::Failed { message, .. }) = wire::parse(&json)
            {
                last = Some(cut(&message));
            }
        }
        last
    }
}

fn pause(ends: &mut [PollFd<'_>]) -> Result<()> {
    match poll(ends, Some(&TICK)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(Error::io("could not wait", error)),
    }
}

fn gone() -> Error {
    Error::environment("the far end has exited")
}

/// The command that leads to the far end.
#[derive(Debug)]
struct Peer {
    command: String,
    child: Child,
    tail: Arc<Mutex<VecDeque<u8>>>,
    tail_is_whole: Receiver<()>,
}

/// Ctrl-C is for us, not for the command that we need to put everything back.
const RUN: &str = r#"trap "" INT; exec "$@""#;

impl Peer {
    fn start(words: &[String]) -> Result<(Self, OwnedFd, OwnedFd)> {
        let command = words.join(" ");
        let failed = |error: &dyn std::fmt::Display| {
            Error::environment(format!("could not run '{}': {error}", qcow::Escaped(&command)))
        };
        let mut child = Command::new("/bin/sh")
            .args(["-c", RUN])
            .arg("sh")
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| failed(&error))?;
        let streams = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(output), Some(input), Some(complaints)) = streams else {
            return Err(failed(&"no streams"));
        };
        let tail = Arc::new(Mutex::new(VecDeque::new()));
        let (whole, tail_is_whole) = channel();
        let keep = Arc::clone(&tail);
        std::thread::spawn(move || {
            keep_tail(complaints, &keep);
            let _ = whole.send(());
        });
        Ok((Self { command, child, tail, tail_is_whole }, input.into(), output.into()))
    }

    /// Lets it end, or ends it, and tells how that was.
    fn farewell(mut self) -> String {
        let status = self.end();
        // Another process may hold its error stream open.
        let _ = self.tail_is_whole.recv_timeout(FAREWELL);
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let tail: Vec<u8> = tail.iter().copied().collect();
        let tail = String::from_utf8_lossy(&tail);
        let said = tail.lines().map(str::trim).filter(|line| !line.is_empty());
        let said: Vec<String> = said.map(|line| qcow::Escaped(line).to_string()).collect();
        let said = if said.is_empty() { "nothing".to_owned() } else { said.join(" / ") };
        format!("the command '{}' {status} and said: {said}", qcow::Escaped(&self.command))
    }

    fn end(&mut self) -> String {
        let began = Instant::now();
        while began.elapsed() < FAREWELL {
            match self.child.try_wait() {
                Ok(Some(status)) => return format!("ended with {status}"),
                Ok(None) => std::thread::sleep(Duration::from_millis(10)),
                Err(error) => return format!("could not be waited for ({error})"),
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        "was stopped".to_owned()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.output = None;
        if let Some(mut peer) = self.peer.take() {
            peer.end();
        }
    }
}

fn keep_tail(mut complaints: ChildStderr, tail: &Mutex<VecDeque<u8>>) {
    let mut buffer = [0; 1024];
    while let Ok(read @ 1..) = complaints.read(&mut buffer) {
        let bytes = buffer.get(..read).unwrap_or_default();
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend(bytes);
        let beyond = tail.len().saturating_sub(TAIL);
        tail.drain(..beyond);
    }
}
