//! Zeros that no entry says: written as data, where what is there does not read as zeros already.

use super::super::PieceKind;
use super::Writer;
use crate::codec::is_zero;
use crate::exact::{Exact, to_usize};
use crate::io::Zeroes;
use crate::{Error, Result};

/// Zeros are written in pieces of this many bytes.
const ZEROS: u64 = 64 << 10;

impl Writer {
    /// Zeroes a part of one unit. Where `explicit` zeros meet a unit that has no data and else reads as zeros, all
    /// of it becomes zero by its entry.
    pub(super) fn zero_edge(&self, at: u64, end: u64, how: Zeroes, explicit: bool) -> Result<()> {
        if explicit && at < end && how != Zeroes::Allocate && self.zeroes_by_entry(how) {
            let unit = self.geometry().subcluster_size();
            let start = at & !unit.wrapping_sub(1);
            let stop = start.plus(unit)?.min(self.size);
            let cluster = start >> self.geometry().cluster_bits();
            // So that nobody writes into the unit between the look at it and its new entry.
            let _claim = self.claims.take(cluster..cluster.plus(1)?);
            let piece = self.piece(start, stop.minus(start)?)?;
            if matches!(piece.kind, PieceKind::Below | PieceKind::Zero)
                && self.reads_as_zeros(start, at)?
                && self.reads_as_zeros(end, stop)?
            {
                return self.zero_claimed(start..stop, how, explicit).map(drop);
            }
        }
        self.write_zeros(at, end, how)
    }

    fn reads_as_zeros(&self, at: u64, end: u64) -> Result<bool> {
        let (mut at, mut bytes) = (at, Vec::new());
        while at < end {
            let next = (at | ZEROS.wrapping_sub(1)).plus(1)?.min(end);
            bytes.resize(to_usize(next.minus(at)?), 0);
            self.read(&mut bytes, at)?;
            if !is_zero(&bytes) {
                return Ok(false);
            }
            at = next;
        }
        Ok(true)
    }

    /// In a data file every cluster has its place; zeros are written there, whatever else is asked for,
    /// because a raw one is also read by itself.
    pub(super) fn zero_data_file(&self, at: u64, end: u64, how: Zeroes) -> Result<()> {
        let mut at = at;
        while at < end {
            let piece = self.piece(at, end.minus(at)?)?;
            match piece.kind {
                PieceKind::Data { host, .. } => {
                    self.data()
                        .write_zeroes(host.0, piece.len, how)
                        .map_err(|error| Error::io("could not write zeros", error))?;
                }
                PieceKind::Zero if how != Zeroes::Allocate => {}
                _ => self.write_zeros(at, at.plus(piece.len)?, how)?,
            }
            at = at.plus(piece.len)?;
        }
        Ok(())
    }

    /// Writes zeros as data, except where it reads as zeros already and needs no place for them; explicit ones also
    /// where only what is below does.
    pub(super) fn write_zeros(&self, at: u64, end: u64, how: Zeroes) -> Result<()> {
        let mut at = at;
        let mut bytes = Vec::new();
        while at < end {
            let next = (at | ZEROS.wrapping_sub(1)).plus(1)?.min(end);
            bytes.resize(to_usize(next.minus(at)?), 0);
            self.read(&mut bytes, at)?;
            if how == Zeroes::Allocate || !is_zero(&bytes) || self.is_left_below(at, next)? {
                bytes.fill(0);
                self.write(&bytes, at)?;
            }
            at = next;
        }
        Ok(())
    }

    /// Whether zeros are to be explicit, and a part of this range is decided by a backing file.
    fn is_left_below(&self, at: u64, end: u64) -> Result<bool> {
        if !self.explicit_zeroes || self.below.len() == 0 {
            return Ok(false);
        }
        let mut at = at;
        while at < end {
            let piece = self.piece(at, end.minus(at)?)?;
            if piece.kind == PieceKind::Below {
                return Ok(true);
            }
            at = at.plus(piece.len)?;
        }
        Ok(false)
    }
}
