//! What becomes of the clusters of a new QCOW2 image: which are left out, compressed or written, and where
//! they go.

use crc32fast::Hasher;

use super::options::FlattenOptions;
use super::runs::runs_of;
use super::sinks::{Collect, Joined, Metadata, Places, Write};
use super::totals::Totals;
use super::widen::{Cluster, Holes, Sizes};
use crate::codec::{Compressor, is_zero};
use crate::exact::{Exact, to_usize};
use crate::extent::Extent;
use crate::format::{CompressionType, HostOffset};
use crate::io::OutputFile;
use crate::layout::Placer;
use crate::ops::create::ReserveSink;
use crate::ops::work::crc::hash;
use crate::ops::work::offload::{Offload, OffloadRange, Place};
use crate::ops::work::pipeline::Job;
use crate::ops::work::rate::{Rate, wait};
use crate::ops::work::salvage::Salvage;
use crate::ops::work::sparse::Sparse;
use crate::ops::{Preallocation, Qcow2Options};
use crate::{CancelToken, Error, Result};

/// So many bytes of zeros, aligned, inside a larger data cluster are a hole in the file.
const HOLE: u64 = 64 << 10;

/// Where things are written.
#[derive(Clone, Copy)]
pub(super) struct Files<'a> {
    pub(super) image: &'a OutputFile,
    /// Where uncompressed clusters go.
    pub(super) data: &'a OutputFile,
}

pub(super) struct Qcow2Job<'a> {
    /// `None` to find out how long the file would be.
    files: Option<Files<'a>>,
    pub(super) offload: Option<Offload<'a>>,
    pub(super) salvage: Option<Salvage>,
    data_file: bool,
    cluster_size: usize,
    subclusters: bool,
    compress: Option<CompressionType>,
    level: Option<i32>,
    digest: bool,
    preallocation: Preallocation,
    zeros: Sparse,
    rate: Option<Rate>,
    /// What is not written reads as zeros, and its space was not asked for.
    pub(super) sparse: bool,
    cancel: &'a CancelToken,
}

pub(super) struct State {
    pub(super) placer: Placer,
    pub(super) totals: Totals,
    /// A compressed cluster of zeros, if one was needed.
    zeros: Vec<u8>,
}

impl State {
    pub(super) fn new(placer: Placer, digest: bool) -> Self {
        Self { placer, totals: Totals::new(digest), zeros: Vec::new() }
    }
}

/// What a worker keeps between items.
pub(super) struct Worker {
    compressor: Option<Compressor>,
    /// The cluster just compressed.
    compressed: Vec<u8>,
    /// The compressed clusters of the item, one behind the other.
    packed: Vec<u8>,
}

/// An item after the parallel part.
pub(super) struct Ready {
    first_cluster: u64,
    clusters: Vec<Cluster>,
    data_bytes: u64,
    hash: Option<Hasher>,
}

impl Ready {
    pub(super) fn count_in(&self, totals: &mut Totals) {
        totals.add(self.data_bytes, self.hash.as_ref());
    }
}

