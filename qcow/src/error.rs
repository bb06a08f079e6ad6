//! One error type that says who is to blame, where, and what to do next.
//!
//! Callers match on [`ErrorKind`]; people read the one line that [`Display`](std::fmt::Display)
//! prints: the file, the structure, its index and offsets, what was wrong, and the way out.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// A result whose error is [`struct@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Who or what is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// The operating system refused or failed; the cause is in [`std::error::Error::source`].
    Io,
    /// The image breaks the format's rules.
    Corrupt,
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
}

impl ErrorKind {
    /// The kind's name as used in JSON output, for example `"corrupt"`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Io => "io",
            Self::Corrupt => "corrupt",
            Self::Unsupported => "unsupported",
            Self::Limit => "limit",
            Self::Denied => "denied",
            Self::Usage => "usage",
            Self::Interrupted => "interrupted",
        }
    }
}

/// Where something went wrong. Every part is optional; offsets are in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Place {
    /// The file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// The structure of the format, for example `"L1 table"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub structure: Option<&'static str>,
    /// The entry's index in that structure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    /// The offset in the image file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_offset: Option<u64>,
    /// The offset on the guest's disk.
    #[serde(skip_serializing_if = "Option::is_none")]
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
    hint: Option<String>,
    source: Option<std::io::Error>,
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

    /// The operating system failed while doing `what`, for example `"could not open"`.
    pub fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        let mut error = Self::new(ErrorKind::Io, what);
        error.0.source = Some(source);
        error
    }

    /// Names the file, unless one is named already (the innermost knows best).
    #[must_use]
    pub fn file(mut self, path: impl AsRef<Path>) -> Self {
        self.0.place.file.get_or_insert_with(|| path.as_ref().to_path_buf());
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

    /// Adds to the message what is so besides, which comes before the system's own words.
    pub(crate) fn remark(mut self, remark: &str) -> Self {
        self.0.message.push_str(remark);
        self
    }

    /// Says what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// Who is to blame.
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
    pub fn what_next(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// The operating system's error, for [`ErrorKind::Io`].
    pub fn io_source(&self) -> Option<&std::io::Error> {
        self.0.source.as_ref()
    }
}

/// One line: `FILE: STRUCTURE, entry N, at byte 0x..: MESSAGE: OS ERROR; HINT`.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { message, place, hint, source, .. } = &*self.0;
        if let Some(file) = &place.file {
            write!(f, "{}: ", Printable(&file.to_string_lossy()))?;
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
        if let Some(hint) = hint {
            write!(f, "; {hint}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({self})", self.0.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|source| source as _)
    }
}

/// So that an error can pass through code that knows only the operating system's. The kind is that of
/// the system's own error if there is one; the whole error is kept inside.
///
/// ```
/// let error = std::io::Error::from(qcow::Error::corrupt("a reserved bit is set"));
/// assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
/// let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<qcow::Error>());
/// assert_eq!(inner.unwrap().kind(), qcow::ErrorKind::Corrupt);
/// ```
impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match (error.io_source().map(Self::kind), error.kind()) {
            // Callers of `Read` take `Interrupted` for a signal, and would try again for ever.
            (Some(Io::Interrupted), _) | (None, ErrorKind::Interrupted) => Io::Other,
            (Some(kind), _) => kind,
            (None, ErrorKind::Corrupt | ErrorKind::Limit) => Io::InvalidData,
            (None, ErrorKind::Unsupported) => Io::Unsupported,
            (None, ErrorKind::Denied) => Io::PermissionDenied,
            (None, ErrorKind::Usage) => Io::InvalidInput,
            _ => Io::Other,
        };
        Self::new(kind, error)
    }
}

/// Text that comes from an image or a file name, with control characters escaped, so that it can
/// be shown on a terminal (trap 139).
///
/// ```
/// use qcow::Printable;
/// assert_eq!(Printable("a\x1b[2Jb").to_string(), "a\\u{1b}[2Jb");
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Printable<'a>(pub &'a str);

impl fmt::Display for Printable<'_> {
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
