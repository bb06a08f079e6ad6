//! One image of a chain: where its bytes live, its format, and how ranges are looked up in it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::policy::Policy;
use super::{Format, data_file, lock_for_reading};
use crate::format::{CryptMethod, HostOffset, whole_sectors};
use crate::image::{Faults, Image, Run, RunKind, TableWindow, Tables, is_damage, push_run};
use crate::io::{FileStorage, Storage};
use crate::{Error, ErrorKind, Remedy, Result};

/// One image of a chain, open and read-only.
#[derive(Debug)]
pub struct Layer {
    path: PathBuf,
    storage: Arc<dyn Storage>,
    content: Content,
    /// Where the name by which it was opened says that the data file is.
    data_stated: Option<PathBuf>,
    /// Whether its data may be holes of the file, once that was asked.
    mostly_holes: OnceLock<bool>,
}

#[derive(Debug)]
enum Content {
    Raw,
    Qcow2 { image: Box<Image>, data: Option<DataFile> },
}

#[derive(Debug)]
struct DataFile {
    path: PathBuf,
    storage: Arc<dyn Storage>,
}

impl Layer {
    /// Opens the image in `storage`; a data file is not opened.
    pub(super) fn new(path: PathBuf, storage: Arc<dyn Storage>, format: Format) -> Result<Self> {
        let content = match format {
            Format::Raw => Content::Raw,
            Format::Qcow2 => {
                let image = Image::open(Arc::clone(&storage)).map_err(|error| error.file(&path))?;
                Content::Qcow2 { image: Box::new(image), data: None }
            }
        };
        Ok(Self { path, storage, content, data_stated: None, mostly_holes: OnceLock::new() })
    }

    /// The data file is here, whatever the header calls it.
    pub(super) fn with_data_in(self, data_stated: Option<PathBuf>) -> Self {
        Self { data_stated, ..self }
    }

    /// Makes the guest's data readable: refuses encryption, opens the data file.
    pub(super) fn ready_for_data(self, policy: &Policy, force_share: bool) -> Result<Self> {
        let place = self.data_file_place().map_err(|error| error.file(&self.path))?;
        let data = match place {
            Some(path) => {
                let file = policy.data_file.open(&path).map_err(data_file::named)?;
                if !force_share {
                    lock_for_reading(&file, Format::Raw).map_err(|error| error.file(&path))?;
                }
                let storage: Arc<dyn Storage> = Arc::new(file);
                Some((path, storage))
            }
            None => None,
        };
        self.ready_with(data)
    }

    /// As [`ready_for_data`](Self::ready_for_data), with a data file that is open already.
    pub(super) fn ready_with(mut self, given: Option<(PathBuf, Arc<dyn Storage>)>) -> Result<Self> {
        let needed = self.needs_data_file().map_err(|error| error.file(&self.path))?;
        match (&mut self.content, given) {
            (Content::Qcow2 { data, .. }, Some((path, storage))) if needed => {
                *data = Some(DataFile { path, storage });
            }
            (_, None) if !needed => {}
            _ => {
                let message = match needed {
                    true => "the image needs an external data file, and none is given",
                    false => "the image has no external data file, and one is given",
                };
                return Err(Error::usage(message).file(&self.path));
            }
        }
        Ok(self)
    }

    /// Where the external data file is, if the guest's data is in one and can be read.
    fn data_file_place(&self) -> Result<Option<PathBuf>> {
        let Some(image) = self.image() else { return Ok(None) };
        refuse_encryption(image)?;
        data_file::place(image.area(), &self.path, self.data_stated.as_deref())
    }

    /// Whether the guest's data is in an external data file, and can be read.
    fn needs_data_file(&self) -> Result<bool> {
        let Some(image) = self.image() else { return Ok(false) };
        refuse_encryption(image)?;
        image.area().has_data_file()
    }

    /// Switches to the view of an internal snapshot.
    pub(super) fn at_snapshot(self, id_or_name: &str) -> Result<Self> {
        self.seen(|image| image.at_snapshot(id_or_name))
    }

