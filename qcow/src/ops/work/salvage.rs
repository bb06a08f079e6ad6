//! What an operation that goes on past damage could not read: a list of bounded length, the same for any
//! number of threads.

use serde::Serialize;

use crate::extent::Damage;
use crate::sync::{Mutex, lock};

/// No more ranges than this are listed; the rest is counted.
const LISTED: usize = 1000;

/// What could not be read, and is zeros in what was written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct DamageReport {
    /// Bytes of the guest's disk in all ranges, listed or not.
    pub bytes: u64,
    /// The first ranges, in ascending order, at most 1000.
    pub ranges: Vec<Damage>,
    /// Ranges that are not listed.
    pub ranges_left_out: u64,
}

/// Collects damage while an operation runs. What the tables do not tell is found by whoever cuts the
/// disk into items, what cannot be read by the workers; both bring it in the order of the disk.
#[derive(Debug, Default)]
pub(in crate::ops) struct Salvage {
    tables: Mutex<Losses>,
    data: Mutex<Losses>,
}

impl Salvage {
    /// What the tables do not tell. The caller brings it in the order of the disk.
    pub(in crate::ops) fn add_tables(&self, damage: Vec<Damage>) {
        lock(&self.tables).extend(damage);
    }

    /// What could not be read. The caller brings it in the order of the disk.
    pub(in crate::ops) fn add_data(&self, damage: Vec<Damage>) {
        lock(&self.data).extend(damage);
    }

    /// All of it.
    pub(in crate::ops) fn report(&self) -> DamageReport {
        let (tables, data) = (lock(&self.tables), lock(&self.data));
        let mut ranges: Vec<_> = tables.listed.iter().chain(&data.listed).cloned().collect();
        ranges.sort_by_key(|damage| damage.guest_offset);
        let all = tables.count.saturating_add(data.count);
        ranges.truncate(LISTED);
        DamageReport {
            bytes: tables.bytes.saturating_add(data.bytes),
            ranges_left_out: all.saturating_sub(ranges.len() as u64),
            ranges,
        }
    }
}

/// Ranges in ascending order; neighbours of one kind are one.
#[derive(Debug, Default)]
struct Losses {
    listed: Vec<Damage>,
    /// The last range, if there was no room for it in the list.
    unlisted: Option<Damage>,
    count: u64,
    bytes: u64,
}

impl Losses {
    fn extend(&mut self, damage: Vec<Damage>) {
        for next in damage {
            self.bytes = self.bytes.saturating_add(next.length);
            let last = self.unlisted.as_mut().or(self.listed.last_mut());
            if let Some(last) = last
                && last.continues_in(&next)
            {
                last.length = last.length.saturating_add(next.length);
                continue;
            }
            self.count = self.count.saturating_add(1);
            if self.listed.len() < LISTED {
                self.listed.push(next);
            } else {
                self.unlisted = Some(next);
            }
        }
    }
}
