//! One run at a time for each guest.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use uuid::Uuid;

use super::{is_locked_now, make_directory};
use crate::fs::failed;
use crate::{Error, Result};

/// Holds a guest for one run, until it is dropped or the process ends.
#[derive(Debug)]
pub struct DomainLock(#[expect(dead_code, reason = "holds the lock")] File);

impl DomainLock {
    /// Takes the guest with this UUID. `directory` is that of the journals.
    ///
    /// # Errors
    /// [`Refused`](crate::ErrorKind::Refused) if another run has it, [`Usage`](crate::ErrorKind::Usage)
    /// if that is no UUID, [`Environment`](crate::ErrorKind::Environment).
    pub fn take(directory: &Path, uuid: &str) -> Result<Self> {
        // It becomes a file name.
        let uuid = Uuid::try_parse(uuid)
            .map_err(|error| Error::usage(format!("'{uuid}' is not a UUID: {error}")))?;
        let directory = directory.join("domains");
        make_directory(&directory)?;
        let path = directory.join(format!("{}.lock", uuid.hyphenated()));
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| failed("could not open", &path, error))?;
        // The file stays: removing it would let a third run lock another one of the same name.
        if !is_locked_now(&file, &path)? {
            return Err(Error::refused(format!("another run works on the guest {uuid}"))
                .hint("wait until it has ended"));
        }
        Ok(Self(file))
    }
}
