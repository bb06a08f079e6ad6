//! Which processes may write to a file. A copy is consistent only if none does.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use qcow::io::{Access, FileStorage};
use rayon::prelude::*;
use rustix::fs::{AtFlags, CWD, StatxFlags};

use crate::process::{PROC, Process, writes};

/// The processes that have certain files open for writing.
#[derive(Debug, Default)]
pub(super) struct Writers {
    found: HashMap<(u64, u64), Vec<String>>,
    /// Every process could be looked into.
    complete: bool,
}

impl Writers {
    /// Looks through all processes but this one.
    pub(super) fn of(objects: &[(u64, u64)]) -> Self {
        if objects.is_empty() {
            return Self { complete: true, ..Self::default() };
        }
        let proc = Path::new(PROC);
        let all: Vec<_> = Process::numbers(proc)
            .into_par_iter()
            .filter_map(|number| {
                let process = Process::now(proc, number)?;
                match process.descriptors() {
                    Ok(descriptors) => {
                        let who = format!("process {number} ({})", process.shown);
                        let open = descriptors?.into_iter();
                        let of = open.filter_map(|path| Some((object(&path, objects)?, path)));
                        let mut found: Vec<_> =
                            of.filter(|(_, path)| writes(path)).map(|(of, _)| of).collect();
                        found.sort_unstable();
                        found.dedup();
                        Some((found.into_iter().map(|of| (of, who.clone())).collect(), true))
                    }
                    Err(_) => Some((Vec::new(), false)),
                }
            })
            .collect();
        let complete = all.iter().all(|(_, seen)| *seen);
        let mut found: HashMap<(u64, u64), Vec<String>> = HashMap::new();
        for (object, who) in all.into_iter().flat_map(|(found, _)| found) {
            found.entry(object).or_default().push(who);
        }
        Self { found, complete }
    }

    /// Who may write to `file`, in words; `None` if that is not known. Not only processes count: the kernel is
    /// asked, and QEMU's locks, which reach other hosts.
    pub(super) fn to(&self, file: &File, object: (u64, u64)) -> Option<Vec<String>> {
        let mut who = self.found.get(&object).cloned().unwrap_or_default();
        let storage = file.try_clone().ok().and_then(|file| FileStorage::from_file(file).ok());
        let locks = storage.map_or(Access::empty(), |storage| storage.used_for());
        if who.is_empty() && locks.intersects(Access::WRITE | Access::RESIZE) {
            who.push("a process, according to QEMU's image locks".into());
        }
        match lease::nobody_writes(file.as_raw_fd()) {
            Some(true) => Some(who),
            Some(false) => {
                if who.is_empty() {
                    who.push("a process, according to the kernel".into());
                }
                Some(who)
            }
            None => (self.complete || !who.is_empty()).then_some(who),
        }
    }
}

/// Which of the objects a descriptor is. Asks without waiting for a server that may not answer.
fn object(descriptor: &Path, objects: &[(u64, u64)]) -> Option<(u64, u64)> {
    let wanted = StatxFlags::INO;
    let status = rustix::fs::statx(CWD, descriptor, AtFlags::STATX_DONT_SYNC, wanted).ok()?;
    let device = rustix::fs::makedev(status.stx_dev_major, status.stx_dev_minor);
    let object = (device, status.stx_ino);
    objects.contains(&object).then_some(object)
}

/// The kernel's own word.
#[allow(unsafe_code, reason = "no crate offers leases")]
mod lease {
    use std::os::fd::RawFd;

    /// Which signal tells of a lease: `F_SETSIG` of the kernel's generic `fcntl.h`, missing in `libc`.
    const SET_SIGNAL: libc::c_int = 10;

    /// Whether no process has the file open for writing: then, and only then, the kernel grants a read lease, which
    /// is given back at once. `None` if it grants none to this user, or on this file system.
    pub(super) fn nobody_writes(descriptor: RawFd) -> Option<bool> {
        // Should a process open it for writing in between, the kernel sends a signal; this one does no harm.
        // SAFETY: fcntl with integers changes nothing but the state of the open file; a descriptor that is
        // not open is an error.
        let granted = unsafe {
            libc::fcntl(descriptor, SET_SIGNAL, libc::SIGURG) == 0
                && libc::fcntl(descriptor, libc::F_SETLEASE, libc::F_RDLCK) == 0
        };
        let error = rustix::io::Errno::from_io_error(&std::io::Error::last_os_error());
        if granted {
            // SAFETY: as above.
            unsafe { libc::fcntl(descriptor, libc::F_SETLEASE, libc::F_UNLCK) };
            return Some(true);
        }
        (error == Some(rustix::io::Errno::AGAIN)).then_some(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_knows_whether_somebody_writes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read = File::open(file.path()).unwrap();
        assert_eq!(lease::nobody_writes(read.as_raw_fd()), Some(false));
        let file = file.into_temp_path();
        assert_eq!(lease::nobody_writes(read.as_raw_fd()), Some(true));
        let write = File::options().write(true).open(&file).unwrap();
        assert_eq!(lease::nobody_writes(read.as_raw_fd()), Some(false));
        drop(write);
        assert_eq!(lease::nobody_writes(read.as_raw_fd()), Some(true));
    }
}
