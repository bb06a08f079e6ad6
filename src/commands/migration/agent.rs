//! `qcowtool agent`: the other end of --rsh.

use std::path::Path;

use clap::Args;
use migrate::store::LocalStore;

use crate::args::OutputArgs;
use crate::failure::Failure;

/// Arguments of `agent`.
#[derive(Debug, Args)]
pub(crate) struct Agent {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

impl Agent {
    /// Serves the files of this host on standard input and output until the input ends.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let store = LocalStore::new(Path::new("/"))?;
        migrate::agent::serve_standard_streams(&store)?;
        Ok(())
    }
}
