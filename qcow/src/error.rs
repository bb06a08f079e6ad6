//! One error type that says who is to blame, where, and what to do next.
//!
//! Callers match on [`ErrorKind`]; people read the one line that [`Display`](std::fmt::Display)
//! prints: the file, the structure, its index and offsets, what was wrong, and the way out.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::Remedy;

/// A result whose error is [`struct@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Error category: who can do something about it, and whether a retry makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum ErrorKind {
    /// The operating system refused or failed; the cause is in [`std::error::Error::source`].
    /// Causes that a caller can act on have kinds of their own: [`NotFound`](Self::NotFound),
    /// [`Exists`](Self::Exists), [`InUse`](Self::InUse), [`NoSpace`](Self::NoSpace).
    Io,
    /// A file, or something in it that was asked for by name, does not exist.
    NotFound,
    /// The destination exists already, and replacing it was not asked for.
    Exists,
    /// Another process uses the file: QEMU holds its image locks, or the kernel says busy. A retry
    /// makes sense once that process has ended.
    InUse,
    /// No space is left on the file system, or a quota is used up.
    NoSpace,
    /// The image breaks the format's rules.
    Corrupt,
    /// The file is not in the format that was stated, or in none that this crate reads.
    WrongFormat,
    /// The guest's data is encrypted, and this crate has no key.
    Encrypted,
    /// The image is (or may be) sound, but needs something this crate does not do.
    Unsupported,
    /// A stated limit of size, depth or count would be passed.
    Limit,
    /// The caller's policy forbids it.
    Denied,
    /// The request itself makes no sense.
    Usage,
    /// The caller's cancel token was set.
    Interrupted,
    /// An invariant of this crate does not hold: a bug here, not a fault of the image or the caller.
    Internal,
}

impl ErrorKind {
    /// The kind's name as used in JSON output, for example `"corrupt"`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Io => "io",
            Self::NotFound => "not-found",
            Self::Exists => "exists",
            Self::InUse => "in-use",
            Self::NoSpace => "no-space",
            Self::Corrupt => "corrupt",
            Self::WrongFormat => "wrong-format",
            Self::Encrypted => "encrypted",
            Self::Unsupported => "unsupported",
            Self::Limit => "limit",
            Self::Denied => "denied",
            Self::Usage => "usage",
            Self::Interrupted => "interrupted",
            Self::Internal => "internal",
        }
    }

    /// What an operating system's error means to a caller, by its number; one that an error of this crate was made
    /// into, as by a [`Storage`](crate::io::Storage) that has others below it, means what that did.
    fn of_io(error: &io::Error) -> Self {
        if let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            return inner.kind();
        }
        match error.kind() {
            io::ErrorKind::NotFound => Self::NotFound,
            io::ErrorKind::AlreadyExists => Self::Exists,
            io::ErrorKind::ResourceBusy | io::ErrorKind::ExecutableFileBusy => Self::InUse,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace,
            _ => Self::Io,
        }
    }

    /// The kind that `std` has for it. Never `Interrupted`: the standard library takes that for
    /// "try again", which is not what a caller who cancelled wants.
    fn as_io(self) -> io::ErrorKind {
        match self {
            Self::NotFound => io::ErrorKind::NotFound,
            Self::Exists => io::ErrorKind::AlreadyExists,
            Self::InUse => io::ErrorKind::ResourceBusy,
            Self::NoSpace => io::ErrorKind::StorageFull,
            Self::Corrupt | Self::WrongFormat | Self::Limit => io::ErrorKind::InvalidData,
            Self::Encrypted | Self::Unsupported => io::ErrorKind::Unsupported,
            Self::Denied => io::ErrorKind::PermissionDenied,
            Self::Usage => io::ErrorKind::InvalidInput,
            Self::Io | Self::Interrupted | Self::Internal => io::ErrorKind::Other,
        }
    }
}

/// Where something went wrong. Every part is optional; offsets are in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub struct Place {
    /// The file.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub file: Option<PathBuf>,
    /// The structure of the format, for example `"L1 table"`.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub structure: Option<&'static str>,
    /// The entry's index in that structure.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub index: Option<u64>,
    /// The offset in the image file.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub host_offset: Option<u64>,
    /// The offset on the guest's disk.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub guest_offset: Option<u64>,
}

