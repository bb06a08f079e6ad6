//! QEMU's image locks, so that QEMU and we see each other, and locks of other programs.
//!
//! QEMU locks single bytes of an image file, far from where anybody reads or writes: byte 100 + n
//! says "I do n", byte 200 + n says "no other process may do n". All are shared locks of the open file
//! description; whoever wants to know whether another process holds one asks whether an exclusive
//! lock would be refused. Source: the comment above `RAW_LOCK_PERM_BASE` in QEMU's
//! `block/file-posix.c`, and "Image locking" in its manual.
//!
//! Other programs lock ranges: cloud-hypervisor takes an exclusive lock from byte 0 to the disk's
//! size, `lockf` one over the whole file. Such a range covers QEMU's bytes too, so that our own
//! shared locks are refused: the image is in use. Only a few errors mean that a file system has no
//! locks at all; they are listed in [`no_locks`] and in `docs/errno.md`.

use std::fs::File;
use std::os::fd::AsFd;

use bitflags::bitflags;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::{Error, ErrorKind, Escaped, Result};

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

/// Announces on `file` that its holder does `does` and that no other process may do `forbids`, for as
/// long as the file is open. File systems without locks are taken as they are, as QEMU does.
///
/// # Errors
/// [`InUse`](crate::ErrorKind::InUse) if another process does what is forbidden here, forbids
/// what is done here, or holds an exclusive lock; [`Io`](crate::ErrorKind::Io) if the system
/// cannot say.
pub(super) fn announce(file: &File, does: Access, forbids: Access) -> Result<()> {
    for bit in bits() {
        for (wanted, base) in [(does, DOES), (forbids, FORBIDS)] {
            if !wanted.contains(bit) {
                continue;
            }
            match set(file, byte(base, bit)) {
                Ok(()) => {}
                // Nothing can be found out either.
                Err(error) if no_locks(error) => return Ok(()),
                Err(Errno::EAGAIN | Errno::EACCES) => {
                    let holder = holder(file, byte(base, bit), libc::F_RDLCK).ok().flatten();
                    return Err(in_use("another process has locked it", holder.as_ref()));
                }
                Err(error) => return Err(failed(error)),
            }
        }
    }
    for bit in bits() {
        if does.contains(bit)
            && let Some(holder) = held(file, byte(FORBIDS, bit))?
        {
            let what = format!("another process forbids to {}", verb(bit));
            return Err(in_use(&what, Some(&holder)));
        }
        if forbids.contains(bit)
            && let Some(holder) = held(file, byte(DOES, bit))?
        {
            return Err(in_use(&format!("another process may {}", verb(bit)), Some(&holder)));
        }
    }
    Ok(())
}

/// What others say that they do with `file`. What cannot be found out counts as done, unless the
/// file system has no locks.
pub(super) fn done_by_others(file: &File) -> Access {
    bits().filter(|bit| !matches!(held(file, byte(DOES, *bit)), Ok(None))).collect()
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

/// Whether the error says that the file system, or the kernel, has no such locks. "In use" is
/// never among them.
fn no_locks(error: Errno) -> bool {
    matches!(error, Errno::ENOLCK | Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP)
}

fn in_use(what: &str, holder: Option<&Holder>) -> Error {
    let by = holder.map_or_else(String::new, Holder::by);
    Error::new(ErrorKind::InUse, format!("the image is in use: {what}{by} (a running guest?)"))
}

fn failed(error: Errno) -> Error {
    Error::io("could not find out whether the image is in use", error.into())
}

/// A lock of another open file description or process.
#[derive(Debug, PartialEq, Eq)]
struct Holder {
    /// Its process; `None` for locks of an open file description, and on network file systems.
    process: Option<i32>,
    exclusive: bool,
    first: i64,
    /// `None` to the end of the file, however long that is.
    len: Option<i64>,
}

impl Holder {
    /// What is known about it, for the middle of a sentence.
    fn by(&self) -> String {
        let mut text = String::new();
        if let Some(process) = self.process {
            text.push_str(&format!(", process {process}"));
            if let Ok(name) = std::fs::read_to_string(format!("/proc/{process}/comm")) {
                text.push_str(&format!(" ({})", Escaped(name.trim_end())));
            }
        }
        // QEMU's locks are shared, and of one byte or a few of the same kind.
        let kind = if self.exclusive { "an exclusive" } else { "a shared" };
        match self.len {
            None => text.push_str(&format!(", by {kind} lock from byte {} on", self.first)),
            Some(len) if self.exclusive || self.first < DOES => {
                let last = self.first.saturating_add(len).saturating_sub(1);
                text.push_str(&format!(", by {kind} lock of bytes {} to {last}", self.first));
            }
            Some(_) => {}
        }
        text
    }
}

/// Takes the shared lock on one byte.
fn set(file: &File, byte: i64) -> std::result::Result<(), Errno> {
    let lock = range(byte, libc::F_RDLCK);
    not_interrupted(|| fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&lock)).map(drop))
}

/// Which other open file description holds a lock on the byte, of any kind.
fn held(file: &File, byte: i64) -> Result<Option<Holder>> {
    match holder(file, byte, libc::F_WRLCK) {
        Err(error) if no_locks(error) => Ok(None),
        result => result.map_err(failed),
    }
}

/// Which lock would refuse one of `kind` on the byte.
fn holder(file: &File, byte: i64, kind: i32) -> std::result::Result<Option<Holder>, Errno> {
    let mut lock = range(byte, kind);
    not_interrupted(|| fcntl(file.as_fd(), FcntlArg::F_OFD_GETLK(&mut lock)).map(drop))?;
    let found = i32::from(lock.l_type);
    Ok((found != libc::F_UNLCK).then_some(Holder {
        process: Some(lock.l_pid).filter(|process| *process > 0),
        exclusive: found == libc::F_WRLCK,
        first: lock.l_start,
        len: Some(lock.l_len).filter(|len| *len > 0),
    }))
}

/// Network file systems ask a server, and may be interrupted meanwhile.
fn not_interrupted(
    mut call: impl FnMut() -> std::result::Result<(), Errno>,
) -> std::result::Result<(), Errno> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
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

    /// Locks all of the file exclusively, as an open file description.
    fn exclusive(file: &File, len: i64) {
        let mut lock = range(0, libc::F_WRLCK);
        lock.l_len = len;
        fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&lock)).unwrap();
    }

    #[test]
    fn an_exclusive_lock_of_another_program_means_in_use_and_not_no_locks() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let open = || File::options().read(true).write(true).open(file.path()).unwrap();
        for (len, named) in [(1 << 20, "bytes 0 to 1048575"), (0, "from byte 0 on")] {
            let other = open();
            exclusive(&other, len);
            for (does, forbids) in [
                (Access::READ, Access::empty()),
                (Access::READ, Access::WRITE | Access::RESIZE),
                (Access::all(), Access::WRITE | Access::RESIZE),
            ] {
                let error = announce(&open(), does, forbids).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::InUse);
                let text = error.to_string();
                assert!(text.contains("in use") && text.contains(named), "{text}");
                assert!(text.contains("an exclusive lock"), "{text}");
            }
            assert_eq!(done_by_others(&open()), Access::all());
            drop(other);
            announce(&open(), Access::READ, Access::WRITE).unwrap();
        }
    }

    #[test]
    fn only_four_errors_mean_that_a_file_system_has_no_locks() {
        let none: Vec<_> = (1..134).map(Errno::from_raw).filter(|error| no_locks(*error)).collect();
        assert_eq!(none, [Errno::EINVAL, Errno::ENOLCK, Errno::ENOSYS, Errno::EOPNOTSUPP]);
    }
}
