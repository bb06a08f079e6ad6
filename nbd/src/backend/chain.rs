//! A chain that is only read: the current state, a snapshot's, or one layer alone, as it was opened.

use qcow::chain::Chain;
use qcow::format::GuestOffset;
use qcow::image::Bitmap;
use qcow::ops::map::{MapEntry, MapOptions, map};

use super::{Backend, Result};
use crate::context::{Context, Extents, STATE_DIRTY, STATE_HOLE, STATE_ZERO};

/// Pieces of a map that one request looks at: a client asks again for the rest.
const LOOK_AT: usize = 1 << 20;

/// A chain, read-only.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("disk.qcow2");
/// # use qcow::ops::create::{CreateOptions, create};
/// # create(&path, &CreateOptions::default().size(1 << 20))?;
/// use nbd::{ChainBackend, Export};
/// use qcow::chain::{Chain, OpenOptions};
/// let chain = Chain::open(&path, &OpenOptions::default())?;
/// let export = Export::new("disk.qcow2", Box::new(ChainBackend::new(chain)));
/// assert_eq!(export.size(), 1 << 20);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct ChainBackend(Chain);

impl ChainBackend {
    /// What `chain` shows.
    pub fn new(chain: Chain) -> Self {
        Self(chain)
    }

    /// Checks that the active layer has a bitmap of this name that can be relied on.
    ///
    /// # Errors
    /// [`Usage`](qcow::ErrorKind::Usage) if there is none, [`Corrupt`](qcow::ErrorKind::Corrupt) if it was not stored
    /// cleanly.
    pub fn check_bitmap(&self, name: &str) -> qcow::Result<()> {
        bitmap_of(&self.0, name)?.dirty_ranges().map(drop)
    }
}

impl Backend for ChainBackend {
    fn size(&self) -> u64 {
        self.0.virtual_size()
    }

    fn preferred(&self) -> u32 {
        preferred(
            self.0
                .layers()
                .first()
                .and_then(|layer| layer.image())
                .map(|image| image.geometry().cluster_size()),
        )
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> Result<()> {
        Ok(self.0.read_at(buf, GuestOffset(at))?)
    }

    fn extents(&self, context: &Context, at: u64, len: u64, found: &mut Extents) -> Result<()> {
        match context {
            Context::Allocation => allocation(&self.0, at, len, found)?,
            Context::Depth => depth(&self.0, 1, at, len, found)?,
            Context::DirtyBitmap(name) => dirty(&self.0, name, at, len, found)?,
        };
        Ok(())
    }
}

/// The best size of requests for clusters of this size.
pub(super) fn preferred(cluster: Option<u64>) -> u32 {
    let bytes = cluster.unwrap_or(4096).clamp(4096, 64 << 10);
    u32::try_from(bytes).unwrap_or(4096)
}

fn entries(chain: &Chain, at: u64, len: u64) -> impl Iterator<Item = qcow::Result<MapEntry>> + '_ {
    map(chain, &MapOptions::default().start(at).max_length(len)).take(LOOK_AT)
}

/// Data, zeros and holes; whether more is wanted.
pub(super) fn allocation(chain: &Chain, at: u64, len: u64, found: &mut Extents) -> Result<bool> {
    for entry in entries(chain, at, len) {
        let entry = entry?;
        let hole = if entry.data { 0 } else { STATE_HOLE };
        let zero = if entry.zero { STATE_ZERO } else { 0 };
        if !found.push(entry.length, hole | zero) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// How deep each range lies, the first layer of `chain` being number `first`; whether more is wanted.
pub(super) fn depth(
    chain: &Chain,
    first: u32,
    at: u64,
    len: u64,
    found: &mut Extents,
) -> Result<bool> {
    for entry in entries(chain, at, len) {
        let entry = entry?;
        let depth = u32::try_from(entry.depth).unwrap_or(u32::MAX).saturating_add(first);
        // Past the end of a backing file that is shorter, its zeros count as its own.
        let short = chain.layers().len() > entry.depth.saturating_add(1);
        let depth = match (entry.present, short) {
            (true, _) => depth,
            (false, true) => depth.saturating_add(1),
            (false, false) => 0,
        };
        if !found.push(entry.length, depth) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn bitmap_of<'a>(chain: &'a Chain, name: &str) -> qcow::Result<Bitmap<'a>> {
    let image = chain.layers().first().and_then(|layer| layer.image());
    let image = image.ok_or_else(|| qcow::Error::usage("a raw image has no bitmaps"))?;
    image.bitmap(name.as_bytes())
}

/// What a bitmap of the active layer marks.
fn dirty(chain: &Chain, name: &str, at: u64, len: u64, found: &mut Extents) -> Result<bool> {
    let end = at.saturating_add(len).min(chain.virtual_size());
    let mut now = at;
    let ranges = bitmap_of(chain, name)?.dirty_ranges()?.starting_at(GuestOffset(at));
    for range in ranges {
        let range = range?;
        let start = range.start.0.clamp(now, end);
        let stop = range.end.0.clamp(start, end);
        let clean = start.saturating_sub(now);
        if !found.push(clean, 0) || !found.push(stop.saturating_sub(start), STATE_DIRTY) {
            return Ok(false);
        }
        now = stop;
        if now >= end {
            return Ok(true);
        }
    }
    Ok(found.push(end.saturating_sub(now), 0))
}
