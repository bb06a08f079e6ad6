//! Adds up what each column of the picture stands for.

use qcow::ops::map::MapEntry;

/// Columns of the bands.
pub(crate) const COLUMNS: u64 = 1000;

/// Bytes of each kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    /// Data, not compressed.
    pub(crate) data: u64,
    /// Compressed data, as the guest counts it.
    pub(crate) compressed: u64,
    /// What the layer says is zeros.
    pub(crate) zero: u64,
}

impl Amount {
    /// All of it.
    pub(crate) fn sum(&self) -> u64 {
        self.data.saturating_add(self.compressed).saturating_add(self.zero)
    }

    fn add(&mut self, entry: &MapEntry, bytes: u64) {
        let part = match () {
            () if entry.zero => &mut self.zero,
            () if entry.compressed => &mut self.compressed,
            () => &mut self.data,
        };
        *part = part.saturating_add(bytes);
    }
}

/// What each layer contributes to each column, and in all.
#[derive(Debug)]
pub(crate) struct Tally {
    start: u64,
    length: u64,
    /// For each layer its columns.
    columns: Vec<Vec<Amount>>,
    totals: Vec<Amount>,
}

impl Tally {
    /// For `length` bytes of a disk from `start` on, with this many layers.
    pub(crate) fn new(start: u64, length: u64, layers: usize) -> Self {
        let columns = usize::try_from(COLUMNS).unwrap_or_default();
        Self {
            start,
            length,
            columns: vec![vec![Amount::default(); columns]; layers],
            totals: vec![Amount::default(); layers],
        }
    }

    /// Adds an entry. What no layer has is left over.
    pub(crate) fn add(&mut self, entry: &MapEntry) {
        if !entry.present {
            return;
        }
        if let Some(total) = self.totals.get_mut(entry.depth) {
            total.add(entry, entry.length);
        }
        let Some(columns) = self.columns.get_mut(entry.depth) else { return };
        let from = entry.start.saturating_sub(self.start);
        let to = from.saturating_add(entry.length).min(self.length);
        let first = column_of(from, self.length);
        for (index, column) in (0..COLUMNS).zip(columns).skip(first) {
            let (start, end) =
                (border(index, self.length), border(index.saturating_add(1), self.length));
            if start >= to {
                break;
            }
            column.add(entry, to.min(end).saturating_sub(from.max(start)));
        }
    }

    /// Where the picture starts on the disk, in bytes.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    /// How much of the disk it shows, in bytes.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Bytes that a column stands for.
    pub(crate) fn column_length(&self, index: u64) -> u64 {
        border(index.saturating_add(1), self.length).saturating_sub(border(index, self.length))
    }

    /// The columns of each layer.
    pub(crate) fn columns(&self) -> &[Vec<Amount>] {
        &self.columns
    }

    /// What each layer contributes in all.
    pub(crate) fn totals(&self) -> &[Amount] {
        &self.totals
    }
}

/// Where a column starts, counted from the picture's first byte.
fn border(index: u64, length: u64) -> u64 {
    let at = u128::from(length).saturating_mul(index.into()).checked_div(COLUMNS.into());
    at.and_then(|at| u64::try_from(at).ok()).unwrap_or(u64::MAX)
}

/// A column that starts at or before `at`, and not far before it.
fn column_of(at: u64, length: u64) -> usize {
    let column = u128::from(at).saturating_mul(COLUMNS.into()).checked_div(length.into());
    column.and_then(|column| usize::try_from(column).ok()).unwrap_or(0).saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use qcow::chain::{Chain, OpenOptions};
    use qcow::ops::create::{CreateOptions, create};
    use qcow::ops::map::{MapOptions, map};

    use super::*;

    #[test]
    fn columns_cover_every_byte_once_whatever_the_size() {
        for length in [0, 1, 512, 999, 1_000_003, u64::MAX] {
            let tally = Tally::new(0, length, 1);
            let sum: u128 = (0..COLUMNS).map(|i| u128::from(tally.column_length(i))).sum();
            assert_eq!(sum, u128::from(length));
            for at in [0, length / 3, length.saturating_sub(1)] {
                assert!(border(column_of(at, length) as u64, length) <= at);
            }
        }
    }

    #[test]
    fn an_entry_goes_to_the_columns_it_covers() {
        let raw = std::env::temp_dir().join(format!("tally-{}.raw", std::process::id()));
        let options = CreateOptions::default()
            .size(512_000)
            .target(qcow::ops::TargetOptions::Raw(Default::default()));
        create(&raw, &options).unwrap();
        let chain = Chain::open(&raw, &OpenOptions::default()).unwrap();
        std::fs::remove_file(&raw).unwrap();
        let part = MapOptions::default().start(512 * 100).max_length(512 * 2 + 12);
        let entry = map(&chain, &part).next().unwrap().unwrap();
        let mut tally = Tally::new(0, 512_000, 1);
        tally.add(&entry);
        let zeros: Vec<_> = tally.columns()[0].iter().map(|column| column.zero).collect();
        assert_eq!(zeros[99..104], [0, 512, 512, 12, 0]);
        assert_eq!(tally.totals()[0].sum(), 512 * 2 + 12);
    }
}
