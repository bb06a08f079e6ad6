//! How to flatten, and what follows from that for the files.

use std::path::Path;

use crate::chain::Chain;
use crate::io::{OutputFile, Replace};
use crate::ops::bitmap::{Carried, CarryBitmaps};
use crate::ops::work::salvage::Salvage;
use crate::ops::{TargetOptions, users};
use crate::setters::setters;
use crate::{Error, Remedy, Result};

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
    /// [`FlattenOutcome::damage`](super::FlattenOutcome::damage). Nothing is cloned, since that does not read, and data is read past
    /// the page cache where the file systems can. Goes neither with a stream nor with [`digest`](Self::digest), which would be of another content.
    pub salvage: bool,
    /// Do not wait until the new image is on the disk: a power cut soon after the end may lose it. For callers that
    /// sync later, or that can make it again.
    pub unsynced: bool,
    /// Which persistent bitmaps of the active layer the new image gets: a QCOW2 image of version 3, and no stream. With
    /// an internal snapshot for the source they are still those of the current state.
    pub bitmaps: CarryBitmaps,
    /// Zeros in data are left out only in aligned blocks of so many bytes, rounded down to a power of two, at most 2 MiB;
    /// with 0 not at all: everything is written as data. `None` leaves out what the format can. Compression leaves
    /// out whole clusters whatever the size, but not with 0. Where it is given nothing is cloned, since that does not look.
    pub sparse: Option<u64>,
    /// At most so many bytes of data are written in a second; 0 and `None` are no limit. With a limit nothing is cloned
    /// or copied by the kernel. Not for streams.
    pub rate: Option<u64>,
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
    unsynced: bool,
    bitmaps: CarryBitmaps,
} into {
    target: TargetOptions,
    compression_level: Option<i32>,
    sparse: Option<u64>,
    rate: Option<u64>,
});

/// The bitmaps of the source that the new image is to have.
pub(super) fn carried(chain: &Chain, options: &FlattenOptions) -> Result<Carried> {
    let version = match &options.target {
        TargetOptions::Qcow2(target) => Some(target.version),
        TargetOptions::Raw(_) => None,
    };
    Carried::of(chain, options.bitmaps, version)
}

/// Where damage is listed, if it is to be passed over.
pub(super) fn salvage(options: &FlattenOptions) -> Option<Salvage> {
    options.salvage.then(Salvage::default)
}

/// Starts what is written to: a file that gets its name later, or a device.
pub(super) fn output(path: &Path, options: &FlattenOptions) -> Result<OutputFile> {
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
    if options.unsynced {
        output.without_sync();
    }
    Ok(output)
}
