//! Looks at every entry of every L2 table, in parallel, each table once.

use std::iter::Sum;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rayon::prelude::*;

use super::Checker;
use super::report::{FindingKind, Numbers, Spot, Structure};
use super::tables::{L2Table, copied_message};
use crate::exact::to_usize;
use crate::format::{CompressedSpan, RawL2Entry, Version};
use crate::io::read_padded;
use crate::{Error, Observer, Result};

/// What the active image's clusters are like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Figures {
    pub(super) allocated: u64,
    pub(super) fragmented: u64,
    pub(super) compressed: u64,
}

impl Figures {
    fn times(self, times: u64) -> Self {
        Self {
            allocated: self.allocated.saturating_mul(times),
            fragmented: self.fragmented.saturating_mul(times),
            compressed: self.compressed.saturating_mul(times),
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            allocated: self.allocated.saturating_add(other.allocated),
            fragmented: self.fragmented.saturating_add(other.fragmented),
            compressed: self.compressed.saturating_add(other.compressed),
        }
    }
}

impl Sum for Figures {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Self::plus)
    }
}

impl Checker<'_> {
    /// Counts what all L2 tables name.
    pub(super) fn l2_tables(&self, list: &[L2Table], observer: &dyn Observer) -> Result<Figures> {
        let total = (list.len() as u64).saturating_mul(self.geometry.cluster_size());
        let done = AtomicU64::new(0);
        list.par_iter()
            .map_init(Vec::new, |buffer, table| {
                self.cancel.check()?;
                let figures = self.l2_table(table, buffer)?;
                let cluster_size = self.geometry.cluster_size();
                let before = done.fetch_add(cluster_size, Relaxed);
                observer.progress(before.saturating_add(cluster_size), total);
                Ok(figures)
            })
            .sum()
    }

    fn l2_table(&self, table: &L2Table, buffer: &mut Vec<u8>) -> Result<Figures> {
        let storage = &**self.image.storage();
        let end = table.offset.saturating_add(self.geometry.cluster_size());
        let data = storage.next_data(table.offset.min(storage.len()));
        let data =
            data.map_err(|error| Error::io("could not read", error).structure("L2 table"))?;
        if data.is_none_or(|data| data >= end) {
            return Ok(Figures::default());
        }
        buffer.resize(usize::try_from(self.geometry.cluster_size()).unwrap_or_default(), 0);
        read_padded(storage, buffer, table.offset).map_err(|error| error.structure("L2 table"))?;
        // Where the table's own refcount cannot be read, QEMU does not look at copied flags.
        let own = self.stored.is_one(table.offset >> self.geometry.cluster_bits());
        let flagged = if own.is_some() && table.offset != 0 { table.active } else { 0 };
        let mut walk = L2Walk {
            checker: self,
            table,
            times: table.active.saturating_add(table.others),
            flagged,
            figures: Figures::default(),
            next: 0,
            word: 0,
        };
        walk.all(buffer)?;
        Ok(walk.figures.times(table.active))
    }
}

/// One table on its way.
struct L2Walk<'a> {
    checker: &'a Checker<'a>,
    table: &'a L2Table,
    /// How many L1 entries name the table.
    times: u64,
    /// How many of them have their entries' copied flags looked at.
    flagged: u64,
    figures: Figures,
    /// Where the next cluster would lie if the file were not fragmented; 0 at first.
    next: u64,
    /// The entry that is looked at, where one is looked at alone.
    word: u64,
}

