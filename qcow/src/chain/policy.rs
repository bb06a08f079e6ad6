//! Which files an image may have opened, and how much it may demand.

use std::path::{Path, PathBuf};

use super::{Foreign, Format, Layer};
use crate::image::Image;
use crate::io::FileStorage;
use crate::setters::setters;
use crate::{Error, LimitName, Remedy, Result};

/// The deepest chain that can be opened, the active layer included.
pub const MAX_DEPTH: usize = 200;

/// Which files an image may name and have opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum FilePolicy {
    /// Any regular file or block device that the process can open.
    #[default]
    AnyLocal,
    /// Only files that really live below one of these directories, symbolic links resolved.
    Within(Vec<PathBuf>),
    /// Only files below this directory, which is taken for the root of all names: absolute ones and
    /// symbolic links begin there as well, and nothing leads out. Holds for the active layer too.
    InRoot(PathBuf),
    /// None.
    Deny,
}

impl FilePolicy {
    /// Opens `path` if that is allowed.
    pub(crate) fn open(&self, path: &Path) -> Result<FileStorage> {
        if *self == Self::Deny {
            return Err(Error::denied("the policy does not allow opening it").file(path));
        }
        if let Self::InRoot(root) = self {
            return FileStorage::open_in_root(root, path);
        }
        let Self::Within(roots) = self else { return FileStorage::open(path) };
        let real =
            path.canonicalize().map_err(|error| Error::io("could not open", error).file(path))?;
        let below = |root: &PathBuf| {
            let root = root.canonicalize().ok()?;
            let inside = real.strip_prefix(&root).ok()?.to_path_buf();
            Some((root, inside))
        };
        let (root, inside) = roots.iter().find_map(below).ok_or_else(|| {
            Error::denied("it lives outside the allowed directories")
                .file(path)
                .hint(Remedy::AllowDirectory)
        })?;
        // No link is left in this name: one that appears now ends in an error, not somewhere else.
        FileStorage::open_beneath(&root, &inside).map_err(|error| error.file(path))
    }
}

/// What may be opened on the word of an image. The image that the caller names is always opened,
/// but within the root if `backing` gives one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Policy {
    /// Backing files.
    pub backing: FilePolicy,
    /// External data files.
    pub data_file: FilePolicy,
    /// Nothing about the active layer is taken on trust: its format must be stated and its first bytes
    /// must not be another one's, its name must not be a symbolic link, and it is refused, even to
    /// those who would only look at its header, if it names a file that may not be opened.
    pub strict: bool,
}

setters!(Policy {
    backing: FilePolicy,
    data_file: FilePolicy,
    strict: bool,
} into {});

impl Policy {
    /// Refuses an active layer, or a stream, whose format was not stated, if the policy is strict.
    ///
    /// # Errors
    /// [`Denied`](crate::ErrorKind::Denied).
    pub fn check_stated(&self, stated: bool) -> Result<()> {
        if stated || !self.strict {
            return Ok(());
        }
        Err(Error::denied("the format of an image that is not trusted must be stated")
            .hint(Remedy::StateFormat))
    }

    /// Opens the active layer.
    pub(super) fn open_active(&self, path: &Path) -> Result<FileStorage> {
        match &self.backing {
            root @ FilePolicy::InRoot(_) => root.open(path),
            _ if self.strict => FileStorage::open_no_link(path),
            _ => FileStorage::open(path),
        }
    }

    /// Checks that what was opened is what it is said to be.
    pub(super) fn check_format(&self, file: &FileStorage, format: Format) -> Result<()> {
        if !self.strict || format == Format::Qcow2 {
            return Ok(());
        }
        let Some(found) = Foreign::find(file)? else { return Ok(()) };
        Err(Error::denied(format!("it is said to be {format}, and its bytes are those of {found}"))
            .hint("a program that guesses formats would not read it as raw: do not pass it on"))
    }

    /// Checks the files that the active layer names.
    pub(super) fn check_names(&self, image: &Image) -> Result<()> {
        let area = image.area();
        let refused = |what: &str| {
            Err(Error::denied(format!(
                "it names a {what}, which an image that is not trusted may not"
            ))
            .structure("header")
            .hint(Remedy::AllowDirectory))
        };
        if self.strict && self.backing == FilePolicy::Deny && area.backing_name.is_some() {
            return refused("backing file");
        }
        let data_file = image.has_data_file() || area.data_file_name().is_some();
        if self.strict && self.data_file == FilePolicy::Deny && data_file {
            return refused("data file");
        }
        Ok(())
    }
}

/// How much an image may demand.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Images in a chain, the active layer included; never more than [`MAX_DEPTH`].
    pub max_depth: usize,
    /// Largest virtual size in bytes.
    pub max_virtual_size: u64,
    /// Most bytes of tables that are needed at once for one image: L1, refcount, snapshot tables, and
    /// what [`use_once`](Self::use_once) keeps (one bit for each host cluster). QEMU's own limits hold
    /// as well.
    pub max_metadata: u64,
    /// Before data is read, refuse an image in which two guest clusters, or two entries of the L1
    /// table, share a host cluster; in which tables or data lie past the end of the file; or whose
    /// compressed clusters, by their lengths or at 1032 bytes from each byte, do not fit in it. No program
    /// writes such an image, and one of a few kilobytes can stand for petabytes of work. Costs one look at all
    /// its tables.
    pub use_once: bool,
}

setters!(Limits {
    max_depth: usize,
    max_virtual_size: u64,
    max_metadata: u64,
    use_once: bool,
} into {});

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_depth: MAX_DEPTH,
            max_virtual_size: i64::MAX.unsigned_abs(),
            max_metadata: u64::MAX,
            use_once: false,
        }
    }
}

impl Limits {
    /// For an image of unknown origin: 64 TiB of disk, 32 MiB of tables, every cluster used once.
    /// The depth stays: what may be opened at all is the [`Policy`]'s business.
    pub fn untrusted() -> Self {
        Self {
            max_virtual_size: 64 << 40,
            max_metadata: 32 << 20,
            use_once: true,
            ..Self::default()
        }
    }

    pub(super) fn check_size(&self, virtual_size: u64) -> Result<()> {
        if virtual_size <= self.max_virtual_size {
            return Ok(());
        }
        let most = self.max_virtual_size;
        Err(Error::limit(format!("the virtual size is {virtual_size} bytes, allowed are {most}"))
            .hint(Remedy::RaiseLimit(LimitName::VirtualSize)))
    }

    /// Checks what the layer's header claims.
    pub(super) fn check(&self, layer: &Layer) -> Result<()> {
        let Some(image) = layer.image() else { return Ok(()) };
        let claimed = image.table_bytes();
        if claimed <= self.max_metadata {
            return Ok(());
        }
        Err(self.too_much(claimed))
    }

    fn too_much(&self, claimed: u64) -> Error {
        Error::limit(format!("it has {claimed} bytes of tables, allowed are {}", self.max_metadata))
            .hint(Remedy::RaiseLimit(LimitName::Metadata))
    }

    /// Checks, before data is read, that no cluster is used twice.
    pub(super) fn check_use(&self, layer: &Layer) -> Result<()> {
        match layer.image() {
            Some(image) if self.use_once => {
                let kept = image.host_clusters().div_ceil(8);
                if kept > self.max_metadata {
                    return Err(self.too_much(kept));
                }
                image.check_overlap_limits()
            }
            _ => Ok(()),
        }
    }
}