impl Job for Qcow2Job<'_> {
    type Worker = Worker;
    type Ready = Ready;
    type Ordered = State;
    type Placed = Vec<Write>;

    fn worker(&self) -> Result<Worker> {
        let compressor = self.compress.map(|kind| Compressor::new(kind, self.level)).transpose()?;
        Ok(Worker { compressor, compressed: Vec::new(), packed: Vec::new() })
    }

    fn prepare(&self, worker: &mut Worker, guest: u64, bytes: &[u8]) -> Result<Ready> {
        self.prepare_extents(worker, guest, bytes, &[])
    }

    fn prepare_extents(
        &self,
        worker: &mut Worker,
        guest: u64,
        bytes: &[u8],
        extents: &[Extent],
    ) -> Result<Ready> {
        worker.packed.clear();
        let mut clusters = Vec::with_capacity(bytes.len().div_ceil(self.cluster_size.max(1)));
        for cluster in bytes.chunks(self.cluster_size.max(1)) {
            clusters.push(self.classify(worker, cluster)?);
        }
        if let (Sparse::Blocks(block), None) = (self.zeros, self.compress) {
            let sizes = Sizes { block, cluster: self.cluster_size, subclusters: self.subclusters };
            sizes.widen(&mut clusters, bytes.len(), &Holes::of(guest, extents)?)?;
        }
        let data = bytes
            .chunks(self.cluster_size.max(1))
            .zip(&clusters)
            .filter(|(_, cluster)| **cluster != Cluster::Zero)
            .map(|(bytes, _)| bytes.len() as u64);
        Ok(Ready {
            first_cluster: guest.checked_div(self.cluster_size as u64).unwrap_or_default(),
            data_bytes: data.sum(),
            clusters,
            hash: self.digest.then(|| hash(bytes)),
        })
    }

    fn place(&self, state: &mut State, ready: &Ready) -> Result<Vec<Write>> {
        ready.count_in(&mut state.totals);
        let mut metadata = Metadata::to(self.files.map(|files| files.image));
        self.place_clusters(&mut state.placer, ready, &mut metadata)
    }

    fn place_zeros(&self, state: &mut State, guest: u64, len: u64) -> Result<()> {
        state.totals.add_zeros(len);
        let all = self.zeros == Sparse::Nothing;
        if self.preallocation == Preallocation::Off && !all {
            return Ok(());
        }
        let size = self.cluster_size as u64;
        let first = guest.checked_div(size).unwrap_or_default();
        let count = len.div_ceil(size.max(1));
        if let (true, Some(kind)) = (all, self.compress) {
            return self.place_compressed_zeros(state, kind, first, count);
        }
        let Some(files) = self.files else {
            return state.placer.reserve_run(first, count, &mut Metadata::Dropped);
        };
        let full = self.preallocation == Preallocation::Full && !self.data_file;
        let (output, cancel) = (files.image, self.cancel);
        let mut sink = ReserveSink { output, cluster_size: size, full, cancel };
        if all {
            return state.placer.place_run(first, count, &mut sink);
        }
        state.placer.reserve_run(first, count, &mut sink)
    }

    fn offload(&self) -> Option<&Offload<'_>> {
        self.offload.as_ref()
    }

    fn salvage(&self) -> Option<&Salvage> {
        self.salvage.as_ref()
    }

    fn place_offloaded(
        &self,
        state: &mut State,
        range: &OffloadRange,
        hash: Option<&Hasher>,
    ) -> Result<Vec<Place>> {
        state.totals.add(range.data_bytes()?, hash);
        let cluster_size = self.cluster_size as u64;
        let metadata = Metadata::to(self.files.map(|files| files.image));
        let mut sink = Places { metadata, cluster_size, places: Vec::new() };
        let number = |bytes: u64| bytes.checked_div(cluster_size).unwrap_or_default();
        if self.offload.as_ref().is_some_and(Offload::is_in_source_order) {
            let runs = range.in_source_order().into_iter();
            let runs = runs.map(|run| (number(run.guest.0), number(run.len)));
            state.placer.place_in_source_order(runs, &mut sink)?;
        } else {
            state.placer.place_run(number(range.guest), number(range.len), &mut sink)?;
        }
        Ok(sink.places)
    }

    fn write(
        &self,
        worker: &mut Worker,
        bytes: &[u8],
        ready: Ready,
        placed: Vec<Write>,
    ) -> Result<()> {
        let Some(files) = self.files else { return Ok(()) };
        wait(self.rate.as_ref(), ready.data_bytes, self.cancel)?;
        for write in placed {
            if let Write::Data { from, to, host } = write
                && to > bytes.len()
            {
                // The disk ends within the cluster.
                let written = bytes.len().minus(from)? as u64;
                let missing = to.minus(bytes.len())? as u64;
                files.data.blank(host.plus(written)?.0, missing)?;
            }
            let file = if matches!(write, Write::Packed { .. }) { files.image } else { files.data };
            self.pieces(worker, bytes, &write, |offset, piece| file.write_at(piece, offset))?;
        }
        Ok(())
    }
}

impl<'a> Qcow2Job<'a> {
    /// `target` has been checked.
    pub(super) fn new(
        files: Option<Files<'a>>,
        target: &Qcow2Options,
        options: &FlattenOptions,
        cancel: &'a CancelToken,
    ) -> Self {
        Self {
            files,
            offload: None,
            salvage: None,
            data_file: target.data_file.is_some(),
            cluster_size: to_usize(target.cluster_size),
            subclusters: target.extended_l2,
            compress: options.compress.then_some(target.compression_type),
            level: options.compression_level,
            digest: options.digest,
            preallocation: target.preallocation,
            zeros: Sparse::of(options.sparse),
            rate: Rate::of(options.rate),
            sparse: files.is_some_and(|files| files.data.fixed_len().is_none())
                && matches!(target.preallocation, Preallocation::Off | Preallocation::Metadata),
            cancel,
        }
    }

    fn classify(&self, worker: &mut Worker, cluster: &[u8]) -> Result<Cluster> {
        let keep_zeros = self.preallocation != Preallocation::Off || self.zeros == Sparse::Nothing;
        if is_zero(cluster) && !keep_zeros {
            return Ok(Cluster::Zero);
        }
        if let Some(compressor) = &mut worker.compressor {
            let padded = padded(cluster, self.cluster_size);
            let input = padded.as_deref().unwrap_or(cluster);
            if !compressor.compress(input, &mut worker.compressed)? {
                return Ok(Cluster::Data);
            }
            let from = worker.packed.len();
            worker.packed.extend_from_slice(&worker.compressed);
            return Ok(Cluster::Compressed { from, len: worker.compressed.len() });
        }
        if self.subclusters && !keep_zeros {
            let mask = data_mask(cluster, self.cluster_size >> 5);
            return Ok(if mask == u32::MAX { Cluster::Data } else { Cluster::Partial(mask) });
        }
        Ok(Cluster::Data)
    }

