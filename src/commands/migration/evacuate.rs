//! `qcowtool evacuate`: a host is emptied.

mod board;
mod destinations;
mod metrics;
mod programs;
mod seen;
mod text;

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use migrate::evacuate::{
    Ending, Evacuated, Evacuation, EvacuationPlan, Limits, Looking, Migrations, Orders, Outcome,
    Spare, Way, look, place,
};
use migrate::facts::Route;
use migrate::plan::Policy;
use migrate::{Error, Result};
use qcow::Silent;

use self::board::Board;
use self::destinations::Destinations;
use self::programs::{After, Before};
use super::args::{PolicyArgs, is_directory, reach, ways};
use super::{State, once};
use crate::args::OutputArgs;
use crate::failure::{Failure, REFUSED};
use crate::libvirt::connect;
use crate::output::{OutputFormat, print, print_json};
use crate::remedies::reworded;
use crate::signals::StopsByTurns;
use crate::size;

/// Arguments of `evacuate`.
#[derive(Debug, Args)]
#[command(
    after_help = "Plans all guests as one, so that no destination gets more memory, virtual processors or storage \
than it has, and \
a backing file that several guests share is copied once to each destination. Then --parallel guests at a time are \
migrated as 'qcowtool migrate' does; --bandwidth is shared by those under way. What cannot go stays, with the reason.

Ctrl-C lets the guests under way arrive and leaves the others; again, it stops those too and rolls them back. \
'evacuate --resume' goes on after that, or after the tool was killed. docs/evacuate.md explains it.

Examples:
  qcowtool evacuate --to qemu+tls://host-b/system --to qemu+tls://host-c/system --dry-run
  qcowtool evacuate --to qemu+tls://host-b/system -e 'ssh {host}' --policy thin --parallel 2 --bandwidth 500M
  qcowtool evacuate --inventory hosts --guest web-1 --guest db-1 --progress json --metrics /run/evacuate.prom
  qcowtool evacuate --resume

Exit codes:
  0    every guest is at its destination; with --dry-run: has a place
  1    wrong usage
  2    some guests stayed, because it would not be safe, there is no room, or the program before them said no
  4    the content of a guest at its destination is not what it must be
  5    it is not known on which host a guest runs; nothing was deleted, and no other guest was begun after that
  6    a host, a file, a service or a program after a guest failed; what failed was rolled back
  130  stopped by SIGINT (143 by SIGTERM, 129 by SIGHUP); 'evacuate --resume' goes on"
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
    #[arg(long)]
    dry_run: bool,

    /// Go on with an evacuation that was stopped or killed [default: the last one]
    #[arg(long, value_name = "ID", num_args = 0..=1, default_missing_value = "",
          conflicts_with_all = ["to", "inventory", "guests", "dry_run"])]
    resume: Option<String>,

    /// Migrate so many guests at a time
    #[arg(long, value_name = "N", default_value_t = 2,
          value_parser = clap::value_parser!(u16).range(1..=64))]
    parallel: u16,

    /// Memory that stays free at each destination
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = size::parse)]
    memory_reserve: u64,

    /// Virtual processors that a destination may run for each of its processors
    #[arg(long, value_name = "N", default_value_t = 4)]
    vcpus_per_cpu: u64,

    /// Run this program before each guest; if it fails, the guest stays
    #[arg(long, value_name = "PROGRAM")]
    before: Option<PathBuf>,

    /// Run this program after each guest; if it fails, no other guest is begun
    #[arg(long, value_name = "PROGRAM")]
    after: Option<PathBuf>,

    /// Keep metrics in Prometheus' text format in this file, for a textfile collector
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,

    /// Show progress on standard error: as lines for people, or as a JSON object a line
    #[arg(long, value_enum, value_name = "HOW", default_value = "auto")]
    progress: Show,

    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    state: State,
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Show {
    /// Lines, without how far each guest is where there is no terminal
    Auto,
    /// Lines, with how far each guest is
    Always,
    /// Not at all
    Never,
    /// A JSON object a line
    Json,
}

impl Evacuate {
    /// Plans, and carries the plan out.
    pub(crate) fn run(self) -> std::result::Result<(), Failure> {
        if self.running && !is_directory(&self.connect) {
            let error = Error::usage(
                "--running applies only to guests of a directory; libvirt reports the state itself",
            );
            return Err(error.hint("leave it out, or give --connect dir:DIRECTORY").into());
        }
        let stops = StopsByTurns::start(
            "the guests under way go on to their ends, and no other is begun; stop them too with another Ctrl-C",
        )?;
        match &self.resume {
            Some(id) => self.go_on(id, &stops),
            None => self.begin(&stops),
        }
    }

