//! `qcowtool info`: shows what an image says about itself.

pub(crate) mod text;

pub(crate) use text::snapshot_list;

use std::path::PathBuf;

use clap::Args;
use qcow::ops::info::{ImageInfo, InfoOptions, info_chain};

use crate::args::{Common, SourceArgs, exit_codes};
use crate::failure::Failure;
use crate::output::{OutputFormat, print, print_json, warn_line};
use crate::sandbox::Plan;
use crate::session::Session;

/// Arguments of `info`.
#[derive(Debug, Args)]
#[command(after_help = concat!(
    "The JSON keys and values are those of `qemu-img info --output json`. No backing or data \
file is opened unless --backing-chain asks for it.

Examples:
  qcowtool info vm.qcow2
  qcowtool info --backing-chain --output json vm.qcow2
  qcowtool info --snapshot before-upgrade vm.qcow2

", exit_codes!()))]
pub(crate) struct Info {
    #[command(flatten)]
    pub(crate) common: Common,

    /// Show every image of the backing chain, active layer first
    #[arg(short = 'b', long)]
    backing_chain: bool,

    /// Show only this internal snapshot, which must exist: an ID or name, or snapshot.id=ID,snapshot.name=NAME
    #[arg(long, value_name = "SNAPSHOT")]
    snapshot: Option<String>,

    #[command(flatten)]
    source: SourceArgs,

    /// The image
    #[arg(value_name = "PATH")]
    path: PathBuf,
}

impl Info {
    /// Looks and prints.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let options = InfoOptions::default()
            .open(self.source.open_options(self.snapshot.as_deref()))
            .backing_chain(self.backing_chain);
        let mut plan = if self.backing_chain {
            Plan::new().chain(&self.path, &options.open)
        } else {
            Plan::new().image(&self.path)
        };
        if self.common.format() == OutputFormat::Human {
            plan = plan.local_time();
        }
        Session::start(&self.common, plan)?;
        self.common.verbosity.opening(&self.path, options.open.format);
        let told = info_chain(&self.path, &options)?;
        for warning in &told.warnings {
            warn_line(warning);
        }
        match (self.common.format(), told.images.as_slice()) {
            (OutputFormat::Json, [image]) if !self.backing_chain => print_json(image)?,
            (OutputFormat::Json, images) => print_json(&images)?,
            (OutputFormat::Human, images) => print(human(images))?,
        }
        // What could be read was shown; the layer below it is the failure.
        told.broken.map_or(Ok(()), |error| Err(error.into()))
    }
}

/// The images as text, with an empty line between them.
fn human(images: &[ImageInfo]) -> String {
    let texts: Vec<_> = images.iter().map(text::text).collect();
    texts.join("\n")
}
