//! Arguments that several commands share, and what they mean to the engine.

use std::path::{Path, PathBuf};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use qcow::chain::{
    BackingFormats, Chain, FilePolicy, Format, Limits, OpenOptions, Policy, Warning,
};
use qcow::io::Replace;
use qcow::{Error, Result};

use crate::output::{OutputFormat, eprint_line, shown, warn_line};
use crate::progress::When;
use crate::sandbox::{Mode, Plan, Sandbox};

/// The exit codes, as the help of commands shows them: those that write a file and have no others, or `codes` of its
/// own, a line each, with those of signals.
macro_rules! exit_codes {
    () => {
        "Exit codes:
  0    done
  1    refused or failed; one line on standard error says why
  130  stopped by SIGINT (Ctrl-C); no partial output is left
  143  stopped by SIGTERM (129 by SIGHUP); no partial output is left"
    };
    ($codes:literal) => {
        concat!(
            "Exit codes:\n",
            $codes,
            "
  130  stopped by SIGINT (Ctrl-C)
  143  stopped by SIGTERM (129 by SIGHUP)"
        )
    };
}
pub(crate) use exit_codes;

/// How outcomes and errors are printed.
#[derive(Debug, Args)]
pub(crate) struct OutputArgs {
    /// Output format of the result and of errors
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "human")]
    pub(crate) output: OutputFormat,
}

impl OutputArgs {
    /// How the outcome is printed.
    pub(crate) fn format(&self) -> OutputFormat {
        self.output
    }
}

/// The options of every command that reads images.
#[derive(Debug, Args)]
pub(crate) struct Common {
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    pub(crate) verbosity: Verbosity,
    #[command(flatten)]
    pub(crate) sandbox: SandboxArgs,
}

impl Common {
    /// How the outcome is printed.
    pub(crate) fn format(&self) -> OutputFormat {
        self.output.format()
    }
}

/// How much is printed besides the outcome.
#[derive(Debug, Args)]
pub(crate) struct Verbosity {
    /// Print only results, errors and warnings: no summary, no progress
    #[arg(short, long, conflicts_with = "verbose")]
    pub(crate) quiet: bool,

    /// Print to standard error what is opened and decided
    #[arg(short, long)]
    pub(crate) verbose: bool,
}

impl Verbosity {
    /// Says which image is about to be opened, and how its format is found.
    pub(crate) fn opening(&self, path: &Path, format: Option<Format>) {
        if self.verbose {
            let how = format.map_or("detected from the header", Format::as_str);
            eprint_line(format_args!("opening '{}', format: {how}", shown(path)));
        }
    }

    /// Says which images a chain consists of, and warns if it may not be what it seems: of those that are
    /// read as raw and look like something else, of names that depend on the working directory.
    pub(crate) fn opened(&self, chain: &Chain) {
        chain.warnings().iter().for_each(warn_line);
        // The operation reports what cannot be read.
        for (depth, looks) in chain.raw_lookalikes().unwrap_or_default() {
            if let Some(layer) = chain.layers().get(depth) {
                warn_line(Warning::ReadAsRaw { layer: layer.path().into(), looks });
            }
        }
        if self.verbose {
            for (depth, layer) in chain.layers().iter().enumerate() {
                let path = shown(layer.path());
                eprint_line(format_args!("layer {depth}: '{path}', {}", layer.format()));
            }
        }
    }
}

/// How an image that is read is opened.
#[derive(Debug, Args)]
pub(crate) struct SourceArgs {
    /// Image format [default: detect from the header]
    #[arg(short, long, value_name = "FMT", value_parser = format_parser())]
    pub(crate) format: Option<Format>,

    /// Read an image that another process may be writing to, such as QEMU of a running guest
    #[arg(short = 'U', long)]
    pub(crate) force_share: bool,

    /// Format of the backing file NAME (as its overlay names it, its file name, or its path) whose
    /// overlay records no format; may be repeated. FMT without NAME: of the only such backing file
    #[arg(long, value_name = "[NAME=]FMT", value_parser = StatedFormat::parse, help_heading = CHAIN)]
    pub(crate) backing_format: Vec<StatedFormat>,

