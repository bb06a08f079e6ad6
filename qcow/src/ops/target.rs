//! What a new image is to look like: shared by `create` and `flatten`.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use serde::Serialize;

use crate::codec::is_zero;
use crate::format::{
    Autoclear, Compatible, CompressionType, EntryRules, Extension, Extensions, Geometry, Header,
    HeaderArea, HostOffset, Incompatible, RefcountWidth, Version, whole_sectors,
};
use crate::io::{OutputFile, Unnamed};
use crate::layout::Finished;
use crate::setters::setters;
use crate::{Error, Escaped, Result};

/// The usual block of a file system, in bytes.
const BLOCK: usize = 4096;

/// How much of a new image gets its space at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Preallocation {
    /// Nothing beyond what the format needs.
    #[default]
    Off,
    /// All L2 tables, pointing at clusters that are holes in the file (qcow2 only).
    Metadata,
    /// Space reserved in the file system, not written.
    Falloc,
    /// Zeros written everywhere.
    Full,
}

impl Preallocation {
    /// The name that `qemu-img create` has for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Metadata => "metadata",
            Self::Falloc => "falloc",
            Self::Full => "full",
        }
    }
}

/// The format of a new image and its options.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TargetOptions {
    /// A QCOW2 image.
    Qcow2(Qcow2Options),
    /// A raw image.
    Raw(RawOptions),
}

impl Default for TargetOptions {
    fn default() -> Self {
        Self::Qcow2(Qcow2Options::default())
    }
}

impl From<Qcow2Options> for TargetOptions {
    fn from(options: Qcow2Options) -> Self {
        Self::Qcow2(options)
    }
}

impl From<RawOptions> for TargetOptions {
    fn from(options: RawOptions) -> Self {
        Self::Raw(options)
    }
}

/// Options of a new raw image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RawOptions {
    /// [`Preallocation::Metadata`] is refused.
    pub preallocation: Preallocation,
    /// [`create`](super::create::create) writes zeros to the first 4 KiB, as QEMU does, instead of leaving a hole. Programs find
    /// the alignment that `O_DIRECT` needs by reads there, and some file systems let any read of a hole pass.
    pub first_block: bool,
}

setters!(RawOptions {
    preallocation: Preallocation,
    first_block: bool,
} into {});

/// Options of a new QCOW2 image; the defaults are QEMU's.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Qcow2Options {
    /// Cluster size in bytes: a power of two, 512 to 2 MiB.
    pub cluster_size: u64,
    /// Version 2 (`compat=0.10`) or 3 (`compat=1.1`).
    pub version: Version,
    /// Width of a refcount: 1, 2, 4, 8, 16, 32 or 64 bits.
    pub refcount_bits: u32,
    /// 16-byte L2 entries with 32 subclusters per cluster.
    pub extended_l2: bool,
    /// Sets the lazy-refcounts compatible bit.
    pub lazy_refcounts: bool,
    /// How much gets its space at once.
    pub preallocation: Preallocation,
    /// How compressed clusters are (or would be) compressed.
    pub compression_type: CompressionType,
    /// Name of an external data file, as it will stand in the header.
    pub data_file: Option<PathBuf>,
    /// The data file alone is to be a valid raw image of the disk.
    pub data_file_raw: bool,
}

setters!(Qcow2Options {
    cluster_size: u64,
    version: Version,
    refcount_bits: u32,
    extended_l2: bool,
    lazy_refcounts: bool,
    preallocation: Preallocation,
    compression_type: CompressionType,
    data_file_raw: bool,
} into {
    data_file: Option<PathBuf>,
});

impl Default for Qcow2Options {
    fn default() -> Self {
        Self {
            cluster_size: 65536,
            version: Version::V3,
            refcount_bits: 16,
            extended_l2: false,
            lazy_refcounts: false,
            preallocation: Preallocation::Off,
            compression_type: CompressionType::Zlib,
            data_file: None,
            data_file_raw: false,
        }
    }
}

