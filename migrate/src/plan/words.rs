//! Refusals and warnings, put together the same way everywhere.

use super::value::{Refusal, Warning};
use crate::Remedy;

/// A refusal by rule or row `code`.
pub(super) fn refuse(
    code: &str,
    disk: Option<&str>,
    message: impl Into<String>,
    way_out: impl Into<Remedy>,
) -> Refusal {
    Refusal {
        code: code.to_owned(),
        disk: disk.map(str::to_owned),
        message: message.into(),
        way_out: way_out.into(),
    }
}

/// A warning that programs know by `code`.
pub(super) fn warn(code: &str, disk: Option<&str>, message: impl Into<String>) -> Warning {
    Warning { code: code.to_owned(), disk: disk.map(str::to_owned), message: message.into() }
}

/// `'a', 'b'`.
pub(super) fn list(names: &[String]) -> String {
    names.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ")
}
