//! The places at the destination where disks shall go.

use std::path::{Path, PathBuf};

use crate::Result;
use qcow::chain::Format;

use crate::facts::{BaseFacts, ChainFacts, Content, Storage, TargetFacts};
use crate::plan::{Policy, Style};
use crate::store::Store;

/// Whether `this_host` and `destination`, a directory on each host, are the same storage: what is made in the one
/// must appear in the other, or must not.
pub(super) fn storage(
    policy: &Policy,
    (named, real): (&Path, &Path),
    store: &dyn Store,
    destination: &Path,
) -> Storage {
    let stated = |directories: &[PathBuf]| directories.iter().any(|dir| named.starts_with(dir));
    if stated(&policy.distinct) {
        return Storage::Distinct;
    }
    if stated(&policy.shared) {
        return Storage::Shared;
    }
    // It goes when it is dropped.
    let token = match tempfile::Builder::new().prefix(".qcowtool-").tempfile_in(real) {
        Ok(token) => token,
        Err(error) => {
            return Storage::Unknown {
                why: format!(
                    "no file could be created in {} to look for at the destination: {error}",
                    named.display()
                ),
            };
        }
    };
    match store.look(&destination.join(token.path().file_name().unwrap_or_default())) {
        Ok(Some(_)) => Storage::Shared,
        Ok(None) => Storage::Distinct,
        Err(error) => Storage::Unknown { why: error.to_string() },
    }
}

/// What is at `path` at the destination. Bases are not looked at yet.
pub(super) fn place(
    store: &dyn Store,
    policy: &Policy,
    path: PathBuf,
    storage: Storage,
    chain: Option<&ChainFacts>,
    room: Result<u64, String>,
) -> Result<TargetFacts> {
    let below = chain.and_then(|chain| chain.layers.get(1));
    let mut facts = TargetFacts {
        storage,
        object: None,
        unusable: None,
        available: None,
        base_path: below.map(|layer| policy.mapped(&layer.path)),
        bases: Vec::new(),
        path,
    };
    match room {
        Ok(bytes) => facts.available = Some(bytes),
        Err(why) => {
            facts.unusable = Some(why);
            return Ok(facts);
        }
    }
    facts.object = store.look(&facts.path)?;
    Ok(facts)
}

/// The images of these names at the destination, not compared yet. What has no format of its own is taken
/// to have that of the source's.
pub(crate) fn bases(store: &dyn Store, names: &[PathBuf], format: Format) -> Vec<BaseFacts> {
    let mut found = Vec::new();
    for path in names {
        let Ok(Some(object)) = store.look(path) else { continue };
        let own = object.image.as_ref().map(|image| image.format);
        let unreadable = |why: String| BaseFacts {
            path: path.clone(),
            identity: object.identity,
            chain: Vec::new(),
            virtual_size: 0,
            in_use: object.in_use.clone(),
            content: Content::Unknown { why },
        };
        found.push(match store.chain(path, Some(own.unwrap_or(format))) {
            Ok(layers) => BaseFacts {
                virtual_size: layers.first().map_or(0, |layer| layer.virtual_size),
                in_use: layers.iter().find_map(|layer| layer.in_use.clone()),
                chain: layers.into_iter().map(|layer| layer.layer).collect(),
                ..unreadable("not compared".into())
            },
            Err(error) => unreadable(error.to_string()),
        });
    }
    found
}

/// Whether the digest of a disk's lower layers is worth reading all of them.
pub(super) fn wants_digest(style: Style, bases: &[BaseFacts], size: u64) -> bool {
    match style {
        Style::Full => false,
        Style::Thin => true,
        Style::Auto => bases.iter().any(|base| base.virtual_size == size),
    }
}
