//! `qcowtool evacuate`: a host is emptied.

mod destinations;

use std::path::PathBuf;

use clap::Args;
use migrate::evacuate::{EvacuationPlan, Limits, Looking, Way, look, place};
use migrate::{Error, Result};
use qcow::Silent;

use self::destinations::Destinations;
use super::State;
use super::args::{PolicyArgs, is_directory, reach, ways};
use crate::args::OutputArgs;
use crate::failure::{Failure, REFUSED};
use crate::output::{OutputFormat, print, print_json};
use crate::remedies::reworded;
use crate::signals::Watch;
use crate::size;

/// Arguments of `evacuate`.
#[derive(Debug, Args)]
#[command(
    after_help = "Plans all guests as one, so that no destination gets more memory, virtual processors or \
storage than it has, and
copies a backing file that several guests share once to each destination. docs/evacuate.md explains the plan.

Examples:
  qcowtool evacuate --to qemu+tls://host-b/system --to qemu+tls://host-c/system --dry-run
  qcowtool evacuate --inventory /etc/qcowtool/hosts -e 'ssh {host}' --guest web-1 --guest db-1 --dry-run

Exit codes:
  0    every guest has a place
  1    wrong usage
  2    some guests cannot go
  6    a host, a file or a service failed
  130  stopped by SIGINT (143 by SIGTERM, 129 by SIGHUP)"
)]
pub(crate) struct Evacuate {
    #[command(flatten)]
    pub(crate) output: OutputArgs,

    #[command(flatten)]
    destinations: Destinations,

    /// Name or UUID of a guest that shall go (may be repeated) [default: all guests, running or shut off]
    #[arg(long = "guest", value_name = "DOMAIN")]
    guests: Vec<String>,

    /// libvirt URI of the guests' host, which must be this machine, or dir:DIRECTORY
    #[arg(long, value_name = "URI", default_value = "qemu:///system")]
    connect: String,

    /// The guests of a directory are running on another machine: plan live migrations
    #[arg(long)]
    running: bool,

    /// Print the plan without carrying it out
    #[arg(long, required = true)]
    dry_run: bool,

    /// Memory that stays free at each destination
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = size::parse)]
    memory_reserve: u64,

    /// Virtual processors that a destination may run for each of its processors
    #[arg(long, value_name = "N", default_value_t = 4)]
    vcpus_per_cpu: u64,

    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    state: State,
}

impl Evacuate {
    /// Plans, and prints the plan.
    pub(crate) fn run(self) -> std::result::Result<(), Failure> {
        if self.running && !is_directory(&self.connect) {
            let error = Error::usage(
                "--running applies only to guests of a directory; libvirt reports the state itself",
            );
            return Err(error.hint("leave it out, or give --connect dir:DIRECTORY").into());
        }
        let reached = self.reach()?;
        let watch = Watch::start()?;
        let plan = watch.settle_migration(self.plan(&reached, &watch))?;
        match self.output.output {
            OutputFormat::Json => print_json(&plan)?,
            OutputFormat::Human => print(&plan)?,
        }
        match plan.refused.is_empty() {
            true => Ok(()),
            false => Err(Failure::Verdict(REFUSED)),
        }
    }

    /// Connects to all destinations.
    fn reach(&self) -> Result<Vec<Way>> {
        let (destinations, program) = self.destinations.all()?;
        let ways = ways(&self.connect, &destinations, program, self.running);
        ways.iter()
            .map(|route| {
                let connections = reach(route)?;
                let policy = self.policy.policy(&connections)?;
                Ok(Way { connections, policy })
            })
            .collect()
    }

    fn plan(&self, reached: &[Way], watch: &Watch) -> Result<EvacuationPlan> {
        let cache: PathBuf = self.state.digests();
        // Without it, bases are just read again.
        let kept = migrate::journal::make_directory(&cache).is_ok();
        let looking = Looking {
            limits: Limits {
                memory_reserve: self.memory_reserve,
                vcpus_per_cpu: self.vcpus_per_cpu,
            },
            cache: kept.then_some(cache.as_path()),
            observer: &Silent,
            cancel: watch.token(),
        };
        let names = match (&self.guests[..], reached.first()) {
            ([], Some(first)) => first.connections.names()?,
            (named, _) => super::once(named.to_vec()),
        };
        let fleet = look(reached, &names, &looking)?;
        Ok(reworded(place(&fleet), "evacuate"))
    }
}