    fn begin(&self, stops: &StopsByTurns) -> std::result::Result<(), Failure> {
        if self.parallel > 1 && self.policy.has_fixed_port() {
            let error =
                Error::usage("guests that are migrated at the same time cannot share a port");
            return Err(error
                .hint("migrate one guest at a time (--parallel 1), or give no port")
                .into());
        }
        let reached = self.reach()?;
        let names = match (&self.guests[..], reached.first()) {
            ([], Some(first)) => first.connections.names()?,
            (named, _) => once(named.to_vec()),
        };
        let limits =
            Limits { memory_reserve: self.memory_reserve, vcpus_per_cpu: self.vcpus_per_cpu };
        let plan = stops.settle(self.plan(&reached, &names, limits, stops))?;
        if self.dry_run {
            let plan = reworded(plan, "evacuate");
            match self.output.output {
                OutputFormat::Json => print_json(&plan)?,
                OutputFormat::Human => print(&plan)?,
            }
            let all = plan.refused.is_empty();
            return if all { Ok(()) } else { Err(Failure::Verdict(REFUSED)) };
        }
        let bandwidth = reached.first().and_then(|way| way.policy.bandwidth);
        let spare = Spare::default();
        let ways = reached.into_iter().map(|Way { connections, policy }| {
            let route = connections.route().clone();
            spare.put(connections);
            (route, policy.bandwidth(None::<u64>))
        });
        let orders = Orders {
            guests: names,
            ways: ways.collect(),
            at_once: usize::from(self.parallel),
            bandwidth,
            limits,
            before: self.before.as_deref().map(absolute),
            after: self.after.as_deref().map(absolute),
        };
        let evacuation = Evacuation::begin(self.state.directory(), &orders)?;
        self.carry_out(evacuation, &orders, plan, stops, &spare)
    }

    /// Ends what was cut off, and plans the rest anew.
    fn go_on(&self, id: &str, stops: &StopsByTurns) -> std::result::Result<(), Failure> {
        let id = Some(id).filter(|id| !id.is_empty());
        let mut evacuation = Evacuation::again(self.state.directory(), id)?;
        let orders = evacuation.orders().clone();
        let spare = Spare::default();
        self.with(&orders, evacuation.id().to_owned(), &spare, |work, board| {
            stops.settle(evacuation.settle(work, board, stops.tokens()))
        })?;
        let reached = again(&orders.ways)?;
        let names = evacuation.remaining();
        let plan = stops.settle(self.plan(&reached, &names, orders.limits, stops))?;
        reached.into_iter().for_each(|way| spare.put(way.connections));
        self.carry_out(evacuation, &orders, plan, stops, &spare)
    }

    fn carry_out(
        &self,
        mut evacuation: Evacuation,
        orders: &Orders,
        plan: EvacuationPlan,
        stops: &StopsByTurns,
        spare: &Spare,
    ) -> std::result::Result<(), Failure> {
        let report = self.with(orders, evacuation.id().to_owned(), spare, |work, board| {
            Ok(evacuation.run(plan, work, board, stops.tokens())?)
        })?;
        let report = reworded(report, "evacuate");
        match self.output.output {
            OutputFormat::Json => print_json(&report)?,
            OutputFormat::Human => print(text::ended(&report))?,
        }
        verdict(&report, stops)
    }

    /// Hands over what does the work, and what shows it.
    fn with<T>(
        &self,
        orders: &Orders,
        id: String,
        spare: &Spare,
        act: impl FnOnce(&Migrations<'_>, &Board) -> std::result::Result<T, Failure>,
    ) -> std::result::Result<T, Failure> {
        let programs = programs::Programs {
            before: orders.before.as_deref().map(Before),
            after: orders.after.as_deref().map(After),
            from: orders.ways.first().map(|(route, _)| route.from.as_str()).unwrap_or_default(),
        };
        let cache = self.state.digests();
        let kept = migrate::journal::make_directory(&cache).is_ok();
        let work = Migrations {
            orders,
            connect: &connect,
            programs: &programs,
            spare,
            state: self.state.directory(),
            cache: kept.then_some(cache.as_path()),
        };
        let board = Board::new(self.progress, self.metrics.clone(), id);
        let done = act(&work, &board);
        board.finish()?;
        done
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

    fn plan(
        &self,
        reached: &[Way],
        names: &[String],
        limits: Limits,
        stops: &StopsByTurns,
    ) -> Result<EvacuationPlan> {
        let cache = self.state.digests();
        // Without it, bases are just read again.
        let kept = migrate::journal::make_directory(&cache).is_ok();
        let looking = Looking {
            limits,
            cache: kept.then_some(cache.as_path()),
            observer: &Silent,
            cancel: &stops.tokens().drain,
        };
        Ok(place(&look(reached, names, &looking)?))
    }
}

/// Connects to the destinations of an evacuation that is taken up again.
fn again(ways: &[(Route, Policy)]) -> Result<Vec<Way>> {
    let way = |(route, policy): &(Route, Policy)| {
        Ok(Way { connections: reach(route)?, policy: policy.clone() })
    };
    ways.iter().map(way).collect()
}

/// A program is found from wherever the evacuation is taken up again; one without a directory is looked for in `PATH`.
fn absolute(program: &Path) -> PathBuf {
    match program.components().count() {
        0 | 1 => program.to_path_buf(),
        _ => std::path::absolute(program).unwrap_or_else(|_| program.to_path_buf()),
    }
}

/// The exit code: the worst that happened to a guest.
fn verdict(report: &Evacuated, stops: &StopsByTurns) -> std::result::Result<(), Failure> {
    let any = |ending| report.count(ending) > 0;
    // A guest that arrived with an error has stopped since.
    let wrong = |guest: &Outcome| {
        guest.after.is_some() || guest.ending == Ending::Moved && guest.error.is_some()
    };
    let failed = any(Ending::Failed) || report.guests.iter().any(wrong);
    let code = match () {
        () if any(Ending::InDoubt) => 5,
        () if any(Ending::Unverified) => 4,
        () if failed => 6,
        () if any(Ending::Stopped) || any(Ending::Waiting) => {
            return Err(Failure::Verdict(stops.code()));
        }
        () if any(Ending::Refused) || !report.refused.is_empty() => REFUSED,
        () => return Ok(()),
    };
    Err(Failure::Verdict(code))
}
