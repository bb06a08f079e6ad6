//! Checks an image's metadata, and repairs it where there is exactly one correct repair. How is in the
//! private module `check`, which a disk that is opened for writing uses too.

use std::path::Path;

use super::edit::Opened;
use crate::chain::{Format, probe_format};
use crate::check::{cluster_size, in_pool, make_plan_asked_for};
use crate::{CancelToken, Error, Observer, Result, Silent};

pub use crate::check::{
    Action, CheckOptions, CheckOutcome, Finding, Kind, Numbers, RepairOptions, RepairOutcome,
    Repaired, Scope, Severity, Step, Structure, check, check_storage,
};

/// Repairs the image at `path` in place, and checks it again.
///
/// ```no_run
/// use std::path::Path;
/// use qcow::ops::check::{CheckOptions, RepairOptions, Scope, repair};
/// use qcow::{CancelToken, Silent};
///
/// let options =
///     RepairOptions::new(Scope::All).dry_run(true).check(CheckOptions::default());
/// let plan = repair(Path::new("vm.qcow2"), &options, &Silent, &CancelToken::new())?;
/// for step in &plan.steps {
///     println!("{} {:#x}: {}", step.structure.as_str(), step.host_offset, step.action.as_str());
/// }
/// # Ok::<(), qcow::Error>(())
/// ```
///
/// # Errors
/// As [`check`]; [`Denied`](crate::ErrorKind::Denied) if another process uses the image;
/// [`Unsupported`](crate::ErrorKind::Unsupported), with nothing written, if something in it is not
/// understood.
pub fn repair(
    path: &Path,
    options: &RepairOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<RepairOutcome> {
    let outcome = in_pool(options.check.threads, || {
        let opened = Opened::file(path, options.dry_run)?;
        let format = probe_format(&*opened.storage, path, options.check.format)?;
        if format != Format::Qcow2 {
            return Err(Error::unsupported(format!("{format} images have nothing to repair")));
        }
        let (before, plan) = make_plan_asked_for(&opened.storage, options, observer, cancel)?;
        let mut outcome = RepairOutcome {
            check: before.clone(),
            before,
            cluster_size: cluster_size(&*opened.storage)?,
            leaks_fixed: 0,
            corruptions_fixed: 0,
            dry_run: options.dry_run,
            steps: plan.steps.clone(),
            steps_left_out: plan.steps_left_out,
        };
        if let Some(target) = opened.target.filter(|_| !plan.changes.is_empty()) {
            plan.changes.apply(&*target)?;
            let shared = CheckOptions { force_share: true, ..options.check.clone() };
            let after = check(path, &shared, &Silent, cancel)?;
            outcome.leaks_fixed = outcome.check.leaks.saturating_sub(after.leaks);
            outcome.corruptions_fixed = outcome.check.corruptions.saturating_sub(after.corruptions);
            outcome.check = after;
        }
        outcome.check.filename = path.to_path_buf();
        Ok(outcome)
    })?;
    outcome.map_err(|error| error.file(path))
}
