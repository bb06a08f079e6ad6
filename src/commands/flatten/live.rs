//! `qcowtool flatten --live`: the disk of a guest that runs.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use migrate::Error;
use migrate::driver::Hypervisor;
use migrate::journal::DomainLock;
use migrate::live::{self, Flattened, LivePlan, Looked, Method, Options, ResumeRecord, RunContext};

use crate::args::Verbosity;
use crate::commands::migration::{State, refuse};
use crate::failure::Failure;
use crate::libvirt::connect;
use crate::output::{OutputFormat, eprint_line, eprint_lines, print, print_json, shown};
use crate::progress::{Progress, When};
use crate::remedies::reworded;
use crate::signals::Watch;
use crate::size::{self, human};

/// Help heading of these options.
const LIVE: &str = "Running guests";

/// What belongs to `--live`.
#[derive(Debug, Args)]
pub(crate) struct LiveArgs {
    /// Flatten the disk DISK of the running guest DOMAIN through libvirt, without stopping the guest
    #[arg(long, help_heading = LIVE, conflicts_with_all = [
        "target_format", "compress", "options", "digest", "force", "snapshot", "threads", "format",
        "force_share", "backing_format", "raw_despite_magic", "alone", "allow_dirs", "max_depth", "no_reflink", "salvage", "size", "untrusted",
        "max_virtual_size", "max_metadata", "sandbox",
    ])]
    live: bool,

    /// libvirt URI of the guest's host, which must be this machine
    #[arg(long, value_name = "URI", default_value = "qemu:///system", requires = "live",
          help_heading = LIVE)]
    connect: String,

    /// Pull the backing data into the active image, or copy the disk to a new image that the guest then uses
    #[arg(long, value_enum, value_name = "METHOD", default_value = "pull", requires = "live",
          help_heading = LIVE)]
    method: MethodArg,

    /// Destination of --method copy [default: the active image's name with -flat]
    #[arg(long, value_name = "PATH", requires = "live", help_heading = LIVE)]
    target: Option<PathBuf>,

    /// Bandwidth limit in bytes per second, such as 100M
    #[arg(long, value_name = "RATE", value_parser = size::parse, requires = "live",
          help_heading = LIVE)]
    bandwidth: Option<u64>,

    /// Abort the job if it has not ended after SECONDS
    #[arg(long, value_name = "SECONDS", requires = "live", help_heading = LIVE)]
    timeout: Option<u64>,

    /// Print the plan without carrying it out
    #[arg(long, requires = "live", help_heading = LIVE)]
    dry_run: bool,

    #[command(flatten)]
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MethodArg {
    Pull,
    Copy,
}

impl LiveArgs {
    /// Whether a running guest is meant.
    pub(crate) fn wanted(&self) -> bool {
        self.live
    }

    /// Flattens the disk, or goes on where an earlier run was cut off.
    pub(crate) fn run(
        &self,
        domain: &Path,
        disk: &Path,
        format: OutputFormat,
        verbosity: &Verbosity,
        progress: When,
    ) -> Result<(), Failure> {
        let (domain, disk) = (domain.to_string_lossy(), disk.to_string_lossy());
        let options = self.options()?;
        let hypervisor = connect(&self.connect)?.hypervisor;
        let watch = Watch::start()?;
        let looked = live::look(&*hypervisor, &domain, &disk, &options)?;
        let (uuid, name) = (&looked.facts.domain.uuid, &looked.facts.disk.target);
        let state = self.state.directory();
        if self.dry_run {
            if ResumeRecord::read(state, uuid, name)?.is_some() {
                eprint_line(
                    "note: an earlier run was interrupted; without --dry-run this command continues it",
                );
            }
            let plan = plan(&looked, &options, format)?;
            return match format {
                OutputFormat::Json => print_json(&plan),
                OutputFormat::Human => print(in_words(&plan)),
            };
        }
        let _lock = DomainLock::take(state, uuid)?;
        let shown = Progress::new(progress);
        let context =
            RunContext { hypervisor: &*hypervisor, state, observer: &shown, cancel: watch.token() };
        let done = self.carry_out(&context, looked, &options, (format, verbosity), &watch);
        shown.finish(done.is_ok());
        let done = done?;
        match format {
            OutputFormat::Json => print_json(&done),
            OutputFormat::Human if verbosity.quiet => Ok(()),
            OutputFormat::Human => print(outcome(&done)),
        }
    }

