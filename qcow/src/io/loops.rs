//! Loop devices: block devices whose content is a file, as the kernel lists them under `/sys/block`.

use std::ffi::OsString;
use std::fs::{File, ReadDir};
use std::io::{Error, ErrorKind, Read, Result};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// Where the kernel lists block devices.
const SYS_BLOCK: &str = "/sys/block";
/// The longest line that is read there; a path is shorter.
const LONGEST: u64 = 8192;

/// A loop device that is attached to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoopDevice {
    /// Its name, for example `/dev/loop0`.
    pub path: PathBuf,
    /// The name of its file as the kernel has it: ending with ` (deleted)` if the file has none any more, and
    /// possibly that of another mount namespace.
    pub backing_file: PathBuf,
    /// Where the kernel describes it.
    place: PathBuf,
}

impl LoopDevice {
    /// The loop devices that are attached to a file now, in no order. None where there is no sysfs.
    ///
    /// # Errors
    /// Whatever the operating system says, of the list or of one device.
    pub fn attached() -> Result<impl Iterator<Item = Result<Self>>> {
        Self::listed_in(Path::new(SYS_BLOCK))
    }

    /// As [`attached`](Self::attached), from another directory than `/sys/block`.
    ///
    /// # Errors
    /// As there.
    pub fn listed_in(sys_block: &Path) -> Result<impl Iterator<Item = Result<Self>>> {
        let entries = match entries(sys_block) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            entries => Some(entries?),
        };
        let entries = entries.into_iter().flatten();
        Ok(entries.filter_map(|entry| entry.and_then(|entry| one(entry.path())).transpose()))
    }

    /// The numbers of the device, the first, and of its partitions.
    ///
    /// # Errors
    /// Whatever the operating system says.
    pub fn numbers(&self) -> Result<Vec<u64>> {
        let mut numbers = vec![number(&self.place.join("dev"))?];
        for entry in entries(&self.place)? {
            let place = entry?.path();
            if place.join("partition").exists() {
                numbers.push(number(&place.join("dev"))?);
            }
        }
        Ok(numbers)
    }
}

/// The entries of a directory.
fn entries(directory: &Path) -> Result<ReadDir> {
    loop {
        match std::fs::read_dir(directory) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// The loop device at `place`, if it is one and has a file.
fn one(place: PathBuf) -> Result<Option<LoopDevice>> {
    let name = place.file_name().filter(|name| name.as_bytes().starts_with(b"loop"));
    let Some(path) = name.map(|name| Path::new("/dev").join(name)) else { return Ok(None) };
    match line(&place.join("loop/backing_file")) {
        Err(error) if is_detached(&error) => Ok(None),
        Err(error) => Err(error),
        Ok(file) => {
            let backing_file = PathBuf::from(OsString::from_vec(file));
            Ok(Some(LoopDevice { path, backing_file, place }))
        }
    }
}

/// Whether the kernel says that there is no file: the device is not attached, or was detached between opening and
/// reading what says so.
fn is_detached(error: &Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(Errno::NODEV.raw_os_error())
}

/// The number of a device that is written as `7:0`.
fn number(file: &Path) -> Result<u64> {
    let line = line(file)?;
    let parts = str::from_utf8(&line).ok().and_then(|line| line.split_once(':'));
    let number = parts.and_then(|(major, minor)| {
        Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
    });
    number.ok_or_else(|| Error::from(ErrorKind::InvalidData))
}

/// The content without the newline that ends it.
fn line(file: &Path) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(file)?.take(LONGEST).read_to_end(&mut text)?;
    if text.last() == Some(&b'\n') {
        text.pop();
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_device_that_is_detached_meanwhile_is_not_attached() {
        assert!(is_detached(&Errno::NODEV.into()) && is_detached(&Errno::NOENT.into()));
        assert!(!is_detached(&Errno::ACCESS.into()));
    }

    #[test]
    fn devices_with_a_file_are_found_and_their_partitions() {
        let directory = tempfile::tempdir().unwrap();
        let sys = directory.path().join("sys");
        let device = |name: &str, numbers: &str, backing: Option<&str>| {
            fs::create_dir_all(sys.join(name).join("loop")).unwrap();
            fs::write(sys.join(name).join("dev"), numbers).unwrap();
            if let Some(backing) = backing {
                fs::write(sys.join(name).join("loop/backing_file"), backing).unwrap();
            }
        };
        device("loop0", "7:0\n", Some("/srv/a disk.img\n"));
        device("loop1", "7:1\n", Some("/gone/disk.img (deleted)\n"));
        device("loop2", "7:2\n", None);
        device("loop3", "seven\n", Some("/srv/disk.img\n"));
        device("vda", "253:0\n", None);
        fs::create_dir_all(sys.join("loop0/loop0p1")).unwrap();
        fs::write(sys.join("loop0/loop0p1/partition"), "1\n").unwrap();
        fs::write(sys.join("loop0/loop0p1/dev"), "259:3\n").unwrap();
        let found: Result<Vec<_>> = LoopDevice::listed_in(&sys).unwrap().collect();
        let mut found = found.unwrap();
        found.sort_by(|a, b| a.path.cmp(&b.path));
        let makedev = rustix::fs::makedev;
        let told = |device: &LoopDevice| {
            let names = (device.path.to_str().unwrap(), device.backing_file.to_str().unwrap());
            (names.0.to_owned(), names.1.to_owned(), device.numbers().ok())
        };
        assert_eq!(
            found.iter().map(told).collect::<Vec<_>>(),
            [
                ("/dev/loop0", "/srv/a disk.img", Some(vec![makedev(7, 0), makedev(259, 3)])),
                ("/dev/loop1", "/gone/disk.img (deleted)", Some(vec![makedev(7, 1)])),
                ("/dev/loop3", "/srv/disk.img", None),
            ]
            .map(|(path, file, numbers)| (path.to_owned(), file.to_owned(), numbers))
        );
        assert_eq!(LoopDevice::listed_in(&directory.path().join("nothing")).unwrap().count(), 0);
    }
}
