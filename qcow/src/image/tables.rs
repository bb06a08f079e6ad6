//! Walks L1 and L2 tables in slices and turns entries into runs.
//!
//! A window costs one read of L1 and one read per L2 table it touches, and its memory is bounded by
//! the window. Nothing is kept between windows but in a [`TableCache`](super::TableCache), if there is
//! one. Entries that no caller asks for are not
//! looked at, so a damaged entry hurts only those who need it, as in QEMU.

mod damaged;

use byteorder::{BigEndian, ByteOrder};

use self::damaged::unreadable;
use super::{Faults, Image, Tables};
use crate::format::{
    CompressedSpan, EntryRules, Geometry, GuestOffset, HostOffset, L1Entry, L2Entry,
};
use crate::{Error, Result};

/// L1 entries are scanned in pieces of this many bytes when looking for the next mapped range.
const L1_SCAN_BYTES: usize = 64 << 10;
const L1_ENTRY_LEN: u64 = 8;
/// Offsets in L2 entries end below this bit.
const OFFSET_BITS: u32 = 56;

/// A range of the guest's disk in one image, all of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) guest: u64,
    pub(crate) len: u64,
    pub(crate) kind: RunKind,
}

/// What an image says about a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunKind {
    /// Ask the backing file. In an image with subclusters space may be kept for it.
    Unallocated(Option<HostOffset>),
    /// Reads as zeros; may keep an allocation.
    Zero(Option<HostOffset>),
    /// Bytes at this offset, in the data file if there is one.
    Data(HostOffset),
    /// (A part of) one compressed cluster.
    Compressed(CompressedSpan),
}

impl RunKind {
    /// Whether `next`, `distance` guest bytes further on, continues this run.
    fn continues(self, next: Self, distance: u64) -> bool {
        let follows = |a: HostOffset, b: HostOffset| a.0.checked_add(distance) == Some(b.0);
        match (self, next) {
            (Self::Unallocated(None), Self::Unallocated(None))
            | (Self::Zero(None), Self::Zero(None)) => true,
            (Self::Data(a), Self::Data(b))
            | (Self::Zero(Some(a)), Self::Zero(Some(b)))
            | (Self::Unallocated(Some(a)), Self::Unallocated(Some(b))) => follows(a, b),
            _ => false,
        }
    }
}

/// Adds a run, merging it with the last one if they are one.
pub(crate) fn push_run(runs: &mut Vec<Run>, run: Run) {
    if run.len == 0 {
        return;
    }
    if let Some(last) = runs.last_mut() {
        let adjacent = last.guest.checked_add(last.len) == Some(run.guest);
        if adjacent && last.kind.continues(run.kind, last.len) {
            last.len = last.len.saturating_add(run.len);
            return;
        }
    }
    runs.push(run);
}

/// The tables of one image over `start..end` of the guest's disk, read as they are needed.
pub(crate) struct TableWindow<'a> {
    image: &'a Image,
    tables: Tables<'a>,
    geometry: Geometry,
    end: u64,
    first_l1: u64,
    l1: Vec<u8>,
    l2: L2Slice,
}

/// Consecutive entries of one L2 table.
#[derive(Default)]
struct L2Slice {
    l1_index: Option<u64>,
    table: HostOffset,
    first: u64,
    bytes: Vec<u8>,
}

impl<'a> TableWindow<'a> {
    /// Reads the L1 entries for `start..end`; the caller keeps windows small.
    pub(crate) fn load(image: &'a Image, tables: Tables<'a>, start: u64, end: u64) -> Result<Self> {
        let geometry = image.geometry();
        let table = image.l1();
        let first_l1 = geometry.position(GuestOffset(start)).l1_index.min(table.entries);
        let past_l1 = geometry.l1_entries_for(end).clamp(first_l1, table.entries);
        let mut l1 = vec![0; byte_len(past_l1.saturating_sub(first_l1), L1_ENTRY_LEN)?];
        read_l1(image, tables, first_l1, &mut l1)?;
        Ok(Self { image, tables, geometry, end, first_l1, l1, l2: L2Slice::default() })
    }

