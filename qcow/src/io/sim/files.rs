//! Several files whose calls share one clock, so that a crash stops them at different moments.

use std::sync::{Arc, Mutex};

use super::SimStorage;
use crate::io::{Capabilities, MemoryStorage, Storage, WriteStorage, Zeroes};

/// A call on one of the files, in the order of all calls.
#[derive(Debug, Clone)]
pub(crate) enum Call {
    Write(u64, Vec<u8>),
    SetLen(u64),
    Sync,
}

/// Both files' calls.
pub(crate) type Calls = Arc<Mutex<Vec<(usize, Call)>>>;

/// One of the files.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) number: usize,
    pub(crate) calls: Calls,
    pub(crate) memory: MemoryStorage,
}

impl File {
    fn call(&self, call: Call) {
        self.calls.lock().unwrap().push((self.number, call));
    }
}

impl Storage for File {
    fn len(&self) -> u64 {
        self.memory.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        self.memory.read_at(buf, offset)
    }
}

impl WriteStorage for File {
    fn capabilities(&self) -> Capabilities {
        self.memory.capabilities()
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        self.call(Call::Write(offset, bytes.to_vec()));
        self.memory.write_at(bytes, offset)
    }

    fn write_zeroes(&self, offset: u64, len: u64, _: Zeroes) -> std::io::Result<()> {
        self.write_at(&vec![0; len as usize], offset)
    }

    fn discard(&self, offset: u64, len: u64) -> std::io::Result<()> {
        let len = self.len().saturating_sub(offset).min(len);
        self.write_at(&vec![0; len as usize], offset)
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.call(Call::SetLen(len));
        self.memory.set_len(len)
    }

    fn sync(&self) -> std::io::Result<()> {
        self.call(Call::Sync);
        Ok(())
    }
}

/// What a crash after `calls` leaves of file `number`, drawn by `seed`.
pub(crate) fn crashed(start: &[u8], number: usize, calls: &[(usize, Call)], seed: u64) -> Vec<u8> {
    let storage = SimStorage::new(start.to_vec());
    for (_, call) in calls.iter().filter(|(file, _)| *file == number) {
        match call {
            Call::Write(offset, bytes) => storage.write_at(bytes, *offset),
            Call::SetLen(len) => storage.set_len(*len),
            Call::Sync => storage.sync(),
        }
        .unwrap();
    }
    match seed {
        // The process alone dies.
        0 => storage.bytes(),
        seed => storage.crash(seed).bytes,
    }
}
