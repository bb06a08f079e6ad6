//! The first cluster as a whole: header, extensions and the backing file's name.

use std::ops::Range;

use super::bytes::{Reader, len_u32, until_nul};
use super::extension::BITMAPS;
use super::preamble::{Preamble, STRUCTURE, at, corrupt};
use super::{
    Autoclear, BitmapsExtension, CryptMethod, Extension, Extensions, FeatureKind, Geometry, Header,
    HostOffset, Incompatible, MAX_BACKING_NAME,
};
use crate::{Error, Escaped, Result};

/// An extension of type 0 and length 0.
const END_MARKER: [u8; 8] = [0; 8];

/// Header, extensions and backing file name: all that the first cluster holds.
///
/// Writing starts from what was parsed, so that what this crate does not know survives (trap 130).
///
/// ```
/// use qcow::format::{Extension, Extensions, Geometry, Header, HeaderArea, HostOffset, Version};
/// let mut header = Header::new(Version::V3, Geometry::new(16, false)?, 0);
/// header.refcount_table_clusters = 1;
/// let area = HeaderArea {
///     header,
///     extensions: Extensions(vec![Extension::BackingFormat(b"raw".to_vec())]),
///     backing_name: Some(b"base.img".to_vec()),
/// };
/// let mut first_cluster = area.to_bytes()?;
/// first_cluster.resize(65536, 0);
/// let parsed = HeaderArea::parse(&first_cluster)?;
/// assert_eq!(parsed.backing_name.as_deref(), Some(&b"base.img"[..]));
/// assert_eq!(parsed.backing_format(), Some(&b"raw"[..]));
/// # Ok::<(), qcow::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderArea {
    /// The header's fields.
    pub header: Header,
    /// The extensions, in the order of the file.
    pub extensions: Extensions,
    /// The backing file's name as the image has it: not necessarily UTF-8 (trap 10), never empty.
    pub backing_name: Option<Vec<u8>>,
}

impl HeaderArea {
    /// Parses the first cluster of an image, padded with zeros if the file is shorter, and accepts
    /// what QEMU accepts.
    ///
    /// # Errors
    /// As [`Header::parse`]; [`Unsupported`](crate::ErrorKind::Unsupported) for unknown
    /// incompatible features, by name where the image gives one (trap 17); and
    /// [`Corrupt`](crate::ErrorKind::Corrupt) for broken extensions, a backing file name that is
    /// too long, or extensions, encryption and data file bits that contradict each other.
    pub fn parse(first_cluster: &[u8]) -> Result<Self> {
        let preamble = Preamble::parse(first_cluster)?;
        check_whole(&preamble, first_cluster)?;
        refuse_unknown_features(&preamble, first_cluster)?;
        let header = Header::after(&preamble, first_cluster)?;
        let extensions = Extensions::parse(first_cluster, preamble.extension_area())?;
        let mut area = Self { header, extensions, backing_name: None };
        area.check_extensions()?;
        area.backing_name = area.parse_backing_name(first_cluster)?;
        Ok(area)
    }

    /// How much of the first cluster [`parse`](Self::parse) looks at, if the first bytes of the cluster tell.
    pub(crate) fn reach(first_bytes: &[u8]) -> Option<usize> {
        let preamble = Preamble::parse(first_bytes).ok()?;
        let extensions = Extensions::end(first_bytes, preamble.extension_area())?;
        let name_len = Reader::new(first_bytes, 16, STRUCTURE).u32().ok()?;
        let name = match preamble.backing_name_offset {
            0 => 0,
            offset => usize::try_from(offset.checked_add(name_len.into())?).ok()?,
        };
        Some(extensions.max(name).max(usize::try_from(preamble.header_length).ok()?))
    }

    fn check_extensions(&self) -> Result<()> {
        let geometry = self.header.geometry();
        let luks = self.header.crypt_method == CryptMethod::Luks;
        for extension in &self.extensions.0 {
            match extension {
                Extension::Bitmaps(bitmaps) if self.has_bitmaps() => bitmaps.check(geometry)?,
                Extension::Unknown { magic: BITMAPS, .. } if self.has_bitmaps() => {
                    return Err(Error::corrupt("reserved bytes are set, expected zeros")
                        .structure("bitmaps extension"));
                }
                Extension::CryptoHeader { offset, .. } => check_crypto(luks, *offset, geometry)?,
                _ => {}
            }
        }
        if luks && self.extensions.crypto_header().is_none() {
            return Err(corrupt(
                32,
                "the image uses LUKS, but no extension names its header".into(),
            ));
        }
        Ok(())
    }