    /// Places `count` clusters of zeros as compressed ones, and writes them.
    fn place_compressed_zeros(
        &self,
        state: &mut State,
        kind: CompressionType,
        first: u64,
        count: u64,
    ) -> Result<()> {
        if state.zeros.is_empty()
            && !Compressor::new(kind, self.level)?
                .compress(&vec![0; self.cluster_size], &mut state.zeros)?
        {
            return Err(Error::internal("zeros that cannot be compressed"));
        }
        let mut metadata = Metadata::to(self.files.map(|files| files.image));
        let mut run =
            Joined { file: self.files.map(|files| files.image), at: 0, bytes: Vec::new() };
        let end = first.plus(count)?;
        state.placer.reach(end)?;
        for cluster in first..end {
            self.cancel.check()?;
            let len = state.zeros.len() as u64;
            let host = state.placer.place_compressed(cluster, len, &mut metadata)?;
            run.add(host.0, &state.zeros)?;
        }
        run.write()
    }

    pub(super) fn place_clusters(
        &self,
        placer: &mut Placer,
        ready: &Ready,
        metadata: &mut Metadata<'_>,
    ) -> Result<Vec<Write>> {
        let mut sink = Collect {
            metadata,
            first_cluster: ready.first_cluster,
            cluster_size: self.cluster_size,
            writes: Vec::new(),
        };
        placer.reach(ready.first_cluster.plus(ready.clusters.len() as u64)?)?;
        let mut clusters = (ready.first_cluster..).zip(&ready.clusters).peekable();
        while let Some((index, cluster)) = clusters.next() {
            match *cluster {
                Cluster::Zero => {}
                Cluster::Data => {
                    let mut count = 1u64;
                    while clusters.next_if(|(_, next)| **next == Cluster::Data).is_some() {
                        count = count.plus(1)?;
                    }
                    placer.place_run(index, count, &mut sink)?;
                }
                Cluster::Partial(mask) => {
                    let host = placer.place_partial(index, mask, &mut sink)?;
                    let from = sink.byte_of(index)?;
                    sink.writes.push(Write::Partial { from, mask, host });
                }
                Cluster::Compressed { from, len } => {
                    let host = placer.place_compressed(index, len as u64, &mut sink)?;
                    push_packed(&mut sink.writes, from, len, host)?;
                }
            }
        }
        Ok(sink.writes)
    }

    /// The bytes that `write` means, each with its offset, in ascending order.
    pub(super) fn pieces<'b>(
        &self,
        worker: &'b Worker,
        bytes: &'b [u8],
        write: &Write,
        mut each: impl FnMut(u64, &'b [u8]) -> Result<()>,
    ) -> Result<()> {
        match *write {
            // What the item does not have (at the end of the disk) is a hole and reads as zeros.
            Write::Data { from, to, host } => {
                let bytes = bytes.get(from..to.min(bytes.len())).unwrap_or_default();
                let hole = to_usize(self.zeros.block(HOLE));
                if !self.sparse || self.cluster_size <= hole {
                    return each(host.0, bytes);
                }
                for (start, end) in runs_of(bytes, hole, |run| !is_zero(run)) {
                    let run = bytes.get(start..end).unwrap_or_default();
                    each(host.plus(start as u64)?.0, run)?;
                }
                Ok(())
            }
            Write::Packed { from, to, host } => {
                each(host.0, worker.packed.get(from..to).unwrap_or_default())
            }
            Write::Partial { from, mask, host } => {
                debug_assert!(mask != 0);
                let end = from.plus(self.cluster_size)?.min(bytes.len());
                let cluster = bytes.get(from..end).unwrap_or_default();
                let mut masked = (0u32..32).map(|bit| mask >> bit & 1 == 1);
                let mut keep = |_: &[u8]| masked.next() == Some(true);
                for (start, end) in runs_of(cluster, self.cluster_size >> 5, &mut keep) {
                    let run = cluster.get(start..end).unwrap_or_default();
                    each(host.plus(start as u64)?.0, run)?;
                }
                Ok(())
            }
        }
    }
}

/// Bit n is set if subcluster n holds anything but zeros.
fn data_mask(cluster: &[u8], subcluster: usize) -> u32 {
    cluster
        .chunks(subcluster.max(1))
        .zip(0u32..32)
        .filter(|(piece, _)| !is_zero(piece))
        .fold(0, |mask, (_, bit)| mask | 1u32.checked_shl(bit).unwrap_or(0))
}

/// The last cluster of a disk may be short: it is compressed as a whole one (trap 57).
fn padded(cluster: &[u8], size: usize) -> Option<Vec<u8>> {
    (cluster.len() < size).then(|| {
        let mut whole = cluster.to_vec();
        whole.resize(size, 0);
        whole
    })
}

/// Adds a compressed cluster, joined to the one before it if they lie side by side.
fn push_packed(writes: &mut Vec<Write>, from: usize, len: usize, host: HostOffset) -> Result<()> {
    let end = from.plus(len)?;
    if let Some(Write::Packed { from: start, to, host: first }) = writes.last_mut() {
        let next = first.plus(to.minus(*start)? as u64)?;
        if *to == from && next == host {
            *to = end;
            return Ok(());
        }
    }
    writes.push(Write::Packed { from, to: end, host });
    Ok(())
}
