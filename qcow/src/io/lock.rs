//! QEMU's image locks, so that QEMU and we see each other.
//!
//! QEMU locks single bytes of an image file, far from where anybody reads or writes: byte 100 + n
//! says "I do n", byte 200 + n says "nobody else may do n". All are shared locks of the open file
//! description; whoever wants to know whether somebody holds one asks whether an exclusive lock
//! would be refused. Source: the comment above `RAW_LOCK_PERM_BASE` in QEMU's
//! `block/file-posix.c`, and "Image locking" in its manual.

use std::fs::File;
use std::os::fd::AsFd;

use bitflags::bitflags;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::{Error, ErrorKind, Result};

const DOES: i64 = 100;
const FORBIDS: i64 = 200;

bitflags! {
    /// What one can do with an image that others may care about; the bits are QEMU's.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Access: u32 {
        /// Relies on reading consistent data.
        const READ = 1 << 0;
        /// Changes bytes.
        const WRITE = 1 << 1;
        /// Changes the length.
        const RESIZE = 1 << 3;
    }
}

/// Announces on `file` that its holder does `does` and that nobody else may do `forbids`, for as
/// long as the file is open. File systems without locks are taken as they are, as QEMU does.
///
/// # Errors
/// [`InUse`](crate::ErrorKind::InUse) if somebody else does what is forbidden here, or forbids
/// what is done here.
pub(super) fn announce(file: &File, does: Access, forbids: Access) -> Result<()> {
    for bit in bits() {
        for (wanted, base) in [(does, DOES), (forbids, FORBIDS)] {
            if wanted.contains(bit) && set(file, byte(base, bit)).is_err() {
                // No locks on this file system: nothing can be found out either.
                return Ok(());
            }
        }
    }
    for bit in bits() {
        if does.contains(bit) && is_held(file, byte(FORBIDS, bit)) {
            return Err(in_use(format!("another process forbids to {}", verb(bit))));
        }
        if forbids.contains(bit) && is_held(file, byte(DOES, bit)) {
            return Err(in_use(format!("another process may {}", verb(bit))));
        }
    }
    Ok(())
}

/// What others say that they do with `file`.
pub(super) fn done_by_others(file: &File) -> Access {
    bits().filter(|bit| is_held(file, byte(DOES, *bit))).collect()
}

fn bits() -> impl Iterator<Item = Access> {
    Access::all().iter()
}

fn byte(base: i64, bit: Access) -> i64 {
    base.saturating_add(i64::from(bit.bits().trailing_zeros()))
}

fn verb(bit: Access) -> &'static str {
    match bit {
        Access::WRITE => "write to it",
        Access::RESIZE => "resize it",
        _ => "read it",
    }
}

fn in_use(what: String) -> Error {
    Error::new(ErrorKind::InUse, format!("the image is in use: {what} (a running guest?)"))
}

/// Takes the shared lock on one byte.
fn set(file: &File, byte: i64) -> std::result::Result<(), Errno> {
    fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&range(byte, libc::F_RDLCK))).map(drop)
}

/// Whether some other open file description holds a lock on the byte.
fn is_held(file: &File, byte: i64) -> bool {
    let mut lock = range(byte, libc::F_WRLCK);
    fcntl(file.as_fd(), FcntlArg::F_OFD_GETLK(&mut lock)).is_ok()
        && i32::from(lock.l_type) != libc::F_UNLCK
}

fn range(byte: i64, kind: i32) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_share_and_a_writer_excludes_them() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::open(file.path()).unwrap();
        let (one, two, three) = (open(), open(), open());
        let changes = Access::WRITE | Access::RESIZE;
        announce(&one, Access::READ, changes).unwrap();
        announce(&two, Access::READ, changes).unwrap();
        let error = announce(&three, Access::READ | changes, changes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InUse);
        drop((one, two));
        drop(three);
        let writer = open();
        announce(&writer, Access::READ | changes, changes).unwrap();
        let error = announce(&open(), Access::READ, changes).unwrap_err();
        assert!(error.to_string().contains("may write to it"), "{error}");
        assert_eq!(done_by_others(&open()), Access::READ | changes);
        drop(writer);
        assert_eq!(done_by_others(&open()), Access::empty());
        announce(&open(), Access::READ, changes).unwrap();
    }
}
