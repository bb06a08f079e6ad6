//! Random reads and writes of 4 KiB as a virtual machine monitor does them: the disk says where the data lies, and a ring
//! of the program's own moves it, with no lock of the disk's held.
//! `cargo run --release --example io_uring -- disk.qcow2 100000`, which writes all over the disk.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use io_uring::{IoUring, opcode, types};
use qcow::chain::OpenOptions;
use qcow::disk::steps::{MappedRange, PreparedWrite};
use qcow::disk::{Disk, RangeKind, WriteOptions};

const BLOCK: u64 = 4096;
/// Requests in flight.
const DEPTH: u32 = 32;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args_os().skip(1);
    let image = arguments.next().ok_or("usage: io_uring IMAGE [REQUESTS]")?;
    let requests = match arguments.next() {
        Some(number) => number.to_str().ok_or("REQUESTS is a number")?.parse()?,
        None => 10_000,
    };
    run(Path::new(&image), requests).map(drop)
}

/// What is in flight: its places are the request's own until it is dropped or committed.
enum Flight<'a> {
    Read(MappedRange<'a>),
    Write(PreparedWrite<'a>),
}

/// Sends requests, half of them reads. Each block that is written says where it is, and what is read must be such a block
/// or zeros. Returns how many blocks were written.
pub(crate) fn run(image: &Path, requests: u64) -> Result<u64, Failure> {
    let disk = Disk::open(image, &OpenOptions::default(), WriteOptions::new())?;
    let file = disk.data_storage().as_file().ok_or("the image is not a file")?;
    let descriptor = file.as_fd().try_clone_to_owned()?;
    let blocks = disk.size().checked_div(BLOCK).filter(|blocks| *blocks > 0);
    let blocks = blocks.ok_or("the disk is smaller than a block")?;
    // Declared before the ring, and so dropped after it: the ring ends when all its transfers have.
    let mut flights: HashMap<u64, (u64, Flight<'_>)> = HashMap::new();
    let mut ring = Ring::new(descriptor)?;
    let (mut sent, mut written, mut seed) = (0u64, 0u64, 42u64);
    while sent < requests || !flights.is_empty() {
        while sent < requests && flights.len() < DEPTH as usize {
            let at = random(&mut seed).checked_rem(blocks).unwrap_or(0).wrapping_mul(BLOCK);
            if random(&mut seed).is_multiple_of(2) {
                let mapped = disk.map(at, BLOCK)?;
                match mapped.ranges() {
                    [range] if matches!(range.kind, RangeKind::Data { .. }) => {
                        let RangeKind::Data { host } = range.kind else { continue };
                        ring.read(sent, vec![0; 4096], host.0)?;
                        flights.insert(sent, (at, Flight::Read(mapped)));
                    }
                    // Zeros, compressed, or of the backing file, or partly so.
                    _ => {
                        let mut bytes = vec![0; 4096];
                        disk.read_at(&mut bytes, at)?;
                        check(&bytes, at)?;
                    }
                }
            } else {
                // Another of our own writes is making a place for this block's cluster: end one first.
                let Some(write) = disk.prepare_write(at, BLOCK)? else { break };
                match write.places() {
                    [place] => ring.write(sent, block(at), place.host.0)?,
                    // A block that is not in one piece is not worth more code here.
                    _ => return Err("the clusters are smaller than a block".into()),
                }
                flights.insert(sent, (at, Flight::Write(write)));
                written = written.wrapping_add(1);
            }
            sent = sent.wrapping_add(1);
        }
        for (number, bytes, result) in ring.wait()? {
            let Some((at, flight)) = flights.remove(&number) else { continue };
            let moved = usize::try_from(result)
                .map_err(|_| std::io::Error::from_raw_os_error(result.wrapping_neg()))?;
            match flight {
                Flight::Write(write) if moved == bytes.len() => write.commit()?,
                Flight::Write(_) => return Err("a block was written in part".into()),
                // What is missing is past the end of the file: zeros, which are there already.
                Flight::Read(mapped) => {
                    drop(mapped); // from here on its place may become another's
                    check(&bytes, at)?;
                }
            }
        }
    }
    drop(ring);
    drop(flights);
    disk.close()?;
    println!("{requests} requests, {written} of them writes");
    Ok(written)
}

/// What is written to a place of the disk.
pub(crate) fn block(at: u64) -> Vec<u8> {
    (at | 1).to_be_bytes().repeat(512)
}

fn check(bytes: &[u8], at: u64) -> Result<(), Failure> {
    match bytes == block(at) || bytes.iter().all(|byte| *byte == 0) {
        true => Ok(()),
        false => Err(format!("the block at {at} has bytes of another").into()),
    }
}

fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *seed >> 33
}

/// A ring that has the buffers of what is in flight, so that none goes away too early.
struct Ring {
    ring: IoUring,
    descriptor: OwnedFd,
    buffers: HashMap<u64, Vec<u8>>,
}

impl Ring {
    fn new(descriptor: OwnedFd) -> Result<Self, Failure> {
        let ring = IoUring::new(DEPTH)
            .map_err(|error| format!("the kernel does not allow io_uring here: {error}"))?;
        Ok(Self { ring, descriptor, buffers: HashMap::new() })
    }

    fn read(&mut self, number: u64, mut buffer: Vec<u8>, offset: u64) -> Result<(), Failure> {
        let fd = types::Fd(self.descriptor.as_raw_fd());
        let len = u32::try_from(buffer.len())?;
        let entry = opcode::Read::new(fd, buffer.as_mut_ptr(), len).offset(offset).build();
        self.push(entry.user_data(number), number, buffer)
    }

    fn write(&mut self, number: u64, buffer: Vec<u8>, offset: u64) -> Result<(), Failure> {
        let fd = types::Fd(self.descriptor.as_raw_fd());
        let len = u32::try_from(buffer.len())?;
        let entry = opcode::Write::new(fd, buffer.as_ptr(), len).offset(offset).build();
        self.push(entry.user_data(number), number, buffer)
    }

    /// Takes an entry for `buffer`, whose bytes stay where they are when the vector is moved.
    #[allow(unsafe_code, reason = "a ring is told addresses")]
    fn push(
        &mut self,
        entry: io_uring::squeue::Entry,
        number: u64,
        buffer: Vec<u8>,
    ) -> Result<(), Failure> {
        // SAFETY: the entry names the bytes of `buffer`, which nobody touches and which `buffers` keeps until `wait`
        // has seen that the transfer ended, or `drop` has; and a descriptor that is open for as long as the ring is.
        unsafe { self.ring.submission().push(&entry) }?;
        self.buffers.insert(number, buffer);
        Ok(())
    }

    /// Waits for one transfer at least, if any is in flight: numbers, buffers and results.
    fn wait(&mut self) -> Result<Vec<(u64, Vec<u8>, i32)>, Failure> {
        if self.buffers.is_empty() {
            return Ok(Vec::new());
        }
        self.ring.submit_and_wait(1)?;
        let mut ended = Vec::new();
        for entry in self.ring.completion() {
            if let Some(buffer) = self.buffers.remove(&entry.user_data()) {
                ended.push((entry.user_data(), buffer, entry.result()));
            }
        }
        Ok(ended)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        while !self.buffers.is_empty() {
            if self.wait().is_err() {
                // The kernel may still use them.
                std::mem::take(&mut self.buffers).into_values().for_each(std::mem::forget);
            }
        }
    }
}
