//! Manifests: a tree hash with its leaves, and which files it was taken of.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::hashing::tree_hash;
use super::tree::{Hash, LEAF, Leaf, TreeHash, VERSION};
use crate::chain::{Chain, Format, Layer};
use crate::io::{FileStatus, FileStorage, OpenedAs, Replace, Storage, read_padded};
use crate::ops::begin;
use crate::{CancelToken, Error, Observer, Remedy, Result};

const ALGORITHM: &str = "blake3-tree";
/// No manifest is longer than this: it is read whole.
const LONGEST: u64 = 4 << 30;
/// A file may change twice within one tick of its clock, unseen. So long must it have been still.
const STILL_NS: i64 = 1_000_000_000;

/// A tree hash and the files that it was taken of.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Manifest {
    /// The hash and its leaves.
    pub tree: TreeHash,
    /// The files of the chain, the active layer first; a data file follows its image.
    pub layers: Vec<LayerIdentity>,
    /// The internal snapshot that was read instead of the current state.
    pub snapshot: Option<String>,
}

/// Which file a layer was, and when it was last changed. Times are in nanoseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct LayerIdentity {
    /// The name under which it was opened.
    pub path: PathBuf,
    /// Its format; that of a data file is `raw`.
    pub format: Format,
    /// The device that holds it.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
    /// Its length in bytes.
    pub size: u64,
    /// When its content was last changed.
    pub mtime_ns: i64,
    /// When it was last changed at all; no program can set this one.
    pub ctime_ns: i64,
}

impl Manifest {
    /// Takes the tree hash of `chain`, which was opened at `snapshot` if at any.
    ///
    /// # Errors
    /// As [`tree_hash`]; a file that was changed meanwhile is an error even if the chain was opened
    /// with `force_share`.
    pub fn take(
        chain: &Chain,
        snapshot: Option<&str>,
        threads: usize,
        observer: &dyn Observer,
        cancel: &CancelToken,
    ) -> Result<Self> {
        let layers = identities(chain)?;
        let tree = tree_hash(chain, threads, observer, cancel)?;
        // A chain that is read although others use it is not checked by the digest; a manifest of
        // it would name a state of the files that never was.
        for (file, path, _) in files(chain)? {
            file.check_unchanged().map_err(|error| error.file(path))?;
        }
        Ok(Self { tree, layers, snapshot: snapshot.map(str::to_owned) })
    }

    /// Writes it to `path`, where it appears whole or not at all. Returns warnings, as
    /// [`OutputFile::publish`](crate::io::OutputFile::publish) does.
    ///
    /// # Errors
    /// As [`begin`] and [`OutputFile::publish`](crate::io::OutputFile::publish).
    pub fn write(&self, path: &Path, replace: Replace) -> Result<Vec<String>> {
        let leaves = self.tree.leaves.iter().map(|leaf| (leaf.index, leaf.hash.to_string()));
        let file = ManifestFile {
            algorithm: ALGORITHM.to_owned(),
            version: VERSION,
            virtual_size: self.tree.virtual_size,
            leaf_size: LEAF,
            root: self.tree.root.to_string(),
            snapshot: self.snapshot.clone(),
            layers: self.layers.clone(),
            leaves: leaves.collect(),
        };
        let mut bytes = serde_json::to_vec(&file)
            .map_err(|error| Error::io("could not write the manifest", error.into()).file(path))?;
        bytes.push(b'\n');
        let output = begin(path, replace)?;
        output.write_at(&bytes, 0)?;
        output.publish()
    }

    /// Reads the manifest at `path`.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) if it is none, or if its root is not that of its
    /// leaves; [`Unsupported`](crate::ErrorKind::Unsupported) for another algorithm or version.
    pub fn read(path: &Path) -> Result<Self> {
        let file = FileStorage::open(path)?;
        Self::parse(&file).map_err(|error| error.file(path))
    }

