//! `convert --target-image-opts`: the existing image that an option list names.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use qcow::chain::Format;

use crate::qemu_img::list;
use crate::qemu_img::names::{self, Source};
use crate::qemu_img::open::warn_of_probed_raw;
use crate::qemu_img::say::Stop;

/// The image that a `json:` name means, and that is written in this format; `None` for another name.
///
/// # Errors
/// As [`names::source`], and for names of a part of a file, or with a backing file of their own.
pub(super) fn by_tree(operand: &OsStr, format: Format) -> Result<Option<(PathBuf, Format)>, Stop> {
    if !operand.as_bytes().starts_with(b"json:") {
        return Ok(None);
    }
    let source = names::source(operand, false)?;
    for key in source.keys() {
        refuse_option(&key, &source)?;
    }
    Ok(Some((source.to_change(), format)))
}

/// Refuses an option of a target that would have another image written, or a part of one.
fn refuse_option(key: &str, source: &Source) -> Result<(), Stop> {
    let last = key.rsplit('.').next().unwrap_or(key);
    if !matches!(last, "offset" | "size") && key != "backing" && !key.starts_with("backing.") {
        return Ok(());
    }
    let shown = &source.shown;
    Err(Stop::error(format!("Could not open '{shown}': a target cannot have the option '{key}'")))
}

/// The file, and the format that it is written in.
///
/// # Errors
/// As [`names::source`], and for options that would have another image written, or a part of one.
pub(super) fn existing(operand: &OsStr) -> Result<(PathBuf, Format), Stop> {
    let shown = operand.to_string_lossy();
    let source = names::source(operand, true).map_err(|stop| {
        let bare = stop.lines().first().is_some_and(|line| line.starts_with("Cannot find"));
        if bare { stop.prepend(format_args!("Could not open '{shown}': ")) } else { stop }
    })?;
    let mut driver = None;
    for item in list::split(operand.as_bytes()) {
        refuse_option(&item.key, &source)?;
        if item.key == "driver" {
            driver = Some(item.text());
        }
    }
    let path = source.to_change();
    let format = match driver.as_deref() {
        Some("qcow2") => Format::Qcow2,
        Some(_) => Format::Raw,
        None => probed(&source.file()),
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
