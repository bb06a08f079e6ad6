//! `qcowtool create`: makes an empty image.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::Args;
use qcow::chain::{Format, OpenOptions, resolve_name};
use qcow::ops::create::{Backing, CreateOptions, CreateOutcome, create_until};
use qcow::ops::{Qcow2Options, TargetOptions};
use qcow::{Error, Result};

use crate::args::{ChainArgs, Common, ReplaceArgs, TrustArgs, exit_codes, format_parser, required};
use crate::failure::Failure;
use crate::losses::report_not_carried;
use crate::options::{ImageOptions, Item, Key, Purpose, Request, Value, help, request};
use crate::output::{OutputFormat, print, print_json, warn};
use crate::progress::When;
use crate::sandbox::Plan;
use crate::session::{Operation, Session};
use crate::size;

/// Arguments of `create`.
#[derive(Debug, Args)]
#[command(
    override_usage = "qcowtool create [OPTIONS] <PATH> [SIZE]\n       \
                      qcowtool create --like <IMAGE> [-f <FMT>] [--force] <PATH>",
    after_help = concat!(
    "SIZE is in bytes, or has a suffix k, M, G, T, P or E (powers of 1024). The default is the size of \
the backing file. Without -f the new image is qcow2 (qemu-img makes a raw one).

Examples:
  qcowtool create vm.qcow2 20G
  qcowtool create -f raw vm.raw 20G
  qcowtool create -f qcow2 -b template.qcow2 -F qcow2 overlay.qcow2
  qcowtool create -f qcow2 -o cluster_size=2M,preallocation=metadata vm.qcow2 1T
  qcowtool create --like orphan.qcow2 target.qcow2
  qcowtool create --like upload.qcow2 --untrusted -f qcow2 target.qcow2
  qcowtool create -f qcow2 -o help

", exit_codes!()))]
pub(crate) struct Create {
    #[command(flatten)]
    pub(crate) common: Common,

    /// Format of the new image [default: qcow2]; with --like also that of IMAGE [default: detect from the header]
    #[arg(short, long, value_name = "FMT", value_parser = format_parser())]
    format: Option<Format>,

    /// Backing file of the new image, relative to the new image's directory
    #[arg(short, long, value_name = "BACKING")]
    backing: Option<PathBuf>,

    /// Format of the backing file; required with -b
    #[arg(short = 'F', long = "backing-format", value_name = "FMT",
          value_parser = format_parser())]
    backing_fmt: Option<Format>,

    /// Do not open the backing file, which need not exist; requires SIZE
    #[arg(short, long = "backing-unsafe")]
    unchecked: bool,

    /// Creation options, key=value,...; 'help' lists them
    #[arg(short, long, value_name = "OPTIONS")]
    options: Vec<OsString>,

    /// Copy format, size and geometry of this image, without its backing chain or content
    #[arg(long, value_name = "IMAGE", conflicts_with_all =
          ["backing", "backing_fmt", "unchecked", "options", "size"])]
    like: Option<PathBuf>,

    #[command(flatten)]
    replace: ReplaceArgs,

    /// Accepted for consistency with commands that read data; has no effect, because only the headers of IMAGE
    /// or BACKING are read
    #[arg(short = 'U', long)]
    force_share: bool,

    #[command(flatten)]
    chain: ChainArgs,

    /// What IMAGE or BACKING may demand.
    #[command(flatten)]
    trust: TrustArgs,

    /// The image to create
    #[arg(value_name = "PATH", required_unless_present = "options")]
    path: Option<PathBuf>,

    /// Virtual size
    #[arg(value_name = "SIZE", allow_negative_numbers = true)]
    size: Option<String>,
}

impl Create {
    /// Makes the image, or lists the options that it can have.
    pub(crate) fn run(mut self) -> Result<(), Failure> {
        let items = match request(&self.options)? {
            Request::Help => return print(help(self.new_format(), Purpose::Create)),
            Request::Options(items) => items,
        };
        let path = required(self.path.take(), "PATH")?;
        if let Some(source) = &self.like {
            return self.run_like(source, &path);
        }
        let (options, given) = self.options(&items)?;
        let operation = Operation::showing(When::Never)?;
        Session::start(&self.common, plan(&path, &options))?;
        let outcome = operation.run(|_, cancel| create_until(&path, &options, cancel))?;
        self.print(&path, &options, given, &outcome)
    }

