//! Files that are changed where they are.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use super::{Access, Capabilities, FileStorage, OpenedAs, Storage, WriteStorage, Zeroes, zero};
use crate::{Error, Remedy, Result};

/// A regular file or block device that is read and written. Its length follows what is written through
/// it; that no other process changes it is what the image locks are for.
#[derive(Debug)]
pub struct WritableFile(FileStorage);

impl WritableFile {
    /// Opens the file or block device at `path` for reading and writing, and takes QEMU's image locks so
    /// that no other process uses it meanwhile.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io) if it cannot be opened for writing,
    /// [`Denied`](crate::ErrorKind::Denied) if another process uses it, or if it is neither a regular file
    /// nor a block device.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits();
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(i32::try_from(flags).unwrap_or_default())
            .open(path)
            .map_err(|error| Error::io("could not open for writing", error))?;
        let storage = FileStorage::from_file(file)?;
        let changes = Access::WRITE | Access::RESIZE;
        storage
            .lock(Access::READ | changes, changes)
            .map_err(|error| error.hint(Remedy::StopUser))?;
        Ok(Self(storage))
    }

    /// Takes a descriptor that is open for reading and writing, for example one that was passed by
    /// another process. No image locks are taken; [`reading`](Self::reading) gives what takes them.
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage) if it is not open for both, or appends;
    /// [`Denied`](crate::ErrorKind::Denied) if it is neither a regular file nor a block device.
    pub fn from_file(file: File) -> Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&file)
            .map_err(|error| Error::io("could not read the descriptor's flags", error.into()))?;
        if flags & OFlags::RWMODE != OFlags::RDWR || flags.contains(OFlags::APPEND) {
            return Err(Error::usage("the descriptor must be open for reading and writing")
                .hint("open it with O_RDWR and without O_APPEND"));
        }
        FileStorage::from_file(file).map(Self)
    }

    /// Where a file ends, as the system says; 0 of a device, which does not grow.
    fn end_on_disk(&self) -> u64 {
        match self.0.kind() {
            OpenedAs::File => self.0.file().metadata().map_or(0, |metadata| metadata.len()),
            OpenedAs::BlockDevice => 0,
        }
    }

    /// The file as one that is only read.
    pub fn reading(&self) -> &FileStorage {
        &self.0
    }
}

impl Storage for WritableFile {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        self.0.read_at(buf, offset)
    }

    fn next_data(&self, offset: u64) -> std::io::Result<Option<u64>> {
        self.0.next_data(offset)
    }

    fn next_hole(&self, offset: u64) -> std::io::Result<u64> {
        self.0.next_hole(offset)
    }

    fn as_file(&self) -> Option<&FileStorage> {
        Some(&self.0)
    }

    fn allocated(&self) -> u64 {
        self.0.allocated()
    }

    /// The changes are its own.
    fn check_unchanged(&self) -> Result<()> {
        Ok(())
    }
}

impl WriteStorage for WritableFile {
    fn capabilities(&self) -> Capabilities {
        Capabilities { resize: self.0.kind() == OpenedAs::File, unmap: true }
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        let end = zero::end_of(offset, bytes.len() as u64)?;
        let written = self.0.file().write_all_at(bytes, offset);
        // Of what did not fit, some may have been written.
        let reached = if written.is_ok() { end } else { self.end_on_disk() };
        self.0.reaches(reached);
        written
    }

    fn write_zeroes(&self, offset: u64, len: u64, how: Zeroes) -> std::io::Result<()> {
        let end = zero::end_of(offset, len)?;
        let there = self.len().clamp(offset, end);
        if there < end {
            // New bytes are zeros anyway.
            self.set_len(end)?;
        }
        self.0.has_new_holes();
        zero::zero(self.0.file(), offset..there, how)
    }

    fn discard(&self, offset: u64, len: u64) -> std::io::Result<()> {
        let there = self.len().min(zero::end_of(offset, len)?);
        self.0.has_new_holes();
        zero::discard(self.0.file(), offset..there)
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        match self.0.kind() {
            OpenedAs::File => self.0.file().set_len(len)?,
            OpenedAs::BlockDevice if len <= self.len() => return Ok(()),
            OpenedAs::BlockDevice => return Err(std::io::ErrorKind::StorageFull.into()),
        }
        self.0.ends_at(len);
        Ok(())
    }

    fn sync(&self) -> std::io::Result<()> {
        self.0.file().sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::MemoryStorage;

    /// What the file reads as now, by another descriptor.
    fn bytes(path: &Path) -> Vec<u8> {
        std::fs::read(path).unwrap()
    }

    #[test]
    fn a_file_and_memory_do_the_same() {
        let temporary = tempfile::NamedTempFile::new().unwrap();
        let file = WritableFile::open(temporary.path()).unwrap();
        let memory = MemoryStorage::default();
        let noise: Vec<u8> = (0..40_000u32).map(|at| (at % 251) as u8 + 1).collect();
        let both: [&dyn WriteStorage; 2] = [&file, &memory];
        let same = |what: &str| {
            assert!(bytes(temporary.path()) == memory.bytes(), "{what}");
            for storage in both {
                assert_eq!(storage.len(), memory.bytes().len() as u64, "{what}");
                let mut read = vec![0xee; 50_000];
                let len = storage.read_at(&mut read, 0).unwrap();
                assert!(read[..len] == memory.bytes(), "{what}");
            }
        };
        both.iter().for_each(|storage| storage.write_at(&noise, 100).unwrap());
        same("written past the end");
        both.iter().for_each(|storage| storage.write_zeroes(5_000, 20_001, Zeroes::Unmap).unwrap());
        same("zeroed in the middle");
        both.iter().for_each(|storage| storage.write_zeroes(30_000, 3, Zeroes::Keep).unwrap());
        same("zeroed within a block");
        both.iter().for_each(|storage| storage.write_zeroes(40_000, 5_000, Zeroes::Keep).unwrap());
        same("zeroed across the end");
        both.iter().for_each(|storage| storage.set_len(10_000).unwrap());
        same("cut");
        both.iter().for_each(|storage| storage.set_len(12_000).unwrap());
        same("grown");
        both.iter().for_each(|storage| storage.sync().unwrap());
    }

    #[test]
    fn discarded_space_is_given_back_and_seen_as_a_hole() {
        let temporary = tempfile::NamedTempFile::new().unwrap();
        let file = WritableFile::open(temporary.path()).unwrap();
        file.write_at(&vec![1; 1 << 20], 0).unwrap();
        assert_eq!(file.next_hole(0).unwrap(), 1 << 20);
        file.discard(64 << 10, 64 << 10).unwrap();
        let hole = file.next_hole(0).unwrap();
        assert!(hole == 64 << 10 || hole == 1 << 20, "{hole}: not where a hole was made");
        let mut before = [0; 512];
        file.read_at(&mut before, (64 << 10) - 512).unwrap();
        assert_eq!(before, [1; 512]);
    }

    #[test]
    fn a_descriptor_that_cannot_write_or_that_appends_is_refused() {
        let temporary = tempfile::NamedTempFile::new().unwrap();
        let path = temporary.path();
        for file in [
            File::open(path).unwrap(),
            File::options().write(true).open(path).unwrap(),
            File::options().read(true).append(true).open(path).unwrap(),
        ] {
            let error = WritableFile::from_file(file).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Usage);
        }
        WritableFile::from_file(File::options().read(true).write(true).open(path).unwrap())
            .unwrap();
    }
}