    /// Appends the runs of `start..end`, which must lie in the window. What cannot be understood goes
    /// to `faults`, and is a run of zeros.
    pub(crate) fn runs(
        &mut self,
        start: u64,
        end: u64,
        runs: &mut Vec<Run>,
        mut faults: Faults<'_>,
    ) -> Result<()> {
        let mut at = start;
        while at < end {
            let position = self.geometry.position(GuestOffset(at));
            let table_end = position
                .l1_index
                .saturating_add(1)
                .saturating_mul(self.geometry.l2_coverage())
                .min(end);
            let entry = self.l1_entry(position.l1_index);
            let cut = faults.as_ref().and_then(|_| self.cut_off(position.l1_index, entry));
            let known = cut.as_ref().map_or(table_end, |(from, _)| (*from).clamp(at, table_end));
            if entry.is_empty() {
                let kind = RunKind::Unallocated(None);
                push_run(runs, Run { guest: at, len: known.saturating_sub(at), kind });
            } else if at < known {
                self.runs_of_table(entry, at, known, runs, faults.as_deref_mut())?;
            }
            if let Some((_, error)) = cut.filter(|_| known < table_end) {
                unreadable(known, table_end, runs, faults.as_deref_mut(), error)?;
            }
            at = table_end;
        }
        Ok(())
    }

    /// The runs of `start..end`, all in the table of one L1 entry.
    fn runs_of_table(
        &mut self,
        entry: L1Entry,
        start: u64,
        end: u64,
        runs: &mut Vec<Run>,
        faults: Faults<'_>,
    ) -> Result<()> {
        let position = self.geometry.position(GuestOffset(start));
        let loaded = self.load_l2(position.l1_index, position.l2_index, entry, self.end);
        match loaded.map_err(|error| error.guest_offset(start)) {
            Ok(()) => self.decode(position.l2_index, start, end, runs, faults),
            Err(error) => self.runs_of_damaged(entry, start, end, runs, faults, error),
        }
    }

    /// Entries past the table, as a snapshot of a smaller disk has them, map nothing.
    fn l1_entry(&self, index: u64) -> L1Entry {
        let at = index.saturating_sub(self.first_l1).saturating_mul(L1_ENTRY_LEN);
        let bytes = usize::try_from(at).ok().and_then(|at| self.l1.get(at..at.saturating_add(8)));
        L1Entry(bytes.map_or(0, BigEndian::read_u64))
    }

    /// Makes sure that the entries from `l2_index` to the end of the table, or to that of guest offset
    /// `end`, are in memory.
    fn load_l2(&mut self, l1_index: u64, l2_index: u64, entry: L1Entry, end: u64) -> Result<()> {
        let slice = &mut self.l2;
        if slice.l1_index == Some(l1_index) && slice.first <= l2_index {
            return Ok(());
        }
        let table = entry.offset();
        if !self.geometry.is_aligned(table.0) {
            return Err(Error::corrupt(format!(
                "L2 table offset {table} is not aligned to the cluster size of {}",
                self.geometry.cluster_size()
            ))
            .structure("L1 table")
            .index(l1_index));
        }
        let table_start = l1_index.saturating_mul(self.geometry.l2_coverage());
        let window = end.saturating_sub(table_start).min(self.geometry.l2_coverage());
        let past = self.geometry.clusters_for(window);
        let width = self.geometry.l2_entry_size();
        slice.l1_index = None;
        slice.bytes.resize(byte_len(past.saturating_sub(l2_index), width)?, 0);
        let from = table.checked_add(l2_index.saturating_mul(width))?;
        if from.0.saturating_add(slice.bytes.len() as u64) > self.image.storage().len() {
            self.image.note_passes_end();
        }
        self.tables
            .read(&**self.image.storage(), &mut slice.bytes, from.0)
            .map_err(|error| error.structure("L2 table"))?;
        (slice.l1_index, slice.first, slice.table) = (Some(l1_index), l2_index, table);
        Ok(())
    }

