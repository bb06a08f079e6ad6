//! Flattens to a raw image: every byte at its guest offset, zeros left as holes.

use std::path::Path;

use crc32fast::Hasher;

use super::options::{FlattenOptions, output, salvage};
use super::outcome::{Done, Received};
use super::runs::runs_of;
use super::totals::Totals;
use super::widen::Holes;

use crate::chain::Chain;
use crate::codec::is_zero;
use crate::exact::{Exact, to_usize};
use crate::extent::Extent;
use crate::io::OutputFile;
use crate::ops::create::{preallocate_raw, write_zeros};
use crate::ops::work::crc::hash;
use crate::ops::work::offload::{Offload, OffloadRange, Place, TransferStats};
use crate::ops::work::pipeline::{self, Input, Job};
use crate::ops::work::rate::{Rate, wait};
use crate::ops::work::salvage::Salvage;
use crate::ops::work::sparse::Sparse;
use crate::ops::{DamageReport, Preallocation, RawOptions, new_disk_size};
use crate::{CancelToken, Error, Observer, Remedy, Result};

/// Zeros are left out in pieces of this many bytes, the usual block of a file system.
pub(super) const BLOCK: usize = 4096;
/// On a device zeros take a call of their own: shorter ones are written like data.
const ZEROED: usize = 64 << 10;
/// A device is told to zero this many bytes at once.
const PATIENCE: u64 = 256 << 20;

/// Starts the raw image at `path`.
pub(super) fn begin(path: &Path, options: &FlattenOptions) -> Result<OutputFile> {
    refuse_compression(options)?;
    output(path, options)
}

