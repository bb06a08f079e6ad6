//! The header's fields. [`HeaderArea`](super::HeaderArea) adds what follows them.

use super::bytes::{Put, Reader};
use super::preamble::{
    COMPRESSION_END, MAGIC, Preamble, STRUCTURE, V2_LENGTH, V3_MIN_LENGTH, at, corrupt,
    parse_version,
};
use super::{
    Autoclear, Compatible, CompressionType, CryptMethod, Geometry, HostOffset, Incompatible,
    MAX_FILE_BYTES, MAX_L1_BYTES, MAX_REFCOUNT_TABLE_BYTES, MAX_SNAPSHOTS, RefcountWidth, Version,
};
use crate::{Error, Remedy, Result};

pub(crate) mod field;

pub(crate) use field::HeaderPatch;

/// Length of the header of a new version 3 image.
const V3_LENGTH: u32 = 112;
/// Smallest snapshot table entry: its fixed fields.
const SNAPSHOT_FIXED_BYTES: u64 = 40;

/// The header's fields, checked one by one and against each other.
///
/// ```
/// use qcow::format::{Geometry, Header, HostOffset, Version};
/// let mut header = Header::new(Version::V3, Geometry::new(16, false)?, 10 << 20);
/// header.l1_entries = 1;
/// header.l1_table_offset = HostOffset(0x30000);
/// header.refcount_table_offset = HostOffset(0x10000);
/// header.refcount_table_clusters = 1;
/// let bytes = header.to_bytes()?;
/// assert_eq!(bytes.len(), 112);
/// assert_eq!(Header::parse(&bytes)?, header);
/// # Ok::<(), qcow::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Version of the format.
    pub version: Version,
    /// Where the backing file's name starts, in bytes; 0 if there is none. Before it the
    /// extensions end, even if the name is empty.
    pub backing_name_offset: u64,
    /// Length of the backing file's name in bytes.
    pub backing_name_len: u32,
    /// Binary logarithm of the cluster size.
    pub cluster_bits: u32,
    /// Size of the guest's disk in bytes, as stored; see [`virtual_size`](Self::virtual_size).
    pub size: u64,
    /// How guest data is encrypted.
    pub crypt_method: CryptMethod,
    /// Entries in the active L1 table.
    pub l1_entries: u32,
    /// Where the active L1 table lies.
    pub l1_table_offset: HostOffset,
    /// Where the refcount table lies.
    pub refcount_table_offset: HostOffset,
    /// Length of the refcount table in clusters.
    pub refcount_table_clusters: u32,
    /// Entries in the snapshot table.
    pub snapshot_count: u32,
    /// Where the snapshot table lies.
    pub snapshots_offset: HostOffset,
    /// Incompatible feature bits; empty in version 2.
    pub incompatible: Incompatible,
    /// Compatible feature bits; empty in version 2.
    pub compatible: Compatible,
    /// Autoclear feature bits; empty in version 2.
    pub autoclear: Autoclear,
    /// Binary logarithm of the refcounts' width in bits; 4 in version 2 (trap 15).
    pub refcount_order: u32,
    /// Length of the header in bytes, where the extensions start; 72 in version 2.
    pub header_length: u32,
    /// How compressed clusters are compressed.
    pub compression_type: CompressionType,
    /// The header's bytes from 105 on, which this crate does not know but keeps (trap 3).
    pub unknown_tail: Vec<u8>,
}

impl Header {
    /// Bytes that [`peek`](Self::peek) needs.
    pub const PEEK_BYTES: usize = 24;

    /// A header for a new image, with zlib compression, 16-bit refcounts and no tables yet.
    ///
    /// `size` is in bytes. Extended L2 entries in `geometry` set their feature bit.
    pub fn new(version: Version, geometry: Geometry, size: u64) -> Self {
        let (header_length, tail) = match version {
            Version::V2 => (V2_LENGTH, 0),
            Version::V3 => (V3_LENGTH, 7),
        };
        let mut incompatible = Incompatible::empty();
        incompatible.set(Incompatible::EXTENDED_L2, geometry.extended_l2());
        Self {
            version,
            backing_name_offset: 0,
            backing_name_len: 0,
            cluster_bits: geometry.cluster_bits(),
            size,
            crypt_method: CryptMethod::None,
            l1_entries: 0,
            l1_table_offset: HostOffset(0),
            refcount_table_offset: HostOffset(0),
            refcount_table_clusters: 0,
            snapshot_count: 0,
            snapshots_offset: HostOffset(0),
            incompatible,
            compatible: Compatible::empty(),
            autoclear: Autoclear::empty(),
            refcount_order: 4,
            header_length,
            compression_type: CompressionType::Zlib,
            unknown_tail: vec![0; tail],
        }
    }