impl L2Walk<'_> {
    /// Looks at all entries of the table; those that continue each other together.
    fn all(&mut self, bytes: &[u8]) -> Result<()> {
        let width = to_usize(self.checker.geometry.l2_entry_size());
        let cluster_size = self.checker.geometry.cluster_size();
        let mut rest = bytes;
        let mut index: u64 = 0;
        while let Some((first, others)) = rest.split_at_checked(width) {
            let raw = RawL2Entry::read(first);
            let mut run: u64 = 1;
            if raw.is_empty() {
                // Nothing here.
            } else if self.is_plain(raw) {
                let follows = |(entry, step): (&[u8], u64)| {
                    let expected = raw.moved_by(cluster_size.wrapping_mul(step));
                    let next = RawL2Entry::read(entry);
                    next.word == expected.word && !next.contradicts_itself()
                };
                let more = others.chunks_exact(width).zip(1..).take_while(|&next| follows(next));
                run = run.saturating_add(more.count() as u64);
                self.run(index, raw, run)?;
            } else {
                self.entry(index, raw)?;
            }
            let skip = to_usize(run).saturating_mul(width);
            rest = rest.get(skip..).unwrap_or_default();
            index = index.saturating_add(run);
        }
        Ok(())
    }

    /// Whether an entry is an ordinary one for a cluster, with nothing to say about it alone.
    fn is_plain(&self, raw: RawL2Entry) -> bool {
        let rules = self.checker.rules;
        let offset = raw.offset().0;
        !raw.is_compressed()
            && raw.reserved(&rules) == 0
            && (!raw.has_zero_flag() || rules.version != Version::V2)
            && !raw.contradicts_itself()
            && offset != 0
            && rules.geometry.is_aligned(offset)
            && !rules.data_file
    }

    /// Looks at `count` plain entries from `index` on, whose clusters follow each other, the first
    /// of which is `raw`.
    fn run(&mut self, index: u64, raw: RawL2Entry, count: u64) -> Result<()> {
        let checker = self.checker;
        let cluster_size = checker.geometry.cluster_size();
        let (offset, len) = (raw.offset().0, cluster_size.saturating_mul(count));
        let clusters = checker.references.touched(offset, len);
        let copied = raw.is_copied();
        if checker.references.is_past_end(offset, len)
            || !checker.references.is_free_of_metadata(clusters.clone())
            || (self.flagged > 0 && checker.stored.uniform(clusters.clone()) != Some(copied))
        {
            return (0..count).try_for_each(|step| {
                let raw = raw.moved_by(cluster_size.wrapping_mul(step));
                self.entry(index.saturating_add(step), RawL2Entry { bitmap: 0, ..raw })
            });
        }
        checker.references.count_clusters(clusters, self.times);
        self.count_allocated(offset, count);
        Ok(())
    }

    /// Adds `count` clusters that follow each other to the figures.
    fn count_allocated(&mut self, offset: u64, count: u64) {
        self.figures.allocated = self.figures.allocated.saturating_add(count);
        if self.next != 0 && self.next != offset {
            self.figures.fragmented = self.figures.fragmented.saturating_add(1);
        }
        let len = self.checker.geometry.cluster_size().saturating_mul(count);
        self.next = offset.saturating_add(len);
    }

    fn entry(&mut self, index: u64, raw: RawL2Entry) -> Result<()> {
        self.word = raw.word;
        if raw.is_compressed() {
            return self.compressed(index, raw);
        }
        if raw.reserved(&self.checker.rules) != 0 {
            self.corruption(FindingKind::ReservedBits, index, || {
                format!("entry {:#018x} has reserved bits set", raw.word)
            });
        }
        let rules = self.checker.rules;
        let zero = raw.has_zero_flag() && !rules.geometry.extended_l2();
        if zero && rules.version == Version::V2 {
            self.checker.report.note(FindingKind::ZeroFlag, self.spot(index), || {
                format!("entry {:#018x} has the zero flag, which version 2 does not have", raw.word)
            });
        }
        if raw.offset().0 != 0 {
            return self.allocated(index, raw, zero);
        }
        if zero {
            return Ok(());
        }
        // Offset 0 is a place only in an external data file (trap 32).
        if rules.data_file && raw.is_copied() {
            return self.allocated(index, raw, zero);
        }
        if raw.allocated_subclusters() != 0 {
            let bitmap = raw.bitmap;
            self.corruption(FindingKind::Subclusters, index, || {
                format!("subclusters {bitmap:#018x} are allocated, but the entry has no offset")
            });
        }
        Ok(())
    }

    fn compressed(&mut self, index: u64, raw: RawL2Entry) -> Result<()> {
        let checker = self.checker;
        if raw.is_copied() {
            self.corruption(FindingKind::CopiedFlag, index, || {
                "the copied flag is set on a compressed cluster".into()
            });
        }
        if checker.rules.data_file {
            self.corruption(FindingKind::Compressed, index, || {
                "a compressed cluster, but data lives in a data file".into()
            });
            return Ok(());
        }
        if raw.bitmap != 0 {
            self.corruption(FindingKind::Compressed, index, || {
                format!("a compressed cluster with subclusters {:#018x}", raw.bitmap)
            });
            return Ok(());
        }
        let span = CompressedSpan::decode(raw.word, checker.geometry.cluster_bits());
        checker.references.count(span.host.0, span.len, self.times, self.spot(index))?;
        self.overlap(index, span.host.0, span.len);
        let one = Figures { allocated: 1, fragmented: 1, compressed: 1 };
        self.figures = self.figures.plus(one);
        Ok(())
    }

    fn allocated(&mut self, index: u64, raw: RawL2Entry, zero: bool) -> Result<()> {
        let checker = self.checker;
        let (offset, cluster_size) = (raw.offset().0, checker.geometry.cluster_size());
        if raw.contradicts_itself() {
            let bitmap = raw.bitmap;
            self.corruption(FindingKind::Subclusters, index, || {
                format!("subclusters {bitmap:#018x} are both allocated and zero")
            });
        }
        if !checker.geometry.is_aligned(offset) {
            let contains = if zero { "preallocated" } else { "data" };
            self.corruption(FindingKind::Misaligned, index, || {
                format!(
                    "the {contains} cluster is at {offset:#x}, expected a multiple of {cluster_size}"
                )
            });
        }
        self.count_allocated(offset, 1);
        let cluster = offset >> checker.geometry.cluster_bits();
        let one = if checker.rules.data_file {
            self.check_place(index, offset);
            Some(true)
        } else {
            checker.references.count(offset, cluster_size, self.times, self.spot(index))?;
            self.overlap(index, offset, cluster_size);
            checker.stored.is_one(cluster)
        };
        let copied = raw.is_copied();
        if one.is_some_and(|one| one != copied) && self.flagged > 0 {
            let refcount =
                if checker.rules.data_file { 1 } else { checker.stored_refcount(cluster) };
            let spot = self.spot(index).with(Numbers::Entry { entry: raw.word, refcount });
            checker.report.corruption(FindingKind::CopiedFlag, self.flagged, spot, || {
                copied_message("the cluster", copied)
            });
        }
        Ok(())
    }

    fn overlap(&self, index: u64, offset: u64, len: u64) {
        if self.checker.references.hits_metadata(offset, len) {
            self.checker.report.note(FindingKind::Overlap, self.spot(index), || {
                format!("the data at {offset:#x} is in a metadata cluster")
            });
        }
    }

    /// In a data file, every cluster lies at its guest offset (trap 111).
    fn check_place(&self, index: u64, offset: u64) {
        let guest = self.guest(index);
        if self.table.active > 0 && offset != guest {
            self.checker.report.note(FindingKind::DataFileOffset, self.spot(index), || {
                format!("the cluster is at {offset:#x} of the data file, expected {guest:#x}")
            });
        }
    }

    fn corruption(&self, kind: FindingKind, index: u64, message: impl FnOnce() -> String) {
        let entry = self.word;
        let spot = self.spot(index).with(Numbers::Entry { entry, refcount: 0 });
        self.checker.report.corruption(kind, self.times, spot, message);
    }

    fn guest(&self, index: u64) -> u64 {
        let geometry = self.checker.geometry;
        let table = self.table.l1_index.saturating_mul(geometry.l2_coverage());
        table.saturating_add(index.saturating_mul(geometry.cluster_size()))
    }

    fn spot(&self, index: u64) -> Spot {
        let within = index.saturating_mul(self.checker.geometry.l2_entry_size());
        let mut spot =
            Spot::entry(Structure::L2Table, index, self.table.offset.saturating_add(within));
        spot.guest_offset = Some(self.guest(index));
        spot
    }
}
