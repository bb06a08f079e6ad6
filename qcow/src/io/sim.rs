//! A storage for tests of code that writes: it remembers every call, fails where it is told to, and
//! gives what a crash at any moment may leave.
//!
//! The model of a crash: what was written before the last completed [`sync`](WriteStorage::sync) is on
//! the disk. Of what was written since, each sector of 512 bytes has any of the contents that it had in
//! the meantime, independently of the others; so writes may be lost, torn and reordered. The length is
//! one of those that the file had in the meantime.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    reason = "a simulation that overflows stops a test, as it should"
)]

#[cfg(test)]
pub(crate) mod files;

use std::collections::BTreeMap;
use std::io::{Error, Result};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Capabilities, Storage, WriteStorage, Zeroes};

/// What a disk writes whole.
const SECTOR: usize = 512;

/// A call that changed a [`SimStorage`], or a completed sync.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// These bytes were written at this offset. Zeroed and discarded ranges are writes of zeros.
    Write(Vec<u8>, u64),
    /// The length was set.
    SetLen(u64),
    /// What came before is durable.
    Sync,
}

/// A failure to simulate; see [`SimStorage::fail`].
#[derive(Debug, Clone, Copy)]
pub struct Failure {
    /// The number of the changing call or sync that fails, from 0 on.
    pub call: u64,
    /// The system's number of the error.
    pub errno: i32,
    /// Bytes that a failing write has written all the same.
    pub written: usize,
    /// Whether all later changing calls and syncs fail as well, as on a disk that is gone or full.
    pub for_good: bool,
}

/// What a crash left, and which crash it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crash {
    /// The bytes of the storage.
    pub bytes: Vec<u8>,
    /// In words: for the message of a failing test.
    pub moment: String,
}

/// A storage in memory whose history is known.
#[derive(Debug)]
pub struct SimStorage(Mutex<State>);

#[derive(Debug)]
struct State {
    start: Vec<u8>,
    now: Vec<u8>,
    events: Vec<Event>,
    calls: u64,
    failure: Option<Failure>,
}

impl SimStorage {
    /// A storage that durably holds `bytes`.
    pub fn new(bytes: Vec<u8>) -> Self {
        let now = bytes.clone();
        Self(Mutex::new(State { start: bytes, now, events: Vec::new(), calls: 0, failure: None }))
    }

    /// Lets a call fail.
    pub fn fail(&self, failure: Failure) {
        self.state().failure = Some(failure);
    }

    /// What happened so far, without calls that failed (a failed write is there as far as it went).
    pub fn events(&self) -> Vec<Event> {
        self.state().events.clone()
    }

    /// Changing calls and syncs so far, failed ones included.
    pub fn calls(&self) -> u64 {
        self.state().calls
    }

    /// What a reader sees now.
    pub fn bytes(&self) -> Vec<u8> {
        self.state().now.clone()
    }

