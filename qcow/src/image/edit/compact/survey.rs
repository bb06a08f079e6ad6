//! Where a file could end if all that it has lay as near to its beginning as there are free places.

use std::ops::Range;

use crate::exact::{Exact, to_usize};
use crate::format::{Geometry, RawL2Entry};
use crate::image::edit::Edit;
use crate::image::edit::references::{data_of, tables_of};
use crate::{CancelToken, Result};

/// What is in use, and what has to move along.
#[derive(Debug)]
pub(crate) struct Survey {
    geometry: Geometry,
    /// One bit for each cluster that is in use.
    used: Vec<u64>,
    /// Where the last of them ends.
    end: u64,
    /// Of each L2 table its own cluster, and where the last ends that it leads to.
    tables: Vec<(u64, u64)>,
    /// Clusters of what moves whatever else does, at most: L1 tables, refcounts, the tables of snapshots and bitmaps.
    fixed: Vec<Range<u64>>,
    compressed: bool,
}

impl Edit {
    /// Looks at all refcounts and L2 tables of the old image.
    ///
    /// # Errors
    /// What reading them raises.
    pub(crate) fn survey(&mut self, cancel: &CancelToken) -> Result<Survey> {
        self.with_space(|space| space.counts.load_all())?;
        let (mut used, mut end) = (Vec::new(), 0);
        self.space.counts.for_used(|cluster, _| {
            let word = to_usize(cluster >> 6);
            if word >= used.len() {
                used.resize(word.wrapping_add(1), 0u64);
            }
            if let Some(word) = used.get_mut(word) {
                *word |= 1 << (cluster & 63);
            }
            end = cluster.wrapping_add(1);
        })?;
        let fixed = self.fixed()?;
        let mut survey = Survey {
            geometry: self.geometry(),
            used,
            end,
            tables: Vec::new(),
            fixed,
            compressed: false,
        };
        self.look_at_tables(&mut survey, cancel)?;
        Ok(survey)
    }

    fn look_at_tables(&self, survey: &mut Survey, cancel: &CancelToken) -> Result<()> {
        let mut l1 = self.active_l1()?;
        for snapshot in self.image().snapshots() {
            snapshot.check_l1(self.geometry())?;
            l1.extend(self.read_table(snapshot.l1_table_offset, snapshot.l1_entries.into())?);
        }
        let (rules, width) = (self.rules(), to_usize(self.geometry().l2_entry_size()));
        for table in tables_of(&l1).into_keys() {
            cancel.check()?;
            let mut last = 0;
            for entry in self.read_l2(table)?.chunks_exact(width).map(RawL2Entry::read) {
                survey.compressed |= entry.is_compressed();
                if let Some(clusters) = data_of(entry, &rules)? {
                    last = clusters.end.max(last);
                }
            }
            survey.tables.push((table.0 >> self.geometry().cluster_bits(), last));
        }
        Ok(())
    }

    fn fixed(&self) -> Result<Vec<Range<u64>>> {
        let image = self.image();
        let mut fixed = vec![self.space.counts.table_clusters()?];
        for block in self.space.counts.block_clusters() {
            fixed.push(block..block.plus(1)?);
        }
        let header = image.header();
        fixed.push(self.clusters(header.l1_table_offset, u64::from(header.l1_entries).times(8)?)?);
        for snapshot in image.snapshots() {
            let len = u64::from(snapshot.l1_entries).times(8)?;
            fixed.push(self.clusters(snapshot.l1_table_offset, len)?);
        }
        fixed.push(self.clusters(header.snapshots_offset, image.snapshot_table_len())?);
        for bitmap in image.bitmap_entries()? {
            let len = u64::from(bitmap.table_entries).times(8)?;
            fixed.push(self.clusters(bitmap.table_offset, len)?);
        }
        if let Some(extension) = image.area().bitmaps() {
            fixed.push(self.clusters(extension.directory_offset, extension.directory_size)?);
        }
        Ok(fixed)
    }
}

impl Survey {
    /// Where the last cluster in use ends, in clusters.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// The first cluster that can be vacated together with all behind it; `None` if there is none.
    pub(crate) fn shortest(&self) -> Result<Option<u64>> {
        let (mut low, mut high) = (1, self.end);
        while low < high {
            let middle = low.plus(high.minus(low)? >> 1)?;
            if self.fits(middle)? { high = middle } else { low = middle.plus(1)? }
        }
        Ok((low < self.end).then_some(low))
    }

    /// Whether all that lies at `from` or behind it, and the tables that move along, have room before it.
    fn fits(&self, from: u64) -> Result<bool> {
        let before = self.used_before(from);
        let free = from.minus(before)?;
        let behind = self.used_before(self.end).minus(before)?;
        let leads = |table: &&(u64, u64)| table.0 < from && table.1 > from;
        let mut tables = self.tables.iter().filter(leads).count() as u64;
        for fixed in self.fixed.iter().filter(|fixed| fixed.start < from) {
            tables = tables.plus(fixed.end.minus(fixed.start)?)?;
        }
        // Packed anew, compressed data may need some more.
        let more = if self.compressed { (behind >> 3).plus(2)? } else { 0 };
        Ok(behind.plus(tables)?.plus(more)? <= free)
    }

    fn used_before(&self, cluster: u64) -> u64 {
        let whole = to_usize(cluster >> 6).min(self.used.len());
        let words = self.used.get(..whole).unwrap_or_default();
        let count: u64 = words.iter().map(|word| u64::from(word.count_ones())).sum();
        let last = self.used.get(to_usize(cluster >> 6)).copied().unwrap_or_default();
        // Bits of one word.
        count
            .wrapping_add(u64::from((last & (1u64 << (cluster & 63)).wrapping_sub(1)).count_ones()))
    }

    /// The bytes of the file that nothing uses, before the end of the last cluster in use.
    pub(crate) fn free(&self) -> Result<Vec<Range<u64>>> {
        let size = self.geometry.cluster_size();
        let mut runs: Vec<Range<u64>> = Vec::new();
        for (number, word) in (0u64..).zip(&self.used) {
            let first = number << 6;
            let mut free = !word;
            while free != 0 {
                let start = free.trailing_zeros();
                let len = (free >> start).trailing_ones();
                let end = first.plus(u64::from(start))?.plus(u64::from(len))?.min(self.end);
                let start_cluster = first.plus(u64::from(start))?;
                if start_cluster < end {
                    let range = start_cluster.times(size)?..end.times(size)?;
                    match runs.last_mut() {
                        Some(run) if run.end == range.start => run.end = range.end,
                        _ => runs.push(range),
                    }
                }
                let done = start.wrapping_add(len);
                free = if done >= 64 { 0 } else { free >> done << done };
            }
        }
        Ok(runs)
    }
}
