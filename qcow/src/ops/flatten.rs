//! Makes one standalone image out of a whole chain.

mod job;
mod qcow2;
mod raw;
mod sinks;
mod stream;
mod totals;

use std::path::{Path, PathBuf};

use serde::Serialize;

use self::totals::Totals;
use super::not_carried::{SourceFacts, not_carried};
pub use super::work::offload::TransferStats;
use super::work::salvage::Salvage;
use super::{DamageReport, NotCarried, TargetOptions, users};
use crate::chain::{Chain, Foreign, Format};
use crate::extent::Truncation;
use crate::io::{OutputFile, Replace};
use crate::setters::setters;
use crate::{CancelToken, Error, Observer, Remedy, Result};
pub use job::FlattenJob;

/// How to flatten.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct FlattenOptions {
    /// Format of the new image and its options.
    pub target: TargetOptions,
    /// Compress every data cluster (qcow2 only).
    pub compress: bool,
    /// How hard to compress: one of the codec's [`levels`](crate::codec::levels), else its default.
    pub compression_level: Option<i32>,
    /// Worker threads; 0 means one per core, at most 16. The output does not depend on it.
    pub threads: usize,
    /// Compute the CRC-32 of the guest's disk on the way.
    pub digest: bool,
    /// Whether an existing file is replaced, atomically. Owner, group, mode, access control list,
    /// SELinux label and `user.*` attributes stay as they are.
    pub replace: Replace,
    /// Never let the new image share space with a source.
    pub no_reflink: bool,
    /// The target is a block device, which is overwritten. It must not be in use.
    pub device: bool,
    /// The target is a block device or a regular file that exists and is overwritten, with a raw
    /// image only (`qemu-img convert -n`). It must be large enough and not in use, and keeps its
    /// length; what lies behind the disk stays. An interrupted run leaves it partly overwritten.
    pub existing: bool,
    /// The target that is overwritten holds nothing but zeros, so that zeros need not be written.
    pub target_is_zero: bool,
    /// Write past the page cache what is aligned, and read so where the file systems can.
    pub direct: bool,
    /// The user stated that a stream is a raw disk, whatever its bytes look like.
    pub raw_stated: bool,
    /// Go on past damage: a range that cannot be read is zeros in the new image, and is listed in
    /// [`FlattenOutcome::damage`]. Nothing is cloned, since that does not read, and data is read past
    /// the page cache where the file systems can. Goes neither with a stream nor with [`digest`](Self::digest), which would be of another content.
    pub salvage: bool,
}

setters!(FlattenOptions {
    compress: bool,
    threads: usize,
    digest: bool,
    replace: Replace,
    no_reflink: bool,
    device: bool,
    existing: bool,
    target_is_zero: bool,
    direct: bool,
    raw_stated: bool,
    salvage: bool,
} into {
    target: TargetOptions,
    compression_level: Option<i32>,
});

/// What was written.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct FlattenOutcome {
    /// The new image.
    #[serde(serialize_with = "super::path_text")]
    pub filename: PathBuf,
    /// Its format.
    pub format: Format,
    /// Its virtual size in bytes.
    pub virtual_size: u64,
    /// Length of the file in bytes.
    pub file_length: u64,
    /// Guest bytes stored as data (before compression).
    pub data_bytes: u64,
    /// Guest bytes that read as zeros and were not written.
    pub zero_bytes: u64,
    /// How the bytes of the new image got there.
    #[serde(flatten)]
    pub transfer: TransferStats,
    /// CRC-32 of the guest's disk, if asked for: eight hex digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crc32: Option<String>,
    /// What could not be read, with [`FlattenOptions::salvage`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damage: Option<DamageReport>,
    /// Files of the chain that end before what their images refer to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub truncated: Vec<Truncation>,
    /// What the active layer has and the new image does not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_carried_over: Vec<NotCarried>,
    /// What the first bytes of a stream look like that was stated to be a raw disk, if that is
    /// something else.
    #[serde(skip)]
    pub looks_like: Option<Foreign>,
    /// What could not be kept of a file that was replaced, and what a power cut may undo.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

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

/// Adds what of the source is not in the new image.
fn with_losses(
    chain: &Chain,
    target: &TargetOptions,
    outcome: FlattenOutcome,
) -> Result<FlattenOutcome> {
    let active = chain.layers().first().and_then(|layer| layer.image());
    let not_carried_over = not_carried(&SourceFacts::of(active), target);
    Ok(FlattenOutcome { truncated: chain.truncations()?, not_carried_over, ..outcome })
}

fn outcome(path: &Path, format: Format, virtual_size: u64, done: Done) -> FlattenOutcome {
    FlattenOutcome {
        filename: path.to_path_buf(),
        format,
        virtual_size,
        file_length: done.file_length,
        data_bytes: done.totals.data_bytes,
        zero_bytes: virtual_size.saturating_sub(done.totals.data_bytes),
        transfer: done.transfer,
        crc32: done.totals.digest(),
        damage: done.damage,
        truncated: Vec::new(),
        not_carried_over: Vec::new(),
        looks_like: None,
        warnings: done.warnings,
    }
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

/// What a target knows when it is finished.
struct Done {
    file_length: u64,
    transfer: TransferStats,
    totals: Totals,
    warnings: Vec<String>,
    damage: Option<DamageReport>,
}

/// Where damage is listed, if it is to be passed over.
fn salvage(options: &FlattenOptions) -> Option<Salvage> {
    options.salvage.then(Salvage::default)
}

/// Starts what is written to: a file that gets its name later, or a device.
fn output(path: &Path, options: &FlattenOptions) -> Result<OutputFile> {
    let mut output = if options.device {
        OutputFile::device(path, options.target_is_zero)?
    } else if options.existing {
        if !matches!(options.target, TargetOptions::Raw(_)) {
            return Err(Error::usage("only a raw image is written into what exists")
                .hint(Remedy::DestinationFormat("raw")));
        }
        OutputFile::existing(path, options.target_is_zero)?
    } else if options.target_is_zero {
        return Err(Error::usage("only what exists can be said to hold zeros: a file is new"));
    } else {
        OutputFile::create(path, options.replace)?
    };
    users::check(&output, options.replace)?;
    if options.direct {
        output.write_direct()?;
    }
    Ok(output)
}

/// A disk that came as a stream: its virtual size, and what was written.
type Received = (u64, Done);

/// Consecutive pieces of `bytes`, each `size` long (the last may be shorter), for which `keep`
/// says yes, joined: start and end of each run.
fn runs_of(bytes: &[u8], size: usize, keep: impl Fn(&[u8]) -> bool) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    let mut at: usize = 0;
    for piece in bytes.chunks(size.max(1)) {
        let end = at.saturating_add(piece.len());
        if keep(piece) {
            match runs.last_mut() {
                Some(last) if last.1 == at => last.1 = end,
                _ => runs.push((at, end)),
            }
        }
        at = end;
    }
    runs
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

    #[test]
    fn runs_are_joined_and_the_short_tail_counts() {
        let bytes = [1, 1, 0, 0, 1, 1, 1, 1, 1];
        let runs = runs_of(&bytes, 2, |piece| piece.iter().any(|&byte| byte != 0));
        assert_eq!(runs, [(0, 2), (4, 9)]);
    }
}
