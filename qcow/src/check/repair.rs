//! Repairs metadata where there is exactly one correct repair.
//!
//! The plan is made against a copy of the image in memory and proven there: it is carried out only
//! if the image would be clean afterwards (or, for [`Scope::Leaks`], no worse). It then goes to
//! disk in phases, each durable before the next, so that a crash leaves the old or the new state
//! of each entry and at worst leaks:
//!
//! 1. bitmaps that stand in the way are dropped; extra data of snapshots that is too much is left out of a new
//!    table; data that lies in metadata, and a snapshot table
//!    that lacks something, get clusters behind the end of the file, and are then named there;
//! 2. entries that lead nowhere are dropped, copied flags that lie are cleared;
//! 3. refcounts are raised, or written anew at the end of the file, and the header then switched;
//! 4. refcounts are lowered;
//! 5. copied flags are set;
//! 6. the dirty and corrupt bits are cleared.
//!
//! Between 4 and 5 a crash can leave copied flags unset that QEMU wants set. A flag and a refcount
//! lie in different sectors, so one must come first; the other order could leave a flag that is
//! set without right, and such a cluster may be written to in place though others use it.
//!
//! An image in which something is not understood (reserved bits, misaligned data, two structures
//! in one cluster) is left alone: freeing clusters that merely seem unused could destroy data.

mod bitmaps;
mod entries;
mod extra;
mod moves;
mod plan;
mod refcounts;

use std::sync::Arc;

use serde::Serialize;

use super::report::{FindingKind, Report};
use super::{CheckOptions, CheckOutcome, CheckState, Checker, Structure};
use crate::format::{Autoclear, HeaderPatch, Incompatible, Version, field};
use crate::image::{Image, Purpose};
use crate::io::Storage;
use crate::setters::setters;
use crate::{CancelToken, Error, ErrorKind, Observer, Remedy, Result, Silent};

pub(crate) use plan::Plan;
pub use plan::{Action, Step};
use refcounts::Target;

/// How much is repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scope {
    /// Clusters that are taken and not used are given back; if nothing else is wrong but copied flags,
    /// those are corrected too.
    Leaks,
    /// Everything.
    All,
}

/// How to repair.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RepairOptions {
    /// How much.
    pub scope: Scope,
    /// Only make the plan.
    pub dry_run: bool,
    /// How to check, and how many findings and steps to list. Nothing is ever shared: a repair
    /// needs the image for itself.
    pub check: CheckOptions,
}

impl RepairOptions {
    /// Repairs as much as `scope` says, and not only on paper.
    pub fn new(scope: Scope) -> Self {
        Self { scope, dry_run: false, check: CheckOptions::default() }
    }
}

setters!(RepairOptions {
    scope: Scope,
    dry_run: bool,
    check: CheckOptions,
} into {});

/// What was, or would be, repaired. Serialises to what `qemu-img check -r` prints, with the steps.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct RepairOutcome {
    /// The image after the repair; before it, if nothing was to be written.
    #[serde(flatten)]
    pub check: CheckOutcome,
    /// What the check found first.
    #[serde(skip)]
    pub before: CheckOutcome,
    /// Bytes in a cluster.
    #[serde(skip)]
    pub cluster_size: u64,
    /// Leaks that are gone.
    #[serde(skip_serializing_if = "crate::check::is_zero")]
    pub leaks_fixed: u64,
    /// Corruptions that are gone.
    #[serde(skip_serializing_if = "crate::check::is_zero")]
    pub corruptions_fixed: u64,
    /// Whether this is only a plan.
    pub dry_run: bool,
    /// What was, or would be, done, in order.
    pub steps: Vec<Step>,
    /// Steps beyond those.
    #[serde(skip_serializing_if = "crate::check::is_zero")]
    pub steps_left_out: u64,
}

/// What the header says of the size of clusters.
pub(crate) fn cluster_size(storage: &dyn Storage) -> Result<u64> {
    let area = crate::image::read_header_area(storage, Purpose::Check)?;
    Ok(area.header.geometry().cluster_size())
}

/// One look at the image as the plan has made it so far.
struct Look<'a> {
    checker: &'a Checker<'a>,
    found: &'a CheckState,
    sound: bool,
}

