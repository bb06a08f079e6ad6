//! What a result lacks because a backing file was not read, in words and in JSON.

use qcow::chain::Chain;
use qcow::extent::LeftOut;
use serde::Serialize;

use crate::output::{OutputFormat, eprint_line};
use crate::size::human;

/// At most this number of ranges are listed as text.
const LISTED: usize = 100;

/// An outcome, with what it lacks.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Lacking<'a, T> {
    #[serde(flatten)]
    pub(crate) outcome: &'a T,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) left_out: Option<&'a LeftOut>,
}

/// Finds what comes from a backing file that was not read, and warns of it, also where little is to be
/// said: the zeros in its place are not the guest's. The ranges are listed where the outcome is text.
///
/// # Errors
/// What reading the tables raises.
pub(crate) fn warn_left_out(chain: &Chain, format: OutputFormat) -> qcow::Result<Option<LeftOut>> {
    let Some(left_out) = chain.left_out()? else { return Ok(None) };
    let (bytes, count) = (left_out.bytes, left_out.ranges.len());
    if bytes == 0 {
        eprint_line("qcowtool: nothing of the disk comes from the backing file that was not read");
        return Ok(Some(left_out));
    }
    let ranges = if count == 1 { "range" } else { "ranges" };
    eprint_line(format_args!(
        "qcowtool: warning: {bytes} bytes ({}) in {count} {ranges} come from the backing file that was not \
         read: they are zeros here, and were not zeros to the guest if that file held data",
        human(bytes)
    ));
    if format == OutputFormat::Human {
        for range in left_out.ranges.iter().take(LISTED) {
            eprint_line(format_args!("left out: offset {}, {} bytes", range.start, range.length));
        }
        if count > LISTED {
            let rest = count.saturating_sub(LISTED);
            eprint_line(format_args!("left out: {rest} more ranges, which --output json lists"));
        }
    }
    Ok(Some(left_out))
}
