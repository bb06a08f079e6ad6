//! Bytes to and from volumes. Holes are not sent, and are holes again at the other end.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};

use qcow::codec::is_zero;
use qcow::io::{FileStorage, Storage, read_padded};
use qcow::{CancelToken, Observer};
use virt::storage_vol::StorageVol;
use virt::stream::Stream;
use virt_sys as sys;

use crate::driver::libvirt::Connection;
use crate::driver::libvirt::raw::{self, Failure, Outcome, Received};
use crate::{Error, Result};

/// libvirt's messages hold 256 KiB of a stream's data at most.
const PIECE: usize = 256 << 10;

const SENT_WITH_HOLES: u32 = sys::VIR_STORAGE_VOL_UPLOAD_SPARSE_STREAM;
const RECEIVED_WITH_HOLES: u32 = sys::VIR_STORAGE_VOL_DOWNLOAD_SPARSE_STREAM;

/// Breaks its stream off unless it was finished. `virt` consumes the object in both, hence the clones, which are
/// further references to the same stream.
struct Running<'a> {
    connection: &'a Connection,
    stream: Stream,
    over: bool,
}

impl<'a> Running<'a> {
    fn new(connection: &'a Connection) -> Result<Self> {
        let connect = connection.connect()?;
        Ok(Self { connection, stream: connection.say(Stream::new(&connect, 0))?, over: false })
    }

    fn finish(mut self) -> Result<()> {
        // Whatever comes of it, there is nothing left to break off.
        self.over = true;
        self.connection.say(self.stream.clone().finish())
    }

    fn receive(&self, buffer: &mut [u8]) -> Result<Received> {
        self.connection.say(raw::receive(&self.stream, buffer))
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.over {
            // That it was over already is no matter.
            let _ = self.stream.clone().abort();
        }
    }
}

/// Sends all of `data`; one call may take less.
fn send(stream: &Stream, mut data: &[u8]) -> Outcome<()> {
    while !data.is_empty() {
        let sent = usize::try_from(stream.send(data)?);
        let rest = sent.ok().and_then(|sent| data.get(sent..));
        data = rest.ok_or_else(Failure::last_error)?;
    }
    Ok(())
}

/// Fills a new, empty volume of exactly the content's length.
pub(super) fn upload(
    connection: &Connection,
    volume: &StorageVol,
    content: &FileStorage,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<()> {
    let length = content.len();
    let running = Running::new(connection)?;
    connection.say(volume.upload(&running.stream, 0, length, SENT_WITH_HOLES))?;
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    while at < length {
        cancel.check()?;
        let data = content.next_data(at).map_err(holes)?.unwrap_or(length).clamp(at, length);
        if data > at {
            connection.say(raw::send_hole(&running.stream, data.saturating_sub(at)))?;
        }
        at = data;
        if data < length {
            let end = content.next_hole(data).map_err(holes)?.min(length);
            let piece = usize::try_from(end.saturating_sub(data)).unwrap_or(PIECE).min(PIECE);
            let piece = buffer.get_mut(..piece).unwrap_or_default();
            read_padded(content, piece, data)?;
            connection.say(send(&running.stream, piece))?;
            at = data.saturating_add(u64::try_from(piece.len()).unwrap_or_default());
        }
        observer.progress(at, length);
    }
    running.finish()
}

/// The volume's first bytes; fewer if it is shorter.
pub(super) fn head(connection: &Connection, volume: &StorageVol, length: usize) -> Result<Vec<u8>> {
    let running = Running::new(connection)?;
    let wanted = u64::try_from(length).unwrap_or(u64::MAX);
    connection.say(volume.download(&running.stream, 0, wanted, 0))?;
    let mut head = vec![0; length];
    let mut filled = 0;
    while let Some(room) = head.get_mut(filled..).filter(|room| !room.is_empty()) {
        match running.receive(room)? {
            Received::Data(count) => filled = filled.saturating_add(count),
            Received::Hole(_) | Received::End => break,
        }
    }
    running.finish()?;
    head.truncate(filled);
    Ok(head)
}

/// All of the volume's bytes into an empty file here.
pub(super) fn download(connection: &Connection, volume: &StorageVol, to: &mut File) -> Result<()> {
    let here = |error| Error::io("could not write a temporary file", error);
    let running = Running::new(connection)?;
    connection.say(volume.download(&running.stream, 0, 0, RECEIVED_WITH_HOLES))?;
    let mut buffer = vec![0; PIECE];
    let mut length: u64 = 0;
    loop {
        match running.receive(&mut buffer)? {
            Received::Data(count) => {
                to.seek(SeekFrom::Start(length)).map_err(here)?;
                to.write_all(buffer.get(..count).unwrap_or_default()).map_err(here)?;
                length = length.saturating_add(u64::try_from(count).unwrap_or_default());
            }
            Received::Hole(count) => length = length.saturating_add(count),
            Received::End => break,
        }
    }
    running.finish()?;
    to.set_len(length).map_err(here)?;
    to.rewind().map_err(here)
}

/// Whether the volume's bytes are those of a file here. Stops at the first difference.
pub(super) fn same_bytes(
    connection: &Connection,
    volume: &StorageVol,
    file: &FileStorage,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<bool> {
    let length = file.len();
    let running = Running::new(connection)?;
    connection.say(volume.download(&running.stream, 0, 0, RECEIVED_WITH_HOLES))?;
    let (mut there, mut here) = (vec![0; PIECE], vec![0; PIECE]);
    let mut at: u64 = 0;
    loop {
        cancel.check()?;
        let count = match running.receive(&mut there)? {
            Received::Data(count) => {
                let there = there.get(..count).unwrap_or_default();
                let here = here.get_mut(..count).unwrap_or_default();
                read_padded(file, here, at)?;
                if there != here {
                    return Ok(false);
                }
                u64::try_from(count).unwrap_or_default()
            }
            Received::Hole(count) => {
                if !zeros(file, at, count, &mut here, cancel)? {
                    return Ok(false);
                }
                count
            }
            Received::End => break,
        };
        at = at.saturating_add(count);
        if at > length {
            return Ok(false);
        }
        observer.progress(at, length);
    }
    running.finish()?;
    Ok(at == length)
}

/// Whether a range of a file reads as zeros.
fn zeros(
    file: &FileStorage,
    start: u64,
    count: u64,
    buffer: &mut [u8],
    cancel: &CancelToken,
) -> Result<bool> {
    let end = start.saturating_add(count).min(file.len());
    let mut at = start;
    while let Some(data) = file.next_data(at).map_err(holes)?.filter(|data| *data < end) {
        cancel.check()?;
        let room = usize::try_from(end.saturating_sub(data)).unwrap_or(usize::MAX);
        let piece = room.min(buffer.len());
        let piece = buffer.get_mut(..piece).unwrap_or_default();
        read_padded(file, piece, data)?;
        if !is_zero(piece) {
            return Ok(false);
        }
        at = data.saturating_add(u64::try_from(piece.len()).unwrap_or(u64::MAX));
        if at >= end {
            break;
        }
    }
    Ok(true)
}

fn holes(error: std::io::Error) -> Error {
    Error::io("could not look for holes", error)
}
