//! New places for clusters and for compressed data.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::{References, Relocation, no_piece};
use crate::exact::{Exact, to_usize};
use crate::format::{Geometry, HostOffset, SECTOR};
use crate::image::edit::Edit;
use crate::image::update::Pieces;
use crate::io::{Storage, read_padded};
use crate::{CancelToken, Result};

/// Where what moves goes.
#[derive(Debug, Default)]
pub(super) struct Moves {
    /// Clusters by their numbers.
    pub(super) clusters: HashMap<u64, u64>,
    /// Compressed data by its offset and length.
    pub(super) spans: HashMap<(u64, u64), u64>,
}

impl Edit {
    /// Gives all of it new places, and has it copied there. Gives how many bytes that is.
    pub(super) fn place_moves(
        &mut self,
        found: References,
        cancel: &CancelToken,
    ) -> Result<(Relocation, u64)> {
        let mut moves = Moves::default();
        let mut copies = Copies::new(self, cancel);
        for (old, references) in found.clusters {
            cancel.check()?;
            let new = self.copied_cluster(old, &mut copies)?;
            self.shift(new..new.plus(1)?, references.minus(1)?, true)?;
            self.shift(old..old.plus(1)?, references, false)?;
            moves.clusters.insert(old, new);
        }
        let (_, mut bytes) = copies.stage(self)?;
        let mut packing = Packing::new(self, cancel);
        for ((host, len), references) in found.spans {
            cancel.check()?;
            let new = packing.place(self, host, len, references)?;
            let old = self.clusters(HostOffset(host), len)?;
            self.shift(old, references, false)?;
            moves.spans.insert((host, len), new);
            bytes = bytes.plus(len)?;
        }
        packing.stage(self)?;
        Ok((Relocation { moves, rules: self.rules() }, bytes))
    }

    /// A new place for a cluster, whose content is copied there; it has one reference.
    pub(super) fn copied_cluster(&mut self, old: u64, copies: &mut Copies) -> Result<u64> {
        let place = self.allocate(1)?;
        let new = place.0 >> self.geometry().cluster_bits();
        copies.add(old, new)?;
        Ok(new)
    }
}

/// Clusters that are copied: runs that are in a row in their new places.
#[derive(Debug)]
pub(super) struct Copies {
    storage: Arc<dyn Storage>,
    geometry: Geometry,
    cancel: CancelToken,
    runs: Vec<(u64, Vec<u64>)>,
}

impl Copies {
    pub(super) fn new(edit: &Edit, cancel: &CancelToken) -> Self {
        let storage = Arc::clone(edit.image().storage());
        Self { storage, geometry: edit.geometry(), cancel: cancel.clone(), runs: Vec::new() }
    }

    fn add(&mut self, old: u64, new: u64) -> Result<()> {
        match self.runs.last_mut() {
            Some((first, olds)) if first.plus(olds.len() as u64)? == new => olds.push(old),
            _ => self.runs.push((new, vec![old])),
        }
        Ok(())
    }

    /// Has them written. Gives how many clusters and bytes there are.
    pub(super) fn stage(self, edit: &mut Edit) -> Result<(u64, u64)> {
        let Self { storage, geometry, cancel, runs } = self;
        let mut count = 0u64;
        for (first, olds) in runs {
            count = count.plus(olds.len() as u64)?;
            let start = first.times(geometry.cluster_size())?;
            let (storage, cancel) = (Arc::clone(&storage), cancel.clone());
            edit.write_pieces(Arc::new(Copied { storage, geometry, cancel, start, olds }))?;
        }
        Ok((count, count.times(geometry.cluster_size())?))
    }
}

#[derive(Debug)]
struct Copied {
    storage: Arc<dyn Storage>,
    geometry: Geometry,
    cancel: CancelToken,
    start: u64,
    olds: Vec<u64>,
}

impl Pieces for Copied {
    fn start(&self) -> u64 {
        self.start
    }

    fn piece_len(&self) -> u64 {
        self.geometry.cluster_size()
    }

    fn count(&self) -> u64 {
        self.olds.len() as u64
    }

    fn piece(&self, number: u64) -> Result<Vec<u8>> {
        self.cancel.check()?;
        let old = self.olds.get(to_usize(number)).ok_or_else(no_piece)?;
        let len = self.geometry.cluster_size();
        let mut bytes = vec![0; to_usize(len)];
        read_padded(&*self.storage, &mut bytes, old.times(len)?)?;
        Ok(bytes)
    }
}

/// Compressed data that is packed into new clusters.
#[derive(Debug)]
struct Packing {
    storage: Arc<dyn Storage>,
    geometry: Geometry,
    cancel: CancelToken,
    /// Clusters in a row, and what lies in them.
    rows: Vec<(Range<u64>, Vec<Span>)>,
    /// Where the last span ends.
    at: u64,
}

#[derive(Debug, Clone, Copy)]
struct Span {
    old: u64,
    new: u64,
    len: u64,
}

impl Packing {
    fn new(edit: &Edit, cancel: &CancelToken) -> Self {
        let (storage, geometry) = (Arc::clone(edit.image().storage()), edit.geometry());
        Self { storage, geometry, cancel: cancel.clone(), rows: Vec::new(), at: 0 }
    }

