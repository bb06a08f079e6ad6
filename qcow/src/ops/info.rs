//! What an image says about itself, with the keys and values of `qemu-img info`.
//!
//! Only the header, the snapshot table and the bitmap directory are read. Data files are never
//! opened (trap 114), backing files only when the whole chain is asked for.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use crate::chain::{Files, Layer, OpenOptions, Warning, full_name, layer_of, walk};
use crate::format::{
    Autoclear, Compatible, CryptMethod, Incompatible, LuksHeader, Snapshot as TableEntry, Version,
    whole_sectors,
};
use crate::image::{BitmapInfo, Image, c_string};
use crate::io::{FileStorage, OpenedAs};
use crate::setters::setters;
use crate::{Error, Result};

/// What to look at.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct InfoOptions {
    /// How to open. Its `snapshot` narrows the report to that one.
    pub open: OpenOptions,
    /// Walk the whole chain; otherwise no backing or data file is opened.
    pub backing_chain: bool,
}

setters!(InfoOptions {
    open: OpenOptions,
    backing_chain: bool,
} into {});

/// One image of the chain. Serialises to the object that `qemu-img info --output json` prints.
/// Sizes are in bytes.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct ImageInfo {
    /// The file below the format.
    pub children: Vec<Child>,
    /// Format of the backing file, if the header records it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_filename_format: Option<String>,
    /// Internal snapshots.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub snapshots: Vec<SnapshotInfo>,
    /// Size of the guest's disk.
    pub virtual_size: u64,
    /// The name under which the image was opened.
    #[serde(serialize_with = "super::path_text")]
    pub filename: PathBuf,
    /// Cluster size; absent for raw images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_size: Option<u64>,
    /// `qcow2`, `raw`, or for children `file` or `host_device`.
    pub format: String,
    /// Bytes that the file system has allocated.
    pub actual_size: u64,
    /// True for encrypted images, absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encrypted: Option<bool>,
    /// What only this format has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format_specific: Option<FormatSpecific>,
    /// The backing file's name, resolved.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "optional_path_text")]
    pub full_backing_filename: Option<PathBuf>,
    /// The backing file's name as it stands in the header.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "optional_path_text")]
    pub backing_filename: Option<PathBuf>,
    /// Refcounts may be stale: the image was not closed.
    pub dirty_flag: bool,
}

/// A node below an image.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Child {
    /// Always `file`.
    pub name: String,
    /// What it is.
    pub info: ImageInfo,
}

/// An internal snapshot as `qemu-img info` shows it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct SnapshotInfo {
    /// Instructions executed, where record and replay was on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icount: Option<u64>,
    /// Guest clock, the part below a second, in nanoseconds.
    pub vm_clock_nsec: u64,
    /// Name, which need not be unique.
    pub name: String,
    /// Wall clock, seconds since 1970.
    pub date_sec: u64,
    /// Wall clock, the part below a second, in nanoseconds.
    pub date_nsec: u64,
    /// Guest clock in seconds.
    pub vm_clock_sec: u64,
    /// Identifier, unique in the image.
    pub id: String,
    /// Size of the saved machine state.
    pub vm_state_size: u64,
}

/// What only one format has: `{"type": ..., "data": {...}}`.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", content = "data", rename_all = "snake_case")]
#[non_exhaustive]
pub enum FormatSpecific {
    /// A QCOW2 image.
    Qcow2(Box<Qcow2Info>),
    /// A regular file or a block device.
    File {},
}

/// What only QCOW2 images have.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Qcow2Info {
    /// `0.10` or `1.1`.
    pub compat: String,
    /// `zlib` or `zstd`.
    pub compression_type: String,
    /// Whether refcount updates may be postponed (version 3 only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lazy_refcounts: Option<bool>,
    /// Persistent bitmaps.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bitmaps: Vec<BitmapSummary>,
    /// Width of a refcount.
    pub refcount_bits: u32,
    /// How the guest's data is encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encrypt: Option<EncryptionInfo>,
    /// Name of the external data file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_file: Option<String>,
    /// Whether the data file alone is a valid raw image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_file_raw: Option<bool>,
    /// Whether the image is marked as corrupt (version 3 only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub corrupt: Option<bool>,
    /// Whether it has 16-byte L2 entries (version 3 only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extended_l2: Option<bool>,
}

/// A persistent bitmap as `qemu-img info` shows it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct BitmapSummary {
    /// `in-use` and `auto`, as they apply.
    pub flags: Vec<String>,
    /// Its name.
    pub name: String,
    /// Guest bytes per bit.
    pub granularity: u64,
}

impl BitmapSummary {
    pub(crate) fn of(bitmap: &BitmapInfo) -> Self {
        let flags = [(bitmap.in_use, "in-use"), (bitmap.auto, "auto")];
        let flags = flags.iter().filter(|(set, _)| *set).map(|(_, name)| (*name).to_owned());
        Self { flags: flags.collect(), name: text(&bitmap.name), granularity: bitmap.granularity }
    }
}