    /// Decodes the loaded entries for `start..end`, all in the loaded table.
    fn decode(
        &self,
        l2_index: u64,
        start: u64,
        end: u64,
        runs: &mut Vec<Run>,
        mut faults: Faults<'_>,
    ) -> Result<()> {
        let rules = self.image.rules();
        let width = byte_len(1, self.geometry.l2_entry_size())?;
        let skip = byte_len(l2_index.saturating_sub(self.l2.first), self.geometry.l2_entry_size())?;
        let mut entries = self.l2.bytes.get(skip..).unwrap_or_default().chunks_exact(width);
        let (mut at, mut index) = (start, l2_index);
        while at < end
            && let Some(bytes) = entries.next()
        {
            let (word, bitmap) = split_entry(bytes);
            let place = |error: Error| {
                let width = self.geometry.l2_entry_size();
                error
                    .structure("L2 table")
                    .index(index)
                    .host_offset(self.l2.table.0.saturating_add(index.saturating_mul(width)))
                    .guest_offset(at)
            };
            let entry = L2Entry::decode(word, bitmap, &rules).map_err(place);
            let wanted = end.saturating_sub(at);
            let count = match entry.as_ref().ok().and_then(|entry| step(entry, self.geometry)) {
                Some(step) => repeats(entries.clone(), (word, bitmap), step).saturating_add(1),
                None => 1,
            };
            let in_cluster = self.geometry.offset_in_cluster(at);
            let len = count.saturating_mul(self.geometry.cluster_size());
            let len = len.saturating_sub(in_cluster).min(wanted);
            let pushed = entry.and_then(|entry| push_entry(entry, &rules, at, len, runs));
            if let Err(error) = pushed {
                let faults = faults.as_deref_mut();
                unreadable(at, at.saturating_add(len), runs, faults, error)?;
            }
            at = at.saturating_add(len);
            index = index.saturating_add(count);
            if count > 1 {
                entries.nth(usize::try_from(count.saturating_sub(2)).unwrap_or(usize::MAX));
            }
        }
        Ok(())
    }
}

/// How much larger an entry must be than the one before it to continue it; `None` for entries
/// that are looked at one by one.
fn step(entry: &L2Entry, geometry: Geometry) -> Option<u64> {
    match entry {
        L2Entry::Data { .. } => Some(geometry.cluster_size()),
        L2Entry::Unallocated | L2Entry::Zero { host: None } => Some(0),
        _ => None,
    }
}

/// How many `entries` in a row continue the one before them, `first`. Nothing but its offset
/// grows, so that what is true of `first` is true of them: they need not be decoded.
fn repeats<'e>(entries: impl Iterator<Item = &'e [u8]>, first: (u64, u64), step: u64) -> u64 {
    let (mut word, bitmap) = first;
    let mut count = 0u64;
    for bytes in entries {
        word = word.wrapping_add(step);
        // An offset that grows out of its field is for the decoder to judge.
        if split_entry(bytes) != (word, bitmap) || (word ^ first.0) >> OFFSET_BITS != 0 {
            break;
        }
        count = count.saturating_add(1);
    }
    count
}

impl Image {
    /// Entries of the L1 table as far as the file reaches; those behind its end map nothing.
    pub(super) fn l1_entries_in_file(&self) -> u64 {
        let table = self.l1();
        let there = self.storage().len().saturating_sub(table.offset.0).div_ceil(L1_ENTRY_LEN);
        table.entries.min(there)
    }

    /// From which guest offset on the L1 table lies behind the end of the file, if it does.
    pub(crate) fn l1_end_in_file(&self) -> Option<u64> {
        let wanted = self.l1().entries.min(self.geometry().l1_entries_for(self.virtual_size()));
        let there = self.l1_entries_in_file();
        (there < wanted).then(|| there.saturating_mul(self.geometry().l2_coverage()))
    }

    /// The first guest offset at or after `from` that an L1 entry maps, rounded down to what the
    /// entry covers but not below `from`; `None` if nothing further on is mapped.
    pub(crate) fn next_mapped(&self, from: u64) -> Result<Option<u64>> {
        let geometry = self.geometry();
        self.notice_l1();
        let mut index = geometry.position(GuestOffset(from)).l1_index;
        let entries = self.l1_entries_in_file().min(geometry.l1_entries_for(self.virtual_size()));
        let mut buffer = Vec::new();
        while index < entries {
            let count = entries.saturating_sub(index).min(L1_SCAN_BYTES as u64 / L1_ENTRY_LEN);
            buffer.resize(byte_len(count, L1_ENTRY_LEN)?, 0);
            read_l1(self, Tables::Direct, index, &mut buffer)?;
            let found = buffer
                .chunks_exact(8)
                .position(|bytes| !L1Entry(BigEndian::read_u64(bytes)).is_empty());
            if let Some(found) = found {
                let start =
                    index.saturating_add(found as u64).saturating_mul(geometry.l2_coverage());
                return Ok(Some(start.max(from)));
            }
            index = index.saturating_add(count);
        }
        Ok(None)
    }
}

