//! Disks of several chains, one behind the other, as the bytes of a raw disk.

use std::io;

use super::Chain;
use crate::format::GuestOffset;
use crate::io::Storage;
use crate::{Error, Result};

/// So far the tables are looked at first, in bytes; then farther and farther.
const FIRST_WINDOW: u64 = 4 << 20;

/// What guests would read from several chains, one behind the other: a storage that can be the layer of another
/// chain.
///
/// ```no_run
/// use std::path::Path;
/// use std::sync::Arc;
/// use qcow::chain::{Chain, Format, Joined, OpenOptions};
///
/// let parts = ["one.qcow2", "two.qcow2"]
///     .map(|name| Chain::open(Path::new(name), &OpenOptions::default()));
/// let parts = parts.into_iter().collect::<Result<Vec<_>, _>>()?;
/// let joined = Joined::new(&parts)?;
/// let both = Chain::builder().layer("both", Arc::new(joined), Format::Raw).open()?;
/// # Ok::<(), qcow::Error>(())
/// ```
#[derive(Debug)]
pub struct Joined {
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    chain: Chain,
    start: u64,
    /// Where it ends, which may be past the end of the chain's disk or before it.
    end: u64,
    /// Where in the chain's disk it starts.
    from: u64,
}

impl Joined {
    /// All of each disk, in this order.
    ///
    /// # Errors
    /// [`Limit`](crate::ErrorKind::Limit) if all together are longer than a disk can be.
    pub fn new(chains: &[Chain]) -> Result<Self> {
        let mut parts = Vec::new();
        let mut start: u64 = 0;
        for chain in chains {
            let end = start.checked_add(chain.virtual_size());
            let end = end.filter(|end| i64::try_from(*end).is_ok());
            let end = end.ok_or_else(|| Error::limit("all disks together are too long"))?;
            parts.push(Part { chain: chain.clone(), start, end, from: 0 });
            start = end;
        }
        Ok(Self { parts })
    }

    /// The first `len` bytes of one disk; past its end there are zeros.
    pub fn start_of(chain: &Chain, len: u64) -> Self {
        Self::range_of(chain, 0, len)
    }

    /// The `len` bytes of one disk from `start` on; past its end there are zeros.
    pub fn range_of(chain: &Chain, start: u64, len: u64) -> Self {
        Self { parts: vec![Part { chain: chain.clone(), start: 0, end: len, from: start }] }
    }

    /// The part that holds `offset`.
    fn part(&self, offset: u64) -> Option<&Part> {
        let index = self.parts.partition_point(|part| part.end <= offset);
        self.parts.get(index)
    }

    /// The first offset from `offset` on that is data, or a hole, whichever is `wanted`.
    fn next(&self, offset: u64, data: bool) -> io::Result<Option<u64>> {
        let (mut at, mut window) = (offset, FIRST_WINDOW);
        while let Some(part) = self.part(at) {
            let within = at.saturating_sub(part.start);
            // Past its end there are zeros.
            let there = part.there();
            let end = within.saturating_add(window).min(there).max(within);
            if within >= there {
                if !data {
                    return Ok(Some(at));
                }
                at = part.end;
                continue;
            }
            let guest = GuestOffset(part.from.saturating_add(within));
            for extent in part.chain.extents_in(guest, end.saturating_sub(within)) {
                let extent = extent.map_err(into_io)?;
                if extent.is_zero() != data {
                    let within = extent.guest.0.saturating_sub(part.from);
                    return Ok(Some(part.start.saturating_add(within).max(at)));
                }
            }
            at = part.start.saturating_add(end);
            window = window.saturating_mul(4);
        }
        Ok(None)
    }
}

impl Part {
    /// How many bytes of the part come from the chain's disk.
    fn there(&self) -> u64 {
        let rest = self.chain.virtual_size().saturating_sub(self.from);
        rest.min(self.end.saturating_sub(self.start))
    }
}

fn into_io(error: Error) -> io::Error {
    match error.io_source().and_then(io::Error::raw_os_error) {
        Some(number) => io::Error::from_raw_os_error(number),
        None => io::Error::other(error),
    }
}

impl Storage for Joined {
    fn len(&self) -> u64 {
        self.parts.last().map_or(0, |part| part.end)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let Some(part) = self.part(offset) else { return Ok(0) };
        let within = offset.saturating_sub(part.start);
        let wanted = part.end.saturating_sub(offset).min(buf.len() as u64);
        let there = part.there().saturating_sub(within).min(wanted);
        // Both are no longer than the buffer.
        let (wanted, there) =
            (usize::try_from(wanted).unwrap_or(0), usize::try_from(there).unwrap_or(0));
        let (now, _) = buf.split_at_mut(wanted);
        let (now, beyond) = now.split_at_mut(there);
        beyond.fill(0);
        if !now.is_empty() {
            let guest = GuestOffset(part.from.saturating_add(within));
            part.chain.read_at(now, guest).map_err(into_io)?;
        }
        Ok(wanted)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.next(offset, true)
    }

    fn next_hole(&self, offset: u64) -> io::Result<u64> {
        Ok(self.next(offset, false)?.unwrap_or_else(|| self.len().max(offset)))
    }

    fn allocated(&self) -> u64 {
        let layers = self.parts.iter().flat_map(|part| part.chain.layers());
        layers.map(|layer| layer.data_storage().allocated()).sum()
    }

    fn check_unchanged(&self) -> Result<()> {
        self.parts.iter().try_for_each(|part| part.chain.check_unchanged())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::chain::Format;
    use crate::io::{MemoryStorage, read_padded};

    fn disk(bytes: &[u8]) -> Chain {
        let storage = Arc::new(MemoryStorage::new(bytes.to_vec()));
        Chain::builder().layer("disk", storage, Format::Raw).open().unwrap()
    }

    #[test]
    fn disks_follow_each_other_each_in_whole_sectors_and_a_start_is_filled_up_with_zeros() {
        let joined = Joined::new(&[disk(&[1; 700]), disk(&[]), disk(&[2; 512])]).unwrap();
        let mut bytes = vec![9; 2048];
        read_padded(&joined, &mut bytes, 0).unwrap();
        assert_eq!(bytes, [[1; 700].as_slice(), &[0; 324], &[2; 512], &[0; 512]].concat());
        assert_eq!(joined.len(), 1536);
        let start = Joined::start_of(&disk(&[3; 1024]), 512);
        let longer = Joined::start_of(&disk(&[3; 512]), 1024);
        for (storage, expected) in [(start, vec![3; 512]), (longer, [[3; 512], [0; 512]].concat())]
        {
            let mut bytes = vec![9; expected.len()];
            read_padded(&storage, &mut bytes, 0).unwrap();
            assert_eq!((storage.len(), bytes), (expected.len() as u64, expected));
        }
    }
}
