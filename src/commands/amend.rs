//! `qcowtool amend`: changes what an image is, in place.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use qcow::chain::{Format, OpenOptions};
use qcow::ops::amend::{AmendOutcome, amend};
use qcow::{Error, Escaped};

use crate::args::{ChainArgs, Common, WorkArgs, exit_codes, format_parser, required};
use crate::failure::Failure;
use crate::options::{ImageOptions, Purpose, Request, help, request};
use crate::output::{OutputFormat, print, print_json};
use crate::sandbox::Plan;
use crate::session::{Operation, Session, warn_repaired};
use crate::size::human;

/// Arguments of `amend`.
#[derive(Debug, Args)]
#[command(
    override_usage = "qcowtool amend [OPTIONS] -o <OPTIONS> <PATH>",
    after_help = concat!(
    "What the guest sees stays what it is. Everything is validated first, and what is asked for happens as a whole:
a crash leaves the image as it was or as it is to be. The image must not be in use.

The name of a data file is changed only if the file under the new name has the same content as the old one, or, \
if that is gone, the size of the disk; the files are not touched.

Examples:
  qcowtool amend -o help
  qcowtool amend -o compat=1.1,lazy_refcounts=on vm.qcow2
  qcowtool amend -o refcount_bits=1 --dry-run vm.qcow2
  qcowtool amend -o compat=0.10,refcount_bits=16 vm.qcow2
  qcowtool amend -o data_file=/srv/vm.raw vm.qcow2

", exit_codes!(
"  0    done
  1    refused or failed; one line on standard error says why, and the image is as it was")))]
pub(crate) struct Amend {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    work: WorkArgs,

    /// What to change, as a comma-separated list; may be repeated. 'help' lists what can be changed
    #[arg(short, long, value_name = "OPTIONS", required = true)]
    options: Vec<OsString>,

    /// Image format [default: detect from the header]
    #[arg(short, long, value_name = "FMT", value_parser = format_parser())]
    format: Option<Format>,

    /// With compat=0.10: remove persistent bitmaps, which that version has not
    #[arg(long)]
    drop_bitmaps: bool,

    /// With data_file: do not look at the file
    #[arg(long)]
    unchecked: bool,

    /// Print what would be done, without writing
    #[arg(long)]
    dry_run: bool,

    /// The files that the image names.
    #[command(flatten)]
    chain: ChainArgs,

    /// The image
    #[arg(value_name = "PATH")]
    path: Option<PathBuf>,
}

impl Amend {
    /// Does it, and says what is different.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let items = match request(&self.options)? {
            Request::Help => return print(help(Format::Qcow2, Purpose::Amend)),
            Request::Options(items) => items,
        };
        let path = required(self.path.clone(), "PATH")?;
        if self.format == Some(Format::Raw) {
            return Err(Error::unsupported("raw images have no options to amend").into());
        }
        let given = ImageOptions::parse(Format::Qcow2, Purpose::Amend, &items)?;
        let operation = Operation::start(&self.common, &self.work)?;
        self.common.verbosity.opening(&path, self.format);
        let open: OpenOptions = self.chain.open_options();
        let options = given
            .amend()?
            .drop_bitmaps(self.drop_bitmaps)
            .unchecked(self.unchecked)
            .dry_run(self.dry_run)
            .format(self.format)
            .threads(self.work.threads())
            .policy(open.policy.clone());
        let plan = if options.data_file.is_some() && !self.unchecked {
            Plan::new().chain(&path, &open)
        } else {
            Plan::new().image(&path)
        };
        let plan = if self.dry_run { plan } else { plan.changing(&path) };
        Session::start(&self.common, plan.opened_again())?;
        let outcome = operation.run(|observer, cancel| amend(&path, &options, observer, cancel))?;
        warn_repaired(&path, outcome.repaired, outcome.dry_run);
        match self.common.format() {
            OutputFormat::Json => print_json(&outcome),
            OutputFormat::Human if self.common.verbosity.quiet => Ok(()),
            OutputFormat::Human => print(text(&outcome)),
        }
    }
}

/// One line for each thing that is different.
fn text(outcome: &AmendOutcome) -> String {
    if outcome.changes.is_empty() {
        return "Nothing is different.\n".into();
    }
    let would = if outcome.dry_run { "would be " } else { "" };
    let mut text = String::new();
    for change in &outcome.changes {
        let (from, to) = (Escaped(&change.from), Escaped(&change.to));
        text.push_str(&format!("{}: {would}{to}, was {from}\n", change.option));
    }
    let (verb, written) = if outcome.dry_run {
        ("would be removed", "would be written")
    } else {
        ("were removed", "were written")
    };
    if outcome.bitmaps_dropped > 0 {
        text.push_str(&format!("bitmaps: {} {verb}\n", outcome.bitmaps_dropped));
    }
    if outcome.zeros_written > 0 {
        let size = human(outcome.zeros_written);
        text.push_str(&format!("{size} of zeros {written}, which had been flags\n"));
    }
    text
}
