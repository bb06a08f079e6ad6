//! Loop devices: block devices whose content is a file, as the kernel tells of them under `/sys/block`.

use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::audit::value::Key;
use crate::process::deleted_name;

/// Where the kernel tells of block devices.
pub(super) const SYS_BLOCK: &str = "/sys/block";

/// The longest line that is read there; a path is shorter.
const LONGEST: u64 = 8192;

/// A loop device that has a file, and one of its partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Loop {
    /// Its name under `/dev`.
    pub(super) path: PathBuf,
    /// The device, the first, and its partitions.
    pub(super) devices: Vec<u64>,
    /// The file, if it is still at its name. In another mount namespace the name may lead elsewhere, where
    /// nothing tells the two apart.
    pub(super) file: Option<Key>,
    /// The name of the file, or the name that it had.
    pub(super) name: PathBuf,
}

impl Loop {
    pub(super) fn keys(&self) -> impl Iterator<Item = Key> {
        self.devices.iter().map(|number| Key::Device { number: *number })
    }
}

/// The loop devices that have a file now.
pub(super) fn attached(sys: &Path) -> Vec<Loop> {
    let entries = std::fs::read_dir(sys).into_iter().flatten().flatten();
    let mut loops: Vec<_> = entries.filter_map(|entry| one(&entry.path())).collect();
    loops.sort_by(|a, b| a.devices.cmp(&b.devices));
    loops
}

fn one(place: &Path) -> Option<Loop> {
    let own = place.file_name()?.to_str().filter(|name| name.starts_with("loop"))?;
    let named =
        PathBuf::from(std::ffi::OsString::from_vec(line(&place.join("loop/backing_file"))?));
    let is = named.metadata().ok().filter(std::fs::Metadata::is_file);
    let file = is.map(|is| Key::File { device: is.dev(), inode: is.ino() });
    let name = if file.is_some() { named } else { deleted_name(&named).unwrap_or(named) };
    let mut devices = vec![number(&place.join("dev"))?];
    let partitions = std::fs::read_dir(place).into_iter().flatten().flatten();
    let partitions = partitions.filter(|entry| entry.path().join("partition").exists());
    devices.extend(partitions.filter_map(|entry| number(&entry.path().join("dev"))));
    Some(Loop { path: Path::new("/dev").join(own), devices, file, name })
}

/// The number of a device that is written as `7:0`.
fn number(file: &Path) -> Option<u64> {
    let line = line(file)?;
    let (major, minor) = str::from_utf8(&line).ok()?.split_once(':')?;
    Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// The content without the newline that ends it.
fn line(file: &Path) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    File::open(file).ok()?.take(LONGEST).read_to_end(&mut text).ok()?;
    if text.last() == Some(&b'\n') {
        text.pop();
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn devices_with_a_file_are_found_and_their_partitions() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a disk.img");
        fs::write(&file, "disk").unwrap();
        let sys = directory.path().join("sys");
        let device = |name: &str, numbers: &str, backing: Option<String>| {
            fs::create_dir_all(sys.join(name).join("loop")).unwrap();
            fs::write(sys.join(name).join("dev"), numbers).unwrap();
            if let Some(backing) = backing {
                fs::write(sys.join(name).join("loop/backing_file"), backing).unwrap();
            }
        };
        device("loop0", "7:0\n", Some(format!("{}\n", file.display())));
        device("loop1", "7:1\n", Some("/gone/disk.img (deleted)\n".into()));
        device("loop2", "7:2\n", None);
        device("vda", "253:0\n", None);
        fs::create_dir_all(sys.join("loop0/loop0p1")).unwrap();
        fs::write(sys.join("loop0/loop0p1/partition"), "1\n").unwrap();
        fs::write(sys.join("loop0/loop0p1/dev"), "259:3\n").unwrap();
        let found = attached(&sys);
        let status = file.metadata().unwrap();
        let key = Key::File { device: status.dev(), inode: status.ino() };
        let (makedev, [first, second]) = (rustix::fs::makedev, found.as_slice()) else {
            panic!("{found:?}");
        };
        assert_eq!(first.path, Path::new("/dev/loop0"));
        assert_eq!(first.devices, [makedev(7, 0), makedev(259, 3)]);
        assert_eq!((first.file.as_ref(), &first.name), (Some(&key), &file));
        assert_eq!((second.file.as_ref(), second.name.to_str()), (None, Some("/gone/disk.img")));
        assert!(attached(&directory.path().join("nothing")).is_empty());
    }
}
