//! Flattens to a QCOW2 image: the files, from their beginning to the header. What becomes of the clusters is
//! in `clusters`.

use std::path::Path;

use super::clusters::{Files, Qcow2Job, State};
use super::options::{FlattenOptions, carried, output, salvage};
use super::outcome::{Done, Received};
use super::raw::refuse_on_device;
use super::sinks::Metadata;
use crate::chain::Chain;
use crate::codec::Compressor;
use crate::exact::Exact;
use crate::format::BitmapsExtension;
use crate::io::OutputFile;
use crate::layout::{Finished, NewImage, Placer};
use crate::ops::bitmap::{Carried, CarryBitmaps, set_extension};
use crate::ops::create::DataFile;
use crate::ops::work::offload::{Offload, TransferStats};
use crate::ops::work::pipeline::{self, Input};
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
    carried: &Carried,
    options: &FlattenOptions,
) -> Result<Begun> {
    let (target, placer) = prepared(chain, target, options)
        .and_then(|prepared| carried.check(prepared.0.geometry()?).map(|()| prepared))
        .map_err(|error| error.file(path))?;
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
    (chain, carried): (&Chain, &Carried),
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
    let may_share = !options.compress && !options.no_reflink && !options.salvage;
    if job.sparse && may_share && options.sparse.is_none() && options.rate.is_none() {
        let offload = Offload::find(chain, files.data, Some(target.cluster_size), options.digest)?;
        let anywhere = target.preallocation == Preallocation::Off && data_file.is_none();
        job.offload = if anywhere { offload.map(Offload::in_source_order) } else { offload };
    }
    let state = State::new(placer, options.digest);
    let partly = |error| output.abandoned(error);
    let mut state =
        pipeline::run(chain, &job, state, options.threads, observer, cancel).map_err(partly)?;
    let bitmaps = place(carried, &target, &mut state.placer, Some(&output), cancel)
        .and_then(|bitmaps| chain.check_unchanged().map(|()| bitmaps))
        .map_err(partly)?;
    let file_length = finish(state.placer, &output, &target, size, bitmaps).map_err(partly)?;
    cancel.check().map_err(partly)?;
    let written: Vec<_> = [&output].into_iter().chain(&data_file).collect();
    let transfer = TransferStats::of(job.offload.as_ref(), &written);
    let damage = job.salvage.as_ref().map(Salvage::report);
    let warnings = target::publish(output, data_file)?;
    Ok(Done { file_length, transfer, totals: state.totals, warnings, damage })
}

/// Places the bitmaps of the new image, behind its data.
fn place(
    carried: &Carried,
    target: &Qcow2Options,
    placer: &mut Placer,
    output: Option<&OutputFile>,
    cancel: &CancelToken,
) -> Result<Option<BitmapsExtension>> {
    let mut sink = Metadata::to(output);
    carried.place(target.geometry()?, cancel, |bytes| placer.place_structure(&bytes, &mut sink))
}

/// Completes the image of a disk of `size` bytes, all but its name; returns the length of the file.
fn finish(
    placer: Placer,
    output: &OutputFile,
    target: &Qcow2Options,
    size: u64,
    bitmaps: Option<BitmapsExtension>,
) -> Result<u64> {
    let reserve = target.preallocation == Preallocation::Falloc;
    let header = |finished: &Finished| {
        let mut area = target.header_area(size, finished, None)?;
        set_extension(&mut area, bitmaps);
        Ok(area)
    };
    NewImage { placer, output, cut: false }.finish(&mut Metadata::Written(output), reserve, header)
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
    if options.sparse != Some(0) {
        refuse_on_device(target.preallocation)?;
    }
    if target.data_file.is_some() {
        return Err(Error::usage("an image on a device cannot have a data file"));
    }
    // The metadata of any image is far less than this.
    let most = chain.virtual_size().plus(chain.virtual_size() >> 4)?.plus(64 << 20)?;
    if len < most || options.bitmaps != CarryBitmaps::None {
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
    let file_length = finish(state.placer, &output, &target, size, None)?;
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
    let mut state = pipeline::run(chain, &job, state, options.threads, observer, cancel)?;
    place(&carried(chain, options)?, &target, &mut state.placer, None, cancel)?;
    let finished = state.placer.finish(&mut Metadata::Dropped)?;
    let transfer = TransferStats::default();
    let (file_length, totals, warnings) = (finished.file_length, state.totals, Vec::new());
    Ok(Done { file_length, transfer, totals, warnings, damage: None })
}

/// Checks the options, and starts the layout.
pub(super) fn prepared(
    chain: &Chain,
    target: &Qcow2Options,
    options: &FlattenOptions,
) -> Result<(Qcow2Options, Placer)> {
    let mut target = target.checked(false)?;
    check_compression(&target, options)?;
    if options.sparse == Some(0) && !options.compress {
        target.preallocation = Preallocation::Full;
    }
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
