//! How a run ends whose arguments were not understood.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use qcow::Error;

use crate::cli::Cli;
use crate::failure::{FAILED, Failure};
use crate::format::OutputFormat;

/// Ends a run whose arguments were not understood: help and version are printed and end with 0; all
/// else is an error like any other, in one line or as JSON.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return if error.use_stderr() { ExitCode::from(FAILED) } else { ExitCode::SUCCESS };
    }
    let text = error.render().to_string();
    let arguments: Vec<_> = std::env::args_os().collect();
    let error = match dash_in_front(error, &arguments) {
        // The parser's own advice does not work for the value of an option.
        Some(advice) => {
            let message = text.split("\n\n").next().unwrap_or_default();
            Error::usage(in_one_line(message).message()).hint(advice)
        }
        None => in_one_line(&text),
    };
    let failure = Failure::Error(error);
    failure.report(wanted_format(std::env::args_os()), "");
    failure.exit_code()
}

/// How to give an option a value that begins with a dash, if that is what was meant.
fn dash_in_front(error: &clap::Error, arguments: &[OsString]) -> Option<String> {
    let Some(ContextValue::String(unknown)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let words: Vec<_> = arguments.iter().map(|word| word.to_string_lossy()).collect();
    let at = words.iter().position(|word| word.starts_with(unknown.as_str()))?;
    let (option, value) = (words.get(at.checked_sub(1)?)?, words.get(at)?);
    let mut cli = Cli::command();
    cli.build();
    let command = cli.find_subcommand(words.get(1)?.as_ref())?;
    let is_it = |argument: &clap::Arg| {
        let long = argument.get_long().is_some_and(|long| format!("--{long}") == *option);
        long || argument.get_short().is_some_and(|short| format!("-{short}") == *option)
    };
    let argument = command.get_arguments().find(|argument| is_it(argument))?;
    argument.get_action().takes_values().then(|| {
        format!("'{value}' is parsed as an option; as the value of {option}: {option}={value}")
    })
}

/// The parser's paragraphs as one error: what is wrong, and the tips as the way out.
fn in_one_line(text: &str) -> Error {
    let mut paragraphs = text.split("\n\n");
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let what = paragraphs.next().unwrap_or_default();
    let message = words(what.strip_prefix("error: ").unwrap_or(what));
    let mut hints: Vec<_> = paragraphs
        .filter(|paragraph| !paragraph.starts_with("Usage:"))
        .map(|paragraph| {
            let hint = words(paragraph);
            let hint = hint.strip_prefix("tip: ").unwrap_or(&hint).trim_end_matches('.');
            hint.replace("For more information, try", "try")
        })
        .collect();
    hints.retain(|hint| !hint.is_empty());
    Error::usage(message).hint(hints.join("; "))
}

/// Which format the arguments ask for, where the parser could not make sense of them.
fn wanted_format(arguments: impl Iterator<Item = OsString>) -> OutputFormat {
    let mut previous = OsString::new();
    for argument in arguments {
        if argument == "--output=json" || (previous == "--output" && argument == "json") {
            return OutputFormat::Json;
        }
        previous = argument;
    }
    OutputFormat::Human
}