    /// Version and cluster bits from the first [`PEEK_BYTES`](Self::PEEK_BYTES) bytes of a file:
    /// enough to know how long the first cluster is.
    ///
    /// # Errors
    /// [`WrongFormat`](crate::ErrorKind::WrongFormat) if this is no QCOW2 image,
    /// [`Corrupt`](crate::ErrorKind::Corrupt) if its cluster size is out of range,
    /// [`Unsupported`](crate::ErrorKind::Unsupported) for versions other than 2 and 3.
    pub fn peek(prefix: &[u8]) -> Result<(Version, u32)> {
        parse_version(prefix)
    }

    /// Parses and checks the fields at the start of `first_cluster`.
    ///
    /// Unknown incompatible bits are kept, not refused: [`HeaderArea`](super::HeaderArea) does
    /// that, because it can name them.
    ///
    /// # Errors
    /// As [`peek`](Self::peek), and [`Corrupt`](crate::ErrorKind::Corrupt) or
    /// [`Limit`](crate::ErrorKind::Limit) for the first field that QEMU would refuse.
    pub fn parse(first_cluster: &[u8]) -> Result<Self> {
        Self::after(&Preamble::parse(first_cluster)?, first_cluster)
    }

    /// Parses and checks what the preamble left.
    pub(super) fn after(preamble: &Preamble, first_cluster: &[u8]) -> Result<Self> {
        let extended_l2 = preamble.incompatible.contains(Incompatible::EXTENDED_L2);
        Geometry::new(preamble.cluster_bits, extended_l2).map_err(|error| at(20, error))?;
        RefcountWidth::new(preamble.refcount_order).map_err(|error| at(96, error))?;
        let mut fields = Reader::new(first_cluster, 16, STRUCTURE);
        let backing_name_len = fields.u32()?;
        fields.take(4)?;
        let size = fields.u64()?;
        let crypt_method = CryptMethod::parse(fields.u32()?).map_err(|error| at(32, error))?;
        let header = Self {
            version: preamble.version,
            backing_name_offset: preamble.backing_name_offset,
            backing_name_len,
            cluster_bits: preamble.cluster_bits,
            size,
            crypt_method,
            l1_entries: fields.u32()?,
            l1_table_offset: HostOffset(fields.u64()?),
            refcount_table_offset: HostOffset(fields.u64()?),
            refcount_table_clusters: fields.u32()?,
            snapshot_count: fields.u32()?,
            snapshots_offset: HostOffset(fields.u64()?),
            incompatible: preamble.incompatible,
            compatible: preamble.compatible,
            autoclear: preamble.autoclear,
            refcount_order: preamble.refcount_order,
            header_length: preamble.header_length,
            compression_type: preamble.compression_type,
            unknown_tail: unknown_tail(preamble.header_length, first_cluster)?,
        };
        header.check_tables()?;
        Ok(header)
    }

    /// The tables' places and lengths. Whether they lie within the file, the caller must see.
    fn check_tables(&self) -> Result<()> {
        let cluster_size = self.geometry().cluster_size();
        if self.refcount_table_clusters == 0 {
            return Err(corrupt(
                56,
                "the refcount table has 0 clusters, expected at least 1".into(),
            )
            .hint(Remedy::Repair));
        }
        self.check_table(&Table {
            name: "refcount table",
            field: 48,
            offset: self.refcount_table_offset,
            entries: self.refcount_table_clusters,
            entry_bytes: cluster_size,
            max_entries: MAX_REFCOUNT_TABLE_BYTES >> self.geometry().cluster_bits(),
        })?;
        let snapshots = self.check_table(&Table {
            name: "snapshot table",
            field: 64,
            offset: self.snapshots_offset,
            entries: self.snapshot_count,
            entry_bytes: SNAPSHOT_FIXED_BYTES,
            max_entries: MAX_SNAPSHOTS.into(),
        });
        let too_many = self.snapshot_count > MAX_SNAPSHOTS;
        snapshots.map_err(|error| match too_many {
            true => error.hint(Remedy::DropSnapshots),
            false => error,
        })?;
        self.check_table(&Table {
            name: "L1 table",
            field: 40,
            offset: self.l1_table_offset,
            entries: self.l1_entries,
            entry_bytes: 8,
            max_entries: MAX_L1_BYTES >> 3,
        })?;
        let needed = self.geometry().l1_entries_for(self.size);
        if u64::from(self.l1_entries) < needed {
            return Err(corrupt(
                36,
                format!(
                    "the L1 table has {} entries, expected at least {needed} for a disk of {} bytes",
                    self.l1_entries, self.size
                ),
            ));
        }
        Ok(())
    }

