//! `qcowtool preflight`: whether a whole host's guests can go to another.

mod table;

use std::io::{self, IsTerminal};

use clap::Args;
use migrate::Error;
use migrate::preflight::{Is, preflight};
use migrate::probe::Probing;
use qcow::Silent;

use super::State;
use super::args::{DestinationArgs, PolicyArgs, is_directory, reach, way};
use crate::args::OutputArgs;
use crate::failure::{Failure, REFUSED};
use crate::output::{OutputFormat, print, print_json};
use crate::signals::Watch;

/// Something could not be looked at.
const FAILED: u8 = 6;

/// Arguments of `preflight`.
#[derive(Debug, Args)]
#[command(
    after_help = "Looks at both hosts and at every guest as 'plan' does, and at what only shows when all of them go. Changes
nothing, but for an empty file that is made in the directory of each disk and removed again. With -e, clocks,
certificates and ports are looked at too: each end listens for a moment at two of the ports that guests
arrive at. A guest that cannot be looked at is a line of the table; the others are looked at all the same.

Guests are listed in the order in which they would best be moved: those whose disks need the least bytes
first, those that cannot go at the end. docs/preflight.md says what each check means.

Examples:
  qcowtool preflight --all --to qemu+tls://host-b/system -e 'ssh host-b'
  qcowtool preflight web-1 db-1 --to qemu+tls://host-b/system --policy thin
  qcowtool preflight --all --to qemu+tls://host-b/system --output json | jq '.guests[].name'
  qcowtool preflight --all --connect dir:/mnt/a --to dir:/mnt/b

Exit codes:
  0    nothing is in the way
  1    the command line was not understood
  2    something is in the way: it is red
  6    a host could not be asked, or nothing is red but a guest could not be looked at
  130  stopped by SIGINT (143 by SIGTERM, 129 by SIGHUP)"
)]
pub(crate) struct Preflight {
    #[command(flatten)]
    pub(crate) output: OutputArgs,

    /// The guests: their names or UUIDs
    #[arg(value_name = "DOMAIN", required_unless_present = "all")]
    domains: Vec<String>,

    /// All guests, running or not
    #[arg(long, conflicts_with = "domains")]
    all: bool,

    /// The libvirt of the guests' host, which must be this machine, or dir:DIRECTORY
    #[arg(long, value_name = "URI", default_value = "qemu:///system")]
    connect: String,

    #[command(flatten)]
    destination: DestinationArgs,

    /// The guests of a directory run, somewhere: plan for moving them alive
    #[arg(long)]
    running: bool,

    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    state: State,
}

impl Preflight {
    /// Looks, and prints what came of it.
    pub(crate) fn run(self) -> Result<(), Failure> {
        if self.running && !is_directory(&self.connect) {
            let error =
                Error::usage("--running is for guests of a directory; libvirt knows itself");
            return Err(error.hint("leave it out, or give --connect dir:DIRECTORY").into());
        }
        let reached = reach(&way(&self.connect, &self.destination, self.running))?;
        let policy = self.policy.policy(&reached)?;
        let names = if self.all { reached.names()? } else { once(self.domains) };
        let watch = Watch::start()?;
        let cache = self.state.digests();
        // Without it, bases are just read again.
        let kept = std::fs::create_dir_all(&cache).is_ok();
        let probing = Probing {
            policy: &policy,
            cache: kept.then_some(cache.as_path()),
            observer: &Silent,
            cancel: watch.token(),
        };
        let report =
            watch.settle_migration(preflight(&reached.participants(), &names, &probing))?;
        match self.output.output {
            OutputFormat::Json => print_json(&report)?,
            OutputFormat::Human => print(table::text(&report, colours()))?,
        }
        match report.is {
            Is::Red => Err(Failure::Verdict(REFUSED)),
            Is::Failed => Err(Failure::Verdict(FAILED)),
            _ => Ok(()),
        }
    }
}

/// Each name once, in its place.
fn once(names: Vec<String>) -> Vec<String> {
    let mut seen = std::collections::BTreeSet::new();
    names.into_iter().filter(|name| seen.insert(name.clone())).collect()
}

/// Whether standard output shows colours, and nobody objects (<https://no-color.org>).
fn colours() -> bool {
    let objected = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    io::stdout().is_terminal() && !objected
}
