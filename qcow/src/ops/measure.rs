//! How long the file of a new image will be.

use serde::Serialize;

use super::flatten::{self, FlattenOptions};
use super::map::{MapOptions, map};
use super::{Preallocation, Qcow2Options, TargetOptions, new_disk_size};
use crate::chain::Chain;
use crate::exact::Exact;
use crate::extent::Truncation;
use crate::format::{Geometry, RefcountWidth, Version};
use crate::image::BitmapInfo;
use crate::setters::setters;
use crate::{CancelToken, Observer, Result};

/// Bytes of a bitmap directory's entry without its name, and what entries are aligned to.
const BITMAP_ENTRY: u64 = 24;
const BITMAP_ALIGNMENT: u64 = 8;

/// What the new image is to be like.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct MeasureOptions {
    /// Its format and its options.
    pub target: TargetOptions,
    /// It is to have a backing file.
    pub has_backing: bool,
}

setters!(MeasureOptions {
    has_backing: bool,
} into {
    target: TargetOptions,
});

/// Lengths of files, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct MeasureOutcome {
    /// What persistent bitmaps would take in addition, if source and target can have them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bitmaps: Option<u64>,
    /// What the new image takes at first.
    pub required: u64,
    /// What it takes once the guest has written everywhere.
    pub fully_allocated: u64,
    /// Files of the chain that end before what their images refer to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub truncated: Vec<Truncation>,
}

/// Measures an empty image of `size` bytes: the figures of `qemu-img measure --size`.
///
/// ```
/// use qcow::ops::measure::{MeasureOptions, measure_size};
/// let outcome = measure_size(1 << 30, &MeasureOptions::default())?;
/// assert_eq!((outcome.required, outcome.fully_allocated), (393216, 1074135040));
/// # Ok::<(), qcow::Error>(())
/// ```
///
/// # Errors
/// [`Usage`](crate::ErrorKind::Usage) for options that do not go together,
/// [`Limit`](crate::ErrorKind::Limit) for a size that the format cannot hold.
pub fn measure_size(size: u64, options: &MeasureOptions) -> Result<MeasureOutcome> {
    let size = new_disk_size(size)?;
    match &options.target {
        TargetOptions::Raw(_) => Ok(raw(size)),
        TargetOptions::Qcow2(target) => {
            let target = target.checked(options.has_backing)?;
            qcow2(&target, size, 0)
        }
    }
}

/// Measures an image that holds what `chain` holds: the figures of `qemu-img measure`, from the
/// tables alone. Data that is zeros counts, and compression is not foreseen; [`exact`] knows
/// better.
///
/// # Errors
/// As [`measure_size`], what reading tables raises, and [`Io`](crate::ErrorKind::Io) if a file changed meanwhile.
pub fn measure(chain: &Chain, options: &MeasureOptions) -> Result<MeasureOutcome> {
    let size = chain.virtual_size();
    let target = match &options.target {
        TargetOptions::Raw(_) => return Ok(raw(size)),
        TargetOptions::Qcow2(target) => target.checked(options.has_backing)?,
    };
    let data = if options.has_backing {
        // What the backing file has cannot be known, so all of it may be copied (trap 137).
        size.checked_next_multiple_of(target.cluster_size).unwrap_or(u64::MAX)
    } else {
        data_in_clusters(chain, target.cluster_size)?
    };
    let outcome = qcow2(&target, size, data)?;
    let truncated = chain.truncations()?;
    Ok(MeasureOutcome { bitmaps: bitmaps(chain, &target), truncated, ..outcome })
}

/// Lengths of the files that a flatten writes, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct ExactOutcome {
    /// Of all files together.
    pub required: u64,
    /// Of the external data file, if there is to be one: as long as the disk, but with holes where
    /// the disk has zeros.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_file: Option<u64>,
    /// Files of the chain that end before what their images refer to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub truncated: Vec<Truncation>,
}

