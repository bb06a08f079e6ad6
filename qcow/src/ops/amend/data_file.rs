//! Looks whether a data file can take the place of another.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::AmendOptions;
use crate::chain::{data_file_of, data_file_path};
use crate::exact::{Exact, to_usize};
use crate::format::Autoclear;
use crate::image::{Purpose, read_header_area};
use crate::io::{Buffer, FileStorage, Storage, read_padded};
use crate::ops::edit::Opened;
use crate::{CancelToken, Error, ErrorKind, Result};

/// Files are compared in pieces of this many bytes.
const PIECE: u64 = 1 << 20;

/// Checks that the new data file, if one is asked for, is as long as the old one and has the same content; for
/// an old one that is gone, that the disk fits into the new one.
pub(super) fn check(
    opened: &Opened,
    image: &Path,
    options: &AmendOptions,
    cancel: &CancelToken,
) -> Result<()> {
    let Some(name) = options.data_file.as_ref().filter(|_| !options.unchecked) else {
        return Ok(());
    };
    let area = read_header_area(&*opened.storage, Purpose::Read)?;
    let Some(old_path) = data_file_of(&area, image)? else { return Ok(()) };
    let open = |path: &PathBuf| {
        let file = options.policy.data_file.open(path);
        file.map_err(|error| error.file(path).structure("data file"))
    };
    let path = data_file_path(name.as_os_str().as_bytes(), image)?;
    let new = open(&path)?;
    let wrong = |message: String| {
        Error::usage(message)
            .file(&path)
            .structure("data file")
            .hint("name a copy of the old data file, or insist on this file")
    };
    match open(&old_path) {
        Ok(old) if old.identity() == new.identity() => Ok(()),
        Ok(old) => {
            if old.len() != new.len() {
                return Err(wrong(format!(
                    "it has {} bytes, and the old data file has {}",
                    new.len(),
                    old.len()
                )));
            }
            match first_difference(&old, &new, cancel)? {
                None => Ok(()),
                Some(at) => Err(wrong(format!("it differs from the old data file at {at:#x}"))),
            }
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let size = area.header.virtual_size();
            if new.len() < size {
                return Err(wrong(format!("it has {} bytes, and the disk {size}", new.len())));
            }
            if area.header.autoclear.contains(Autoclear::DATA_FILE_RAW) && new.len() != size {
                return Err(wrong(format!(
                    "it has {} bytes, and is to be a raw image of {size}",
                    new.len()
                )));
            }
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Where two files of the same length differ.
fn first_difference(
    one: &FileStorage,
    other: &FileStorage,
    cancel: &CancelToken,
) -> Result<Option<u64>> {
    let mut at = 0;
    let (mut left, mut right) = (Buffer::new(to_usize(PIECE))?, Buffer::new(to_usize(PIECE))?);
    loop {
        cancel.check()?;
        // Where both have holes there is nothing to compare.
        let data = |file: &FileStorage| {
            file.next_data(at).map_err(|error| Error::io("could not read", error))
        };
        at = match (data(one)?, data(other)?) {
            (None, None) => return Ok(None),
            (Some(data), None) | (None, Some(data)) => data.max(at),
            (Some(one), Some(other)) => one.min(other).max(at),
        };
        let len = to_usize(one.len().max(at).minus(at)?.min(PIECE));
        if len == 0 {
            return Ok(None);
        }
        let (left, right) = (left.first(len)?, right.first(len)?);
        read_padded(one, left, at)?;
        read_padded(other, right, at)?;
        if let Some(skip) = left.iter().zip(&*right).position(|(left, right)| left != right) {
            return at.plus(skip as u64).map(Some);
        }
        at = at.plus(len as u64)?;
    }
}
