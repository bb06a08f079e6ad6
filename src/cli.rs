//! The commands and their names.

use clap::{ArgMatches, Args, FromArgMatches, Parser, Subcommand};

use crate::args::exit_codes;
use crate::commands::{
    Agent, Amend, Annotate, Audit, Bench, Bitmap, Check, Checksum, Commit, Compare, Convert,
    Create, Dd, Dependents, Evacuate, Flatten, Generate, Hook, Info, Io, MapCommand, Measure,
    Migrate, Monitor, PlanCommand, Preflight, Prepare, Rebase, Relocate, Rescue, Resize, Resume,
    Rollback, Serve, Snapshot, Sparsify, Transactions,
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
    Create(common) "create" "Create an empty image";
    Info(common) "info" "Show the format, size, snapshots and backing chain of an image";
    MapCommand(common) "map" "List which layer and host offset provide each range of the guest disk";
    Measure(common) "measure" "Calculate the file size that a new image needs";
    Flatten(common) "flatten" "Write a backing chain as one standalone image";
    Compare(common) "compare" "Compare the guest-visible content of two images";
    Check(common) "check" "Check an image's metadata for corruption and leaks";
    Bitmap(common) "bitmap" "Change an image's persistent bitmaps, or list them";
    Amend(common) "amend" "Change an image's version, refcount width or data file in place";
    Snapshot(common) "snapshot" "List, take, apply and delete internal snapshots";
    Resize(common) "resize" "Change the size of a disk in place";
    Sparsify(common) "sparsify" "Give back the space that an image does not need, in place";
    Io(common) "io" "Read and write parts of a disk in place, by a script";
    Serve(common) "serve" "Serve disks over the network block device protocol (NBD)";
    Convert(common) "convert" "Write one or several disks as a new image, or into an existing one, with qemu-img's options";
    Dd(common) "dd" "Copy a range of a disk to a new image";
    Commit(common) "commit" "Write what an overlay has into its backing file";
    Rebase(common) "rebase" "Give an image another backing file, or none";
    Bench(common) "bench" "Measure requests to an image";
    Checksum(common) "checksum" "Print or verify a digest of the guest-visible content";
    Audit(output) "audit" "Show backing-file dependencies and report problems";
    Dependents(output) "dependents" "List what depends on an image, or tell whether it can be deleted";
    Rescue(output) "rescue" "Recover a deleted backing file that a running guest still has open";
    Monitor(output) "monitor" "Audit continuously, as Prometheus metrics and as a web page";
    Preflight(output) "preflight" "Check whether a host's guests can migrate to another host, and in which order";
    PlanCommand(output) "plan" "Show what migrating a guest would do to each disk, and why";
    Migrate(output) "migrate" "Migrate a guest with its local disks to another host";
    Evacuate(output) "evacuate" "Migrate all guests of a host to one or several others, planned as one";
    Prepare(output) "prepare" "Create and verify a guest's images at the destination, for a manager that calls libvirt itself";
    Relocate(output) "relocate" "Move disks of a running guest to another directory or storage pool of its host";
    Transactions(output) "transactions" "List runs of migrate and prepare, including interrupted ones";
    Resume(output) "resume" "Continue an interrupted run";
    Rollback(output) "rollback" "Undo an interrupted run, or what prepare created";
    Hook(output) "hook" "Prepare and check incoming migrations, as libvirt's hook on the destination";
    Annotate(output) "annotate" "Write disk sizes and digests into guests' metadata, for the hook at the destination";
    Agent(output) "agent" "Serve this host's files to a qcowtool at the far end of --rsh" hidden true;
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
