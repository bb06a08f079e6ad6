//! Sends requests to a disk and measures how long they take together.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use serde::Serialize;

use crate::chain::{Chain, OpenOptions};
use crate::disk::{Disk, WriteOptions};
use crate::exact::Exact;
use crate::format::GuestOffset;
use crate::io::Buffer;
use crate::setters::setters;
use crate::sync::{Mutex, lock};
use crate::threads;
use crate::{CancelToken, Error, Result};

/// Requests that are sent at once, at most: each has a thread.
const MOST: usize = 256;
/// The longest request.
const LONGEST: u64 = 1 << 30;

/// Which requests are sent.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BenchOptions {
    /// How many.
    pub count: u64,
    /// How many at once: each has a thread.
    pub depth: usize,
    /// Bytes of each.
    pub size: u64,
    /// Bytes from the start of one to that of the next; 0 for [`size`](Self::size).
    pub step: u64,
    /// Where the first starts.
    pub offset: u64,
    /// Write instead of reading: requests of this byte.
    pub write: Option<u8>,
    /// Flush each time that so many requests have been sent; 0 for never. Only when writing.
    pub flush_interval: u64,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self {
            count: 75_000,
            depth: 64,
            size: 4096,
            step: 0,
            offset: 0,
            write: None,
            flush_interval: 0,
        }
    }
}

setters!(BenchOptions {
    count: u64,
    depth: usize,
    size: u64,
    step: u64,
    offset: u64,
    flush_interval: u64,
} into {
    write: Option<u8>,
});

/// What was measured.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct BenchOutcome {
    /// Requests that were sent, flushes not counted.
    pub requests: u64,
    /// Flushes.
    pub flushes: u64,
    /// Bytes that were read or written.
    pub bytes: u64,
    /// How long all of it took. What was written is durable then only as far as it was flushed.
    pub seconds: f64,
}

/// A benchmark whose files are all open.
#[derive(Debug)]
pub struct BenchJob {
    options: BenchOptions,
    target: Target,
}

#[derive(Debug)]
enum Target {
    Read(Chain),
    Write(Disk),
}

impl BenchJob {
    /// Opens the image at `path`, for writing if requests write: its content is then lost.
    ///
    /// ```no_run
    /// use std::path::Path;
    /// use qcow::CancelToken;
    /// use qcow::chain::OpenOptions;
    /// use qcow::ops::bench::{BenchJob, BenchOptions};
    ///
    /// let options = BenchOptions::default().count(1000);
    /// let job = BenchJob::begin(Path::new("disk.qcow2"), &OpenOptions::default(), &options)?;
    /// println!("{} seconds", job.run(&CancelToken::new())?.seconds);
    /// # Ok::<(), qcow::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Chain::open`] or [`Disk::open`]; [`Usage`](crate::ErrorKind::Usage) for options that do not go together.
    pub fn begin(path: &Path, open: &OpenOptions, options: &BenchOptions) -> Result<Self> {
        check(options)?;
        let target = match options.write {
            Some(_) => Target::Write(Disk::open(path, open, WriteOptions::new())?),
            None => Target::Read(Chain::open(path, open)?),
        };
        Ok(Self { options: options.clone(), target })
    }

    /// Sends the requests, and flushes what was written after the time was taken.
    ///
    /// # Errors
    /// That of the first request that fails, such as one past the end of the disk.
    pub fn run(self, cancel: &CancelToken) -> Result<BenchOutcome> {
        let Self { options, target } = self;
        let (next, flushes) = (AtomicU64::new(0), AtomicU64::new(0));
        let failed: Mutex<Option<Error>> = Mutex::new(None);
        let step = if options.step == 0 { options.size } else { options.step };
        let size = match &target {
            Target::Read(chain) => chain.virtual_size(),
            Target::Write(disk) => disk.size(),
        };
        let worker = || -> Result<()> {
            let len = usize::try_from(options.size).map_err(|_| Error::limit("a long request"))?;
            let mut buffer = Buffer::new(len)?;
            let bytes = buffer.first(len)?;
            bytes.fill(options.write.unwrap_or_default());
            loop {
                cancel.check()?;
                let number = next.fetch_add(1, Relaxed);
                if number >= options.count || lock(&failed).is_some() {
                    return Ok(());
                }
                let at = options.offset.plus(number.times(step)?)?;
                let at = at.checked_rem(size).unwrap_or(at);
                match &target {
                    Target::Read(chain) => chain.read_at(bytes, GuestOffset(at))?,
                    Target::Write(disk) => {
                        disk.write_at(bytes, at)?;
                        let sent = number.plus(1)?;
                        if options.flush_interval > 0
                            && sent.checked_rem(options.flush_interval) == Some(0)
                        {
                            disk.flush()?;
                            flushes.fetch_add(1, Relaxed);
                        }
                    }
                }
            }
        };
        let depth = options.depth.clamp(1, MOST);
        let pool = threads::pool(depth)?;
        let start = Instant::now();
        pool.broadcast(|_| {
            if let Err(error) = worker() {
                lock(&failed).get_or_insert(error);
            }
        });
        let seconds = start.elapsed().as_secs_f64();
        if let Some(error) = lock(&failed).take() {
            return Err(error);
        }
        if let Target::Write(disk) = target {
            disk.close()?;
        }
        let (requests, bytes) = (options.count, options.count.times(options.size)?);
        Ok(BenchOutcome { requests, flushes: flushes.into_inner(), bytes, seconds })
    }
}

fn check(options: &BenchOptions) -> Result<()> {
    if options.size == 0 || options.size > LONGEST {
        return Err(Error::usage(format!("a request has 1 byte to {LONGEST} bytes")));
    }
    if options.flush_interval > 0 && options.write.is_none() {
        return Err(Error::usage("a flush interval is for requests that write"));
    }
    if options.flush_interval > 0 && options.flush_interval < options.depth as u64 {
        return Err(Error::usage(
            "the flush interval is smaller than the number of requests at once",
        ));
    }
    let last = options.count.times(options.step.max(options.size));
    last.and_then(|last| last.plus(options.offset))
        .map_err(|_| Error::usage("the requests reach past any disk"))?;
    Ok(())
}
