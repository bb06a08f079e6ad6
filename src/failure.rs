//! How a command ends when it does not end well: the line on standard error, and the exit code.

use std::io;
use std::process::ExitCode;

use qcow::Error;
use serde::Serialize;

use crate::format::{OutputFormat, eprint_line, to_json};
use crate::remedies;

/// Refused or failed.
pub(crate) const FAILED: u8 = 1;

/// A migration was refused.
pub(crate) const REFUSED: u8 = 2;

/// Why a command did not end well.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The engine, or the command line, refused or failed.
    Error(Error),
    /// As [`Error`](Self::Error), for commands that have more exit codes.
    Coded {
        /// The exit code.
        code: u8,
        /// What is said.
        error: Error,
    },
    /// The outcome was printed and is not a good one; there is no more to say.
    Verdict(u8),
    /// A signal asked to stop, and the operation did.
    Stopped {
        /// The signal's number.
        signal: i32,
        /// What the operation said.
        error: Error,
    },
    /// A migration was refused or failed. Interrupted ones are [`Stopped`](Self::Stopped).
    Migration(migrate::Error),
    /// The reader of standard output has closed it; no message is printed.
    OutputClosed,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<migrate::Error> for Failure {
    fn from(error: migrate::Error) -> Self {
        Self::Migration(error)
    }
}

impl Failure {
    /// What a failed write to standard output means.
    pub(crate) fn from_output(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::Error(Error::io("could not write to standard output", error)),
        }
    }

    /// The answer's code, the failure's, or else 1; 128 and the signal's number.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code())
    }

    fn code(&self) -> u8 {
        match self {
            Self::Error(_) | Self::OutputClosed => FAILED,
            Self::Migration(error) => migration_code(error.kind()),
            Self::Coded { code, .. } | Self::Verdict(code) => *code,
            Self::Stopped { signal, .. } => {
                signal.checked_add(128).and_then(|code| u8::try_from(code).ok()).unwrap_or(FAILED)
            }
        }
    }

    /// Says on standard error what happened in `command`: one line, or one JSON object.
    pub(crate) fn report(&self, format: OutputFormat, command: &str) {
        let (text, object) = match self {
            Self::Error(error) | Self::Coded { error, .. } | Self::Stopped { error, .. } => {
                (remedies::line(error, command), ErrorObject::of(error, command))
            }
            Self::Migration(error) => {
                (migration_line(error, command), ErrorObject::of_migration(error, command))
            }
            Self::OutputClosed | Self::Verdict(_) => return,
        };
        match (format, to_json(&Report { error: object })) {
            (OutputFormat::Json, Ok(json)) => eprint_quietly(&json),
            _ => eprint_line(format_args!("qcowtool: {text}")),
        }
    }
}

/// The exit codes of migrations: what the caller has to do next differs (docs/exit-codes.md).
fn migration_code(kind: migrate::ErrorKind) -> u8 {
    match kind {
        migrate::ErrorKind::Refused => REFUSED,
        migrate::ErrorKind::Changed => 3,
        migrate::ErrorKind::Unverified => 4,
        migrate::ErrorKind::InDoubt => 5,
        migrate::ErrorKind::Environment
        | migrate::ErrorKind::Corrupt
        | migrate::ErrorKind::Unsupported
        | migrate::ErrorKind::Limit
        | migrate::ErrorKind::Internal => 6,
        migrate::ErrorKind::Interrupted => 130,
        _ => FAILED,
    }
}

fn eprint_quietly(text: &str) {
    use io::Write;
    let _ = io::stderr().write_all(text.as_bytes());
}

#[derive(Debug, Serialize)]
struct Report {
    error: ErrorObject,
}

