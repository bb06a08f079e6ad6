//! `qcowtool monitor` in a build without the feature `monitor`: says so.

use std::ffi::OsString;

use clap::Args;
use qcow::Error;

use crate::args::OutputArgs;
use crate::failure::Failure;

/// Arguments of `monitor`, which are not looked at.
#[derive(Debug, Args)]
#[command(
    after_help = "This program was built without the monitor; the cargo feature 'monitor' has it. 'qcowtool audit' looks once.

Examples:
  qcowtool audit --output prometheus /var/lib/libvirt/images

Exit codes:
  1    always"
)]
pub(crate) struct Monitor {
    #[command(flatten)]
    pub(crate) output: OutputArgs,

    /// Anything
    #[arg(value_name = "ARGUMENT", trailing_var_arg = true, allow_hyphen_values = true)]
    _arguments: Vec<OsString>,
}

impl Monitor {
    /// Refuses.
    pub(crate) fn run(self) -> Result<(), Failure> {
        Err(Error::unsupported("this program was built without the monitor")
            .hint("build it with the cargo feature 'monitor', or call 'qcowtool audit' again and again")
            .into())
    }
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches;

    use super::*;

    /// Run by `scripts/test-features`.
    #[test]
    fn without_the_monitor_it_is_refused() {
        let command = Monitor::augment_args(clap::Command::new("monitor"));
        let matches = command.try_get_matches_from(["monitor", "images"]).unwrap();
        let refused = Monitor::from_arg_matches(&matches).unwrap().run();
        let Err(Failure::Error(error)) = refused else { panic!("{refused:?}") };
        assert!(error.to_string().contains("the cargo feature 'monitor'"), "{error}");
    }
}
