//! Loop devices: block devices whose content is a file.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use qcow::io::LoopDevice;

use crate::audit::value::Key;
use crate::process::deleted_name;

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

/// The loop devices that have a file now. What cannot be read is left out.
pub(super) fn attached() -> Vec<Loop> {
    of_interest(LoopDevice::attached())
}

fn of_interest(
    devices: std::io::Result<impl Iterator<Item = std::io::Result<LoopDevice>>>,
) -> Vec<Loop> {
    let devices = devices.into_iter().flatten().flatten();
    let mut loops: Vec<_> = devices.filter_map(one).collect();
    loops.sort_by(|a, b| a.devices.cmp(&b.devices));
    loops
}

fn one(device: LoopDevice) -> Option<Loop> {
    let devices = device.numbers().ok()?;
    let named = device.backing_file;
    let is = named.metadata().ok().filter(std::fs::Metadata::is_file);
    let file = is.map(|is| Key::File { device: is.dev(), inode: is.ino() });
    let name = if file.is_some() { named } else { deleted_name(&named).unwrap_or(named) };
    Some(Loop { path: device.path, devices, file, name })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

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
        let found = of_interest(LoopDevice::listed_in(&sys));
        let status = file.metadata().unwrap();
        let key = Key::File { device: status.dev(), inode: status.ino() };
        let (makedev, [first, second]) = (rustix::fs::makedev, found.as_slice()) else {
            panic!("{found:?}");
        };
        assert_eq!(first.path, Path::new("/dev/loop0"));
        assert_eq!(first.devices, [makedev(7, 0), makedev(259, 3)]);
        assert_eq!((first.file.as_ref(), &first.name), (Some(&key), &file));
        assert_eq!((second.file.as_ref(), second.name.to_str()), (None, Some("/gone/disk.img")));
    }
}
