//! Numbers as `qemu-img` reads them on its command line.

use std::ffi::OsStr;

use super::say::Stop;
use crate::size;

/// A size; `what` is the word for it in messages, and `most` the largest.
///
/// # Errors
/// For what is no size, and for one that is too large.
pub(super) fn within(what: &str, text: &OsStr, least: u64, most: u64) -> Result<u64, Stop> {
    let text = text.to_string_lossy();
    let range =
        || Stop::error(format!("Invalid {what} specified. Must be between {least} and {most}."));
    match size::parse(&text) {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        Ok(_) => Err(range()),
        Err(_) if size::is_too_large(&text) || is_negative(&text) => Err(range()),
        Err(_) => Err(Stop::error(format!(
            "Invalid {what} specified. You may use k, M, G, T, P or E suffixes for"
        ))
        .and("kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes.")),
    }
}

/// Whether the text is a whole number below zero.
fn is_negative(text: &str) -> bool {
    let digits = text.trim_ascii_start().strip_prefix('-').unwrap_or_default();
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// A size of at most 2^63 - 1.
///
/// # Errors
/// As [`within`].
pub(super) fn size(what: &str, text: &OsStr) -> Result<u64, Stop> {
    within(what, text, 0, i64::MAX.unsigned_abs())
}

/// The value of an option of a list, of 64 bits.
///
/// # Errors
/// In the words for options.
pub(super) fn parameter(name: &str, text: &str) -> Result<u64, Stop> {
    match size::parse(text) {
        Ok(number) => Ok(number),
        Err(_) if is_negative(text) => {
            Err(Stop::error(format!("Value '{text}' is out of range for parameter '{name}'")))
        }
        Err(_) => {
            Err(Stop::error(format!("Parameter '{name}' expects a non-negative number below 2^64"))
                .hint("Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-")
                .hint("and exabytes, respectively."))
        }
    }
}
