//! The far end: does what it is asked to, until the stream ends.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use qcow::{CancelToken, Observer, Silent};
use serde::Serialize;

use super::message::{ALIVE_SECONDS, Hello, MAGIC, MOST_FILES, Reply, Request};
use super::wire::{self, Frame, garbage};
use crate::probe::{ports, setup};
use crate::store::content::{BATCH, Sink, is_key};
use crate::store::partial::Partial;
use crate::store::{LocalStore, Mode, Store};
use crate::{Error, Result};

/// So many frames wait at most.
const WAITING: usize = 4;
/// Progress is told at most this often.
const PROGRESS: Duration = Duration::from_millis(200);

/// Does to `store` what the other end asks for, until it closes the stream. What was being made then
/// stays under its temporary name, for the next try.
///
/// The threads that read and that say "still alive" end with their streams.
///
/// # Errors
/// [`Environment`](crate::ErrorKind::Environment) if the connection fails or the other end does not
/// keep to the protocol.
pub fn serve<R, W>(reader: R, writer: W, store: &LocalStore) -> Result<()>
where
    R: Read + Send + 'static,
    W: Write + Send + 'static,
{
    let out = Out { writer: Arc::new(Mutex::new(writer)), busy: Arc::new(AtomicBool::new(false)) };
    let mut reader = reader;
    out.write(&wire::greeting()?)?;
    greet(&mut reader).inspect_err(|error| drop(out.say(&Reply::failed(error))))?;

    let (stop, stopped) = channel::<()>();
    let alive = out.clone();
    std::thread::spawn(move || tell_alive(&alive, &stopped));
    let (frames, waiting) = sync_channel(WAITING);
    std::thread::spawn(move || read(reader, &frames));
    let result = Server { store, out, waiting, ears: Mutex::default() }.run();
    drop(stop);
    result
}

/// As [`serve`], over standard input and output. Nothing else may be written to the latter.
///
/// # Errors
/// See [`serve`].
pub fn serve_standard_streams(store: &LocalStore) -> Result<()> {
    let failed = |error| Error::io("no standard streams", error);
    let input = std::io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
    let output = std::io::stdout().as_fd().try_clone_to_owned().map_err(failed)?;
    // Not through the buffers that the library puts before them.
    serve(File::from(input), File::from(output), store)
}

/// A frame, and how its sender calls off what it asks for.
type Incoming = Result<(Frame, CancelToken)>;

/// Reads ahead, so that a change of mind is heard while something is being done.
fn read(mut reader: impl Read, frames: &SyncSender<Incoming>) {
    let mut current = CancelToken::new();
    loop {
        let incoming = match Frame::read(&mut reader) {
            Ok(Some(Frame::Message(json))) if is_cancel(&json) => {
                current.cancel();
                continue;
            }
            Ok(Some(frame)) => {
                if matches!(frame, Frame::Message(_)) {
                    current = CancelToken::new();
                }
                Ok((frame, current.clone()))
            }
            Ok(None) => break,
            Err(error) => Err(error),
        };
        let over = incoming.is_err();
        if over {
            current.cancel();
        }
        if frames.send(incoming).is_err() || over {
            break;
        }
    }
    // The caller does not wait for the answer any more.
    current.cancel();
}

fn is_cancel(json: &[u8]) -> bool {
    wire::parse::<Request>(json).is_ok_and(|request| request == Request::Cancel)
}

fn greet(reader: &mut impl Read) -> Result<()> {
    let mut magic = [0; MAGIC.len()];
    reader.read_exact(&mut magic).map_err(|error| Error::io("no client spoke", error))?;
    if magic != *MAGIC {
        return Err(garbage("something else than a greeting"));
    }
    match Frame::read(reader)? {
        Some(Frame::Message(json)) => wire::parse::<Hello>(&json)?.check(None),
        _ => Err(garbage("no greeting")),
    }
}

fn tell_alive<W: Write>(out: &Out<W>, stopped: &Receiver<()>) {
    let pause = Duration::from_secs(ALIVE_SECONDS);
    while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
        if out.busy.load(Ordering::SeqCst) && out.say(&Reply::Alive).is_err() {
            break;
        }
    }
}

/// The stream to the other end, for several threads.
struct Out<W> {
    writer: Arc<Mutex<W>>,
    busy: Arc<AtomicBool>,
}

impl<W> Clone for Out<W> {
    fn clone(&self) -> Self {
        Self { writer: Arc::clone(&self.writer), busy: Arc::clone(&self.busy) }
    }
}

impl<W: Write> Out<W> {
    fn write(&self, bytes: &[u8]) -> Result<()> {
        wire::write(&mut *self.writer.lock().unwrap_or_else(PoisonError::into_inner), bytes)
    }

    fn say(&self, reply: &Reply) -> Result<()> {
        self.write(&wire::message(reply)?)
    }

    fn done(&self, value: impl Serialize) -> Result<()> {
        let value = serde_json::to_value(value)
            .map_err(|error| Error::io("it cannot be said in JSON", error));
        let reply = value.map(|value| Reply::Done { value });
        let frame = reply.and_then(|reply| wire::message(&reply));
        match frame {
            Ok(frame) => self.write(&frame),
            Err(error) => self.say(&Reply::failed(&error)),
        }
    }

    fn answer<T: Serialize>(&self, result: Result<T>) -> Result<()> {
        match result {
            Ok(value) => self.done(value),
            Err(error) => self.say(&Reply::failed(&error)),
        }
    }
}

struct Server<'a, W> {
    store: &'a LocalStore,
    out: Out<W>,
    waiting: Receiver<Incoming>,
    ears: Mutex<ports::Ears>,
}

