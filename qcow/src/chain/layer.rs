//! One image of a chain: its file, its format, and how ranges are looked up in it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::name::{ImageName, Window};
use super::policy::Policy;
use super::{Format, LayerFound};
use crate::format::{Autoclear, CryptMethod, HostOffset};
use crate::image::{Image, Run, RunKind, TableWindow, Tables, push_run};
use crate::io::{FileStorage, Storage};
use crate::{Error, ErrorKind, Remedy, Result};

/// One image of a chain, open and read-only.
#[derive(Debug)]
pub struct Layer {
    path: PathBuf,
    file: Arc<FileStorage>,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Raw(RawRange),
    Qcow2 { image: Box<Image>, data: Option<DataFile> },
}

/// The part of its file that a raw layer shows; bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RawRange {
    start: u64,
    /// A multiple of 512; what lies past the end of the file reads as zeros.
    pub(super) size: u64,
}

impl RawRange {
    /// The range that `windows` leave of a file of `len` bytes, the innermost last.
    pub(super) fn of(windows: &[Window], len: u64) -> Result<Self> {
        let whole = len.checked_next_multiple_of(512).unwrap_or(u64::MAX);
        let mut range = Self { start: 0, size: whole };
        let mut limited = false;
        for window in windows.iter().rev() {
            let Window { offset, size } = *window;
            let left = range.size.checked_sub(offset).ok_or_else(|| {
                let within = range.size;
                Error::corrupt(format!(
                    "offset {offset} of the json: name is past the {within} bytes below"
                ))
            })?;
            range.start = range.start.saturating_add(offset);
            range.size = match size {
                Some(size) if size % 512 != 0 => {
                    return Err(Error::corrupt(format!(
                        "size {size} of the json: name is not a multiple of 512"
                    )));
                }
                Some(size) if size > left => {
                    return Err(Error::corrupt(format!(
                        "size {size} of the json: name is more than the {left} bytes that are there"
                    )));
                }
                Some(size) => size,
                None if limited && left % 512 != 0 => {
                    return Err(Error::unsupported(
                        "the ranges of the json: name end within a sector of the file",
                    ));
                }
                None => left.checked_next_multiple_of(512).unwrap_or(u64::MAX),
            };
            limited |= size.is_some();
        }
        Ok(range)
    }
}

#[derive(Debug)]
struct DataFile {
    path: PathBuf,
    file: Arc<FileStorage>,
}

impl Layer {
    /// Opens the image that was found; a data file is not opened.
    pub(super) fn new(found: LayerFound<FileStorage>) -> Result<Self> {
        let LayerFound { path, file, header, windows, .. } = found;
        let file = Arc::new(file);
        let content = match header {
            None => RawRange::of(&windows, file.len()).map(Content::Raw),
            Some(area) => {
                let storage: Arc<dyn Storage> = Arc::clone(&file) as _;
                let image = Image::with_area(storage, area);
                image.map(|image| Content::Qcow2 { image: Box::new(image), data: None })
            }
        };
        let content = content.map_err(|error| error.file(&path))?;
        Ok(Self { path, file, content })
    }

    /// Makes the guest's data readable: refuses encryption, opens the data file.
    pub(super) fn ready_for_data(mut self, policy: &Policy) -> Result<Self> {
        let Content::Qcow2 { image, data } = &mut self.content else { return Ok(self) };
        refuse_encryption(image).map_err(|error| error.file(&self.path))?;
        let raw = image.header().autoclear.contains(Autoclear::DATA_FILE_RAW);
        if raw && !image.has_data_file() {
            return Err(Error::corrupt("the bit for a raw data file is set, but there is none")
                .structure("header")
                .file(&self.path));
        }
        if image.has_data_file() {
            let name = image.area().data_file_name().filter(|name| !name.is_empty());
            let name = name.ok_or_else(|| {
                Error::corrupt("the image has an external data file but does not name it")
                    .file(&self.path)
            })?;
            // Never a protocol, whatever it looks like (trap 113).
            let path = ImageName::data_file(name).beside(&self.path);
            let file = Arc::new(policy.data_file.open(&path)?);
            *data = Some(DataFile { path, file });
        }
        Ok(self)
    }

    /// Switches to the view of an internal snapshot.
    pub(super) fn at_snapshot(mut self, id_or_name: &str) -> Result<Self> {
        self.content = match self.content {
            Content::Qcow2 { image, data } => {
                let image =
                    image.at_snapshot(id_or_name).map_err(|error| error.file(&self.path))?;
                Content::Qcow2 { image: Box::new(image), data }
            }
            Content::Raw(_) => {
                return Err(Error::usage("a raw image has no internal snapshots").file(&self.path));
            }
        };
        Ok(self)
    }