/// What went wrong, where, and what to do next.
///
/// ```
/// use qcow::{Error, ErrorKind};
/// let error = Error::corrupt("offset 0x123 is not aligned to the cluster size of 65536")
///     .structure("L1 table")
///     .index(3)
///     .host_offset(0x30018u64)
///     .file("disk.qcow2");
/// assert_eq!(error.kind(), ErrorKind::Corrupt);
/// assert_eq!(
///     error.to_string(),
///     "disk.qcow2: L1 table, entry 3, at byte 0x30018: offset 0x123 is not aligned to the \
///      cluster size of 65536"
/// );
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    place: Place,
    hint: Option<Remedy>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind`. `message` says what was found and what was expected.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            message: message.into(),
            place: Place::default(),
            hint: None,
            source: None,
        }))
    }

    /// The image breaks the format's rules.
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }

    /// The image needs something this crate does not do.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    /// A limit would be passed.
    pub fn limit(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Limit, message)
    }

    /// The policy forbids it.
    pub fn denied(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Denied, message)
    }

    /// The request makes no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, message)
    }

    /// The caller cancelled the operation.
    pub fn interrupted() -> Self {
        Self::new(ErrorKind::Interrupted, "interrupted")
    }

    /// An invariant of this crate does not hold. `message` says which.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message).hint(Remedy::ReportBug)
    }

    /// The operating system failed while doing `what`, for example `"could not open"`. The kind
    /// follows from the system's error number: [`NotFound`](ErrorKind::NotFound),
    /// [`Exists`](ErrorKind::Exists), [`InUse`](ErrorKind::InUse),
    /// [`NoSpace`](ErrorKind::NoSpace), or else [`Io`](ErrorKind::Io); from this crate's error if one was made into
    /// `source`. That the caller cancelled is no failure of the system's, and is given back as it was.
    pub fn io(what: impl Into<String>, source: io::Error) -> Self {
        match (ErrorKind::of_io(&source), source) {
            (ErrorKind::Interrupted, _) => Self::interrupted(),
            (kind, source) => Self::new(kind, what).caused_by(source),
        }
    }

    /// Keeps the cause, which [`source`](std::error::Error::source) gives back; unless one is kept
    /// already.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source.get_or_insert_with(|| source.into());
        self
    }

    /// Names the file, unless one is named already (the innermost knows best). An empty path, as of an image that
    /// is in no file, names none.
    #[must_use]
    pub fn file(mut self, path: impl AsRef<Path>) -> Self {
        let path = path.as_ref();
        if !path.as_os_str().is_empty() {
            self.0.place.file.get_or_insert_with(|| path.to_path_buf());
        }
        self
    }

    /// Names the structure, unless one is named already.
    #[must_use]
    pub fn structure(mut self, structure: &'static str) -> Self {
        self.0.place.structure.get_or_insert(structure);
        self
    }

    /// Gives the index of the entry.
    #[must_use]
    pub fn index(mut self, index: u64) -> Self {
        self.0.place.index.get_or_insert(index);
        self
    }

    /// Gives the offset in the image file, in bytes.
    #[must_use]
    pub fn host_offset(mut self, offset: impl Into<u64>) -> Self {
        self.0.place.host_offset.get_or_insert(offset.into());
        self
    }

    /// Gives the offset on the guest's disk, in bytes.
    #[must_use]
    pub fn guest_offset(mut self, offset: impl Into<u64>) -> Self {
        self.0.place.guest_offset.get_or_insert(offset.into());
        self
    }

    /// Appends to the message, in front of the operating system's own text.
    pub(crate) fn remark(mut self, remark: &str) -> Self {
        self.0.message.push_str(remark);
        self
    }

    /// Says what to do next, unless that is said already.
    #[must_use]
    pub fn hint(mut self, remedy: impl Into<Remedy>) -> Self {
        self.0.hint.get_or_insert_with(|| remedy.into());
        self
    }

    /// The category.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What was found and what was expected, without place or hint.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Where it happened.
    pub fn place(&self) -> &Place {
        &self.0.place
    }

    /// What to do next, if there is something to say.
    pub fn what_next(&self) -> Option<&Remedy> {
        self.0.hint.as_ref()
    }

    /// The operating system's error, if one is the cause.
    pub fn io_source(&self) -> Option<&io::Error> {
        self.0.source.as_ref()?.downcast_ref()
    }

    /// The line that [`Display`](std::fmt::Display) prints, without what to do next: for a program
    /// that words [`what_next`](Self::what_next) itself.
    pub fn reason(&self) -> impl fmt::Display + '_ {
        Reason(&self.0)
    }
}

/// One line: `FILE: STRUCTURE, entry N, at byte 0x..: MESSAGE: CAUSE; REMEDY`.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason().fmt(f)?;
        match self.what_next() {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}

struct Reason<'a>(&'a Inner);

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { message, place, source, .. } = self.0;
        if let Some(file) = &place.file {
            write!(f, "{}: ", Escaped(&file.to_string_lossy()))?;
        }
        let mut parts = Vec::new();
        if let Some(structure) = place.structure {
            parts.push(structure.to_owned());
        }
        if let Some(index) = place.index {
            parts.push(format!("entry {index}"));
        }
        if let Some(offset) = place.host_offset {
            parts.push(format!("at byte {offset:#x}"));
        }
        if let Some(offset) = place.guest_offset {
            parts.push(format!("guest offset {offset:#x}"));
        }
        if !parts.is_empty() {
            write!(f, "{}: ", parts.join(", "))?;
        }
        write!(f, "{message}")?;
        if let Some(source) = source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({self})", self.0.kind)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

/// For code that speaks `std::io`: the kind is the operating system's where there is one, else the
/// nearest; the whole error is kept inside ([`std::io::Error::get_ref`]). A cancelled operation is
/// `Other`, because callers of `std` repeat what was `Interrupted`.
///
/// ```
/// let missing = qcow::chain::Chain::open("no such file".as_ref(), &Default::default());
/// let error = std::io::Error::from(missing.unwrap_err());
/// assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
/// assert!(error.get_ref().is_some_and(|inner| inner.is::<qcow::Error>()));
/// ```
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let system = error.io_source().map(io::Error::kind);
        let kind = system.filter(|kind| *kind != io::ErrorKind::Interrupted);
        Self::new(kind.unwrap_or_else(|| error.kind().as_io()), error)
    }
}

