//! `convert --target-image-opts`: the existing image that an option list names.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use qcow::chain::Format;

use crate::qemu_img::list::{self, Item};
use crate::qemu_img::names;
use crate::qemu_img::open::warn_of_probed_raw;
use crate::qemu_img::say::Stop;

/// The file, and the format that it is written in.
///
/// # Errors
/// As [`names::source`], and for options that would have another image written, or a part of one.
pub(super) fn existing(operand: &OsStr) -> Result<(PathBuf, Format), Stop> {
    use std::os::unix::ffi::OsStrExt as _;
    let shown = operand.to_string_lossy();
    let source = names::source(operand, true).map_err(|stop| {
        let bare = stop.lines().first().is_some_and(|line| line.starts_with("Cannot find"));
        if bare { stop.prepend(format_args!("Could not open '{shown}': ")) } else { stop }
    })?;
    let refused = |what: String| Stop::error(format!("Could not open '{}': {what}", source.shown));
    let mut driver = None;
    for item in list::split(operand.as_bytes()) {
        match item.key.as_str() {
            "driver" => driver = Some(Item::text(&item)),
            key if ["offset", "size", "backing"].contains(&key) || key.starts_with("backing.") => {
                return Err(refused(format!("a target cannot have the option '{key}'")));
            }
            _ => {}
        }
    }
    let path = source.file();
    let format = match driver.as_deref() {
        Some("qcow2") => Format::Qcow2,
        Some(_) => Format::Raw,
        None => probed(&path),
    };
    Ok((path, format))
}

/// By the first bytes; what cannot be read will be found out when it is opened.
fn probed(path: &Path) -> Format {
    let mut magic = [0; 4];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    match read {
        Ok(()) if magic == *b"QFI\xfb" => Format::Qcow2,
        _ => {
            warn_of_probed_raw(path);
            Format::Raw
        }
    }
}
