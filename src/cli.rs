//! The commands and the words that lead to them.

use clap::{ArgMatches, Args, FromArgMatches, Parser, Subcommand};

use crate::args::exit_codes;
use crate::commands::{
    Agent, Audit, Check, Checksum, Compare, Create, Dependents, Flatten, Generate, Info,
    MapCommand, Measure, Migrate, Monitor, PlanCommand, Preflight, Prepare, Rescue, Resume,
    Rollback, Transactions,
};
use crate::failure::Failure;
use crate::output::OutputFormat;

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

/// One line per command: its type, its name, and what it does. Makes [`Command`], whose arguments are
/// defined only when the command is the one called: defining those of all would take longer than
/// most commands do.
macro_rules! commands {
    ($($type:ident($options:ident) $name:literal $about:literal $(hidden $hidden:literal)?;)*) => {
        /// One variant per command; each knows its arguments and how to run.
        #[derive(Debug)]
        pub(crate) enum Command {
            $(#[doc = $about] $type($type),)*
        }

        impl Subcommand for Command {
            fn augment_subcommands(parent: clap::Command) -> clap::Command {
                parent.subcommand_required(true)$(.subcommand(
                    clap::Command::new($name)
                        .about($about)
                        $(.hide($hidden))?
                        .defer(|command| $type::augment_args(command).about($about)),
                ))*
            }

            fn augment_subcommands_for_update(parent: clap::Command) -> clap::Command {
                Self::augment_subcommands(parent)
            }

            fn has_subcommand(name: &str) -> bool {
                [$($name),*].contains(&name)
            }
        }

        impl FromArgMatches for Command {
            fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
                match matches.subcommand() {
                    $(Some(($name, matches)) => $type::from_arg_matches(matches).map(Self::$type),)*
                    _ => Err(clap::Error::new(clap::error::ErrorKind::MissingSubcommand)),
                }
            }

            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
                *self = Self::from_arg_matches(matches)?;
                Ok(())
            }
        }

        impl Command {
            /// How the outcome, or the error, is to be printed.
            pub(crate) fn output_format(&self) -> OutputFormat {
                match self {
                    $(Self::$type(command) => command.$options.format(),)*
                }
            }

            /// The word that calls it.
            pub(crate) fn name(&self) -> &'static str {
                match self {
                    $(Self::$type(_) => $name,)*
                }
            }

            /// Does it.
            pub(crate) fn run(self) -> Result<(), Failure> {
                match self {
                    $(Self::$type(command) => command.run(),)*
                }
            }
        }
    };
}

commands! {
    Create(common) "create" "Make an empty image of exactly the right size";
    Info(common) "info" "Show what an image says about itself, and about its backing chain";
    MapCommand(common) "map" "List where the parts of a disk come from: which layer, which offset, or zeros";
    Measure(common) "measure" "Tell how long the file of a new image will be";
    Flatten(common) "flatten" "Write a whole backing chain as one standalone image";
    Compare(common) "compare" "Tell whether two images hold the same, and where they differ";
    Check(common) "check" "Hold an image's metadata against itself, and count what is wrong";
    Checksum(common) "checksum" "Print a digest of what a guest would read, or prove an earlier one";
    Audit(output) "audit" "Say which images stand on which, and what is wrong with it";
    Dependents(output) "dependents" "List what stands on an image, or tell whether it can be deleted";
    Rescue(output) "rescue" "Save a base that was deleted while a guest holds it open";
    Monitor(output) "monitor" "Audit again and again, as metrics for Prometheus and as a page";
    Preflight(output) "preflight" "Say whether a whole host's guests can go to another host, and in which order";
    PlanCommand(output) "plan" "Say what migrating a guest would do to every disk, and why";
    Migrate(output) "migrate" "Move a guest with its local disks to another host";
    Prepare(output) "prepare" "Make and prove a guest's images at the destination, for a manager that migrates";
    Transactions(output) "transactions" "List runs of migrate and prepare, and those that were cut off";
    Resume(output) "resume" "Go on with a run that was cut off";
    Rollback(output) "rollback" "Undo a run that was cut off, or what prepare made";
    Agent(output) "agent" "Serve this host's files to a qcowtool at the other end of --rsh" hidden true;
    Generate(output) "generate" "Write man pages or shell completions" hidden true;
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
        let mut all = Cli::command();
        all.build();
        for command in all.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help")
        {
            let help = command.clone().render_long_help().to_string();
            assert!(help.contains("Examples:"), "{}", command.get_name());
            assert!(help.contains("Exit codes:"), "{}", command.get_name());
        }
    }
}
