//! What of a source a result does not have, in words on standard error.

use std::path::Path;

use qcow::extent::Truncation;
use qcow::ops::NotCarried;

use crate::args::Verbosity;
use crate::output::{shown, warn_line};
use crate::size::human;

/// Warns of each file that was cut short, also where only results are to be printed: what was read there
/// is zeros.
pub(crate) fn warn_truncated(truncated: &[Truncation]) {
    for Truncation { filename, file_length, missing_bytes, unmapped_bytes, .. } in truncated {
        let mut lost = Vec::new();
        if *missing_bytes > 0 {
            lost.push(format!("{} of data read as zeros", human(*missing_bytes)));
        }
        if *unmapped_bytes > 0 {
            lost.push(format!("{} without a table count as not allocated", human(*unmapped_bytes)));
        }
        warn_line(format_args!(
            "'{}' ends at {file_length} bytes, before what its tables refer to: {}; if it is a copy, it \
             is incomplete",
            shown(filename),
            lost.join(", ")
        ));
    }
}

/// Says what the new image does not get of `source`: losses unless all is to be quiet, other
/// differences if much is to be said.
pub(crate) fn report_not_carried(verbosity: &Verbosity, source: &Path, found: &[NotCarried]) {
    if verbosity.quiet {
        return;
    }
    let wanted = found.iter().filter(|found| verbosity.verbose || found.is_loss());
    let words: Vec<_> = wanted.map(|found| found.source.as_str()).collect();
    if !words.is_empty() {
        let words = words.join(", ");
        warn_line(format_args!("not carried over from '{}': {words}", shown(source)));
    }
}
