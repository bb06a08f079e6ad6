//! The files of another host, through the same program there.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use qcow::chain::{Format, MAX_DEPTH};
use qcow::{CancelToken, Observer, Silent};
use serde::de::DeserializeOwned;

use super::connection::{Connection, PATIENCE, Trouble};
use super::content::{Content, PIECE, Piece, Sink, temporary};
use super::local::{Copy, compared};
use super::{Mode, Part, Store, StoreLayer, Wanted, directory};
use crate::agent::message::{Reply, Request, cut, error_of};
use crate::agent::wire::{self, Frame, garbage};
use crate::facts::{self, DirectoryRights, Identity, ObjectFacts, Setup};
use crate::{Error, ErrorKind, Result};

/// The files of another host, where this program runs as `qcowtool agent`. When a connection breaks, what
/// was asked for ends in an error; the next question makes a new connection.
#[derive(Debug)]
pub struct RemoteStore {
    /// Empty if there is no way to connect again.
    words: Vec<String>,
    patience: Duration,
    connection: Mutex<Option<Connection>>,
}

impl RemoteStore {
    /// Connects by the words of a remote shell, such as `["ssh", "host-b"]`, to which `program` and
    /// `agent` are added. No words: `program` runs here.
    ///
    /// # Errors
    /// [`Environment`](crate::ErrorKind::Environment) with the command and what it said.
    pub fn spawn(remote_shell: &[String], program: &str) -> Result<Self> {
        Self::spawn_patient(remote_shell, program, PATIENCE)
    }

    /// As [`spawn`](Self::spawn), but gives up when nothing is heard for `patience` while something is
    /// expected.
    ///
    /// # Errors
    /// See [`spawn`](Self::spawn).
    pub fn spawn_patient(
        remote_shell: &[String],
        program: &str,
        patience: Duration,
    ) -> Result<Self> {
        let mut words = remote_shell.to_vec();
        words.extend([program.to_owned(), "agent".to_owned()]);
        let connection = Mutex::new(Some(Connection::run(&words, patience)?));
        Ok(Self { words, patience, connection })
    }

    /// Uses streams that lead to [`serve`](crate::agent::serve) already. They are set not to block.
    ///
    /// # Errors
    /// See [`spawn`](Self::spawn).
    pub fn over(input: OwnedFd, output: OwnedFd) -> Result<Self> {
        let connection = Mutex::new(Some(Connection::over(input, output, PATIENCE)?));
        Ok(Self { words: Vec::new(), patience: PATIENCE, connection })
    }

    /// Does something with the connection; if that breaks it, it is given up.
    fn with<T>(
        &self,
        cancel: &CancelToken,
        work: impl FnOnce(&mut Connection) -> Result<T, Trouble>,
    ) -> Result<T> {
        let mut held = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let mut connection = match held.take() {
            Some(connection) => connection,
            None if self.words.is_empty() => {
                return Err(Error::environment("the connection was closed"));
            }
            None => Connection::run(&self.words, self.patience)?,
        };
        connection.heed(cancel);
        match work(&mut connection) {
            Err(Trouble::Broken(error)) => Err(connection.explain(error)),
            Err(Trouble::Said(error)) => {
                *held = Some(connection);
                Err(error)
            }
            Ok(value) => {
                *held = Some(connection);
                Ok(value)
            }
        }
    }

    /// How the other host is set up for guests that come and go.
    pub(crate) fn setup(&self) -> Result<Setup> {
        self.ask(&Request::Setup)
    }

    /// Has it listen at the lowest and the highest free port of these, and says which those are.
    pub(crate) fn listen(&self, (first, last): (u16, u16)) -> Result<Vec<u16>> {
        let ports: Vec<u16> = self.ask(&Request::Listen { first, last })?;
        if ports.len() > 2 || ports.iter().any(|port| !(first..=last).contains(port)) {
            return Err(garbage("other ports than those that it was asked to listen at"));
        }
        Ok(ports)
    }

    /// Ends that, and says at which of them a connection arrived.
    pub(crate) fn heard(&self) -> Result<Vec<u16>> {
        self.ask(&Request::Heard)
    }

