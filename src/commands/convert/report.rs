//! What `convert` prints.

use std::path::{Path, PathBuf};

use qcow::Escaped;
use qcow::ops::copy::CopyOutcome;
use qcow::ops::info::BitmapSummary;

use super::{Convert, Outcome};
use crate::commands::commit::proof;
use crate::commands::flatten::{damage_text, salvaged, summary};
use crate::failure::Failure;
use crate::left_out::Lacking;
use crate::losses::{report_not_carried, warn_truncated};
use crate::output::{OutputFormat, print, print_json, shown, warn};
use crate::session::warn_repaired;
use crate::size::human;

impl Convert {
    /// Prints what was written, and what the result lacks.
    pub(super) fn report(
        &self,
        dst: &Path,
        outcome: Outcome,
        left_out: Option<&qcow::extent::LeftOut>,
    ) -> Result<(), Failure> {
        let src = self.files.first().map_or(Path::new(""), PathBuf::as_path);
        let (json, quiet) =
            (self.common.format() == OutputFormat::Json, self.common.verbosity.quiet);
        match outcome {
            Outcome::Whole(outcome) => {
                warn_truncated(&outcome.truncated);
                report_not_carried(&self.common.verbosity, src, &outcome.not_carried_over);
                warn(&outcome.warnings);
                if json {
                    print_json(&Lacking { outcome: &*outcome, left_out })?;
                } else {
                    let mut text = String::new();
                    if !quiet {
                        text = summary("converted", src, dst, &outcome);
                        text.push_str(&carried(&outcome.bitmaps));
                        text.extend(outcome.damage.iter().map(damage_text));
                    }
                    if let Some(crc32) = &outcome.crc32 {
                        text.push_str(&format!("crc32: {crc32}\n"));
                    }
                    print(text)?;
                }
                salvaged(src, &outcome)
            }
            Outcome::Into(outcome) => {
                warn_truncated(&outcome.truncated);
                report_not_carried(&self.common.verbosity, src, &outcome.not_carried_over);
                warn(&outcome.warnings);
                warn_repaired(dst, outcome.repaired, false);
                match (json, quiet) {
                    (true, _) => print_json(&Lacking { outcome: &outcome, left_out }),
                    (false, true) => Ok(()),
                    (false, false) => print(copied(src, dst, &outcome)),
                }
            }
        }
    }
}

fn copied(src: &Path, dst: &Path, outcome: &CopyOutcome) -> String {
    let mut text = format!(
        "converted '{}' to '{}': {}, {} virtual, {} data and {} zeros written\n",
        shown(src),
        shown(dst),
        outcome.format,
        human(outcome.virtual_size),
        human(outcome.data_bytes),
        human(outcome.zero_bytes),
    );
    text.push_str(&carried(&outcome.bitmaps));
    text.push_str(&proof(&outcome.crc32, outcome.verified, None));
    text
}

/// The bitmaps that were carried over, on a line of its own.
fn carried(bitmaps: &[BitmapSummary]) -> String {
    let names: Vec<_> =
        bitmaps.iter().map(|bitmap| format!("'{}'", Escaped(&bitmap.name))).collect();
    if names.is_empty() { String::new() } else { format!("bitmaps: {}\n", names.join(", ")) }
}
