//! `qcowtool rescue`: saves a base that was deleted while a process holds it open, or looks for another copy
//! of one that nobody holds.

mod text;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Args;
use migrate::ErrorKind;
use migrate::rescue::{
    Looked, LostBase, Options, Outcome, Plan, SearchOptions, State, Whose, carry_out, look, plan,
    search,
};
use qcow::chain::Format;

use crate::args::{OutputArgs, format_parser};
use crate::failure::{Failure, REFUSED};
use crate::libvirt::connect;
use crate::output::{OutputFormat, print, print_json};
use crate::progress::{Progress, When};
use crate::signals::Watch;

/// A file or a process changed meanwhile.
const CHANGED: u8 = 3;
/// A copy is not what it must be.
const UNVERIFIED: u8 = 4;
/// A host, a file or a service did not do what was asked of it.
const ENVIRONMENT: u8 = 6;

/// The help's heading of what is said about guests that do not run.
const STOPPED: &str = "Of a guest that does not run";

/// Arguments of `rescue`.
#[derive(Debug, Args)]
#[command(
    after_help = "A guest that runs keeps its base alive after somebody has deleted it. The copy is called
NAME.rescued-ID, and lies where the file was or in --to; with --restore it gets the file's own
name, if that is free. What a guest writes to is never copied. As it must look into other
processes, it needs root, or their user.

Of a guest that does not run, --candidates looks for the base among other files: one is taken for
it only if its content has the digest of a manifest (qcowtool checksum --manifest). Without one,
it lists which ranges of the disk are lost.

Examples:
  qcowtool rescue web-1 --dry-run
  qcowtool rescue web-1 --restore
  qcowtool rescue --pid 4711 --to /mnt/safe
  qcowtool rescue --qemu-from-proc --output json
  qcowtool rescue --candidates /mnt/backup --manifest tpl.manifest web-1.qcow2

Exit codes:
  0    everything that is gone was saved (and put back, with --restore), or nothing is gone
  1    wrong usage; one line on standard error says why
  2    something was not saved or not put back, because that would not be safe; the rest was
  3    a file or a process changed meanwhile; there is no copy of that file
  4    a copy was not equal to the file, and is gone again
  6    something could not be read, written or looked into
  130  stopped by SIGINT (143 by SIGTERM, 129 by SIGHUP); nothing half-made is left"
)]
pub(crate) struct Rescue {
    #[command(flatten)]
    pub(crate) output: OutputArgs,

    /// The libvirt that the domain is of; it must be this machine's
    #[arg(long, value_name = "URI", default_value = "qemu:///system")]
    connect: String,

    /// Look into this process, whatever its program
    #[arg(long, value_name = "PID", conflicts_with_all = ["qemu_from_proc", "what"])]
    pid: Option<u32>,

    /// Look into all processes of this machine that have images open
    #[arg(long, conflicts_with = "what")]
    qemu_from_proc: bool,

    /// Make the copies in this directory [default: where the files were]
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,

    /// Put what is saved back under its own name, if that is free
    #[arg(long)]
    restore: bool,

    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,

    /// Show progress on standard error: as a bar on a terminal, else as lines if 'always'
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto")]
    progress: When,

    /// Look for the lost base of IMAGE in this directory and below (may be repeated)
    #[arg(long, value_name = "DIR", help_heading = STOPPED,
          conflicts_with_all = ["pid", "qemu_from_proc", "to", "dry_run"])]
    candidates: Vec<PathBuf>,

    /// The base's manifest, or a directory with manifests (checksum --manifest)
    #[arg(long, value_name = "FILE", help_heading = STOPPED,
          conflicts_with_all = ["pid", "qemu_from_proc", "to", "dry_run"])]
    manifest: Option<PathBuf>,

    /// Format of IMAGE; left out, its first bytes tell
    #[arg(short, long, value_name = "FMT", value_parser = format_parser(), help_heading = STOPPED,
          conflicts_with_all = ["pid", "qemu_from_proc"])]
    format: Option<Format>,

    /// The domain, by name or UUID; with --candidates or --manifest, the disk of a guest that does not run
    #[arg(value_name = "DOMAIN|IMAGE", required_unless_present_any = ["pid", "qemu_from_proc"])]
    what: Option<OsString>,
}