    /// Gives `len` bytes at `old` a new place, in clusters that count these references.
    fn place(&mut self, edit: &mut Edit, old: u64, len: u64, references: u64) -> Result<u64> {
        let in_sector = old & SECTOR.minus(1)?;
        let behind = self.at.checked_next_multiple_of(SECTOR).unwrap_or(self.at);
        let mut new = behind.plus(in_sector)?;
        let mut fresh = Vec::new();
        if !self.has_room(edit, new, references)? {
            new = self.begin(edit, &mut fresh)?.plus(in_sector)?;
        }
        let mut restarted = false;
        loop {
            let Some((row, _)) = self.rows.last_mut() else { return Err(no_piece()) };
            if new.plus(len)? <= row.end.times(self.geometry.cluster_size())? {
                break;
            }
            let place = edit.allocate(1)?;
            let cluster = place.0 >> self.geometry.cluster_bits();
            if cluster == row.end {
                row.end = cluster.plus(1)?;
                fresh.push(cluster);
                continue;
            }
            // There is a gap. What was taken for this span so far is given back, the first time; the next
            // rows are as long as they can be.
            for unused in fresh.drain(..) {
                edit.lower(unused..unused.plus(1)?)?;
            }
            let end = self.at.max(row.start.times(self.geometry.cluster_size())?);
            row.end = self.geometry.clusters_for(end);
            if restarted {
                // Free places are too scattered for it: a row of its own.
                edit.lower(cluster..cluster.plus(1)?)?;
                let whole = edit.allocate(in_sector.plus(len)?)?;
                let clusters = edit.clusters(whole, in_sector.plus(len)?)?;
                fresh.extend(clusters.clone());
                self.rows.push((clusters, Vec::new()));
                new = whole.0.plus(in_sector)?;
                continue;
            }
            restarted = true;
            self.rows.push((cluster..cluster.plus(1)?, Vec::new()));
            fresh.push(cluster);
            new = place.0.plus(in_sector)?;
            self.at = place.0;
        }
        let touched = edit.clusters(HostOffset(new), len)?;
        for cluster in touched.clone() {
            // What is allocated has a reference already.
            let more = references.minus(u64::from(fresh.contains(&cluster)))?;
            edit.shift(cluster..cluster.plus(1)?, more, true)?;
        }
        if let Some((_, spans)) = self.rows.last_mut() {
            spans.push(Span { old, new, len });
        }
        self.at = new.plus(len)?;
        Ok(new)
    }

    /// Whether the cluster at `new` can be counted so many times more, if others have data in it.
    fn has_room(&self, edit: &mut Edit, new: u64, references: u64) -> Result<bool> {
        let cluster = new >> self.geometry.cluster_bits();
        let Some((row, _)) = self.rows.last() else { return Ok(false) };
        if !row.contains(&cluster) {
            return Ok(true);
        }
        let most = edit.image().header().refcounts().max();
        Ok(edit.refcount(cluster)?.checked_add(references).is_some_and(|count| count <= most))
    }

    fn begin(&mut self, edit: &mut Edit, fresh: &mut Vec<u64>) -> Result<u64> {
        let place = edit.allocate(1)?;
        let cluster = place.0 >> self.geometry.cluster_bits();
        self.rows.push((cluster..cluster.plus(1)?, Vec::new()));
        fresh.push(cluster);
        self.at = place.0;
        Ok(place.0)
    }

    fn stage(self, edit: &mut Edit) -> Result<()> {
        let Self { storage, geometry, cancel, rows, .. } = self;
        for (row, spans) in rows {
            if spans.is_empty() {
                continue;
            }
            let (storage, cancel) = (Arc::clone(&storage), cancel.clone());
            edit.write_pieces(Arc::new(Packed { storage, geometry, cancel, row, spans }))?;
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Packed {
    storage: Arc<dyn Storage>,
    geometry: Geometry,
    cancel: CancelToken,
    row: Range<u64>,
    /// In ascending order of their new places.
    spans: Vec<Span>,
}

impl Pieces for Packed {
    fn start(&self) -> u64 {
        // It was multiplied before, when the row was made.
        self.row.start.wrapping_mul(self.geometry.cluster_size())
    }

    fn piece_len(&self) -> u64 {
        self.geometry.cluster_size()
    }

    fn count(&self) -> u64 {
        self.row.end.wrapping_sub(self.row.start)
    }

    fn piece(&self, number: u64) -> Result<Vec<u8>> {
        self.cancel.check()?;
        let len = self.geometry.cluster_size();
        let start = self.start().plus(number.times(len)?)?;
        let end = start.plus(len)?;
        let mut bytes = vec![0; to_usize(len)];
        let first = self.spans.partition_point(|span| span.new.wrapping_add(span.len) <= start);
        for span in self.spans.get(first..).unwrap_or_default() {
            if span.new >= end {
                break;
            }
            let from = span.new.max(start);
            let to = span.new.plus(span.len)?.min(end);
            let place = to_usize(from.minus(start)?)..to_usize(to.minus(start)?);
            let part = bytes.get_mut(place).ok_or_else(no_piece)?;
            read_padded(&*self.storage, part, span.old.plus(from.minus(span.new)?)?)?;
        }
        Ok(bytes)
    }
}