    fn carry_out(
        &self,
        context: &RunContext<'_>,
        mut looked: Looked,
        options: &Options,
        (format, verbosity): (OutputFormat, &Verbosity),
        watch: &Watch,
    ) -> Result<Flattened, Failure> {
        let (uuid, name) = (looked.facts.domain.uuid.clone(), looked.facts.disk.target.clone());
        if let Some(record) = ResumeRecord::read(context.state, &uuid, &name)? {
            if !verbosity.quiet {
                eprint_line("continuing an interrupted run");
            }
            if let Some(done) = watch.settle_migration(live::go_on(record, context))? {
                return Ok(done);
            }
            looked = again(context.hypervisor, &uuid, &name, options)?;
        }
        let plan = plan(&looked, options, format)?;
        if verbosity.verbose {
            eprint_lines(&in_words(&plan))?;
        }
        // What was deleted stays open until all is done.
        let Looked { allocation, pinned, .. } = looked;
        let done = watch.settle_migration(live::flatten(&plan, allocation, context));
        drop(pinned);
        done
    }

    fn options(&self) -> Result<Options, Failure> {
        let method = match self.method {
            MethodArg::Pull => Method::Pull,
            MethodArg::Copy => Method::Copy,
        };
        if self.target.is_some() && method == Method::Pull {
            return Err(Error::usage("--target is where a copy goes")
                .hint("add --method copy")
                .into());
        }
        let target = self.target.as_deref().map(std::path::absolute).transpose();
        let target = target.map_err(|error| Error::usage(format!("--target: {error}")))?;
        Ok(Options::default()
            .method(method)
            .target(target)
            .bandwidth(self.bandwidth)
            .timeout(self.timeout))
    }
}

fn again(
    hypervisor: &dyn Hypervisor,
    uuid: &str,
    disk: &str,
    options: &Options,
) -> Result<Looked, Failure> {
    Ok(live::look(hypervisor, uuid, disk, options)?)
}

/// The plan; if there is none, what is in the way has been printed.
fn plan(looked: &Looked, options: &Options, format: OutputFormat) -> Result<LivePlan, Failure> {
    live::plan(&looked.facts, options).map_err(|refusals| {
        refuse(reworded(refusals, "flatten"), format, |text| eprint_lines(&text))
    })
}

fn in_words(plan: &LivePlan) -> String {
    let mut text = String::new();
    let _ = match plan.method {
        Method::Pull => writeln!(
            text,
            "{}, disk {}: up to {} are pulled from the backing chain into '{}'",
            plan.domain,
            plan.disk,
            shown(&plan.image),
            human(plan.copied_bytes)
        ),
        Method::Copy | Method::Move => writeln!(
            text,
            "{}, disk {}: '{}' and its backing chain are copied to '{}', {} at most",
            plan.domain,
            plan.disk,
            shown(&plan.image),
            shown(&plan.becomes),
            human(plan.copied_bytes)
        ),
    };
    for layer in &plan.below {
        let deleted = if layer.deleted { ", deleted" } else { "" };
        let _ = writeln!(
            text,
            "     no longer needed: '{}' ({}{deleted}); not written to, not removed",
            shown(&layer.path),
            layer.format
        );
    }
    let _ = writeln!(text, "grows by at most:  {}", human(plan.grows_bytes));
    let _ = writeln!(text, "then at most:      {}", human(plan.length_bytes));
    if let Some(available) = plan.available_bytes {
        let _ = writeln!(text, "free there:        {}", human(available));
    }
    for note in &plan.notes {
        let _ = writeln!(text, "note: {note}");
    }
    text
}

fn outcome(done: &Flattened) -> String {
    let seconds = done.elapsed_ms / 1000;
    let tenths = done.elapsed_ms % 1000 / 100;
    let mut text = format!(
        "{}, disk {}: '{}' is standalone after {seconds}.{tenths} s, {} long\n",
        done.domain,
        done.disk,
        shown(&done.image),
        human(done.length_bytes)
    );
    if done.method == Method::Pull {
        let _ = writeln!(text, "the guest was paused for {} ms to flush the disk", done.paused_ms);
    }
    if done.tables_compared {
        text.push_str("the tables on the disk were compared with those of the original chain: the content is the same\n");
    }
    for path in &done.left {
        let _ = writeln!(text, "no longer used: '{}'", shown(path));
    }
    text
}
