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
    ($($type:ident $name:literal $about:literal $(hidden $hidden:literal)?;)*) => {
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
                    $(Self::$type(command) => command.output.output.into(),)*
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
    Create "create" "Make an empty image of exactly the right size";
    Info "info" "Show what an image says about itself, and about its backing chain";
    MapCommand "map" "List where the parts of a disk come from: which layer, which offset, or zeros";
    Measure "measure" "Tell how long the file of a new image will be";
    Flatten "flatten" "Write a whole backing chain as one standalone image";
    Compare "compare" "Tell whether two images hold the same, and where they differ";
    Check "check" "Hold an image's metadata against itself, and count what is wrong";
    Checksum "checksum" "Print a digest of what a guest would read, or prove an earlier one";
    Audit "audit" "Say which images stand on which, and what is wrong with it";
    Dependents "dependents" "List what stands on an image, or tell whether it can be deleted";
    Rescue "rescue" "Save a base that was deleted while a guest holds it open";
    Monitor "monitor" "Audit again and again, as metrics for Prometheus and as a page";
    Preflight "preflight" "Say whether a whole host's guests can go to another host, and in which order";
    PlanCommand "plan" "Say what migrating a guest would do to every disk, and why";
    Migrate "migrate" "Move a guest with its local disks to another host";
    Prepare "prepare" "Make and prove a guest's images at the destination, for a manager that migrates";
    Transactions "transactions" "List runs of migrate and prepare, and those that were cut off";
    Resume "resume" "Go on with a run that was cut off";
    Rollback "rollback" "Undo a run that was cut off, or what prepare made";
    Agent "agent" "Serve this host's files to a qcowtool at the other end of --rsh" hidden true;
    Generate "generate" "Write man pages or shell completions" hidden true;
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
