//! Flattens to a raw image: every byte at its guest offset, zeros left as holes.

use std::path::Path;

use crc32fast::Hasher;

use super::{Done, FlattenOptions, Received, runs_of};
use crate::chain::Chain;
use crate::codec::is_zero;
use crate::io::OutputFile;
use crate::ops::checksum::{Crc, hash};
use crate::ops::create::preallocate_raw;
use crate::ops::pipeline::{self, Input, Job};
use crate::ops::shortcut::{Moved, Place, Shortcuts, Traffic};
use crate::ops::{Preallocation, RawOptions};
use crate::{CancelToken, Error, Observer, Result};

/// Zeros are left out in pieces of this many bytes, the usual block of a file system.
pub(super) const BLOCK: usize = 4096;

pub(super) fn flatten(
    chain: &Chain,
    path: &Path,
    target: &RawOptions,
    options: &FlattenOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<Done> {
    refuse_compression(options)?;
    let output = OutputFile::create(path, options.replace)?;
    let may_share = target.preallocation == Preallocation::Off && !options.no_reflink;
    let shortcuts =
        may_share.then(|| Shortcuts::find(chain, &output, None, options.digest)).flatten();
    preallocate_raw(&output, chain.virtual_size(), target.preallocation, cancel)?;
    let job = RawJob {
        output: &output,
        shortcuts,
        digest: options.digest,
        // With falloc the zeros are there already, and with full they have been written.
        keep_zeros: target.preallocation == Preallocation::Full,
    };
    let state = State { data_bytes: 0, crc: options.digest.then(Crc::new) };
    let state = pipeline::run(chain, &job, state, options.threads, observer, cancel)?;
    cancel.check()?;
    chain.check_unchanged()?;
    let traffic = Traffic::of(job.shortcuts.as_ref(), &[&output]);
    let State { data_bytes, crc } = state;
    output.publish()?;
    Ok(Done { file_length: chain.virtual_size(), data_bytes, traffic, crc })
}

/// Writes the disk that `input` brings to a new raw image at `path`.
pub(super) fn receive(
    input: Input,
    path: &Path,
    options: &FlattenOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<Received> {
    refuse_compression(options)?;
    let output = OutputFile::create(path, options.replace)?;
    let job =
        RawJob { output: &output, shortcuts: None, digest: options.digest, keep_zeros: false };
    let state = State { data_bytes: 0, crc: options.digest.then(Crc::new) };
    let (len, mut state) =
        pipeline::receive(input, &job, state, options.threads, observer, cancel)?;
    let size = super::stream::whole_sectors(len)?;
    if let Some(crc) = &mut state.crc {
        crc.append_zeros(size.saturating_sub(len));
    }
    output.set_len(size)?;
    cancel.check()?;
    let traffic = Traffic::of(None, &[&output]);
    output.publish()?;
    let State { data_bytes, crc } = state;
    Ok((size, Done { file_length: size, data_bytes, traffic, crc }))
}

pub(super) fn refuse_compression(options: &FlattenOptions) -> Result<()> {
    if options.compress {
        return Err(Error::usage("raw images cannot be compressed").hint("use -O qcow2"));
    }
    Ok(())
}

struct RawJob<'a> {
    output: &'a OutputFile,
    shortcuts: Option<Shortcuts<'a>>,
    digest: bool,
    keep_zeros: bool,
}

struct State {
    data_bytes: u64,
    crc: Option<Crc>,
}

/// The runs of an item that are written, and its digest.
struct Ready {
    guest: u64,
    runs: Vec<(usize, usize)>,
    hash: Option<Hasher>,
}

impl Job for RawJob<'_> {
    type Worker = ();
    type Ready = Ready;
    type Ordered = State;
    type Placed = ();

    fn worker(&self) -> Result<()> {
        Ok(())
    }

    fn prepare(&self, (): &mut (), guest: u64, bytes: &[u8]) -> Result<Ready> {
        let runs = runs_of(bytes, BLOCK, |block| self.keep_zeros || !is_zero(block));
        Ok(Ready { guest, runs, hash: self.digest.then(|| hash(bytes)) })
    }

    fn place(&self, state: &mut State, ready: &Ready) -> Result<()> {
        let bytes = ready.runs.iter().map(|(from, to)| to.saturating_sub(*from) as u64);
        state.data_bytes = state.data_bytes.saturating_add(bytes.sum());
        if let (Some(crc), Some(hash)) = (&mut state.crc, &ready.hash) {
            crc.append(hash);
        }
        Ok(())
    }

    fn place_zeros(&self, state: &mut State, _guest: u64, len: u64) -> Result<()> {
        if let Some(crc) = &mut state.crc {
            crc.append_zeros(len);
        }
        Ok(())
    }

    fn shortcuts(&self) -> Option<&Shortcuts<'_>> {
        self.shortcuts.as_ref()
    }

    fn place_moved(
        &self,
        state: &mut State,
        moved: &Moved,
        hash: Option<&Hasher>,
    ) -> Result<Vec<Place>> {
        state.data_bytes = state.data_bytes.saturating_add(moved.len);
        if let (Some(crc), Some(hash)) = (&mut state.crc, hash) {
            crc.append(hash);
        }
        Ok(vec![Place { guest: moved.guest, len: moved.len, to: moved.guest }])
    }

    fn write(&self, (): &mut (), bytes: &[u8], ready: Ready, (): ()) -> Result<()> {
        for (from, to) in ready.runs {
            let run = bytes.get(from..to).unwrap_or_default();
            self.output.write_at(run, ready.guest.saturating_add(from as u64))?;
        }
        Ok(())
    }
}
