//! Puts the verdicts on the disks and the decision for the guest together.

use std::collections::BTreeSet;
use std::path::PathBuf;

use qcow::chain::Format;

use super::base_copies::BaseCopyNames;
use super::disk::{Copy, Disk, Verdict};
use super::policy::Policy;
use super::value::{
    Action, BasePlan, CopyMode, DiskPlan, FilePlan, Mode, NewImage, Plan, Predicted, Refusal, Row,
    SCHEMA, Warning,
};
use super::words::{refuse, warn};
use super::{copy_mode, directories, domain_rules, predicted, proofs, rows, warnings};
use crate::facts::Facts;

/// A disk and what the table says about it.
type Judged<'a> = (Disk<'a>, Row, Verdict);

/// The plan without its XML and its digest. `files` is what is done to files other than disks' images.
pub(super) fn assemble(
    facts: &Facts,
    policy: &Policy,
    (files, of_files): (Vec<FilePlan>, Vec<Warning>),
) -> Result<Plan, Vec<Refusal>> {
    let mode = domain_rules::mode(facts.domain.state);
    let base_copies = BaseCopyNames::new(facts);
    let first = judge(facts, policy, &base_copies, None);
    let refusals = refusals(&first);
    if !refusals.is_empty() {
        return Err(refusals);
    }
    // One disk that must be copied whole makes it so for all; then overlays make no sense.
    let alone_because = copy_mode::alone_because(facts, mode, &copies(&first));
    let judged = match &alone_because {
        Some(why) => judge(facts, policy, &base_copies, Some(why)),
        None => first,
    };
    let copies = copies(&judged);
    let copy = copy_mode::choose(mode, &copies);

    let mut brought = BTreeSet::new();
    let disks: Vec<DiskPlan> =
        judged.iter().filter_map(|judged| disk_plan(judged, copy, &mut brought)).collect();
    let mut refusals = directories::refuse_bases(facts, policy, &disks);
    refusals.extend(predicted::check_space(facts, &disks, &files));
    if !refusals.is_empty() {
        return Err(refusals);
    }

    let migrate_disks = match mode {
        Mode::Live => copies.iter().map(|(target, _)| (*target).to_owned()).collect(),
        Mode::Offline => Vec::new(),
    };
    let detect_zeroes = match copy {
        CopyMode::None => Vec::new(),
        _ if copy_mode::detects_zeroes(facts) => raw_copies(&judged),
        _ => Vec::new(),
    };
    let disk = |disk: &DiskPlan| (disk.transfer_bytes, disk.space_bytes);
    let file = |file: &FilePlan| (file.transfer_bytes, file.space_bytes);
    let all = disks.iter().map(disk).chain(files.iter().map(file));
    let predicted = all.fold(Predicted::default(), |sum, (transfer, space)| Predicted {
        transfer_bytes: sum.transfer_bytes.saturating_add(transfer),
        space_bytes: sum.space_bytes.saturating_add(space),
    });
    let mut warnings = all_warnings(facts, policy, copy, &judged);
    warnings.extend(of_files);
    let mut plan = Plan {
        schema: SCHEMA.to_owned(),
        digest: String::new(),
        facts: facts.fingerprint(),
        domain: facts.domain.name.clone(),
        uuid: facts.domain.uuid.clone(),
        from: facts.source.uri.clone(),
        to: facts.destination.uri.clone(),
        mode,
        copy,
        flags: copy_mode::flags(facts, policy, mode, copy),
        bandwidth_mib: policy
            .bandwidth
            .filter(|_| mode == Mode::Live)
            .map(|bytes| copy_mode::bandwidth_mib(bytes, copies.len())),
        migrate_disks,
        detect_zeroes,
        directories: Vec::new(),
        disks,
        files,
        destination_xml: String::new(),
        persistent_xml: None,
        predicted,
        warnings,
        policy: policy.clone(),
    };
    plan.directories = directories::needed(facts, &plan.made_paths());
    Ok(plan)
}

