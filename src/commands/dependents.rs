//! `qcowtool dependents`: what depends on an image.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use migrate::audit::{Dependents as Outcome, Verdict, dependents};
use qcow::{Error, Escaped};

use super::audit::survey;
use crate::args::{OutputArgs, exit_codes};
use crate::failure::Failure;
use crate::output::{OutputFormat, eprint_line, print, print_json, shown};

/// Something depends on it.
const IN_USE: u8 = 1;

/// It could not be found out.
const UNDETERMINED: u8 = 6;

/// Arguments of `dependents`.
#[derive(Debug, Args)]
#[command(
    after_help = concat!(
    "TEMPLATE may be any path to the file, through links and mounts. A file that is already deleted is looked up \
by the name that overlays record. Only what is examined can be found: give all directories and all hosts that \
may use it. Of a remote host, only what its libvirt reports is known.

Examples:
  qcowtool dependents /images/tpl.qcow2 --in /images /data
  qcowtool dependents /nfs/tpl.qcow2 --connect qemu:///system --connect qemu+tls://host-b/system
  qcowtool dependents tpl.qcow2 --in /images --may-delete && rm tpl.qcow2

", exit_codes!(
"  0    done; with --may-delete: nothing depends on it
  1    wrong usage; with --may-delete: something depends on it, and is listed
  6    not everything could be examined, and with --may-delete nothing was found in the rest")))]
pub(crate) struct Dependents {
    #[command(flatten)]
    pub(crate) output: OutputArgs,

    /// Directories, searched recursively, and images to examine
    #[arg(long = "in", value_name = "PATH", num_args = 1.., required_unless_present = "connect")]
    paths: Vec<PathBuf>,

    /// Examine the pools and domains of this libvirt URI (may be repeated)
    #[arg(long, value_name = "URI")]
    connect: Vec<String>,

    /// Report by the exit code whether the image can be deleted
    #[arg(long)]
    may_delete: bool,

    /// The image
    #[arg(value_name = "TEMPLATE")]
    template: PathBuf,
}

impl Dependents {
    /// Looks and prints.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let survey = survey(&self.paths, &self.connect, Some(&self.template), None);
        let survey = survey.map_err(|failure| match failure {
            // 1 would mean that something depends on it.
            Failure::Error(error) => Failure::Coded { code: UNDETERMINED, error },
            Failure::Migration(error) => {
                Failure::Coded { code: UNDETERMINED, error: Error::usage(error.to_string()) }
            }
            other => other,
        })?;
        let outcome = dependents(&survey, &self.template);
        match self.output.output {
            OutputFormat::Json => print_json(&outcome)?,
            OutputFormat::Human => {
                print(text(&outcome))?;
                for left in &outcome.undetermined {
                    let host = left.host.as_ref().map(|host| format!(" on {host}"));
                    let host = host.unwrap_or_default();
                    eprint_line(format_args!(
                        "qcowtool: {}{host}: {}",
                        left.path.display(),
                        left.why
                    ));
                }
            }
        }
        let code = match (outcome.verdict, self.may_delete) {
            (Verdict::Free, _) => return Ok(()),
            (Verdict::InUse, true) => IN_USE,
            (Verdict::InUse, false) if outcome.undetermined.is_empty() => return Ok(()),
            (Verdict::InUse, false) | (Verdict::Undetermined, _) => UNDETERMINED,
        };
        Err(Failure::Verdict(code))
    }
}

/// One line for each that depends on it.
fn text(outcome: &Outcome) -> String {
    let mut text = String::new();
    let on = |host: &Option<String>| match host {
        Some(host) => format!(" on {}", Escaped(host)),
        None => String::new(),
    };
    for image in &outcome.images {
        let steps = match image.steps {
            1 => "directly".to_owned(),
            steps => format!("by {steps} steps"),
        };
        let _ = writeln!(text, "image {}{} ({steps})", shown(&image.path), on(&image.host));
    }
    for domain in &outcome.domains {
        let state = if domain.runs { "running" } else { "shut off" };
        let (name, disk) = (Escaped(&domain.name), Escaped(&domain.disk));
        let _ = writeln!(text, "domain {name}{} (disk {disk}, {state})", on(&domain.host));
    }
    for holder in &outcome.holders {
        let how = if holder.writes { "for writing" } else { "for reading" };
        let _ = writeln!(
            text,
            "process {} ({}) has it open {how}",
            holder.process,
            Escaped(&holder.program)
        );
    }
    if text.is_empty() && outcome.verdict == Verdict::Free {
        let _ = writeln!(text, "nothing depends on {}", shown(&outcome.template));
    }
    text
}
