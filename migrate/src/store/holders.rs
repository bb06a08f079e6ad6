//! Who has a file open.

use std::path::Path;

use std::time::Duration;

use rustix::fs::{AtFlags, CWD, StatxFlags};

/// So often, and after so long, something is asked that will soon have another answer.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(10);

/// Asks until there is an answer, for a moment. A process that this one is just starting holds what this
/// one had open, with its locks, until it runs its own program.
pub(crate) fn soon<T>(mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    for _ in 1..TRIES {
        match ask() {
            None => std::thread::sleep(PAUSE),
            answer => return answer,
        }
    }
    ask()
}

/// A process other than this one that has the file open, in words. Image locks do not tell that of
/// a guest that is just arriving, so the processes are looked through; those that we may not look into
/// are not found.
pub(super) fn holder(device: u64, inode: u64) -> Option<String> {
    let own = std::process::id().to_string();
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let name = process.file_name();
        let Some(id) = name.to_str().filter(|id| id.bytes().all(|byte| byte.is_ascii_digit()))
        else {
            continue;
        };
        let Ok(open) = process.path().join("fd").read_dir() else { continue };
        if id != own && open.flatten().any(|link| is_object(&link.path(), device, inode)) {
            let program = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("process {id} ({})", program.trim()));
        }
    }
    None
}

/// Asks without waiting for a server that may not answer.
fn is_object(link: &Path, device: u64, inode: u64) -> bool {
    rustix::fs::statx(CWD, link, AtFlags::STATX_DONT_SYNC, StatxFlags::INO).is_ok_and(|status| {
        status.stx_ino == inode
            && rustix::fs::makedev(status.stx_dev_major, status.stx_dev_minor) == device
    })
}
