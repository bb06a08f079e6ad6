//! Formats that the caller states for backing files whose format no header records.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::Format;
use super::name::ImageName;
use crate::io::Storage;
use crate::{Error, ErrorKind, Escaped, Remedy, Result};

/// Formats of backing files that no header records. A recorded format is never overruled.
///
/// ```
/// use qcow::chain::{BackingFormats, Format, OpenOptions};
/// let backing_formats = BackingFormats::new()
///     .named("middle.qcow2", Format::Qcow2)
///     .named("base.raw", Format::Raw);
/// let options = OpenOptions::default().backing_formats(backing_formats);
/// # let _ = options;
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BackingFormats {
    named: Vec<(PathBuf, Format)>,
    only: Option<Format>,
    raw_despite_magic: bool,
    probe: bool,
}

impl BackingFormats {
    /// None: a backing file of unrecorded format is refused.
    pub fn new() -> Self {
        Self::default()
    }

    /// States the format of one layer. `name` is its name as the header above it has it, its file name,
    /// or its path. A name that no layer has is an error once the chain is open.
    #[must_use]
    pub fn named(mut self, name: impl Into<PathBuf>, format: Format) -> Self {
        self.named.push((name.into(), format));
        self
    }

    /// States the format of the one layer that needs it; if a second one does, that is an error.
    #[must_use]
    pub fn only(mut self, format: Format) -> Self {
        self.only = Some(format);
        self
    }

    /// Whether a layer that is stated by name to be raw may begin with the magic of an image format.
    /// Otherwise it is refused: the container would be read in place of the disk that it holds.
    #[must_use]
    pub fn raw_despite_magic(mut self, allowed: bool) -> Self {
        self.raw_despite_magic = allowed;
        self
    }

    /// Whether a backing file whose format nothing records or states is opened as what its first bytes
    /// say, as QEMU does with a warning at most. A guest that can write to a raw disk chooses those bytes, and with
    /// them the files that the host opens: only for programs that have to do as QEMU does.
    #[must_use]
    pub fn probed(mut self, allowed: bool) -> Self {
        self.probe = allowed;
        self
    }
}

/// How the format of a layer is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FormatSource {
    /// The caller stated the format of the active layer.
    Stated,
    /// The first bytes tell: of the active layer, or where [`BackingFormats::probed`] allows it.
    Probed,
    /// The header above records it, or a `json:` name has it.
    Recorded,
    /// The caller stated it for this backing file, by its name.
    StatedByName,
    /// The caller stated it for the one backing file that needs it.
    StatedForOnly,
}

/// Uses what is stated, and remembers which of it was used.
#[derive(Debug)]
pub(super) struct Statements<'a> {
    stated: &'a BackingFormats,
    used: Vec<bool>,
    /// The backing file that took the format for the only one.
    only: Option<PathBuf>,
}

impl<'a> Statements<'a> {
    pub(super) fn new(stated: &'a BackingFormats) -> Self {
        Self { stated, used: vec![false; stated.named.len()], only: None }
    }

    /// The format of the backing file `name`, which is at `path`; `None` if its first bytes may tell. Unless the caller
    /// allows it a format is never guessed here: a guest that wrote another image's header into a raw disk would
    /// choose what the host opens (trap 101).
    pub(super) fn format_of(
        &mut self,
        recorded: Option<Format>,
        name: &ImageName,
        written: &[u8],
        path: &Path,
    ) -> Result<Option<(Format, FormatSource)>> {
        let named = self.by_name(written, path)?;
        if let Some(recorded) = recorded {
            return match named {
                Some(stated) if stated != recorded => Err(Error::usage(format!(
                    "the backing file '{}' is stated to be {stated}, and recorded to be {recorded}",
                    shown(&name.path)
                ))
                .structure("backing format")
                .hint("leave out what is stated: what is recorded counts")),
                _ => Ok(Some((recorded, FormatSource::Recorded))),
            };
        }
        if let Some(format) = named {
            return Ok(Some((format, FormatSource::StatedByName)));
        }
        match (self.stated.only, &self.only) {
            (None, _) if self.stated.probe => Ok(None),
            (None, _) => Err(unrecorded(&name.path)),
            (Some(format), None) => {
                self.only = Some(name.path.clone());
                Ok(Some((format, FormatSource::StatedForOnly)))
            }
            (Some(_), Some(first)) => Err(Error::usage(format!(
                "one format is stated, and more than one backing file records none: '{}', '{}'",
                shown(first),
                shown(&name.path)
            ))
            .structure("backing format")
            .hint(Remedy::StateBackingFormat(vec![shown(first), shown(&name.path)]))),
        }
    }

    fn by_name(&mut self, written: &[u8], path: &Path) -> Result<Option<Format>> {
        let written = Path::new(OsStr::from_bytes(written));
        let mut found: Option<Format> = None;
        for ((name, format), used) in self.stated.named.iter().zip(&mut self.used) {
            let file_name = path.file_name().is_some_and(|file| file == name.as_os_str());
            if !(file_name || name == written || name == path) {
                continue;
            }
            *used = true;
            if found.is_some_and(|other| other != *format) {
                return Err(Error::usage(format!(
                    "two formats are stated for the backing file '{}'",
                    shown(path)
                )));
            }
            found = Some(*format);
        }
        Ok(found)
    }

