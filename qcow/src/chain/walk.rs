//! Goes down a chain layer by layer, and tells where and why it ends early.
//!
//! This is the only place that decides what a backing file's name means and in which format it is read:
//! a format is never guessed below the active layer. Only headers are read; files are opened by the
//! caller's [`Open`].

mod found;
mod opener;

use std::collections::HashSet;
use std::iter::FusedIterator;
use std::path::{Path, PathBuf};

use super::json;
use super::name::{Below, ImageName, Window};
use super::stated::Statements;
use super::view::{Range, View};
use super::{Format, FormatSource, MAX_DEPTH, OpenOptions, check_only};
use crate::format::HeaderArea;
use crate::image::{Purpose, read_header_area};
use crate::io::{Identity, Storage};
use crate::{Error, ErrorKind, LimitName, Remedy, Result};

pub use found::{Broken, LayerFound};
pub use opener::{Files, Open};

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