    /// Makes an empty target for `source` and proves it.
    fn run_like(&self, source: &Path, path: &Path) -> Result<(), Failure> {
        // It is done sooner than anybody would stop it, but a signal does not leave half of it.
        let operation = Operation::showing(When::Never)?;
        Session::start(&self.common, Plan::new().image(source).making(path))?;
        self.common.verbosity.opening(source, self.format);
        let open = self.open_options().format(self.format);
        let mut plan = migrate::target::plan(source, &open)?;
        plan.create.replace = self.replace.replace();
        let (outcome, _proof) = operation.run(|_, _| migrate::target::prepare(&plan, path))?;
        report_not_carried(&self.common.verbosity, source, &outcome.not_carried_over);
        self.print(path, &plan.create, ImageOptions::of(&plan.create.target), &outcome)
    }

    /// How IMAGE or BACKING is opened.
    fn open_options(&self) -> OpenOptions {
        let force_share = self.force_share;
        self.trust.binding(self.chain.open_options()).force_share(force_share)
    }

    fn new_format(&self) -> Format {
        self.format.unwrap_or(Format::Qcow2)
    }

    /// What to create, and the options that were given in words.
    fn options(&self, items: &[Item]) -> Result<(CreateOptions, ImageOptions)> {
        let mut given = ImageOptions::parse(self.new_format(), Purpose::Create, items)?;
        self.set_size(&mut given)?;
        self.set_backing(&mut given)?;
        let options = CreateOptions::default()
            .size(given.size())
            .target(given.target()?)
            .backing(self.backing(&given)?)
            .replace(self.replace.replace());
        Ok((options, given))
    }

    fn set_size(&self, given: &mut ImageOptions) -> Result<()> {
        if let Some(text) = &self.size {
            if given.size().is_some() {
                return Err(Error::usage("the size is given twice: as SIZE and in -o size"));
            }
            given.set(Key::Size, Value::Number(size::parse_disk(text)?));
        }
        Ok(())
    }

    fn set_backing(&self, given: &mut ImageOptions) -> Result<()> {
        let name = self.backing.as_ref().map(|name| name.as_os_str());
        let format = self.backing_fmt.map(|format| OsStr::new(format.as_str()));
        for (key, option, other, value) in [
            (Key::BackingFile, "-b", "backing_file", name),
            (Key::BackingFormat, "-F", "backing_fmt", format),
        ] {
            let Some(value) = value else { continue };
            if given.text(key).is_some_and(|other| other != value) {
                return Err(Error::usage(format!("{option} and -o {other} differ")));
            }
            given.set(key, Value::Text(value.to_owned()));
        }
        Ok(())
    }

    fn backing(&self, given: &ImageOptions) -> Result<Option<Backing>> {
        let (name, format) = match (given.text(Key::BackingFile), given.text(Key::BackingFormat)) {
            (None, None) => return Ok(None),
            (None, Some(_)) => {
                return Err(Error::usage("a backing format is given, but no backing file")
                    .hint("name it with -b"));
            }
            (Some(_), None) => {
                return Err(Error::usage("a backing file is given, but not its format")
                    .hint("state it with -F qcow2 or -F raw"));
            }
            (Some(name), Some(format)) => (name, format.to_string_lossy().parse::<Format>()?),
        };
        if name.is_empty() {
            return Err(Error::usage("the name of the backing file is empty"));
        }
        if self.new_format() == Format::Raw {
            return Err(Error::usage("raw images cannot have a backing file")
                .hint("make a qcow2 image: leave out -f raw"));
        }
        let open = self.open_options().format(format);
        Ok(Some(Backing::new(name, format).unchecked(self.unchecked).open(open)))
    }

    fn print(
        &self,
        path: &Path,
        options: &CreateOptions,
        given: ImageOptions,
        outcome: &CreateOutcome,
    ) -> Result<(), Failure> {
        warn(&outcome.warnings);
        match self.common.format() {
            OutputFormat::Json => print_json(outcome),
            OutputFormat::Human if self.common.verbosity.quiet => Ok(()),
            OutputFormat::Human => {
                let mut all = ImageOptions::of(&options.target);
                all.set(Key::Size, Value::Number(outcome.virtual_size));
                all.overlay(given);
                print(format_args!("{}\n", all.formatting_line(path)))
            }
        }
    }
}

/// What is opened to make an image at `path`.
fn plan(path: &Path, options: &CreateOptions) -> Plan {
    let mut plan = outputs(path, &options.target);
    if let Some(backing) = &options.backing
        && !backing.unchecked
    {
        // A name that cannot be understood is refused when it is needed.
        if let Ok(name) = resolve_name(&backing.name, path, &backing.open.working_directory) {
            plan = plan.chain(&name, &backing.open);
        }
    }
    plan
}

/// Where an image and its data file are made.
pub(crate) fn outputs(path: &Path, target: &TargetOptions) -> Plan {
    let plan = Plan::new().making(path);
    match target {
        TargetOptions::Qcow2(Qcow2Options { data_file: Some(name), .. }) => {
            plan.making(&path.parent().map_or_else(|| name.clone(), |parent| parent.join(name)))
        }
        _ => plan,
    }
}
