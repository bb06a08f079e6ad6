//! Flattens to a raw image: every byte at its guest offset, zeros left as holes.

use std::path::Path;

use crc32fast::Hasher;

use super::{Done, FlattenOptions, runs_of};
use crate::chain::Chain;
use crate::codec::is_zero;
use crate::io::OutputFile;
use crate::ops::checksum::{Crc, hash};
use crate::ops::create::preallocate_raw;
use crate::ops::pipeline::{self, Job};
use crate::ops::{Preallocation, RawOptions};
use crate::{CancelToken, Error, Observer, Result};

/// Zeros are left out in pieces of this many bytes, the usual block of a file system.
const BLOCK: usize = 4096;

pub(super) fn flatten(
    chain: &Chain,
    path: &Path,
    target: &RawOptions,
    options: &FlattenOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<Done> {
    if options.compress || options.compression_level.is_some() {
        return Err(Error::usage("raw images cannot be compressed").hint("use -O qcow2"));
    }
    let output = OutputFile::create(path, options.replace)?;
    preallocate_raw(&output, chain.virtual_size(), target.preallocation, cancel)?;
    let job = RawJob {
        output: &output,
        digest: options.digest,
        // With falloc the zeros are there already, and with full they have been written.
        keep_zeros: target.preallocation == Preallocation::Full,
    };
    let state = State { data_bytes: 0, crc: options.digest.then(Crc::new) };
    let state = pipeline::run(chain, &job, state, options.threads, observer, cancel)?;
    cancel.check()?;
    chain.check_unchanged()?;
    output.publish()?;
    Ok(Done { file_length: chain.virtual_size(), data_bytes: state.data_bytes, crc: state.crc })
}

struct RawJob<'a> {
    output: &'a OutputFile,
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

    fn write(&self, (): &mut (), bytes: &[u8], ready: Ready, (): ()) -> Result<()> {
        for (from, to) in ready.runs {
            let run = bytes.get(from..to).unwrap_or_default();
            self.output.write_at(run, ready.guest.saturating_add(from as u64))?;
        }
        Ok(())
    }
}
