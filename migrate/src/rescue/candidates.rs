//! Looks for a base that is lost among other files. Only its digest, from a manifest, tells that a file is
//! it: neither name nor size do.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use qcow::chain::{Chain, Format, OpenOptions};
use qcow::extent::LeftOut;
use qcow::io::{FileStorage, Storage};
use qcow::ops::digest::{Manifest, tree_hash};
use qcow::ops::info::{InfoOptions, info};
use qcow::{CancelToken, Observer};
use serde::Serialize;

use super::execute::{At, Run, discard};
use super::facts::Facts;
use super::missing::{Cut, find, in_use, ranges};
use super::pinned_files::PinnedFiles;
use super::value::lossy;
use crate::store::{LocalStore, identity_of};
use crate::{Error, ErrorKind, Remedy, Result};

pub use qcow::extent::LeftOutRange as LostRange;

/// What to look for, and where.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct SearchOptions<'a> {
    /// The disk of the guest that does not run.
    pub image: &'a Path,
    /// Its format; `None` looks at its first bytes.
    pub format: Option<Format>,
    /// Where candidates are, with everything below.
    pub directories: &'a [PathBuf],
    /// A manifest of the base, or a directory of manifests.
    pub manifest: Option<&'a Path>,
    /// Put a copy of what is found under the base's name.
    pub restore: bool,
    /// Is told how far the reading of candidates is.
    pub observer: &'a dyn Observer,
    /// Stops it.
    pub cancel: &'a CancelToken,
}

impl<'a> SearchOptions<'a> {
    /// Looks for the lost base of `image` in `directories`, without a manifest, and restores nothing.
    #[must_use]
    pub fn new(
        image: &'a Path,
        directories: &'a [PathBuf],
        observer: &'a dyn Observer,
        cancel: &'a CancelToken,
    ) -> Self {
        Self { image, format: None, directories, manifest: None, restore: false, observer, cancel }
    }

    /// Replaces [`format`](field@Self::format).
    #[must_use]
    pub fn format(self, format: Option<Format>) -> Self {
        Self { format, ..self }
    }

    /// Replaces [`manifest`](field@Self::manifest).
    #[must_use]
    pub fn manifest(self, manifest: Option<&'a Path>) -> Self {
        Self { manifest, ..self }
    }

    /// Replaces [`restore`](field@Self::restore).
    #[must_use]
    pub fn restore(self, restore: bool) -> Self {
        Self { restore, ..self }
    }
}

impl std::fmt::Debug for SearchOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SearchOptions").field("image", &self.image).finish_non_exhaustive()
    }
}

/// What was found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Search {
    /// The disk.
    #[serde(serialize_with = "lossy")]
    pub image: PathBuf,
    /// What it lacks; `None` if its chain is whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<LostBase>,
}

/// A base that is lost.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct LostBase {
    /// Its name.
    #[serde(serialize_with = "lossy")]
    pub name: PathBuf,
    /// Its format, if that is recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// The image that names it.
    #[serde(serialize_with = "lossy")]
    pub needed_by: PathBuf,
    /// Its tree hash, from a manifest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tree_hash: Option<String>,
    /// The name of the image that the manifest was taken of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifest_of: Option<String>,
    /// Bytes of the guest's disk that are lost without it.
    pub lost_bytes: u64,
    /// Where they are, ascending.
    pub lost: Vec<LostRange>,
    /// There are more ranges than are listed.
    pub more: bool,
    /// Regular files that were looked at.
    pub looked_at: u64,
    /// Those of them that may be it.
    pub candidates: Vec<Candidate>,
    /// The copy was put under its name.
    pub restored: bool,
    /// Why it was not, although that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unrestored: Option<String>,
}

impl LostBase {
    /// A file was found that is proven to be it.
    pub fn is_found(&self) -> bool {
        self.candidates.iter().any(|candidate| candidate.verdict == Verdict::Equal)
    }
}

/// A file that may be the base.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Candidate {
    /// Its path.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// The format that it was read as.
    pub format: Format,
    /// Size of its disk in bytes.
    pub virtual_size: u64,
    /// Whether it is the base.
    pub verdict: Verdict,
    /// Why that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// Whether a file is the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Its digest is that of the manifest.
    Equal,
    /// It is not.
    Different,
    /// There is no manifest: its name or its size fit, and prove nothing.
    Unproven,
    /// It could not be read.
    Unreadable,
}

