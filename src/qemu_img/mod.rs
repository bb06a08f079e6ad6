//! The program under the name `qemu-img`: its arguments, its words and its exit codes, over the operations that
//! `qcowtool` has. Chosen by the name that the program was called by, or as `qcowtool qemu-img`; no operation
//! knows of it. What is different on purpose is listed in `docs/qemu-img.md`.

mod cache;
mod commands;
mod getopt;
mod help;
mod list;
mod names;
mod new;
mod number;
mod objects;
mod open;
mod progress;
mod say;
pub mod shared;
mod tuning;
mod words;
mod writing;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

use getopt::{Key, Opt, flag, value};
use say::{Stop, print};

/// What `qemu-img` says of itself and of what it is like; programs take the first number.
const VERSION: &str = concat!(
    "qemu-img version 10.0.2 (qcowtool ",
    env!("CARGO_PKG_VERSION"),
    ")\nqcowtool in the place of qemu-img; see docs/qemu-img.md\n"
);

/// The name and the arguments for `qemu-img`, if that is what the program was called as.
pub(crate) fn called(
    arguments: impl Iterator<Item = OsString>,
) -> Option<(OsString, Vec<OsString>)> {
    let mut arguments = arguments;
    let program = arguments.next()?;
    let name = Path::new(&program).file_name()?.to_owned();
    if name.as_bytes().ends_with(b"qemu-img") {
        return Some((name, arguments.collect()));
    }
    let first = arguments.next()?;
    (first == "qemu-img").then(|| (first, arguments.collect()))
}

/// The `json:` name that means what this list of driver options means, for a command that takes the list as well.
///
/// # Errors
/// `Usage` for what is no such list, and for drivers and options that are not known.
pub(crate) fn image_opts(list: &OsStr) -> qcow::Result<std::path::PathBuf> {
    names::source(list, true).map(|source| source.path).map_err(|stop| {
        let lines: Vec<String> = stop.lines().iter().map(ToString::to_string).collect();
        qcow::Error::usage(lines.join("; "))
    })
}

/// Runs the command line of `qemu-img`.
pub(crate) fn run(name: &OsStr, arguments: &[OsString]) -> ExitCode {
    say::called(name);
    match command(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(stop) => {
            stop.report();
            ExitCode::from(stop.exit_code())
        }
    }
}

const GLOBAL: &[Opt] = &[
    flag(Key::Help, b'h', "help"),
    flag(Key::Version, b'V', "version"),
    value(Key::Trace, b'T', "trace"),
];

type Command = fn(&[OsString]) -> Result<(), Stop>;

const COMMANDS: &[(&str, Command)] = &[
    ("amend", commands::amend::run),
    ("bench", commands::bench::run),
    ("bitmap", commands::bitmap::run),
    ("check", commands::check::run),
    ("commit", commands::commit::run),
    ("compare", commands::compare::run),
    ("convert", commands::convert::run),
    ("create", commands::create::run),
    ("dd", commands::dd::run),
    ("info", commands::info::run),
    ("map", commands::map::run),
    ("measure", commands::measure::run),
    ("rebase", commands::rebase::run),
    ("resize", commands::resize::run),
    ("snapshot", commands::snapshot::run),
];

fn command(arguments: &[OsString]) -> Result<(), Stop> {
    if arguments.is_empty() {
        return Err(Stop::usage("Not enough arguments"));
    }
    let (global, rest) = split_global(arguments);
    let given = getopt::parse(&[GLOBAL], global)?;
    if given.has(Key::Help) {
        return print(help::text());
    }
    if given.has(Key::Version) {
        return print(VERSION);
    }
    let Some((name, arguments)) = rest.split_first() else { return Ok(()) };
    let text = name.to_string_lossy();
    match COMMANDS.iter().find(|(known, _)| *known == text) {
        Some((_, run)) => run(arguments),
        None => Err(Stop::usage(format!("Command not found: {text}"))),
    }
}

/// The options in front of the command, and what follows.
fn split_global(arguments: &[OsString]) -> (&[OsString], &[OsString]) {
    let mut at = 0;
    while let Some(argument) = arguments.get(at).filter(|word| word.as_bytes().starts_with(b"-")) {
        let apart = matches!(argument.as_bytes(), b"-T" | b"--trace");
        at = at.saturating_add(if apart { 2 } else { 1 });
    }
    arguments.split_at_checked(at).unwrap_or((arguments, &[]))
}

/// Takes the arguments of a command apart; prints the help if that is asked for, and ends then.
fn arguments(options: &[Opt], words: &[OsString]) -> Result<getopt::Parsed, Stop> {
    let given = getopt::parse(&[options, &getopt::COMMON], words)?;
    if given.has(Key::Help) {
        print(help::text())?;
        return Err(Stop::silent(0));
    }
    Ok(given)
}

/// How an outcome is printed.
///
/// # Errors
/// For any word but two.
fn json_wanted(given: &getopt::Parsed) -> Result<bool, Stop> {
    match given.text(Key::Output).as_deref() {
        None | Some("human") => Ok(false),
        Some("json") => Ok(true),
        Some(_) => Err(Stop::error("--output must be used with human or json as argument.")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(words: &[&str]) -> Option<(String, usize)> {
        let (name, rest) = called(words.iter().map(OsString::from))?;
        Some((name.into_string().unwrap(), rest.len()))
    }

    #[test]
    fn the_name_decides_whatever_stands_in_front_of_it() {
        assert_eq!(found(&["/opt/x/qemu-img", "info"]), Some(("qemu-img".into(), 1)));
        assert_eq!(found(&["cloud-qemu-img"]), Some(("cloud-qemu-img".into(), 0)));
        assert_eq!(found(&["qcowtool", "qemu-img", "info", "a"]), Some(("qemu-img".into(), 2)));
        assert_eq!(found(&["qcowtool", "info", "qemu-img"]), None);
        assert_eq!(found(&["qemu-img-x"]), None);
    }
}