    /// Accept --backing-format NAME=raw even if NAME begins with the magic of an image format
    #[arg(long, help_heading = CHAIN)]
    pub(crate) raw_despite_magic: bool,

    /// The files below it.
    #[command(flatten)]
    pub(crate) chain: ChainArgs,

    /// What it may demand.
    #[command(flatten)]
    pub(crate) trust: TrustArgs,
}

impl SourceArgs {
    /// The engine's options; `snapshot` is the view to read instead of the current state.
    pub(crate) fn open_options(&self, snapshot: Option<&str>) -> OpenOptions {
        let open = self.trust.binding(self.chain.open_options());
        open.format(self.format)
            .backing_formats(backing_formats(&self.backing_format, self.raw_despite_magic))
            .force_share(self.force_share)
            .snapshot(snapshot.map(str::to_owned))
    }
}

/// How much of a chain is read.
#[derive(Debug, Args)]
pub(crate) struct PartArgs {
    /// Read only the image itself, or the top LAYERS images of its chain: ranges that the backing file
    /// below provides are listed, and read as zeros
    #[arg(long, value_name = "LAYERS", num_args = 0..=1, require_equals = true,
          default_missing_value = "1", help_heading = CHAIN,
          value_parser = clap::value_parser!(u64).range(1..=200))]
    alone: Option<u64>,
}

impl PartArgs {
    /// Whether a part is wanted.
    pub(crate) fn is_part(&self) -> bool {
        self.alone.is_some()
    }

    /// Opens the chain of the image at `path`, or the part of it that is wanted.
    pub(crate) fn open(&self, path: &Path, options: &OpenOptions) -> Result<Chain> {
        match self.alone.map(usize::try_from) {
            None => Chain::open(path, options),
            Some(layers) => Chain::open_upper(path, options, layers.unwrap_or(usize::MAX)),
        }
    }
}

/// A format that is stated for a backing file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StatedFormat {
    /// `None`: the only one that needs it.
    name: Option<PathBuf>,
    format: Format,
}

impl StatedFormat {
    /// Reads `NAME=FMT` or `FMT`.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let (name, format) = match text.rsplit_once('=') {
            Some((name, format)) => (Some(PathBuf::from(name)), format),
            None => (None, text),
        };
        Ok(Self { name, format: format.parse()? })
    }
}

/// What the engine takes for formats that are stated.
pub(crate) fn backing_formats(stated: &[StatedFormat], raw_despite_magic: bool) -> BackingFormats {
    let start = BackingFormats::new().raw_despite_magic(raw_despite_magic);
    stated.iter().fold(start, |formats, StatedFormat { name, format }| match name {
        Some(name) => formats.named(name, *format),
        None => formats.only(*format),
    })
}

/// Help heading of the options about backing files.
pub(crate) const CHAIN: &str = "Backing chain";

/// Which files an image may pull in.
#[derive(Debug, Args)]
pub(crate) struct ChainArgs {
    /// Open backing and data files only below this directory (may be repeated)
    #[arg(long = "allow-dir", value_name = "DIR", help_heading = CHAIN)]
    pub(crate) allow_dirs: Vec<PathBuf>,

    /// Refuse a chain with more images than this [default: 200]
    #[arg(long, value_name = "N", help_heading = CHAIN,
          value_parser = clap::value_parser!(u64).range(1..=200))]
    pub(crate) max_depth: Option<u64>,
}

impl ChainArgs {
    /// The engine's options for an image of which nothing else is known.
    pub(crate) fn open_options(&self) -> OpenOptions {
        let files = if self.allow_dirs.is_empty() {
            FilePolicy::AnyLocal
        } else {
            FilePolicy::Within(self.allow_dirs.clone())
        };
        let mut limits = Limits::default();
        if let Some(depth) = self.max_depth.and_then(|depth| usize::try_from(depth).ok()) {
            limits.max_depth = depth;
        }
        OpenOptions::default()
            .policy(Policy::default().backing(files.clone()).data_file(files))
            .limits(limits)
    }
}

/// Help heading of the options about untrusted images.
const TRUST: &str = "Untrusted images";

