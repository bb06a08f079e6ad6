//! `qcowtool preflight`: whether a whole host's guests can go to another.

mod table;

use std::io::{self, IsTerminal};

use clap::Args;
use migrate::Error;
use migrate::preflight::{Is, preflight};
use migrate::probe::Probing;
use qcow::Silent;

use super::args::{DestinationArgs, PolicyArgs, is_directory, reach, way};
use super::{State, once};
use crate::args::{OutputArgs, exit_codes};
use crate::failure::{Failure, REFUSED};
use crate::output::{OutputFormat, print, print_json};
use crate::remedies::reworded;
use crate::signals::Watch;

/// Something could not be looked at.
const FAILED: u8 = 6;

/// Arguments of `preflight`.
#[derive(Debug, Args)]
#[command(
    after_help = concat!(
    "Examines both hosts and every guest as 'plan' does, and what only shows when all guests migrate. Changes \
nothing, except for an empty file that is created in the directory of each disk and removed again. With -e, \
clocks, certificates and ports are checked too: each host listens briefly on two of libvirt's migration \
ports. A guest that cannot be examined is a line of the table; the others are examined all the same.

Guests are listed in the recommended order of migration: those with the fewest bytes to copy first, those that \
cannot migrate last. docs/preflight.md explains each check.

Examples:
  qcowtool preflight --all --to qemu+tls://host-b/system -e 'ssh host-b'
  qcowtool preflight web-1 db-1 --to qemu+tls://host-b/system --policy thin
  qcowtool preflight --all --to qemu+tls://host-b/system --output json | jq '.guests[].name'
  qcowtool preflight --all --connect dir:/mnt/a --to dir:/mnt/b

", exit_codes!(
"  0    no check failed
  1    wrong usage
  2    at least one check failed (red)
  6    a host could not be asked, or no check failed but a guest could not be examined")))]
pub(crate) struct Preflight {
    #[command(flatten)]
    pub(crate) output: OutputArgs,

    /// Names or UUIDs of the guests
    #[arg(value_name = "DOMAIN", required_unless_present = "all")]
    domains: Vec<String>,

    /// All guests, running or shut off
    #[arg(long, conflicts_with = "domains")]
    all: bool,

    /// libvirt URI of the guests' host, which must be this machine, or dir:DIRECTORY
    #[arg(long, value_name = "URI", default_value = "qemu:///system")]
    connect: String,

    #[command(flatten)]
    destination: DestinationArgs,

    /// The guests of a directory are running on another machine: plan live migrations
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
            let error = Error::usage(
                "--running applies only to guests of a directory; libvirt reports the state itself",
            );
            return Err(error.hint("leave it out, or give --connect dir:DIRECTORY").into());
        }
        let reached = reach(&way(&self.connect, &self.destination, self.running))?;
        let policy = self.policy.policy(&reached)?;
        let names = if self.all { reached.names()? } else { once(self.domains) };
        let watch = Watch::start()?;
        let cache = self.state.digests();
        // Without it, bases are just read again.
        let kept = std::fs::create_dir_all(&cache).is_ok();
        let probing =
            Probing::new(&policy, &Silent, watch.token()).cache(kept.then_some(cache.as_path()));
        let report =
            watch.settle_migration(preflight(&reached.participants(), &names, &probing))?;
        let report = reworded(report, "preflight");
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

/// Whether standard output shows colours and `NO_COLOR` is not set (<https://no-color.org>).
fn colours() -> bool {
    let objected = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    io::stdout().is_terminal() && !objected
}
