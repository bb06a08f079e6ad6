//! Which of the files that a process has open a name in a header means. Pure.

use qcow::chain::Format;

use super::facts::{Content, Gone, Need, OpenImage, ProcessFacts, Reference};
use super::look::object;

/// What each reference of a process means. A file had one name: one that must be meant by a name is not
/// meant by another.
pub(super) fn all_meant(process: &ProcessFacts) -> Vec<(&Reference, Vec<&OpenImage>)> {
    let references = process.references.iter();
    let mut all: Vec<_> =
        references.map(|reference| (reference, meant(process, reference))).collect();
    loop {
        let sure = |(reference, meant): &(&Reference, Vec<&OpenImage>)| match meant.as_slice() {
            [only] => Some((reference.name.clone(), object(only))),
            _ => None,
        };
        let known: Vec<_> = all.iter().filter_map(sure).collect();
        let mut changed = false;
        for (reference, meant) in all.iter_mut().filter(|(_, meant)| meant.len() > 1) {
            let before = meant.len();
            meant.retain(|image| {
                !known.iter().any(|(name, is)| *name != reference.name && *is == object(image))
            });
            changed |= meant.len() != before;
        }
        if !changed {
            return all;
        }
    }
}

/// The backing file of an image, if it is known without doubt.
pub(super) fn below(process: &ProcessFacts, above: (u64, u64)) -> Option<(u64, u64)> {
    let mut all = all_meant(process).into_iter();
    let (reference, meant) = all.find(|(reference, _)| {
        reference.need == Need::Backing && reference.by_object == Some(above)
    })?;
    // Those that still have the name.
    let images = process.images.iter().filter(|image| image.gone == Gone::No);
    let named = images.filter(|image| image.name == reference.name);
    let all: Vec<_> = meant.into_iter().chain(named).collect();
    match all.as_slice() {
        [only] => object(only),
        _ => None,
    }
}

/// The files that a reference may mean; none if the one that it means is not gone. More than one is
/// possible: another file of the same name may have been deleted as well.
fn meant<'a>(process: &'a ProcessFacts, reference: &Reference) -> Vec<&'a OpenImage> {
    let others = || {
        let images = process.images.iter();
        images.filter(|image| reference.by_object.is_none() || object(image) != reference.by_object)
    };
    let named: Vec<_> = others().filter(|image| image.name == reference.name).collect();
    if !named.is_empty() {
        return named.into_iter().filter(|image| image.gone == Gone::Deleted).collect();
    }
    if reference.exists {
        return Vec::new();
    }
    // No other image claims it, and it is what is named.
    let free = |image: &&OpenImage| {
        let other_format = reference.format == Some(Format::Qcow2) && image.content == Content::Raw;
        let claimed = process.references.iter().any(|other| other.name == image.name);
        !(image.written || other_format || claimed)
    };
    let here = |image: &&OpenImage| image.name.parent() == reference.name.parent();
    let left: Vec<_> =
        others().filter(|image| image.gone == Gone::LeftOver).filter(free).filter(here).collect();
    if !left.is_empty() || !reference.relative {
        return left;
    }
    // A relative name is seen from the name by which the image was opened, and that may have been a link in
    // another directory.
    let same_file = |image: &&OpenImage| image.name.file_name() == reference.name.file_name();
    let deleted = others().filter(|image| image.gone == Gone::Deleted);
    deleted.filter(free).filter(same_file).collect()
}

/// Whether a reference leads nowhere.
pub(super) fn is_lost(process: &ProcessFacts, reference: &Reference) -> bool {
    !reference.exists && process.images.iter().all(|image| image.name != reference.name)
}
