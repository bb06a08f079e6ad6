//! Flattens to a QCOW2 image: zero clusters are left out, data clusters are placed in guest
//! order, compressed or not.

use std::path::Path;

use crc32fast::Hasher;

use super::options::{FlattenOptions, output, salvage};
use super::outcome::{Done, Received};
use super::raw::refuse_on_device;
use super::runs::runs_of;
use super::sinks::{Collect, Metadata, Places, Write};
use super::totals::Totals;

use crate::chain::Chain;
use crate::codec::{Compressor, is_zero};
use crate::exact::{Exact, to_usize};
use crate::format::{CompressionType, HostOffset};
use crate::io::OutputFile;
use crate::layout::{Finished, NewImage, Placer};
use crate::ops::create::{DataFile, ReserveSink};
use crate::ops::work::crc::hash;
use crate::ops::work::offload::{Offload, OffloadRange, Place, TransferStats};
use crate::ops::work::pipeline::{self, Input, Job};
use crate::ops::work::salvage::Salvage;
use crate::ops::{Preallocation, Qcow2Options, new_disk_size, target};
use crate::{CancelToken, Error, Observer, Remedy, Result, Silent};

/// An image whose files are open and whose options were checked; nothing is written to them yet.
pub(super) struct Begun {
    /// The checked options.
    target: Qcow2Options,
    placer: Placer,
    output: OutputFile,
    data_file: Option<OutputFile>,
}

/// Checks the options and starts the files of the image at `path`.
pub(super) fn begin(
    chain: &Chain,
    path: &Path,
    target: &Qcow2Options,
    options: &FlattenOptions,
) -> Result<Begun> {
    let (target, placer) = prepared(chain, target, options).map_err(|error| error.file(path))?;
    let output = output(path, options)?;
    let data_file = data_file(chain, &target)
        .filter(|_| output.fixed_len().is_none())
        .map(|data| data.begin(path, options.replace))
        .transpose()?;
    if let Some(data_file) = &data_file
        && chain.contains_file(data_file.target())
    {
        return Err(
            Error::usage("the data file is one of the images being read").file(data_file.target())
        );
    }
    Ok(Begun { target, placer, output, data_file })
}

/// The external data file that the image is to have.
fn data_file<'a>(chain: &Chain, target: &'a Qcow2Options) -> Option<DataFile<'a>> {
    let (size, preallocation) = (chain.virtual_size(), target.preallocation);
    target.data_file.as_ref().map(|name| DataFile { name, size, preallocation })
}

