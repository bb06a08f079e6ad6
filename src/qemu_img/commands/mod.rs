//! One file per command: its options, one call into the library, what it prints.

pub(super) mod amend;
pub(super) mod bench;
pub(super) mod bitmap;
pub(super) mod check;
pub(super) mod commit;
pub(super) mod compare;
pub(super) mod convert;
pub(super) mod create;
pub(super) mod dd;
pub(super) mod info;
pub(super) mod map;
pub(super) mod measure;
pub(super) mod rebase;
pub(super) mod resize;
pub(super) mod snapshot;

use std::ffi::OsStr;

use super::list;
use super::say::Stop;

/// The snapshot that `-l` names, in the words of the library: an id or name, or both stated.
///
/// # Errors
/// For keys that are not known.
fn snapshot_of(text: &OsStr) -> Result<String, Stop> {
    use std::os::unix::ffi::OsStrExt;
    let shown = text.to_string_lossy();
    if !shown.starts_with("snapshot.") {
        return Ok(shown.into_owned());
    }
    for item in list::split(text.as_bytes()) {
        if !matches!(item.key.as_str(), "snapshot.id" | "snapshot.name") {
            return Err(Stop::error(format!("Invalid parameter '{}'", item.key))
                .and(format!("Failed in parsing snapshot param '{shown}'")));
        }
    }
    Ok(shown.into_owned())
}
