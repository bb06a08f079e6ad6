//! What may stand in for a disk's lower layers, and what must be proven before only the active layer is
//! copied. Nothing else in this crate decides that.
//!
//! An incremental copy is right only if everything below the active layers is the same on both sides, byte
//! for byte. No hypervisor checks that, so a name, an id, a size or a date are never taken for it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use qcow::chain::Format;

use super::policy::Style;
use super::rows::Disk;
use super::value::{Action, BasePlan, CopyMode, Proof, SeedHow};
use crate::facts::{BaseFacts, Content, Facts, LayerFacts};

/// Whether a disk can be an overlay at the destination.
#[derive(Debug)]
pub(super) enum Thin {
    /// On this base.
    Base(BasePlan),
    /// No, and why.
    Not(String),
}

/// What a new overlay can stand on, as far as the style asks for one.
pub(super) fn thin(disk: &Disk<'_>) -> Thin {
    let no = |why: &str| Thin::Not(why.to_owned());
    if disk.style() == Style::Full {
        return no("the policy wants disks that stand alone");
    }
    if let Some(why) = disk.alone_because {
        return no(why);
    }
    let Some(chain) = disk.chain() else {
        return no("its image could not be looked into");
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
            _ => "nobody digested its lower layers",
        });
    };
    match on_existing(disk) {
        Some(base) => {
            Thin::Base(BasePlan::Existing { chain: base.chain.clone(), digest: digest.clone() })
        }
        None if disk.style() == Style::Auto => {
            no("nothing at the destination is proven to hold what they hold")
        }
        None => seed(disk, digest),
    }
}

/// A base at the destination that is proven to hold what the lower layers hold, and that a new overlay can
/// rely on (`ContentBelowEqual`, and what `BaseFixed` and `ChainsAgree` ask of it).
pub(super) fn on_existing<'a>(disk: &Disk<'a>) -> Option<&'a BaseFacts> {
    let below = disk.below().first()?;
    let wanted = disk.chain()?.below.as_ref()?;
    disk.there()?.bases.iter().find(|base| {
        let equal = matches!(&base.content, Content::Equal { digest } if digest == wanted);
        let as_long = base.virtual_size == below.virtual_size;
        let nobody_writes = base.in_use.is_none();
        let starts_with_itself = base.chain.first().is_some_and(|layer| layer.path == base.path);
        let formats_recorded = base.chain.iter().all(|layer| layer.format.is_some());
        let not_too_deep = base.chain.len() < disk.policy.max_depth;
        equal && as_long && nobody_writes && starts_with_itself && formats_recorded && not_too_deep
    })
}

/// How the lower layers are brought to the destination.
fn seed(disk: &Disk<'_>, digest: &str) -> Thin {
    let lower = disk.below();
    let Some(base) = lower.first() else {
        return Thin::Not("it has no lower layers".to_owned());
    };
    let Some(path) = disk.seeds.get(&disk.disk.target) else {
        return Thin::Not("no name is free for its base at the destination".to_owned());
    };
    let (how, format) = if one_file(lower).is_some() {
        (SeedHow::CopyFile { from: base.read_from.clone() }, base.format)
    } else if lower.iter().any(|layer| layer.deleted) {
        // What lies below is found by its name, and behind that may be another file by now.
        return Thin::Not("of several lower layers one was deleted".to_owned());
    } else {
        let how = SeedHow::Flatten { from: base.read_from.clone(), format: base.format };
        (how, Format::Qcow2)
    };
    Thin::Base(BasePlan::Seed { path: path.to_path_buf(), format, how, digest: digest.to_owned() })
}

/// Names for the bases that may have to be brought, none of which exists.
#[derive(Debug, Default)]
pub(super) struct SeedNames(BTreeMap<String, PathBuf>);

impl SeedNames {
    /// For each disk with lower layers the mapped path of its base; or, if that is taken, that name with
    /// the start of the digest.
    pub(super) fn new(facts: &Facts) -> Self {
        let taken: BTreeSet<&Path> = facts
            .disks
            .iter()
            .filter_map(|disk| disk.there.as_ref())
            .flat_map(|there| {
                let bases = there.bases.iter().flat_map(|base| {
                    base.chain.iter().map(|layer| layer.path.as_path()).chain([base.path.as_path()])
                });
                bases.chain([there.path.as_path()])
            })
            .collect();
        let mut names: BTreeMap<String, PathBuf> = BTreeMap::new();
        let mut contents: BTreeMap<PathBuf, &str> = BTreeMap::new();
        for disk in &facts.disks {
            let (Some(chain), Some(there)) = (&disk.chain, &disk.there) else { continue };
            let (Some(digest), Some(path)) = (&chain.below, &there.base_path) else { continue };
            let free = |path: &PathBuf| {
                // One file serves all disks that stand on the same.
                let same = contents.get(path).is_none_or(|content| content == digest);
                same && !taken.contains(path.as_path())
            };
            let candidates = [path.clone(), seed_name(path, digest)];
            if let Some(path) = candidates.into_iter().find(free) {
                contents.insert(path.clone(), digest);
                names.insert(disk.target.clone(), path);
            }
        }
        Self(names)
    }

    fn get(&self, target: &str) -> Option<&Path> {
        self.0.get(target).map(PathBuf::as_path)
    }
}

/// The name of a base that is brought to the destination where `path` is taken by something else: the
/// same with the first twelve digits of its digest.
pub fn seed_name(path: &Path, digest: &str) -> PathBuf {
    let digest: String = digest.chars().take(12).collect();
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let name = match path.extension() {
        Some(extension) => format!("{stem}-{digest}.{}", extension.to_string_lossy()),
        None => format!("{stem}-{digest}"),
    };
    path.with_file_name(name)
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
            if matches!(base, BasePlan::Seed { .. }) {
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
