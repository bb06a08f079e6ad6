//! `qcowtool audit`: backing-file dependencies and problems with them.

pub(super) mod prometheus;
mod text;
mod tree;

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use migrate::audit::{Options, Scan, Severity, Survey, Unseen, prove, report};
use qcow::{CancelToken, Error};

use crate::args::{exit_codes, replace};
use crate::failure::Failure;
use crate::libvirt::{Connected, connect};
use crate::output::{OutputFormat, print, print_json};
use crate::picture::PictureFile;
use crate::remedies::reworded;
use crate::signals::Watch;

/// At least one finding of severity error.
const FOUND_ERRORS: u8 = 2;

/// Arguments of `audit`.
#[derive(Debug, Args)]
#[command(
    after_help = concat!(
    "Reads only headers, and takes no locks: running guests are not affected. Files are identified by device and \
inode, not by name. With --connect, the pools and domains of a libvirt URI are examined as well; of a remote \
host only what its libvirt reports is known.

The codes of findings, the JSON and the metrics are in docs/audit.md.

Examples:
  qcowtool audit /var/lib/libvirt/images
  qcowtool audit --connect qemu:///system --tree
  qcowtool audit --connect qemu:///system --picture graph.svg
  qcowtool audit --connect qemu:///system --output prometheus
  qcowtool audit --manifests /srv/manifests --max-depth 4 --output json /data /mnt/nfs

", exit_codes!(
"  0    no finding is an error
  1    nothing could be examined, or wrong usage; one line on standard error says why
  2    at least one finding is an error")))]
pub(crate) struct Audit {
    #[command(flatten)]
    pub(crate) output: AuditOutput,

    /// Show the backing-file dependencies as a tree, before the findings
    #[arg(long)]
    tree: bool,

    /// Also draw the backing-file dependencies, as FILE.svg or FILE.png
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,

    /// Replace the picture if it exists, atomically
    #[arg(long, requires = "picture")]
    force: bool,

    /// As --force, also if the file is in use or an image depends on it
    #[arg(long, requires = "picture")]
    force_in_use: bool,

    /// Report chains with more images than this
    #[arg(long, value_name = "N", default_value_t = 16,
          value_parser = clap::value_parser!(u64).range(1..=200))]
    max_depth: u64,

    /// Compare backing files with the manifests in this directory (checksum --manifest); a file that may have
    /// changed since its manifest was written is read in full
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,

    /// Also examine the pools and domains of this libvirt URI (may be repeated)
    #[arg(long, value_name = "URI")]
    connect: Vec<String>,

    /// Directories, searched recursively, and images
    #[arg(value_name = "PATH", required_unless_present = "connect")]
    paths: Vec<PathBuf>,
}

/// How the outcome is printed.
#[derive(Debug, Args)]
pub(crate) struct AuditOutput {
    /// Output format of the result
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "human")]
    pub(crate) output: AuditFormat,
}

/// Text, JSON or metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AuditFormat {
    Human,
    Json,
    Prometheus,
}

impl AuditOutput {
    /// How errors are printed.
    pub(crate) fn format(&self) -> OutputFormat {
        match self.output {
            AuditFormat::Json => OutputFormat::Json,
            AuditFormat::Human | AuditFormat::Prometheus => OutputFormat::Human,
        }
    }
}

impl Audit {
    /// Looks, and prints what was found.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let replaces = replace(self.force, self.force_in_use);
        let picture = self.picture.as_deref().map(|path| PictureFile::at(path, replaces));
        let picture = picture.transpose()?;
        let survey = survey(&self.paths, &self.connect, None, self.manifests.as_deref())?;
        let nothing = survey.images.is_empty() && survey.domains.is_empty();
        if let Some(first) = survey.unseen.first().filter(|_| nothing && survey.directories == 0) {
            let error = Error::usage(format!("nothing could be looked at: {}", first.why));
            return Err(Failure::Error(error.file(&first.path)));
        }
        let options =
            Options::default().deep(usize::try_from(self.max_depth).unwrap_or(usize::MAX));
        let outcome = reworded(report(&survey, &options), "audit");
        if let Some(picture) = picture {
            picture.audit(&survey, &outcome)?;
        }
        match self.output.output {
            AuditFormat::Json => print_json(&outcome)?,
            AuditFormat::Prometheus => print(prometheus::metrics(&outcome))?,
            AuditFormat::Human => {
                if self.tree {
                    print(tree::tree(&survey))?;
                }
                print(text::text(&outcome))?;
            }
        }
        match outcome.findings.iter().any(|finding| finding.severity == Severity::Error) {
            true => Err(Failure::Verdict(FOUND_ERRORS)),
            false => Ok(()),
        }
    }
}

/// Looks at directories and hosts, and at `template` if there is one. What cannot be looked at is in the
/// survey.
pub(super) fn survey(
    paths: &[PathBuf],
    uris: &[String],
    template: Option<&Path>,
    manifests: Option<&Path>,
) -> Result<Survey, Failure> {
    // Where this program has no libvirt, the one that has takes its place here.
    let hosts = hosts(uris);
    let watch = Watch::start()?;
    let scan = Scan::new(watch.token());
    watch.settle_migration(look(scan, paths, hosts, template, manifests, watch.token()))
}

/// The hosts at these URIs, or why they cannot be reached.
pub(super) fn hosts(uris: &[String]) -> Vec<(&String, migrate::Result<Connected>)> {
    uris.iter().map(|uri| (uri, connect(uri))).collect()
}

/// As [`survey`], with a scan that was begun.
pub(super) fn look(
    scan: Scan<'_>,
    paths: &[PathBuf],
    hosts: Vec<(&String, migrate::Result<Connected>)>,
    template: Option<&Path>,
    manifests: Option<&Path>,
    cancel: &CancelToken,
) -> migrate::Result<Survey> {
    // Of a template's users none may be missed, wherever it was.
    let scan = if template.is_some() { scan.with_all_deleted() } else { scan };
    for (uri, host) in hosts {
        let asked = host.and_then(|host| scan.host(host.hypervisor.as_ref()));
        match asked {
            Err(error) if error.kind() == migrate::ErrorKind::Interrupted => return Err(error),
            Err(error) => scan.unseen(Unseen {
                host: None,
                path: uri.into(),
                why: error.message().to_owned(),
                asked: true,
            }),
            Ok(()) => {}
        }
    }
    for path in paths {
        scan.path(path)?;
    }
    if let Some(template) = template {
        let _ = scan.image(template);
    }
    let mut survey = scan.finish()?;
    if let Some(directory) = manifests {
        prove(&mut survey, directory, cancel)?;
    }
    Ok(survey)
}
