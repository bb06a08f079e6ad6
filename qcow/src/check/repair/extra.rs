//! Leaves out extra data of snapshots that is more than QEMU reads: such an image no program opens.

use std::sync::Arc;

use super::moves;
use super::plan::{Action, Plan, Step};
use super::{CheckOutcome, Checker, RepairOptions};
use crate::check::laid_over::LaidOver;
use crate::check::report::Report;
use crate::check::{Finding, FindingKind, Severity, Structure};
use crate::exact::Exact;
use crate::format::{MAX_SNAPSHOT_EXTRA, Snapshot};
use crate::image::{Image, Overlong, Purpose, read_cut_snapshots, read_header_area};
use crate::io::Storage;
use crate::{CancelToken, Error, Remedy, Result, Silent};

/// What is wrong with the image, and a plan that begins with a snapshot table without that data; `None` if this is
/// not what keeps the image from being opened.
///
/// # Errors
/// [`Unsupported`](crate::ErrorKind::Unsupported) if what then stands in the table is no snapshot: the length of the
/// extra data is wrong itself, and where the next entry begins is not known.
pub(super) fn cut(
    storage: &Arc<dyn Storage>,
    options: &RepairOptions,
    cancel: &CancelToken,
) -> Result<Option<(CheckOutcome, Plan)>> {
    let area = match read_header_area(&**storage, Purpose::Check) {
        Ok(area) => area,
        // The check tells.
        Err(_) => return Ok(None),
    };
    let mut overlong = Vec::new();
    let read = read_cut_snapshots(&**storage, &area.header, &mut overlong);
    if overlong.is_empty() {
        return Ok(None);
    }
    let snapshots = read.map_err(|_| no_snapshot())?;
    let mut plan = Plan::new(Arc::clone(storage), options.check.max_findings);
    let mut table = Vec::new();
    for snapshot in &snapshots {
        table.extend(snapshot.to_bytes()?);
    }
    // In memory only, and over the plan's result: this shows the image as it is, but for what is left out, and what is
    // planned.
    let shown = LaidOver::new(plan.result(), area.header.snapshots_offset.0, table)?;
    let image = Image::open_for(Arc::new(shown), Purpose::Check)?;
    let report = Report::new(options.check.max_findings);
    let checker = Checker::new(&image, &report, cancel)?;
    let found = checker.run(&Silent)?;
    let mut before = checker.outcome(&found);
    if image.snapshots() != snapshots || !snapshots.iter().all(|one| is_sound(&checker, one)) {
        return Err(no_snapshot());
    }
    for entry in &overlong {
        tell(&mut before, entry, options.check.max_findings)?;
        plan.step(Step {
            action: Action::CutExtraData,
            structure: Structure::SnapshotTable,
            index: entry.index,
            host_offset: entry.offset.0,
            from: entry.extra.into(),
            to: MAX_SNAPSHOT_EXTRA.into(),
        });
    }
    moves::replace_table(&checker, &snapshots, &mut plan)?;
    Ok(Some((before, plan)))
}

fn no_snapshot() -> Error {
    let message = "the snapshot table has too much extra data, and what is behind that is no snapshot; nothing was written";
    let error = Error::unsupported(message).structure(Structure::SnapshotTable.as_str());
    error.hint(Remedy::DropSnapshots)
}

/// Whether this is an entry that a program wrote; where a length is wrong, names are zeros or other bytes.
fn is_sound(checker: &Checker<'_>, snapshot: &Snapshot) -> bool {
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).is_ok_and(|text| !text.contains('\0'));
    moves::is_plausible(checker, snapshot) && text(&snapshot.id) && text(&snapshot.name)
}

fn tell(before: &mut CheckOutcome, entry: &Overlong, most: usize) -> Result<()> {
    before.corruptions = before.corruptions.plus(1)?;
    if before.findings.len() >= most {
        before.findings_left_out = before.findings_left_out.plus(1)?;
        return Ok(());
    }
    let message =
        format!("extra data of {} bytes, expected at most {MAX_SNAPSHOT_EXTRA}", entry.extra);
    let finding = Finding {
        structure: Structure::SnapshotTable,
        host_offset: Some(entry.offset.0),
        index: Some(entry.index),
        kind: FindingKind::SnapshotExtra,
        severity: Severity::Corruption,
        guest_offset: None,
        numbers: None,
        message,
    };
    before.findings.push(finding);
    Ok(())
}
