//! Takes an image over for writing.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock, RwLock};

use super::bitmaps::Bitmaps;
use super::claims::Claims;
use super::commit::Commits;
use super::counts::Counts;
use super::gate::Gate;
use super::scratch::Pool;
use super::slices::Map;
use super::space::Space;
use super::store::JOINED;
use super::{Below, Put, Writer};
use crate::exact::{Exact, to_usize};
use crate::format::{
    Autoclear, CryptMethod, Header, HeaderPatch, HostOffset, Incompatible, L1Entry, decode_table,
};
use crate::image::{Image, Refcounts};
use crate::io::{Storage, WriteStorage, read_padded};
use crate::{Error, ErrorKind, Remedy, Result};

/// How an image is written to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WriterOptions {
    /// Bytes of L2 tables to keep in memory; what is not committed yet stays beyond that.
    pub(crate) cache: u64,
    /// Give the space of freed clusters back to the file system.
    pub(crate) punch: bool,
    /// What is zeroed says so itself, also where it reads as zeros already.
    pub(crate) explicit_zeroes: bool,
    /// Nothing will be written: an image that was not closed properly is as good as any, and writing is an error.
    pub(crate) plan: bool,
}

impl Writer {
    /// Takes over the image in `storage`, with its data file, and what is below it.
    ///
    /// # Errors
    /// As [`Image::open`]; [`Corrupt`](ErrorKind::Corrupt) or [`Unsupported`](ErrorKind::Unsupported) for
    /// what cannot be written to.
    pub(crate) fn open(
        storage: Arc<dyn WriteStorage>,
        data: Option<Arc<dyn WriteStorage>>,
        below: Box<dyn Below>,
        options: WriterOptions,
    ) -> Result<Self> {
        let image = Image::open(Arc::clone(&storage) as Arc<dyn Storage>)?;
        check_writable(&image, options.plan)?;
        if image.has_data_file() != data.is_some() {
            return Err(Error::usage(
                "an image has an external data file just if its header says so",
            ));
        }
        let (header, geometry) = (image.header(), image.geometry());
        let read_only: &dyn Storage = &*storage;
        let l1 = read_table(read_only, header.l1_table_offset, header.l1_entries.into())
            .map_err(|error| error.structure("L1 table"))?;
        for (index, entry) in (0u64..).zip(&l1) {
            L1Entry(*entry).l2_table(geometry).map_err(|error| error.index(index))?;
        }
        let table = Refcounts::read(&image)?.table().to_vec();
        let place = header.refcount_table_offset;
        let counts = Counts::new(geometry, header.refcounts(), table, place)?;
        // The header, the refcount table and its blocks.
        let counts_metadata: Vec<u64> = std::iter::once(0)
            .chain(counts.table_clusters()?)
            .chain(counts.block_clusters())
            .collect();
        let fixed = !storage.capabilities().resize;
        let fixed_end = fixed.then(|| storage.len() >> geometry.cluster_bits());
        let clusters = geometry.clusters_for(storage.len());
        let mut space = Space::new(counts, geometry, clusters, fixed_end);
        let bitmaps = Bitmaps::read(&image)?;
        let mut metadata = metadata(&image, &l1)?;
        metadata.extend(bitmaps.clusters(geometry)?);
        metadata.extend(counts_metadata);
        space.add_metadata(metadata.iter().copied());
        let map = Map::new(geometry, header.l1_table_offset, l1, options.cache);
        let first_change: Vec<Put> = autoclear(header).into_iter().chain(bitmaps.marks()).collect();
        Ok(Self {
            rules: image.rules(),
            size: image.virtual_size(),
            compression: header.compression_type,
            #[cfg(feature = "ops")]
            len_at_open: storage.len(),
            punch: options.punch && storage.capabilities().unmap,
            explicit_zeroes: options.explicit_zeroes,
            storage,
            data,
            below,
            gate: Gate::new(),
            claims: Claims::default(),
            growing: Mutex::default(),
            map: RwLock::new(map),
            space: Mutex::new(space),
            metadata: RwLock::new(metadata),
            bitmaps,
            commits: Mutex::new(Commits::default()),
            changes: AtomicU64::new(0),
            unprepared: AtomicBool::new(!first_change.is_empty()),
            first_change: Mutex::new(first_change),
            poison: match options.plan {
                true => (ErrorKind::Internal, "it was opened for a plan".into()).into(),
                false => OnceLock::new(),
            },
            decoders: Mutex::default(),
            scratch: Pool::new((geometry.cluster_size() << 1).max(JOINED))?,
        })
    }
}

fn check_writable(image: &Image, plan: bool) -> Result<()> {
    let header = image.header();
    if header.incompatible.contains(Incompatible::CORRUPT) {
        return Err(Error::corrupt("the image is marked corrupt").hint(Remedy::Repair));
    }
    if header.incompatible.contains(Incompatible::DIRTY) && !plan {
        let message = "the image was not closed properly, and its refcounts may be wrong";
        return Err(Error::corrupt(message).hint(Remedy::Repair));
    }
    if header.crypt_method != CryptMethod::None {
        return Err(Error::new(
            ErrorKind::Encrypted,
            "the image is encrypted, and there is no key",
        ));
    }
    Ok(())
}

/// Autoclear bits that this crate does not know say something that it does not keep true.
fn autoclear(header: &Header) -> Option<Put> {
    let known = header.autoclear & Autoclear::all();
    let HeaderPatch { offset, bytes } = HeaderPatch::autoclear(known.bits());
    (known != header.autoclear).then_some(Put { offset, bytes })
}

fn read_table(storage: &dyn Storage, place: HostOffset, entries: u64) -> Result<Vec<u64>> {
    let mut bytes = vec![0; to_usize(entries.times(8)?)];
    read_padded(storage, &mut bytes, place.0)?;
    Ok(decode_table(&bytes))
}

/// Clusters of the metadata of the image and of its snapshots, as far as it can be told without reading L2
/// tables.
fn metadata(image: &Image, l1: &[u64]) -> Result<HashSet<u64>> {
    let (header, geometry) = (image.header(), image.geometry());
    let mut clusters = HashSet::new();
    let mut add = |place: HostOffset, bytes: u64| {
        let first = place.0 >> geometry.cluster_bits();
        clusters.extend(first..first.plus(geometry.clusters_for(bytes))?);
        Ok::<_, Error>(())
    };
    add(header.l1_table_offset, u64::from(header.l1_entries) << 3)?;
    if let Some(bitmaps) = image.area().bitmaps() {
        add(bitmaps.directory_offset, bitmaps.directory_size)?;
    }
    if !image.snapshots().is_empty() {
        let bytes = image.snapshots().iter().filter_map(|snapshot| snapshot.to_bytes().ok());
        let bytes = bytes.map(|bytes| bytes.len() as u64).sum::<u64>();
        add(header.snapshots_offset, bytes)?;
    }
    for snapshot in image.snapshots() {
        add(snapshot.l1_table_offset, u64::from(snapshot.l1_entries) << 3)?;
    }
    let tables = l1.iter().map(|entry| L1Entry(*entry).offset());
    tables.filter(|table| table.0 != 0).try_for_each(|table| add(table, 1))?;
    Ok(clusters)
}
