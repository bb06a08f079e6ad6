//! One run at a time for each guest.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::{failed, is_locked_now, make_directory};
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
        let uuid = uuid.to_ascii_lowercase();
        // It becomes a file name.
        if uuid.len() != 36 || !uuid.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-') {
            return Err(Error::usage(format!("'{uuid}' is not a UUID")));
        }
        let directory = directory.join("domains");
        make_directory(&directory)?;
        let path = directory.join(format!("{uuid}.lock"));
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| failed("could not open", &path, &error))?;
        // The file stays: removing it would let a third run lock another one of the same name.
        if !is_locked_now(&file, &path)? {
            return Err(Error::refused(format!("another run works on the guest {uuid}"))
                .hint("wait until it has ended"));
        }
        Ok(Self(file))
    }
}
