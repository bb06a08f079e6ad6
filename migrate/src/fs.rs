//! The few calls on files and directories that several modules need.

use std::fs::{DirBuilder, File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use qcow::io::{FileStorage, Storage, read_padded, sync_directory};
use qcow::{CancelToken, Observer};

use crate::{Error, Result};

/// Bytes that are compared at once.
const PIECE: u64 = 1 << 20;

/// A name under which this process can open again what it has open, also if it has no other name.
pub(crate) fn fd_path(object: &impl AsFd) -> PathBuf {
    format!("/proc/self/fd/{}", object.as_fd().as_raw_fd()).into()
}

/// A time of a file in nanoseconds since 1970.
pub(crate) fn nanoseconds(seconds: i64, rest: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}

/// When the content of a file was last changed, in nanoseconds since 1970.
pub(crate) fn mtime_ns(metadata: &Metadata) -> i64 {
    nanoseconds(metadata.mtime(), metadata.mtime_nsec())
}

/// When the inode of a file was last changed, in nanoseconds since 1970.
pub(crate) fn ctime_ns(metadata: &Metadata) -> i64 {
    nanoseconds(metadata.ctime(), metadata.ctime_nsec())
}

/// Puts the names in a directory on stable storage, if its file system can do that.
pub(crate) fn sync_path(directory: &Path) -> Result<()> {
    File::open(directory)
        .and_then(|open| Ok(sync_directory(&open)?))
        .map(drop)
        .map_err(|error| failed("could not sync", directory, error))
}

/// Makes a directory, and those that it is in, on stable storage, each with this mode.
pub(crate) fn make_directories(directory: &Path, mode: u32) -> Result<()> {
    let missing: Vec<_> = directory
        .ancestors()
        .take_while(|path| !path.as_os_str().is_empty() && !path.exists())
        .collect();
    for path in missing.into_iter().rev() {
        DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(path)
            .map_err(|error| failed("could not create", path, error))?;
        let above = path.parent().filter(|above| !above.as_os_str().is_empty());
        sync_path(above.unwrap_or(Path::new(".")))?;
    }
    Ok(())
}

/// The error of a call that was to do something with `path`.
pub(crate) fn failed(what: &str, path: &Path, error: impl Into<io::Error>) -> Error {
    Error::io(format!("{what} '{}'", path.display()), error)
}

/// Whether two files hold the same bytes; holes are not read.
///
/// # Errors
/// [`Environment`](crate::ErrorKind::Environment); [`Interrupted`](crate::ErrorKind::Interrupted).
pub(crate) fn same_bytes(
    one: &File,
    two: &File,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<bool> {
    let (one, two) = (open(one)?, open(two)?);
    let len = one.len();
    if two.len() != len {
        return Ok(false);
    }
    let mut buffers = [Vec::new(), Vec::new()];
    let mut at = 0;
    while at < len {
        cancel.check()?;
        let next = |file: &FileStorage| file.next_data(at).map_err(system);
        let data = [next(&one)?, next(&two)?].into_iter().flatten().min();
        let Some(data) = data.filter(|data| *data < len) else { break };
        let piece = len.saturating_sub(data).min(PIECE);
        for (file, buffer) in [&one, &two].into_iter().zip(&mut buffers) {
            buffer.resize(usize::try_from(piece).unwrap_or_default(), 0);
            read_padded(file, buffer, data)?;
        }
        let [left, right] = &buffers;
        if left != right {
            return Ok(false);
        }
        at = data.saturating_add(piece.max(1));
        observer.progress(at, len);
    }
    Ok(true)
}

fn open(file: &File) -> Result<FileStorage> {
    Ok(FileStorage::from_file(file.try_clone().map_err(system)?)?)
}

fn system(error: std::io::Error) -> Error {
    Error::io("the files could not be compared", error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use qcow::Silent;

    use super::*;

    #[test]
    fn one_byte_makes_a_difference_wherever_holes_are() {
        let len = 5 << 20;
        let file = |byte: Option<(u64, u8)>| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(len).unwrap();
            if let Some((at, byte)) = byte {
                file.write_all_at(&[byte], at).unwrap();
            }
            file
        };
        let same =
            |one: &File, two: &File| same_bytes(one, two, &Silent, &CancelToken::new()).unwrap();
        assert!(same(&file(None), &file(Some((3 << 20, 0)))));
        assert!(same(&file(Some((len - 1, 7))), &file(Some((len - 1, 7)))));
        assert!(!same(&file(None), &file(Some((len - 1, 7)))));
        assert!(!same(&file(Some((4 << 20, 1))), &file(Some((4 << 20, 2)))));
        let longer = file(None);
        longer.set_len(len + 1).unwrap();
        assert!(!same(&file(None), &longer));
    }
}
