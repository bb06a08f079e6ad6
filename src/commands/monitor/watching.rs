//! File events: in which directories something happened since the last scan.
//!
//! Only events that can change dependencies are subscribed to. What a running guest writes makes no event, nor does
//! reading, so neither guests nor the scans themselves set a scan off.

use std::collections::BTreeSet;
use std::ffi::{CString, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use migrate::audit::{Presence, Survey};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};

/// More directories are left to the interval: watches cost the kernel memory.
const MOST: usize = 16_384;

/// Wakes the thread that waits for events.
#[derive(Debug)]
pub(super) struct Bell(OwnedFd);

impl Bell {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    pub(super) fn ring(&self) {
        // Any number that is not zero, in any order of bytes.
        let _ = rustix::io::write(&self.0, &[1; 8]);
    }
}

/// What a wait ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waited {
    /// Something happened in a directory.
    Event,
    /// The time came.
    Time,
    /// The bell rang.
    Bell,
}

/// The directories that are watched.
#[derive(Debug)]
pub(super) struct Watching {
    /// `None` where the kernel gives none: then there is only the interval.
    queue: Option<OwnedFd>,
    watches: BTreeSet<i32>,
    /// Files of this name are our own.
    own: Option<OsString>,
    /// Directories that should be watched and are not.
    pub(super) left_out: usize,
}

impl Watching {
    /// Watches nothing yet. What happens to files of the name of `own`, and to those that become it, is not
    /// reported: this program writes them.
    pub(super) fn new(own: Option<&Path>) -> Self {
        let queue = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok();
        let own = own.and_then(Path::file_name).map(std::ffi::OsStr::to_owned);
        Self { queue, watches: BTreeSet::new(), own, left_out: 0 }
    }

    /// How many directories are watched.
    pub(super) fn len(&self) -> usize {
        self.watches.len()
    }

    /// Watches just these. True if one of them was not watched before, so that events may
    /// have been missed.
    pub(super) fn watch(&mut self, directories: &BTreeSet<PathBuf>) -> bool {
        let Some(queue) = &self.queue else {
            self.left_out = directories.len();
            return false;
        };
        let flags = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVE
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR
            | WatchFlags::EXCL_UNLINK;
        // One directory has one number, whatever it is called and however often it is added.
        let added: Vec<i32> = directories
            .iter()
            .take(MOST)
            .filter_map(|path| CString::new(path.as_os_str().as_bytes()).ok())
            .filter_map(|path| inotify::add_watch(queue, path, flags).ok())
            .collect();
        self.left_out = directories.len().saturating_sub(added.len());
        let watches = BTreeSet::from_iter(added);
        for watch in self.watches.difference(&watches) {
            let _ = inotify::remove_watch(queue, *watch);
        }
        let new = watches.difference(&self.watches).next().is_some();
        self.watches = watches;
        new
    }

    /// Waits for an event until then, or for the bell.
    ///
    /// # Errors
    /// The system's, where waiting is not possible at all.
    pub(super) fn wait(&self, until: Instant, bell: &Bell) -> io::Result<Waited> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Waited::Time);
            }
            let time = Timespec::try_from(left.max(Duration::from_millis(1))).ok();
            let mut both = vec![PollFd::new(&bell.0, PollFlags::IN)];
            both.extend(self.queue.iter().map(|queue| PollFd::new(queue, PollFlags::IN)));
            match poll(&mut both, time.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let mut rang = both.iter().map(|fd| !fd.revents().is_empty());
            if rang.next() == Some(true) {
                return Ok(Waited::Bell);
            }
            if rang.next() == Some(true) && self.drain() {
                return Ok(Waited::Event);
            }
        }
    }

    /// Takes all events that are there; whether one of them was not our own.
    pub(super) fn drain(&self) -> bool {
        let Some(queue) = &self.queue else { return false };
        let mut space = [MaybeUninit::uninit(); 16 << 10];
        let mut reader = Reader::new(queue, &mut space);
        let mut others = false;
        while let Ok(event) = reader.next() {
            let name = event.file_name().map(std::ffi::CStr::to_bytes);
            let own = name.is_some_and(|name| self.is_own(name));
            // That a watch is gone was told by what took it away.
            others |= !own && event.events() != ReadFlags::IGNORED;
        }
        others
    }

    fn is_own(&self, name: &[u8]) -> bool {
        let Some(own) = self.own.as_ref().map(|own| own.as_bytes()) else { return false };
        let rest = name.strip_prefix(b".").and_then(|name| name.strip_prefix(own));
        name == own || rest.is_some_and(|rest| rest.starts_with(b".") && rest.ends_with(b".tmp"))
    }
}

/// The directories in which something may happen that changes a survey: those that were read, and those of
/// everything that images need.
pub(super) fn directories(survey: &Survey) -> BTreeSet<PathBuf> {
    let mut all: BTreeSet<PathBuf> = survey.entered.iter().cloned().collect();
    let here = survey.images.iter().filter(|image| {
        image.key.host().is_none() && !matches!(image.presence, Presence::Deleted { .. })
    });
    for name in here.flat_map(|image| &image.names) {
        all.extend(name.path.parent().map(Path::to_path_buf));
    }
    all
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, reason = "instants in tests are in range")]
mod tests {
    use std::fs;

    use super::*;

    fn until() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn what_happens_in_a_directory_is_told_and_our_own_files_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let bell = Bell::new().unwrap();
        let mut watching = Watching::new(Some(Path::new("/elsewhere/audit.prom")));
        let all = BTreeSet::from([directory.path().to_path_buf()]);
        assert!(watching.watch(&all), "it is new");
        assert!(!watching.watch(&all), "it is not new any more");
        fs::write(directory.path().join("audit.prom"), "x").unwrap();
        fs::write(directory.path().join(".audit.prom.x.tmp"), "x").unwrap();
        assert!(!watching.drain());
        let image = directory.path().join("image");
        fs::write(&image, "x").unwrap();
        assert_eq!(watching.wait(until(), &bell).unwrap(), Waited::Event);
        // Reading it, as scans do, is no event, and neither is writing into it without an end.
        let mut open = fs::File::options().write(true).open(&image).unwrap();
        io::Write::write_all(&mut open, b"y").unwrap();
        fs::read(&image).unwrap();
        assert!(!watching.drain());
        drop(open);
        assert_eq!(watching.wait(until(), &bell).unwrap(), Waited::Event);
        fs::remove_dir_all(directory.path()).unwrap();
        assert_eq!(watching.wait(until(), &bell).unwrap(), Waited::Event);
        bell.ring();
        assert_eq!(watching.wait(until(), &bell).unwrap(), Waited::Bell);
        assert_eq!(watching.wait(Instant::now(), &bell).unwrap(), Waited::Time);
        assert!(!watching.watch(&all), "it is gone");
        assert_eq!((watching.len(), watching.left_out), (0, 1));
    }
}
