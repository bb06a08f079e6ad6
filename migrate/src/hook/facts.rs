//! What is at the places of an arriving guest's disks on this host.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use qcow::chain::{Chain, Format, OpenOptions};
use qcow::{CancelToken, Silent};

use super::annotation::{Below, KnownDisk};
use super::begin::{Place, named_below};
use super::config::{Config, FILE};
use super::gate::TargetImage;
use crate::domain::XmlDisk;
use crate::facts::{BaseFacts, Content};
use crate::probe::destination;
use crate::store::{LocalStore, Store, Wanted};
use crate::target::first_allocated;
use crate::{Error, Result};

/// Numbers of file systems that hosts can share (`statfs`), and their names.
const NETWORK: [(u64, &str); 10] = [
    (0x6969, "NFS"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB"),
    (0x00c3_6400, "CephFS"),
    (0x0116_1970, "GFS2"),
    (0x7461_636f, "OCFS2"),
    (0x4750_4653, "GPFS"),
    (0x0bd0_0bd0, "Lustre"),
    (0x6573_5546, "FUSE"),
    (0xa501_fcf5, "VxFS"),
];

/// The files of this host.
pub(super) struct Files<'a> {
    pub(super) config: &'a Config,
    pub(super) cancel: &'a CancelToken,
    host: LocalStore,
}

/// The files below one root, and the name of a path there.
pub(super) fn below_root(root: &Path, path: &Path) -> Result<(LocalStore, PathBuf)> {
    let inner = path.strip_prefix(root).map_err(|_| {
        Error::refused(format!("'{}' is not below '{}'", path.display(), root.display()))
    })?;
    Ok((LocalStore::new(root)?, Path::new("/").join(inner)))
}

impl<'a> Files<'a> {
    pub(super) fn new(config: &'a Config, cancel: &'a CancelToken) -> Result<Self> {
        Ok(Self { config, cancel, host: LocalStore::new(Path::new("/"))? })
    }

    /// What is at the path of a disk.
    pub(super) fn place(&self, disk: &XmlDisk, path: &Path) -> Place {
        match fs::symlink_metadata(path) {
            Ok(_) => self
                .image_at(disk, path)
                .unwrap_or_else(|error| Place::Unreadable(error.message().to_owned())),
            Err(error) if error.kind() == ErrorKind::NotFound => self.free(path),
            Err(error) => Place::Unreadable(error.to_string()),
        }
    }

    fn free(&self, path: &Path) -> Place {
        let Some(root) = self.config.root_of(path) else { return Place::Free };
        let directory = below_root(root, path)
            .and_then(|(store, inner)| store.available(inner.parent().unwrap_or(Path::new("/"))));
        match directory {
            Ok(_) => Place::Free,
            Err(error) => Place::Barred(error.message().to_owned()),
        }
    }

    fn image_at(&self, disk: &XmlDisk, path: &Path) -> Result<Place> {
        let layers = self.host.chain(&real(path)?, format(disk)?)?;
        let in_use = layers.first().and_then(|layer| layer.in_use.clone());
        let chain = layers.into_iter().map(|layer| layer.layer).collect();
        Ok(Place::Image { chain, in_use })
    }

    /// The image that the XML names below a disk, if it is here, compared with what the source has there.
    pub(super) fn bases(&self, disk: &XmlDisk, known: Option<&KnownDisk>) -> Vec<BaseFacts> {
        let (Some(named), Some(known)) = (named_below(disk).first(), known) else {
            return Vec::new();
        };
        if !matches!(known.below, Below::Disk { .. }) || !self.may_read(&named.path) {
            return Vec::new();
        }
        let Some(Ok(format)) = named.format.as_deref().map(str::parse::<Format>) else {
            return Vec::new();
        };
        self.base(&named.path, format, Some(known)).into_iter().collect()
    }

    /// The target of a disk that is about to be copied.
    pub(super) fn target(
        &self,
        disk: &XmlDisk,
        path: &Path,
        known: Option<&KnownDisk>,
    ) -> Result<TargetImage> {
        let (real, format) = (real(path)?, format(disk)?);
        let layers = self.host.chain(&real, format)?;
        let open = OpenOptions::default().format(format).force_share(true);
        let alone = Chain::open_alone(&real, &open)?;
        let empty = first_allocated(&alone, format.unwrap_or(Format::Qcow2))?.is_none();
        let base = layers.get(1).and_then(|layer| {
            let format = layer.layer.format.as_deref()?.parse().ok()?;
            self.base(&layer.layer.path, format, known)
        });
        Ok(TargetImage {
            empty,
            network: network(&real)?,
            base,
            chain: layers.into_iter().map(|layer| layer.layer).collect(),
        })
    }

    fn base(&self, path: &Path, format: Format, known: Option<&KnownDisk>) -> Option<BaseFacts> {
        let mut base = destination::bases(&self.host, &[path.to_path_buf()], format).pop()?;
        let Some(Below::Disk { digest, virtual_size }) = known.map(|known| &known.below) else {
            return Some(base);
        };
        base.content = if base.virtual_size != *virtual_size && !base.chain.is_empty() {
            Content::Different
        } else if self.may_read(path) {
            self.compared(&base, digest)
        } else {
            Content::Unknown { why: format!("it is not below a root of {FILE}") }
        };
        Some(base)
    }

    fn compared(&self, base: &BaseFacts, digest: &str) -> Content {
        let unknown = |why: String| Content::Unknown { why };
        let format = base.chain.first().and_then(|layer| layer.format.as_deref());
        let Some(Ok(format)) = format.map(str::parse) else {
            return base.content.clone();
        };
        let wanted = Wanted::new(digest);
        match self.host.same_content(&base.path, format, &wanted, &Silent, self.cancel) {
            Ok(content) => content,
            Err(error) if error.kind() == crate::ErrorKind::Interrupted => unknown(format!(
                "it could not be read within {} seconds (deadline in {FILE}); a manifest beside it makes \
                 reading unnecessary",
                self.config.deadline.as_secs()
            )),
            Err(error) => unknown(error.message().to_owned()),
        }
    }

    /// Whether a file is below a configured directory, wherever links lead.
    fn may_read(&self, path: &Path) -> bool {
        let Ok(real) = fs::canonicalize(path) else { return false };
        let roots = self.config.roots.iter().filter_map(|root| fs::canonicalize(root).ok());
        roots.into_iter().any(|root| real.starts_with(root))
    }
}

fn format(disk: &XmlDisk) -> Result<Option<Format>> {
    disk.format.as_deref().map(|format| Ok(format.parse()?)).transpose()
}

fn real(path: &Path) -> Result<PathBuf> {
    fs::canonicalize(path).map_err(|error| Error::io(path.display(), error))
}

/// The name of the file system that a file is on, if hosts can share it.
fn network(path: &Path) -> Result<Option<String>> {
    let status = rustix::fs::statfs(path)
        .map_err(|error| Error::io(format!("could not examine '{}'", path.display()), error))?;
    let number = u64::try_from(status.f_type).unwrap_or_default();
    let found = NETWORK.iter().find(|(known, _)| *known == number);
    Ok(found.map(|(_, name)| (*name).to_owned()))
}
