//! Header extensions: typed records between the header and the backing file's name.

use std::ops::Range;

use super::bytes::{Put, Reader, len_u32, until_nul};
use super::{
    FeatureName, Geometry, HostOffset, MAX_BACKING_FORMAT, MAX_BITMAP_DIRECTORY_BYTES, MAX_BITMAPS,
};
use crate::{Error, Result};

const STRUCTURE: &str = "header extension";
const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const FEATURE_NAMES: u32 = 0x6803_f857;
pub(super) const BITMAPS: u32 = 0x2385_2875;
const CRYPTO_HEADER: u32 = 0x0537_be77;
const DATA_FILE: u32 = 0x4441_5441;
/// A type that nobody knows: its data is a place that must stay as it is while the others change.
pub(crate) const SPANNING_EXTENSION: u32 = 0x5350_414e;

/// One header extension.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Extension {
    /// Name of the backing file's format, for example `raw`.
    BackingFormat(Vec<u8>),
    /// Names of feature bits, for who does not know them.
    FeatureNames(Vec<FeatureName>),
    /// Where the bitmap directory lies. Without its autoclear bit it must be ignored.
    Bitmaps(BitmapsExtension),
    /// Where the LUKS header lies.
    CryptoHeader {
        /// Offset in the image file, in bytes.
        offset: HostOffset,
        /// Length in bytes.
        len: u64,
    },
    /// Name of the external data file.
    DataFile(Vec<u8>),
    /// An extension that this crate does not know, kept for the next writer (trap 8). Also a
    /// bitmaps extension with reserved bytes set, which counts for nothing unless the autoclear
    /// bit says that it does, and then the image is refused.
    Unknown {
        /// Its type.
        magic: u32,
        /// Its data, without padding.
        data: Vec<u8>,
    },
}

/// Where the bitmap directory lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BitmapsExtension {
    /// Bitmaps in the directory.
    pub count: u32,
    /// Length of the directory in bytes.
    pub directory_size: u64,
    /// Where the directory lies.
    pub directory_offset: HostOffset,
}

/// All extensions, in the order of the file. Where one repeats, the last counts (trap 9).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extensions(pub Vec<Extension>);

impl Extensions {
    /// Parses the extensions in the bytes `area` of `first_cluster`.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) for an extension that runs over the end of the area
    /// or has a length that its type cannot have.
    pub(super) fn parse(first_cluster: &[u8], area: Range<usize>) -> Result<Self> {
        RawExtensions::new(first_cluster, area)
            .map(|raw| raw.and_then(Extension::parse))
            .collect::<Result<_>>()
            .map(Self)
    }

    /// Where the extensions lie, one by one, and the end marker; of one that spans a place, its first eight
    /// bytes.
    pub(super) fn places(first_cluster: &[u8], area: Range<usize>) -> Result<Vec<Range<usize>>> {
        let (mut places, mut at) = (Vec::new(), area.start);
        for raw in RawExtensions::new(first_cluster, area.clone()) {
            let raw = raw?;
            let data = at.saturating_add(8);
            let end = data.saturating_add(raw.data.len().next_multiple_of(8)).min(area.end);
            places.push(at..if raw.magic == SPANNING_EXTENSION { data } else { end });
            at = end;
        }
        places.push(at..at.saturating_add(8).min(area.end.max(at)));
        Ok(places)
    }

    /// Where the extensions end, if the first bytes of the cluster tell.
    pub(super) fn end(first_bytes: &[u8], area: Range<usize>) -> Option<usize> {
        let seen = area.start..area.end.min(first_bytes.len());
        let whole = seen.end == area.end;
        let mut raw = RawExtensions::new(first_bytes, seen);
        while raw.at < raw.area.len() {
            if raw.read().ok()?.magic == END {
                return Some(area.start.saturating_add(raw.at));
            }
        }
        whole.then_some(area.end)
    }