    /// As [`at_snapshot`](Self::at_snapshot), of the snapshot with this place in the table.
    #[cfg(feature = "ops")]
    pub(super) fn at_snapshot_index(self, index: usize) -> Result<Self> {
        self.seen(|image| image.at_snapshot_index(index))
    }

    fn seen(mut self, view: impl FnOnce(Image) -> Result<Image>) -> Result<Self> {
        self.content = match self.content {
            Content::Qcow2 { image, data } => {
                let image = view(*image).map_err(|error| error.file(&self.path))?;
                Content::Qcow2 { image: Box::new(image), data }
            }
            Content::Raw => {
                return Err(Error::usage("a raw image has no internal snapshots").file(&self.path));
            }
        };
        Ok(self)
    }

    /// Whether the metadata was preallocated, so that data is worth a look for holes in the file. Refcounts that
    /// cannot be read do not spoil a map. Found out once: it reads refcounts of the whole file.
    #[cfg(feature = "ops")]
    pub(crate) fn is_mostly_holes(&self) -> bool {
        *self.mostly_holes.get_or_init(|| {
            let allocated = self.storage.allocated();
            self.image().is_some_and(|image| image.is_mostly_holes(allocated).unwrap_or(false))
        })
    }

    /// The name under which it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the image's own bytes live: those of a raw image, the tables and compressed clusters of a
    /// QCOW2 image, and its data if that has no file of its own.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// The file or block device that is [`storage`](Self::storage); `None` if the layer is not in one.
    pub fn file(&self) -> Option<&FileStorage> {
        self.storage.as_file()
    }

    /// Its format.
    pub fn format(&self) -> Format {
        match self.content {
            Content::Raw => Format::Raw,
            Content::Qcow2 { .. } => Format::Qcow2,
        }
    }

    /// The QCOW2 image; `None` for raw layers.
    pub fn image(&self) -> Option<&Image> {
        match &self.content {
            Content::Raw => None,
            Content::Qcow2 { image, .. } => Some(image),
        }
    }

    /// Size of the layer's disk in bytes, a multiple of 512. The last sector of a raw file may
    /// be cut off; it reads as if padded with zeros (traps 106, 131).
    pub fn virtual_size(&self) -> u64 {
        match &self.content {
            Content::Raw => whole_sectors(self.storage.len()),
            Content::Qcow2 { image, .. } => image.virtual_size(),
        }
    }

    /// Where uncompressed guest data lives: the host offsets of
    /// [`ExtentKind::Data`](crate::extent::ExtentKind::Data) are offsets in it.
    pub fn data_storage(&self) -> &Arc<dyn Storage> {
        match &self.content {
            Content::Qcow2 { data: Some(data), .. } => &data.storage,
            _ => &self.storage,
        }
    }

    /// The file or block device that is [`data_storage`](Self::data_storage), for I/O of your own at the
    /// host offsets of extents; `None` if the data is not in one.
    pub fn data_file(&self) -> Option<&FileStorage> {
        self.data_storage().as_file()
    }

    /// The name under which the file with the uncompressed guest data was opened: the external
    /// data file's, or the image's own.
    pub fn data_path(&self) -> &Path {
        match &self.content {
            Content::Qcow2 { data: Some(data), .. } => &data.path,
            _ => &self.path,
        }
    }

    /// The smallest piece that can be mapped on its own, in bytes.
    pub(crate) fn granularity(&self) -> u64 {
        match &self.content {
            // File systems have holes of at least a block.
            Content::Raw => 4096,
            Content::Qcow2 { image, .. } => image.geometry().subcluster_size(),
        }
    }

    /// The first offset at or after `from` where the layer may have something; `None` if nowhere.
    pub(crate) fn next_mapped(&self, from: u64) -> Result<Option<u64>> {
        match &self.content {
            Content::Raw => self.storage.next_data(from).map_err(hole_error),
            Content::Qcow2 { image, .. } => image.next_mapped(from),
        }
        .map_err(|error| error.file(&self.path))
    }