    /// Why it cannot reach a port of a host; `None` if it can.
    pub(crate) fn reach(&self, host: &str, port: u16) -> Result<Option<String>> {
        let why: Option<String> = self.ask(&Request::Reach { host: host.to_owned(), port })?;
        Ok(why.map(|why| cut(&why)))
    }

    fn ask<T: DeserializeOwned>(&self, request: &Request) -> Result<T> {
        self.with(&CancelToken::new(), |connection| connection.ask(request, &Silent))
    }
}

impl Store for RemoteStore {
    fn describe(&self) -> String {
        match self.words.split_last_chunk::<2>() {
            Some((shell, _)) if !shell.is_empty() => format!("the host at '{}'", shell.join(" ")),
            _ => "the far end".to_owned(),
        }
    }

    fn look(&self, path: &Path) -> Result<Option<ObjectFacts>> {
        self.ask(&Request::Look { path: path.to_path_buf() })
    }

    fn available(&self, directory: &Path) -> Result<u64> {
        self.ask(&Request::Available { directory: directory.to_path_buf() })
    }

    fn filesystem(&self, directory: &Path) -> Result<String> {
        self.ask(&Request::Filesystem { directory: directory.to_path_buf() })
    }

    fn list(&self, directory: &Path, limit: usize) -> Result<Vec<PathBuf>> {
        let request = Request::List { directory: directory.to_path_buf(), limit };
        self.with(&CancelToken::new(), |connection| {
            let names: Vec<PathBuf> = connection.ask(&request, &Silent)?;
            let inside = |name: &PathBuf| name.parent() == Some(directory);
            if names.len() > limit || !names.iter().all(inside) {
                return Err(garbage("files of another directory").into());
            }
            Ok(names)
        })
    }

    fn put(
        &self,
        path: &Path,
        content: &File,
        mode: Mode,
        observer: &dyn Observer,
        cancel: &CancelToken,
    ) -> Result<Identity> {
        let content = Content::new(content)?;
        let (key, len) = (content.key(path)?, content.len());
        let request = Request::Put { path: path.to_path_buf(), key, len, mode };
        self.with(cancel, |connection| {
            let resumed = connection.ask(&request, &Silent)?;
            let mut far = FarFile { connection, resumed, broken: false };
            if let Err(error) = content.send(&mut far, observer, cancel) {
                if far.broken {
                    return Err(Trouble::Broken(error));
                }
                let discard = error.kind() == ErrorKind::Interrupted;
                // Its own reason, if it has one, says more.
                connection.heed(&CancelToken::new());
                connection.ask::<()>(&Request::Abandon { discard }, &Silent)?;
                return Err(Trouble::Said(error));
            }
            let identity: Identity = connection.ask(&Request::Publish, &Silent)?;
            if identity.size != len {
                return Err(garbage("a file of another length").into());
            }
            Ok(identity)
        })
    }

    fn temporary(&self, path: &Path, content: &File) -> Result<Option<PathBuf>> {
        Ok(Some(temporary(path, &Content::new(content)?.key(path)?)))
    }

    fn fetch(&self, path: &Path, limit: u64) -> Result<File> {
        let request = Request::Fetch { path: path.to_path_buf(), limit };
        self.with(&CancelToken::new(), |connection| {
            let len: u64 = connection.ask(&request, &Silent)?;
            if len > limit {
                return Err(garbage("more than was asked for").into());
            }
            let mut copy = Copy::new(len)?;
            loop {
                match connection.frame()? {
                    Frame::Data { offset, bytes } => {
                        let end = offset.checked_add(bytes.len() as u64);
                        if bytes.len() as u64 > PIECE || end.is_none_or(|end| end > len) {
                            return Err(garbage("bytes beyond the end of the file").into());
                        }
                        copy.write(offset, &bytes)?;
                    }
                    Frame::Message(json) => match wire::parse(&json)? {
                        Reply::Done { .. } => return Ok(copy.0),
                        Reply::Failed { kind, message, hint } => {
                            let error = error_of(&kind, &message, hint.as_deref());
                            return Err(Trouble::Said(error));
                        }
                        Reply::Alive | Reply::Progress { .. } => {}
                        Reply::Stop => return Err(garbage("a word out of place").into()),
                    },
                }
            }
        })
    }