fn judge<'a>(
    facts: &'a Facts,
    policy: &'a Policy,
    base_copies: &'a BaseCopyNames,
    alone_because: Option<&'a str>,
) -> Vec<Judged<'a>> {
    facts
        .disks
        .iter()
        .map(|disk| {
            let disk = Disk { facts, disk, policy, alone_because, base_copies };
            let (row, verdict) = rows::judge(&disk);
            (disk, row, verdict)
        })
        .collect()
}

fn refusals(judged: &[Judged<'_>]) -> Vec<Refusal> {
    judged
        .iter()
        .filter_map(|(disk, row, verdict)| match verdict {
            Verdict::Refuse { message, way_out } => {
                Some(refuse(row.code(), Some(&disk.disk.target), message, way_out.clone()))
            }
            _ => None,
        })
        .collect()
}

fn copies<'a, 'b>(judged: &'b [Judged<'a>]) -> Vec<(&'a str, &'b Copy)> {
    judged
        .iter()
        .filter_map(|(disk, _, verdict)| match verdict {
            Verdict::Copy(copy) => Some((disk.disk.target.as_str(), copy)),
            _ => None,
        })
        .collect()
}

fn raw_copies(judged: &[Judged<'_>]) -> Vec<String> {
    let raw = |disk: &Disk<'_>| disk.top().is_some_and(|top| top.format == Format::Raw);
    judged
        .iter()
        .filter(|(disk, _, verdict)| matches!(verdict, Verdict::Copy(_)) && raw(disk))
        .map(|(disk, _, _)| disk.disk.target.clone())
        .collect()
}

/// What is done to one disk; `None` if that is refused.
fn disk_plan(
    (disk, row, verdict): &Judged<'_>,
    copy: CopyMode,
    brought: &mut BTreeSet<PathBuf>,
) -> Option<DiskPlan> {
    let (why, action) = match verdict {
        Verdict::Refuse { .. } => return None,
        Verdict::Skip { why } => (why, Action::Skip),
        Verdict::Eject { why } => (why, Action::Eject),
        Verdict::CopyMedium { why, from, to } => {
            (why, Action::CopyMedium { from: from.clone(), to: to.clone() })
        }
        Verdict::Copy(copy) => (&copy.why, fill(disk, copy)?),
    };
    let again = match &action {
        Action::Create { base: Some(BasePlan::BaseCopy { path, .. }), .. } => {
            !brought.insert(path.clone())
        }
        _ => false,
    };
    let cost = predicted::cost(disk, *row, &action, again);
    Some(DiskPlan {
        target: disk.disk.target.clone(),
        row: *row,
        why: why.clone(),
        proofs: proofs::obligations(&action, copy),
        action,
        transfer_bytes: cost.transfer_bytes,
        space_bytes: cost.space_bytes,
    })
}

fn fill(disk: &Disk<'_>, copy: &Copy) -> Option<Action> {
    let (top, destination) = (disk.top()?, disk.destination()?);
    let path = destination.path.clone();
    if copy.adopt {
        return Some(Action::Adopt { path, format: top.format });
    }
    let qcow2 = top.qcow2.as_ref();
    let image = NewImage {
        path,
        format: top.format,
        virtual_size: disk.size(),
        cluster_size: qcow2.map(|qcow2| qcow2.cluster_size),
        extended_l2: qcow2.is_some_and(|qcow2| qcow2.extended_l2),
    };
    Some(Action::Create { image, base: copy.base.clone() })
}

fn all_warnings(
    facts: &Facts,
    policy: &Policy,
    copy: CopyMode,
    judged: &[Judged<'_>],
) -> Vec<Warning> {
    let mut all = warnings::of_guest(facts, policy, copy);
    for (disk, row, verdict) in judged {
        let target = Some(disk.disk.target.as_str());
        match verdict {
            Verdict::Eject { why } => all.push(warn("medium-ejected", target, why)),
            Verdict::Copy(copy) => all.extend(warnings::of_copy(disk, *row, copy)),
            _ => {}
        }
    }
    all
}
