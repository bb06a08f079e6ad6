//! Looks at one file.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qcow::chain::{Format, OpenOptions};
use qcow::io::{Access, FileStorage, Storage, read_padded};
use qcow::ops::info::{FormatSpecific, ImageInfo, InfoOptions, info};
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};

use super::known::Known;
use super::{bytes, vmdk};
use crate::audit::value::{Content, Header, Image, Key, Name, Presence, Status, Truncated};
use crate::fs::{ctime_ns, fd_path, mtime_ns, nanoseconds};

/// Why a file is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// It lies in a directory that is scanned, and may be no image at all.
    Passing,
    /// The caller or another image names it as an image.
    Wanted,
}

/// What is shorter than four bytes has no magic.
const SHORTEST: u64 = 4;

/// A file that is held but not open yet.
#[derive(Debug)]
pub(super) struct Pinned {
    fd: OwnedFd,
    metadata: Metadata,
}

/// Takes hold of whatever `name` leads to. Has no effect on it: nothing is opened.
pub(super) fn pin(name: &Path) -> io::Result<Pinned> {
    let fd = rustix::fs::open(name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let file = File::from(fd);
    let metadata = file.metadata()?;
    Ok(Pinned { fd: file.into(), metadata })
}

impl Pinned {
    /// Which object it is; `None` for what cannot be an image.
    pub(super) fn key(&self) -> Option<Key> {
        let kind = self.metadata.file_type();
        if kind.is_file() {
            Some(Key::File { device: self.metadata.dev(), inode: self.metadata.ino() })
        } else if kind.is_block_device() {
            Some(Key::Device { number: self.metadata.rdev() })
        } else {
            None
        }
    }

    /// A name of just this file, as long as it is pinned.
    fn path(&self) -> PathBuf {
        fd_path(&self.fd)
    }
}

/// Reads the header of what was pinned, unless it is known. `None` if it was not asked for and is no image.
pub(super) fn read(
    pinned: &Pinned,
    key: Key,
    name: Name,
    look: Look,
    known: Option<&Known>,
) -> io::Result<Option<Image>> {
    if look == Look::Passing && pinned.metadata.len() < SHORTEST {
        return Ok(None);
    }
    let path = pinned.path();
    let image = Image::new(key, name, Presence::Here);
    let storage = match FileStorage::open(&path) {
        Ok(storage) => storage,
        // If another image names it, it is kept as what cannot be used.
        Err(error) => return Err(io_error(&error)),
    };
    let status = status(pinned);
    let known = known.and_then(|known| known.get(&image.key, &status));
    let content = match &known {
        Some((content, _)) => content.clone(),
        None => probe(&storage)?,
    };
    let old = may_have_backing_files(&content);
    if look == Look::Passing
        && !matches!(content, Content::Qcow2 | Content::Vmdk)
        && !called_raw(&image, &content)
        && old.is_none()
    {
        return Ok(None);
    }
    let problem = old.map(|why| (why, false));
    let mut image = Image { status, locks: locks(&storage), problem, ..image };
    match known {
        Some((_, header)) => image.header = header,
        None if content == Content::Qcow2 => header(&mut image, &path),
        None if content == Content::Vmdk => (image.header, image.problem) = vmdk::header(&storage),
        None => {}
    }
    image.content = content;
    Ok(Some(image))
}

/// What the first bytes are.
fn probe(storage: &FileStorage) -> io::Result<Content> {
    let mut start = [0; 512];
    read_padded(storage, &mut start, 0).map_err(|error| io_error(&error))?;
    if vmdk::is_vmdk(&start) {
        return Ok(Content::Vmdk);
    }
    match Format::probe(storage) {
        Ok(Format::Qcow2) => Ok(Content::Qcow2),
        Ok(Format::Raw) => Ok(Content::Raw),
        Ok(other) => Ok(Content::Other(format!("the image has the format {other}"))),
        Err(error) if error.kind() == qcow::ErrorKind::WrongFormat => {
            Ok(Content::Other(error.message().to_owned()))
        }
        Err(error) => Err(io_error(&error)),
    }
}

/// Why it matters that an image of another format is not read: formats before QCOW2 can have backing files
/// too.
fn may_have_backing_files(content: &Content) -> Option<String> {
    match content {
        Content::Other(what) if what.contains("QCOW version 1") || what.contains("QED") => {
            Some(format!("{what}; its backing file is not known"))
        }
        _ => None,
    }
}

/// A raw image has nothing to know it by but its name.
fn called_raw(image: &Image, content: &Content) -> bool {
    let extension = image.path().extension().map(|extension| bytes(Path::new(extension)));
    *content == Content::Raw && matches!(extension, Some(b"raw" | b"img"))
}

fn io_error(error: &qcow::Error) -> io::Error {
    match error.io_source().and_then(io::Error::raw_os_error) {
        Some(number) => io::Error::from_raw_os_error(number),
        None => io::Error::other(error.message().to_owned()),
    }
}

/// What others say that they do. Asking takes no lock.
fn locks(storage: &FileStorage) -> Vec<&'static str> {
    let used = storage.used_for();
    [(Access::READ, "read"), (Access::WRITE, "write"), (Access::RESIZE, "resize")]
        .into_iter()
        .filter(|(access, _)| used.contains(*access))
        .map(|(_, word)| word)
        .collect()
}

