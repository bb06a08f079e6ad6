//! Who has files open, seen through `/proc`.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use rustix::fs::{AtFlags, CWD, FileType, StatxFlags};

use super::file;
use crate::audit::value::{Holder, Image, Key, Name, Unseen};
use crate::process::{self, deleted_name, is_temporary, writes};

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
        let numbers = process::Process::numbers(proc);
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
        let process = process::Process::now(proc, number)?;
        let (files, unreadable) = match process.descriptors() {
            Ok(descriptors) => (descriptors?.into_iter().filter_map(open_file).collect(), None),
            Err(error) => (Vec::new(), Some(super::in_words(&error))),
        };
        let process::Process { shown: program, qemu, .. } = process;
        Some(Self { number, program, qemu, files, unreadable })
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
    let deleted = deleted_name(&link).filter(|_| !named);
    Some(OpenFile { key, deleted, through })
}
