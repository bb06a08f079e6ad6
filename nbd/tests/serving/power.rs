//! Power cuts: several clients write to one disk through the server, and every state that a crash at any moment can
//! leave is judged.
//!
//! What a crash must leave: what was answered before a flush was asked for, by any connection, once the flush was
//! answered; what was asked for with FUA, once it was answered; else what was there before, or anything later.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;

use fixtures::pattern::Random;
use fixtures::{Scratch, needs_qemu, qemu, try_qemu_img};
use nbd::wire::{Command, CommandFlags, Errno};
use nbd::{Backend, Context, DiskBackend, Export, Extents, Failed};
use qcow::chain::{Chain, Format};
use qcow::disk::{Disk, WriteOptions};
use qcow::format::GuestOffset;
use qcow::image::Image;
use qcow::io::sim::{Crash, Event, SimStorage};
use qcow::io::{MemoryStorage, Storage};
use qcow::ops::check::{CheckOptions, check_storage};
use qcow::{CancelToken, Silent};

use crate::client::Client;
use crate::{ALL, server};

const SECTOR: usize = 512;
const SIZE: usize = 150 << 10;
/// Clients take turns in pieces of this length: no multiple of a cluster, so that they meet in clusters.
const PIECE: usize = 5 * SECTOR;
/// Requests of each client.
const REQUESTS: usize = 24;
/// Random states for each stretch between two syncs.
const DRAWN: usize = 8;
/// Every so many crashes QEMU judges too.
const SAMPLE: usize = 100;

/// How an image is made.
struct Kind {
    options: &'static str,
    /// Over a raw backing file, which is shorter than the disk.
    base: bool,
    before: &'static [&'static str],
    snapshot: bool,
    bitmap: bool,
}

const PLAIN: Kind = Kind {
    options: "cluster_size=4k",
    base: false,
    before: &["write -P 201 8k 20k"],
    snapshot: false,
    bitmap: false,
};

/// No image: the disk's bytes.
const RAW: Kind = Kind { options: "raw", ..PLAIN };

const KINDS: [Kind; 7] = [
    PLAIN,
    RAW,
    Kind { options: "cluster_size=64k", ..PLAIN },
    Kind { options: "cluster_size=512", snapshot: true, ..PLAIN },
    Kind { options: "cluster_size=16k,extended_l2=on", base: true, snapshot: true, ..PLAIN },
    Kind { options: "compat=0.10,cluster_size=4k", base: true, ..PLAIN },
    Kind { before: &["write -c -P 202 4k 4k", "write -P 201 8k 20k"], bitmap: true, ..PLAIN },
];

impl Kind {
    fn is_raw(&self) -> bool {
        self.options == RAW.options
    }

    fn format(&self) -> Format {
        if self.is_raw() { Format::Raw } else { Format::Qcow2 }
    }
}

/// An image, and what it is backed by.
struct Made {
    kind: &'static Kind,
    scratch: Scratch,
    image: Vec<u8>,
}

impl Made {
    fn new(kind: &'static Kind) -> Self {
        let scratch = Scratch::new();
        if kind.is_raw() {
            let image = (0..SIZE).map(|at| (at / SECTOR % 40 + 210) as u8).collect();
            return Self { kind, scratch, image };
        }
        let path = scratch.path("image.qcow2");
        let base: Vec<u8> = (0..100_000).map(|at| (at / SECTOR % 40 + 210) as u8).collect();
        let base = scratch.file("base.raw", &base);
        let mut options = kind.options.to_owned();
        if kind.base {
            options = format!("{options},backing_file={},backing_fmt=raw", base.display());
        }
        qemu::create(&path, &options, &SIZE.to_string());
        qemu::qemu_io("qcow2", &path, kind.before);
        if kind.snapshot {
            qemu::qemu_img(&["snapshot", "-c", "one", path.to_str().unwrap()]);
        }
        if kind.bitmap {
            qemu::qemu_img(&["bitmap", "--add", "-g", "2048", path.to_str().unwrap(), "b0"]);
        }
        let image = std::fs::read(path).unwrap();
        Self { kind, scratch, image }
    }

    fn base(&self) -> Option<Arc<MemoryStorage>> {
        let read = || std::fs::read(self.scratch.path("base.raw")).unwrap();
        self.kind.base.then(|| Arc::new(MemoryStorage::new(read())))
    }

    fn open(&self, storage: Arc<SimStorage>) -> Disk {
        let mut options = WriteOptions::new();
        if let Some(base) = self.base() {
            let chain = Chain::builder().layer("base", base, Format::Raw).open().unwrap();
            options = options.backing(chain);
        }
        Disk::from_storage(storage, self.kind.format(), options).unwrap()
    }

    fn content(&self, image: &[u8]) -> Vec<u8> {
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new(image.to_vec()));
        let mut chain = Chain::builder().layer("image", storage, self.kind.format());
        if let Some(base) = self.base() {
            chain = chain.layer("base", base, Format::Raw);
        }
        let mut bytes = vec![0; SIZE];
        chain.open().unwrap().read_at(&mut bytes, GuestOffset(0)).unwrap();
        bytes
    }
}

