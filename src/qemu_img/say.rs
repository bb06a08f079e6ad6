//! What goes to standard output and standard error, as `qemu-img` says it: messages begin with the name that the
//! program was called by, and hints follow on lines of their own.

use std::ffi::OsStr;
use std::fmt::Display;
use std::io::{self, Write};
use std::sync::OnceLock;

use qcow::Escaped;
use serde::Serialize;

use crate::format::to_json;

static NAME: OnceLock<String> = OnceLock::new();

/// From now on messages begin with `name`.
pub(super) fn called(name: &OsStr) {
    let _ = NAME.set(name.to_string_lossy().into_owned());
}

fn name() -> &'static str {
    NAME.get().map_or("qemu-img", String::as_str)
}

/// Why a command ends: an exit code, and what is said on standard error.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stop {
    code: u8,
    /// What is said, and whether the program's name stands in front.
    lines: Vec<(bool, String)>,
}

impl Stop {
    /// A message, and exit code 1. Lines after the first are hints.
    pub(super) fn error(text: impl Display) -> Self {
        let text = text.to_string();
        let lines = text.split('\n').enumerate();
        Self { code: 1, lines: lines.map(|(at, line)| (at == 0, line.to_owned())).collect() }
    }

    /// As [`error`](Self::error), and where the options are explained.
    pub(super) fn usage(text: impl Display) -> Self {
        Self::error(text).hint("Try 'qemu-img --help' for more information")
    }

    /// Ends without another word.
    pub(super) fn silent(code: u8) -> Self {
        Self { code, lines: Vec::new() }
    }

    /// Adds a line without prefix.
    pub(super) fn hint(mut self, line: impl Into<String>) -> Self {
        self.lines.push((false, line.into()));
        self
    }

    /// Adds another message.
    pub(super) fn and(mut self, text: impl Into<String>) -> Self {
        self.lines.push((true, text.into()));
        self
    }

    /// Ends with another code.
    pub(super) fn code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// Puts `text` in front of the message.
    pub(super) fn prepend(mut self, text: impl Display) -> Self {
        if let Some((_, first)) = self.lines.first_mut() {
            *first = format!("{text}{first}");
        }
        self
    }

    /// What is said.
    pub(super) fn lines(&self) -> Vec<String> {
        self.lines.iter().map(|(_, line)| line.clone()).collect()
    }

    /// Says it.
    pub(super) fn report(&self) {
        for (named, text) in &self.lines {
            if *named { error(text) } else { line(text) }
        }
    }

    /// The exit code.
    pub(super) fn exit_code(&self) -> u8 {
        self.code
    }
}

/// A message.
pub(super) fn error(text: impl Display) {
    line(format_args!("{}: {text}", name()));
}

/// A warning.
pub(super) fn warning(text: impl Display) {
    line(format_args!("{}: warning: {text}", name()));
}

/// A line on standard error, at once.
pub(super) fn line(text: impl Display) {
    let text = format!("{}\n", Escaped(&text.to_string()));
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Prints to standard output.
///
/// # Errors
/// If it cannot be written: who reads half of it must not take it for all. One that was closed is not
/// worth a message.
pub(super) fn print(text: impl Display) -> Result<(), Stop> {
    let mut out = io::stdout().lock();
    write!(out, "{text}").and_then(|()| out.flush()).map_err(unprinted)
}

/// What a failed write to standard output means.
pub(super) fn unprinted(error: io::Error) -> Stop {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Stop::silent(1),
        _ => Stop::error(format!("could not write to standard output: {}", system(&error))),
    }
}

/// Prints JSON to standard output.
///
/// # Errors
/// As [`print`].
pub(super) fn print_json(value: &impl Serialize) -> Result<(), Stop> {
    let text = to_json(value).map_err(Stop::error)?;
    print(text)
}

/// The system's own words for an error, without its number.
pub(super) fn system(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error ") {
        Some(at) => text.get(..at).unwrap_or(&text).to_owned(),
        None => text,
    }
}

/// A name as it is shown: one line, whatever is in it.
pub(super) fn shown(name: &OsStr) -> String {
    Escaped(&name.to_string_lossy()).to_string()
}