    /// Reads the manifest at `path` if it can be believed without reading the disk: every file of
    /// `chain` is the one it names and has not been changed since (by device, inode, size and
    /// both times), none of them nor the manifest can be written by group or others, and the
    /// manifest belongs to root or to whoever asks. Block devices keep no times and are never
    /// believed.
    ///
    /// # Errors
    /// As [`read`](Self::read); [`Denied`](crate::ErrorKind::Denied), with the reason, if it is
    /// not to be believed.
    pub fn read_trusted(path: &Path, chain: &Chain, snapshot: Option<&str>) -> Result<Self> {
        let file = FileStorage::open(path)?;
        let made = file.status().map_err(|error| error.file(path))?;
        let manifest = Self::parse(&file).map_err(|error| error.file(path))?;
        let stale = |why: &str, file: &Path| {
            Err(Error::denied(format!("the manifest '{}' is not trusted: {why}", path.display()))
                .file(file)
                .hint(Remedy::NewManifest))
        };
        let user = rustix::process::geteuid().as_raw();
        if made.others_may_write() || (made.owner != 0 && made.owner != user) {
            return stale("others may write it", path);
        }
        let now = identities(chain)?;
        let same_view = manifest.snapshot.as_deref() == snapshot
            && manifest.tree.virtual_size == chain.virtual_size()
            && manifest.layers.len() == now.len();
        if !same_view {
            return stale("it is of another chain or snapshot", path);
        }
        for ((file, now), then) in files(chain)?.into_iter().zip(&now).zip(&manifest.layers) {
            let (storage, path, _) = file;
            if !now.is_same_file(then) {
                return stale("the file has been replaced or changed since", path);
            }
            if storage.kind() != OpenedAs::File || storage.status()?.others_may_write() {
                return stale("others may write the file, or it keeps no times", path);
            }
            if made.mtime_ns.saturating_sub(now.ctime_ns) < STILL_NS {
                return stale("it was made too soon after the file was changed", path);
            }
        }
        Ok(manifest)
    }

    fn parse(file: &FileStorage) -> Result<Self> {
        if file.len() > LONGEST {
            return Err(Error::limit(format!("a manifest has at most {LONGEST} bytes")));
        }
        let mut bytes = vec![0; usize::try_from(file.len()).unwrap_or_default()];
        read_padded(file, &mut bytes, 0)?;
        let parsed: ManifestFile = serde_json::from_slice(&bytes)
            .map_err(|error| Error::corrupt(format!("not a manifest: {error}")))?;
        if (parsed.algorithm.as_str(), parsed.version, parsed.leaf_size)
            != (ALGORITHM, VERSION, LEAF)
        {
            return Err(Error::unsupported(format!(
                "the manifest is of {} version {} with leaves of {} bytes, expected {ALGORITHM} \
                 version {VERSION} with {LEAF}",
                crate::Escaped(&parsed.algorithm),
                parsed.version,
                parsed.leaf_size
            )));
        }
        let leaves = parsed.leaves.iter();
        let leaves = leaves.map(|(index, hash)| Ok(Leaf { index: *index, hash: hash.parse()? }));
        let leaves = leaves.collect::<Result<Vec<_>>>()?;
        let tree = TreeHash::from_leaves(parsed.virtual_size, &leaves)?;
        let root: Hash = parsed.root.parse()?;
        if tree.root != root {
            return Err(Error::corrupt(format!(
                "the root is {root}, but the leaves give {}",
                tree.root
            )));
        }
        Ok(Self { tree, layers: parsed.layers, snapshot: parsed.snapshot })
    }
}

/// How a manifest lies in its file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ManifestFile {
    algorithm: String,
    version: u32,
    virtual_size: u64,
    leaf_size: u64,
    root: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    snapshot: Option<String>,
    layers: Vec<LayerIdentity>,
    /// Number and digest of each leaf that is not all zeros.
    leaves: Vec<(u64, String)>,
}

impl LayerIdentity {
    fn new(path: &Path, format: Format, status: &FileStatus) -> Self {
        Self {
            // JSON has no other bytes; the name only helps people.
            path: path.to_string_lossy().into_owned().into(),
            format,
            device: status.device,
            inode: status.inode,
            size: status.size,
            mtime_ns: status.mtime_ns,
            ctime_ns: status.ctime_ns,
        }
    }

    /// Whether both are the same file in the same state, whatever its name.
    fn is_same_file(&self, other: &Self) -> bool {
        Self { path: PathBuf::new(), ..self.clone() }
            == Self { path: PathBuf::new(), ..other.clone() }
    }
}

/// The files of a chain as they are now.
fn identities(chain: &Chain) -> Result<Vec<LayerIdentity>> {
    let identity = |(file, path, format): (&FileStorage, &Path, Format)| {
        let status = file.status().map_err(|error| error.file(path))?;
        Ok(LayerIdentity::new(path, format, &status))
    };
    files(chain)?.into_iter().map(identity).collect()
}

fn files(chain: &Chain) -> Result<Vec<(&FileStorage, &Path, Format)>> {
    let files = chain.layers().iter().flat_map(|layer: &Layer| {
        let data = layer.image().is_some_and(crate::image::Image::has_data_file);
        let data = data.then(|| (layer.data_file(), layer.data_path(), Format::Raw));
        std::iter::once((layer.file(), layer.path(), layer.format())).chain(data)
    });
    let named = |(file, path, format): (Option<_>, _, _)| {
        let file = file.ok_or_else(|| {
            Error::usage("a manifest names files, and this layer is not in one").file(path)
        })?;
        Ok((file, path, format))
    };
    files.map(named).collect()
}
