//! The commands and the words that lead to them.

use clap::{Parser, Subcommand};

use crate::commands::{Checksum, Compare, Create, Flatten, Generate, Info, MapCommand, Measure};
use crate::failure::Failure;
use crate::output::OutputFormat;

/// The exit codes, as every command's help shows them.
macro_rules! exit_codes {
    () => {
        "Exit codes:
  0    done
  1    refused or failed; one line on standard error says why
  130  stopped by SIGINT (Ctrl-C); nothing half-made is left
  143  stopped by SIGTERM (129 by SIGHUP); nothing half-made is left"
    };
}
pub(crate) use exit_codes;

/// QCOW2 images without QEMU: create, inspect, flatten and prove.
#[derive(Debug, Parser)]
#[command(
    name = "qcowtool",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    after_help = exit_codes!()
)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// One variant per command; each knows its arguments and how to run.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make an empty image of exactly the right size
    Create(Create),
    /// Show what an image says about itself, and about its backing chain
    Info(Info),
    /// List where the parts of a disk come from: which layer, which offset, or zeros
    Map(MapCommand),
    /// Tell how long the file of a new image will be
    Measure(Measure),
    /// Write a whole backing chain as one standalone image
    Flatten(Flatten),
    /// Tell whether two images hold the same, and where they differ
    Compare(Compare),
    /// Print a digest of what a guest would read, or prove an earlier one
    Checksum(Checksum),
    /// Write man pages or shell completions
    #[command(hide = true)]
    Generate(Generate),
}

impl Command {
    /// How the outcome, or the error, is to be printed.
    pub(crate) fn output_format(&self) -> OutputFormat {
        match self {
            Self::Create(command) => command.output.output,
            Self::Info(command) => command.output.output,
            Self::Map(command) => command.output.output,
            Self::Measure(command) => command.output.output,
            Self::Flatten(command) => command.output.output,
            Self::Compare(command) => command.output.output,
            Self::Checksum(command) => command.output.output,
            Self::Generate(_) => OutputFormat::Human,
        }
    }

    /// Does it.
    pub(crate) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Create(command) => command.run(),
            Self::Info(command) => command.run(),
            Self::Map(command) => command.run(),
            Self::Measure(command) => command.run(),
            Self::Flatten(command) => command.run(),
            Self::Compare(command) => command.run(),
            Self::Checksum(command) => command.run(),
            Self::Generate(command) => command.run(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_argument_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_examples_and_exit_codes() {
        for command in Cli::command().get_subcommands().filter(|c| !c.is_hide_set()) {
            let help = command.clone().render_long_help().to_string();
            assert!(help.contains("Examples:"), "{}", command.get_name());
            assert!(help.contains("Exit codes:"), "{}", command.get_name());
        }
    }
}
