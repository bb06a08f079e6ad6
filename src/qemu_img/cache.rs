//! Cache modes: what they mean for the disk.

use std::ffi::OsStr;

/// A cache mode, as far as it makes a difference here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cache {
    /// Past the page cache.
    pub(super) direct: bool,
    /// Nothing is synced.
    pub(super) unsafely: bool,
}

/// The mode of this name, if there is one.
pub(super) fn mode(name: &OsStr) -> Option<Cache> {
    let (direct, unsafely) = match name.to_str()? {
        "none" | "off" | "directsync" => (true, false),
        "writeback" | "writethrough" => (false, false),
        "unsafe" => (false, true),
        _ => return None,
    };
    Some(Cache { direct, unsafely })
}
