//! `qcowtool rescue`: saves a backing file that was deleted while a process has it open, or searches for
//! another copy of one that no process has open.

mod text;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Args;
use migrate::ErrorKind;
use migrate::rescue::{
    LostBase, Options, Outcome, Plan, SearchOptions, State, Whose, carry_out, look, plan, search,
};
use qcow::chain::Format;

use crate::args::{OutputArgs, format_parser};
use crate::failure::{Failure, REFUSED};
use crate::libvirt::connect;
use crate::output::{OutputFormat, print, print_json};
use crate::progress::When;
use crate::remedies::reworded;
use crate::session::Operation;

/// A file or a process changed meanwhile.
const CHANGED: u8 = 3;
/// A copy is not what it must be.
const UNVERIFIED: u8 = 4;
/// A host, a file or a service did not do what was asked of it.
const ENVIRONMENT: u8 = 6;

/// Help heading of the options about guests that are shut off.
const STOPPED: &str = "Guests that are shut off";

/// Arguments of `rescue`.
#[derive(Debug, Args)]
#[command(
    after_help = "A deleted backing file stays readable while QEMU has it open. Its copy is named NAME.rescued-ID, in the \
directory of the deleted file or in --to; with --restore it gets the original name, if that is free. Images that \
a guest writes to are never copied. The command needs root, or the user of the QEMU process.

For a guest that is shut off, --candidates searches other files for the backing file: a file is accepted only \
if its content has the digest of a manifest (qcowtool checksum --manifest). Without a manifest, the lost \
ranges of the disk are listed.

Examples:
  qcowtool rescue web-1 --dry-run
  qcowtool rescue web-1 --restore
  qcowtool rescue --pid 4711 --to /mnt/safe
  qcowtool rescue --qemu-from-proc --output json
  qcowtool rescue --candidates /mnt/backup --manifest tpl.manifest web-1.qcow2

Exit codes:
  0    every deleted file was saved (and restored, with --restore), or none is deleted
  1    wrong usage; one line on standard error says why
  2    a file was not saved or not restored, because that would not be safe; the others were
  3    a file or a process changed during the run; that file was not copied
  4    a copy differed from its file, and was removed
  6    a file or process could not be read, written or examined
  130  stopped by SIGINT (143 by SIGTERM, 129 by SIGHUP); no partial copy is left"
)]
pub(crate) struct Rescue {
    #[command(flatten)]
    pub(crate) output: OutputArgs,

    /// libvirt URI of the domain; it must be on this machine
    #[arg(long, value_name = "URI", default_value = "qemu:///system")]
    connect: String,

    /// Examine this process, whatever its program
    #[arg(long, value_name = "PID", conflicts_with_all = ["qemu_from_proc", "what"])]
    pid: Option<u32>,

    /// Examine all processes of this machine that have images open
    #[arg(long, conflicts_with = "what")]
    qemu_from_proc: bool,

    /// Directory for the copies [default: that of the deleted file]
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,

    /// Restore saved files under their original names, if these are free
    #[arg(long)]
    restore: bool,

    /// Print the plan without carrying it out
    #[arg(long)]
    dry_run: bool,

    /// Show progress on standard error: as a bar on a terminal; otherwise as lines, only with 'always'
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto")]
    progress: When,

    /// Search this directory recursively for the missing backing file of IMAGE (may be repeated)
    #[arg(long, value_name = "DIR", help_heading = STOPPED,
          conflicts_with_all = ["pid", "qemu_from_proc", "to", "dry_run"])]
    candidates: Vec<PathBuf>,

    /// Manifest of the backing file, or a directory of manifests (checksum --manifest)
    #[arg(long, value_name = "FILE", help_heading = STOPPED,
          conflicts_with_all = ["pid", "qemu_from_proc", "to", "dry_run"])]
    manifest: Option<PathBuf>,

    /// Format of IMAGE [default: detect from the header]
    #[arg(short, long, value_name = "FMT", value_parser = format_parser(), help_heading = STOPPED,
          conflicts_with_all = ["pid", "qemu_from_proc"])]
    format: Option<Format>,

    /// Name or UUID of the domain; with --candidates or --manifest, the disk of a guest that is shut off
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
            let error = qcow::Error::usage(
                "--format applies to IMAGE, which needs --candidates or --manifest",
            );
            return Err(error.hint("give --candidates or --manifest").into());
        }
        // Where this program has no libvirt, the one that has takes its place here.
        let host = match &self.what {
            Some(_) => Some(connect(&self.connect)?),
            None => None,
        };
        let operation = Operation::showing(self.progress)?;
        let whose = match (&host, &self.what, self.pid) {
            (Some(host), Some(name), _) => Whose::Domain {
                hypervisor: host.hypervisor.as_ref(),
                name: &name.to_string_lossy(),
            },
            (_, _, Some(pid)) => Whose::Process(pid),
            _ => Whose::All,
        };
        let looked =
            operation.settle_migration(|cancel| look(&whose, self.to.as_deref(), cancel))?;
        let plan = plan(&looked.facts, &Options::default().restore(self.restore));
        let plan = reworded(plan, "rescue");
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
        let outcome = operation.run_migration(|observer, cancel| {
            carry_out(&plan, &looked.facts, &looked.pinned_files, observer, cancel)
        })?;
        let outcome = reworded(outcome, "rescue");
        match json {
            true => print_json(&outcome)?,
            false => print(text::outcome(&outcome))?,
        }
        verdict(code(&plan, &outcome))
    }

    /// Looks for the base that an image lacks.
    fn search(&self, image: &Path) -> Result<(), Failure> {
        let found = Operation::showing(self.progress)?.run_migration(|observer, cancel| {
            search(
                &SearchOptions::new(image, &self.candidates, observer, cancel)
                    .format(self.format)
                    .manifest(self.manifest.as_deref())
                    .restore(self.restore),
            )
        })?;
        match self.output.output {
            OutputFormat::Json => print_json(&found)?,
            OutputFormat::Human => print(text::search(&found))?,
        }
        let good = |base: &LostBase| base.is_found() && base.unrestored.is_none();
        verdict(if found.base.as_ref().is_none_or(good) { 0 } else { REFUSED })
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
