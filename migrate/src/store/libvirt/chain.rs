//! Chains of images that can only be read as files: by their headers, layer by layer.

use std::cell::RefCell;
use std::path::Path;

use qcow::chain::{Format, Open, OpenOptions, WorkingDirectory};
use qcow::format::{Header, HeaderArea};
use qcow::io::Storage;
use serde::{Deserialize, Serialize};

use crate::facts::{Identity, NamedLayer};
use crate::store::StoreLayer;
use crate::{Error, Result};

/// The magic with which QCOW2 images begin.
const MAGIC: &[u8] = b"QFI\xfb";

/// Where other formats have their magic numbers.
const SECTOR: usize = 512;

/// What the header of a QCOW2 image says, and what filling the image does not change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) virtual_size: u64,
    /// The name of the layer below.
    pub(super) backing: Option<Vec<u8>>,
    /// The format of the layer below.
    pub(super) backing_format: Option<Vec<u8>>,
    data_file: bool,
    cluster_bits: u32,
    l1_table: u64,
}

impl Head {
    /// From a file whose first bytes `read` gives; `None` if it is no QCOW2 image.
    pub(super) fn read(read: impl Fn(usize) -> Result<Vec<u8>>) -> Result<Option<Self>> {
        let first = start(read)?;
        if !first.starts_with(MAGIC) {
            return Ok(None);
        }
        let area = HeaderArea::parse(&first)?;
        Ok(Some(Self {
            virtual_size: area.header.virtual_size(),
            backing_format: area.backing_format().map(<[u8]>::to_vec),
            data_file: area.extensions.data_file_name().is_some(),
            cluster_bits: area.header.cluster_bits,
            l1_table: area.header.l1_table_offset.0,
            backing: area.backing_name,
        }))
    }
}

/// The first cluster of a QCOW2 image, filled up with zeros; of another file, what tells that it is one.
pub(super) fn start(read: impl Fn(usize) -> Result<Vec<u8>>) -> Result<Vec<u8>> {
    let start = read(SECTOR)?;
    if !start.starts_with(MAGIC) {
        return Ok(start);
    }
    let mut padded = start;
    padded.resize(SECTOR, 0);
    let peek = padded.get(..Header::PEEK_BYTES).unwrap_or_default();
    let (_, cluster_bits) = Header::peek(peek)?;
    let cluster = 1_usize.checked_shl(cluster_bits).unwrap_or(usize::MAX);
    let mut first = read(cluster)?;
    first.resize(cluster, 0);
    Ok(first)
}

/// A file of a storage pool, of which only the beginning can be read at a fair price.
#[derive(Debug, Clone)]
pub(super) struct Volume {
    pub(super) identity: Identity,
    /// The first cluster of a QCOW2 image; at least [`Header::PEEK_BYTES`], if it is that long.
    pub(super) start: Vec<u8>,
    /// The guest that writes to it, in words.
    pub(super) in_use: Option<String>,
}

impl Storage for Volume {
    fn len(&self) -> u64 {
        self.identity.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.start.get(offset..));
        let rest = rest.unwrap_or_default();
        let wanted = buf.len().min(rest.len());
        let (Some(to), Some(from)) = (buf.get_mut(..wanted), rest.get(..wanted)) else {
            return Ok(0);
        };
        to.copy_from_slice(from);
        // What was not fetched is taken for zeros: only magic numbers are looked for there.
        let beyond = self.len().saturating_sub(offset).min(buf.len() as u64);
        let beyond = usize::try_from(beyond).unwrap_or(usize::MAX);
        buf.get_mut(wanted..beyond).unwrap_or_default().fill(0);
        Ok(beyond.max(wanted))
    }
}

/// Finds the files of a pool by their paths.
struct Volumes<F>(F);

impl<F: Fn(&Path) -> Result<Volume>> Open for Volumes<F> {
    type File = Volume;

    fn open(&self, path: &Path, _depth: usize) -> qcow::Result<Volume> {
        (self.0)(path).map_err(|error| {
            let error = qcow::Error::io(
                error.message().to_owned(),
                std::io::Error::other(error.message().to_owned()),
            );
            error.file(path)
        })
    }
}

