//! The state of a machine (`-b`): bytes behind the disk, which the L1 table reaches and the size in the header does not.
//!
//! The library has no way there, because only QEMU writes it. So the header says a larger size for as long as such requests
//! come, and the old one again before anything else is done. A crash in between leaves the larger one: this is for tests.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use qcow::chain::{Format, OpenOptions as ImageOptions};
use qcow::format::Header;
use qcow::ops::resize::{NewSize, ResizeOptions, resize};
use qcow::{CancelToken, Silent};

/// Where the header has the size of the disk.
const SIZE: u64 = 24;

/// An image whose header says that the state is part of the disk.
#[derive(Debug)]
pub(crate) struct Stretched {
    /// Size of the disk.
    size: u64,
    /// Where the state begins.
    pub(crate) start: u64,
}

/// Makes the disk of the image so large that it has `end` bytes of state.
///
/// # Errors
/// The words to print.
pub(crate) fn stretch(path: &Path, end: u64) -> Result<Stretched, String> {
    let failed = |error: io::Error| error.to_string();
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(failed)?;
    let header = header(&file).ok_or("Operation not supported")?;
    let (size, covered) = (header.size, header.geometry().l2_coverage());
    let start = size.next_multiple_of(covered);
    let reached = (u64::from(header.l1_entries) * covered).max(start);
    put(&file, reached).map_err(failed)?;
    let stretched = Stretched { size, start };
    if start + end > reached {
        let open = ImageOptions::default().format(Some(Format::Qcow2));
        let options = ResizeOptions::default().open(open);
        let larger = NewSize::Exactly((start + end).next_multiple_of(512));
        if let Err(error) = resize(path, larger, &options, &Silent, &CancelToken::new()) {
            stretched.undo(path)?;
            return Err(error.to_string());
        }
    }
    Ok(stretched)
}

impl Stretched {
    /// Has the header say the size of the disk again.
    ///
    /// # Errors
    /// The words to print.
    pub(crate) fn undo(self, path: &Path) -> Result<(), String> {
        let file = OpenOptions::new().write(true).open(path);
        file.and_then(|file| put(&file, self.size)).map_err(|error| error.to_string())
    }
}

fn header(file: &File) -> Option<Header> {
    let mut bytes = [0; 4096];
    let len = file.read_at(&mut bytes, 0).ok()?;
    Header::parse(&bytes[..len]).ok()
}

fn put(file: &File, size: u64) -> io::Result<()> {
    file.write_all_at(&size.to_be_bytes(), SIZE)
}
