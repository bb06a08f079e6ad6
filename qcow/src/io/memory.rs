//! Bytes in memory, for tests, fuzzing and small images.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{Capabilities, Storage, WriteStorage, Zeroes};

/// A storage that is a vector.
#[derive(Debug, Default)]
pub struct MemoryStorage(RwLock<Vec<u8>>);

impl MemoryStorage {
    /// A storage that holds `bytes`.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(RwLock::new(bytes))
    }

    /// What it holds now.
    pub fn bytes(&self) -> Vec<u8> {
        self.get().clone()
    }

    fn get(&self) -> RwLockReadGuard<'_, Vec<u8>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn get_mut(&self) -> RwLockWriteGuard<'_, Vec<u8>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `change` with the bytes of `len` from `offset` on, which are made if they are not there.
    fn change(
        &self,
        offset: u64,
        len: usize,
        change: impl FnOnce(&mut [u8]),
    ) -> std::io::Result<()> {
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        let start = usize::try_from(offset).map_err(|_| full())?;
        let end = start.checked_add(len).ok_or_else(full)?;
        let mut bytes = self.get_mut();
        grow(&mut bytes, end)?;
        change(bytes.get_mut(start..end).unwrap_or_default());
        Ok(())
    }
}

/// Makes `bytes` at least `len` long.
fn grow(bytes: &mut Vec<u8>, len: usize) -> std::io::Result<()> {
    if let Some(more @ 1..) = len.checked_sub(bytes.len()) {
        bytes.try_reserve(more).map_err(|_| std::io::ErrorKind::OutOfMemory)?;
        bytes.resize(len, 0);
    }
    Ok(())
}

impl Clone for MemoryStorage {
    /// A storage of its own with the same bytes.
    fn clone(&self) -> Self {
        Self::new(self.bytes())
    }
}

impl Storage for MemoryStorage {
    fn len(&self) -> u64 {
        self.get().len() as u64
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        let bytes = self.get();
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let source = bytes.get(from..).unwrap_or_default();
        let len = source.len().min(buf.len());
        for (to, from) in buf.iter_mut().zip(source) {
            *to = *from;
        }
        Ok(len)
    }
}

impl WriteStorage for MemoryStorage {
    fn capabilities(&self) -> Capabilities {
        Capabilities { resize: true, unmap: false }
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        self.change(offset, bytes.len(), |place| place.copy_from_slice(bytes))
    }

    fn write_zeroes(&self, offset: u64, len: u64, _: Zeroes) -> std::io::Result<()> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        self.change(offset, len, |place| place.fill(0))
    }

    fn discard(&self, _: u64, _: u64) -> std::io::Result<()> {
        Ok(())
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        let len = usize::try_from(len).map_err(|_| std::io::ErrorKind::StorageFull)?;
        let mut bytes = self.get_mut();
        bytes.truncate(len);
        grow(&mut bytes, len)
    }

    fn sync(&self) -> std::io::Result<()> {
        Ok(())
    }
}
