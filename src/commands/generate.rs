//! `qcowtool generate`: man pages and shell completions, for packagers.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::Shell;
use qcow::Error;

use crate::args::OutputArgs;
use crate::cli::Cli;
use crate::failure::Failure;

/// Arguments of `generate`.
#[derive(Debug, Args)]
pub(crate) struct Generate {
    #[command(flatten)]
    pub(crate) output: OutputArgs,

    /// What to write
    #[arg(value_enum)]
    what: What,

    /// The directory to write to; made if it does not exist
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum What {
    /// A man page for qcowtool and one for each command
    Man,
    /// Completions for each shell
    Completions,
}

impl Generate {
    /// Writes the files.
    pub(crate) fn run(self) -> Result<(), Failure> {
        fs::create_dir_all(&self.directory)
            .and_then(|()| match self.what {
                What::Man => clap_mangen::generate_to(Cli::command(), &self.directory),
                What::Completions => completions(&self.directory),
            })
            .map_err(|error| Error::io("could not write", error).file(&self.directory).into())
    }
}

fn completions(directory: &Path) -> std::io::Result<()> {
    Shell::value_variants().iter().try_for_each(|shell| {
        clap_complete::generate_to(*shell, &mut Cli::command(), "qcowtool", directory).map(drop)
    })
}
