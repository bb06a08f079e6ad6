//! Opens a disk for reading and writing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Disk, Files, Kind};
use crate::chain::{Chain, Format, OpenOptions, open_writable};
use crate::image::write::{Below, NoBacking, Writer, WriterOptions};
use crate::io::WriteStorage;
use crate::{CancelToken, Error, Result};

/// Bytes of L2 tables that are kept in memory unless [`WriteOptions::table_cache`] says otherwise: enough for
/// 256 GiB of disk at 64 KiB clusters.
pub const TABLE_CACHE_BYTES: u64 = 32 << 20;

/// Files up to this length are checked by one thread: to start more takes longer.
#[cfg(feature = "ops")]
const BY_ONE_THREAD: u64 = 1 << 30;

/// How a disk is written to.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WriteOptions {
    table_cache: u64,
    punch: bool,
    explicit_zeroes: bool,
    trust_refcounts: bool,
    plan: bool,
    cancel: CancelToken,
    backing: Option<Chain>,
    data_file: Option<Arc<dyn WriteStorage>>,
}

impl Default for WriteOptions {
    fn default() -> Self {
        Self {
            table_cache: TABLE_CACHE_BYTES,
            punch: true,
            explicit_zeroes: false,
            trust_refcounts: false,
            plan: false,
            cancel: CancelToken::new(),
            backing: None,
            data_file: None,
        }
    }
}

impl WriteOptions {
    /// The default: [`TABLE_CACHE_BYTES`] of tables in memory, and freed space is given back.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes of L2 tables to keep in memory.
    #[must_use]
    pub fn table_cache(self, bytes: u64) -> Self {
        Self { table_cache: bytes, ..self }
    }

    /// Whether the space of clusters that become free is given back to the file system.
    #[must_use]
    pub fn punch(self, punch: bool) -> Self {
        Self { punch, ..self }
    }

    /// Whether a range that is zeroed says so itself, also where nothing is allocated and it reads as zeros already: so it
    /// stays zeros whatever the image is backed by one day. It takes L2 tables, and space in an image of version 2 that
    /// has a backing file. QEMU writes zeros so.
    ///
    /// ```
    /// use qcow::disk::{Disk, RangeKind, WriteOptions};
    /// use qcow::io::Zeroes;
    /// use qcow::ops::create::{CreateOptions, create};
    ///
    /// # let directory = tempfile::tempdir().unwrap();
    /// # let path = directory.path().join("disk.qcow2");
    /// create(&path, &CreateOptions::default().size(1 << 20))?;
    /// let disk = Disk::open(&path, &Default::default(), WriteOptions::new().explicit_zeroes(true))?;
    /// disk.write_zeroes(0, 1 << 16, Zeroes::Unmap)?;
    /// assert_eq!(disk.ranges(0, 1 << 16)?[0].kind, RangeKind::Zero);
    /// # Ok::<(), qcow::Error>(())
    /// ```
    #[must_use]
    pub fn explicit_zeroes(self, explicit: bool) -> Self {
        Self { explicit_zeroes: explicit, ..self }
    }

    /// Whether refcounts are believed without having been compared with the references: for an image that is known
    /// to be sound, because it was checked or closed by this program a moment ago. In any other, a cluster that is
    /// used and counted as free is written over.
    #[must_use]
    pub fn trust_refcounts(self, trust: bool) -> Self {
        Self { trust_refcounts: trust, ..self }
    }

    /// Whether nothing will be written after all, so that an image that was not closed properly is left as it is.
    #[must_use]
    pub(crate) fn plan(self, plan: bool) -> Self {
        Self { plan, ..self }
    }

    /// Asks the opening to stop, which reads all metadata, with [`Interrupted`](crate::ErrorKind::Interrupted). For
    /// [`Disk::from_storage`]; [`Disk::open`] takes what [`OpenOptions::cancel`](crate::chain::OpenOptions::cancel) has.
    #[must_use]
    pub fn cancel(self, cancel: CancelToken) -> Self {
        Self { cancel, ..self }
    }

    /// What the image is backed by, for [`Disk::from_storage`].
    #[must_use]
    pub fn backing(self, chain: Chain) -> Self {
        Self { backing: Some(chain), ..self }
    }

    /// The image's external data file, for [`Disk::from_storage`].
    #[must_use]
    pub fn data_file(self, storage: Arc<dyn WriteStorage>) -> Self {
        Self { data_file: Some(storage), ..self }
    }
}

impl Disk {
    /// Opens the image at `path` for writing, with QEMU's image locks, and its backing chain for reading.
    ///
    /// # Errors
    /// [`InUse`](crate::ErrorKind::InUse) if another process uses the image; [`Usage`](crate::ErrorKind::Usage) if its format
    /// would have to be guessed as raw; [`Corrupt`](crate::ErrorKind::Corrupt) for images that are marked so or whose
    /// metadata has errors, [`Encrypted`](crate::ErrorKind::Encrypted) or [`Unsupported`](crate::ErrorKind::Unsupported) for images that cannot be
    /// written to; otherwise as [`Chain::open`].
    pub fn open(path: &Path, open: &OpenOptions, write: WriteOptions) -> Result<Self> {
        let opened = open_writable(path, open)?;
        let storage: Arc<dyn WriteStorage> = Arc::new(opened.file);
        let (backing, data_file) = (opened.backing, opened.data);
        let write = WriteOptions { backing, data_file, cancel: open.cancel.clone(), ..write };
        Self::new(opened.path, storage, opened.format, write)
    }

