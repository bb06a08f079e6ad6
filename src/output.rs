//! What goes to standard output and standard error.

use std::fmt::Display;
use std::io::{self, Write};

use qcow::Error;
use serde::Serialize;

use crate::failure::Failure;
pub(crate) use crate::format::{OutputFormat, eprint_line, shown, to_json};

/// Prints text to standard output.
pub(crate) fn print(text: impl Display) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    write!(stdout, "{text}").and_then(|()| stdout.flush()).map_err(Failure::from_output)
}

/// Prints a value to standard output as JSON.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = to_json(value)
        .map_err(|error| Error::io("could not write the outcome as JSON", error.into()))?;
    print(text)
}

/// Prints a value to standard error as JSON, where standard output is taken.
pub(crate) fn eprint_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = to_json(value)
        .map_err(|error| Error::io("could not write the outcome as JSON", error.into()))?;
    let _ = io::stderr().write_all(text.as_bytes());
    Ok(())
}

/// Warns on standard error, in one line: what was asked for was done, but may not be what was meant.
pub(crate) fn warn_line(line: impl Display) {
    eprint_line(format_args!("qcowtool: warning: {line}"));
}

/// Prints lines to standard error, as [`eprint_line`].
pub(crate) fn eprint_lines(text: &str) -> Result<(), Failure> {
    text.lines().for_each(eprint_line);
    Ok(())
}

/// Prints warnings on standard error, one a line.
pub(crate) fn warn(warnings: &[String]) {
    warnings.iter().for_each(warn_line);
}
