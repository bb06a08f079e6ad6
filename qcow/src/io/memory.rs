//! Bytes in memory, for tests, fuzzing and small images.

use super::Storage;

/// A storage that is a vector.
#[derive(Debug, Clone, Default)]
pub struct MemoryStorage(Vec<u8>);

impl MemoryStorage {
    /// A storage that holds `bytes`.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl Storage for MemoryStorage {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let source = self.0.get(from..).unwrap_or_default();
        let len = source.len().min(buf.len());
        for (to, from) in buf.iter_mut().zip(source) {
            *to = *from;
        }
        Ok(len)
    }
}