/// How an image is encrypted: QEMU's own AES, or LUKS with what its header says.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum EncryptionInfo {
    /// The AES of old, which QEMU itself no longer runs guests on.
    Aes {
        /// Always `aes`.
        format: &'static str,
    },
    /// A LUKS header inside the image.
    Luks(LuksInfo),
}

/// What the LUKS header says. Offsets are in bytes.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct LuksInfo {
    /// Generator of initial vectors.
    pub ivgen_alg: String,
    /// The generator's hash, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ivgen_hash_alg: Option<String>,
    /// Always false: QCOW2 keeps the header in the image.
    pub detached_header: bool,
    /// Hash of the passphrases.
    pub hash_alg: String,
    /// Cipher and key length.
    pub cipher_alg: String,
    /// Identifier of the container.
    pub uuid: String,
    /// Always `luks`.
    pub format: &'static str,
    /// Cipher mode.
    pub cipher_mode: String,
    /// Places for keys.
    pub slots: Vec<LuksSlotInfo>,
    /// Where data would start in a container of its own.
    pub payload_offset: u64,
    /// Rounds for the master key's digest.
    pub master_key_iters: u32,
}

/// One place for a key.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct LuksSlotInfo {
    /// Whether a passphrase is set.
    pub active: bool,
    /// Rounds for the passphrase, if one is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iters: Option<u32>,
    /// Where the key material lies.
    pub key_offset: u64,
    /// Stripes of the key material, if a passphrase is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stripes: Option<u32>,
}

/// Facts about the image at `path`, and about its chain if asked: active layer first.
///
/// ```no_run
/// use std::path::Path;
/// use qcow::ops::info::{InfoOptions, info};
/// let options = InfoOptions::default().backing_chain(true);
/// for image in info(Path::new("overlay.qcow2"), &options)? {
///     println!("{}: {} bytes", image.filename.display(), image.virtual_size);
/// }
/// # Ok::<(), qcow::Error>(())
/// ```
///
/// # Errors
/// As [`Chain::open`](crate::chain::Chain::open); but encrypted images are reported, not refused.
pub fn info(path: &Path, options: &InfoOptions) -> Result<Vec<ImageInfo>> {
    let ChainInfo { images, broken, .. } = info_chain(path, options)?;
    broken.map_or(Ok(images), Err)
}

/// What is known of a chain, as far down as it can be read.
#[derive(Debug)]
#[non_exhaustive]
pub struct ChainInfo {
    /// The images, active layer first; at least that one.
    pub images: Vec<ImageInfo>,
    /// Names of backing files that mean something else in every working directory, and the like.
    pub warnings: Vec<Warning>,
    /// Why the layer below could not be read, if the chain goes on there.
    pub broken: Option<Error>,
}

/// As [`info`], but a lower layer that cannot be read does not hide the layers above it.
///
/// # Errors
/// As [`info`], for the active layer.
pub fn info_chain(path: &Path, options: &InfoOptions) -> Result<ChainInfo> {
    let mut told = ChainInfo { images: Vec::new(), warnings: Vec::new(), broken: None };
    match tell(path, options, &mut told) {
        Err(error) if told.images.is_empty() => Err(error),
        result => Ok(ChainInfo { broken: result.err(), ..told }),
    }
}

fn tell(path: &Path, options: &InfoOptions, told: &mut ChainInfo) -> Result<()> {
    let mut walk = walk(Files::new(&options.open), path, &options.open);
    for found in walk.by_ref() {
        let found = found.map_err(|broken| broken.error)?;
        told.warnings.extend(found.warning());
        let layer = layer_of(found, &options.open)?;
        let looks = layer.raw_lookalike()?;
        let warned = |looks| Warning::ReadAsRaw { layer: layer.path().into(), looks };
        told.warnings.extend(looks.map(warned));
        let snapshot = options.open.snapshot.as_deref().filter(|_| told.images.is_empty());
        told.images.push(image_info(&layer, snapshot).map_err(|error| error.file(layer.path()))?);
        if !options.backing_chain {
            return Ok(());
        }
    }
    walk.check_used().map_err(|error| error.file(path))
}

fn image_info(layer: &Layer, snapshot: Option<&str>) -> Result<ImageInfo> {
    let storage = layer.storage();
    let child = ImageInfo {
        virtual_size: whole_sectors(storage.len()),
        format_specific: Some(FormatSpecific::File {}),
        format: match layer.file().map(FileStorage::kind) {
            Some(OpenedAs::BlockDevice) => "host_device".into(),
            _ => "file".into(),
        },
        ..bare(layer)
    };
    let mut info = ImageInfo {
        children: vec![Child { name: "file".into(), info: child }],
        virtual_size: layer.virtual_size(),
        format: layer.format().to_string(),
        ..bare(layer)
    };
    match (layer.image(), snapshot) {
        (Some(image), snapshot) => describe(&mut info, image, snapshot)?,
        (None, Some(_)) => return Err(Error::usage("a raw image has no internal snapshots")),
        (None, None) => {}
    }
    Ok(info)
}

