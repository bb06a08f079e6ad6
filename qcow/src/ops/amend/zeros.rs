//! Clusters that read as zeros by their flag, in an image whose version is to have no such flag.
//!
//! Without a backing file, what is unallocated reads as zeros. Over one it does not: there such a cluster gets
//! a place with zeros in it.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::exact::{Exact, to_usize};
use crate::format::{
    CompressionType, EntryRules, Geometry, HostOffset, L1Entry, L2Entry, RawL2Entry, Snapshot,
    encode_table,
};
use crate::image::edit::Edit;
use crate::image::update::Pieces;
use crate::{CancelToken, Error, ErrorKind, Remedy, Result};

/// Rewrites the tables of the active image and of `snapshots`, which may get other L1 tables by that. Gives how
/// many bytes of zeros are written.
pub(super) fn expand_zeros(
    edit: &mut Edit,
    snapshots: &mut [Snapshot],
    cancel: &CancelToken,
) -> Result<u64> {
    let active = edit.active_l1()?;
    let mut tables: BTreeMap<HostOffset, u64> = BTreeMap::new();
    let mut count = |l1: &[u64]| {
        for table in l1.iter().map(|entry| L1Entry(*entry).offset()).filter(|table| table.0 != 0) {
            let times = tables.entry(table).or_default();
            *times = times.plus(1)?;
        }
        Ok::<_, Error>(())
    };
    count(&active)?;
    let mut l1_of_snapshots = Vec::new();
    for snapshot in &*snapshots {
        snapshot.check_l1(edit.geometry())?;
        let l1 = edit.read_table(snapshot.l1_table_offset, snapshot.l1_entries.into())?;
        count(&l1)?;
        l1_of_snapshots.push(l1);
    }
    let image = edit.image();
    let mut work = Expansion {
        rules: image.rules(),
        over_backing: image.area().backing_name.is_some(),
        encrypted: image.is_encrypted(),
        zlib: image.header().compression_type == CompressionType::Zlib,
        moved: BTreeMap::new(),
        zeros: Vec::new(),
        written: 0,
    };
    for (table, times) in tables {
        cancel.check()?;
        work.table(edit, table, times)?;
    }
    let moved = work.finish(edit)?;
    if moved.0.is_empty() {
        return Ok(0);
    }
    edit.replace_l1(&renamed(&active, &moved.0))?;
    for (snapshot, old) in snapshots.iter_mut().zip(l1_of_snapshots) {
        let new = renamed(&old, &moved.0);
        if new == old {
            continue;
        }
        let len = u64::from(snapshot.l1_entries).times(8)?;
        let clusters = edit.clusters(snapshot.l1_table_offset, len)?;
        edit.lower(clusters)?;
        snapshot.l1_table_offset = edit.write_new(encode_table(&new))?;
    }
    Ok(moved.1)
}

/// The entries of an L1 table, with the new places of tables that have moved.
fn renamed(l1: &[u64], moved: &BTreeMap<HostOffset, HostOffset>) -> Vec<u64> {
    let rename = |entry: &u64| {
        let old = L1Entry(*entry);
        let new = moved.get(&old.offset());
        new.map_or(*entry, |new| L1Entry::new(*new, old.copied()).0)
    };
    l1.iter().map(rename).collect()
}

struct Expansion {
    rules: EntryRules,
    over_backing: bool,
    encrypted: bool,
    zlib: bool,
    /// Tables that were rewritten, and where to.
    moved: BTreeMap<HostOffset, HostOffset>,
    /// Runs of clusters to be filled with zeros: the first and how many.
    zeros: Vec<(u64, u64)>,
    written: u64,
}

impl Expansion {
    /// Rewrites a table that `times` entries of L1 tables name, if it has to be.
    fn table(&mut self, edit: &mut Edit, table: HostOffset, times: u64) -> Result<()> {
        let mut bytes = edit.read_l2(table)?;
        let width = to_usize(self.rules.geometry.l2_entry_size());
        let mut changed = false;
        for (index, field) in (0u64..).zip(bytes.chunks_exact_mut(width)) {
            let entry = RawL2Entry::read(field);
            if entry.is_compressed() && !self.zlib {
                return Err(Error::unsupported(
                    "version 2 has no zstd, and the image has clusters compressed with it",
                )
                .structure("L2 table")
                .host_offset(table)
                .index(index)
                .hint(Remedy::Flatten));
            }
            let decoded = L2Entry::decode(entry.word, entry.bitmap, &self.rules);
            let decoded = decoded.map_err(|error| error.host_offset(table).index(index))?;
            let L2Entry::Zero { host } = decoded else { continue };
            let new = self.expanded(edit, host, times)?;
            new.write(field);
            changed = true;
        }
        if !changed {
            return Ok(());
        }
        let own = edit.clusters(table, 1)?;
        edit.shift(own, times, false)?;
        let new = edit.write_new(bytes)?;
        let clusters = edit.clusters(new, 1)?;
        edit.shift(clusters, times.minus(1)?, true)?;
        self.moved.insert(table, new);
        Ok(())
    }

    /// What an entry becomes that has the flag, and perhaps a place.
    fn expanded(
        &mut self,
        edit: &mut Edit,
        place: Option<HostOffset>,
        times: u64,
    ) -> Result<RawL2Entry> {
        if let Some(host) = place {
            let own = edit.clusters(host, 1)?;
            if self.over_backing && edit.refcount(own.start)? == times {
                // Nothing else uses it, and it is not read: neither before the switch.
                return self.filled(host, times);
            }
            edit.shift(own, times, false)?;
        }
        if !self.over_backing {
            return Ok(RawL2Entry::default());
        }
        let host = edit.allocate(1)?;
        let clusters = edit.clusters(host, 1)?;
        edit.shift(clusters, times.minus(1)?, true)?;
        self.filled(host, times)
    }

    fn filled(&mut self, host: HostOffset, times: u64) -> Result<RawL2Entry> {
        if self.encrypted {
            return Err(Error::new(
                ErrorKind::Encrypted,
                "clusters of zeros would have to be encrypted, and there is no key",
            ));
        }
        let cluster = host.0 >> self.rules.geometry.cluster_bits();
        match self.zeros.last_mut() {
            Some((first, count)) if first.plus(*count)? == cluster => *count = count.plus(1)?,
            _ => self.zeros.push((cluster, 1)),
        }
        self.written = self.written.plus(self.rules.geometry.cluster_size())?;
        let (word, bitmap) = L2Entry::Data { host, copied: times == 1 }.encode(&self.rules)?;
        Ok(RawL2Entry { word, bitmap })
    }

    /// Where tables have moved to, and how many bytes of zeros are written.
    fn finish(self, edit: &mut Edit) -> Result<(BTreeMap<HostOffset, HostOffset>, u64)> {
        let geometry = self.rules.geometry;
        for (first, count) in self.zeros {
            let start = first.times(geometry.cluster_size())?;
            edit.write_pieces(Arc::new(Zeros { geometry, start, count }))?;
        }
        Ok((self.moved, self.written))
    }
}

/// Clusters of zeros.
#[derive(Debug)]
struct Zeros {
    geometry: Geometry,
    start: u64,
    count: u64,
}

impl Pieces for Zeros {
    fn start(&self) -> u64 {
        self.start
    }

    fn piece_len(&self) -> u64 {
        self.geometry.cluster_size()
    }

    fn count(&self) -> u64 {
        self.count
    }

    fn piece(&self, _: u64) -> Result<Vec<u8>> {
        Ok(vec![0; to_usize(self.geometry.cluster_size())])
    }
}