    fn parse_backing_name(&self, first_cluster: &[u8]) -> Result<Option<Vec<u8>>> {
        let (offset, len) = (self.header.backing_name_offset, self.header.backing_name_len);
        if offset == 0 {
            return Ok(None);
        }
        let room = self.header.geometry().cluster_size().saturating_sub(offset);
        let longest = room.min(MAX_BACKING_NAME.into());
        if u64::from(len) > longest {
            return Err(corrupt(
                16,
                format!("the backing file's name has {len} bytes, expected at most {longest}"),
            ));
        }
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let name = Reader::new(first_cluster, start, STRUCTURE).take(len)?;
        Ok(Some(until_nul(name).to_vec()).filter(|name| !name.is_empty()))
    }

    /// The bytes of the area, without padding to the cluster's end.
    ///
    /// Place and length of the backing file's name are computed, whatever the header says.
    ///
    /// # Errors
    /// [`Limit`](crate::ErrorKind::Limit) if it does not fit the first cluster (traps 12, 13), and
    /// what [`Header::to_bytes`] refuses.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        self.to_bytes_with_name_from(0)
    }

    /// As [`to_bytes`](Self::to_bytes), with the backing file's name at this place or behind it.
    pub(crate) fn to_bytes_with_name_from(&self, name_from: usize) -> Result<Vec<u8>> {
        let name = self.backing_name.as_deref().unwrap_or_default();
        let name_len = len_u32(name.len(), "the backing file's name")?;
        if name_len > MAX_BACKING_NAME {
            return Err(Error::limit(format!(
                "the backing file's name has {name_len} bytes, expected at most {MAX_BACKING_NAME}"
            ))
            .structure(STRUCTURE));
        }
        let mut tail = Vec::new();
        self.extensions.write(&mut tail)?;
        let header_len = usize::try_from(self.header.header_length).unwrap_or(usize::MAX);
        let mut end = header_len.saturating_add(tail.len());
        let cluster_size = self.header.geometry().cluster_size();
        let room = usize::try_from(cluster_size)
            .ok()
            .and_then(|size| size.checked_sub(end)?.checked_sub(name.len()))
            .ok_or_else(|| no_space(cluster_size))?;
        // The end marker is optional where the area ends anyway: at the name, or with the cluster.
        if room >= END_MARKER.len() {
            tail.extend_from_slice(&END_MARKER);
            end = end.saturating_add(END_MARKER.len());
        } else if name.is_empty() && room > 0 {
            return Err(no_space(cluster_size));
        }
        let mut header = self.header.clone();
        let name_at = end.max(name_from);
        let size = usize::try_from(cluster_size).unwrap_or(usize::MAX);
        if !name.is_empty() && size.checked_sub(name_at).is_none_or(|room| room < name.len()) {
            return Err(no_space(cluster_size));
        }
        header.backing_name_len = name_len;
        header.backing_name_offset =
            if name.is_empty() { 0 } else { u64::try_from(name_at).unwrap_or(u64::MAX) };
        let mut out = header.to_bytes()?;
        out.append(&mut tail);
        if !name.is_empty() {
            out.resize(name_at, 0);
            out.extend_from_slice(name);
        }
        Ok(out)
    }

    /// Which bytes of the first cluster count: the header, the extensions with their end marker, the
    /// backing file's name. Of an extension that only spans a place it is the first eight.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub(crate) fn used(first_cluster: &[u8]) -> Result<Vec<Range<usize>>> {
        let preamble = Preamble::parse(first_cluster)?;
        check_whole(&preamble, first_cluster)?;
        let area = preamble.extension_area();
        let mut used = Extensions::places(first_cluster, area.clone())?;
        used.push(0..area.start);
        let name_len = Reader::new(first_cluster, 16, STRUCTURE).u32()?;
        let to_usize = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        let start = to_usize(preamble.backing_name_offset);
        if start > 0 {
            let end = start.saturating_add(to_usize(name_len.into()));
            used.push(start..end.min(first_cluster.len()));
        }
        Ok(used)
    }

    /// The backing file's format, if the image records one.
    pub fn backing_format(&self) -> Option<&[u8]> {
        self.extensions.backing_format()
    }

    /// The external data file's name, if the image records one.
    pub fn data_file_name(&self) -> Option<&[u8]> {
        self.extensions.data_file_name()
    }

    /// Whether the guest's data is in an external file. QEMU opens no image that has a raw data file, and no data
    /// file.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) for such an image.
    pub(crate) fn has_data_file(&self) -> Result<bool> {
        let external = self.header.incompatible.contains(Incompatible::DATA_FILE);
        if !external && self.header.autoclear.contains(Autoclear::DATA_FILE_RAW) {
            let message = "the bit for a raw data file is set, but there is none";
            return Err(Error::corrupt(message).structure(STRUCTURE));
        }
        Ok(external)
    }

    /// The name of the external data file; `None` if the guest's data is in the image. QEMU opens no
    /// image that needs a data file and does not name one, unless it is told where that is.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) for such an image, and as [`has_data_file`](Self::has_data_file).
    pub(crate) fn data_file(&self) -> Result<Option<&[u8]>> {
        if !self.has_data_file()? {
            return Ok(None);
        }
        match self.data_file_name() {
            Some(name) if !name.is_empty() => Ok(Some(name)),
            _ => Err(Error::corrupt("the image has an external data file but does not name it")),
        }
    }

    /// Where the bitmap directory lies, if the autoclear bit says that it counts.
    pub fn bitmaps(&self) -> Option<&BitmapsExtension> {
        self.extensions.bitmaps().filter(|_| self.has_bitmaps())
    }

    fn has_bitmaps(&self) -> bool {
        self.header.autoclear.contains(Autoclear::BITMAPS)
    }
}

