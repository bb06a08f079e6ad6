//! The chains of the source host's disks, layer by layer, as their headers tell them.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use qcow::chain::{
    BackingFormats, Chain, Format, FormatSource, LayerFound, Open, OpenOptions, WorkingDirectory,
    depends_on_process, resolve_name, walk,
};
use qcow::extent::ExtentKind;
use qcow::io::FileStorage;
use qcow::ops::info::{EncryptionInfo, FormatSpecific, ImageInfo, InfoOptions, Qcow2Info, info};

use super::process::OpenFiles;
use crate::facts::{ChainFacts, FormatFrom, Identity, LayerFacts, Missing, Qcow2Facts, XmlChain};
use crate::fs::{ctime_ns, fd_path, mtime_ns};

/// The files of the source host: below `root`, or held open by the guest's process.
#[derive(Debug)]
pub(super) struct SourceFiles {
    /// `/`, or the directory that stands for it.
    pub(super) root: PathBuf,
    pub(super) open: OpenFiles,
}

impl SourceFiles {
    /// Where the file that the host calls `name` can be read, and whether that name is gone.
    fn place(&self, name: &Path) -> (PathBuf, bool) {
        match self.open.deleted(name) {
            Some(through) => (through.to_path_buf(), true),
            None => (self.real(name), false),
        }
    }

    /// `name` as a path of this machine.
    pub(super) fn real(&self, name: &Path) -> PathBuf {
        self.root.join(name.strip_prefix("/").unwrap_or(name))
    }

    /// The chain of the disk at `top`. `format` is what the XML says of it, `xml` what it says of the layers
    /// below. Nothing is read but headers and tables.
    pub(super) fn chain(&self, top: &Path, format: Option<&str>, xml: &XmlChain) -> ChainFacts {
        let (layers, missing) = self.layers(top, format, xml);
        let complete = missing.is_none();
        let bytes = if complete { bytes(&layers) } else { None };
        let pinned = layers.first().map_or(0, |layer| allocated(&layer.read_from));
        ChainFacts {
            top_bytes: bytes.map_or(pinned, |(top, _)| top),
            guest_bytes: bytes.map(|(_, all)| all),
            below: None,
            layers,
            missing,
        }
    }

    fn layers(
        &self,
        top: &Path,
        format: Option<&str>,
        xml: &XmlChain,
    ) -> (Vec<LayerFacts>, Option<Missing>) {
        let mut layers: Vec<LayerFacts> = Vec::new();
        let missing = |path: &Path, why: String| Some(Missing { path: path.into(), why });
        let format = match format.map(str::parse::<Format>) {
            Some(Ok(format)) => format,
            Some(Err(error)) => return (layers, missing(top, error.message().to_owned())),
            None => {
                let why = "its format is recorded nowhere, and formats are never guessed";
                return (layers, missing(top, why.to_owned()));
            }
        };
        let open = OpenOptions::default()
            .format(format)
            .force_share(true)
            .backing_formats(stated(xml))
            .working_directory(self.open.directory.clone());
        for found in walk(self, top, &open) {
            let (path, told) = match found {
                Ok(found) => (found.path.clone(), self.layer(&found)),
                Err(broken) if broken.is_gone() => {
                    (broken.path, Err("there is no such file".to_owned()))
                }
                Err(broken) => (broken.path, Err(broken.error.message().to_owned())),
            };
            match told {
                Ok(layer) => layers.push(layer),
                Err(why) => return (layers, missing(&path, why)),
            }
        }
        (layers, None)
    }

    /// The facts of one layer; otherwise why there are none.
    fn layer(&self, found: &LayerFound<FileStorage>) -> Result<LayerFacts, String> {
        let (read_from, deleted) = self.place(&found.path);
        let metadata = fs::metadata(&read_from).map_err(|error| error.to_string())?;
        let open = OpenOptions::default().format(found.format).force_share(true);
        let options = InfoOptions::default().open(open);
        let images = info(&read_from, &options).map_err(|error| error.message().to_owned())?;
        let image = images.first().ok_or("it could not be read")?;
        let text = |path: &PathBuf| path.to_string_lossy().into_owned();
        let mut qcow2 = qcow2(image);
        if let (Some(qcow2), Some(path)) = (&mut qcow2, found.data_file()) {
            // The name above may say where it is, whatever the header says.
            qcow2.data_file.get_or_insert_with(|| text(&path));
        }
        Ok(LayerFacts {
            path: found.path.clone(),
            deleted,
            block_device: metadata.file_type().is_block_device(),
            identity: identity(&metadata, image),
            format: found.format,
            format_from: match found.format_source {
                FormatSource::Recorded => FormatFrom::Header,
                _ => FormatFrom::Xml,
            },
            virtual_size: image.virtual_size,
            qcow2,
            backing: image.backing_filename.as_ref().map(text),
            backing_format: image.backing_filename_format.clone(),
            read_from,
        })
    }
}

impl Open for &SourceFiles {
    type File = FileStorage;

    fn open(&self, path: &Path, _depth: usize) -> qcow::Result<FileStorage> {
        FileStorage::open(&self.place(path).0)
    }

    fn identity(&self, file: &FileStorage) -> Option<qcow::io::Identity> {
        Some(file.identity())
    }
}

