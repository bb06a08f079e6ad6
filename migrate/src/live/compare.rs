//! Whether a new image holds what the old one holds, while the guest that used one and uses the other stands still.

use qcow::chain::{Chain, OpenOptions};
use qcow::ops::compare::{CompareOptions, compare};

use super::run::RunContext;
use super::value::LivePlan;
use crate::{Error, ErrorKind, Result};

/// Compares all of the disk.
///
/// # Errors
/// [`Unverified`](ErrorKind::Unverified) if they differ; what reading them raises.
pub(super) fn same_content(plan: &LivePlan, context: &RunContext<'_>) -> Result<()> {
    let open = OpenOptions::default().format(plan.format).force_share(true);
    let (old, new) = (Chain::open(&plan.image, &open)?, Chain::open(&plan.becomes, &open)?);
    let RunContext { observer, cancel, .. } = *context;
    let outcome = compare(&old, &new, &CompareOptions::default(), &mut |_, _| {}, observer, cancel)
        .map_err(|error| error.into_error())?;
    let Some(difference) = outcome.first_difference else { return Ok(()) };
    let (old, new) = (plan.image.display(), plan.becomes.display());
    let message = format!(
        "'{new}' does not hold what '{old}' holds, from guest offset {} on; the guest is paused",
        difference.offset
    );
    Err(Error::new(ErrorKind::Unverified, message).hint(
        "do not resume the guest: destroy it, and put the old image back into its definition (virsh edit)",
    ))
}