/// An error's parts; those that are not known are left out. Offsets are in bytes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct ErrorObject {
    kind: &'static str,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    structure: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    guest_offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl ErrorObject {
    fn of(error: &Error, command: &str) -> Self {
        let place = error.place();
        let message = match std::error::Error::source(error) {
            Some(source) => format!("{}: {source}", error.message()),
            None => error.message().to_owned(),
        };
        Self {
            kind: error.kind().as_str(),
            message,
            host: None,
            file: place.file.as_ref().map(|file| file.to_string_lossy().into_owned()),
            structure: place.structure,
            index: place.index,
            host_offset: place.host_offset,
            guest_offset: place.guest_offset,
            hint: remedies::words_for(error, command),
        }
    }

    fn of_migration(error: &migrate::Error, command: &str) -> Self {
        let hint = error.what_next().map(|remedy| remedies::migration_words(remedy, command));
        match error.engine() {
            // Where the engine says that it was.
            Some(engine) => Self {
                kind: error.kind().as_str(),
                message: error.message_without_place().to_owned(),
                host: error.host().map(str::to_owned),
                hint,
                ..Self::of(engine, command)
            },
            None => Self {
                kind: error.kind().as_str(),
                message: error.message().to_owned(),
                host: error.host().map(str::to_owned),
                file: None,
                structure: None,
                index: None,
                host_offset: None,
                guest_offset: None,
                hint,
            },
        }
    }
}

/// The line about an error of a command that moves guests.
fn migration_line(error: &migrate::Error, command: &str) -> String {
    let host = error.host().map(|host| format!("{host}: ")).unwrap_or_default();
    match error.what_next() {
        Some(remedy) => {
            let hint = remedies::migration_words(remedy, command);
            format!("{host}{} ({hint})", error.message())
        }
        None => format!("{host}{}", error.message()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_ends_with_1_and_a_signal_with_128_and_its_number() {
        let stopped = |signal| Failure::Stopped { signal, error: Error::interrupted() };
        assert_eq!(Failure::from(Error::corrupt("x")).code(), 1);
        assert_eq!(stopped(signal_hook::consts::SIGINT).code(), 130);
        assert_eq!(stopped(signal_hook::consts::SIGTERM).code(), 143);
        assert_eq!(Failure::OutputClosed.code(), 1);
    }

    #[test]
    fn a_reader_that_went_away_is_not_an_error_to_report() {
        let gone = io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(matches!(Failure::from_output(gone), Failure::OutputClosed));
        let full = io::Error::from(io::ErrorKind::StorageFull);
        assert!(matches!(Failure::from_output(full), Failure::Error(_)));
    }

    #[test]
    fn json_errors_have_all_known_parts_and_no_others() {
        let error = Error::corrupt("found 5").structure("L1 table").index(3).host_offset(64_u64);
        let report = Report { error: ErrorObject::of(&error.hint("look elsewhere"), "info") };
        let expected = serde_json::json!({"error": {
            "kind": "corrupt", "message": "found 5", "structure": "L1 table", "index": 3,
            "host-offset": 64, "hint": "look elsewhere"
        }});
        assert_eq!(serde_json::to_value(report).unwrap(), expected);
    }

    #[test]
    fn json_errors_of_a_migration_have_the_place_that_the_engine_knew() {
        let engine = Error::corrupt("found 5").structure("L1 table").index(3).host_offset(64_u64);
        let error = migrate::Error::from(engine.file("disk.qcow2").hint("look")).on("host-a");
        let expected = serde_json::json!({
            "kind": "corrupt", "message": "found 5", "host": "host-a", "file": "disk.qcow2",
            "structure": "L1 table", "index": 3, "host-offset": 64, "hint": "look"
        });
        assert_eq!(
            serde_json::to_value(ErrorObject::of_migration(&error, "migrate")).unwrap(),
            expected
        );
    }

    #[test]
    fn json_errors_survive_a_file_name_that_is_not_utf_8() {
        use std::os::unix::ffi::OsStrExt;
        let name = std::ffi::OsStr::from_bytes(b"a\xff");
        let error = Error::io("could not open", io::Error::from_raw_os_error(2)).file(name);
        let json = serde_json::to_value(ErrorObject::of(&error, "info")).unwrap();
        assert_eq!(json["file"], "a\u{fffd}");
        assert_eq!(json["message"], "could not open: No such file or directory (os error 2)");
    }
}