    fn check_table(&self, table: &Table) -> Result<()> {
        let Table { name, field, offset, entries, entry_bytes, max_entries } = *table;
        let entries = u64::from(entries);
        if entries > max_entries {
            return Err(at(
                field,
                Error::limit(format!(
                    "the {name} has {entries} entries of {entry_bytes} bytes, expected at most \
                     {max_entries}"
                )),
            ));
        }
        let end = entries.checked_mul(entry_bytes).and_then(|len| len.checked_add(offset.0));
        if end.is_none_or(|end| end > MAX_FILE_BYTES) {
            return Err(corrupt(
                field,
                format!("the {name} at {offset} with {entries} entries ends beyond 2^63 bytes"),
            ));
        }
        if !self.geometry().is_aligned(offset.0) {
            return Err(corrupt(
                field,
                format!(
                    "the {name} is at {offset}, expected a multiple of the cluster size of {}",
                    self.geometry().cluster_size()
                ),
            ));
        }
        Ok(())
    }

    /// Cluster size and L2 entry width. Values out of range, which parsing refuses, count as the
    /// nearest valid ones.
    pub fn geometry(&self) -> Geometry {
        Geometry::nearest(self.cluster_bits, self.incompatible.contains(Incompatible::EXTENDED_L2))
    }

    /// Size of the guest's disk in bytes: the stored size rounded down to sectors (trap 26).
    pub fn virtual_size(&self) -> u64 {
        self.size & !511
    }

    /// Width of the refcounts. An order out of range, which parsing refuses, counts as 6.
    pub fn refcounts(&self) -> RefcountWidth {
        RefcountWidth::nearest(self.refcount_order)
    }

    /// The header's bytes, exactly `header_length` of them.
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage) if a field cannot be written: a version 2 header with
    /// version 3 features, or `header_length` against `unknown_tail`.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        self.check_writable()?;
        let mut out = Vec::with_capacity(self.header_length.try_into().unwrap_or_default());
        out.put_u32(MAGIC);
        out.put_u32(self.version.number());
        out.put_u64(self.backing_name_offset);
        out.put_u32(self.backing_name_len);
        out.put_u32(self.cluster_bits);
        out.put_u64(self.size);
        out.put_u32(self.crypt_method.number());
        out.put_u32(self.l1_entries);
        out.put_u64(self.l1_table_offset.0);
        out.put_u64(self.refcount_table_offset.0);
        out.put_u32(self.refcount_table_clusters);
        out.put_u32(self.snapshot_count);
        out.put_u64(self.snapshots_offset.0);
        if self.version == Version::V3 {
            out.put_u64(self.incompatible.bits());
            out.put_u64(self.compatible.bits());
            out.put_u64(self.autoclear.bits());
            out.put_u32(self.refcount_order);
            out.put_u32(self.header_length);
            if self.header_length >= COMPRESSION_END {
                out.push(self.compression_type.number());
                out.extend_from_slice(&self.unknown_tail);
            }
        }
        Ok(out)
    }

    fn check_writable(&self) -> Result<()> {
        let usage = |message: String| Err(Error::usage(message).structure(STRUCTURE));
        Geometry::new(self.cluster_bits, self.incompatible.contains(Incompatible::EXTENDED_L2))?;
        RefcountWidth::new(self.refcount_order)?;
        let zstd = self.compression_type != CompressionType::Zlib;
        if self.version == Version::V2 {
            let features =
                self.incompatible.bits() | self.compatible.bits() | self.autoclear.bits();
            if features != 0 || self.refcount_order != 4 || zstd {
                return usage(
                    "version 2 has no feature bits, 16-bit refcounts and zlib only".into(),
                );
            }
        } else if zstd != self.incompatible.contains(Incompatible::COMPRESSION_TYPE) {
            return usage("the compression type and its feature bit disagree".into());
        }
        let fixed = match self.version {
            Version::V2 => V2_LENGTH,
            Version::V3 if self.header_length == V3_MIN_LENGTH && !zstd => V3_MIN_LENGTH,
            Version::V3 => COMPRESSION_END,
        };
        let len =
            u64::from(fixed).saturating_add(self.unknown_tail.len().try_into().unwrap_or(u64::MAX));
        if len != u64::from(self.header_length) {
            return usage(format!(
                "header length is {}, but the fields and the unknown tail take {len} bytes",
                self.header_length
            ));
        }
        Ok(())
    }
}

/// Where and how long a table is, and how long it may be.
struct Table {
    name: &'static str,
    /// Where the offset's field is in the header.
    field: u64,
    offset: HostOffset,
    entries: u32,
    entry_bytes: u64,
    max_entries: u64,
}

fn unknown_tail(header_length: u32, first_cluster: &[u8]) -> Result<Vec<u8>> {
    let to_usize = |at: u32| usize::try_from(at).unwrap_or(usize::MAX);
    let start = to_usize(COMPRESSION_END.min(header_length));
    let len = to_usize(header_length).saturating_sub(start);
    Ok(Reader::new(first_cluster, start, STRUCTURE).take(len)?.to_vec())
}

#[cfg(test)]
pub(super) mod tests;
