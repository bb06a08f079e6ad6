//! What the operator wants and allows.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::tuning::Tuning;
use crate::setters::setters;

/// Whether disks with a backing file keep one at the destination.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Style {
    /// Where an equal backing file is proven to exist, yes; otherwise the new image has none.
    #[default]
    Auto,
    /// Yes; the backing file is copied to the destination if necessary.
    Thin,
    /// No: no new image has a backing file.
    Full,
}

/// How thoroughly the content is compared after the migration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Verify {
    /// Not at all.
    None,
    /// Headers, chains, structure.
    #[default]
    Meta,
    /// And some leaves of the content, the guest paused meanwhile.
    Sample,
    /// And all of the content, the guest paused meanwhile.
    Content,
}

/// `OLD=NEW`: what starts with `OLD` on the source is at `NEW` on the destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PathMap {
    /// A path or directory on the source host.
    pub old: PathBuf,
    /// What it is on the destination host.
    pub new: PathBuf,
}

/// Long enough for a burst of writes to pass.
const STALL: u64 = 300;

/// Whether it need not be written down: plans of versions without it mean the same.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_usual(stall: &u64) -> bool {
    *stall == STALL
}

/// What the operator wants and allows. The default is careful and needs no answers.
///
/// ```
/// use migrate::plan::{Policy, Style};
/// let policy = Policy::default().style(Style::Thin).timeout(600_u64);
/// assert_eq!((policy.style, policy.timeout), (Style::Thin, Some(600)));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
#[non_exhaustive]
pub struct Policy {
    /// Whether overlays stay overlays.
    pub style: Style,
    /// Path changes; the longest `old` that fits wins.
    pub path_map: Vec<PathMap>,
    /// Directory for all new images, unless `path_map` says where one goes.
    pub target_dir: Option<PathBuf>,
    /// The operator's word on storage that cannot be examined: directories that both hosts share.
    pub shared: Vec<PathBuf>,
    /// The operator's word: directories that they do not share.
    pub distinct: Vec<PathBuf>,
    /// Use an existing target image of exactly the right size and format; forces full copies.
    pub adopt: bool,
    /// Go on although internal snapshots are lost.
    pub drop_internal_snapshots: bool,
    /// Copy disks with external data files into images without.
    pub allow_data_file: bool,
    /// Empty removable drives whose medium cannot be reached at the destination.
    pub eject: bool,
    /// Make directories that the destination does not have, with owner, mode and label of the source's.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub make_directories: bool,
    /// Layers that a chain may have.
    pub max_depth: usize,
    /// How thoroughly to compare afterwards.
    pub verify: Verify,
    /// Bytes a second, for all streams together; `None` is as fast as it goes.
    pub bandwidth: Option<u64>,
    /// Memory and disks travel encrypted; both libvirts must be set up for it.
    pub tls: bool,
    /// Guest writes wait for the copy, so that it ends in any case.
    pub sync_writes: bool,
    /// Seconds after which a migration that has not ended is stopped.
    pub timeout: Option<u64>,
    /// Leave devices that only some hosts can migrate to libvirt and QEMU.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub try_devices: bool,
    /// Seconds after which a migration is stopped whose disks have come no nearer to their copies, because the
    /// guest writes as fast as they are copied; 0 is never.
    #[serde(skip_serializing_if = "is_usual")]
    pub stall: u64,
    /// How memory is sent, and over which network.
    #[serde(skip_serializing_if = "Tuning::is_default")]
    pub tuning: Tuning,
    /// Days that the source's files are kept under another name.
    pub retain_days: u32,
}

setters!(Policy {
    style: Style,
    adopt: bool,
    drop_internal_snapshots: bool,
    allow_data_file: bool,
    eject: bool,
    make_directories: bool,
    max_depth: usize,
    verify: Verify,
    tls: bool,
    sync_writes: bool,
    try_devices: bool,
    stall: u64,
    tuning: Tuning,
    retain_days: u32,
} into {
    path_map: Vec<PathMap>,
    target_dir: Option<PathBuf>,
    shared: Vec<PathBuf>,
    distinct: Vec<PathBuf>,
    bandwidth: Option<u64>,
    timeout: Option<u64>,
});

impl Default for Policy {
    fn default() -> Self {
        Self {
            style: Style::default(),
            path_map: Vec::new(),
            target_dir: None,
            shared: Vec::new(),
            distinct: Vec::new(),
            adopt: false,
            drop_internal_snapshots: false,
            allow_data_file: false,
            eject: false,
            make_directories: false,
            max_depth: 16,
            verify: Verify::default(),
            bandwidth: None,
            tls: false,
            sync_writes: false,
            timeout: None,
            try_devices: false,
            stall: STALL,
            tuning: Tuning::default(),
            retain_days: 7,
        }
    }
}

impl Policy {
    /// Where the file at `path` on the source goes on the destination.
    pub fn mapped(&self, path: &Path) -> PathBuf {
        let best = self
            .path_map
            .iter()
            .filter(|map| path.starts_with(&map.old))
            .max_by_key(|map| map.old.components().count());
        if let Some(map) = best {
            return match path.strip_prefix(&map.old) {
                Ok(rest) if !rest.as_os_str().is_empty() => map.new.join(rest),
                _ => map.new.clone(),
            };
        }
        match (&self.target_dir, path.file_name()) {
            (Some(dir), Some(name)) => dir.join(name),
            _ => path.to_path_buf(),
        }
    }
}
