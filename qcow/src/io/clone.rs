//! Gives a file bytes of another one without reading them: shared, or copied by the kernel.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};

use rustix::fs::StatFs;
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, ioctl, opcode};

/// File systems that are somewhere else: a copy made there need not travel.
const REMOTE: [u64; 4] = [
    0x6969,      // NFS
    0xff53_4d42, // CIFS
    0xfe53_4d42, // SMB 2 and later
    0x00c3_6400, // Ceph
];

/// `struct file_clone_range` of the kernel.
#[repr(C)]
struct Range {
    source: i64,
    from: u64,
    len: u64,
    to: u64,
}

const FICLONERANGE: Opcode = opcode::write::<Range>(0x94, 13);

/// Lets `len` bytes of `target` from `to` on share the space of `source`'s bytes from `from` on.
/// Both offsets must be multiples of the file system's block, and so must the length, unless it
/// reaches the source's end.
///
/// # Errors
/// Whatever the operating system says; nothing has changed then.
pub(crate) fn clone_range(
    (source, from): (&File, u64),
    (target, to): (&File, u64),
    len: u64,
) -> Result<(), Errno> {
    let descriptor: RawFd = source.as_raw_fd();
    let range = Range { source: i64::from(descriptor), from, len, to };
    // SAFETY: FICLONERANGE takes a pointer to a `struct file_clone_range`, which it only reads;
    // both descriptors are borrowed for the call.
    #[expect(unsafe_code, reason = "rustix has no FICLONERANGE")]
    unsafe {
        ioctl(target, Setter::<FICLONERANGE, Range>::new(range))
    }
}

/// Copies up to `len` bytes inside the kernel, or wherever the file system keeps them. Returns how
/// many it copied; 0 at the source's end.
///
/// # Errors
/// Whatever the operating system says.
pub(crate) fn copy_range(
    (source, from): (&File, u64),
    (target, to): (&File, u64),
    len: u64,
) -> Result<u64, Errno> {
    let (mut from, mut to) = (from, to);
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), len)
        .map(|copied| copied as u64)
}

/// What matters here about the file system of a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FileSystem {
    /// Its block in bytes, a power of two.
    pub(crate) block: u64,
    /// Its bytes are kept by another machine.
    pub(crate) remote: bool,
}

impl FileSystem {
    /// `None` if it cannot be found out.
    pub(crate) fn of(file: &File) -> Option<Self> {
        let StatFs { f_bsize, f_type, .. } = rustix::fs::fstatfs(file).ok()?;
        let block = u64::try_from(f_bsize).ok().filter(|block| block.is_power_of_two())?;
        // The type is a number of 32 bits, whose sign some systems extend.
        let kind = u64::try_from(f_type & 0xffff_ffff).unwrap_or_default();
        Some(Self { block, remote: REMOTE.contains(&kind) })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn the_kernel_copies_a_range_and_stops_at_the_end() {
        let (source, target) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        source.write_all_at(b"0123456789", 0).unwrap();
        assert_eq!(copy_range((&source, 2), (&target, 100), 5).unwrap(), 5);
        assert_eq!(copy_range((&source, 10), (&target, 0), 5).unwrap(), 0);
        let mut bytes = [0; 5];
        target.read_exact_at(&mut bytes, 100).unwrap();
        assert_eq!(&bytes, b"23456");
    }

    #[test]
    fn what_cannot_be_cloned_is_an_error_and_changes_nothing() {
        let (source, target) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        source.write_all_at(b"0123456789", 0).unwrap();
        clone_range((&source, 1), (&target, 3), 5).unwrap_err();
        assert_eq!(target.metadata().unwrap().len(), 0);
    }

    #[test]
    fn a_local_file_system_has_a_block_and_is_not_remote() {
        let system = FileSystem::of(&tempfile::tempfile().unwrap()).unwrap();
        assert!(system.block >= 512 && !system.remote, "{system:?}");
    }
}