/// Finds out what a disk lacks, and looks for that.
///
/// # Errors
/// [`Usage`](ErrorKind::Usage) if the image or a manifest is none, or several manifests contradict each
/// other; [`Refused`](ErrorKind::Refused) if the image is in use;
/// [`Environment`](ErrorKind::Environment); [`Interrupted`](ErrorKind::Interrupted).
pub fn search(options: &SearchOptions<'_>) -> Result<Search> {
    let image = options.image.to_path_buf();
    let absolute = std::path::absolute(options.image).unwrap_or_else(|_| image.clone());
    let Some(cut) = find(&absolute, options.format)? else {
        return Ok(Search { image, base: None });
    };
    let manifest = options.manifest.map(|path| manifest(path, &cut.name)).transpose()?.flatten();
    let tree = manifest.as_ref().map(|manifest| &manifest.tree);
    let LeftOut { ranges: lost, bytes: lost_bytes, more, .. } =
        ranges(&absolute, options.format, &cut, tree, options.cancel)?;
    let of = manifest.as_ref().and_then(|manifest| manifest.layers.first());
    let mut base = LostBase {
        tree_hash: tree.map(|tree| tree.root.to_string()),
        manifest_of: of.map(|layer| layer.path.to_string_lossy().into_owned()),
        lost_bytes,
        lost,
        more,
        looked_at: 0,
        candidates: Vec::new(),
        restored: false,
        unrestored: None,
        needed_by: cut.by.clone(),
        name: cut.name.clone(),
        format: cut.format,
    };
    let judge = Judge { options, cut: &cut, manifest: manifest.as_ref() };
    for path in files(options.directories, options.cancel)? {
        options.cancel.check()?;
        base.looked_at = base.looked_at.saturating_add(1);
        base.candidates.extend(judge.file(&path)?);
    }
    // What is proven first.
    base.candidates.sort_by_key(|candidate| candidate.verdict != Verdict::Equal);
    if options.restore && base.is_found() {
        match judge.restore(&base) {
            Ok(()) => base.restored = true,
            Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
            Err(error) => base.unrestored = Some(error.message().to_owned()),
        }
    }
    Ok(Search { image, base: Some(base) })
}

/// The manifest of the base: the file, or the one in the directory that was taken of an image of its name.
fn manifest(path: &Path, name: &Path) -> Result<Option<Manifest>> {
    if !path.is_dir() {
        let manifest = Manifest::read(path).map_err(|error| Error::usage(error.to_string()))?;
        if let Some(snapshot) = &manifest.snapshot {
            return Err(Error::usage(format!(
                "{}: it is the manifest of a snapshot, '{snapshot}'",
                path.display()
            )));
        }
        return Ok(Some(manifest));
    }
    let mut of_name = crate::audit::manifests(path)?;
    let paths = of_name.remove(name).unwrap_or_default();
    let mut found: Option<Manifest> = None;
    for path in paths {
        let manifest = Manifest::read(&path)?;
        if found.as_ref().is_some_and(|found| found.tree.root != manifest.tree.root) {
            return Err(Error::usage(format!(
                "there are manifests of different contents of '{}'",
                name.display()
            ))
            .hint(Remedy::ChooseManifest));
        }
        found = Some(manifest);
    }
    Ok(found)
}

/// The regular files in directories and below, in order. Links are not followed; views of the kernel and
/// what cannot be read are left out, but for the directories themselves.
fn files(directories: &[PathBuf], cancel: &CancelToken) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut entered = HashSet::new();
    for directory in directories {
        let unread = |error: std::io::Error| {
            Error::usage(format!("the directory '{}' cannot be read: {error}", directory.display()))
                .caused_by(error)
        };
        fs::read_dir(directory).map_err(unread)?;
        let mut rest = vec![directory.clone()];
        while let Some(directory) = rest.pop() {
            cancel.check()?;
            let new = !crate::audit::is_view(&directory).unwrap_or(true)
                && fs::metadata(&directory)
                    .is_ok_and(|status| entered.insert((status.dev(), status.ino())));
            let entries = if new { fs::read_dir(&directory).ok() } else { None };
            for entry in entries.into_iter().flatten().flatten() {
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => rest.push(entry.path()),
                    Ok(kind) if kind.is_file() => found.push(entry.path()),
                    _ => {}
                }
            }
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// Judges files.
struct Judge<'a> {
    options: &'a SearchOptions<'a>,
    cut: &'a Cut,
    manifest: Option<&'a Manifest>,
}

