//! Makes one standalone image out of a whole chain.

mod clusters;
mod job;
mod options;
mod outcome;
mod qcow2;
mod raw;
mod runs;
mod sinks;
mod stream;
mod totals;
mod widen;

use std::path::Path;

use super::TargetOptions;
pub use super::work::offload::TransferStats;
use crate::chain::Chain;
use crate::{CancelToken, Observer, Result};

pub use job::FlattenJob;
pub use options::FlattenOptions;
pub use outcome::FlattenOutcome;

/// Writes what a guest would read from `chain` to a new image at `path`.
///
/// Ranges of zeros are neither read (where the tables say so) nor written. The output is the same
/// byte for byte whatever the number of threads. Memory is about 4 MiB per thread, for a disk of
/// any size.
///
/// Where source and target are on one file system that can share space (XFS, Btrfs), whole
/// clusters are cloned: neither read nor written, and they take no space. What is cloned is not
/// looked at, so zeros that a source stores as data stay data; all else is laid out as without.
///
/// ```no_run
/// use std::path::Path;
/// use qcow::chain::{Chain, OpenOptions};
/// use qcow::ops::flatten::{FlattenOptions, flatten};
/// use qcow::{CancelToken, Silent};
///
/// let chain = Chain::open(Path::new("overlay.qcow2"), &OpenOptions::default())?;
/// let options = FlattenOptions::default().digest(true);
/// let done =
///     flatten(&chain, Path::new("standalone.qcow2"), &options, &Silent, &CancelToken::new())?;
/// println!("{} bytes of data, crc32 {:?}", done.data_bytes, done.crc32);
/// # Ok::<(), qcow::Error>(())
/// ```
///
/// # Errors
/// Whatever reading the chain or writing the target raises;
/// [`Interrupted`](crate::ErrorKind::Interrupted) when cancelled. In every error case nothing is
/// left at `path` that was not there before.
pub fn flatten(
    chain: &Chain,
    path: &Path,
    options: &FlattenOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<FlattenOutcome> {
    FlattenJob::begin(chain, path, options)?.run(observer, cancel)
}

/// The length of the file that [`flatten`] would write with these options, found by doing all but
/// writing it.
pub(super) fn file_length(
    chain: &Chain,
    options: &FlattenOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<u64> {
    match &options.target {
        TargetOptions::Raw(_) => Ok(chain.virtual_size()),
        TargetOptions::Qcow2(target) => {
            let done = qcow2::measure(chain, target, options, observer, cancel)?;
            Ok(done.file_length)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::OpenOptions;
    use crate::ops::create::{CreateOptions, create};

    #[test]
    fn all_files_are_open_after_begin_and_a_job_that_is_not_run_leaves_none() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        create(&source, &CreateOptions { size: Some(1 << 20), ..Default::default() }).unwrap();
        let chain = Chain::open(&source, &OpenOptions::default()).unwrap();
        let data_file = Some("data".into());
        let with_data = crate::ops::Qcow2Options { data_file, ..Default::default() };
        let raw = TargetOptions::Raw(crate::ops::RawOptions::default());
        let count = |path: &Path| std::fs::read_dir(path).unwrap().count();
        for (target, begun) in
            [(TargetOptions::default(), 1), (TargetOptions::Qcow2(with_data), 2), (raw, 1)]
        {
            let out = tempfile::tempdir().unwrap();
            let options = FlattenOptions { target, ..Default::default() };
            let path = out.path().join("target");
            let job = FlattenJob::begin(&chain, &path, &options).unwrap();
            assert_eq!(count(out.path()), begun);
            drop(job);
            assert_eq!(count(out.path()), 0);
            // No name is looked up any more once it has begun.
            let job = FlattenJob::begin(&chain, &path, &options).unwrap();
            job.run(&crate::Silent, &CancelToken::new()).unwrap();
            assert_eq!(count(out.path()), begun);
        }
    }
}