/// Writes the image that was begun.
pub(super) fn flatten(
    chain: &Chain,
    output: OutputFile,
    target: &RawOptions,
    options: &FlattenOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<Done> {
    if output.fixed_len().is_some() {
        refuse_on_device(target.preallocation)?;
    }
    let (transfer, totals, damage) = write(chain, &output, target, options, observer, cancel)
        .map_err(|error| output.abandoned(error))?;
    let warnings = output.publish()?;
    Ok(Done { file_length: chain.virtual_size(), transfer, totals, warnings, damage })
}

fn write(
    chain: &Chain,
    output: &OutputFile,
    target: &RawOptions,
    options: &FlattenOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<(TransferStats, Totals, Option<DamageReport>)> {
    // What exists is overwritten, not shared: trying that out would change its length.
    let preallocation = match options.sparse {
        Some(0) if output.fixed_len().is_none() => Preallocation::Full,
        _ => target.preallocation,
    };
    let may_share = preallocation == Preallocation::Off
        && options.sparse.is_none()
        && options.rate.is_none()
        && !options.no_reflink
        && !options.salvage
        && output.fixed_len().is_none();
    let offload =
        if may_share { Offload::find(chain, output, None, options.digest)? } else { None };
    // Of what exists this only says whether the disk fits.
    preallocate_raw(output, chain.virtual_size(), preallocation, cancel)?;
    let job = RawJob {
        output,
        offload,
        digest: options.digest,
        // With falloc the zeros are there already, and with full they have been written.
        keep_zeros: preallocation == Preallocation::Full || options.sparse == Some(0),
        sparse: Sparse::of(options.sparse),
        rate: Rate::of(options.rate),
        salvage: salvage(options),
        cancel,
    };
    let totals = Totals::new(options.digest);
    let totals = pipeline::run(chain, &job, totals, options.threads, observer, cancel)?;
    cancel.check()?;
    let damage = job.salvage.as_ref().map(Salvage::report);
    Ok((TransferStats::of(job.offload.as_ref(), &[output]), totals, damage))
}

/// Writes the disk that `input` brings to the image that was begun.
pub(super) fn receive(
    input: Input,
    output: OutputFile,
    options: &FlattenOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<Received> {
    let (size, transfer, totals) = write_stream(input, &output, options, observer, cancel)
        .map_err(|error| output.abandoned(error))?;
    let warnings = output.publish()?;
    Ok((size, Done { file_length: size, transfer, totals, warnings, damage: None }))
}

fn write_stream(
    input: Input,
    output: &OutputFile,
    options: &FlattenOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<(u64, TransferStats, Totals)> {
    if let (Some(size), Some(_)) = (input.size, output.fixed_len()) {
        output.set_len(size)?;
    }
    let job = RawJob {
        output,
        offload: None,
        digest: options.digest,
        keep_zeros: false,
        sparse: Sparse::Finest,
        rate: None,
        salvage: None,
        cancel,
    };
    let totals = Totals::new(options.digest);
    let (len, mut totals) =
        pipeline::receive(input, &job, totals, options.threads, observer, cancel)?;
    let size = new_disk_size(len)?;
    totals.add_zeros(size.minus(len)?);
    output.set_len(size)?;
    blank(output, len, size.minus(len)?, cancel)?;
    cancel.check()?;
    Ok((size, TransferStats::of(None, &[output]), totals))
}

pub(super) fn refuse_compression(options: &FlattenOptions) -> Result<()> {
    if options.compress || options.compression_level.is_some() {
        return Err(Error::usage("raw images cannot be compressed")
            .hint(Remedy::DestinationFormat("qcow2")));
    }
    Ok(())
}

pub(super) fn refuse_on_device(how: Preallocation) -> Result<()> {
    if how != Preallocation::Off {
        return Err(Error::usage("what exists has its space already: nothing is preallocated"));
    }
    Ok(())
}

/// Makes a long stretch of the new image read as zeros.
pub(super) fn blank(output: &OutputFile, at: u64, len: u64, cancel: &CancelToken) -> Result<()> {
    if output.is_blank() {
        return Ok(());
    }
    let (mut at, end) = (at, at.plus(len)?);
    while at < end {
        cancel.check()?;
        let piece = end.minus(at)?.min(PATIENCE);
        output.blank(at, piece)?;
        at = at.plus(piece)?;
    }
    Ok(())
}

struct RawJob<'a> {
    output: &'a OutputFile,
    offload: Option<Offload<'a>>,
    digest: bool,
    keep_zeros: bool,
    sparse: Sparse,
    rate: Option<Rate>,
    salvage: Option<Salvage>,
    cancel: &'a CancelToken,
}

/// The runs of an item that are written, and its digest.
struct Ready {
    guest: u64,
    runs: Vec<(usize, usize)>,
    hash: Option<Hasher>,
}

impl RawJob<'_> {
    /// Item bytes `from..to` are zeros.
    fn blank_in_item(&self, guest: u64, from: usize, to: usize) -> Result<()> {
        let len = to.minus(from)? as u64;
        if len == 0 { Ok(()) } else { self.output.blank(guest.plus(from as u64)?, len) }
    }
}

impl Job for RawJob<'_> {
    type Worker = ();
    type Ready = Ready;
    type Ordered = Totals;
    type Placed = ();

    fn worker(&self) -> Result<()> {
        Ok(())
    }

    fn prepare(&self, (): &mut (), guest: u64, bytes: &[u8]) -> Result<Ready> {
        self.prepare_extents(&mut (), guest, bytes, &[])
    }

    fn prepare_extents(
        &self,
        (): &mut (),
        guest: u64,
        bytes: &[u8],
        extents: &[Extent],
    ) -> Result<Ready> {
        let size = match self.sparse {
            Sparse::Blocks(size) => to_usize(size),
            _ if self.output.is_blank() => BLOCK,
            _ => ZEROED,
        };
        let mut runs = runs_of(bytes, size, |block| self.keep_zeros || !is_zero(block));
        if matches!(self.sparse, Sparse::Blocks(_)) && !self.keep_zeros {
            runs = Holes::of(guest, extents)?.cut_out_of(runs);
        }
        Ok(Ready { guest, runs, hash: self.digest.then(|| hash(bytes)) })
    }

    fn place(&self, totals: &mut Totals, ready: &Ready) -> Result<()> {
        let mut runs = ready.runs.iter();
        let bytes = runs.try_fold(0, |sum: u64, (from, to)| sum.plus(to.minus(*from)? as u64))?;
        totals.add(bytes, ready.hash.as_ref());
        Ok(())
    }

    fn place_zeros(&self, totals: &mut Totals, guest: u64, len: u64) -> Result<()> {
        totals.add_zeros(len);
        if self.keep_zeros && !self.output.is_blank() {
            return write_zeros(self.output, guest, len, self.cancel);
        }
        blank(self.output, guest, len, self.cancel)
    }

    fn offload(&self) -> Option<&Offload<'_>> {
        self.offload.as_ref()
    }

    fn salvage(&self) -> Option<&Salvage> {
        self.salvage.as_ref()
    }

    fn place_offloaded(
        &self,
        totals: &mut Totals,
        range: &OffloadRange,
        hash: Option<&Hasher>,
    ) -> Result<Vec<Place>> {
        totals.add(range.len, hash);
        Ok(vec![Place { guest: range.guest, len: range.len, to: range.guest }])
    }

    fn write(&self, (): &mut (), bytes: &[u8], ready: Ready, (): ()) -> Result<()> {
        let mut at = 0;
        for (from, to) in ready.runs {
            wait(self.rate.as_ref(), to.minus(from)? as u64, self.cancel)?;
            self.blank_in_item(ready.guest, at, from)?;
            at = to;
            let run = bytes.get(from..to).unwrap_or_default();
            self.output.write_at(run, ready.guest.plus(from as u64)?)?;
        }
        self.blank_in_item(ready.guest, at, bytes.len())
    }
}