/// A moment: how many requests had been sent or answered, and how many syncs were done.
#[derive(Clone, Copy)]
struct Moment {
    position: usize,
    syncs: usize,
}

/// A request, from before it was sent until after it was answered.
struct Asked {
    /// Sectors, and what they became.
    effect: Option<(Range<usize>, u8)>,
    flush: bool,
    fua: bool,
    sent: Moment,
    answered: Moment,
}

/// What happens to an image.
struct Clock {
    storage: Arc<SimStorage>,
    positions: AtomicUsize,
}

impl Clock {
    fn now(&self) -> Moment {
        let position = self.positions.fetch_add(1, SeqCst);
        let events = self.storage.events();
        let syncs = events.iter().filter(|event| **event == Event::Sync).count();
        Moment { position, syncs }
    }
}

/// One client: writes, zeroing and flushes in pieces that are its own.
fn write(mut client: Client, number: usize, seed: u64, clock: &Clock, asked: &Mutex<Vec<Asked>>) {
    let mut random = Random::new(seed ^ (number as u64) << 32);
    let mut below = |bound: usize| random.below(bound as u64) as usize;
    for count in 0..REQUESTS {
        let piece = (below(SIZE / PIECE / 3) * 3 + number) * PIECE;
        let skip = below(PIECE / SECTOR);
        let len = (below(PIECE / SECTOR - skip) + 1) * SECTOR;
        let at = piece + skip * SECTOR;
        let fua = below(6) == 0;
        let flags = if fua { CommandFlags::FUA } else { CommandFlags::empty() };
        let value = (number * 50 + count + 1) as u8;
        let kind = below(10);
        let sent = clock.now();
        let value = match kind {
            0..=5 => {
                let cookie = client.ask_write(flags, at as u64, &vec![value; len]);
                client.answer(cookie, 0, 0).unwrap();
                Some(value)
            }
            6 | 7 => {
                let keep = if kind == 6 { CommandFlags::NO_HOLE } else { CommandFlags::empty() };
                let zeroes = Command::WriteZeroes;
                client.change(zeroes, flags | keep, at as u64, len as u64).unwrap();
                Some(0)
            }
            _ => {
                client.change(Command::Flush, CommandFlags::empty(), 0, 0).unwrap();
                None
            }
        };
        let answered = clock.now();
        let effect = value.map(|value| (at / SECTOR..(at + len) / SECTOR, value));
        let flush = effect.is_none();
        let fua = fua && !flush;
        asked.lock().unwrap().push(Asked { effect, flush, fua, sent, answered });
    }
    client.leave();
}

/// Has three clients write, and judges all crashes: the first thing that is wrong.
fn run(made: &Made, seed: u64, behind: impl Fn(Disk) -> Box<dyn Backend>) -> Result<(), String> {
    let storage = Arc::new(SimStorage::new(made.image.clone()));
    let server = server(Export::new("disk", behind(made.open(Arc::clone(&storage)))));
    let clock = Clock { storage: Arc::clone(&storage), positions: AtomicUsize::new(0) };
    let asked = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for (number, headers) in ALL.into_iter().enumerate() {
            let client = Client::of(&server, headers, "", &[]);
            let (clock, asked) = (&clock, &asked);
            scope.spawn(move || write(client, number, seed, clock, asked));
        }
    });
    let mut asked = asked.into_inner().unwrap();
    // What the server does when it ends is a flush.
    let sent = clock.now();
    Arc::into_inner(server).unwrap().close().unwrap();
    asked.push(Asked { effect: None, flush: true, fua: false, sent, answered: clock.now() });
    asked.sort_by_key(|asked| asked.sent.position);
    let start = made.content(&made.image);
    let mut seen = HashSet::new();
    for (number, crash) in storage.crashes(seed, DRAWN).enumerate() {
        if seen.insert(crash.bytes.clone()) {
            judge(made, &start, &asked, &crash)?;
            if number % SAMPLE == 0 && !made.kind.is_raw() {
                judge_by_qemu(made, &crash)?;
            }
        }
    }
    assert!(seen.len() > 100, "{} states", seen.len());
    Ok(())
}

/// The image has leaks at most.
fn judge_structure(made: &Made, crash: &Crash) -> Result<(), String> {
    if made.kind.is_raw() {
        return Ok(());
    }
    let image = Arc::new(MemoryStorage::new(crash.bytes.clone()));
    let options = CheckOptions::default().threads(1);
    let found = check_storage(image, &options, &Silent, &CancelToken::new()).unwrap();
    if (found.corruptions, found.check_errors) != (0, 0) {
        return Err(format!("{:?}", found.findings));
    }
    Ok(())
}