    /// What crashes may have left: for each stretch between two syncs the states after each call, with
    /// each call alone, with all but one, and with half of one; and `random` states drawn from all that
    /// are possible there, the same for the same `seed`.
    pub fn crashes(&self, seed: u64, random: usize) -> impl Iterator<Item = Crash> + use<> {
        self.epochs().into_iter().flat_map(move |epoch| {
            let seed = seed ^ (epoch.number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            epoch.crashes(seed, random)
        })
    }

    /// One of the states that a crash now may leave, the same for the same `seed`.
    pub fn crash(&self, seed: u64) -> Crash {
        let epochs = self.epochs();
        let epoch = &epochs[epochs.len() - 1];
        epoch.drawn(&epoch.versions(), &mut Numbers(seed), 0)
    }

    /// The stretches between syncs; the last one may be empty.
    fn epochs(&self) -> Vec<Epoch> {
        let state = self.state();
        let mut durable = state.start.clone();
        let mut epochs = Vec::new();
        for (number, calls) in state.events.split(|event| *event == Event::Sync).enumerate() {
            let epoch = Epoch { number, durable: durable.clone(), calls: calls.to_vec() };
            calls.iter().for_each(|call| apply(&mut durable, call));
            epochs.push(epoch);
        }
        epochs
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries out a changing call, or lets it fail.
    fn change(&self, event: Event) -> Result<()> {
        let mut state = self.state();
        let call = state.calls;
        state.calls += 1;
        let failure = state.failure;
        let failing = failure
            .filter(|failure| failure.call == call || failure.for_good && failure.call < call);
        let Some(failure) = failing else {
            apply(&mut state.now, &event);
            state.events.push(event);
            return Ok(());
        };
        if let Event::Write(mut bytes, offset) = event
            && failure.call == call
            && failure.written > 0
        {
            bytes.truncate(failure.written);
            let event = Event::Write(bytes, offset);
            apply(&mut state.now, &event);
            state.events.push(event);
        }
        Err(Error::from_raw_os_error(failure.errno))
    }
}

/// What happened between two syncs.
struct Epoch {
    number: usize,
    durable: Vec<u8>,
    calls: Vec<Event>,
}

impl Epoch {
    fn crashes(&self, seed: u64, random: usize) -> Vec<Crash> {
        let (count, number) = (self.calls.len(), self.number);
        let with = |moment: String, calls: &mut dyn Iterator<Item = Event>| {
            let mut bytes = self.durable.clone();
            calls.for_each(|call| apply(&mut bytes, &call));
            Crash { bytes, moment: format!("epoch {number}, {moment}") }
        };
        let calls = || self.calls.iter().cloned();
        let mut crashes = Vec::new();
        for n in 0..=count {
            crashes.push(with(format!("after {n} of {count} calls"), &mut calls().take(n)));
        }
        for n in 0..count {
            crashes.push(with(format!("call {n} alone"), &mut calls().skip(n).take(1)));
            let others = calls().take(n).chain(calls().skip(n + 1));
            crashes.push(with(format!("without call {n}"), &mut { others }));
            for (half, name) in halves(&self.calls[n]).into_iter().zip(["first", "last"]) {
                let torn = calls().take(n).chain([half]);
                crashes.push(with(format!("the {name} half of call {n}"), &mut { torn }));
            }
        }
        if count > 0 {
            let mut numbers = Numbers(seed);
            let versions = self.versions();
            crashes.extend((0..random).map(|draw| self.drawn(&versions, &mut numbers, draw)));
        }
        crashes
    }

    /// For each sector that was written, and the length, what it was in the meantime.
    fn versions(&self) -> (BTreeMap<usize, Vec<[u8; SECTOR]>>, Vec<usize>) {
        let mut now = self.durable.clone();
        let (mut sectors, mut lengths) = (BTreeMap::new(), vec![now.len()]);
        for call in &self.calls {
            let touched = match call {
                Event::Write(bytes, offset) => {
                    let start = *offset as usize;
                    start / SECTOR..(start + bytes.len()).div_ceil(SECTOR)
                }
                _ => 0..0,
            };
            for index in touched.clone() {
                sectors.entry(index).or_insert_with(|| vec![sector(&now, index)]);
            }
            apply(&mut now, call);
            for (index, versions) in sectors.range_mut(touched) {
                versions.push(sector(&now, *index));
            }
            lengths.push(now.len());
        }
        (sectors, lengths)
    }

    fn drawn(
        &self,
        (sectors, lengths): &(BTreeMap<usize, Vec<[u8; SECTOR]>>, Vec<usize>),
        numbers: &mut Numbers,
        draw: usize,
    ) -> Crash {
        let mut bytes = self.durable.clone();
        let len = lengths[numbers.below(lengths.len())];
        bytes.resize(len.max(bytes.len()), 0);
        for (index, versions) in sectors {
            let version = versions[numbers.below(versions.len())];
            let start = (index * SECTOR).min(bytes.len());
            let end = (start + SECTOR).min(bytes.len());
            bytes[start..end].copy_from_slice(&version[..end - start]);
        }
        bytes.truncate(len);
        Crash { bytes, moment: format!("epoch {}, draw {draw}", self.number) }
    }
}

fn apply(image: &mut Vec<u8>, event: &Event) {
    match event {
        Event::Write(bytes, offset) => {
            let start = *offset as usize;
            image.resize(image.len().max(start + bytes.len()), 0);
            image[start..start + bytes.len()].copy_from_slice(bytes);
        }
        Event::SetLen(len) => image.resize(*len as usize, 0),
        Event::Sync => {}
    }
}

/// A write torn in the middle, at the border of a sector: its first and its last half.
fn halves(call: &Event) -> Vec<Event> {
    let Event::Write(bytes, offset) = call else { return Vec::new() };
    let middle = (*offset as usize + bytes.len() / 2).next_multiple_of(SECTOR) - *offset as usize;
    if middle >= bytes.len() {
        return Vec::new();
    }
    let (first, last) = bytes.split_at(middle);
    vec![Event::Write(first.to_vec(), *offset), Event::Write(last.to_vec(), offset + middle as u64)]
}

fn sector(image: &[u8], index: usize) -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    let bytes = image.get(index * SECTOR..).unwrap_or_default();
    let len = bytes.len().min(SECTOR);
    sector[..len].copy_from_slice(&bytes[..len]);
    sector
}

/// Numbers that look random and are the same for the same seed (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.0;
        number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (number ^ number >> 31) as usize % limit
    }
}

