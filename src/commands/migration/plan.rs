//! `qcowtool plan`: what would be done to every disk, and why.

use clap::Args;
use migrate::plan::{Refusal, plan};
use serde::Serialize;

use super::args::{PolicyArgs, RouteArgs, reach};
use super::{State, look, migration_codes};
use crate::args::OutputArgs;
use crate::failure::{Failure, REFUSED};
use crate::output::{OutputFormat, print, print_json};
use crate::progress::When;
use crate::remedies::reworded;
use crate::signals::Watch;

/// Arguments of `plan`.
#[derive(Debug, Args)]
#[command(after_help = concat!(
    "Examines both hosts and changes nothing, except for an empty file that is created in the directory of \
each disk and removed again, to find out whether the hosts share it. The JSON is a plan that \
'qcowtool migrate --plan FILE' carries out if both hosts are unchanged.

Examples:
  qcowtool plan web-1 --to qemu+tls://host-b/system
  qcowtool plan web-1 --to qemu+ssh://host-b/system -e 'ssh host-b' --policy thin
  qcowtool plan web-1 --to qemu+tls://host-b/system --map-path /data1=/data2 --output json > plan
  qcowtool plan --domain-xml web-1.xml --source-root /mnt/a --to dir:/mnt/b

", migration_codes!()))]
pub(crate) struct PlanCommand {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    route: RouteArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    state: State,
}

#[derive(Debug, Serialize)]
struct Refused {
    refusals: Vec<Refusal>,
}

impl PlanCommand {
    /// Prints the plan, or why there is none.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let reached = reach(&self.route.route()?)?;
        let policy = self.policy.policy(&reached)?;
        let watch = Watch::start()?;
        let probed = look(&reached, &policy, &self.state, When::Auto, &watch)?;
        let plan = plan(&probed.facts, &policy);
        let plan =
            plan.map_err(|refusals| refuse(reworded(refusals, "plan"), self.output.output, print))?;
        match self.output.output {
            OutputFormat::Json => print_json(&plan),
            OutputFormat::Human => print(&plan),
        }
    }
}

/// Prints why there is no plan: as JSON, or as text by `tell`.
pub(crate) fn refuse(
    refusals: Vec<Refusal>,
    format: OutputFormat,
    tell: impl FnOnce(String) -> Result<(), Failure>,
) -> Failure {
    let printed = match format {
        OutputFormat::Json => print_json(&Refused { refusals }),
        OutputFormat::Human => tell(refusals.iter().map(ToString::to_string).collect()),
    };
    printed.err().unwrap_or(Failure::Verdict(REFUSED))
}
