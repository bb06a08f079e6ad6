//! Images whose refcounts are all that there is of them.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test that overflows fails, as it should"
)]

use std::collections::{BTreeMap, BTreeSet};

use fixtures::pattern::Random;

use super::*;
use crate::ErrorKind;
use crate::exact::to_usize;
use crate::format::RefcountWidth;

/// The space of a file, and its refcount blocks on disk.
struct World {
    space: Space,
    width: RefcountWidth,
    geometry: Geometry,
    blocks: BTreeMap<u64, Vec<u8>>,
    /// What is counted.
    used: BTreeSet<u64>,
}

impl World {
    /// A file of `clusters` of 512 bytes, of which those are used that `used` says, the refcount table and its
    /// blocks, each of which lies in the range that it covers. Ranges without any have no block.
    fn new(order: u32, clusters: u64, fixed_end: Option<u64>, used: impl Fn(u64) -> bool) -> Self {
        let geometry = Geometry::new(9, false).unwrap();
        let width = RefcountWidth::new(order).unwrap();
        let per_block = width.entries_per_block(geometry);
        let mut table = vec![0; to_usize(clusters.div_ceil(per_block))];
        let table_len = geometry.clusters_for(table.len() as u64 * 8);
        table.resize(to_usize(table_len * 64), 0);
        let mut counted: BTreeSet<u64> = (0..=table_len).collect();
        counted.extend((0..clusters).filter(|cluster| used(*cluster)));
        let mut blocks = BTreeMap::new();
        for index in 0..clusters.div_ceil(per_block) {
            let range = index * per_block..((index + 1) * per_block).min(clusters);
            if counted.range(range.clone()).next().is_none() {
                continue;
            }
            let place = range.start.max(table_len + 1);
            counted.insert(place);
            table[to_usize(index)] = place * 512;
            let mut block = vec![0; 512];
            for cluster in counted.range(range) {
                width.set(&mut block, cluster % per_block, 1).unwrap();
            }
            blocks.insert(place * 512, block);
        }
        let counts = Counts::new(geometry, width, table, HostOffset(512)).unwrap();
        let space = Space::new(counts, geometry, clusters, fixed_end);
        Self { space, width, geometry, blocks, used: counted }
    }

    fn ask<T>(&mut self, mut ask: impl FnMut(&mut Space) -> Got<T>) -> crate::Result<T> {
        loop {
            match ask(&mut self.space) {
                Ok(answer) => return Ok(answer),
                Err(Need::Failed(error)) => return Err(error),
                Err(Need::Block(index, host)) => {
                    self.space.counts.loaded(index, host, self.blocks[&host.0].clone());
                }
            }
        }
    }

    /// A row of `len` clusters, none of which was used.
    fn row(&mut self, len: u64, from: u64) -> Range<u64> {
        let row = self.ask(|space| space.allocate_exactly(len, from)).unwrap();
        assert_eq!(row.end - row.start, len);
        assert!(row.start >= from);
        self.now_used(row.clone());
        row
    }

    fn now_used(&mut self, row: Range<u64>) {
        for cluster in row {
            assert!(self.used.insert(cluster), "cluster {cluster} was used");
        }
    }

    /// Every cluster that is used, and each of the refcounts' own, has a reference; gives the end of the last.
    fn end(&mut self) -> u64 {
        let blocks: Vec<u64> = self.space.counts.block_clusters().collect();
        self.used.extend(blocks);
        let table = self.space.counts.table_clusters().unwrap();
        self.used.extend(table);
        let left = self.space.left_table.clone();
        self.used.extend(left);
        let used: Vec<u64> = self.used.iter().copied().collect();
        let end = used.last().unwrap() + 1;
        let per_block = self.width.entries_per_block(self.geometry);
        for cluster in 0..end.next_multiple_of(per_block) {
            let count = self.ask(|space| space.counts.get(cluster)).unwrap();
            assert_eq!(count, u64::from(self.used.contains(&cluster)), "cluster {cluster}");
        }
        end
    }
}

#[test]
fn a_long_row_in_a_file_of_small_clusters_takes_little_more_than_itself() {
    for (order, clusters, len) in
        [(6, 4096, 40_000), (6, 4000, 4096), (4, 50_000, 70_000), (0, 9000, 9000)]
    {
        for holes in [0, 3, 50] {
            let what = format!("{} bits, {len} behind {clusters}, {holes} holes", 1 << order);
            let mut random = Random::new(order.into());
            let free: BTreeSet<u64> = (0..holes * 40).map(|_| random.below(clusters)).collect();
            let mut world = World::new(order, clusters, None, |cluster| !free.contains(&cluster));
            let row = world.row(len, 0);
            let end = world.end();
            // Its refcounts, and refcount tables that double.
            let blocks = (clusters + len) * 8 / 7 / world.width.entries_per_block(world.geometry);
            let most = clusters + len + blocks + blocks / 16 + 16;
            assert!(end <= most, "{what}: {row:?} of {end} clusters, {most} would do");
        }
    }
}

