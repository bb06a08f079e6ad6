//! Goes down a chain layer by layer, and tells where and why it ends early.
//!
//! This is the only place that decides what a backing file's name means and in which format it is read:
//! a format is never guessed below the active layer. Only headers are read; files are opened by the
//! caller's [`Open`].

use std::collections::HashSet;
use std::iter::FusedIterator;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::json;
use super::name::{Below, ImageName, Window};
use super::stated::Statements;
use super::view::{Range, View};
use super::{
    FilePolicy, Format, FormatSource, Layer, MAX_DEPTH, OpenOptions, Warning, check_only,
    lock_for_reading,
};
use crate::format::HeaderArea;
use crate::image::{Purpose, read_header_area};
use crate::io::{FileStorage, Identity, Storage};
use crate::{Error, ErrorKind, LimitName, Remedy, Result};

/// Opens the files of a chain: below a root, through descriptors, from a storage pool.
pub trait Open {
    /// What it opens.
    type File: Storage;

    /// Opens the file that is called `path`. `depth` 0 is the active layer.
    ///
    /// # Errors
    /// Why it could not be opened; [`Io`](ErrorKind::Io) with the system's own error where there is one, so
    /// that a file that is gone can be told from others.
    fn open(&self, path: &Path, depth: usize) -> Result<Self::File>;

    /// Which object the file is, so that a chain that comes back to it is noticed at once. `None` if that
    /// is not known: then equal paths are one object.
    fn identity(&self, file: &Self::File) -> Option<Identity> {
        let _ = file;
        None
    }

    /// Called when the format is known, before the header is read.
    ///
    /// # Errors
    /// Why the file is not to be read.
    fn check(&self, file: &Self::File, format: Format, depth: usize) -> Result<()> {
        let _ = (file, format, depth);
        Ok(())
    }
}

/// Local files, as [`OpenOptions`] let them be opened: by its policy, with its replacements, and, unless
/// other processes may write meanwhile, with QEMU's locks.
#[derive(Debug, Clone, Copy)]
pub struct Files<'a> {
    options: &'a OpenOptions,
}

impl<'a> Files<'a> {
    /// Files by these options.
    pub fn new(options: &'a OpenOptions) -> Self {
        Self { options }
    }
}

impl Open for Files<'_> {
    type File = FileStorage;

    fn open(&self, path: &Path, depth: usize) -> Result<FileStorage> {
        let policy = &self.options.policy;
        let backing = &policy.backing;
        let replacement = self.options.overrides.iter().find(|(name, _)| name == path);
        match replacement {
            Some((_, file)) if !matches!(backing, FilePolicy::InRoot(_)) => FileStorage::open(file),
            Some((_, file)) => backing.open(file),
            None if depth == 0 => policy.open_active(path),
            None => backing.open(path),
        }
    }

    fn identity(&self, file: &FileStorage) -> Option<Identity> {
        Some(file.identity())
    }

    fn check(&self, file: &FileStorage, format: Format, depth: usize) -> Result<()> {
        if !self.options.force_share {
            lock_for_reading(file, format)?;
        }
        if depth == 0 { self.options.policy.check_format(file, format) } else { Ok(()) }
    }
}

/// A layer of a chain, by its header.
#[derive(Debug)]
#[non_exhaustive]
pub struct LayerFound<F> {
    /// 0 is the active layer.
    pub depth: usize,
    /// The name under which it was opened, relative names joined to where they start.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// How that is known.
    pub format_source: FormatSource,
    /// The header, with its extensions and names; `None` for raw layers.
    pub header: Option<HeaderArea>,
    /// The open file.
    pub file: F,
    /// The layer's name has no directory of its own and is relative to the working directory of the
    /// process that opens it: QEMU may have opened another file.
    pub depends_on_process: bool,
    /// It records a backing file, and the name by which it was opened says to leave that out.
    pub backing_left_out: bool,
    pub(super) windows: Vec<Window>,
    /// Where the name by which it was opened says that the data file is.
    pub(super) data_file: Option<PathBuf>,
}

impl<F> LayerFound<F> {
    /// Where its external data file is: where the name by which it was opened says, or else its header, relative
    /// names joined to where they start. `None` if neither names one. Whether the image has its data there is
    /// another matter, which opening it tells.
    ///
    /// ```no_run
    /// use std::path::Path;
    /// use qcow::chain::{Files, OpenOptions, walk};
    ///
    /// let options = OpenOptions::default();
    /// let name = Path::new(
    ///     r#"json:{"driver": "qcow2", "file.filename": "a.qcow2", "data-file.filename": "/srv/a.raw"}"#,
    /// );
    /// for layer in walk(Files::new(&options), name, &options).flatten() {
    ///     println!("{}: {:?}", layer.path.display(), layer.data_file());
    /// }
    /// ```
    pub fn data_file(&self) -> Option<PathBuf> {
        let recorded = || self.header.as_ref()?.data_file_name().filter(|name| !name.is_empty());
        let beside = |name| ImageName::data_file(name).beside(&self.path);
        self.data_file.clone().or_else(|| recorded().map(beside))
    }
}