/// A chain from `path` down; `ask` finds the file of a layer.
pub(super) fn walk(
    path: &Path,
    format: Option<Format>,
    ask: impl Fn(&Path) -> Result<Volume>,
) -> Result<Vec<StoreLayer>> {
    let working_directory = WorkingDirectory::Unknown;
    let options = OpenOptions::default().format(format).working_directory(working_directory);
    // What the pool says is said as it is.
    let failed = RefCell::new(None);
    let ask = |path: &Path| {
        ask(path).inspect_err(|error| {
            failed.replace(Some(Error::new(error.kind(), error.message())));
        })
    };
    let mut layers = Vec::new();
    for found in qcow::chain::walk(Volumes(ask), path, &options) {
        let found = match (found, failed.take()) {
            (Ok(found), _) => found,
            (Err(_), Some(error)) => return Err(error),
            (Err(broken), None) => return Err(Error::refused(broken.error.to_string())),
        };
        let virtual_size = found.virtual_size()?;
        if found.data_file().is_some() {
            let path = found.path.display();
            return Err(Error::refused(format!("{path}: it has an external data file")));
        }
        let format = Some(found.format.as_str().to_owned());
        let layer = NamedLayer { path: found.path, format };
        let Volume { identity, in_use, .. } = found.file;
        layers.push(StoreLayer { layer, identity, virtual_size, in_use });
    }
    Ok(layers)
}

#[cfg(test)]
mod tests {
    use qcow::ops::create::{Backing, CreateOptions, create};

    use super::*;

    fn identity(path: &Path) -> Identity {
        let size = std::fs::metadata(path).unwrap().len();
        Identity { device: None, inode: None, links: None, size, mtime_ns: 0, ctime_ns: 0 }
    }

    fn head(path: &Path) -> Result<Option<Head>> {
        let bytes = std::fs::read(path).unwrap();
        Head::read(|length| Ok(bytes.get(..length).unwrap_or(&bytes).to_vec()))
    }

    fn ask(path: &Path) -> Result<Volume> {
        let bytes = std::fs::read(path).unwrap();
        let start = start(|length| Ok(bytes.get(..length).unwrap_or(&bytes).to_vec()))?;
        Ok(Volume { identity: identity(path), start, in_use: None })
    }

    fn overlay(path: &Path, name: &str, format: Format) {
        let backing = Backing::new(name, format).unchecked(true);
        let options = CreateOptions::default().size(2 << 20).backing(backing);
        create(path, &options).unwrap();
    }

    #[test]
    fn a_chain_of_three_with_a_relative_name_and_a_raw_base() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("base.img"), vec![1; 1_000_001]).unwrap();
        overlay(&path("middle.qcow2"), path("base.img").to_str().unwrap(), Format::Raw);
        overlay(&path("top.qcow2"), "middle.qcow2", Format::Qcow2);
        let layers = walk(&path("top.qcow2"), None, ask).unwrap();
        let told: Vec<_> = layers
            .iter()
            .map(|layer| {
                (layer.layer.path.clone(), layer.layer.format.clone().unwrap(), layer.virtual_size)
            })
            .collect();
        let expected = vec![
            (path("top.qcow2"), "qcow2".to_owned(), 2 << 20),
            (path("middle.qcow2"), "qcow2".to_owned(), 2 << 20),
            (path("base.img"), "raw".to_owned(), 1_000_448),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn a_raw_base_that_looks_like_qcow2_is_raw() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        overlay(&path("trick"), "/etc/passwd", Format::Raw);
        overlay(&path("top.qcow2"), "trick", Format::Raw);
        assert_eq!(walk(&path("top.qcow2"), None, ask).unwrap().len(), 2);
    }

    #[test]
    fn loops_and_names_on_the_network_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        overlay(&path("a"), "b", Format::Qcow2);
        overlay(&path("b"), "a", Format::Qcow2);
        assert!(walk(&path("a"), None, ask).unwrap_err().message().contains("comes back"));
        overlay(&path("n"), "nbd://host/x", Format::Raw);
        let error = walk(&path("n"), None, ask).unwrap_err();
        assert!(error.message().contains("'nbd'"), "{error}");
    }

    #[test]
    fn a_header_is_the_same_after_the_image_was_filled_but_not_of_another_image() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        overlay(&path("ours"), "base", Format::Qcow2);
        let made = head(&path("ours")).unwrap().unwrap();
        overlay(&path("other"), "another", Format::Qcow2);
        assert_ne!(head(&path("other")).unwrap().unwrap(), made);
        assert_eq!(head(&path("ours")).unwrap().unwrap(), made);
    }
}