    fn chain(&self, path: &Path, format: Option<Format>) -> Result<Vec<StoreLayer>> {
        let request = Request::Chain { path: path.to_path_buf(), format };
        self.with(&CancelToken::new(), |connection| {
            let layers: Vec<StoreLayer> = connection.ask(&request, &Silent)?;
            let top = layers.first().map(|layer| layer.layer.path.as_path());
            if layers.len() > MAX_DEPTH || top != Some(path) {
                return Err(garbage("the chain of something else").into());
            }
            Ok(layers)
        })
    }

    fn same_content(
        &self,
        path: &Path,
        format: Format,
        wanted: &Wanted<'_>,
        observer: &dyn Observer,
        cancel: &CancelToken,
    ) -> Result<facts::Content> {
        let request = Request::Digest { path: path.to_path_buf(), format };
        let found = self.with(cancel, |connection| connection.ask(&request, observer))?;
        Ok(compared(found, wanted.digest))
    }

    fn still_digest(
        &self,
        path: &Path,
        format: Format,
        part: &Part,
        observer: &dyn Observer,
        cancel: &CancelToken,
    ) -> Result<Option<String>> {
        let part = part.clone();
        let request = Request::StillDigest { path: path.to_path_buf(), format, part };
        self.with(cancel, |connection| connection.ask(&request, observer))
    }

    fn remove(&self, path: &Path, made: &Identity) -> Result<bool> {
        self.ask(&Request::Remove { path: path.to_path_buf(), made: *made })
    }

    fn is_directory(&self, path: &Path) -> Result<bool> {
        self.ask(&Request::IsDirectory { path: path.to_path_buf() })
    }

    fn temporary_directory(&self, path: &Path) -> Result<Option<PathBuf>> {
        directory::unnamed(path)
    }

    fn make_directory(&self, path: &Path, rights: &DirectoryRights) -> Result<Identity> {
        self.ask(&Request::MakeDirectory { path: path.to_path_buf(), rights: rights.clone() })
    }

    fn name_directory(&self, from: &Path, to: &Path, made: &Identity) -> Result<bool> {
        let (from, to) = (from.to_path_buf(), to.to_path_buf());
        self.ask(&Request::NameDirectory { from, to, made: *made })
    }

    fn remove_directory(&self, path: &Path, made: &Identity) -> Result<bool> {
        self.ask(&Request::RemoveDirectory { path: path.to_path_buf(), made: *made })
    }
}

/// A file that is being made at the far end.
struct FarFile<'a> {
    connection: &'a mut Connection,
    resumed: bool,
    broken: bool,
}

impl FarFile<'_> {
    fn tell(&mut self, bytes: &[u8]) -> Result<()> {
        let sent = self.connection.send(bytes).and_then(|()| self.connection.is_stopped());
        match sent {
            Ok(false) => Ok(()),
            Ok(true) => Err(Error::environment("the far end could not write the file")),
            Err(error) => {
                self.broken = true;
                Err(error)
            }
        }
    }
}

impl Sink for FarFile<'_> {
    fn resumed(&self) -> bool {
        self.resumed
    }

    fn lacks(&mut self, pieces: &[Piece]) -> Result<Vec<bool>> {
        let request = Request::Lacks { pieces: pieces.to_vec() };
        let answer: Result<Vec<bool>, Trouble> = self.connection.ask(&request, &Silent);
        match answer {
            Ok(lacks) if lacks.len() == pieces.len() => Ok(lacks),
            Ok(_) => {
                self.broken = true;
                Err(garbage("an answer about other pieces"))
            }
            Err(Trouble::Said(error)) => Err(error),
            Err(Trouble::Broken(error)) => {
                self.broken = true;
                Err(error)
            }
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.tell(&wire::data(offset, bytes))
    }

    fn zero(&mut self, offset: u64, len: u64) -> Result<()> {
        let message = wire::message(&Request::Zero { offset, len })?;
        self.tell(&message)
    }
}