    /// The names of feature bits, as far as the area can be read: the image is about to be refused,
    /// and a broken extension must not hide why.
    pub(super) fn parse_feature_names(
        first_cluster: &[u8],
        area: Range<usize>,
    ) -> Vec<FeatureName> {
        RawExtensions::new(first_cluster, area)
            .map_while(Result::ok)
            .filter(|raw| raw.magic == FEATURE_NAMES)
            .last()
            .map(|raw| FeatureName::parse_loosely(raw.data))
            .unwrap_or_default()
    }

    /// The backing file's format, if one is recorded.
    pub fn backing_format(&self) -> Option<&[u8]> {
        self.last(|extension| match extension {
            Extension::BackingFormat(name) => Some(until_nul(name)),
            _ => None,
        })
        .filter(|name| !name.is_empty())
    }

    /// The external data file's name, if one is recorded; it may be empty.
    pub fn data_file_name(&self) -> Option<&[u8]> {
        self.last(|extension| match extension {
            Extension::DataFile(name) => Some(until_nul(name)),
            _ => None,
        })
    }

    /// The bitmap directory's place, whether or not the autoclear bit says that it counts.
    pub fn bitmaps(&self) -> Option<&BitmapsExtension> {
        self.last(|extension| match extension {
            Extension::Bitmaps(bitmaps) => Some(bitmaps),
            _ => None,
        })
    }

    /// Offset and length of the LUKS header.
    pub fn crypto_header(&self) -> Option<(HostOffset, u64)> {
        self.last(|extension| match extension {
            Extension::CryptoHeader { offset, len } => Some((*offset, *len)),
            _ => None,
        })
    }

    fn last<'a, T>(&'a self, pick: impl Fn(&'a Extension) -> Option<T>) -> Option<T> {
        self.0.iter().rev().find_map(pick)
    }

    /// Appends all extensions to `out`, without an end marker.
    pub(super) fn write(&self, out: &mut Vec<u8>) -> Result<()> {
        self.0.iter().try_for_each(|extension| extension.write(out))
    }

    /// The table of names that new version 3 images get if their clusters are larger than 4 KiB
    /// (trap 12).
    pub fn standard_feature_names() -> Extension {
        Extension::FeatureNames(FeatureName::standard())
    }
}

impl Extension {
    fn parse(raw: RawExtension<'_>) -> Result<Self> {
        let RawExtension { magic, data, offset } = raw;
        let exactly = |expected: usize, what: &str| {
            if data.len() == expected {
                return Ok(());
            }
            Err(corrupt(
                offset,
                format!("the {what} extension has {} bytes, expected {expected}", data.len()),
            ))
        };
        let mut fields = Reader::new(data, 0, STRUCTURE);
        Ok(match magic {
            BACKING_FORMAT => {
                check_backing_format(data).map_err(|error| error.host_offset(offset))?;
                Self::BackingFormat(data.to_vec())
            }
            FEATURE_NAMES => Self::FeatureNames(FeatureName::parse_table(data)),
            BITMAPS => {
                exactly(24, "bitmaps")?;
                let count = fields.u32()?;
                if fields.u32()? != 0 {
                    return Ok(Self::Unknown { magic, data: data.to_vec() });
                }
                Self::Bitmaps(BitmapsExtension {
                    count,
                    directory_size: fields.u64()?,
                    directory_offset: HostOffset(fields.u64()?),
                })
            }
            CRYPTO_HEADER => {
                exactly(16, "encryption header")?;
                Self::CryptoHeader { offset: HostOffset(fields.u64()?), len: fields.u64()? }
            }
            DATA_FILE => Self::DataFile(data.to_vec()),
            _ => Self::Unknown { magic, data: data.to_vec() },
        })
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<()> {
        let mut data = Vec::new();
        let magic = match self {
            Self::BackingFormat(name) => {
                check_backing_format(name)?;
                data.extend_from_slice(name);
                BACKING_FORMAT
            }
            Self::FeatureNames(names) => {
                names.iter().try_for_each(|name| name.write(&mut data))?;
                FEATURE_NAMES
            }
            Self::Bitmaps(bitmaps) => {
                data.put_u32(bitmaps.count);
                data.put_u32(0);
                data.put_u64(bitmaps.directory_size);
                data.put_u64(bitmaps.directory_offset.0);
                BITMAPS
            }
            Self::CryptoHeader { offset, len } => {
                data.put_u64(offset.0);
                data.put_u64(*len);
                CRYPTO_HEADER
            }
            Self::DataFile(name) => {
                data.extend_from_slice(name);
                DATA_FILE
            }
            Self::Unknown { magic, data: unknown } => {
                data.extend_from_slice(unknown);
                *magic
            }
        };
        out.put_u32(magic);
        out.put_u32(len_u32(data.len(), "a header extension")?);
        data.pad_to_8();
        out.append(&mut data);
        Ok(())
    }
}

impl BitmapsExtension {
    /// The rules for an extension whose autoclear bit is set.
    pub(super) fn check(&self, geometry: Geometry) -> Result<()> {
        let error = |message: String| Err(Error::corrupt(message).structure("bitmaps extension"));
        let limit = |message: String| Err(Error::limit(message).structure("bitmaps extension"));
        if self.count > MAX_BITMAPS {
            return limit(format!("found {} bitmaps, expected at most {MAX_BITMAPS}", self.count));
        }
        if self.count == 0 {
            return error("found 0 bitmaps, expected at least 1".into());
        }
        if !geometry.is_aligned(self.directory_offset.0) {
            return error(format!(
                "the bitmap directory is at {}, expected a multiple of the cluster size of {}",
                self.directory_offset,
                geometry.cluster_size()
            ));
        }
        if self.directory_size > MAX_BITMAP_DIRECTORY_BYTES {
            return limit(format!(
                "the bitmap directory has {} bytes, expected at most {MAX_BITMAP_DIRECTORY_BYTES}",
                self.directory_size
            ));
        }
        Ok(())
    }
}

/// An extension's type and data, and where it starts in the file.
struct RawExtension<'a> {
    magic: u32,
    data: &'a [u8],
    offset: u64,
}

