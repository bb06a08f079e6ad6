//! Tables that cannot be read whole, for readers that go on past damage.

use super::{Run, RunKind, TableWindow, push_run};
use crate::format::{GuestOffset, L1Entry};
use crate::image::{Faults, is_damage, tolerate};
use crate::{Error, ErrorKind, Result};

/// A table that cannot be read whole is read in pieces of this many bytes: a page, which is what the
/// system reads at least.
const PIECE: u64 = 4096;

impl TableWindow<'_> {
    /// From where on the guest's disk the tables lie behind the end of the file. QEMU reads zeros there,
    /// which is "not allocated"; but a table is never written in part, so the file was cut short.
    pub(super) fn cut_off(&self, l1_index: u64, entry: L1Entry) -> Option<(u64, Error)> {
        let start = l1_index.saturating_mul(self.geometry.l2_coverage());
        let behind = || Error::corrupt("the table is past the end of the file");
        if self.image.l1_end_in_file().is_some_and(|end| start >= end) {
            return Some((start, behind().structure("L1 table").index(l1_index)));
        }
        let there = self.image.storage().len().saturating_sub(entry.offset().0);
        let aligned = self.geometry.is_aligned(entry.offset().0);
        if entry.is_empty() || !aligned || there >= self.geometry.cluster_size() {
            return None;
        }
        let entries = there.checked_div(self.geometry.l2_entry_size()).unwrap_or_default();
        let from = entries.saturating_mul(self.geometry.cluster_size());
        Some((start.saturating_add(from), behind().structure("L2 table")))
    }

    /// The runs of `start..end`, all in one table that could not be read whole because of `error`.
    pub(super) fn runs_of_damaged(
        &mut self,
        entry: L1Entry,
        start: u64,
        end: u64,
        runs: &mut Vec<Run>,
        mut faults: Faults<'_>,
        error: Error,
    ) -> Result<()> {
        if faults.is_none() || !is_damage(&error) || error.kind() != ErrorKind::Io {
            return unreadable(start, end, runs, faults, error);
        }
        let entries = PIECE.checked_div(self.geometry.l2_entry_size()).unwrap_or(1);
        let mut at = start;
        while at < end {
            let position = self.geometry.position(GuestOffset(at));
            let in_piece = position.l2_index.checked_rem(entries).unwrap_or_default();
            let left =
                entries.saturating_sub(in_piece).saturating_mul(self.geometry.cluster_size());
            let in_cluster = self.geometry.offset_in_cluster(at);
            let piece_end = at.saturating_sub(in_cluster).saturating_add(left).min(end);
            let loaded = self.load_l2(position.l1_index, position.l2_index, entry, piece_end);
            let faults = faults.as_deref_mut();
            match loaded.map_err(|error| error.guest_offset(at)) {
                Ok(()) => self.decode(position.l2_index, at, piece_end, runs, faults)?,
                Err(error) => unreadable(at, piece_end, runs, faults, error)?,
            }
            // What is in memory is a piece of the table, not what others expect there.
            self.l2.l1_index = None;
            at = piece_end;
        }
        Ok(())
    }
}

/// Leaves `start..end` out, if `faults` allows that: zeros, which hide what lies below.
pub(super) fn unreadable(
    start: u64,
    end: u64,
    runs: &mut Vec<Run>,
    mut faults: Faults<'_>,
    error: Error,
) -> Result<()> {
    tolerate(&mut faults, start..end, error)?;
    let len = end.saturating_sub(start);
    push_run(runs, Run { guest: start, len, kind: RunKind::Zero(None) });
    Ok(())
}

#[cfg(test)]
#[allow(
    clippy::arithmetic_side_effects,
    clippy::single_range_in_vec_init,
    reason = "a test that overflows fails, as it should; and one range is what is meant"
)]
mod tests {
    use std::io;
    use std::ops::Range;
    use std::sync::Arc;

    use super::*;
    use crate::image::{Image, Tables};
    use crate::io::{MemoryStorage, Storage};

    /// A medium on which some bytes cannot be read.
    #[derive(Debug)]
    struct Scratched(MemoryStorage, Range<u64>);

    impl Storage for Scratched {
        fn len(&self) -> u64 {
            self.0.len()
        }

        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
            let end = offset.saturating_add(buf.len() as u64);
            if offset < self.1.end && self.1.start < end {
                return Err(io::Error::from_raw_os_error(5));
            }
            self.0.read_at(buf, offset)
        }
    }

    /// An image of 2 MiB clusters, so that its L2 table has 64 pages; every cluster has data, at twice
    /// its guest offset.
    fn image(bad: Range<u64>) -> Image {
        const CLUSTER: u64 = 2 << 20;
        let entries = CLUSTER >> 3;
        let mut bytes = Vec::new();
        let header: [&[u8]; 12] = [
            b"QFI\xfb",
            &3_u32.to_be_bytes(),
            &[0; 12],
            &21_u32.to_be_bytes(),
            &(entries * CLUSTER).to_be_bytes(),
            &[0; 4],
            &1_u32.to_be_bytes(),
            &(3 * CLUSTER).to_be_bytes(),
            &CLUSTER.to_be_bytes(),
            &1_u32.to_be_bytes(),
            &[0; 36],
            &[0, 0, 0, 4, 0, 0, 0, 104],
        ];
        bytes.extend(header.concat());
        bytes.resize(8 << 20, 0);
        let at = usize::try_from(3 * CLUSTER).unwrap();
        bytes[at..at + 8].copy_from_slice(&(4 * CLUSTER).to_be_bytes());
        for index in 0..entries {
            bytes.extend((5 * CLUSTER + 2 * index * CLUSTER).to_be_bytes());
        }
        Image::open(Arc::new(Scratched(MemoryStorage::new(bytes), bad))).unwrap()
    }

    #[test]
    fn of_a_table_with_a_bad_sector_the_other_pages_are_read() {
        const CLUSTER: u64 = 2 << 20;
        // One sector of the third page.
        let table = 4 * CLUSTER;
        let image = image(table + 2 * 4096 + 512..table + 2 * 4096 + 1024);
        let (start, end) = (100 * CLUSTER, 3000 * CLUSTER);
        let mut runs = Vec::new();
        let strict = TableWindow::load(&image, Tables::Direct, start, end)
            .unwrap()
            .runs(start, end, &mut runs, None);
        assert_eq!(strict.unwrap_err().kind(), ErrorKind::Io);
        let (mut runs, mut faults) = (Vec::new(), Vec::new());
        let mut window = TableWindow::load(&image, Tables::Direct, start, end).unwrap();
        window.runs(start, end, &mut runs, Some(&mut faults)).unwrap();
        let lost: Vec<_> = faults.iter().map(|fault| fault.guest.clone()).collect();
        assert_eq!(lost, [1024 * CLUSTER..1536 * CLUSTER]);
        let mut at = start;
        for run in runs {
            assert_eq!(run.guest, at);
            at += run.len;
            match run.kind {
                RunKind::Zero(None) => assert_eq!((run.guest, at), (lost[0].start, lost[0].end)),
                RunKind::Data(host) => assert_eq!(host.0, 5 * CLUSTER + 2 * run.guest),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(at, end);
    }
}