/// Whether a file that exists is replaced.
#[derive(Debug, Args)]
pub(crate) struct ReplaceArgs {
    /// Replace the new image's file if it exists, atomically. Owner, group, mode, ACL, SELinux label and
    /// user.* attributes stay. Refused if the file is in use
    #[arg(long)]
    force: bool,

    /// As --force, also if a process has locked the file, a loop device is backed by it, or an image in
    /// its directory uses it as its backing or data file
    #[arg(long)]
    force_in_use: bool,
}

impl ReplaceArgs {
    /// The engine's word for it.
    pub(crate) fn replace(&self) -> Replace {
        replace(self.force, self.force_in_use)
    }
}

/// What `--force` and `--force-in-use` mean.
pub(crate) fn replace(force: bool, in_use: bool) -> Replace {
    match (force, in_use) {
        (_, true) => Replace::InUse,
        (true, false) => Replace::Unused,
        (false, false) => Replace::Never,
    }
}

/// How far an image is trusted.
#[derive(Debug, Default, Args)]
pub(crate) struct TrustArgs {
    /// Treat the image as hostile: require -f and a header that agrees, open no other file outside
    /// --allow-dir, and enforce resource limits
    #[arg(long, help_heading = TRUST)]
    pub(crate) untrusted: bool,

    /// Refuse a larger virtual size [default: no limit; with --untrusted: 64T]
    #[arg(long, value_name = "SIZE", help_heading = TRUST, value_parser = crate::size::parse)]
    pub(crate) max_virtual_size: Option<u64>,

    /// Refuse an image with more bytes of metadata tables [default: QEMU's limits; with --untrusted: 32M]
    #[arg(long, value_name = "SIZE", help_heading = TRUST, value_parser = crate::size::parse)]
    pub(crate) max_metadata: Option<u64>,
}

impl TrustArgs {
    /// Whether the image is not trusted and no limit of its virtual size was given.
    pub(crate) fn is_unbounded(&self) -> bool {
        self.untrusted && self.max_virtual_size.is_none()
    }

    /// The options with policy and limits as strict as was asked for.
    pub(crate) fn binding(&self, mut open: OpenOptions) -> OpenOptions {
        self.bind(&mut open.policy, &mut open.limits);
        open
    }

    /// Makes policy and limits as strict as was asked for. Directories that are allowed stay so.
    fn bind(&self, policy: &mut Policy, limits: &mut Limits) {
        if self.untrusted {
            policy.strict = true;
            for files in [&mut policy.backing, &mut policy.data_file] {
                if *files == FilePolicy::AnyLocal {
                    *files = FilePolicy::Deny;
                }
            }
            *limits = Limits::untrusted().max_depth(limits.max_depth);
        }
        limits.max_virtual_size = self.max_virtual_size.unwrap_or(limits.max_virtual_size);
        limits.max_metadata = self.max_metadata.unwrap_or(limits.max_metadata);
    }
}

/// Which privileges a command drops before it reads an image.
#[derive(Debug, Args)]
pub(crate) struct SandboxArgs {
    /// Drop privileges before reading an image: other files, programs, the network
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto", help_heading = TRUST)]
    sandbox: Mode,
}

impl SandboxArgs {
    /// Gives up what `plan` does not need. What is found out about this machine, such as the number of
    /// its cores, is to be found out before.
    pub(crate) fn enter(&self, plan: Plan) -> Result<Sandbox> {
        Sandbox::enter(self.sandbox, plan)
    }
}

/// `qemu-img`'s cache mode of what is read.
#[derive(Debug, Args)]
pub(crate) struct CacheArgs {
    /// Accepted for compatibility with qemu-img; has no effect
    #[arg(short = 'T', long = "cache", value_enum, value_name = "CACHE")]
    _cache: Option<CacheMode>,
}

/// The names of QEMU's cache modes.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum CacheMode {
    Writeback,
    Writethrough,
    None,
    Off,
    Directsync,
    Unsafe,
}

/// How a long operation runs.
#[derive(Debug, Args)]
pub(crate) struct WorkArgs {
    /// Worker threads; 0 means one per core, at most 16. The result does not depend on it
    #[arg(long, value_name = "N", default_value_t = 0,
          value_parser = clap::value_parser!(u64).range(0..=256))]
    pub(crate) threads: u64,

    /// Show progress on standard error: as a bar on a terminal; otherwise as lines, only with 'always'
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto")]
    pub(crate) progress: When,

    /// Short for --progress always
    #[arg(short = 'p', conflicts_with = "progress")]
    pub(crate) always_progress: bool,
}

