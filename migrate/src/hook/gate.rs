//! What is refused before the first block arrives (`started begin`): pure.
//!
//! An incremental copy (`--copy-storage-inc`) transfers what the source's active layer holds, and neither libvirt nor
//! QEMU compares what is below. The rules are the planner's: the target is empty (`TargetEmpty`), and below it is what
//! the source has there (`ContentBelowEqual`), or it reads as zeros (`ReadsAsZeros`).

use std::path::Path;

use super::annotation::{Below, KnownDisk};
use super::begin::{named_below, not_ours, path_of};
use super::config::{FILE, InDoubt};
use crate::Remedy;
use crate::domain::XmlDisk;
use crate::facts::{BaseFacts, Content, NamedLayer};
use crate::plan::{Policy, is_proven};

/// A disk whose first block is about to arrive, and its target.
#[derive(Debug, Clone)]
pub struct Target {
    /// The disk as the XML tells it.
    pub disk: XmlDisk,
    /// What is known about it at the source.
    pub known: Option<KnownDisk>,
    /// What was found at its path; otherwise why it could not be read.
    pub image: Result<TargetImage, String>,
}

/// The image that a disk is copied into.
#[derive(Debug, Clone)]
pub struct TargetImage {
    /// The layers as headers tell them, the active one first.
    pub chain: Vec<NamedLayer>,
    /// Its active layer holds nothing.
    pub empty: bool,
    /// The file system that it is on can be shared by hosts, by its name.
    pub network: Option<String>,
    /// Its backing file; compared with the source's if it is known what that holds.
    pub base: Option<BaseFacts>,
}

/// What an incremental copy is told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Why the migration is refused.
    pub refusals: Vec<String>,
    /// What helps against the first of them.
    pub remedy: Option<Remedy>,
    /// Lines for the log.
    pub notes: Vec<String>,
}

/// Judges an incremental copy into these targets.
pub fn judge(targets: &[Target], unproven_base: InDoubt) -> Judgement {
    let mut judgement = Judgement::default();
    for target in targets {
        let name = &target.disk.target;
        match verdict(target, unproven_base) {
            Verdict::Allow(why) => judgement.notes.push(format!("disk '{name}': {why}")),
            Verdict::Refuse(why, remedy) => {
                judgement.refusals.push(format!("disk '{name}': {why}"));
                judgement.remedy.get_or_insert(remedy);
            }
        }
    }
    judgement
}

enum Verdict {
    Allow(String),
    Refuse(String, Remedy),
}

fn verdict(target: &Target, unproven_base: InDoubt) -> Verdict {
    let disk = &target.disk;
    if let Some(why) = not_ours(disk) {
        return Verdict::Allow(why);
    }
    let Some(path) = path_of(disk) else { return Verdict::Allow("it is not a file".to_owned()) };
    if disk.format.as_deref() == Some("raw") {
        return Verdict::Allow("raw: all of it is copied".to_owned());
    }
    let doubt = |what: String| match unproven_base {
        InDoubt::Allow => Verdict::Allow(format!("{what}: allowed by {FILE}")),
        InDoubt::Refuse => Verdict::Refuse(what, Remedy::AnnotateOrCopyAll),
    };
    let shown = path.display();
    let image = match &target.image {
        Ok(image) => image,
        Err(why) => return doubt(format!("the target '{shown}' could not be examined: {why}")),
    };
    // Image locks tell nothing here: the QEMU that waits for the copy has the target open for writing already.
    if !image.empty {
        return match &image.network {
            Some(kind) => {
                Verdict::Allow(format!("'{shown}' holds data, on {kind}: taken for shared storage"))
            }
            None => doubt(format!("an incremental copy into '{shown}', which already holds data")),
        };
    }
    match image.chain.get(1) {
        None => without_base(path, target.known.as_ref()),
        Some(base) => overlay(disk, path, image, base, target.known.as_ref(), doubt),
    }
}

/// A target without a backing file reads as zeros wherever nothing is copied, so the source must, too.
fn without_base(path: &Path, known: Option<&KnownDisk>) -> Verdict {
    let shown = path.display();
    match known.map(|known| &known.below) {
        Some(Below::Nothing) => Verdict::Allow(format!(
            "'{shown}' is empty and has no backing file, like the source's image"
        )),
        Some(Below::Disk { .. }) => Verdict::Refuse(
            format!(
                "an incremental copy into '{shown}', which is empty and has no backing file: the guest would \
                 lose everything that is in the source's backing file"
            ),
            Remedy::CopyAll,
        ),
        Some(Below::Unknown) | None => Verdict::Refuse(
            format!(
                "an incremental copy into '{shown}', which is empty and has no backing file, and it is not \
                 known whether the source's image has one"
            ),
            Remedy::AnnotateOrCopyAll,
        ),
    }
}

fn overlay(
    disk: &XmlDisk,
    path: &Path,
    image: &TargetImage,
    header: &NamedLayer,
    known: Option<&KnownDisk>,
    doubt: impl Fn(String) -> Verdict,
) -> Verdict {
    let (shown, base) = (path.display(), header.path.display());
    if let Some(named) = named_below(disk).first().filter(|named| named.path != header.path) {
        let named = named.path.display();
        return Verdict::Refuse(
            format!(
                "an incremental copy into '{shown}': its header names the backing file '{base}', the XML \
                 '{named}'"
            ),
            Remedy::CopyAll,
        );
    }
    let (digest, size) = match known.map(|known| &known.below) {
        Some(Below::Disk { digest, virtual_size }) => (digest, *virtual_size),
        Some(Below::Nothing) => {
            return Verdict::Refuse(
                format!(
                    "an incremental copy into '{shown}', whose backing file '{base}' would show through: the \
                     source's image has none"
                ),
                Remedy::CopyAll,
            );
        }
        Some(Below::Unknown) | None => {
            return doubt(format!(
                "an incremental copy into '{shown}', and it is not known what its backing file '{base}' must \
                 hold"
            ));
        }
    };
    let Some(facts) = &image.base else {
        return doubt(format!("the backing file '{base}' of '{shown}' was not compared"));
    };
    if is_proven(facts, digest, size, Policy::default().max_depth) {
        return Verdict::Allow(format!(
            "'{base}', the backing file of '{shown}', holds what the source's holds"
        ));
    }
    match &facts.content {
        Content::Unknown { why } => {
            doubt(format!("the backing file '{base}' of '{shown}' was not compared: {why}"))
        }
        Content::Equal { .. } => doubt(format!("the chain below '{shown}' cannot be relied on")),
        Content::Different => Verdict::Refuse(
            format!(
                "an incremental copy into '{shown}', whose backing file '{base}' does not hold what the source's \
                 backing file holds (digest {digest})"
            ),
            Remedy::CopyAll,
        ),
    }
}