/// What every node has.
fn bare(layer: &Layer) -> ImageInfo {
    ImageInfo {
        children: Vec::new(),
        backing_filename_format: None,
        snapshots: Vec::new(),
        virtual_size: 0,
        filename: layer.path().to_path_buf(),
        cluster_size: None,
        format: String::new(),
        actual_size: layer.storage().allocated(),
        encrypted: None,
        format_specific: None,
        full_backing_filename: None,
        backing_filename: None,
        dirty_flag: false,
    }
}

fn describe(info: &mut ImageInfo, image: &Image, snapshot: Option<&str>) -> Result<()> {
    let area = image.area();
    info.snapshots = match snapshot {
        Some(wanted) => vec![snapshot_info(image.find_snapshot(wanted)?)],
        None => image.snapshots().iter().map(snapshot_info).collect(),
    };
    info.cluster_size = Some(image.geometry().cluster_size());
    info.encrypted = image.is_encrypted().then_some(true);
    info.dirty_flag = image.header().incompatible.contains(Incompatible::DIRTY);
    info.format_specific = Some(FormatSpecific::Qcow2(Box::new(qcow2_info(image))));
    if let Some(name) = &area.backing_name {
        let name = PathBuf::from(OsStr::from_bytes(name));
        info.full_backing_filename = Some(full_name(&name, &info.filename));
        info.backing_filename = Some(name);
        info.backing_filename_format = area.backing_format().map(text);
    }
    Ok(())
}

fn qcow2_info(image: &Image) -> Qcow2Info {
    let header = image.header();
    let modern = header.version == Version::V3;
    Qcow2Info {
        compat: if modern { "1.1" } else { "0.10" }.into(),
        compression_type: header.compression_type.as_str().into(),
        lazy_refcounts: modern.then(|| header.compatible.contains(Compatible::LAZY_REFCOUNTS)),
        bitmaps: image.bitmaps().iter().map(BitmapSummary::of).collect(),
        encrypt: match header.crypt_method {
            CryptMethod::None => None,
            CryptMethod::Aes => Some(EncryptionInfo::Aes { format: "aes" }),
            CryptMethod::Luks => image.luks().map(|luks| EncryptionInfo::Luks(luks_info(luks))),
        },
        refcount_bits: header.refcounts().bits(),
        data_file: image.area().data_file_name().map(text),
        data_file_raw: image
            .has_data_file()
            .then(|| header.autoclear.contains(Autoclear::DATA_FILE_RAW)),
        corrupt: modern.then(|| header.incompatible.contains(Incompatible::CORRUPT)),
        extended_l2: modern.then(|| image.geometry().extended_l2()),
    }
}

fn luks_info(luks: &LuksHeader) -> LuksInfo {
    let (mode, generator, generator_hash) = luks.mode_parts();
    LuksInfo {
        ivgen_alg: generator.to_owned(),
        ivgen_hash_alg: generator_hash.map(str::to_owned),
        detached_header: false,
        hash_alg: luks.hash.clone(),
        cipher_alg: luks.cipher_name(),
        uuid: luks.uuid.clone(),
        format: "luks",
        cipher_mode: mode.to_owned(),
        slots: luks
            .slots
            .iter()
            .map(|slot| LuksSlotInfo {
                active: slot.active,
                iters: slot.active.then_some(slot.iterations),
                key_offset: slot.key_offset,
                stripes: slot.active.then_some(slot.stripes),
            })
            .collect(),
        payload_offset: luks.payload_offset,
        master_key_iters: luks.digest_iterations,
    }
}

/// QEMU shows this many bytes of a snapshot's id and name (trap 86).
const SHOWN_ID: usize = 127;
const SHOWN_NAME: usize = 255;

fn cut(bytes: &[u8], most: usize) -> &[u8] {
    let bytes = c_string(bytes);
    bytes.get(..most).unwrap_or(bytes)
}

fn snapshot_info(snapshot: &TableEntry) -> SnapshotInfo {
    const SECOND: u64 = 1_000_000_000;
    let clock = snapshot.vm_clock_nsec;
    SnapshotInfo {
        icount: snapshot.icount,
        vm_clock_nsec: clock.checked_rem(SECOND).unwrap_or_default(),
        name: text(cut(&snapshot.name, SHOWN_NAME)),
        date_sec: u64::from(snapshot.date_sec),
        date_nsec: u64::from(snapshot.date_nsec),
        vm_clock_sec: clock.checked_div(SECOND).unwrap_or_default(),
        id: text(cut(&snapshot.id, SHOWN_ID)),
        vm_state_size: snapshot.vm_state_size,
    }
}

/// Names in images need not be UTF-8; JSON must be.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn optional_path_text<S: Serializer>(
    path: &Option<PathBuf>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => super::path_text(path, serializer),
        None => serializer.serialize_none(),
    }
}