/// One part of a plan, before refcounts are looked at.
type Stage = fn(&Look<'_>, Scope, &mut Plan) -> Result<()>;

/// What is planned one after the other; each sees the image as those before it have made it.
/// The file grows at the end, so dead entries must be gone by then; but writing entries where data shares
/// their cluster would change it, so that comes before.
const STAGES: [Stage; 3] = [moves::part_data_from_metadata, drop_dead, moves::complete_snapshots];

/// Checks the image in `storage`, and plans what makes it whole.
///
/// Bitmaps say where a backup may skip data: wrong ones are worse than none. So where they stand in
/// the way of a repair that is otherwise possible, all of them are dropped.
pub(crate) fn make_plan(
    storage: &Arc<dyn Storage>,
    options: &RepairOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<(CheckOutcome, Plan)> {
    let most = options.check.max_findings;
    let mut before = None;
    let mut plan = Plan::new(Arc::clone(storage), most);
    if let Err(refused) = make_whole(&mut plan, &mut before, options, observer, cancel) {
        let damage = matches!(
            refused.kind(),
            ErrorKind::Corrupt
                | ErrorKind::WrongFormat
                | ErrorKind::Encrypted
                | ErrorKind::Limit
                | ErrorKind::Unsupported
        );
        plan = Plan::new(Arc::clone(storage), most);
        if options.scope != Scope::All || !damage || !bitmaps::drop_all(&**storage, &mut plan)? {
            return Err(refused);
        }
        match make_whole(&mut plan, &mut before, options, &Silent, cancel) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
            Err(_) => return Err(refused),
            Ok(()) => {}
        }
    }
    let before = before.ok_or_else(|| Error::internal("the image was not checked"))?;
    Ok((before, plan))
}

/// As [`make_plan`], where the user asked for a repair: what keeps an image from being opened may be left out, and
/// the plan says so.
pub(crate) fn make_plan_asked_for(
    storage: &Arc<dyn Storage>,
    options: &RepairOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<(CheckOutcome, Plan)> {
    let begun = match options.scope {
        Scope::All => extra::cut(storage, options, cancel)?,
        Scope::Leaks => None,
    };
    let Some((before, mut plan)) = begun else {
        return make_plan(storage, options, observer, cancel);
    };
    make_whole(&mut plan, &mut Some(before.clone()), options, observer, cancel)?;
    Ok((before, plan))
}

/// Adds to `plan` what makes the image whole. The first check, if none was done, goes to `before`.
fn make_whole(
    plan: &mut Plan,
    before: &mut Option<CheckOutcome>,
    options: &RepairOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<()> {
    let given = plan.changes.writes();
    let mut stages = STAGES.iter();
    let in_place = loop {
        let image = Image::open_for(plan.result(), Purpose::Check)?;
        let report = Report::new(options.check.max_findings);
        let checker = Checker::new(&image, &report, cancel)?;
        let first = plan.changes.writes() == given;
        let found = checker.run(if first { observer } else { &Silent })?;
        let mut outcome = checker.outcome(&found);
        let sound = outcome.corruptions == 0 && outcome.check_errors == 0;
        let look = Look { checker: &checker, found: &found, sound };
        if before.is_none() && given > 0 {
            // Bitmaps were dropped before anything could be opened.
            outcome.corruptions = outcome.corruptions.saturating_add(1);
            outcome.findings.push(bitmaps::unreadable());
        }
        before.get_or_insert(outcome);
        let seen = plan.changes.writes();
        for stage in stages.by_ref() {
            stage(&look, options.scope, plan)?;
            if plan.changes.writes() != seen {
                break;
            }
        }
        if plan.changes.writes() == seen {
            break plan_refcounts(&look, options.scope, plan)?;
        }
    };
    // What was counted so far is forgotten before anything is counted again: it takes memory.
    if !in_place {
        plan_anew(plan, cancel)?;
    }
    if let Some(before) = before { prove(before, options.scope, plan, cancel) } else { Ok(()) }
}

/// Drops entries that lead nowhere, and copied flags that mean nothing.
fn drop_dead(look: &Look<'_>, scope: Scope, plan: &mut Plan) -> Result<()> {
    if scope == Scope::All && !look.sound { entries::drop_dead(look, plan) } else { Ok(()) }
}

/// Plans refcounts and copied flags for an image in which all entries lead somewhere; says whether
/// that can be done in place.
fn plan_refcounts(look: &Look<'_>, scope: Scope, plan: &mut Plan) -> Result<bool> {
    let report = look.checker.report;
    if report.corruptions() == 0 && report.leaks() == 0 && report.check_errors() == 0 {
        if refcounts::counts_past_end(look)? {
            refcounts::lower(look, plan)?;
        }
        return Ok(true);
    }
    refuse_what_is_not_understood(report)?;
    if !refcounts::can_stay(look)? {
        return match scope {
            Scope::All => Ok(false),
            Scope::Leaks => Err(Error::unsupported("the refcounts cannot be trusted")
                .structure("refcount table")
                .hint(Remedy::Repair)),
        };
    }
    refuse_overlaps(report)?;
    let target = match scope {
        Scope::All => Target::Exact,
        Scope::Leaks => Target::Lowered,
    };
    if scope == Scope::All || counts_suffice(report) {
        entries::copied_flags(look, target, false, plan)?;
    }
    if scope == Scope::All {
        refcounts::raise(look, plan)?;
    }
    refcounts::lower(look, plan)?;
    entries::copied_flags(look, target, true, plan)?;
    Ok(true)
}

/// Plans new refcounts, as if the image had none, and the copied flags that go with them.
fn plan_anew(plan: &mut Plan, cancel: &CancelToken) -> Result<()> {
    let image = Image::open_for(plan.result(), Purpose::Check)?;
    let report = Report::new(0);
    let checker = Checker::new(&image, &report, cancel)?;
    let found = checker.run_without_refcounts()?;
    refuse_overlaps(&report)?;
    let look = Look { checker: &checker, found: &found, sound: false };
    entries::copied_flags(&look, Target::Exact, false, plan)?;
    refcounts::rebuild(&checker, plan)?;
    entries::copied_flags(&look, Target::Exact, true, plan)
}

/// Whether nothing is wrong but leaks and copied flags: then every refcount that will be there is the
/// truth, and so is what the flags are made to say (QEMU does so too when it repairs leaks).
fn counts_suffice(report: &Report) -> bool {
    report.check_errors() == 0
        && report.sorts().into_iter().all(|(_, kind)| {
            matches!(
                kind,
                FindingKind::Leaked
                    | FindingKind::CopiedFlag
                    | FindingKind::Overlap
                    | FindingKind::ZeroFlag
            )
        })
}

/// Anything but refcounts and copied flags may mean that references were misread.
fn refuse_what_is_not_understood(report: &Report) -> Result<()> {
    let strange = report.sorts().into_iter().find(|(structure, kind)| {
        let refcounts = matches!(
            structure,
            Structure::RefcountTable | Structure::RefcountBlock | Structure::Cluster
        );
        let counted = matches!(
            kind,
            FindingKind::Leaked | FindingKind::RefcountTooLow | FindingKind::CopiedFlag
        );
        let noted = matches!(kind, FindingKind::Overlap | FindingKind::ZeroFlag);
        match kind {
            FindingKind::RefcountOverflow => true,
            _ => !(refcounts || counted || noted),
        }
    });
    match strange {
        None => Ok(()),
        Some((_, FindingKind::RefcountOverflow)) => {
            Err(Error::unsupported("some clusters have more references than refcounts can express")
                .structure("refcount block")
                .hint(Remedy::Flatten))
        }
        Some((structure, _)) => Err(Error::unsupported(
            "something in the image is not understood, and is left alone; nothing was written",
        )
        .structure(structure.as_str())
        .hint(Remedy::Salvage)),
    }
}

/// Where two structures lie in one cluster, writing one would destroy the other.
fn refuse_overlaps(report: &Report) -> Result<()> {
    match report.sorts().into_iter().find(|(_, kind)| *kind == FindingKind::Overlap) {
        None => Ok(()),
        Some((structure, _)) => Err(Error::unsupported(
            "metadata shares a cluster with something else, so nothing was written",
        )
        .structure(structure.as_str())
        .hint(Remedy::Salvage)),
    }
}

/// Checks the image that the plan makes, in memory; lets it have clean feature bits if it earned them.
fn prove(before: &CheckOutcome, scope: Scope, plan: &mut Plan, cancel: &CancelToken) -> Result<()> {
    let options = CheckOptions { max_findings: 0, ..CheckOptions::default() };
    let after = super::check_image(plan.result(), &options, &Silent, cancel)?;
    let clean = after.corruptions == 0 && after.check_errors == 0;
    let better = after.corruptions <= before.corruptions
        && after.check_errors <= before.check_errors
        && after.leaks == 0;
    if !(better && (clean || scope == Scope::Leaks)) {
        return Err(Error::unsupported(format!(
            "a repair would leave {} corruptions and {} leaks, so nothing was written",
            after.corruptions, after.leaks
        ))
        .structure("metadata")
        .hint(Remedy::Salvage));
    }
    if clean {
        clear_bits(plan)?;
    }
    clear_unknown_autoclear(plan)
}

/// Autoclear bits that are not known say something that was not kept true.
fn clear_unknown_autoclear(plan: &mut Plan) -> Result<()> {
    let image = Image::open_for(plan.result(), Purpose::Check)?;
    let header = image.header();
    let known = header.autoclear & Autoclear::all();
    if header.version == Version::V2 || known == header.autoclear {
        return Ok(());
    }
    plan.step(Step {
        action: Action::ClearBits,
        structure: Structure::Header,
        index: 0,
        host_offset: field::AUTOCLEAR,
        from: header.autoclear.bits(),
        to: known.bits(),
    });
    plan.changes.barrier();
    plan.changes.patch(HeaderPatch::autoclear(known.bits()))
}

fn clear_bits(plan: &mut Plan) -> Result<()> {
    let image = Image::open_for(plan.result(), Purpose::Check)?;
    let header = image.header();
    let bits = header.incompatible;
    let cleared = bits.difference(Incompatible::DIRTY | Incompatible::CORRUPT);
    if header.version == Version::V2 || cleared == bits {
        return Ok(());
    }
    plan.step(Step {
        action: Action::ClearBits,
        structure: Structure::Header,
        index: 0,
        host_offset: field::INCOMPATIBLE,
        from: bits.bits(),
        to: cleared.bits(),
    });
    plan.changes.barrier();
    plan.changes.patch(HeaderPatch::incompatible(cleared.bits()))
}