    /// Writes to an image in a storage of yours. Its backing chain and data file, if it has them, are given
    /// with `options`; whatever the image calls them does not matter.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use qcow::chain::Format;
    /// use qcow::disk::{Disk, WriteOptions};
    /// use qcow::io::MemoryStorage;
    ///
    /// let storage = Arc::new(MemoryStorage::new(vec![0; 1 << 20]));
    /// let disk = Disk::from_storage(storage.clone(), Format::Raw, WriteOptions::new())?;
    /// disk.write_at(&[7; 512], 4096)?;
    /// assert_eq!(storage.bytes()[4096], 7);
    /// # Ok::<(), qcow::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage) if the image has a backing file or data file and none is given, or the other
    /// way round; otherwise as [`open`](Self::open).
    pub fn from_storage(
        storage: Arc<dyn WriteStorage>,
        format: Format,
        options: WriteOptions,
    ) -> Result<Self> {
        if format == Format::Qcow2 {
            let area = crate::image::read_header_area(&*storage, crate::image::Purpose::Read)?;
            if area.backing_name.is_some() != options.backing.is_some() {
                return Err(Error::usage(
                    "an image has a backing chain just if its header names a backing file",
                ));
            }
        }
        Self::new(PathBuf::new(), storage, format, options)
    }

    fn new(
        path: PathBuf,
        storage: Arc<dyn WriteStorage>,
        format: Format,
        options: WriteOptions,
    ) -> Result<Self> {
        let WriteOptions {
            table_cache,
            punch,
            explicit_zeroes,
            trust_refcounts,
            plan,
            cancel,
            backing,
            data_file,
        } = options;
        #[cfg(not(feature = "ops"))]
        let _ = (trust_refcounts, cancel);
        #[cfg(feature = "ops")]
        let repaired = match format {
            Format::Raw => None,
            Format::Qcow2 => {
                let taken = take_over(&storage, trust_refcounts, plan, &cancel);
                taken.map_err(|error| error.file(&path))?
            }
        };
        let files = Files { storage, format, data_file, backing };
        let (storage, data_file) = (files.storage.clone(), files.data_file.clone());
        let image = match format {
            Format::Raw => Kind::Raw(storage),
            Format::Qcow2 => {
                let below: Box<dyn Below> = match &files.backing {
                    Some(chain) => Box::new(chain.clone()),
                    None => Box::new(NoBacking),
                };
                let options = WriterOptions { cache: table_cache, punch, explicit_zeroes, plan };
                let writer = Writer::open(storage, data_file, below, options);
                Kind::Qcow2(Box::new(writer.map_err(|error| error.file(&path))?))
            }
        };
        Ok(Self {
            path,
            image,
            files,
            #[cfg(feature = "ops")]
            repaired,
        })
    }

    /// Opens the QCOW2 image at `path` for writing as [`open`](Self::open) does, over `backing` instead of what it is
    /// backed by, which is given back: what is written is what it then reads as over `backing`.
    ///
    /// # Errors
    /// As [`open`](Self::open); [`Usage`](crate::ErrorKind::Usage) if the image is raw.
    pub(crate) fn open_over(
        path: &Path,
        open: &OpenOptions,
        backing: Option<Chain>,
        write: WriteOptions,
    ) -> Result<(Self, Option<Chain>)> {
        let opened = open_writable(path, open)?;
        if opened.format == Format::Raw {
            return Err(Error::usage("a raw image has no backing file").file(path));
        }
        let storage: Arc<dyn WriteStorage> = Arc::new(opened.file);
        let (data_file, cancel) = (opened.data, open.cancel.clone());
        let write = WriteOptions { backing, data_file, cancel, ..write };
        Ok((Self::new(opened.path, storage, opened.format, write)?, opened.backing))
    }
}

/// Repairs an image that was not closed properly, for a plan in memory only; of any other the refcounts are proven, unless
/// they are trusted. What is encrypted, or marked corrupt, is refused later.
#[cfg(feature = "ops")]
fn take_over(
    storage: &Arc<dyn WriteStorage>,
    trust: bool,
    plan: bool,
    cancel: &CancelToken,
) -> Result<Option<crate::check::Repaired>> {
    use crate::check::takeover;
    use crate::format::{CryptMethod, Incompatible};
    use crate::{Silent, threads};

    let header = crate::image::read_header_area(&**storage, crate::image::Purpose::Read)?.header;
    let refused = header.crypt_method != CryptMethod::None
        || header.incompatible.contains(Incompatible::CORRUPT);
    let dirty = takeover::is_dirty(&**storage)?;
    if refused || trust && !dirty {
        return Ok(None);
    }
    let count = if storage.len() <= BY_ONE_THREAD { 1 } else { threads::count(0) };
    threads::within(count, || match dirty && plan {
        true => takeover::plan(&(Arc::clone(storage) as _), &Silent, cancel)
            .map(|(_, repaired)| Some(repaired)),
        false => takeover::take_over(storage, &Silent, cancel),
    })?
}
