//! Facts and a policy become a plan, or refusals. Pure: nothing here looks at a host.
//!
//! The decision table (which row fits a disk) and the proof obligations (when an incremental copy may
//! be used) live here and nowhere else.

mod assemble;
mod base_copies;
mod copy_mode;
mod directories;
mod disk;
mod domain_rules;
mod edits;
mod files;
mod fingerprint;
mod policy;
mod predicted;
mod proofs;
mod rows;
mod seal;
mod show;
mod tuning;
mod value;
mod warnings;
mod words;

pub use base_copies::base_copy_name;
pub(crate) use copy_mode::{DETECTS_ZEROES, LIBVIRT_FLOOR, QEMU_FLOOR};
pub use edits::edits;
pub use policy::{PathMap, Policy, Style, Verify};
pub(crate) use predicted::{Brought, brought};
pub(crate) use proofs::is_proven;
pub use show::human;
pub use tuning::{Compression, Tuning};
pub use value::{
    Action, BaseCopyMethod, BasePlan, CopyMode, DiskPlan, FileAction, FilePlan, FileRow, Flag,
    Mode, NewImage, Plan, Predicted, Proof, Refusal, Row, SCHEMA, Warning,
};

use crate::domain::{DiskEdit, XmlDomain, destination_xml, parse, persistent_xml};
use crate::facts::Facts;

/// Decides for every disk what to do, or says why not.
///
/// # Errors
/// All refusals, not only the first.
pub fn plan(facts: &Facts, policy: &Policy) -> Result<Plan, Vec<Refusal>> {
    let (mut plan, edits) = decide(facts, policy)?;
    render(&mut plan, &edits, facts).map_err(|error| {
        vec![words::refuse(
            "xml",
            None,
            format!("the destination's XML cannot be made: {}", error.message()),
            "report this together with the guest's XML",
        )]
    })?;
    plan.sealed().map_err(|error| {
        vec![words::refuse(
            "xml",
            None,
            format!("the plan cannot be written down: {}", error.message()),
            "give the images names in UTF-8",
        )]
    })
}

/// Everything that [`plan`] decides, without writing XML: the two documents of the plan and its digest
/// are still empty, and the changes that shall be in them are beside it.
///
/// # Errors
/// As [`plan`].
pub fn decide(facts: &Facts, policy: &Policy) -> Result<(Plan, Vec<DiskEdit>), Vec<Refusal>> {
    let mut refusals = domain_rules::check(facts, policy);
    let files = files::judge(facts, policy);
    let of_files = files.as_ref().err().cloned().unwrap_or_default();
    match assemble::assemble(facts, policy, files.unwrap_or_default()) {
        Ok(plan) if refusals.is_empty() && of_files.is_empty() => {
            let edits = edits(&plan.disks, facts);
            Ok((plan, edits))
        }
        outcome => {
            refusals.extend(outcome.err().unwrap_or_default());
            refusals.extend(of_files);
            Err(refusals)
        }
    }
}

/// The one place where the plan's XML is written.
fn render(plan: &mut Plan, edits: &[DiskEdit], facts: &Facts) -> crate::Result<()> {
    let domain = &facts.domain;
    plan.destination_xml = destination_xml(&domain.migratable_xml, edits)?;
    plan.persistent_xml = match &domain.inactive_xml {
        Some(xml) if domain.persistent => {
            let (edits, others) = of_the_definition(edits, &domain.live_xml, xml)?;
            plan.warnings.extend(others.into_iter().map(|disk| {
                Warning {
                    code: "definition-differs".into(),
                    message:
                        "the next start uses another image than the one that runs; the definition \
                          keeps its path"
                            .into(),
                    disk: Some(disk),
                }
            }));
            Some(persistent_xml(xml, &edits)?)
        }
        _ => None,
    };
    Ok(())
}

/// The edits of disks that the definition for the next start has as they run, and the names of the
/// others: the medium was changed, or the disk was plugged in.
fn of_the_definition(
    edits: &[DiskEdit],
    live: &str,
    inactive: &str,
) -> crate::Result<(Vec<DiskEdit>, Vec<String>)> {
    let (live, inactive) = (parse(live)?, parse(inactive)?);
    let source = |domain: &XmlDomain, target: &str| {
        domain.disks.iter().find(|disk| disk.target == target).map(|disk| disk.source.clone())
    };
    let same = |edit: &&DiskEdit| {
        source(&inactive, &edit.target).is_none_or(|own| source(&live, &edit.target) == Some(own))
    };
    let (same, others): (Vec<_>, Vec<_>) = edits.iter().partition(same);
    let names = others.into_iter().map(|edit| edit.target.clone()).collect();
    Ok((same.into_iter().cloned().collect(), names))
}