impl<F: Storage> LayerFound<F> {
    /// Size of the layer's disk in bytes, a multiple of 512.
    ///
    /// # Errors
    /// [`Corrupt`](ErrorKind::Corrupt) if its name asks for a range that the file does not have.
    pub fn virtual_size(&self) -> Result<u64> {
        match &self.header {
            Some(area) => Ok(area.header.virtual_size()),
            None => Range::of(&self.windows, self.file.len()).map(|range| range.size),
        }
    }

    /// Whether the name by which it was opened says where its external data file is.
    #[cfg(feature = "ops")]
    pub(crate) fn states_data_file(&self) -> bool {
        self.data_file.is_some()
    }

    /// Whether it is a range of its file, not the whole of it.
    #[cfg(feature = "ops")]
    pub(crate) fn is_part_of_file(&self) -> bool {
        !self.windows.is_empty()
    }

    /// What is uncertain about this layer.
    pub fn warning(&self) -> Option<Warning> {
        self.depends_on_process.then(|| Warning::WorkingDirectory { layer: self.path.clone() })
    }
}

impl<F: Storage + 'static> LayerFound<F> {
    /// Opens the image, but no data file.
    pub(super) fn into_layer(self) -> Result<Layer> {
        let storage: Arc<dyn Storage> = Arc::new(self.file);
        let storage = if self.windows.is_empty() {
            storage
        } else {
            let range = Range::of(&self.windows, storage.len());
            Arc::new(View::new(storage, range.map_err(|error| error.file(&self.path))?))
        };
        Ok(Layer::new(self.path, storage, self.format)?.with_data_in(self.data_file))
    }
}

impl<F> LayerFound<F> {
    /// A QCOW2 image that is open already, by this name.
    pub(super) fn active(name: &ImageName, file: F, header: HeaderArea) -> Self {
        Self {
            depth: 0,
            path: name.path.clone(),
            format: Format::Qcow2,
            format_source: FormatSource::Stated,
            header: Some(header),
            file,
            depends_on_process: false,
            backing_left_out: false,
            windows: Vec::new(),
            data_file: name.data_file.clone(),
        }
    }
}

/// Where a chain ends early.
#[derive(Debug)]
#[non_exhaustive]
pub struct Broken {
    /// How many layers are above.
    pub depth: usize,
    /// The file; where its name is not understood, the name as it stands in the header.
    pub path: PathBuf,
    /// The layer that names it; `None` for the active layer.
    pub by: Option<PathBuf>,
    /// Its format, if that is recorded or stated.
    pub format: Option<Format>,
    /// Why.
    pub error: Error,
}

impl Broken {
    /// Whether nothing has the file's name any more.
    pub fn is_gone(&self) -> bool {
        let gone = |error: &std::io::Error| {
            matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
        };
        self.error.io_source().is_some_and(gone)
    }
}

/// The layers of the chain of the image at `name`, from the active layer down; after the last layer that
/// can be read, why the next cannot. Nothing but headers is read, and nothing is kept open but what the
/// caller keeps. Of `options`, formats, working directory and the depth limit count here; the policy is
/// the opener's business.
///
/// ```no_run
/// use std::path::Path;
/// use qcow::chain::{Files, OpenOptions, walk};
///
/// let options = OpenOptions::default();
/// for layer in walk(Files::new(&options), Path::new("overlay.qcow2"), &options) {
///     match layer {
///         Ok(layer) => println!("{}: {}", layer.path.display(), layer.format),
///         Err(broken) => println!("{}: {}", broken.path.display(), broken.error),
///     }
/// }
/// ```
pub fn walk<'a, O: Open>(opener: O, name: &Path, options: &'a OpenOptions) -> Walk<'a, O> {
    let start = Next::active(name, options).map_err(|error| {
        Box::new(Broken {
            depth: 0,
            path: name.into(),
            by: None,
            format: None,
            error: error.file(name),
        })
    });
    Walk {
        opener,
        options,
        statements: Statements::new(&options.backing_formats),
        next: Some(start),
        seen: HashSet::new(),
        paths: HashSet::new(),
        depth: 0,
    }
}