    /// The name under which it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that holds it.
    pub fn file(&self) -> &FileStorage {
        &self.file
    }

    /// Its format.
    pub fn format(&self) -> Format {
        match self.content {
            Content::Raw(_) => Format::Raw,
            Content::Qcow2 { .. } => Format::Qcow2,
        }
    }

    /// The QCOW2 image; `None` for raw layers.
    pub fn image(&self) -> Option<&Image> {
        match &self.content {
            Content::Raw(_) => None,
            Content::Qcow2 { image, .. } => Some(image),
        }
    }

    /// Size of the layer's disk in bytes, a multiple of 512. The last sector of a raw file may
    /// be cut off; it reads as if padded with zeros (traps 106, 131).
    pub fn virtual_size(&self) -> u64 {
        match &self.content {
            Content::Raw(range) => range.size,
            Content::Qcow2 { image, .. } => image.virtual_size(),
        }
    }

    /// Where uncompressed guest data lives.
    pub(crate) fn data(&self) -> &FileStorage {
        match &self.content {
            Content::Qcow2 { data: Some(data), .. } => &data.file,
            _ => &self.file,
        }
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
            Content::Raw(_) => 4096,
            Content::Qcow2 { image, .. } => image.geometry().subcluster_size(),
        }
    }

    /// The first offset at or after `from` where the layer may have something; `None` if nowhere.
    pub(crate) fn next_mapped(&self, from: u64) -> Result<Option<u64>> {
        match &self.content {
            Content::Raw(range) => range.next_data(&self.file, from).map_err(hole_error),
            Content::Qcow2 { image, .. } => image.next_mapped(from),
        }
        .map_err(|error| error.file(&self.path))
    }

    /// Prepares to look up ranges of `start..end`, which lies within the virtual size.
    pub(crate) fn window(&self, start: u64, end: u64) -> Result<LayerWindow<'_>> {
        match &self.content {
            Content::Raw(range) => Ok(LayerWindow::Raw(&self.file, *range)),
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
            Content::Raw(range) => Ok(LayerWindow::RawBytes(*range)),
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
    Raw(&'a FileStorage, RawRange),
    RawBytes(RawRange),
    Qcow2(TableWindow<'a>),
}

impl LayerWindow<'_> {
    /// Appends the runs of `start..end`.
    pub(crate) fn runs(&mut self, start: u64, end: u64, runs: &mut Vec<Run>) -> Result<()> {
        match self {
            Self::Raw(file, range) => range.runs(file, start, end, runs).map_err(hole_error),
            Self::RawBytes(range) => {
                let kind = RunKind::Data(HostOffset(range.start.saturating_add(start)));
                push_run(runs, Run { guest: start, len: end.saturating_sub(start), kind });
                Ok(())
            }
            Self::Qcow2(window) => window.runs(start, end, runs),
        }
    }
}

impl RawRange {
    /// The first byte at or after `from` on the disk that may be other than a hole.
    fn next_data(self, file: &FileStorage, from: u64) -> std::io::Result<Option<u64>> {
        let data = file.next_data(from.saturating_add(self.start))?;
        Ok(data.map(|at| at.saturating_sub(self.start)).filter(|at| *at < self.size))
    }

    fn runs(
        self,
        file: &FileStorage,
        start: u64,
        end: u64,
        runs: &mut Vec<Run>,
    ) -> std::io::Result<()> {
        let mut at = start;
        while at < end {
            let data = self.next_data(file, at)?.unwrap_or(end).clamp(at, end);
            let len = data.saturating_sub(at);
            push_run(runs, Run { guest: at, len, kind: RunKind::Zero(None) });
            if data >= end {
                break;
            }
            let host = self.start.saturating_add(data);
            // At least one byte further, or a file system with odd answers would hold us forever.
            let hole = file.next_hole(host)?.saturating_sub(self.start);
            let hole = hole.clamp(data.saturating_add(1), end);
            let kind = RunKind::Data(HostOffset(host));
            push_run(runs, Run { guest: data, len: hole.saturating_sub(data), kind });
            at = hole;
        }
        Ok(())
    }
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
    Err(Error::new(ErrorKind::Encrypted, message).hint(Remedy::Decrypt))
}