impl WorkArgs {
    /// How many worker threads there are to be. Asks the system, whose files a sandbox takes away.
    pub(crate) fn threads(&self) -> usize {
        match usize::try_from(self.threads).unwrap_or(0) {
            0 => qcow::ops::usual_threads(),
            threads => threads,
        }
    }

    /// When to show progress; `quiet` overrules.
    pub(crate) fn progress(&self, verbosity: &Verbosity) -> When {
        match (verbosity.quiet, self.always_progress) {
            (true, _) => When::Never,
            (false, true) => When::Always,
            (false, false) => self.progress,
        }
    }
}

/// Reads a format's name and offers the known ones in help and completions.
pub(crate) fn format_parser() -> impl TypedValueParser<Value = Format> {
    PossibleValuesParser::new([Format::Qcow2.as_str(), Format::Raw.as_str()])
        .try_map(|name| name.parse::<Format>())
}

/// A positional argument that only `-o help` may leave out.
pub(crate) fn required(path: Option<PathBuf>, name: &str) -> Result<PathBuf> {
    path.ok_or_else(|| Error::usage(format!("{name} is missing")).hint("see --help"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(allow_dirs: &[&str], max_depth: Option<u64>) -> OpenOptions {
        let allow_dirs = allow_dirs.iter().map(PathBuf::from).collect();
        ChainArgs { allow_dirs, max_depth }.open_options()
    }

    #[test]
    fn allowed_directories_bind_backing_and_data_files() {
        let options = chain(&["/a", "/b"], None);
        let within = FilePolicy::Within(vec!["/a".into(), "/b".into()]);
        let expected = Policy::default().backing(within.clone()).data_file(within);
        assert_eq!(options.policy, expected);
    }

    #[test]
    fn of_an_untrusted_image_only_allowed_directories_are_opened_and_limits_can_be_moved() {
        let trust =
            |max_metadata| TrustArgs { untrusted: true, max_metadata, ..Default::default() };
        let mut open = chain(&[], Some(3));
        trust(None).bind(&mut open.policy, &mut open.limits);
        let denied =
            Policy::default().backing(FilePolicy::Deny).data_file(FilePolicy::Deny).strict(true);
        assert_eq!(open.policy, denied);
        assert_eq!(open.limits, Limits::untrusted().max_depth(3));
        let mut open = chain(&["/a"], None);
        trust(Some(7)).bind(&mut open.policy, &mut open.limits);
        assert_eq!(open.policy.backing, FilePolicy::Within(vec!["/a".into()]));
        assert_eq!(open.limits.max_metadata, 7);
    }

    #[test]
    fn without_allowed_directories_local_files_may_be_opened() {
        assert_eq!(chain(&[], None).policy, Policy::default());
    }

    #[test]
    fn max_depth_replaces_only_the_depth_limit() {
        assert_eq!(chain(&[], Some(3)).limits, Limits::default().max_depth(3));
    }

    #[test]
    fn quiet_wins_over_asked_for_progress() {
        let work = WorkArgs { threads: 0, progress: When::Always, always_progress: true };
        assert_eq!(work.progress(&Verbosity { quiet: true, verbose: false }), When::Never);
        assert_eq!(work.progress(&Verbosity { quiet: false, verbose: false }), When::Always);
    }

    #[test]
    fn a_stated_format_is_split_at_the_last_equals_sign() {
        let parse = |text| StatedFormat::parse(text).unwrap();
        let named = |name: &str| Some(PathBuf::from(name));
        assert_eq!(parse("raw"), StatedFormat { name: None, format: Format::Raw });
        let expected = StatedFormat { name: named("a=b.img"), format: Format::Qcow2 };
        assert_eq!(parse("a=b.img=qcow2"), expected);
        StatedFormat::parse("base.raw=vmdk").unwrap_err();
        StatedFormat::parse("base.raw").unwrap_err();
    }
}