/// Iterator of [`walk`].
#[derive(Debug)]
pub struct Walk<'a, O> {
    opener: O,
    options: &'a OpenOptions,
    statements: Statements<'a>,
    /// An error here waits until the caller asks for that layer.
    next: Option<Result<Next, Box<Broken>>>,
    seen: HashSet<Identity>,
    /// Of files without an identity.
    paths: HashSet<PathBuf>,
    depth: usize,
}

/// The next layer, before it is opened.
#[derive(Debug)]
struct Next {
    path: PathBuf,
    by: Option<PathBuf>,
    /// `None`: the first bytes are to tell. Below the active layer only where the caller allows it.
    format: Option<(Format, FormatSource)>,
    depends_on_process: bool,
    only: Option<Format>,
    windows: Vec<Window>,
    below: Below,
    data_file: Option<PathBuf>,
}

impl Next {
    fn active(path: &Path, options: &OpenOptions) -> Result<Self> {
        let name = ImageName::from_user(path)?;
        let stated = |format| (format, FormatSource::Stated);
        let format = match (options.format, &name.driver) {
            (Some(format), _) => Some(stated(format)),
            (None, Some(driver)) => Some(stated(driver.parse()?)),
            (None, None) if name.plain_file => Some(stated(Format::Raw)),
            (None, None) => None,
        };
        check_plain_file(&name, format.map(|(format, _)| format))?;
        options.policy.check_stated(format.is_some())?;
        Ok(Self {
            path: name.path,
            by: None,
            format,
            depends_on_process: false,
            only: name.only,
            windows: name.windows,
            below: name.below,
            data_file: name.data_file,
        })
    }

    fn broken(&self, depth: usize, error: Error) -> Broken {
        Broken {
            depth,
            path: self.path.clone(),
            by: self.by.clone(),
            format: self.format.map(|(format, _)| format),
            error: error.file(&self.path),
        }
    }
}

impl<'a, O: Open> Walk<'a, O> {
    /// Starts below `active`, whose name said `below` of its backing file.
    pub(super) fn below_layer(
        opener: O,
        active: &mut LayerFound<O::File>,
        below: &Below,
        options: &'a OpenOptions,
    ) -> Self {
        let mut walk = Self {
            seen: opener.identity(&active.file).into_iter().collect(),
            opener,
            options,
            statements: Statements::new(&options.backing_formats),
            next: None,
            paths: HashSet::new(),
            depth: 1,
        };
        walk.next = walk.below(active, below).transpose();
        walk
    }
}

