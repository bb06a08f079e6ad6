//! Whether two files hold the same bytes.

use std::fs::File;

use qcow::io::{FileStorage, Storage, read_padded};
use qcow::{CancelToken, Observer};

use crate::{Error, Result};

/// Bytes that are compared at once.
const PIECE: u64 = 1 << 20;

/// Compares two files; holes are not read.
///
/// # Errors
/// [`Environment`](crate::ErrorKind::Environment); [`Interrupted`](crate::ErrorKind::Interrupted).
pub(super) fn same_bytes(
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
    Error::environment(format!("the files could not be compared: {error}"))
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
