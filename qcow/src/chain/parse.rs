//! Understands names of images: which of them are paths, which begin with `json:`, `file:` or a protocol.
//!
//! Manual: QEMU's "Device URL Syntax" and the `json:` pseudo-protocol.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::json;
use super::name::{ImageName, Start, is_url, network, protocol};
use crate::Result;

impl ImageName {
    /// Understands a name from an image's header (trap 103). It need not be UTF-8.
    pub(crate) fn from_header(name: &[u8]) -> Result<Self> {
        if let Some(json) = name.strip_prefix(b"json:") {
            return json::parse(json);
        }
        match protocol(name) {
            None => Ok(Self::plain(name, Start::Holder)),
            Some((b"file" | b"host_device", path)) => Ok(Self::plain(path, Start::Process)),
            Some((protocol, _)) => Err(network(&String::from_utf8_lossy(protocol))),
        }
    }

    /// Understands a name that a person gave: `json:` and `file:` as above; what looks like one of
    /// QEMU's network names is refused; all else is a path, colons included.
    pub(crate) fn from_user(path: &Path) -> Result<Self> {
        let name = path.as_os_str().as_bytes();
        if let Some(json) = name.strip_prefix(b"json:") {
            return json::parse(json);
        }
        match protocol(name) {
            Some((b"file" | b"host_device", path)) => Ok(Self::plain(path, Start::Process)),
            Some((protocol, rest)) if is_url(protocol, rest) => {
                Err(network(&String::from_utf8_lossy(protocol)))
            }
            _ => Ok(Self::plain(name, Start::Process)),
        }
    }
}