impl Storage for SimStorage {
    fn len(&self) -> u64 {
        self.state().now.len() as u64
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let state = self.state();
        let source = state.now.get(offset as usize..).unwrap_or_default();
        let len = source.len().min(buf.len());
        buf[..len].copy_from_slice(&source[..len]);
        Ok(len)
    }
}

impl WriteStorage for SimStorage {
    fn capabilities(&self) -> Capabilities {
        Capabilities { resize: true, unmap: true }
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.change(Event::Write(bytes.to_vec(), offset))
    }

    fn write_zeroes(&self, offset: u64, len: u64, _: Zeroes) -> Result<()> {
        self.change(Event::Write(vec![0; len as usize], offset))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let there = self.len().saturating_sub(offset).min(len);
        self.change(Event::Write(vec![0; there as usize], offset))
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.change(Event::SetLen(len))
    }

    fn sync(&self) -> Result<()> {
        self.change(Event::Sync)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn written() -> SimStorage {
        let storage = SimStorage::new(vec![0; 2048]);
        storage.write_at(&[1; 1024], 0).unwrap();
        storage.write_at(&[2; 512], 512).unwrap();
        storage.sync().unwrap();
        storage.write_at(&[3; 8], 1024).unwrap();
        storage
    }

    #[test]
    fn crashes_lose_tear_and_reorder_what_was_not_synced() {
        let states: HashSet<Vec<u8>> = written()
            .crashes(1, 50)
            .map(|crash| crash.bytes.chunks(512).map(|s| s[0]).collect())
            .collect();
        // Before the sync any version of each of two sectors; after it only the third is open.
        let mut expected: HashSet<Vec<u8>> = HashSet::new();
        for (first, second) in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)] {
            expected.insert(vec![first, second, 0, 0]);
        }
        expected.insert(vec![1, 2, 3, 0]);
        assert_eq!(states, expected);
    }

    #[test]
    fn the_same_seed_gives_the_same_crashes() {
        let crashes = |seed| written().crashes(seed, 20).collect::<Vec<_>>();
        assert_eq!(crashes(7), crashes(7));
        assert_ne!(crashes(7), crashes(8));
    }

    #[test]
    fn a_call_fails_where_it_is_told_to_and_leaves_what_it_wrote() {
        for for_good in [false, true] {
            let storage = SimStorage::new(vec![0; 512]);
            storage.fail(Failure { call: 1, errno: 28, written: 2, for_good });
            storage.write_at(&[1; 4], 0).unwrap();
            let error = storage.write_at(&[2; 4], 4).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
            assert_eq!(storage.bytes()[..8], [1, 1, 1, 1, 2, 2, 0, 0]);
            assert_eq!(storage.sync().is_ok(), !for_good);
            assert_eq!(storage.calls(), 3);
        }
    }
}
