//! Chains of images that can only be read as files: by their headers, layer by layer.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use qcow::chain::{Format, MAX_DEPTH};
use qcow::format::{Header, HeaderArea};

use crate::facts::{Identity, NamedLayer};
use crate::store::StoreLayer;
use crate::{Error, Result};

/// The magic with which QCOW2 images begin.
const MAGIC: &[u8] = b"QFI\xfb";

/// What the header of a QCOW2 image says, and what filling the image does not change.
#[derive(Debug, Clone, PartialEq, Eq)]
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
        let start = read(Header::PEEK_BYTES)?;
        if !start.starts_with(MAGIC) {
            return Ok(None);
        }
        let mut padded = start;
        padded.resize(Header::PEEK_BYTES, 0);
        let (_, cluster_bits) = Header::peek(&padded)?;
        let cluster = 1_usize.checked_shl(cluster_bits).unwrap_or(usize::MAX);
        let mut first = read(cluster)?;
        first.resize(cluster, 0);
        let area = HeaderArea::parse(&first)?;
        Ok(Some(Self {
            virtual_size: area.header.virtual_size(),
            backing_format: area.backing_format().map(<[u8]>::to_vec),
            data_file: area.extensions.data_file_name().is_some(),
            cluster_bits,
            l1_table: area.header.l1_table_offset.0,
            backing: area.backing_name,
        }))
    }
}

/// A chain from `path` down; `ask` tells a layer's object, its header if it is QCOW2, and who writes to it.
pub(super) fn walk(
    path: &Path,
    format: Option<Format>,
    ask: impl Fn(&Path) -> Result<(Identity, Option<Head>, Option<String>)>,
) -> Result<Vec<StoreLayer>> {
    let mut layers: Vec<StoreLayer> = Vec::new();
    let mut next = Some((path.to_path_buf(), format));
    while let Some((path, format)) = next.take() {
        if layers.iter().any(|layer| layer.layer.path == path) {
            return Err(Error::refused(format!("{}: the chain is a loop", path.display())));
        }
        if layers.len() >= MAX_DEPTH {
            return Err(Error::refused(format!("the chain has more than {MAX_DEPTH} layers")));
        }
        let (identity, head, in_use) = ask(&path)?;
        let format = format.unwrap_or(if head.is_some() { Format::Qcow2 } else { Format::Raw });
        let virtual_size = match (format, head) {
            (Format::Raw, _) => identity.size.checked_next_multiple_of(512).unwrap_or(u64::MAX),
            (Format::Qcow2, Some(head)) => {
                if head.data_file {
                    let path = path.display();
                    return Err(Error::refused(format!("{path}: it has an external data file")));
                }
                next = below(&path, &head)?;
                head.virtual_size
            }
            (Format::Qcow2, None) => {
                return Err(Error::environment(format!("{} is not QCOW2", path.display())));
            }
        };
        let layer = NamedLayer { path, format: Some(format.as_str().to_owned()) };
        layers.push(StoreLayer { layer, identity, virtual_size, in_use });
    }
    Ok(layers)
}

/// The layer below, as the header of the one at `path` names it.
fn below(path: &Path, head: &Head) -> Result<Option<(PathBuf, Option<Format>)>> {
    let Some(name) = &head.backing else { return Ok(None) };
    let shown = qcow::Printable(&String::from_utf8_lossy(name)).to_string();
    let refuse =
        |why: &str| Err(Error::refused(format!("{}: its base '{shown}' {why}", path.display())));
    let format = match head.backing_format.as_deref() {
        Some(b"qcow2") => Format::Qcow2,
        Some(b"raw") => Format::Raw,
        Some(_) => return refuse("is of a format that is not understood"),
        None => return refuse("has no recorded format, and none is guessed"),
    };
    let name = name.strip_prefix(b"file:").unwrap_or(name);
    let before_slash = name.split(|byte| *byte == b'/').next().unwrap_or_default();
    if before_slash.contains(&b':') {
        return refuse("is not a file's plain name");
    }
    // A relative name starts at the directory of the image that has it.
    let parent = path.parent().unwrap_or(Path::new("/"));
    Ok(Some((parent.join(OsStr::from_bytes(name)), Some(format))))
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

    fn ask(path: &Path) -> Result<(Identity, Option<Head>, Option<String>)> {
        Ok((identity(path), head(path)?, None))
    }

    fn overlay(path: &Path, name: &str, format: Format) {
        let backing =
            Backing { name: name.into(), format, unchecked: true, open: Default::default() };
        let options =
            CreateOptions { size: Some(2 << 20), backing: Some(backing), ..Default::default() };
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
        assert!(walk(&path("a"), None, ask).unwrap_err().message().contains("loop"));
        overlay(&path("n"), "nbd://host/x", Format::Raw);
        let error = walk(&path("n"), None, ask).unwrap_err();
        assert!(error.message().contains("plain name"), "{error}");
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
