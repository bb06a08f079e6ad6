//! The `qcowtool` command line: arguments in, one call into the engine, its outcome out.
//!
//! Nothing is worked out here that the library could work out; this crate turns words into
//! options, and outcomes and errors into text, JSON and exit codes.

mod args;
mod cli;
mod commands;
mod failure;
mod options;
mod output;
mod picture;
mod progress;
mod signals;
mod size;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return failure::usage(&error),
    };
    let format = cli.command.output_format();
    match cli.command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report(format);
            failure.exit_code()
        }
    }
}
