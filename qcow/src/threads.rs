//! How many workers an operation has, and the pool that they are in.

use rayon::ThreadPool;

use crate::{Error, Result};

/// More workers than this only wait for memory and for each other's turn.
const MOST: usize = 256;
/// How many are started unasked: with 16 the buffers of all stay below 128 MiB.
const USUAL: usize = 16;

/// How many worker threads an operation has if its options say 0: one per core, at most 16. Asks the
/// system, which reads files that a sandbox may take away: a program with one asks before, and
/// says the number.
pub fn usual_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(USUAL)
}

/// How many workers are meant by `threads`, as options have it.
pub(crate) fn count(threads: usize) -> usize {
    match threads {
        0 => usual_threads(),
        threads => threads.min(MOST),
    }
}

/// A pool of as many workers.
///
/// # Errors
/// [`Io`](crate::ErrorKind::Io) if threads cannot be started.
pub(crate) fn pool(count: usize) -> Result<ThreadPool> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(count)
        .thread_name(|index| format!("worker-{index}"))
        .build()
        .map_err(|error| Error::io("could not start threads", std::io::Error::other(error)))
}

/// Runs `work` with as many workers, all of which have ended afterwards.
///
/// # Errors
/// [`Io`](crate::ErrorKind::Io) if threads cannot be started.
pub(crate) fn within<T: Send>(count: usize, work: impl FnOnce() -> T + Send) -> Result<T> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(count)
        .thread_name(|index| format!("worker-{index}"))
        .build_scoped(rayon::ThreadBuilder::run, |pool| pool.install(work))
        .map_err(|error| Error::io("could not start threads", std::io::Error::other(error)))
}