fn judge(made: &Made, start: &[u8], asked: &[Asked], crash: &Crash) -> Result<(), String> {
    let what = format!("{}, {}", made.kind.options, crash.moment);
    judge_structure(made, crash).map_err(|error| format!("{what}: {error}"))?;
    let epoch = crash.moment["epoch ".len()..].split(',').next().unwrap();
    let epoch: usize = epoch.parse().unwrap();
    let flushes = asked.iter().filter(|asked| asked.flush && asked.answered.syncs <= epoch);
    let flushed = flushes.map(|flush| flush.sent.position).max().unwrap_or(0);
    let mut allowed: Vec<Vec<Option<u8>>> = vec![vec![None]; SIZE / SECTOR];
    for request in asked.iter().filter(|asked| asked.sent.syncs <= epoch) {
        let Some((sectors, value)) = &request.effect else { continue };
        let durable =
            request.answered.position < flushed || request.fua && request.answered.syncs <= epoch;
        for values in &mut allowed[sectors.clone()] {
            if durable {
                values.clear();
            }
            values.push(Some(*value));
        }
    }
    let found = made.content(&crash.bytes);
    for (sector, values) in allowed.iter().enumerate() {
        let place = sector * SECTOR..(sector + 1) * SECTOR;
        let (bytes, start) = (&found[place.clone()], &start[place]);
        let fits = |value: &Option<u8>| match value {
            Some(value) => bytes.iter().all(|byte| byte == value),
            None => bytes == start,
        };
        if !values.iter().any(fits) {
            let has = bytes[0];
            return Err(format!("{what}: sector {sector} has {has}, allowed are {values:?}"));
        }
    }
    judge_bitmap(made, &crash.bytes, start, &found).map_err(|error| format!("{what}: {error}"))
}

/// A bitmap that counts as stored marks all that differs from when it was made.
fn judge_bitmap(made: &Made, image: &[u8], start: &[u8], found: &[u8]) -> Result<(), String> {
    if !made.kind.bitmap {
        return Ok(());
    }
    let image = Image::open(Arc::new(MemoryStorage::new(image.to_vec()))).unwrap();
    let bitmap = image.bitmap(b"b0").unwrap();
    // In use: whoever makes the next backup is told that it has to be a full one.
    let Ok(ranges) = bitmap.dirty_ranges() else { return Ok(()) };
    let mut clean = vec![true; SIZE / SECTOR];
    for range in ranges {
        let range = range.unwrap();
        let end = (range.end.0 as usize).min(SIZE).div_ceil(SECTOR);
        clean[range.start.0 as usize / SECTOR..end].fill(false);
    }
    let lacks = (0..SIZE / SECTOR).find(|sector| {
        let place = sector * SECTOR..(sector + 1) * SECTOR;
        clean[*sector] && found[place.clone()] != start[place]
    });
    lacks.map_or(Ok(()), |sector| Err(format!("the bitmap lacks sector {sector}")))
}

/// QEMU finds leaks at most, and reads the same.
fn judge_by_qemu(made: &Made, crash: &Crash) -> Result<(), String> {
    let path = made.scratch.file("crashed.qcow2", &crash.bytes);
    let image = path.to_str().unwrap();
    if let Err(error) = try_qemu_img(&["check", "-q", image])
        && !error.starts_with("exit status: 3")
    {
        return Err(format!("{}: qemu-img check: {error}", crash.moment));
    }
    if qemu::raw_of("qcow2", &path) != made.content(&crash.bytes) {
        return Err(format!("{}: qemu-img reads something else", crash.moment));
    }
    Ok(())
}

#[test]
fn a_power_cut_leaves_what_any_client_flushed_or_wrote_with_fua() {
    needs_qemu!();
    for (seed, kind) in (0..).zip(&KINDS) {
        run(&Made::new(kind), seed, |disk| Box::new(DiskBackend::new(disk))).unwrap();
    }
}

/// A disk that forgets its flushes.
#[derive(Debug)]
struct Forgetful(DiskBackend);

impl Backend for Forgetful {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn can_write(&self) -> bool {
        true
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> Result<(), Failed> {
        self.0.read_at(buf, at)
    }

    fn extents(&self, _: &Context, _: u64, _: u64, _: &mut Extents) -> Result<(), Failed> {
        Err(Failed::new(Errno::Invalid, "nobody asks"))
    }

    fn write_at(&self, buf: &[u8], at: u64) -> Result<(), Failed> {
        self.0.write_at(buf, at)
    }

    fn write_zeroes(&self, at: u64, len: u64, how: nbd::Zero) -> Result<(), Failed> {
        self.0.write_zeroes(at, len, how)
    }

    fn close(self: Box<Self>) -> qcow::Result<()> {
        Box::new(self.0).close()
    }
}

#[test]
fn a_server_that_answered_flushes_without_flushing_would_be_found_out() {
    needs_qemu!();
    let made = Made::new(&PLAIN);
    let found = run(&made, 0, |disk| Box::new(Forgetful(DiskBackend::new(disk))));
    assert!(found.unwrap_err().contains("allowed are"));
}