    /// Refuses a statement that would show an image's container as a disk.
    pub(super) fn check(
        &self,
        format: Format,
        source: FormatSource,
        storage: &dyn Storage,
        path: &Path,
    ) -> Result<()> {
        let named = match (format, source) {
            (Format::Raw, FormatSource::StatedByName) => true,
            (Format::Raw, FormatSource::StatedForOnly) => false,
            _ => return Ok(()),
        };
        if named && self.stated.raw_despite_magic {
            return Ok(());
        }
        let found = match Format::probe(storage) {
            Ok(Format::Raw) => return Ok(()),
            Ok(other) => format!("this is a {other} image"),
            Err(error)
                if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::WrongFormat) =>
            {
                error.message().to_owned()
            }
            Err(error) => return Err(error),
        };
        let error =
            Error::denied(format!("it is stated to be raw, but by its first bytes {found}"))
                .structure("backing format");
        let file = path.file_name().map_or(path, Path::new);
        Err(error.hint(Remedy::InsistOnRaw(shown(file))))
    }

    /// Refuses what was stated of a layer that the whole chain does not have.
    pub(super) fn check_used(&self) -> Result<()> {
        let unused = self.stated.named.iter().zip(&self.used).find(|(_, used)| !**used);
        unused.map_or(Ok(()), |((name, format), _)| {
            Err(Error::usage(format!(
                "'{}' is stated to be {format}, and no backing file of the chain has that name",
                shown(name)
            ))
            .hint("name a backing file of the chain, or leave it out"))
        })
    }
}

fn unrecorded(name: &Path) -> Error {
    Error::denied(format!(
        "the format of the backing file '{}' is not recorded, and it is never guessed",
        shown(name)
    ))
    .structure("backing format")
    .hint(Remedy::StateBackingFormat(vec![shown(name)]))
}

fn shown(path: &Path) -> String {
    Escaped(&path.to_string_lossy()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::MemoryStorage;

    fn format_of(statements: &mut Statements<'_>, name: &str) -> Result<(Format, FormatSource)> {
        let name = ImageName::from_header(name.as_bytes()).unwrap();
        let path = name.beside(Path::new("/pool/top"));
        let known = statements.format_of(None, &name, name.path.as_os_str().as_bytes(), &path)?;
        Ok(known.unwrap())
    }

    #[test]
    fn a_layer_is_found_by_its_recorded_name_its_file_name_and_its_path() {
        for stated in ["sub/base", "base", "/pool/sub/base"] {
            let formats = BackingFormats::new().named(stated, Format::Raw);
            let mut statements = Statements::new(&formats);
            let expected = (Format::Raw, FormatSource::StatedByName);
            assert_eq!(format_of(&mut statements, "sub/base").unwrap(), expected, "{stated}");
            statements.check_used().unwrap();
        }
        let formats = BackingFormats::new().named("bas", Format::Raw);
        let mut statements = Statements::new(&formats);
        assert_eq!(format_of(&mut statements, "base").unwrap_err().kind(), ErrorKind::Denied);
        assert!(statements.check_used().unwrap_err().message().contains("'bas'"));
    }

    #[test]
    fn one_format_serves_one_layer_and_both_are_listed_if_a_second_needs_one() {
        let formats = BackingFormats::new().only(Format::Qcow2);
        let mut statements = Statements::new(&formats);
        format_of(&mut statements, "middle").unwrap();
        let error = format_of(&mut statements, "base").unwrap_err().to_string();
        assert!(error.contains("'middle', 'base'"), "{error}");
    }

    #[test]
    fn a_format_is_guessed_only_where_that_is_allowed_and_nothing_is_known() {
        let formats = BackingFormats::new().probed(true).named("named", Format::Qcow2);
        let mut statements = Statements::new(&formats);
        let mut format_of = |recorded, name: &str| {
            let name = ImageName::from_header(name.as_bytes()).unwrap();
            let path = name.beside(Path::new("/pool/top"));
            statements.format_of(recorded, &name, name.path.as_os_str().as_bytes(), &path).unwrap()
        };
        assert_eq!(format_of(None, "base"), None);
        let recorded = (Format::Raw, FormatSource::Recorded);
        assert_eq!(format_of(Some(Format::Raw), "base"), Some(recorded));
        assert_eq!(format_of(None, "named"), Some((Format::Qcow2, FormatSource::StatedByName)));
    }

    #[test]
    fn raw_over_a_magic_needs_the_name_and_insistence() {
        let image = MemoryStorage::new(b"QFI\xfb\0\0\0\x03".to_vec());
        let check = |formats: &BackingFormats, source| {
            Statements::new(formats).check(Format::Raw, source, &image, Path::new("b")).is_ok()
        };
        let plain = BackingFormats::new();
        let insisting = BackingFormats::new().raw_despite_magic(true);
        assert!(!check(&plain, FormatSource::StatedByName));
        assert!(!check(&insisting, FormatSource::StatedForOnly));
        assert!(check(&insisting, FormatSource::StatedByName));
        assert!(check(&plain, FormatSource::Recorded));
    }
}