impl Qcow2Options {
    /// Checks that the options go together, as QEMU would, and fills in what follows from others
    /// (a raw data file needs all its metadata).
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage), naming the options.
    pub(crate) fn checked(&self, has_backing: bool) -> Result<Self> {
        let mut options = self.clone();
        let size = self.cluster_size;
        if !size.is_power_of_two() || !(512..=2 << 20).contains(&size) {
            return refused(format!(
                "cluster_size is {size}, expected a power of two from 512 to 2M"
            ));
        }
        if !self.refcount_bits.is_power_of_two() || self.refcount_bits > 64 {
            return refused(format!(
                "refcount_bits is {}, expected 1, 2, 4, 8, 16, 32 or 64",
                self.refcount_bits
            ));
        }
        if self.version == Version::V2 {
            self.fits_version_2()?;
        }
        if self.extended_l2 && size < 16384 {
            return refused("extended_l2 needs a cluster_size of at least 16k");
        }
        if has_backing && self.preallocation != Preallocation::Off && !self.extended_l2 {
            return refused("preallocation over a backing file needs extended_l2=on");
        }
        if self.data_file_raw {
            if self.data_file.is_none() {
                return refused("data_file_raw needs data_file");
            }
            if has_backing {
                return refused("data_file_raw and a backing file exclude each other");
            }
            if options.preallocation == Preallocation::Off {
                options.preallocation = Preallocation::Metadata;
            }
        }
        Ok(options)
    }

    fn fits_version_2(&self) -> Result<()> {
        let too_new = [
            (self.refcount_bits != 16, "refcount_bits other than 16"),
            (self.lazy_refcounts, "lazy_refcounts"),
            (self.extended_l2, "extended_l2"),
            (self.compression_type != CompressionType::Zlib, "compression_type other than zlib"),
            (self.data_file.is_some(), "data_file"),
        ];
        match too_new.iter().find(|(used, _)| *used) {
            Some((_, what)) => refused(format!("{what} needs compat=1.1")),
            None => Ok(()),
        }
    }

    /// Geometry, after [`checked`](Self::checked).
    pub(crate) fn geometry(&self) -> Result<Geometry> {
        Geometry::new(self.cluster_size.trailing_zeros(), self.extended_l2)
    }

    /// Refcount width, after [`checked`](Self::checked).
    pub(crate) fn refcount_width(&self) -> Result<RefcountWidth> {
        RefcountWidth::new(self.refcount_bits.trailing_zeros())
    }

    /// How entries of the new image are to be written.
    pub(crate) fn rules(&self) -> Result<EntryRules> {
        Ok(EntryRules {
            geometry: self.geometry()?,
            version: self.version,
            data_file: self.data_file.is_some(),
        })
    }

    /// Header and extensions of an image that was laid out as `finished` says.
    pub(crate) fn header_area(
        &self,
        virtual_size: u64,
        finished: &Finished,
        backing: Option<(&[u8], &str)>,
    ) -> Result<HeaderArea> {
        let geometry = self.geometry()?;
        let mut header = Header::new(self.version, geometry, virtual_size);
        header.l1_entries = finished.l1_entries;
        header.l1_table_offset = finished.l1_offset;
        header.refcount_table_offset = finished.refcount_table_offset;
        header.refcount_table_clusters = finished.refcount_table_clusters;
        header.refcount_order = self.refcount_bits.trailing_zeros();
        header.compression_type = self.compression_type;
        let incompatible = &mut header.incompatible;
        incompatible.set(Incompatible::EXTENDED_L2, self.extended_l2);
        incompatible.set(Incompatible::DATA_FILE, self.data_file.is_some());
        incompatible
            .set(Incompatible::COMPRESSION_TYPE, self.compression_type != CompressionType::Zlib);
        header.compatible.set(Compatible::LAZY_REFCOUNTS, self.lazy_refcounts);
        header.autoclear.set(Autoclear::DATA_FILE_RAW, self.data_file_raw);
        let mut extensions = Vec::new();
        if let Some((_, format)) = backing {
            extensions.push(Extension::BackingFormat(format.as_bytes().to_vec()));
        }
        if let Some(data_file) = &self.data_file {
            extensions.push(Extension::DataFile(data_file.as_os_str().as_bytes().to_vec()));
        }
        // Small clusters have no room for both the table and a backing name (trap 12).
        if self.version == Version::V3 && self.cluster_size > 4096 {
            extensions.push(Extensions::standard_feature_names());
        }
        Ok(HeaderArea {
            header,
            extensions: Extensions(extensions),
            backing_name: backing.map(|(name, _)| name.to_vec()),
        })
    }
}

/// Writes a table of a new image, which reads as zeros so far: zeros at the table's end are left
/// out in whole blocks, and become part of the file when it gets its length.
pub(crate) fn write_table(output: &OutputFile, offset: HostOffset, bytes: &[u8]) -> Result<()> {
    if !output.is_blank() {
        return output.write_at(bytes, offset.0);
    }
    let tail = bytes.rchunks_exact(BLOCK).take_while(|block| is_zero(block)).count();
    let len = bytes.len().saturating_sub(tail.saturating_mul(BLOCK));
    output.write_at(bytes.get(..len).unwrap_or(bytes), offset.0)
}

/// Gives a finished image its name, after the data file that it cannot be without. Both are on the
/// disk before either has its name, and from then on neither is removed. Returns warnings.
pub(crate) fn publish(image: OutputFile, data_file: Option<OutputFile>) -> Result<Vec<String>> {
    let Some(data_file) = data_file else { return image.publish() };
    data_file.sync()?;
    image.sync()?;
    let named = data_file.give_name();
    let mut warnings = match named {
        Ok(warnings) => warnings,
        // It has its name: so may the image.
        Err(unnamed) if unnamed.kept.is_none() => {
            return Err(match image.give_name() {
                Ok(_) => unnamed.error,
                Err(both) => both.into_error(),
            });
        }
        Err(unnamed) => {
            let kept = image.keep().unwrap_or_default();
            return Err(unnamed
                .into_error()
                .remark(&format!(" (and the image as '{}')", Escaped(&kept.to_string_lossy()))));
        }
    };
    warnings.extend(image.give_name().map_err(Unnamed::into_error)?);
    Ok(warnings)
}

/// The size of a new disk of `size` bytes: whole sectors.
///
/// # Errors
/// [`Limit`](crate::ErrorKind::Limit) for 2^63 bytes and more.
pub(crate) fn new_disk_size(size: u64) -> Result<u64> {
    let whole = whole_sectors(size);
    if i64::try_from(whole).is_err() {
        return Err(Error::limit(format!("{size} bytes are more than any image can hold")));
    }
    Ok(whole)
}

fn refused<T>(message: impl Into<String>) -> Result<T> {
    Err(Error::usage(message))
}