    /// Prepares to look up ranges of `start..end`, which lies within the virtual size.
    pub(crate) fn window(&self, start: u64, end: u64) -> Result<LayerWindow<'_>> {
        match &self.content {
            Content::Raw => Ok(LayerWindow::Raw(&*self.storage)),
            Content::Qcow2 { image, .. } => self.table_window(image, start, end, Tables::Direct),
        }
    }

    /// As [`window`](Self::window), where only bytes are wanted: holes of a raw file, whose search would
    /// cost more than reading a short range does, are part of its data.
    pub(crate) fn window_of_bytes<'a>(
        &'a self,
        start: u64,
        end: u64,
        tables: Tables<'a>,
    ) -> Result<LayerWindow<'a>> {
        match &self.content {
            Content::Raw => Ok(LayerWindow::RawBytes),
            Content::Qcow2 { image, .. } => self.table_window(image, start, end, tables),
        }
    }

    fn table_window<'a>(
        &'a self,
        image: &'a Image,
        start: u64,
        end: u64,
        tables: Tables<'a>,
    ) -> Result<LayerWindow<'a>> {
        TableWindow::load(image, tables, start, end)
            .map(LayerWindow::Qcow2)
            .map_err(|error| error.file(&self.path))
    }
}

/// Looks up ranges of one layer.
pub(crate) enum LayerWindow<'a> {
    Raw(&'a dyn Storage),
    RawBytes,
    Qcow2(TableWindow<'a>),
}

impl LayerWindow<'_> {
    /// Appends the runs of `start..end`. What cannot be understood goes to `faults`, and is a run of
    /// zeros.
    pub(crate) fn runs(
        &mut self,
        start: u64,
        end: u64,
        runs: &mut Vec<Run>,
        faults: Faults<'_>,
    ) -> Result<()> {
        match self {
            Self::Raw(storage) => match raw_runs(*storage, start, end, runs).map_err(hole_error) {
                // Where holes cannot be found, reading tells what can be read.
                Err(error) if faults.is_some() && is_damage(&error) => {
                    let at = runs.last().map_or(start, |run| run.guest.saturating_add(run.len));
                    let kind = RunKind::Data(HostOffset(at));
                    push_run(runs, Run { guest: at, len: end.saturating_sub(at), kind });
                    Ok(())
                }
                result => result,
            },
            Self::RawBytes => {
                let kind = RunKind::Data(HostOffset(start));
                push_run(runs, Run { guest: start, len: end.saturating_sub(start), kind });
                Ok(())
            }
            Self::Qcow2(window) => window.runs(start, end, runs, faults),
        }
    }
}

fn raw_runs(
    storage: &dyn Storage,
    start: u64,
    end: u64,
    runs: &mut Vec<Run>,
) -> std::io::Result<()> {
    let mut at = start;
    while at < end {
        let data = storage.next_data(at)?.unwrap_or(end).clamp(at, end);
        let len = data.saturating_sub(at);
        push_run(runs, Run { guest: at, len, kind: RunKind::Zero(None) });
        if data >= end {
            break;
        }
        // At least one byte further, or a file system with odd answers would hold us forever.
        let hole = storage.next_hole(data)?.clamp(data.saturating_add(1), end);
        let kind = RunKind::Data(HostOffset(data));
        push_run(runs, Run { guest: data, len: hole.saturating_sub(data), kind });
        at = hole;
    }
    Ok(())
}

fn hole_error(error: std::io::Error) -> Error {
    Error::io("could not look for holes", error)
}

fn refuse_encryption(image: &Image) -> Result<()> {
    let how = match image.header().crypt_method {
        CryptMethod::None => return Ok(()),
        CryptMethod::Aes => "AES",
        CryptMethod::Luks => "LUKS",
    };
    let message = format!("the image is encrypted ({how}), and there is no key");
    Err(Error::new(ErrorKind::Encrypted, message).hint(Remedy::Decrypt("qcow2")))
}
