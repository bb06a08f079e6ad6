//! What must be known before the rest of the header means anything: version, cluster size,
//! feature bits, the header's length and where the extensions end.

use std::ops::Range;

use super::bytes::Reader;
use super::{Autoclear, Compatible, CompressionType, Geometry, Incompatible, Version};
use crate::{Error, ErrorKind, Result};

pub(super) const STRUCTURE: &str = "header";
/// "QFI" and 0xfb.
pub(super) const MAGIC: u32 = 0x5146_49fb;
pub(super) const V2_LENGTH: u32 = 72;
pub(super) const V3_MIN_LENGTH: u32 = 104;
/// Where the compression type's byte ends, if the header is that long.
pub(super) const COMPRESSION_END: u32 = 105;

/// The fields whose meaning no feature bit can change.
#[derive(Debug, Clone, Copy)]
pub(super) struct Preamble {
    pub(super) version: Version,
    pub(super) cluster_bits: u32,
    pub(super) backing_name_offset: u64,
    pub(super) incompatible: Incompatible,
    pub(super) compatible: Compatible,
    pub(super) autoclear: Autoclear,
    pub(super) refcount_order: u32,
    pub(super) header_length: u32,
    pub(super) compression_type: CompressionType,
}

impl Preamble {
    /// Reads and checks them, in QEMU's order.
    pub(super) fn parse(first_cluster: &[u8]) -> Result<Self> {
        let (version, cluster_bits) = parse_version(first_cluster)?;
        let mut preamble = Self {
            version,
            cluster_bits,
            backing_name_offset: Reader::new(first_cluster, 8, STRUCTURE).u64()?,
            incompatible: Incompatible::empty(),
            compatible: Compatible::empty(),
            autoclear: Autoclear::empty(),
            refcount_order: 4,
            header_length: V2_LENGTH,
            compression_type: CompressionType::Zlib,
        };
        // What follows byte 72 of a version 2 header is not header (traps 14, 15).
        if version == Version::V3 {
            preamble.parse_v3_fields(first_cluster)?;
        }
        preamble.check_bounds()?;
        preamble.parse_compression_type(first_cluster)?;
        Ok(preamble)
    }

    fn parse_v3_fields(&mut self, first_cluster: &[u8]) -> Result<()> {
        let mut fields = Reader::new(first_cluster, 72, STRUCTURE);
        self.incompatible = Incompatible::from_bits_retain(fields.u64()?);
        self.compatible = Compatible::from_bits_retain(fields.u64()?);
        self.autoclear = Autoclear::from_bits_retain(fields.u64()?);
        self.refcount_order = fields.u32()?;
        self.header_length = fields.u32()?;
        if self.header_length < V3_MIN_LENGTH {
            return Err(corrupt(
                100,
                format!(
                    "header length is {}, expected at least {V3_MIN_LENGTH}",
                    self.header_length
                ),
            ));
        }
        Ok(())
    }

    fn check_bounds(&self) -> Result<()> {
        let cluster_size = self.cluster_size();
        if u64::from(self.header_length) > cluster_size {
            return Err(corrupt(
                100,
                format!(
                    "header length is {}, expected at most the cluster size of {cluster_size}",
                    self.header_length
                ),
            ));
        }
        if self.backing_name_offset > cluster_size {
            return Err(corrupt(
                8,
                format!(
                    "the backing file's name starts at {:#x}, expected at most the cluster size \
                     of {cluster_size}",
                    self.backing_name_offset
                ),
            ));
        }
        Ok(())
    }

    /// The compression type exists only in headers that are long enough (trap 4), and agrees with
    /// its feature bit in both directions (trap 5).
    fn parse_compression_type(&mut self, first_cluster: &[u8]) -> Result<()> {
        let number = if self.header_length >= COMPRESSION_END {
            Reader::new(first_cluster, 104, STRUCTURE).u8()?
        } else {
            0
        };
        self.compression_type = CompressionType::parse(number).map_err(|error| at(104, error))?;
        let bit = self.incompatible.contains(Incompatible::COMPRESSION_TYPE);
        if bit != (self.compression_type != CompressionType::Zlib) {
            return Err(corrupt(
                104,
                format!(
                    "compression type is {}, but its incompatible feature bit is {}",
                    self.compression_type.as_str(),
                    if bit { "set" } else { "not set" }
                ),
            ));
        }
        Ok(())
    }

    /// The bytes where extensions may lie: up to the backing file's name if there is one, even an
    /// empty one, else to the end of the first cluster (trap 6). Empty if the name comes first.
    pub(super) fn extension_area(&self) -> Range<usize> {
        let end = match self.backing_name_offset {
            0 => self.cluster_size(),
            offset => offset,
        };
        let to_usize = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        to_usize(self.header_length.into())..to_usize(end)
    }

    pub(super) fn cluster_size(&self) -> u64 {
        Geometry::nearest(self.cluster_bits, false).cluster_size()
    }
}

/// Version and cluster bits.
pub(super) fn parse_version(prefix: &[u8]) -> Result<(Version, u32)> {
    let mut fields = Reader::new(prefix, 0, STRUCTURE);
    let magic = fields.u32().map_err(|_| {
        let len = prefix.len();
        let message = format!(
            "not a QCOW2 image: found {len} bytes, expected a header of at least {V2_LENGTH}"
        );
        Error::new(ErrorKind::WrongFormat, message).structure(STRUCTURE)
    })?;
    if magic != MAGIC {
        let message =
            format!("not a QCOW2 image: found magic {magic:#010x}, expected {MAGIC:#010x}");
        return Err(at(0, Error::new(ErrorKind::WrongFormat, message)));
    }
    let version = Version::parse(fields.u32()?).map_err(|error| at(4, error))?;
    fields.take(12)?;
    let cluster_bits = fields.u32()?;
    Geometry::new(cluster_bits, false).map_err(|error| at(20, error))?;
    Ok((version, cluster_bits))
}

/// A header field at byte `offset` breaks the rules.
pub(super) fn corrupt(offset: u64, message: String) -> Error {
    at(offset, Error::corrupt(message))
}

/// Places `error` at byte `offset` of the header.
pub(super) fn at(offset: u64, error: Error) -> Error {
    error.structure(STRUCTURE).host_offset(offset)
}