#[test]
fn rows_and_single_clusters_are_found_wherever_they_are_free_and_nothing_is_given_twice() {
    for seed in 0..40 {
        let mut random = Random::new(seed);
        let order = [0, 2, 3, 4, 5, 6][to_usize(random.below(6))];
        let (clusters, density) = (random.below(3000) + 20, random.below(64) + 1);
        let set: BTreeSet<u64> = (0..clusters).filter(|_| random.below(64) < density).collect();
        let mut world = World::new(order, clusters, None, |cluster| set.contains(&cluster));
        if seed % 3 == 0 {
            world.ask(|space| Ok(space.move_table()?)).unwrap();
        }
        let mut given: Vec<Range<u64>> = Vec::new();
        for _ in 0..60 {
            match random.below(4) {
                0 => given.push(world.row(random.below(40) + 1, 0)),
                1 => given.push(world.row(random.below(9) + 1, random.below(clusters))),
                2 => {
                    let most = random.below(20) + 1;
                    let row = world.ask(|space| space.allocate(most)).unwrap();
                    assert!(!row.is_empty() && row.end - row.start <= most);
                    world.now_used(row.clone());
                    given.push(row);
                }
                _ if given.is_empty() => {}
                _ => {
                    let row = given.swap_remove(to_usize(random.below(given.len() as u64)));
                    for cluster in row {
                        world.ask(|space| space.give_back(cluster)).unwrap();
                        world.used.remove(&cluster);
                    }
                }
            }
        }
        // What was given back is found again: no row of that length begins further down.
        let len = random.below(6) + 1;
        world.end();
        let used = world.used.clone();
        let row = world.row(len, 0);
        let new: BTreeSet<u64> = {
            world.end();
            world.used.difference(&used).copied().collect()
        };
        let lowest = (1..).find(|first| (*first..first + len).all(|at| !used.contains(&at)));
        // Refcounts of its own may lie before it.
        assert!(new.contains(&lowest.unwrap()), "seed {seed}: {row:?}, free from {lowest:?}");
    }
}

#[test]
fn a_row_that_is_dropped_is_where_the_next_one_goes() {
    let mut world = World::new(6, 4096, None, |_| true);
    world.space.counts.keep_before();
    let first = world.row(5000, 0);
    let mut rest = first.clone();
    while !rest.is_empty() {
        rest = world.ask(|space| space.shift(rest.clone(), 1, false)).unwrap();
    }
    let again = world.ask(|space| space.allocate_exactly(5100, 0)).unwrap();
    assert!(again.start < first.start + 10, "{first:?}, then {again:?}");
}

#[test]
fn a_refcount_table_moves_although_nothing_is_free_within_its_reach() {
    for clusters in 4090..4098 {
        let mut world = World::new(6, clusters, None, |_| true);
        world.ask(|space| Ok(space.move_table()?)).unwrap();
        world.row(1, 0);
        world.end();
    }
}

/// A device has no room for a longer refcount table. What was begun of it must not be written behind the old one.
#[test]
fn a_refcount_table_that_cannot_become_longer_is_not_written_past_its_place() {
    for end in 4090..4100 {
        let mut world = World::new(6, 4085, Some(end), |_| true);
        let error = loop {
            match world.ask(|space| space.allocate(1)) {
                Ok(row) => world.now_used(row),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
        let table = world.space.counts.table_clusters().unwrap();
        for put in world.space.counts.freeze().unwrap().changed {
            let range = put.offset / 512..(put.offset + put.bytes.len() as u64).div_ceil(512);
            let block = world.blocks.contains_key(&(range.start * 512));
            let header = range == (0..1) && table.start != 1;
            let within = table.start <= range.start && range.end <= table.end;
            assert!(block || within || header, "{range:?} is written, the table is {table:?}");
        }
    }
}

/// W-72: the last place that the table, or an entry, can name ends the file with an error; nothing is given out behind it
/// or anew from the beginning.
#[test]
fn w_72_behind_the_last_cluster_that_can_be_named_there_is_an_error_and_no_wrap() {
    // The longest refcount table ends before the longest offset, and the other way round.
    for (cluster_bits, last) in [(16, (1 << 33) - 1), (21, (1 << 35) - 1)] {
        let geometry = Geometry::new(cluster_bits, false).unwrap();
        let width = RefcountWidth::new(6).unwrap();
        let per_block = width.entries_per_block(geometry);
        let entries = (1 << 20).min((last + 1) / per_block + 4);
        let counts =
            Counts::new(geometry, width, vec![1 << 40; to_usize(entries)], HostOffset(1 << 30));
        let mut space = Space::new(counts.unwrap(), geometry, last, None);
        space.low_water_mark = last - 1;
        // All blocks but the ones behind the last place say that nothing is used.
        let mut ask = |most: u64| loop {
            match space.allocate(most) {
                Ok(row) => return Ok(row),
                Err(Need::Failed(error)) => return Err(error),
                Err(Need::Block(index, host)) => {
                    assert!(index >= last / per_block, "it looks in block {index}");
                    space.counts.loaded(index, host, vec![0; to_usize(geometry.cluster_size())]);
                }
            }
        };
        assert_eq!(ask(1).unwrap(), last - 1..last, "{cluster_bits}");
        assert_eq!(ask(1).unwrap(), last..last + 1, "{cluster_bits}");
        for most in [1, 5] {
            assert_eq!(ask(most).unwrap_err().kind(), ErrorKind::Limit, "{cluster_bits}");
        }
        assert_eq!(space.low_water_mark, last + 1);
    }
}
