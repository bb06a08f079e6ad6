//! What is found on the way down a chain: a layer, or why there is none.

use std::path::PathBuf;
use std::sync::Arc;

use super::super::name::{ImageName, Window};
use super::super::view::{Range, View};
use super::super::{Format, FormatSource, Layer, Warning};
use crate::format::HeaderArea;
use crate::io::Storage;
use crate::{Error, Result};

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
    pub(in crate::chain) windows: Vec<Window>,
    /// Where the name by which it was opened says that the data file is.
    pub(in crate::chain) data_file: Option<PathBuf>,
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
    /// [`Corrupt`](crate::ErrorKind::Corrupt) if its name asks for a range that the file does not have.
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
    pub(in crate::chain) fn into_layer(self) -> Result<Layer> {
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
    pub(in crate::chain) fn active(name: &ImageName, file: F, header: HeaderArea) -> Self {
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
