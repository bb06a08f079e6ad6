//! What manifests prove of backing files.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use qcow::chain::{Chain, OpenOptions};
use qcow::ops::digest::{Manifest, tree_hash};
use qcow::{CancelToken, Silent};

use super::scan::canonical;
use super::value::{Content, Image, Key, Need, Presence, Proof, Survey, Unseen};
use crate::{Error, Result};

/// Compares all backing files of which a manifest is in `directory`, with it. An image
/// that a manifest is to be trusted for is not read; any other is read whole.
///
/// # Errors
/// [`Interrupted`](crate::ErrorKind::Interrupted), and [`Usage`](crate::ErrorKind::Usage) if the directory
/// cannot be read.
pub fn prove(survey: &mut Survey, directory: &Path, cancel: &CancelToken) -> Result<()> {
    let manifests = manifests(directory)?;
    let bases: std::collections::HashSet<Key> = survey
        .images
        .iter()
        .flat_map(|image| &image.links)
        .filter(|link| link.need == Need::Backing)
        .map(|link| link.to.clone())
        .collect();
    let mut unseen = Vec::new();
    for image in &mut survey.images {
        let here = image.presence == Presence::Here && image.problem.is_none();
        if !here || !bases.contains(&image.key) {
            continue;
        }
        let of_image = image.names.iter().filter_map(|name| manifests.get(&name.path)).flatten();
        let mut proof = None;
        for manifest in of_image {
            match compare(image, manifest, cancel) {
                Ok(Proof::Equal) => {
                    proof = Some(Proof::Equal);
                    break;
                }
                Ok(Proof::Different) => proof = Some(Proof::Different),
                Err(error) if error.kind() == qcow::ErrorKind::Interrupted => {
                    return Err(Error::from(error));
                }
                Err(error) => unseen.push(Unseen {
                    host: None,
                    path: image.path().to_path_buf(),
                    why: format!("it could not be compared with its manifest: {}", error.message()),
                    asked: true,
                }),
            }
        }
        image.proof = proof;
    }
    survey.unseen.extend(unseen);
    Ok(())
}

/// The manifests of current states in a directory, by the name of the image that each was taken of.
/// What is no manifest is passed over.
pub(crate) fn manifests(directory: &Path) -> Result<HashMap<PathBuf, Vec<PathBuf>>> {
    let failed = |error: std::io::Error| {
        Error::usage(format!(
            "the directory of manifests {} could not be read: {error}",
            directory.display()
        ))
        .caused_by(error)
    };
    let mut by_name: HashMap<PathBuf, Vec<PathBuf>> = HashMap::new();
    let entries = std::fs::read_dir(directory).map_err(failed)?;
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(failed)?;
    paths.sort();
    for path in paths {
        if let Ok(manifest) = Manifest::read(&path)
            && manifest.snapshot.is_none()
            && let Some(top) = manifest.layers.first()
        {
            by_name.entry(canonical(&top.path)).or_default().push(path);
        }
    }
    Ok(by_name)
}

fn compare(image: &Image, manifest: &Path, cancel: &CancelToken) -> qcow::Result<Proof> {
    let format = match image.content {
        Content::Qcow2 => qcow::chain::Format::Qcow2,
        _ => qcow::chain::Format::Raw,
    };
    let open = OpenOptions::default().format(format).force_share(true);
    let chain = Chain::open(image.path(), &open)?;
    if Manifest::read_trusted(manifest, &chain, None).is_ok() {
        return Ok(Proof::Equal);
    }
    let then = Manifest::read(manifest)?.tree;
    if then.virtual_size != chain.virtual_size() {
        return Ok(Proof::Different);
    }
    let now = tree_hash(&chain, 0, &Silent, cancel)?;
    Ok(if now.root == then.root { Proof::Equal } else { Proof::Different })
}
