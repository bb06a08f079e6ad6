//! Files that are changed where they are.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use super::{Access, FileStorage};
use crate::{Error, Remedy, Result};

/// A storage that can be written to. Kept apart from [`Storage`](super::Storage), so that what
/// only reads cannot write.
pub(crate) trait InPlace: Send + Sync {
    /// Writes all of `bytes` at `offset`; the storage grows if they pass its end.
    ///
    /// # Errors
    /// Whatever the operating system says.
    fn write_at(&self, bytes: &[u8], offset: u64) -> std::io::Result<()>;

    /// Makes sure that what was written stays.
    ///
    /// # Errors
    /// Whatever the operating system says.
    fn sync(&self) -> std::io::Result<()>;
}

impl InPlace for File {
    fn write_at(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync(&self) -> std::io::Result<()> {
        self.sync_data()
    }
}

/// Opens the file or block device at `path` to be changed by us and by nobody else meanwhile: for
/// writing, and for reading what it holds now.
///
/// # Errors
/// [`Io`](crate::ErrorKind::Io) if it cannot be opened for writing,
/// [`InUse`](crate::ErrorKind::InUse) if another process uses it.
pub(crate) fn open_in_place(path: &Path) -> Result<(File, FileStorage)> {
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits();
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(i32::try_from(flags).unwrap_or_default())
        .open(path)
        .map_err(|error| Error::io("could not open for writing", error))?;
    // One open file description, so one lock.
    let reader = file.try_clone().map_err(|error| Error::io("could not open twice", error))?;
    let storage = FileStorage::from_file(reader)?;
    let changes = Access::WRITE | Access::RESIZE;
    storage.lock(Access::READ | changes, changes).map_err(|error| error.hint(Remedy::StopUser))?;
    Ok((file, storage))
}

#[cfg(test)]
pub(crate) use recording::{Event, Recording};

#[cfg(test)]
mod recording {
    use std::sync::Mutex;

    use super::InPlace;

    /// What happened to a [`Recording`].
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub(crate) enum Event {
        Write(Vec<u8>, u64),
        Sync,
    }

    /// Remembers every write and sync in order, so that a test can see what a crash would leave.
    #[derive(Debug, Default)]
    pub(crate) struct Recording(Mutex<Vec<Event>>);

    impl Recording {
        pub(crate) fn events(&self) -> Vec<Event> {
            self.0.lock().unwrap().clone()
        }
    }

    impl InPlace for Recording {
        fn write_at(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
            self.0.lock().unwrap().push(Event::Write(bytes.to_vec(), offset));
            Ok(())
        }

        fn sync(&self) -> std::io::Result<()> {
            self.0.lock().unwrap().push(Event::Sync);
            Ok(())
        }
    }
}
