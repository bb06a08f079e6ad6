//! `qcowtool bitmap`: changes persistent bitmaps in place, or lists them.

use std::ffi::OsString;
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches};
use qcow::chain::{Chain, Format, OpenOptions};
use qcow::image::DirtyRanges;
use qcow::ops::bitmap::{BitmapAction, BitmapOptions, BitmapOutcome, change_bitmap};
use qcow::ops::info::{BitmapSummary, FormatSpecific, ImageInfo, InfoOptions, info};
use qcow::{Error, Escaped};

use crate::args::{Common, WorkArgs, exit_codes, format_parser};
use crate::failure::Failure;
use crate::output::{OutputFormat, print, print_json};
use crate::sandbox::Plan;
use crate::session::{Operation, Session, warn_repaired};

/// Arguments of `bitmap`.
#[derive(Debug, Args)]
#[command(
    override_usage = "qcowtool bitmap [OPTIONS] [ACTIONS] <PATH> [NAME]",
    after_help = concat!(
    "Without an action, the bitmaps of the image are listed or, with NAME, the ranges of the disk that the bitmap has \
as dirty: offset and length in bytes. Actions are done in the order given, all of them or, \
if one cannot be done, none. The image must not be in use; of a running guest, libvirt and QEMU change the \
bitmaps.

A bitmap records which parts of the disk are written, for as long as it is enabled, so that a backup copies \
no others. One that was not stored cleanly can only be removed.

Examples:
  qcowtool bitmap vm.qcow2
  qcowtool bitmap --add vm.qcow2 backup-1
  qcowtool bitmap --disable vm.qcow2 backup-1
  qcowtool bitmap --output json vm.qcow2 backup-1
  qcowtool bitmap --add --disable --merge backup-1 vm.qcow2 both
  qcowtool bitmap --merge backup-1 -b overlay.qcow2 -F qcow2 base.qcow2 backup-1

", exit_codes!(
"  0    done
  1    refused or failed; one line on standard error says why, and the image is as it was")))]
pub(crate) struct Bitmap {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    work: WorkArgs,
    #[command(flatten)]
    actions: Actions,

    /// Bytes of the disk for each bit of the bitmap that is added, a power of two from 512 to 2G
    /// [default: the cluster size, but at least 4k and at most 64k]
    #[arg(short, long, value_name = "SIZE", value_parser = crate::size::parse, requires = "add")]
    granularity: Option<u64>,

    /// The image that has the bitmaps to be merged [default: the same image]
    #[arg(short = 'b', long, value_name = "FILE", requires = "merge")]
    source_file: Option<PathBuf>,

    /// Format of that image [default: detect from the header]
    #[arg(short = 'F', long, value_name = "FMT", value_parser = format_parser(), requires = "source_file")]
    source_format: Option<Format>,

    /// Image format [default: detect from the header]
    #[arg(short, long, value_name = "FMT", value_parser = format_parser())]
    format: Option<Format>,

    /// List the bitmaps of an image that another process may be writing to, such as QEMU of a running guest
    #[arg(short = 'U', long)]
    force_share: bool,

    /// Print what would be done, without writing
    #[arg(long)]
    dry_run: bool,

    /// The image
    #[arg(value_name = "PATH")]
    path: PathBuf,

    /// The bitmap
    #[arg(value_name = "NAME")]
    name: Option<OsString>,
}

/// What is asked for, in the order given.
#[derive(Debug, Default)]
struct Actions(Vec<Action>);

#[derive(Debug, Clone)]
enum Action {
    Add,
    Remove,
    Clear,
    Enable,
    Disable,
    Merge(OsString),
}

/// The actions that take no value: the option, what it does, the action.
const PLAIN: [(&str, &str, Action); 5] = [
    ("add", "Add the bitmap NAME, without a bit set; it records writes", Action::Add),
    ("remove", "Remove the bitmap", Action::Remove),
    ("clear", "Clear all bits", Action::Clear),
    ("enable", "Record writes from now on", Action::Enable),
    ("disable", "Record no more writes", Action::Disable),
];

impl Args for Actions {
    fn augment_args(command: clap::Command) -> clap::Command {
        let command = PLAIN.iter().fold(command, |command, (name, help, _)| {
            // A value of its own, so that it is known where each of them stands.
            let arg = Arg::new(*name).long(*name).help(*help).help_heading("Actions");
            let arg = arg.action(ArgAction::Append).num_args(0).default_missing_value("");
            command.arg(arg)
        });
        command.arg(
            Arg::new("merge")
                .long("merge")
                .value_name("SOURCE")
                .help("Set the bits of all that the bitmap SOURCE has as dirty")
                .help_heading("Actions")
                .action(ArgAction::Append)
                .value_parser(clap::value_parser!(OsString)),
        )
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Actions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut actions = Vec::new();
        for (name, _, action) in &PLAIN {
            let places = matches.indices_of(name).into_iter().flatten();
            actions.extend(places.map(|place| (place, action.clone())));
        }
        let places = matches.indices_of("merge").into_iter().flatten();
        let sources = matches.get_many::<OsString>("merge").into_iter().flatten();
        actions
            .extend(places.zip(sources).map(|(place, name)| (place, Action::Merge(name.clone()))));
        actions.sort_by_key(|(place, _)| *place);
        Ok(Self(actions.into_iter().map(|(_, action)| action).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Bitmap {
    /// Does it, and says what bitmaps there are then.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let name = match (&self.name, self.actions.0.is_empty()) {
            (None, true) => return self.list(),
            (Some(name), true) => return self.dirty(name.as_bytes()),
            (None, false) => {
                let message = "the name of the bitmap is missing";
                return Err(Error::usage(message).hint("see 'qcowtool bitmap --help'").into());
            }
            (Some(_), false) if self.force_share => {
                return Err(
                    Error::usage("-U is for listing: what is changed must not be in use").into()
                );
            }
            (Some(name), false) => name.clone().into_vec(),
        };
        let operation = Operation::start(&self.common, &self.work)?;
        self.common.verbosity.opening(&self.path, self.format);
        let options = BitmapOptions::default()
            .format(self.format)
            .dry_run(self.dry_run)
            .threads(self.work.threads());
        let plan = Plan::new().image(&self.path).opened_again();
        let plan = if self.dry_run { plan } else { plan.changing(&self.path) };
        // The image itself would be in use.
        let source = self.source_file.as_ref().filter(|source| !same_file(source, &self.path));
        let plan = match source {
            Some(source) => plan.image(source),
            None => plan,
        };
        Session::start(&self.common, plan)?;
        let from = source.map(|source| {
            let open = OpenOptions::default().format(self.source_format);
            Chain::open_alone(source, &open)
        });
        let actions = self.actions(from.transpose()?.as_ref());
        let outcome = operation.run(|observer, cancel| {
            change_bitmap(&self.path, &name, &actions, &options, observer, cancel)
        })?;
        warn_repaired(&self.path, outcome.repaired, outcome.dry_run);
        match self.common.format() {
            OutputFormat::Json => print_json(&outcome),
            OutputFormat::Human if self.common.verbosity.quiet => Ok(()),
            OutputFormat::Human => print(text(&outcome)),
        }
    }

    /// What the engine is to do.
    fn actions(&self, from: Option<&Chain>) -> Vec<BitmapAction> {
        let action = |action: &Action| match action {
            Action::Add => BitmapAction::Add { granularity: self.granularity },
            Action::Remove => BitmapAction::Remove,
            Action::Clear => BitmapAction::Clear,
            Action::Enable => BitmapAction::Enable,
            Action::Disable => BitmapAction::Disable,
            Action::Merge(bitmap) => {
                BitmapAction::Merge { bitmap: bitmap.clone().into_vec(), from: from.cloned() }
            }
        };
        self.actions.0.iter().map(action).collect()
    }

    /// Prints what the bitmap has as dirty.
    fn dirty(&self, name: &[u8]) -> Result<(), Failure> {
        let open = OpenOptions::default().format(self.format).force_share(self.force_share);
        Session::start(&self.common, Plan::new().chain(&self.path, &open))?;
        self.common.verbosity.opening(&self.path, self.format);
        let chain = Chain::open_alone(&self.path, &open)?;
        let image = chain.layers().first().and_then(|layer| layer.image());
        let image = image
            .ok_or_else(|| Error::unsupported("raw images have no bitmaps").file(&self.path))?;
        let ranges = image.bitmap(name).and_then(|bitmap| bitmap.dirty_ranges());
        let ranges = ranges.map_err(|error| error.file(&self.path))?;
        self.print_dirty(ranges)
    }

    /// Prints the ranges as they are found.
    fn print_dirty(&self, ranges: DirtyRanges<'_>) -> Result<(), Failure> {
        let json = self.common.format() == OutputFormat::Json;
        let mut out = BufWriter::new(io::stdout().lock());
        let mut before = if json { "[" } else { "" };
        for range in ranges {
            let range = match range {
                Ok(range) => range,
                Err(error) => {
                    out.flush().map_err(Failure::from_output)?;
                    return Err(error.file(&self.path).into());
                }
            };
            let (start, length) = (range.start.0, range.end.0.saturating_sub(range.start.0));
            let written = if json {
                write!(out, "{before}{{ \"start\": {start}, \"length\": {length} }}")
            } else {
                write!(out, "{before}{start} {length}")
            };
            written.map_err(Failure::from_output)?;
            before = if json { ",\n" } else { "\n" };
        }
        let end = match (json, before) {
            (true, "[") => "[]\n",
            (true, _) => "]\n",
            (false, "") => "",
            (false, _) => "\n",
        };
        out.write_all(end.as_bytes()).and_then(|()| out.flush()).map_err(Failure::from_output)
    }

    fn list(&self) -> Result<(), Failure> {
        Session::start(&self.common, Plan::new().image(&self.path))?;
        self.common.verbosity.opening(&self.path, self.format);
        let open = OpenOptions::default().format(self.format).force_share(self.force_share);
        let images = info(&self.path, &InfoOptions::default().open(open))?;
        let bitmaps: Vec<_> = images.into_iter().flat_map(bitmaps_of).collect();
        match self.common.format() {
            OutputFormat::Json => print_json(&bitmaps),
            OutputFormat::Human => print(table(&bitmaps)),
        }
    }
}

fn same_file(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| path.metadata().map(|file| (file.dev(), file.ino())).ok();
    identity(one).is_some_and(|one| Some(one) == identity(other))
}

fn bitmaps_of(image: ImageInfo) -> Vec<BitmapSummary> {
    match image.format_specific {
        Some(FormatSpecific::Qcow2(info)) => info.bitmaps,
        _ => Vec::new(),
    }
}

fn text(outcome: &BitmapOutcome) -> String {
    let state = match (outcome.dry_run, outcome.changed) {
        (_, false) => "Nothing is different.",
        (false, true) => "Done. The image has these bitmaps:",
        (true, true) => "The image would have these bitmaps:",
    };
    match (outcome.changed, outcome.bitmaps.as_slice()) {
        (true, []) if outcome.dry_run => "The image would have no bitmaps.\n".into(),
        (true, []) => "Done. The image has no bitmaps.\n".into(),
        (true, bitmaps) => format!("{state}\n{}", table(bitmaps)),
        (false, _) => format!("{state}\n"),
    }
}

/// One line for each; nothing where there are none.
fn table(bitmaps: &[BitmapSummary]) -> String {
    let line = |bitmap: &BitmapSummary| {
        let has = |flag: &str| bitmap.flags.iter().any(|name| name == flag);
        let state = match (has("in-use"), has("auto")) {
            (true, _) => "not stored cleanly: remove it",
            (false, true) => "enabled",
            (false, false) => "disabled",
        };
        format!("{}  granularity {}, {state}\n", Escaped(&bitmap.name), bitmap.granularity)
    };
    bitmaps.iter().map(line).collect()
}