/// The lengths of the files that [`flatten`](super::flatten::flatten) writes with the same options,
/// to the byte. Reads and, if asked, compresses everything, and writes nothing.
///
/// # Errors
/// As [`flatten`](super::flatten::flatten).
pub fn exact(
    chain: &Chain,
    options: &FlattenOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<ExactOutcome> {
    let image = flatten::file_length(chain, options, observer, cancel)?;
    let data_file = match &options.target {
        TargetOptions::Qcow2(target) => target.data_file.as_ref().map(|_| chain.virtual_size()),
        TargetOptions::Raw(_) => None,
    };
    let required = image.saturating_add(data_file.unwrap_or(0));
    Ok(ExactOutcome { required, data_file, truncated: chain.truncations()? })
}

fn raw(size: u64) -> MeasureOutcome {
    MeasureOutcome { bitmaps: None, required: size, fully_allocated: size, truncated: Vec::new() }
}

/// An image of `size` bytes, `data` of which are in allocated clusters.
fn qcow2(target: &Qcow2Options, size: u64, data: u64) -> Result<MeasureOutcome> {
    let geometry = target.geometry()?;
    geometry.new_l1_entries(size)?;
    let size = geometry.clusters_for(size).times(geometry.cluster_size())?;
    let metadata = metadata(size, geometry, target.refcount_width()?)?;
    let data = match target.preallocation {
        Preallocation::Falloc | Preallocation::Full => size,
        Preallocation::Off | Preallocation::Metadata => data,
    };
    Ok(MeasureOutcome {
        bitmaps: None,
        required: metadata.saturating_add(data),
        fully_allocated: metadata.saturating_add(size),
        truncated: Vec::new(),
    })
}

/// Bytes of header, L1 table, L2 tables and refcounts of an image whose clusters are all
/// allocated. Tables count as whole clusters.
fn metadata(size: u64, geometry: Geometry, width: RefcountWidth) -> Result<u64> {
    let l2_tables = geometry.l1_entries_for(size);
    let l1 = geometry.clusters_for(l2_tables.saturating_mul(8));
    let counted = [1, l1, l2_tables, geometry.clusters_for(size)];
    let counted = counted.into_iter().fold(0, u64::saturating_add);
    let (blocks, table) = width.clusters_to_count(counted, geometry)?;
    let clusters = [1, l1, l2_tables, blocks, table].into_iter().fold(0, u64::saturating_add);
    clusters.times(geometry.cluster_size())
}

/// Bytes in all clusters of the new image that get data from the old one.
fn data_in_clusters(chain: &Chain, cluster_size: u64) -> Result<u64> {
    let below = cluster_size.wrapping_sub(1);
    let (mut bytes, mut counted_to) = (0u64, 0u64);
    for entry in map(chain, &MapOptions::default()) {
        let entry = entry?;
        if entry.data && !entry.zero {
            let start = (entry.start & !below).max(counted_to);
            let end = entry.end().saturating_add(below) & !below;
            bytes = bytes.saturating_add(end.saturating_sub(start));
            counted_to = counted_to.max(end);
        }
    }
    Ok(bytes)
}

/// What the persistent bitmaps of the active layer would take: data, tables and directory, each
/// in whole clusters. `None` where either side cannot have any.
fn bitmaps(chain: &Chain, target: &Qcow2Options) -> Option<u64> {
    let image = chain.layers().first().and_then(|layer| layer.image())?;
    if image.header().version == Version::V2 || target.version == Version::V2 {
        return None;
    }
    let whole =
        |bytes: u64| bytes.checked_next_multiple_of(target.cluster_size).unwrap_or(u64::MAX);
    let (mut bytes, mut directory) = (0u64, 0u64);
    for bitmap in image.bitmaps().iter().filter(|bitmap| !bitmap.in_use) {
        let (data, table) = bitmap_bytes(bitmap, chain.virtual_size(), target.cluster_size);
        bytes = bytes.saturating_add(data).saturating_add(whole(table));
        let name = bitmap.name.len() as u64;
        directory = directory
            .saturating_add(BITMAP_ENTRY.saturating_add(name).next_multiple_of(BITMAP_ALIGNMENT));
    }
    Some(bytes.saturating_add(whole(directory)))
}

/// Bytes of a bitmap's clusters and of its table.
fn bitmap_bytes(bitmap: &BitmapInfo, size: u64, cluster_size: u64) -> (u64, u64) {
    let bits = size.div_ceil(bitmap.granularity.max(1));
    let clusters = bits.div_ceil(8).div_ceil(cluster_size.max(1));
    (clusters.saturating_mul(cluster_size), clusters.saturating_mul(8))
}