impl<O: Open> Walk<'_, O> {
    /// Whether all that the caller stated of backing files was of use; to be asked below the last layer.
    ///
    /// # Errors
    /// [`Usage`](ErrorKind::Usage), with a name that no layer has.
    pub fn check_used(&self) -> Result<()> {
        self.statements.check_used()
    }

    fn layer(&mut self, next: &mut Next) -> Result<LayerFound<O::File>> {
        let depth = self.depth;
        let most = self.options.limits.max_depth.clamp(1, MAX_DEPTH);
        if depth >= most {
            let remedy = match most {
                MAX_DEPTH => Remedy::FlattenLower,
                _ => Remedy::RaiseLimit(LimitName::Depth),
            };
            return Err(Error::limit(format!("the backing chain is deeper than {most} images"))
                .hint(remedy));
        }
        let opened = self.opener.open(&next.path, depth);
        let file = opened.map_err(|error| missing_base(error, depth))?;
        let new = match self.opener.identity(&file) {
            Some(identity) => self.seen.insert(identity),
            None => self.paths.insert(next.path.clone()),
        };
        if !new {
            return Err(Error::corrupt("the backing chain comes back to this file"));
        }
        let (format, format_source) = match next.format {
            Some(known) => known,
            None => (Format::probe_named(&file, &next.path)?, FormatSource::Probed),
        };
        check_only(next.only, format)?;
        let view = match next.windows.as_slice() {
            [] => None,
            windows => Some(View::new(&file, Range::of(windows, file.len())?)),
        };
        let bytes = view.as_ref().map_or(&file as &dyn Storage, |view| view);
        self.statements.check(format, format_source, bytes, &next.path)?;
        self.opener.check(&file, format, depth)?;
        let header = match format {
            Format::Raw => None,
            Format::Qcow2 => Some(read_header_area(bytes, Purpose::Read)?),
        };
        Ok(LayerFound {
            depth,
            path: next.path.clone(),
            format,
            format_source,
            header,
            file,
            depends_on_process: next.depends_on_process,
            backing_left_out: false,
            windows: std::mem::take(&mut next.windows),
            data_file: next.data_file.take(),
        })
    }

    /// The backing file of `layer`, whose own name said `below` of it.
    fn below(
        &mut self,
        layer: &mut LayerFound<O::File>,
        below: &Below,
    ) -> Result<Option<Next>, Box<Broken>> {
        let recorded = layer.header.as_ref().and_then(|area| area.backing_name.clone());
        let mut broken = Broken {
            depth: layer.depth.saturating_add(1),
            path: name_shown(recorded.as_deref().unwrap_or_default()),
            by: Some(layer.path.clone()),
            format: None,
            error: Error::usage(""),
        };
        match (below, &layer.header) {
            (Below::Nothing, _) => {
                layer.backing_left_out = recorded.is_some();
                return Ok(None);
            }
            (Below::Recorded, _) if recorded.is_none() => return Ok(None),
            (Below::Recorded, _) | (Below::Options(_), Some(_)) => {}
            (Below::Options(_), None) => {
                broken.error =
                    Error::usage("a raw image cannot have a backing file").file(&layer.path);
                return Err(Box::new(broken));
            }
        }
        match self.named(layer, recorded.as_deref(), below, &mut broken) {
            Ok(next) => Ok(Some(next)),
            Err(error) => {
                broken.error = error.file(&layer.path);
                Err(Box::new(broken))
            }
        }
    }

    fn named(
        &mut self,
        layer: &LayerFound<O::File>,
        recorded: Option<&[u8]>,
        below: &Below,
        broken: &mut Broken,
    ) -> Result<Next> {
        let written = recorded.unwrap_or_default();
        let no_name = || Error::usage("the json: name changes a backing file that is not recorded");
        let from_header = || {
            ImageName::from_header(recorded.ok_or_else(no_name)?)
                .map_err(|error| error.structure("backing file name"))
        };
        let (name, own_driver) = match below {
            Below::Options(options) => {
                (json::overlay(options, from_header)?, json::states_driver(options))
            }
            _ => (from_header()?, false),
        };
        let path = name.resolve(&layer.path, &self.options.working_directory)?;
        broken.path.clone_from(&path);
        // What is recorded beside the name overrules what a json: name says, as in QEMU.
        let beside = layer.header.as_ref().and_then(HeaderArea::backing_format);
        let beside = beside.filter(|_| !own_driver).map(String::from_utf8_lossy);
        let known = match (beside, &name.driver) {
            (Some(format), _) => Some(format.parse()),
            (None, Some(driver)) => Some(driver.parse()),
            (None, None) => name.plain_file.then_some(Ok(Format::Raw)),
        };
        let known: Option<Format> =
            known.transpose().map_err(|error: Error| error.structure("backing format"))?;
        let format = self.statements.format_of(known, &name, written, &path)?;
        broken.format = format.map(|(format, _)| format);
        check_plain_file(&name, broken.format)?;
        Ok(Next {
            path,
            by: Some(layer.path.clone()),
            format,
            depends_on_process: name.depends_on_process(),
            data_file: name.data_file_in(&self.options.working_directory)?,
            only: name.only,
            windows: name.windows,
            below: name.below,
        })
    }
}

impl<O: Open> Iterator for Walk<'_, O> {
    type Item = Result<LayerFound<O::File>, Broken>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut next = match self.next.take()? {
            Ok(next) => next,
            Err(broken) => return Some(Err(*broken)),
        };
        let found = self.layer(&mut next);
        Some(match found {
            Ok(mut layer) => {
                self.next = self.below(&mut layer, &next.below).transpose();
                self.depth = self.depth.saturating_add(1);
                Ok(layer)
            }
            Err(error) => Err(next.broken(self.depth, error)),
        })
    }
}

impl<O: Open> FusedIterator for Walk<'_, O> {}

/// A name that asks for a file's own bytes has no room for a format.
fn check_plain_file(name: &ImageName, format: Option<Format>) -> Result<()> {
    if name.plain_file && format == Some(Format::Qcow2) {
        return Err(Error::usage(
            "the json: name asks for the file's own bytes, not for a qcow2 image",
        )
        .hint(
            "name the format's driver and the file below it: {\"driver\":\"qcow2\",\"file\":{...}}",
        ));
    }
    Ok(())
}

fn name_shown(name: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    PathBuf::from(std::ffi::OsStr::from_bytes(name))
}

fn missing_base(error: Error, depth: usize) -> Error {
    if error.kind() == ErrorKind::NotFound && depth > 0 {
        error.structure("backing file").hint(Remedy::RestoreBacking)
    } else {
        error
    }
}