/// Writes the image that was begun.
pub(super) fn flatten(
    chain: &Chain,
    begun: Begun,
    options: &FlattenOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<Done> {
    let Begun { target, placer, output, data_file } = begun;
    let size = chain.virtual_size();
    if let (Some(file), Some(data)) = (&data_file, self::data_file(chain, &target)) {
        data.preallocate(file, cancel)?;
    }
    if let Some(len) = output.fixed_len() {
        start_device(chain, &output, len, &target, options, cancel)?;
    }
    let files = Files { image: &output, data: data_file.as_ref().unwrap_or(&output) };
    let mut job = Qcow2Job::new(Some(files), &target, options, cancel);
    job.salvage = salvage(options);
    if job.sparse && !options.compress && !options.no_reflink && !options.salvage {
        let offload = Offload::find(chain, files.data, Some(target.cluster_size), options.digest)?;
        let anywhere = target.preallocation == Preallocation::Off && data_file.is_none();
        job.offload = if anywhere { offload.map(Offload::in_source_order) } else { offload };
    }
    let state = State::new(placer, options.digest);
    let partly = |error| output.abandoned(error);
    let state =
        pipeline::run(chain, &job, state, options.threads, observer, cancel).map_err(partly)?;
    let file_length = finish(state.placer, &output, &target, size).map_err(partly)?;
    cancel.check().map_err(partly)?;
    let written: Vec<_> = [&output].into_iter().chain(&data_file).collect();
    let transfer = TransferStats::of(job.offload.as_ref(), &written);
    let damage = job.salvage.as_ref().map(Salvage::report);
    let warnings = target::publish(output, data_file)?;
    Ok(Done { file_length, transfer, totals: state.totals, warnings, damage })
}

/// Completes the image of a disk of `size` bytes, all but its name; returns the length of the file.
fn finish(placer: Placer, output: &OutputFile, target: &Qcow2Options, size: u64) -> Result<u64> {
    let reserve = target.preallocation == Preallocation::Falloc;
    let header = |finished: &Finished| target.header_area(size, finished, None);
    NewImage { placer, output }.finish(&mut Metadata::Written(output), reserve, header)
}

/// Makes sure that the image fits onto the device, and that nothing is taken for one before it is.
fn start_device(
    chain: &Chain,
    output: &OutputFile,
    len: u64,
    target: &Qcow2Options,
    options: &FlattenOptions,
    cancel: &CancelToken,
) -> Result<()> {
    refuse_on_device(target.preallocation)?;
    if target.data_file.is_some() {
        return Err(Error::usage("an image on a device cannot have a data file"));
    }
    // The metadata of any image is far less than this.
    let most = chain.virtual_size().plus(chain.virtual_size() >> 4)?.plus(64 << 20)?;
    if len < most {
        let exact = measure(chain, target, options, &Silent, cancel)?;
        output.set_len(exact.file_length)?;
    }
    // What was there may be an image: it must not be half an image.
    output.write_at(&[0; 512], 0)?;
    output.blank(0, target.cluster_size)?;
    output.barrier()
}

/// As [`begin`], for a disk that comes as a stream, whose size is not known yet.
pub(super) fn begin_growing(
    path: &Path,
    target: &Qcow2Options,
    options: &FlattenOptions,
) -> Result<Begun> {
    let target = target.checked(false).map_err(|error| error.file(path))?;
    check_compression(&target, options)?;
    refuse_device(options)?;
    let placer = Placer::growing(target.rules()?, target.refcount_width()?)?;
    let output = output(path, options)?;
    Ok(Begun { target, placer, output, data_file: None })
}

/// Writes the disk that `input` brings to the image that was begun.
pub(super) fn receive(
    input: Input,
    begun: Begun,
    options: &FlattenOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<Received> {
    let Begun { target, placer, output, .. } = begun;
    let job =
        Qcow2Job::new(Some(Files { image: &output, data: &output }), &target, options, cancel);
    let state = State::new(placer, options.digest);
    let (len, mut state) =
        pipeline::receive(input, &job, state, options.threads, observer, cancel)?;
    let size = new_disk_size(len)?;
    state.totals.add_zeros(size.minus(len)?);
    state.placer.grow(size)?;
    let file_length = finish(state.placer, &output, &target, size)?;
    cancel.check()?;
    let transfer = TransferStats::of(None, &[&output]);
    let warnings = output.publish()?;
    Ok((size, Done { file_length, transfer, totals: state.totals, warnings, damage: None }))
}

/// Does everything that [`flatten`] does but writing. With an external data file, the length is
/// that of the image without it.
pub(super) fn measure(
    chain: &Chain,
    target: &Qcow2Options,
    options: &FlattenOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<Done> {
    let (target, placer) = prepared(chain, target, options)?;
    let job = Qcow2Job::new(None, &target, options, cancel);
    let state = State::new(placer, false);
    let state = pipeline::run(chain, &job, state, options.threads, observer, cancel)?;
    let finished = state.placer.finish(&mut Metadata::Dropped)?;
    let transfer = TransferStats::default();
    let (file_length, totals, warnings) = (finished.file_length, state.totals, Vec::new());
    Ok(Done { file_length, transfer, totals, warnings, damage: None })
}

/// So many bytes of zeros, aligned, inside a larger data cluster are a hole in the file.
const HOLE: usize = 64 << 10;

/// Checks the options, and starts the layout.
pub(super) fn prepared(
    chain: &Chain,
    target: &Qcow2Options,
    options: &FlattenOptions,
) -> Result<(Qcow2Options, Placer)> {
    let target = target.checked(false)?;
    check_compression(&target, options)?;
    let placer = Placer::new(target.rules()?, target.refcount_width()?, chain.virtual_size())?;
    Ok((target, placer))
}

/// Whether it fits would be known too late.
fn refuse_device(options: &FlattenOptions) -> Result<()> {
    if options.device {
        return Err(Error::usage("a qcow2 image on a device cannot come from a stream")
            .hint(Remedy::DestinationFormat("raw")));
    }
    Ok(())
}

fn check_compression(target: &Qcow2Options, options: &FlattenOptions) -> Result<()> {
    if !options.compress {
        return match options.compression_level {
            Some(_) => Err(Error::usage("a compression level is given, but nothing is compressed")
                .hint(Remedy::Compress)),
            None => Ok(()),
        };
    }
    // Before anything is written: a level that the codec lacks.
    Compressor::new(target.compression_type, options.compression_level)?;
    if target.data_file.is_some() {
        return Err(Error::usage("compressed clusters cannot live in an external data file"));
    }
    if target.preallocation != Preallocation::Off {
        return Err(Error::usage("compression and preallocation exclude each other"));
    }
    Ok(())
}

/// Where things are written.
#[derive(Clone, Copy)]
pub(super) struct Files<'a> {
    image: &'a OutputFile,
    /// Where uncompressed clusters go.
    data: &'a OutputFile,
}

pub(super) struct Qcow2Job<'a> {
    /// `None` to find out how long the file would be.
    files: Option<Files<'a>>,
    offload: Option<Offload<'a>>,
    salvage: Option<Salvage>,
    data_file: bool,
    cluster_size: usize,
    subclusters: bool,
    compress: Option<CompressionType>,
    level: Option<i32>,
    digest: bool,
    preallocation: Preallocation,
    /// What is not written reads as zeros, and its space was not asked for.
    sparse: bool,
    cancel: &'a CancelToken,
}

pub(super) struct State {
    pub(super) placer: Placer,
    pub(super) totals: Totals,
}

impl State {
    pub(super) fn new(placer: Placer, digest: bool) -> Self {
        Self { placer, totals: Totals::new(digest) }
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

/// What becomes of one cluster of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cluster {
    Zero,
    Data,
    /// Only these subclusters hold data.
    Partial(u32),
    /// `len` bytes from `from` on in the worker's packed bytes.
    Compressed {
        from: usize,
        len: usize,
    },
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
        worker.packed.clear();
        let mut clusters = Vec::with_capacity(bytes.len().div_ceil(self.cluster_size.max(1)));
        for cluster in bytes.chunks(self.cluster_size.max(1)) {
            clusters.push(self.classify(worker, cluster)?);
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
        if self.preallocation == Preallocation::Off {
            return Ok(());
        }
        let size = self.cluster_size as u64;
        let first = guest.checked_div(size).unwrap_or_default();
        let count = len.div_ceil(size.max(1));
        let Some(files) = self.files else {
            return state.placer.reserve_run(first, count, &mut Metadata::Dropped);
        };
        let full = self.preallocation == Preallocation::Full && !self.data_file;
        let (output, cancel) = (files.image, self.cancel);
        let mut sink = ReserveSink { output, cluster_size: size, full, cancel };
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
        _ready: Ready,
        placed: Vec<Write>,
    ) -> Result<()> {
        let Some(files) = self.files else { return Ok(()) };
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
            sparse: files.is_some_and(|files| files.data.fixed_len().is_none())
                && matches!(target.preallocation, Preallocation::Off | Preallocation::Metadata),
            cancel,
        }
    }

    fn classify(&self, worker: &mut Worker, cluster: &[u8]) -> Result<Cluster> {
        let keep_zeros = self.preallocation != Preallocation::Off;
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
                if !self.sparse || self.cluster_size <= HOLE {
                    return each(host.0, bytes);
                }
                for (start, end) in runs_of(bytes, HOLE, |run| !is_zero(run)) {
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
                for (start, end) in runs_of(cluster, self.cluster_size >> 5, |run| !is_zero(run)) {
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
