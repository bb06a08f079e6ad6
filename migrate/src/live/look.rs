//! Finds out what a plan rests on. Nothing is changed.

use std::path::{Path, PathBuf};

use super::allocation::{AllocationSummary, needs};
use super::value::{Facts, Method, Options, Place};
use crate::Result;
use crate::driver::Hypervisor;
use crate::facts::LayerFacts;
use crate::probe::{PinnedFiles, alone};
use crate::store::{LocalStore, Store};

/// The facts, and what belongs to them and is no part of a plan.
#[derive(Debug)]
pub struct Looked {
    /// The facts.
    pub facts: Facts,
    /// How much of the disk its layers hold.
    pub allocation: AllocationSummary,
    /// Deleted layers, held open as long as this lives.
    pub pinned: PinnedFiles,
}

/// Looks at the disk of this name, or with this source, of the domain of this name or UUID. The domain's
/// host must be this machine.
///
/// # Errors
/// [`Usage`](crate::ErrorKind::Usage) if there is no such domain or disk;
/// [`Environment`](crate::ErrorKind::Environment) if the host cannot be asked, or is not this machine.
pub fn look(
    hypervisor: &dyn Hypervisor,
    domain: &str,
    disk: &str,
    options: &Options,
) -> Result<Looked> {
    let found = alone(hypervisor, domain, disk)?;
    let layers = found.disk.chain.as_ref().map_or(&[][..], |chain| &chain.layers);
    let complete = found.disk.chain.as_ref().is_some_and(|chain| chain.missing.is_none());
    let (mut measured, mut allocation) = (None, AllocationSummary::empty(0));
    if complete && let Some(top) = layers.first() {
        let chain = found.pinned.open(layers)?;
        let qcow2 = top.qcow2.as_ref();
        let cluster = qcow2.map_or(65536, |qcow2| qcow2.cluster_size);
        let entry = if qcow2.is_some_and(|qcow2| qcow2.extended_l2) { 16 } else { 8 };
        measured = Some(needs(&chain, cluster, entry)?);
        allocation = AllocationSummary::of(&chain)?;
    }
    let place = place(layers.first(), options)?;
    let facts = Facts {
        domain: found.domain,
        disk: found.disk,
        discard: found.discard,
        needs: measured,
        place,
    };
    Ok(Looked { facts, allocation, pinned: found.pinned })
}

fn place(top: Option<&LayerFacts>, options: &Options) -> Result<Place> {
    let Some(top) = top else { return Ok(Place::default()) };
    if options.method == Method::Pull && top.block_device {
        let available = Some(top.identity.size);
        return Ok(Place { path: top.path.clone(), available, ..Default::default() });
    }
    let store = LocalStore::new(Path::new("/"))?;
    let path = match options.method {
        Method::Pull => top.path.clone(),
        Method::Copy | Method::Move => options.target.clone().unwrap_or_else(|| beside(&top.path)),
    };
    let directory = path.parent().unwrap_or(Path::new("/"));
    let (available, unusable) = match store.available(directory) {
        Ok(bytes) => (Some(bytes), None),
        Err(error) => (None, Some(error.to_string())),
    };
    // Also a symbolic link to nowhere has the name.
    let taken = options.method.copies() && std::fs::symlink_metadata(&path).is_ok();
    Ok(Place { path, taken, available, unusable })
}

/// A name for the new image of a copy.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push("-flat");
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_new_image_is_named_after_the_old_one() {
        assert_eq!(beside(Path::new("/v/web.qcow2")), Path::new("/v/web-flat.qcow2"));
        assert_eq!(beside(Path::new("/v/6f1a9b52")), Path::new("/v/6f1a9b52-flat"));
    }
}
