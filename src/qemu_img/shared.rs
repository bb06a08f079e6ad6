//! What the test tool `qemu-io` (`tests/qemu-io`) shares with the front end: how it takes names, sizes and option
//! lists, and its words for an image that cannot be opened. Not an interface for anybody else.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use qcow::{Error, ErrorKind};

use super::{list, names, tuning, words};
use crate::size;

/// A size, as it is read on the command line; `None` if it is none.
pub fn parse_size(text: &str) -> Option<u64> {
    size::parse(text).ok()
}

/// The options of a list, in order.
pub fn option_list(list: &[u8]) -> Vec<(String, String)> {
    list::split(list).iter().map(|item| (item.key.clone(), item.text())).collect()
}

/// Checks the values of options that only tune how QEMU does it, of an image of clusters of this size.
///
/// # Errors
/// The lines that are to be printed.
pub fn check_tuning(options: &[(String, String)], cluster_size: Option<u64>) -> Result<(), String> {
    tuning::check(options, cluster_size).map_err(|stop| stop.lines().join("\n"))
}

/// The name that the library takes for an operand; for an option list with `image_opts`.
///
/// # Errors
/// The lines that are to be printed.
pub fn image_name(operand: &OsStr, image_opts: bool) -> Result<PathBuf, String> {
    names::source(operand, image_opts)
        .map(|source| source.path)
        .map_err(|stop| stop.lines().join("\n"))
}

/// The file that such a name means, where it is a plain one.
pub fn file_of(name: &Path) -> PathBuf {
    qcow::chain::local_path(name).unwrap_or_else(|_| name.to_path_buf())
}

/// Why the image in the file `top` cannot be opened, for writing if that was asked for.
pub fn not_opened(error: &Error, top: &Path, writing: bool) -> String {
    let why = match error.kind() {
        ErrorKind::InUse if writing => r#"Failed to get "write" lock"#.to_owned(),
        _ => words::why(error, top),
    };
    if error.kind() != ErrorKind::InUse {
        return why;
    }
    let file = error.place().file.as_deref().unwrap_or(top).display();
    format!("{why}\nIs another process using the image [{file}]?")
}

/// What a request that failed says.
pub fn failed(error: &Error) -> String {
    if error.io_source().is_some() {
        return words::plain(error);
    }
    match error.kind() {
        ErrorKind::NoSpace => "No space left on device",
        ErrorKind::Unsupported => "Operation not supported",
        _ => "Input/output error",
    }
    .to_owned()
}
