//! The `qcowtool` command line: arguments in, one call into the engine, its outcome out.
//!
//! Nothing is worked out here that the library could work out; this crate turns words into
//! options, and outcomes and errors into text, JSON and exit codes.

mod args;
mod cli;
mod commands;
mod failure;
mod format;
mod left_out;
mod libvirt;
mod listen;
mod losses;
mod options;
mod output;
#[cfg_attr(not(feature = "pictures"), path = "no_picture.rs")]
mod picture;
mod progress;
mod qemu_img;
mod remedies;
pub mod sandbox;
mod script;
mod session;
mod signals;
mod size;
mod usage;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

pub use libvirt::{Access, Connect, Connected};
#[doc(hidden)]
pub use qemu_img::shared;

/// Runs the command line of this process. `connect` is how commands reach libvirt; without it, those
/// that need libvirt are handed to the program that has it, `qcowtool-libvirt`.
pub fn run(connect: Option<Connect>) -> ExitCode {
    libvirt::install(connect);
    remedies::install(<cli::Cli as CommandFactory>::command);
    signals::survive_file_limit();
    if let Some((name, arguments)) = qemu_img::called(std::env::args_os()) {
        return qemu_img::run(&name, &arguments);
    }
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage::usage(&error),
    };
    let (format, name) = (cli.command.output_format(), cli.command.name());
    match cli.command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report(format, name);
            failure.exit_code()
        }
    }
}