impl Judge<'_> {
    /// What a file is; nothing if neither its name nor its size fit.
    fn file(&self, path: &Path) -> Result<Option<Candidate>> {
        let named = path.file_name() == self.cut.name.file_name();
        let Ok(storage) = FileStorage::open(path) else { return Ok(None) };
        let probed = Format::probe(&storage).ok();
        let format = match (self.cut.format, probed) {
            (Some(Format::Raw), _) => Format::Raw,
            (_, Some(format)) => format,
            (_, None) => return Ok(None),
        };
        let virtual_size = match format {
            Format::Raw => qcow::format::whole_sectors(storage.len()),
            _ => match size(path) {
                Ok(size) => size,
                Err(why) if named => {
                    let verdict = Verdict::Unreadable;
                    let why = Some(why);
                    let path = path.to_path_buf();
                    return Ok(Some(Candidate { path, format, virtual_size: 0, verdict, why }));
                }
                Err(_) => return Ok(None),
            },
        };
        let candidate = |verdict, why| {
            Some(Candidate { path: path.to_path_buf(), format, virtual_size, verdict, why })
        };
        let Some(manifest) = self.manifest else {
            let why = "nothing proves that it is the backing file: there is no manifest of it";
            let fits = named || (format == Format::Qcow2 && self.is_like(virtual_size));
            return Ok(candidate(Verdict::Unproven, Some(why.into())).filter(|_| fits));
        };
        if virtual_size != manifest.tree.virtual_size {
            let why = format!("the backing file had {} bytes", manifest.tree.virtual_size);
            return Ok(candidate(Verdict::Different, Some(why)).filter(|_| named));
        }
        let SearchOptions { observer, cancel, .. } = self.options;
        let open = OpenOptions::default().format(format);
        let hash =
            Chain::open(path, &open).and_then(|chain| tree_hash(&chain, 0, *observer, cancel));
        Ok(match hash {
            Ok(hash) if hash.root == manifest.tree.root => candidate(Verdict::Equal, None),
            Ok(_) => candidate(Verdict::Different, None),
            Err(error) if error.kind() == qcow::ErrorKind::Interrupted => {
                return Err(Error::interrupted());
            }
            Err(error) => candidate(Verdict::Unreadable, Some(error.message().to_owned())),
        })
    }

    /// Whether a size is that of the disk.
    fn is_like(&self, virtual_size: u64) -> bool {
        size(&self.cut.by).is_ok_and(|size| size == virtual_size)
    }

    /// Copies what was found to the base's name, if that is free.
    fn restore(&self, base: &LostBase) -> Result<()> {
        let wanted = base.tree_hash.as_deref().unwrap_or_default();
        let mut proven =
            base.candidates.iter().filter(|candidate| candidate.verdict == Verdict::Equal);
        let fits = |candidate: &&Candidate| {
            base.format.is_none_or(|format| format == candidate.format)
                && has_no_backing_file(&candidate.path, candidate.format)
        };
        let candidate = proven.find(fits).ok_or_else(|| {
            Error::refused("no file with equal content has the recorded format and no backing file")
        })?;
        let file = File::open(&candidate.path)
            .map_err(|error| Error::io(candidate.path.display(), error))?;
        let identity = identity_of(&FileStorage::open(&candidate.path)?)?;
        let object = identity.device.zip(identity.inode);
        let object = object.ok_or_else(|| Error::environment("the file's number is not known"))?;
        let name = std::path::absolute(&base.name).unwrap_or_else(|_| base.name.clone());
        let mut beside = name.file_name().unwrap_or_default().to_owned();
        beside.push(format!(".rescued-{}", wanted.get(..8).unwrap_or_default()));
        let at = At { store: LocalStore::new(Path::new("/"))?, path: name.with_file_name(beside) };
        let (facts, pinned_files) = (Facts::default(), PinnedFiles::default());
        let SearchOptions { observer, cancel, .. } = *self.options;
        let run = Run { facts: &facts, pinned_files: &pinned_files, observer, cancel };
        let copied = run.copied(&at, &file, &identity, object)?;
        let open = OpenOptions::default().format(candidate.format);
        let proven = Chain::open(&at.path, &open).map_err(in_use).and_then(|chain| {
            let hash = tree_hash(&chain, 0, observer, cancel)?;
            match hash.root.to_string() == wanted {
                true => Ok(()),
                false => Err(Error::changed("the file was changed meanwhile")),
            }
        });
        proven
            .and_then(|()| at.store.rename(&at.path, &name, &copied.identity))
            .inspect_err(|_| discard(&at, &copied))
    }
}

fn has_no_backing_file(path: &Path, format: Format) -> bool {
    let open = OpenOptions::default().format(format).force_share(true);
    info(path, &InfoOptions::default().open(open))
        .is_ok_and(|told| told.first().is_some_and(|told| told.backing_filename.is_none()))
}

/// Size of the disk of a QCOW2 image, or why it is not known.
fn size(path: &Path) -> std::result::Result<u64, String> {
    let open = OpenOptions::default().format(Format::Qcow2).force_share(true);
    let told = info(path, &InfoOptions::default().open(open));
    let told = told.map_err(|error| error.message().to_owned())?;
    told.first().map(|told| told.virtual_size).ok_or_else(|| "it could not be read".into())
}
