//! What becomes of the tables and places that the layout hands out.

use crate::Result;
use crate::exact::{Exact, to_usize};
use crate::format::HostOffset;
use crate::io::OutputFile;
use crate::layout::Sink;
use crate::ops::target;
use crate::ops::work::offload::Place;

/// Compressed zeros are written in pieces of about so many bytes.
const AT_ONCE: usize = 1 << 20;

/// What becomes of metadata, where there is no data to place.
pub(super) enum Metadata<'a> {
    /// Nothing: only its place matters.
    Dropped,
    /// Written to its place.
    Written(&'a OutputFile),
    /// Kept, with its offset, for who writes in order.
    Kept(Vec<(u64, Vec<u8>)>),
}

impl<'a> Metadata<'a> {
    pub(super) fn to(file: Option<&'a OutputFile>) -> Self {
        file.map_or(Self::Dropped, Self::Written)
    }

    /// What was kept.
    pub(super) fn into_kept(self) -> impl Iterator<Item = (u64, Vec<u8>)> {
        let Self::Kept(kept) = self else { return Vec::new().into_iter() };
        kept.into_iter()
    }
}

impl Sink for Metadata<'_> {
    fn metadata(&mut self, offset: HostOffset, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Dropped => {}
            Self::Written(file) => target::write_table(file, offset, bytes)?,
            Self::Kept(kept) => kept.push((offset.0, bytes.to_vec())),
        }
        Ok(())
    }

    fn data(&mut self, _first: u64, _clusters: u64, _host: HostOffset) -> Result<()> {
        Ok(())
    }
}

/// Where one piece of an item is to be written.
pub(super) enum Write {
    /// Item bytes `from..to` (padded to whole clusters) to this offset in the data file.
    Data { from: usize, to: usize, host: HostOffset },
    /// The subclusters in the mask, of the cluster whose bytes start at `from`.
    Partial { from: usize, mask: u32, host: HostOffset },
    /// Packed bytes `from..to`.
    Packed { from: usize, to: usize, host: HostOffset },
}

/// Passes metadata on and notes where the item's data goes.
pub(super) struct Collect<'a, 'f> {
    pub(super) metadata: &'a mut Metadata<'f>,
    pub(super) first_cluster: u64,
    pub(super) cluster_size: usize,
    pub(super) writes: Vec<Write>,
}

impl Collect<'_, '_> {
    /// Where the cluster's bytes start in the item.
    pub(super) fn byte_of(&self, cluster: u64) -> Result<usize> {
        to_usize(cluster.minus(self.first_cluster)?).times(self.cluster_size)
    }
}

impl Sink for Collect<'_, '_> {
    fn metadata(&mut self, offset: HostOffset, bytes: &[u8]) -> Result<()> {
        self.metadata.metadata(offset, bytes)
    }

    fn data(&mut self, first: u64, clusters: u64, host: HostOffset) -> Result<()> {
        let (from, to) = (self.byte_of(first)?, self.byte_of(first.plus(clusters)?)?);
        self.writes.push(Write::Data { from, to, host });
        Ok(())
    }
}

/// Writes metadata and notes where offloaded ranges go.
pub(super) struct Places<'a> {
    pub(super) metadata: Metadata<'a>,
    pub(super) cluster_size: u64,
    pub(super) places: Vec<Place>,
}

impl Sink for Places<'_> {
    fn metadata(&mut self, offset: HostOffset, bytes: &[u8]) -> Result<()> {
        self.metadata.metadata(offset, bytes)
    }

    fn data(&mut self, first: u64, clusters: u64, host: HostOffset) -> Result<()> {
        let (guest, len) = (first.times(self.cluster_size)?, clusters.times(self.cluster_size)?);
        self.places.push(Place { guest, len, to: host.0 });
        Ok(())
    }
}

/// Bytes that lie side by side in a file, to be written at once.
pub(super) struct Joined<'a> {
    pub(super) file: Option<&'a OutputFile>,
    pub(super) at: u64,
    pub(super) bytes: Vec<u8>,
}

impl Joined<'_> {
    pub(super) fn add(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        if self.at.plus(self.bytes.len() as u64)? != at || self.bytes.len() >= AT_ONCE {
            self.write()?;
            self.at = at;
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    pub(super) fn write(&mut self) -> Result<()> {
        if let Some(file) = self.file.filter(|_| !self.bytes.is_empty()) {
            file.write_at(&self.bytes, self.at)?;
        }
        self.bytes.clear();
        Ok(())
    }
}
