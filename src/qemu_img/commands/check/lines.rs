//! What a check found, a line each, and the numbers of its outcome.

use qcow::ops::check::{
    Action, CheckOutcome, Finding, Kind, Numbers, RepairOutcome, Severity, Step, Structure,
};
use serde::Serialize;

use crate::qemu_img::names::Source;

/// The findings, in the order in which QEMU comes to them: copied flags last.
pub(super) fn findings(outcome: &CheckOutcome) -> Vec<String> {
    let counted = || outcome.findings.iter().filter(|finding| finding.severity != Severity::Note);
    let (first, last) = (counted().filter(|f| !is_flag(f)), counted().filter(|f| is_flag(f)));
    first.chain(last).map(line).collect()
}

fn is_flag(finding: &Finding) -> bool {
    finding.kind == Kind::CopiedFlag
}

/// What a repair found, and then what it did. Copied flags are looked at when refcounts are right.
pub(in crate::qemu_img) fn repairs(outcome: &RepairOutcome) -> Vec<String> {
    let found = outcome.before.findings.iter();
    let found = found.filter(|found| found.severity != Severity::Note && !is_flag(found));
    let found = found.filter(|found| found.kind != Kind::SnapshotExtra);
    let cut = outcome.steps.iter().filter(|step| step.action == Action::CutExtraData);
    let cut = cut.map(|Step { index, from, to, .. }| {
        format!(
            "Discarding too much extra metadata in snapshot table entry {index} ({from} > {to})"
        )
    });
    let mut lines: Vec<String> = cut.chain(found.map(line)).collect();
    let refcounts = |cluster: u64| {
        outcome.before.findings.iter().find_map(|finding| match finding.numbers {
            Some(Numbers::Refcount { refcount, references }) if finding.index == Some(cluster) => {
                Some((refcount, references))
            }
            _ => None,
        })
    };
    if outcome.steps.iter().any(|step| step.action == Action::WriteRefcounts) {
        lines.push("Rebuilding refcount structure".to_owned());
    }
    // The old place of a table that was moved was in use before.
    let moved = outcome.steps.iter().any(|step| step.action == Action::CutExtraData);
    for step in &outcome.steps {
        if moved && refcounts(step.index).is_none() {
            continue;
        }
        if matches!(step.action, Action::RaiseRefcount | Action::LowerRefcount) {
            let (index, from, to) = (step.index, step.from, step.to);
            lines.push(format!("Repairing cluster {index} refcount={from} reference={to}"));
        }
    }
    for step in flag_steps(outcome) {
        let (index, entry) = (step.index, step.from);
        let cluster = (entry & OFFSET).checked_div(outcome.cluster_size).unwrap_or_default();
        let refcount = match step.action {
            Action::SetCopied => 1,
            _ => refcounts(cluster)
                .map_or_else(|| flagged_refcount(outcome, index, entry), |(_, now)| now),
        };
        lines.push(match step.structure {
            Structure::L1Table => format!(
                "Repairing OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={entry:x} refcount={refcount}"
            ),
            _ => format!("Repairing OFLAG_COPIED data cluster: l2_entry={entry:x} refcount={refcount}"),
        });
    }
    lines
}

fn flag_steps(outcome: &RepairOutcome) -> impl Iterator<Item = &Step> {
    outcome
        .steps
        .iter()
        .filter(|step| matches!(step.action, Action::SetCopied | Action::ClearCopied))
}

/// The refcount that the check found for an entry whose copied flag lies.
fn flagged_refcount(outcome: &RepairOutcome, index: u64, wanted: u64) -> u64 {
    let numbers = outcome.before.findings.iter().rev().filter(|found| found.index == Some(index));
    let mut found = numbers.filter_map(|finding| match finding.numbers {
        Some(Numbers::Entry { entry, refcount }) if entry == wanted => Some(refcount),
        _ => None,
    });
    found.next().unwrap_or_default()
}

/// How many corruptions a repair did away with, as QEMU counts them: each flag that had to change is one.
pub(super) fn corruptions_fixed(outcome: &RepairOutcome) -> u64 {
    let flags = outcome.before.findings.iter().filter(|finding| is_flag(finding)).count() as u64;
    let steps = flag_steps(outcome).count() as u64;
    outcome.corruptions_fixed.saturating_sub(flags).saturating_add(steps)
}