impl<W: Write + Send> Server<'_, W> {
    fn ears(&self) -> MutexGuard<'_, ports::Ears> {
        self.ears.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) -> Result<()> {
        while let Ok(incoming) = self.waiting.recv() {
            let (frame, cancel) = incoming?;
            let Frame::Message(json) = frame else {
                return Err(garbage("an unrequested piece of a file"));
            };
            let request = wire::parse(&json).inspect_err(|error| {
                let _ = self.out.say(&Reply::unknown(error));
            })?;
            self.out.busy.store(true, Ordering::SeqCst);
            let result = self.serve(request, &cancel);
            self.out.busy.store(false, Ordering::SeqCst);
            result?;
        }
        Ok(())
    }

    fn serve(&self, request: Request, cancel: &CancelToken) -> Result<()> {
        let (store, out) = (self.store, &self.out);
        match request {
            Request::Look { path } => out.answer(store.look(&path)),
            Request::Available { directory } => out.answer(store.available(&directory)),
            Request::Filesystem { directory } => out.answer(store.filesystem(&directory)),
            Request::Setup => out.answer(setup::of_this_host()),
            Request::Listen { first, last } => {
                let ears = ports::Ears::at(first, last);
                let ports = ears.ports();
                *self.ears() = ears;
                out.done(ports)
            }
            Request::Heard => {
                let ears = std::mem::take(&mut *self.ears());
                out.done(ears.heard())
            }
            Request::Reach { host, port } => out.done(ports::reach(&host, port)),
            Request::List { directory, limit } => {
                let names = store.list(&directory, limit.min(MOST_FILES));
                // JSON cannot express other names, and no client could ask for them.
                out.answer(names.map(|mut names| {
                    names.retain(|name| name.to_str().is_some());
                    names
                }))
            }
            Request::Chain { path, format } => out.answer(store.chain(&path, format)),
            Request::Digest { path, format } => {
                let told = Told { out, cancel, last: Mutex::new(Instant::now()) };
                out.answer(store.digest(&path, format, &told, cancel))
            }
            Request::StillDigest { path, format, part } => {
                let told = Told { out, cancel, last: Mutex::new(Instant::now()) };
                out.answer(store.still_digest(&path, format, &part, &told, cancel))
            }
            Request::Remove { path, made } => out.answer(store.remove(&path, &made)),
            Request::IsDirectory { path } => out.answer(store.is_directory(&path)),
            Request::MakeDirectory { path, rights } => {
                out.answer(store.make_directory(&path, &rights))
            }
            Request::NameDirectory { from, to, made } => {
                out.answer(store.name_directory(&from, &to, &made))
            }
            Request::RemoveDirectory { path, made } => {
                out.answer(store.remove_directory(&path, &made))
            }
            Request::Fetch { path, limit } => match store.content(&path, limit) {
                Ok(content) => {
                    out.done(content.len())?;
                    out.answer(content.send(&mut Pieces(out), &Silent, cancel))
                }
                Err(error) => out.say(&Reply::failed(&error)),
            },
            Request::Put { path, key, len, mode } => {
                if !is_key(&key) {
                    return out.say(&Reply::failed(&garbage("a key that is none")));
                }
                match store.begin(&path, &key, len) {
                    Ok(partial) => self.put(partial, mode),
                    Err(error) => out.say(&Reply::failed(&error)),
                }
            }
            Request::Lacks { .. }
            | Request::Zero { .. }
            | Request::Publish
            | Request::Abandon { .. }
            | Request::Cancel => Err(garbage("a word about a file that is not being made")),
        }
    }

    /// Takes the pieces of one file.
    fn put(&self, mut partial: Partial, mode: Mode) -> Result<()> {
        self.out.done(partial.resumed())?;
        let mut failed: Option<Error> = None;
        while let Ok(incoming) = self.waiting.recv() {
            let step = match incoming?.0 {
                Frame::Data { offset, bytes } if failed.is_none() => partial.write(offset, &bytes),
                Frame::Data { .. } => Ok(()),
                Frame::Message(json) => match wire::parse(&json)? {
                    Request::Zero { offset, len } if failed.is_none() => partial.zero(offset, len),
                    Request::Zero { .. } => Ok(()),
                    Request::Lacks { pieces } => {
                        if pieces.len() > BATCH {
                            return Err(garbage("too many pieces at once"));
                        }
                        self.out.answer(partial.lacks(&pieces))?;
                        Ok(())
                    }
                    Request::Publish => {
                        return self.out.answer(failed.map_or_else(|| partial.publish(mode), Err));
                    }
                    Request::Abandon { discard } => {
                        if discard {
                            partial.discard();
                        }
                        return self.out.answer(failed.map_or(Ok(()), Err));
                    }
                    _ => return Err(garbage("another request while a file is being made")),
                },
            };
            if let Err(error) = step {
                self.out.say(&Reply::Stop)?;
                failed = Some(error);
            }
        }
        Ok(())
    }
}

/// Sends the pieces of a file that is fetched.
struct Pieces<'a, W>(&'a Out<W>);

impl<W: Write> Sink for Pieces<'_, W> {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.0.write(&wire::data(offset, bytes))
    }
}

/// Tells the other end how far a digest is.
struct Told<'a, W> {
    out: &'a Out<W>,
    cancel: &'a CancelToken,
    last: Mutex<Instant>,
}

impl<W: Write + Send> Observer for Told<'_, W> {
    fn progress(&self, done: u64, total: u64) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() >= PROGRESS {
            *last = Instant::now();
            if self.out.say(&Reply::Progress { done, total }).is_err() {
                self.cancel.cancel();
            }
        }
    }
}
