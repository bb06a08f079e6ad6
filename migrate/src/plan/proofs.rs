//! What may stand in for a disk's lower layers, and what must be proven before only the active layer is
//! copied. Nothing else in this crate decides that.
//!
//! An incremental copy is right only if everything below the active layers is the same on both sides, byte
//! for byte. No hypervisor checks that, so a name, an id, a size or a date are never taken for it.

use qcow::chain::Format;

use super::disk::Disk;
use super::policy::Style;
use super::value::{Action, BaseCopyMethod, BasePlan, CopyMode, Proof};
use crate::facts::{BaseFacts, Content, LayerFacts};

/// Whether a disk can be an overlay at the destination.
#[derive(Debug)]
pub(super) enum Thin {
    /// On this base.
    Base(BasePlan),
    /// No, and why.
    Not(String),
}

/// Which backing file a new overlay can have, as far as the style asks for one.
pub(super) fn thin(disk: &Disk<'_>) -> Thin {
    let no = |why: &str| Thin::Not(why.to_owned());
    if disk.style() == Style::Full {
        return no("the policy asks for disks without backing files");
    }
    if let Some(why) = disk.alone_because {
        return no(why);
    }
    let Some(chain) = disk.chain() else {
        return no("its image could not be read");
    };
    if chain.missing.is_some() {
        return no("not all of its lower layers can be read");
    }
    if disk.top().is_none_or(|top| top.deleted) {
        return no("its active layer was deleted");
    }
    let Some(digest) = &chain.below else {
        return no(match disk.style() {
            // They were not read, because there is nothing to compare them with.
            Style::Auto => "nothing at the destination can be what they are",
            _ => "its lower layers have not been digested",
        });
    };
    match on_existing(disk) {
        Some(base) => {
            Thin::Base(BasePlan::Existing { chain: base.chain.clone(), digest: digest.clone() })
        }
        None if disk.style() == Style::Auto => {
            no("no image at the destination is proven to have their content")
        }
        None => seed(disk, digest),
    }
}

/// A base at the destination that is proven to hold what the lower layers hold, and that a new overlay can
/// rely on (`ContentBelowEqual`, and what `BaseFixed` and `ChainsAgree` ask of it).
pub(super) fn on_existing<'a>(disk: &Disk<'a>) -> Option<&'a BaseFacts> {
    let below = disk.below().first()?;
    let wanted = disk.chain()?.below.as_ref()?;
    let bases = &disk.destination()?.bases;
    bases.iter().find(|base| is_proven(base, wanted, below.virtual_size, disk.policy.max_depth))
}

/// Whether an overlay can rely on this image: it holds the disk of this digest and size, no process writes to
/// it, and its chain is known with all formats.
pub(crate) fn is_proven(base: &BaseFacts, wanted: &str, size: u64, max_depth: usize) -> bool {
    let equal = matches!(&base.content, Content::Equal { digest } if digest == wanted);
    let unwritten = base.in_use.is_none();
    let starts_with_itself = base.chain.first().is_some_and(|layer| layer.path == base.path);
    let formats_recorded = base.chain.iter().all(|layer| layer.format.is_some());
    let shallow = base.chain.len() < max_depth;
    let known = starts_with_itself && formats_recorded && shallow;
    equal && base.virtual_size == size && unwritten && known
}

/// How the lower layers are copied to the destination.
fn seed(disk: &Disk<'_>, digest: &str) -> Thin {
    let lower = disk.below();
    let Some(base) = lower.first() else {
        return Thin::Not("it has no lower layers".to_owned());
    };
    let Some(path) = disk.base_copies.get(&disk.disk.target) else {
        return Thin::Not("no name is free for its base at the destination".to_owned());
    };
    let (how, format) = if one_file(lower).is_some() {
        (BaseCopyMethod::CopyFile { from: base.read_from.clone() }, base.format)
    } else if lower.iter().any(|layer| layer.deleted) {
        // What lies below is found by its name, and behind that may be another file by now.
        return Thin::Not("of several lower layers one was deleted".to_owned());
    } else {
        let how = BaseCopyMethod::Flatten { from: base.read_from.clone(), format: base.format };
        (how, Format::Qcow2)
    };
    Thin::Base(BasePlan::BaseCopy {
        path: path.to_path_buf(),
        format,
        how,
        digest: digest.to_owned(),
    })
}

/// What preparation still has to prove before the disk may be filled.
pub(super) fn obligations(action: &Action, copy: CopyMode) -> Vec<Proof> {
    let base = match action {
        Action::Skip | Action::Eject | Action::CopyMedium { .. } => return Vec::new(),
        Action::Adopt { .. } => {
            return vec![Proof::SizesEqual, Proof::ChainsAgree, Proof::NotASourceFile];
        }
        Action::Create { base, .. } => base,
    };
    let mut proofs =
        vec![Proof::SizesEqual, Proof::ChainsAgree, Proof::NotASourceFile, Proof::MadeByThisRun];
    match base {
        Some(base) => {
            proofs.extend([Proof::TargetEmpty, Proof::BaseFixed, Proof::SourceLayersFixed]);
            if matches!(base, BasePlan::BaseCopy { .. }) {
                proofs.push(Proof::ContentBelowEqual);
            }
        }
        None if copy == CopyMode::Incremental => {
            proofs.extend([Proof::TargetEmpty, Proof::ReadsAsZeros])
        }
        None => {}
    }
    proofs.sort();
    proofs
}

/// The one file that holds all of the lower layers, if one does.
fn one_file(lower: &[LayerFacts]) -> Option<&LayerFacts> {
    match lower {
        [only] if !only.block_device => Some(only),
        _ => None,
    }
}