fn status(pinned: &Pinned) -> Status {
    let metadata = &pinned.metadata;
    let block_device = metadata.file_type().is_block_device();
    let birth = rustix::fs::statx(pinned.fd.as_fd(), c"", AtFlags::EMPTY_PATH, StatxFlags::BTIME);
    let birth = birth.ok().filter(|status| status.stx_mask & StatxFlags::BTIME.bits() != 0);
    Status {
        allocated: metadata.blocks().saturating_mul(512),
        mtime_ns: (!block_device).then(|| mtime_ns(metadata)),
        changed_ns: (!block_device).then(|| ctime_ns(metadata)),
        birth_ns: birth
            .filter(|_| !block_device)
            .map(|status| nanoseconds(status.stx_btime.tv_sec, status.stx_btime.tv_nsec.into())),
        mode: metadata.mode() & 0o7777,
        block_device,
    }
}

/// Reads the header; a second time if it was just being written.
fn header(image: &mut Image, path: &Path) {
    let open = OpenOptions::default().format(Format::Qcow2).force_share(true);
    let options = InfoOptions::default().open(open);
    let told = info(path, &options).or_else(|_| info(path, &options));
    match told.map(|images| images.into_iter().next()) {
        Ok(Some(told)) => {
            image.header = Some(Header { truncated: truncated(path), ..of(told) });
        }
        Ok(None) => {}
        Err(error) => {
            use qcow::ErrorKind::{Corrupt, WrongFormat};
            let broken = matches!(error.kind(), Corrupt | WrongFormat);
            image.problem = Some((error.message().to_owned(), broken));
        }
    }
}

fn of(told: ImageInfo) -> Header {
    let (corrupt, data_file) = match told.format_specific {
        Some(FormatSpecific::Qcow2(qcow2)) => {
            (qcow2.corrupt.unwrap_or_default(), qcow2.data_file.map(PathBuf::from))
        }
        _ => (false, None),
    };
    Header {
        virtual_size: told.virtual_size,
        dirty: told.dirty_flag,
        corrupt,
        backing: told.backing_filename,
        backing_format: told.backing_filename_format,
        data_file,
        extents: Vec::new(),
        truncated: None,
    }
}

/// Whether the file ends before what its refcounts count as used: three small reads, no look at all tables.
/// Refcounts that cannot be read are for a check to judge.
fn truncated(path: &Path) -> Option<Truncated> {
    let storage = Arc::new(FileStorage::open(path).ok()?);
    let file_length = storage.len();
    let used = qcow::image::Image::open(storage).ok()?.used_past_end().ok()??;
    Some(Truncated { used, file_length })
}

/// The image behind a descriptor of another process, if it is one.
pub(super) fn deleted(through: &Path, name: Name) -> Option<Image> {
    let pinned = pin(through).ok()?;
    let key = pinned.key().filter(|key| matches!(key, Key::File { .. }))?;
    let image = read(&pinned, key, name, Look::Wanted, None).ok()??;
    // Programs hold many deleted files open that are no images: memory, spool files.
    let is_image = image.content == Content::Qcow2 || !image.locks.is_empty();
    let presence = Presence::Deleted { through: through.to_path_buf() };
    is_image.then_some(Image { presence, ..image })
}
