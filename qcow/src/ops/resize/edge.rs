//! The cluster in which a disk ends: what it has behind that end must not be seen when the disk grows.

use std::sync::Arc;

use crate::chain::{Chain, Format};
use crate::disk::{Disk, WriteOptions};
use crate::exact::{Exact, to_usize};
use crate::format::{GuestOffset, L1Entry, RawL2Entry, raw_l2_entry};
use crate::image::edit::{Edit, Remap, has_data};
use crate::io::{WriteStorage, read_padded};
use crate::{Error, ErrorKind, Remedy, Result};

/// The disk as it is, to be read, and how long what is below it is.
#[derive(Debug)]
pub(crate) struct Old {
    content: Content,
    below: u64,
}

#[derive(Debug)]
enum Content {
    Chain(Chain),
    Disk { file: Arc<dyn WriteStorage>, options: WriteOptions },
}

impl Old {
    /// Of a chain that is only read.
    pub(super) fn reading(chain: Chain) -> Self {
        let below = chain.layers().get(1).map_or(0, crate::chain::Layer::virtual_size);
        Self { content: Content::Chain(chain), below }
    }

    /// Of an image that is open for writing.
    pub(crate) fn writing(
        file: Arc<dyn WriteStorage>,
        data: Option<Arc<dyn WriteStorage>>,
        backing: Option<Chain>,
    ) -> Self {
        let below = backing.as_ref().map_or(0, Chain::virtual_size);
        let mut options = WriteOptions::new();
        if let Some(data) = data {
            options = options.data_file(data);
        }
        if let Some(backing) = backing {
            options = options.backing(backing);
        }
        Self { content: Content::Disk { file, options }, below }
    }

    /// Length of the disk below.
    pub(super) fn below(&self) -> u64 {
        self.below
    }

    fn read(&self, buf: &mut [u8], at: u64) -> Result<()> {
        match &self.content {
            Content::Chain(chain) => chain.read_at(buf, GuestOffset(at)),
            Content::Disk { file, options } => {
                // It is not written to, and so changes nothing.
                let disk = Disk::from_storage(Arc::clone(file), Format::Qcow2, options.clone())?;
                disk.read_at(buf, at)
            }
        }
    }
}

/// A disk that gets another size.
pub(super) struct Edge<'a> {
    pub(super) old: &'a Old,
    pub(super) before: u64,
    pub(super) new: u64,
}

impl Edge<'_> {
    /// Where the smaller disk ends within a cluster, and that cluster has or shows something behind the end,
    /// gives it a new cluster with zeros there.
    pub(super) fn clean(&self, edit: &mut Edit, l1: &mut [u64]) -> Result<()> {
        let geometry = edit.geometry();
        let end = self.before.min(self.new);
        let in_cluster = geometry.offset_in_cluster(end);
        if in_cluster == 0 {
            return Ok(());
        }
        let start = end.minus(in_cluster)?;
        let position = geometry.position(GuestOffset(start));
        let table = L1Entry(l1.get(to_usize(position.l1_index)).copied().unwrap_or_default());
        let entry = match table.offset().0 {
            0 => RawL2Entry::default(),
            _ => raw_l2_entry(&edit.read_l2(table.offset())?, position.l2_index, geometry),
        };
        if !self.shows(edit, entry, end)? {
            return Ok(());
        }
        if edit.image().has_data_file() {
            return Err(Error::unsupported(
                "the backing file is longer than the disk, which ends within a cluster of the data file",
            )
            .guest_offset(end)
            .hint(Remedy::Flatten));
        }
        if edit.image().is_encrypted() {
            return Err(Error::new(
                ErrorKind::Encrypted,
                "the disk ends within a cluster, which cannot be cleaned without the key",
            )
            .guest_offset(end));
        }
        let mut bytes = vec![0; to_usize(geometry.cluster_size())];
        let kept = bytes.get_mut(..to_usize(in_cluster)).unwrap_or_default();
        self.old.read(kept, start)?;
        let cluster = start >> geometry.cluster_bits();
        let place = edit.write_new(bytes)?;
        edit.remap(l1, cluster..cluster.plus(1)?, Remap::Places(place))?;
        Ok(())
    }

    /// Where what is below ends, if that is behind `end` and can be seen when the disk grows.
    fn shows_below(&self, end: u64) -> Option<u64> {
        Some(self.old.below).filter(|below| *below > end && self.new > self.before)
    }

    /// Whether the cluster in which the disk ends has bytes other than zeros behind `end`, or shows those of what
    /// is below.
    fn shows(&self, edit: &Edit, entry: RawL2Entry, end: u64) -> Result<bool> {
        let geometry = edit.geometry();
        let from = geometry.offset_in_cluster(end);
        if entry.is_compressed() {
            // It would have to be decoded, to save one cluster.
            return Ok(true);
        }
        let host = entry.offset();
        let has_bytes = |from: u64, to: u64| {
            if edit.image().has_data_file() {
                // There they are zeroed, or cut, where they are.
                return Ok(false);
            }
            let mut bytes = vec![0; to_usize(to.minus(from)?)];
            read_padded(&**edit.image().storage(), &mut bytes, host.0.plus(from)?)?;
            Ok::<_, Error>(bytes.iter().any(|byte| *byte != 0))
        };
        if !geometry.extended_l2() {
            return match (entry.has_zero_flag(), has_data(entry, edit.image().has_data_file())) {
                (true, _) => Ok(false),
                (false, false) => Ok(self.shows_below(end).is_some()),
                (false, true) => has_bytes(from, geometry.cluster_size()),
            };
        }
        let len = geometry.subcluster_size();
        let start = end.minus(from)?;
        for number in
            (from >> len.trailing_zeros())..geometry.cluster_size() >> len.trailing_zeros()
        {
            let first = number.times(len)?;
            let (allocated, zero) = (
                entry.allocated_subclusters() >> number & 1 == 1,
                entry.zero_subclusters() >> number & 1 == 1,
            );
            let shows = match (allocated, zero) {
                (true, _) => has_bytes(first.max(from), first.plus(len)?)?,
                (false, true) => false,
                (false, false) => self.shows_below(end.max(start.plus(first)?)).is_some(),
            };
            if shows {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