/// The formats that the XML states of layers below the active one.
fn stated(xml: &XmlChain) -> BackingFormats {
    xml.layers.iter().fold(BackingFormats::new(), |formats, layer| {
        let format = layer.format.as_ref().and_then(|name| name.parse::<Format>().ok());
        match format {
            Some(format) => formats.named(&layer.path, format),
            None => formats,
        }
    })
}

/// Where the process worked that found these layers, if a name among them tells.
fn working_directory(layers: &[LayerFacts]) -> WorkingDirectory {
    let pairs = layers.iter().zip(layers.iter().skip(1));
    let mut told = pairs.filter_map(|(above, below)| {
        let name = Path::new(above.backing.as_ref()?);
        if !depends_on_process(name) {
            return None;
        }
        let relative = resolve_name(name, &above.path, &WorkingDirectory::Own).ok()?;
        below.path.ancestors().nth(relative.components().count()).map(Path::to_path_buf)
    });
    told.next().map_or(WorkingDirectory::Unknown, WorkingDirectory::At)
}

/// Keeps files open that have no name any more, so that they can be read after the guest's process is
/// gone.
#[derive(Debug)]
pub struct PinnedFiles {
    files: Vec<(Identity, File)>,
    /// The guest runs, so its images are locked. Its lower layers do not change, and the active ones are
    /// looked at only.
    runs: bool,
}

impl PinnedFiles {
    /// Of a guest that runs, or does not.
    pub fn of_guest(runs: bool) -> Self {
        Self { files: Vec::new(), runs }
    }

    /// Opens every deleted layer.
    pub(super) fn hold(&mut self, layers: &[LayerFacts]) -> std::io::Result<()> {
        for layer in layers.iter().filter(|layer| layer.deleted) {
            if self.file(layer).is_none() {
                self.files.push((layer.identity, File::open(&layer.read_from)?));
            }
        }
        Ok(())
    }

    fn file(&self, layer: &LayerFacts) -> Option<&File> {
        self.files.iter().find(|(identity, _)| *identity == layer.identity).map(|(_, file)| file)
    }

    /// Where this process can read a layer.
    pub fn place(&self, layer: &LayerFacts) -> PathBuf {
        match self.file(layer) {
            Some(file) => fd_path(file),
            None => layer.read_from.clone(),
        }
    }

    /// Opens layers as the chain that they are, each from where it can be read.
    ///
    /// # Errors
    /// As [`Chain::open`].
    pub fn open(&self, layers: &[LayerFacts]) -> qcow::Result<Chain> {
        let top = layers.first().ok_or_else(|| qcow::Error::usage("the chain has no layer"))?;
        // Backing formats that only the XML knows.
        let unrecorded = layers.iter().skip(1).filter(|layer| layer.format_from == FormatFrom::Xml);
        let options = OpenOptions::default()
            .format(top.format)
            .backing_formats(unrecorded.fold(BackingFormats::new(), |formats, layer| {
                formats.named(&layer.path, layer.format)
            }))
            .working_directory(working_directory(layers))
            .force_share(self.runs)
            .overrides(
                layers.iter().map(|layer| (layer.path.clone(), self.place(layer))).collect(),
            );
        Chain::open(&top.path, &options)
    }
}

fn identity(metadata: &fs::Metadata, image: &ImageInfo) -> Identity {
    let device = metadata.file_type().is_block_device();
    // A device's own length is that of the node below the format.
    let below = image.children.first().map_or(0, |child| child.info.virtual_size);
    Identity {
        device: Some(metadata.dev()),
        inode: Some(metadata.ino()),
        links: Some(metadata.nlink()),
        size: if device { below } else { metadata.len() },
        mtime_ns: mtime_ns(metadata),
        ctime_ns: ctime_ns(metadata),
    }
}

fn qcow2(image: &ImageInfo) -> Option<Qcow2Facts> {
    let Some(FormatSpecific::Qcow2(qcow2)) = &image.format_specific else { return None };
    let qcow2: &Qcow2Info = qcow2;
    Some(Qcow2Facts {
        version: if qcow2.compat == "1.1" { 3 } else { 2 },
        cluster_size: image.cluster_size.unwrap_or_default(),
        extended_l2: qcow2.extended_l2.unwrap_or_default(),
        dirty: image.dirty_flag,
        corrupt: qcow2.corrupt.unwrap_or_default(),
        encryption: match (&qcow2.encrypt, image.encrypted) {
            (Some(EncryptionInfo::Aes { .. }), _) => Some("aes".into()),
            (Some(_), _) | (None, Some(true)) => Some("luks".into()),
            (None, _) => None,
        },
        data_file: qcow2.data_file.clone(),
        snapshots: image.snapshots.iter().map(|snapshot| snapshot.name.clone()).collect(),
        bitmaps: qcow2.bitmaps.iter().map(|bitmap| bitmap.name.clone()).collect(),
    })
}

/// Bytes of data that the active layer holds, and that all layers together show.
fn bytes(layers: &[LayerFacts]) -> Option<(u64, u64)> {
    let chain = PinnedFiles::of_guest(true).open(layers).ok()?;
    let (mut top, mut all) = (0_u64, 0_u64);
    for extent in chain.extents() {
        let extent = extent.ok()?;
        if matches!(extent.kind, ExtentKind::Unallocated | ExtentKind::Zero { .. }) {
            continue;
        }
        all = all.saturating_add(extent.len);
        if extent.depth == 0 {
            top = top.saturating_add(extent.len);
        }
    }
    Some((top, all))
}

fn allocated(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.blocks().saturating_mul(512))
}