/// Text that comes from an image or a file name, with control characters escaped, so that it can
/// be shown on a terminal (trap 139).
///
/// ```
/// use qcow::Escaped;
/// assert_eq!(Escaped("a\x1b[2Jb").to_string(), "a\\u{1b}[2Jb");
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Escaped<'a>(pub &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        self.0.chars().try_for_each(|c| {
            // Bidirectional overrides reorder what a person sees, so they count as control.
            let reorders = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            if c.is_control() || reorders {
                write!(f, "{}", c.escape_default())
            } else {
                f.write_char(c)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_the_systems_error_decides_the_kind() {
        use nix::errno::Errno::{
            EACCES, EBUSY, EDQUOT, EEXIST, EFBIG, EIO, ENOENT, ENOSPC, EPERM, ETXTBSY,
        };
        for (number, kind) in [
            (ENOENT, ErrorKind::NotFound),
            (EEXIST, ErrorKind::Exists),
            (EBUSY, ErrorKind::InUse),
            (ETXTBSY, ErrorKind::InUse),
            (ENOSPC, ErrorKind::NoSpace),
            (EDQUOT, ErrorKind::NoSpace),
            (EIO, ErrorKind::Io),
            (EACCES, ErrorKind::Io),
            (EPERM, ErrorKind::Io),
            (EFBIG, ErrorKind::Io),
        ] {
            let error = Error::io("could not", io::Error::from(number));
            assert_eq!(error.kind(), kind, "{number}");
            let source = StdError::source(&error).and_then(|source| source.downcast_ref());
            let system = io::Error::from(number);
            assert_eq!(source.and_then(io::Error::raw_os_error), system.raw_os_error());
            assert_eq!(io::Error::from(error).kind(), system.kind());
        }
    }

    #[test]
    fn a_cancelled_operation_is_not_repeated_by_std() {
        let error = io::Error::from(Error::interrupted());
        assert_ne!(error.kind(), io::ErrorKind::Interrupted);
        let system = Error::io("could not read", io::ErrorKind::Interrupted.into());
        assert_ne!(io::Error::from(system).kind(), io::ErrorKind::Interrupted);
    }

    #[test]
    fn an_error_that_came_through_a_storage_keeps_its_kind() {
        let through = |error: Error| Error::io("could not read", io::Error::from(error));
        let corrupt = through(Error::corrupt("found 5").file("base"));
        assert_eq!(corrupt.kind(), ErrorKind::Corrupt);
        assert_eq!(corrupt.to_string(), "could not read: base: found 5");
        let cancelled = through(through(Error::interrupted()));
        assert_eq!(cancelled.kind(), ErrorKind::Interrupted);
        assert_eq!(cancelled.to_string(), "interrupted");
    }

    #[test]
    fn any_error_can_be_the_cause_and_is_in_the_line() {
        let cause = Error::corrupt("found 5").file("base");
        let error = Error::unsupported("the copy cannot be made").caused_by(cause);
        assert_eq!(error.to_string(), "the copy cannot be made: base: found 5");
        let source = StdError::source(&error).and_then(|source| source.downcast_ref::<Error>());
        assert_eq!(source.map(Error::kind), Some(ErrorKind::Corrupt));
    }

    #[test]
    fn the_first_remedy_stays_and_the_reason_goes_without() {
        let error = Error::usage("no").hint(Remedy::GiveSize).hint(Remedy::Replace);
        assert_eq!(error.what_next(), Some(&Remedy::GiveSize));
        assert_eq!(error.reason().to_string(), "no");
        assert_eq!(Error::internal("x").kind(), ErrorKind::Internal);
        assert!(Error::internal("x").to_string().contains("please report"));
    }
}
