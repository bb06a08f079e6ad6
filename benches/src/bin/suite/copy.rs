//! What the kernel itself can do: the plainest copy of a file with all cores, as the yardstick.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::Result;

/// Bytes moved by one read and one write.
const PIECE: u64 = 2 << 20;

/// Copies `from` to `to` with one thread per core, each doing positioned reads and writes. No sync.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    let (source, target) = (File::open(from)?, File::create(to)?);
    let size = source.metadata()?.len();
    let next = AtomicU64::new(0);
    let worker = || -> std::io::Result<()> {
        let mut buffer = vec![0; PIECE as usize];
        loop {
            let at = next.fetch_add(PIECE, Ordering::Relaxed);
            if at >= size {
                return Ok(());
            }
            let piece = &mut buffer[..PIECE.min(size - at) as usize];
            source.read_exact_at(piece, at)?;
            target.write_all_at(piece, at)?;
        }
    };
    thread::scope(|scope| {
        let threads = thread::available_parallelism()?.get();
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("no panic in a copy"))
    })?;
    Ok(())
}
