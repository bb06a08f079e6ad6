//! `qcowtool annotate`: exact sizes and digests of backing files in guests' metadata.

use std::fmt::Write as _;

use clap::Args;
use migrate::ErrorKind;
use migrate::annotate;
use migrate::hook::annotation::{Annotation, Below};
use migrate::plan::Policy;
use migrate::probe::{Annotated, Probing};
use qcow::Escaped;
use serde::Serialize;

use super::migration::{State, migration_codes};
use crate::args::OutputArgs;
use crate::failure::Failure;
use crate::libvirt::connect;
use crate::output::{OutputFormat, eprint_line, print, print_json};
use crate::progress::When;
use crate::session::Operation;

/// Not everything could be found out.
const INCOMPLETE: u8 = 6;

/// Arguments of `annotate`.
#[derive(Debug, Args)]
#[command(
    after_help = concat!(
    "The metadata travels in the guest's XML when it migrates, so that 'qcowtool hook' on the destination can create \
targets of the exact size and compare backing files. It tells the state of this moment: annotate again after a \
disk was resized, exchanged, or got a snapshot. Digests are kept, and a backing file is read once.

Examples:
  qcowtool annotate web-1
  qcowtool annotate --all
  qcowtool annotate --all --remove

", migration_codes!()))]
pub(crate) struct Annotate {
    #[command(flatten)]
    pub(crate) output: OutputArgs,

    #[command(flatten)]
    state: State,

    /// libvirt URI of the guests; they must be on this machine
    #[arg(long, value_name = "URI", default_value = "qemu:///system")]
    connect: String,

    /// All guests
    #[arg(long, conflicts_with = "guests")]
    all: bool,

    /// Remove what was written
    #[arg(long)]
    remove: bool,

    /// Show progress on standard error: as a bar on a terminal; otherwise as lines, only with 'always'
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto")]
    progress: When,

    /// Names or UUIDs of guests
    #[arg(value_name = "GUEST", required_unless_present = "all")]
    guests: Vec<String>,
}

/// What was written for one guest.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Written {
    domain: String,
    #[serde(flatten)]
    annotation: Annotation,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<String>,
}

impl Annotate {
    /// Looks at the disks, and writes.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let host = connect(&self.connect)?;
        let hypervisor = host.hypervisor.as_ref();
        let guests = if self.all { hypervisor.names()? } else { self.guests.clone() };
        let operation = Operation::showing(self.progress)?;
        let mut all = Vec::new();
        for guest in &guests {
            let one = operation.run_migration(|observer, cancel| {
                if self.remove {
                    return annotate::remove(hypervisor, guest).map(removed);
                }
                let cache = self.state.digests();
                // Without it, backing files are just read again.
                let kept = migrate::journal::make_directory(&cache).is_ok();
                let policy = Policy::default();
                let cache = kept.then_some(cache.as_path());
                let probing = Probing::new(&policy, observer, cancel).cache(cache);
                annotate::write(hypervisor, guest, &probing).map(written)
            });
            all.push(match one {
                // One guest's fault must not keep the others from their annotation; that they are on another host
                // is the same for all.
                Err(Failure::Migration(error))
                    if self.all && error.kind() != ErrorKind::Refused =>
                {
                    Written {
                        domain: guest.clone(),
                        annotation: Annotation::default(),
                        problems: vec![error.to_string()],
                    }
                }
                other => other?,
            });
        }
        match self.output.output {
            OutputFormat::Json => print_json(&all)?,
            OutputFormat::Human => {
                print(text(&all))?;
                for one in &all {
                    for problem in &one.problems {
                        eprint_line(format_args!("qcowtool: {}: {problem}", one.domain));
                    }
                }
            }
        }
        match all.iter().all(|one| one.problems.is_empty()) {
            true => Ok(()),
            false => Err(Failure::Verdict(INCOMPLETE)),
        }
    }
}

fn written(found: Annotated) -> Written {
    let Annotated { name, annotation, incomplete, .. } = found;
    let problem = |(disk, why): (String, String)| format!("disk '{disk}': {why}");
    let problems = incomplete.into_iter().map(problem).collect();
    Written { domain: name, annotation, problems }
}

fn removed(domain: String) -> Written {
    Written { domain, annotation: Annotation::default(), problems: Vec::new() }
}

fn text(written: &[Written]) -> String {
    let mut text = String::new();
    for one in written {
        let name = Escaped(&one.domain).to_string();
        if one.annotation.disks.is_empty() {
            let _ = writeln!(text, "{name}: no disks");
        }
        for disk in &one.annotation.disks {
            let below = match &disk.below {
                Below::Unknown => "backing file not known".to_owned(),
                Below::Nothing => "no backing file".to_owned(),
                Below::Disk { digest, .. } => format!("backing file {digest}"),
            };
            let target = Escaped(&disk.target);
            let _ = writeln!(text, "{name}: disk {target}: {} bytes, {below}", disk.virtual_size);
        }
    }
    text
}
