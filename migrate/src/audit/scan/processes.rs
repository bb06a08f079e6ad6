//! Who has files open, seen through `/proc`.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use rustix::fs::{AtFlags, CWD, FileType, StatxFlags};

use super::{bytes, file};
use crate::audit::value::{Holder, Image, Key, Name, Unseen};

/// Ends the link text of a descriptor whose file has no name any more.
const DELETED: &[u8] = b" (deleted)";

/// The files and block devices that processes had open at one moment.
#[derive(Debug, Default)]
pub(super) struct Open {
    processes: Vec<Process>,
}

#[derive(Debug)]
struct Process {
    number: u32,
    program: String,
    qemu: bool,
    files: Vec<OpenFile>,
    unreadable: Option<String>,
}

#[derive(Debug)]
struct OpenFile {
    key: Key,
    through: PathBuf,
    /// The name that it had, if it has none any more.
    deleted: Option<PathBuf>,
}

impl Open {
    /// Looks at all processes but this one. Those that go away meanwhile are left out.
    pub(super) fn now(proc: &Path) -> Self {
        let own = std::process::id();
        let Ok(entries) = fs::read_dir(proc) else { return Self::default() };
        let numbers: Vec<u32> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|number| *number != own)
            .collect();
        let processes =
            numbers.into_par_iter().filter_map(|number| Process::now(proc, number)).collect();
        Self { processes }
    }

    /// Images that were deleted and that a QEMU holds open.
    pub(super) fn deleted_images(&self) -> Vec<Image> {
        let mut seen = BTreeSet::new();
        let held = self.processes.iter().filter(|process| process.qemu);
        let mut images = Vec::new();
        for open in held.flat_map(|process| &process.files) {
            let Some(name) = &open.deleted else { continue };
            if is_temporary(name) || !seen.insert(open.key.clone()) {
                continue;
            }
            let name = Name { symlink: false, path: name.clone() };
            images.extend(file::deleted(&open.through, name));
        }
        images
    }

    /// Who has the images open that `known` tells of.
    pub(super) fn holders(&self, known: impl Fn(&Key) -> bool) -> Vec<Holder> {
        let mut holders: Vec<Holder> = Vec::new();
        for process in &self.processes {
            for open in process.files.iter().filter(|open| known(&open.key)) {
                holders.push(Holder {
                    key: open.key.clone(),
                    process: process.number,
                    program: process.program.clone(),
                    writes: writes(&open.through),
                });
            }
        }
        // One that has it open twice counts once, and writes if it does so once.
        holders.sort_by(|a, b| (&a.key, a.process, !a.writes).cmp(&(&b.key, b.process, !b.writes)));
        holders.dedup_by(|a, b| a.key == b.key && a.process == b.process);
        holders
    }

    /// The QEMUs that could not be looked into.
    pub(super) fn unseen(&self) -> impl Iterator<Item = Unseen> {
        self.processes.iter().filter(|process| process.qemu).filter_map(|process| {
            Some(Unseen {
                host: None,
                path: format!("/proc/{}/fd", process.number).into(),
                why: format!(
                    "the open files of process {} ({}) are not known: {}",
                    process.number,
                    process.program,
                    process.unreadable.as_ref()?
                ),
                asked: false,
            })
        })
    }
}

impl Process {
    fn now(proc: &Path, number: u32) -> Option<Self> {
        let place = proc.join(number.to_string());
        let line = fs::read(place.join("cmdline")).ok()?;
        // Threads of the kernel have none, and no files.
        let program = line.split(|byte| *byte == 0).next().filter(|word| !word.is_empty())?;
        let qemu = program.windows(4).any(|part| part == b"qemu");
        let file_name = program.rsplit(|byte| *byte == b'/').next().unwrap_or(program);
        let mut shown = String::from_utf8_lossy(file_name).into_owned();
        if let Some(guest) = guest(&line).filter(|_| qemu) {
            shown = format!("{shown}, guest '{guest}'");
        }
        let (files, unreadable) = match fs::read_dir(place.join("fd")) {
            Ok(entries) => {
                (entries.flatten().filter_map(|entry| open_file(entry.path())).collect(), None)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) => (Vec::new(), Some(super::in_words(&error))),
        };
        Some(Self { number, program: shown, qemu, files, unreadable })
    }
}

/// A descriptor that is a file or a block device.
fn open_file(through: PathBuf) -> Option<OpenFile> {
    // Asks without waiting for a server that may not answer.
    let wanted = StatxFlags::TYPE | StatxFlags::INO;
    let status = rustix::fs::statx(CWD, &through, AtFlags::STATX_DONT_SYNC, wanted).ok()?;
    let key = match FileType::from_raw_mode(status.stx_mode.into()) {
        FileType::RegularFile => Key::File {
            device: rustix::fs::makedev(status.stx_dev_major, status.stx_dev_minor),
            inode: status.stx_ino,
        },
        FileType::BlockDevice => Key::Device {
            number: rustix::fs::makedev(status.stx_rdev_major, status.stx_rdev_minor),
        },
        _ => return None,
    };
    let link = fs::read_link(&through).ok()?;
    // A file may have that for a name.
    let named = fs::metadata(&link).is_ok_and(|named| {
        matches!(&key, Key::File { device, inode } if (*device, *inode) == (named.dev(), named.ino()))
    });
    let deleted = bytes(&link).strip_suffix(DELETED).filter(|_| !named);
    let deleted = deleted.map(|name| PathBuf::from(std::ffi::OsStr::from_bytes(name)));
    Some(OpenFile { key, deleted, through })
}

/// Whether a descriptor was opened for writing.
fn writes(descriptor: &Path) -> bool {
    let number = descriptor.file_name().unwrap_or_default();
    let process = descriptor.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
    let told = fs::read_to_string(process.join("fdinfo").join(number)).unwrap_or_default();
    let flags = told.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok());
    // O_WRONLY and O_RDWR.
    flags.is_some_and(|flags| flags & 0o3 != 0)
}

/// The name in `-name NAME` or `-name guest=NAME,...`.
fn guest(line: &[u8]) -> Option<String> {
    let mut words = line.split(|byte| *byte == 0).skip_while(|word| *word != b"-name");
    let value = String::from_utf8_lossy(words.nth(1)?).into_owned();
    let name = value.split(',').next()?;
    Some(name.strip_prefix("guest=").unwrap_or(name).to_owned())
}

/// QEMU's own temporary overlays have no name from the start, and memory has none ever.
fn is_temporary(name: &Path) -> bool {
    let file = name.file_name().map_or(&[][..], |file| bytes(Path::new(file)));
    file.starts_with(b"vl.") || bytes(name).starts_with(b"/memfd:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_known_by_its_name() {
        let of = |line: &[u8]| guest(line);
        assert_eq!(of(b"qemu\0-name\0guest=vm,debug-threads=on\0-S\0").as_deref(), Some("vm"));
        assert_eq!(of(b"qemu\0-name\0vm\0").as_deref(), Some("vm"));
        assert_eq!(of(b"qemu\0-name"), None);
    }
}
