//! What the kernel itself can do: the plainest copy of a file with all cores, as the yardstick.

use std::fs::File;
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::failure::Result;

/// Bytes moved by one read and one write.
const PIECE: u64 = 2 << 20;

/// Copies `from` to `to`, holes left out, with one thread per core, each doing positioned reads and
/// writes. No sync.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    let (source, target) = (File::open(from)?, File::create(to)?);
    target.set_len(source.metadata()?.len())?;
    let pieces = pieces(&source)?;
    let next = AtomicUsize::new(0);
    let worker = || -> std::io::Result<()> {
        let mut buffer = vec![0; PIECE as usize];
        while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            let bytes = &mut buffer[..(piece.end - piece.start) as usize];
            source.read_exact_at(bytes, piece.start)?;
            target.write_all_at(bytes, piece.start)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let threads = thread::available_parallelism()?.get();
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("no panic in a copy"))
    })?;
    Ok(())
}

/// Where a file has data, in pieces of at most [`PIECE`] bytes.
fn pieces(file: &File) -> Result<Vec<Range<u64>>> {
    let mut pieces = Vec::new();
    let mut at = 0;
    loop {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(pieces), // nothing but a hole to the end
            Err(error) => return Err(std::io::Error::from(error).into()),
        };
        at = seek(file, SeekFrom::Hole(start))?;
        let steps = (start..at).step_by(PIECE as usize);
        pieces.extend(steps.map(|start| start..at.min(start + PIECE)));
    }
}

/// Whether two files have the same length and content; what is a hole in both is not read.
pub(crate) fn same(one: &Path, other: &Path) -> Result<bool> {
    let (one, other) = (File::open(one)?, File::open(other)?);
    let len = one.metadata()?.len();
    if other.metadata()?.len() != len {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; PIECE as usize], vec![0; PIECE as usize]);
    for piece in pieces(&one)?.into_iter().chain(pieces(&other)?) {
        let len = (piece.end - piece.start) as usize;
        for (file, buffer) in [(&one, &mut left), (&other, &mut right)] {
            match file.read_exact_at(&mut buffer[..len], piece.start) {
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(false),
                read => read?,
            }
        }
        if left[..len] != right[..len] {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_copy_has_the_same_bytes_and_no_more_room_than_its_data() {
        let dir = tempfile::tempdir().expect("a directory");
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let file = File::create(&from).expect("a file");
        file.set_len(64 << 20).expect("a length");
        for at in [0, 5 << 20, (64 << 20) - 4096] {
            file.write_all_at(&[7; 4096], at).expect("written");
        }
        copy(&from, &to).expect("a copy");
        assert!(same(&from, &to).expect("read"));
        assert!(to.metadata().expect("facts").blocks() * 512 < 8 << 20, "holes were filled");

        File::options()
            .write(true)
            .open(&to)
            .and_then(|file| file.write_all_at(&[1], 30 << 20))
            .expect("written");
        assert!(!same(&from, &to).expect("read"), "a byte in a hole of the source was overlooked");
    }
}