fn check_crypto(luks: bool, offset: HostOffset, geometry: Geometry) -> Result<()> {
    let structure = "encryption header extension";
    if !luks {
        return Err(Error::corrupt("found in an image that does not use LUKS").structure(structure));
    }
    if !geometry.is_aligned(offset.0) {
        return Err(Error::corrupt(format!(
            "the LUKS header is at {offset}, expected a multiple of the cluster size of {}",
            geometry.cluster_size()
        ))
        .structure(structure));
    }
    Ok(())
}

/// That header, extensions and backing file's name do not fit the first cluster.
pub(crate) fn no_space(cluster_size: u64) -> Error {
    Error::limit(format!(
        "no space: header, extensions and backing file name do not fit the first cluster of \
         {cluster_size} bytes"
    ))
    .structure(STRUCTURE)
    .hint("use a shorter backing file name or larger clusters")
}

/// A caller that passes less than the first cluster would silently miss extensions.
fn check_whole(preamble: &Preamble, first_cluster: &[u8]) -> Result<()> {
    let (found, expected) = (first_cluster.len(), preamble.cluster_size());
    if u64::try_from(found).unwrap_or(u64::MAX) < expected {
        return Err(Error::usage(format!(
            "found {found} bytes of the first cluster, expected {expected}"
        ))
        .structure(STRUCTURE));
    }
    Ok(())
}

/// Refuses incompatible features that this crate does not know, before anything else of the
/// header is believed.
fn refuse_unknown_features(preamble: &Preamble, first_cluster: &[u8]) -> Result<()> {
    let unknown = preamble.incompatible.unknown();
    if unknown == 0 {
        return Ok(());
    }
    let names = Extensions::parse_feature_names(first_cluster, preamble.extension_area());
    let features: Vec<String> = (0..64u8)
        .filter(|bit| unknown >> bit & 1 == 1)
        .map(|bit| {
            let name =
                names.iter().find(|name| name.kind == FeatureKind::Incompatible && name.bit == bit);
            match name {
                // The name is the image's own text (trap 18).
                Some(name) => {
                    format!("'{}' (bit {bit})", Escaped(&String::from_utf8_lossy(&name.name)))
                }
                None => format!("bit {bit}"),
            }
        })
        .collect();
    Err(at(
        72,
        Error::unsupported(format!("unknown incompatible features: {}", features.join(", "))),
    )
    .hint("a newer program wrote this image; use one that knows these features"))
}

#[cfg(test)]
mod tests;