fn line(finding: &Finding) -> String {
    let index = finding.index.unwrap_or_default();
    match (finding.kind, finding.structure, finding.numbers) {
        (Kind::Leaked, _, Some(Numbers::Refcount { refcount, references })) => {
            format!("Leaked cluster {index} refcount={refcount} reference={references}")
        }
        (Kind::RefcountTooLow, _, Some(Numbers::Refcount { refcount, references })) => {
            format!("ERROR cluster {index} refcount={refcount} reference={references}")
        }
        (Kind::CopiedFlag, Structure::L1Table, Some(Numbers::Entry { entry, refcount })) => {
            format!(
                "ERROR OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={entry:x} refcount={refcount}"
            )
        }
        (Kind::CopiedFlag, _, Some(Numbers::Entry { entry, .. })) if is_compressed(entry) => {
            format!(
                "ERROR: coffset=0x{:x}: copied flag must never be set for compressed clusters",
                entry & COMPRESSED_OFFSET
            )
        }
        (Kind::CopiedFlag, _, Some(Numbers::Entry { entry, refcount })) => {
            format!("ERROR OFLAG_COPIED data cluster: l2_entry={entry:x} refcount={refcount}")
        }
        (
            Kind::Misaligned,
            Structure::L1Table | Structure::SnapshotL1Table,
            Some(Numbers::Entry { entry, .. }),
        ) => format!(
            "ERROR l2_offset={:x}: Table is not cluster aligned; L1 entry corrupted",
            entry & OFFSET
        ),
        (Kind::Misaligned, Structure::L2Table, Some(Numbers::Entry { entry, .. })) => {
            let contains = if entry & 1 == 1 { "preallocated" } else { "data" };
            format!(
                "ERROR offset={:x}: {contains} cluster is not properly aligned; L2 entry corrupted.",
                entry & OFFSET
            )
        }
        (Kind::Misaligned, Structure::RefcountTable, _) => format!(
            "ERROR refcount block {index} is not cluster aligned; refcount table entry corrupted"
        ),
        (Kind::PastEnd, Structure::RefcountTable, _) => {
            format!("ERROR refcount block {index} is outside image")
        }
        (Kind::SharedRefcountBlock, _, Some(Numbers::Entry { refcount, .. })) => {
            format!("ERROR refcount block {index} refcount={refcount}")
        }
        (Kind::PastEnd, _, Some(Numbers::Range { offset, len })) => format!(
            "ERROR: counting reference for region exceeding the end of the file by one cluster or more: \
             offset 0x{offset:x} size 0x{len:x}"
        ),
        _ => format!("ERROR {}: {}", finding.structure.as_str(), finding.message),
    }
}

/// The bits of an entry that are an offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED_OFFSET: u64 = (1 << 54) - 1;

fn is_compressed(entry: u64) -> bool {
    entry >> 62 & 1 == 1
}

/// The outcome as JSON, with the keys in the order that programs have seen.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Object {
    #[serde(skip_serializing_if = "is_zero")]
    image_end_offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    compressed_clusters: u64,
    #[serde(skip_serializing_if = "is_zero")]
    total_clusters: u64,
    #[serde(skip_serializing_if = "is_zero")]
    corruptions: u64,
    #[serde(skip_serializing_if = "is_zero")]
    corruptions_fixed: u64,
    check_errors: u64,
    #[serde(skip_serializing_if = "is_zero")]
    leaks: u64,
    #[serde(skip_serializing_if = "is_zero")]
    leaks_fixed: u64,
    #[serde(skip_serializing_if = "is_zero")]
    allocated_clusters: u64,
    filename: String,
    format: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    fragmented_clusters: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Object {
    pub(super) fn of(
        source: &Source,
        outcome: &CheckOutcome,
        repaired: Option<&RepairOutcome>,
    ) -> Self {
        Self {
            image_end_offset: outcome.image_end_offset,
            compressed_clusters: outcome.compressed_clusters,
            total_clusters: outcome.total_clusters,
            corruptions: outcome.corruptions,
            corruptions_fixed: repaired.map_or(0, self::corruptions_fixed),
            check_errors: outcome.check_errors,
            leaks: outcome.leaks,
            leaks_fixed: repaired.map_or(0, |repaired| repaired.leaks_fixed),
            allocated_clusters: outcome.allocated_clusters,
            filename: source.shown.clone(),
            format: outcome.format.as_str(),
            fragmented_clusters: outcome.fragmented_clusters,
        }
    }
}

/// What was repaired.
pub(super) fn repaired(outcome: Option<&RepairOutcome>) -> String {
    let Some(outcome) = outcome else { return String::new() };
    let (leaks, corruptions) = (outcome.leaks_fixed, corruptions_fixed(outcome));
    if leaks == 0 && corruptions == 0 {
        return String::new();
    }
    format!(
        "The following inconsistencies were found and repaired:\n\n    {leaks} leaked clusters\n    \
         {corruptions} corruptions\n\nDouble checking the fixed image now...\n"
    )
}
