//! The bytes of a file as they travel: pieces of data, and the holes between them.

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use qcow::codec::is_zero;
use qcow::io::{FileStatus, FileStorage, OpenedAs, Storage, read_padded};
use qcow::{CancelToken, Observer};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The longest piece in bytes; no piece crosses a multiple of it.
pub(crate) const PIECE: u64 = 1 << 20;
/// So many pieces are asked for at once where some are there already.
pub(crate) const BATCH: usize = 64;
/// Longest name of a file, on all file systems that matter.
const LONGEST_NAME: usize = 255;

/// Some bytes of a file and their digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) len: u64,
    /// BLAKE3, in hexadecimal digits.
    pub(crate) digest: String,
}

/// Takes the pieces. One that begins with nothing needs only the first method.
pub(crate) trait Sink {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()>;

    /// It may hold something of the content already.
    fn resumed(&self) -> bool {
        false
    }

    /// Which of the pieces it does not hold.
    fn lacks(&mut self, pieces: &[Piece]) -> Result<Vec<bool>> {
        Ok(vec![true; pieces.len()])
    }

    /// Forgets what it may hold in a range that reads as zeros.
    fn zero(&mut self, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }
}

/// A file whose bytes are sent somewhere.
#[derive(Debug)]
pub(crate) struct Content {
    file: FileStorage,
    before: FileStatus,
}

impl Content {
    pub(crate) fn new(file: &File) -> Result<Self> {
        let file = file
            .try_clone()
            .map_err(|error| Error::io("could not duplicate a descriptor", error))?;
        let file = FileStorage::from_file(file)?;
        let before = file.status()?;
        Ok(Self { file, before })
    }

    pub(crate) fn len(&self) -> u64 {
        self.file.len()
    }

    /// 16 hexadecimal digits that are the same whenever this content goes to a file of this name,
    /// and rarely otherwise: of its length, its first bytes, and the name.
    pub(crate) fn key(&self, path: &Path) -> Result<String> {
        let mut start = vec![0; usize::try_from(PIECE).unwrap_or_default()];
        read_padded(&self.file, &mut start, 0)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.len().to_be_bytes()).update(&start);
        hasher.update(path.file_name().unwrap_or_default().as_bytes());
        Ok(hasher.finalize().to_hex().chars().take(KEY_DIGITS).collect())
    }

    /// Sends everything that is not zeros. `observer` is told of bytes of the file.
    pub(crate) fn send(
        &self,
        sink: &mut dyn Sink,
        observer: &dyn Observer,
        cancel: &CancelToken,
    ) -> Result<()> {
        let mut sender = Sender { content: self, sink, batch: Vec::new(), buffer: Vec::new() };
        let len = self.len();
        let mut at = 0;
        while at < len {
            if cancel.is_cancelled() {
                return Err(Error::interrupted());
            }
            let data = self.file.next_data(at).map_err(holes)?.unwrap_or(len).clamp(at, len);
            if data > at {
                sender.zero(at, data.saturating_sub(at))?;
            }
            if data < len {
                let hole = self.file.next_hole(data).map_err(holes)?;
                let edge = data.saturating_add(1).next_multiple_of(PIECE);
                at = hole.clamp(data.saturating_add(1), edge.min(len));
                sender.data(data, at.saturating_sub(data))?;
            } else {
                at = len;
            }
            observer.progress(at, len);
        }
        sender.flush()?;
        let after = self.file.status()?;
        // Its other time changes when it loses a name, as a base that is deleted while in use does.
        if self.file.kind() == OpenedAs::File
            && (after.size, after.mtime_ns) != (self.before.size, self.before.mtime_ns)
        {
            return Err(Error::changed("the file was changed while it was being copied"));
        }
        Ok(())
    }
}

struct Sender<'a> {
    content: &'a Content,
    sink: &'a mut dyn Sink,
    batch: Vec<Piece>,
    buffer: Vec<u8>,
}

impl Sender<'_> {
    fn read(&mut self, offset: u64, len: u64) -> Result<()> {
        self.buffer.resize(usize::try_from(len).unwrap_or_default(), 0);
        Ok(read_padded(&self.content.file, &mut self.buffer, offset)?)
    }

    fn data(&mut self, offset: u64, len: u64) -> Result<()> {
        self.read(offset, len)?;
        if is_zero(&self.buffer) {
            return self.zero(offset, len);
        }
        if !self.sink.resumed() {
            return self.sink.write(offset, &self.buffer);
        }
        self.batch.push(Piece { offset, len, digest: digest(&self.buffer) });
        if self.batch.len() >= BATCH { self.flush() } else { Ok(()) }
    }

    fn zero(&mut self, offset: u64, len: u64) -> Result<()> {
        if self.sink.resumed() { self.sink.zero(offset, len) } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        let batch = std::mem::take(&mut self.batch);
        if batch.is_empty() {
            return Ok(());
        }
        let lacks = self.sink.lacks(&batch)?;
        for (piece, _) in batch.iter().zip(lacks).filter(|(_, lacks)| *lacks) {
            self.read(piece.offset, piece.len)?;
            self.sink.write(piece.offset, &self.buffer)?;
        }
        Ok(())
    }
}

/// Digits of a [`key`](Content::key).
const KEY_DIGITS: usize = 16;

/// Whether it can be a [`key`](Content::key).
pub(crate) fn is_key(key: &str) -> bool {
    key.len() == KEY_DIGITS && key.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The digest of a [`Piece`].
pub(crate) fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// Where a file is built before it gets its name.
pub(crate) fn temporary(path: &Path, key: &str) -> PathBuf {
    let suffix = format!(".part-{key}");
    let name = path.file_name().unwrap_or_default().as_bytes();
    let most = LONGEST_NAME.saturating_sub(suffix.len());
    let mut temporary = name.get(..most).unwrap_or(name).to_vec();
    temporary.extend_from_slice(suffix.as_bytes());
    path.with_file_name(std::ffi::OsStr::from_bytes(&temporary))
}

fn holes(error: std::io::Error) -> Error {
    Error::io("could not look for holes", error)
}