impl Rescue {
    /// Looks, says what can be saved, and saves it.
    pub(crate) fn run(self) -> Result<(), Failure> {
        if let Some(image) = &self.what
            && (self.manifest.is_some() || !self.candidates.is_empty())
        {
            return self.search(Path::new(image));
        }
        if self.format.is_some() {
            let error = qcow::Error::usage("--format is of IMAGE, and none is searched for");
            return Err(error.hint("give --candidates or --manifest").into());
        }
        // Where this program has no libvirt, the one that has takes its place here.
        let host = match &self.what {
            Some(_) => Some(connect(&self.connect)?),
            None => None,
        };
        let watch = Watch::start()?;
        let whose = match (&host, &self.what, self.pid) {
            (Some(host), Some(name), _) => Whose::Domain {
                hypervisor: host.hypervisor.as_ref(),
                name: &name.to_string_lossy(),
            },
            (_, _, Some(pid)) => Whose::Process(pid),
            _ => Whose::All,
        };
        let looked = watch.settle_migration(look(&whose, self.to.as_deref(), watch.token()))?;
        let plan = plan(&looked.facts, &Options { restore: self.restore });
        let json = self.output.output == OutputFormat::Json;
        if !json {
            print(text::plan(&plan))?;
        }
        if self.dry_run {
            if json {
                print_json(&plan)?;
            }
            return verdict(code_of_plan(&plan));
        }
        let outcome = self.save(&plan, &looked, &watch)?;
        match json {
            true => print_json(&outcome)?,
            false => print(text::outcome(&outcome))?,
        }
        verdict(code(&plan, &outcome))
    }

    /// Looks for the base that an image lacks.
    fn search(&self, image: &Path) -> Result<(), Failure> {
        let watch = Watch::start()?;
        let progress = Progress::new(self.progress);
        let found = search(&SearchOptions {
            image,
            format: self.format,
            directories: &self.candidates,
            manifest: self.manifest.as_deref(),
            restore: self.restore,
            observer: &progress,
            cancel: watch.token(),
        });
        progress.finish(found.is_ok());
        let found = watch.settle_migration(found)?;
        match self.output.output {
            OutputFormat::Json => print_json(&found)?,
            OutputFormat::Human => print(text::search(&found))?,
        }
        let good = |base: &LostBase| base.is_found() && base.unrestored.is_none();
        verdict(if found.base.as_ref().is_none_or(good) { 0 } else { REFUSED })
    }

    fn save(&self, plan: &Plan, looked: &Looked, watch: &Watch) -> Result<Outcome, Failure> {
        let progress = Progress::new(self.progress);
        let outcome =
            carry_out(plan, &looked.facts, &looked.pinned_files, &progress, watch.token());
        progress.finish(outcome.is_ok());
        watch.settle_migration(outcome)
    }
}

fn verdict(code: u8) -> Result<(), Failure> {
    match code {
        0 => Ok(()),
        code => Err(Failure::Verdict(code)),
    }
}

fn code_of_plan(plan: &Plan) -> u8 {
    match (plan.unseen.is_empty(), plan.is_whole()) {
        (false, _) => ENVIRONMENT,
        (true, false) => REFUSED,
        (true, true) => 0,
    }
}

/// The code of the worst that happened.
fn code(plan: &Plan, outcome: &Outcome) -> u8 {
    let of = |state: &State| match state {
        State::Saved(saved) if saved.unrestored.is_some() => REFUSED,
        State::Saved(_) | State::Nothing => 0,
        State::Refused => REFUSED,
        State::Failed { error, .. } => match error {
            ErrorKind::Refused => REFUSED,
            ErrorKind::Changed => CHANGED,
            ErrorKind::Unverified => UNVERIFIED,
            _ => ENVIRONMENT,
        },
    };
    let codes = outcome.items.iter().map(|item| of(&item.state));
    codes.chain([code_of_plan(plan)]).max().unwrap_or_default()
}