pub(super) fn read_l1(
    image: &Image,
    tables: Tables<'_>,
    first: u64,
    buffer: &mut [u8],
) -> Result<()> {
    let offset = image.l1().offset.checked_add(first.saturating_mul(L1_ENTRY_LEN))?;
    tables.read(&**image.storage(), buffer, offset.0).map_err(|error| error.structure("L1 table"))
}

fn split_entry(bytes: &[u8]) -> (u64, u64) {
    match bytes.split_at_checked(8) {
        Some((word, bitmap)) if bitmap.len() == 8 => {
            (BigEndian::read_u64(word), BigEndian::read_u64(bitmap))
        }
        Some((word, _)) => (BigEndian::read_u64(word), 0),
        None => (0, 0),
    }
}

/// Turns one entry, of whose cluster `at..at + len` is wanted, into runs.
fn push_entry(
    entry: L2Entry,
    rules: &EntryRules,
    at: u64,
    len: u64,
    runs: &mut Vec<Run>,
) -> Result<()> {
    let in_cluster = rules.geometry.offset_in_cluster(at);
    if rules.data_file {
        check_identity(&entry, at.saturating_sub(in_cluster))?;
    }
    let here = |host: HostOffset| host.checked_add(in_cluster);
    let kind = match entry {
        L2Entry::Unallocated => RunKind::Unallocated(None),
        L2Entry::Zero { host } => RunKind::Zero(host.map(here).transpose()?),
        L2Entry::Data { host, .. } => RunKind::Data(here(host)?),
        L2Entry::Compressed(span) => RunKind::Compressed(span),
        L2Entry::Subclusters { host, allocated, zero, .. } => {
            return push_subclusters((host, allocated, zero), rules, at, len, runs);
        }
    };
    push_run(runs, Run { guest: at, len, kind });
    Ok(())
}

/// In a data file every cluster lies at its guest offset (trap 111), and none is compressed (59).
pub(crate) fn check_identity(entry: &L2Entry, cluster: u64) -> Result<()> {
    let host = match *entry {
        L2Entry::Unallocated => None,
        L2Entry::Zero { host } | L2Entry::Subclusters { host, .. } => host,
        L2Entry::Data { host, .. } => Some(host),
        L2Entry::Compressed(_) => {
            return Err(Error::corrupt("a compressed cluster, but data lives in a data file")
                .structure("L2 table")
                .guest_offset(cluster));
        }
    };
    match host {
        Some(host) if host.0 != cluster => Err(Error::corrupt(format!(
            "the cluster is at {host} of the data file, expected its guest offset {cluster:#x}"
        ))
        .structure("L2 table")
        .guest_offset(cluster)),
        _ => Ok(()),
    }
}

fn push_subclusters(
    (host, allocated, zero): (Option<HostOffset>, u32, u32),
    rules: &EntryRules,
    start: u64,
    len: u64,
    runs: &mut Vec<Run>,
) -> Result<()> {
    let size = rules.geometry.subcluster_size();
    let in_subcluster = size.wrapping_sub(1);
    let end = start.saturating_add(len);
    let mut at = start;
    while at < end {
        let in_cluster = rules.geometry.offset_in_cluster(at);
        let subcluster = in_cluster.checked_div(size).unwrap_or_default();
        let next = (at | in_subcluster).saturating_add(1).min(end);
        let bit = 1u32.checked_shl(u32::try_from(subcluster).unwrap_or(u32::MAX)).unwrap_or(0);
        let place = host.map(|host| host.checked_add(in_cluster)).transpose()?;
        let kind = match place {
            _ if zero & bit != 0 => RunKind::Zero(place),
            Some(host) if allocated & bit != 0 => RunKind::Data(host),
            _ => RunKind::Unallocated(place),
        };
        push_run(runs, Run { guest: at, len: next.saturating_sub(at), kind });
        at = next;
    }
    Ok(())
}

fn byte_len(count: u64, width: u64) -> Result<usize> {
    count
        .checked_mul(width)
        .and_then(|bytes| usize::try_from(bytes).ok())
        .ok_or_else(|| Error::limit(format!("a table of {count} entries does not fit in memory")))
}