/// Walks an area up to its end marker or its end. An error ends the walk.
struct RawExtensions<'a> {
    area: &'a [u8],
    /// Where the area starts in the file.
    start: usize,
    at: usize,
}

impl<'a> RawExtensions<'a> {
    fn new(first_cluster: &'a [u8], area: Range<usize>) -> Self {
        let start = area.start;
        Self { area: first_cluster.get(area).unwrap_or_default(), start, at: 0 }
    }

    fn read(&mut self) -> Result<RawExtension<'a>> {
        let offset = u64::try_from(self.start.saturating_add(self.at)).unwrap_or(u64::MAX);
        let mut fields = Reader::new(self.area, self.at, STRUCTURE);
        let too_long = |error: Error| error.host_offset(offset);
        let magic = fields.u32().map_err(too_long)?;
        let len = fields.u32().map_err(too_long)?;
        let left = self.area.len().saturating_sub(fields.at());
        let data = fields.take(usize::try_from(len).unwrap_or(usize::MAX)).map_err(|_| {
            corrupt(
                offset,
                format!("extension {magic:#010x} has {len} bytes, expected at most {left}"),
            )
        })?;
        // The length is not padded, the data is (trap 7).
        self.at =
            fields.at().saturating_add(data.len().next_multiple_of(8).saturating_sub(data.len()));
        Ok(RawExtension { magic, data, offset })
    }
}

impl<'a> Iterator for RawExtensions<'a> {
    type Item = Result<RawExtension<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.area.len() {
            return None;
        }
        let item = self.read();
        if !matches!(&item, Ok(raw) if raw.magic != END) {
            self.at = self.area.len();
        }
        match item {
            Ok(raw) if raw.magic == END => None,
            item => Some(item),
        }
    }
}

fn check_backing_format(name: &[u8]) -> Result<()> {
    if name.len() > MAX_BACKING_FORMAT {
        return Err(Error::corrupt(format!(
            "the backing format has {} bytes, expected at most {MAX_BACKING_FORMAT}",
            name.len()
        ))
        .structure(STRUCTURE));
    }
    Ok(())
}

fn corrupt(offset: u64, message: String) -> Error {
    Error::corrupt(message).structure(STRUCTURE).host_offset(offset)
}
