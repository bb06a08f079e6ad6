//! What can go wrong around a migration, sorted by what the caller has to do about it.

use std::error::Error as StdError;
use std::{fmt, io};

use crate::Remedy;

/// Result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller has to do about an error. Each kind has one exit code (`docs/exit-codes.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The input was not understood: an option, a plan file, a domain's XML.
    Usage,
    /// It would not be safe, or the policy forbids it; nothing was changed.
    Refused,
    /// A host is no longer as it was when the plan was made; nothing was changed.
    Changed,
    /// The content at the destination is not what it must be.
    Unverified,
    /// It is not known on which host the guest runs; nothing was deleted.
    InDoubt,
    /// A host, a file or a service did not do what was asked of it.
    Environment,
    /// An image breaks the rules of its format; [`Error::engine`] says where.
    Corrupt,
    /// An image needs something that is not supported.
    Unsupported,
    /// A limit of size, depth or count would be passed.
    Limit,
    /// An invariant of the engine does not hold: a bug, and no fault of an image or a caller.
    Internal,
    /// The caller asked to stop.
    Interrupted,
}

impl ErrorKind {
    /// A stable word for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::Refused => "refused",
            Self::Changed => "changed",
            Self::Unverified => "unverified",
            Self::InDoubt => "in-doubt",
            Self::Environment => "environment",
            Self::Corrupt => "corrupt",
            Self::Unsupported => "unsupported",
            Self::Limit => "limit",
            Self::Internal => "internal",
            Self::Interrupted => "interrupted",
        }
    }
}

/// An error: what happened, on which host, what to do next, and what caused it.
///
/// The cause is kept: an error of the engine with its kind and place ([`engine`](Self::engine)), one of the
/// operating system with its number ([`source`](StdError::source)).
///
/// ```
/// use std::error::Error as _;
/// let engine = qcow::Error::corrupt("found 5").structure("L1 table").host_offset(64_u64);
/// let error = migrate::Error::from(engine.file("disk.qcow2")).on("host-a");
/// assert_eq!(error.kind(), migrate::ErrorKind::Corrupt);
/// assert_eq!(error.engine().unwrap().place().host_offset, Some(64));
/// assert_eq!(error.to_string(), "host-a: disk.qcow2: L1 table, at byte 0x40: found 5");
/// let error = migrate::Error::io("could not read", std::io::Error::from_raw_os_error(5));
/// assert!(error.source().unwrap().is::<std::io::Error>());
/// ```
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    message: String,
    host: Option<String>,
    /// Bytes at the start of the message that say where, as [`Error::engine`] says it too.
    place: usize,
    hint: Option<Remedy>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let message = message.into();
        Self(Box::new(Inner { kind, message, host: None, place: 0, hint: None, source: None }))
    }

    /// A [`Usage`](ErrorKind::Usage) error.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, message)
    }

    /// A [`Refused`](ErrorKind::Refused) error.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Refused, message)
    }

    /// A [`Changed`](ErrorKind::Changed) error.
    pub fn changed(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Changed, message)
    }

    /// An [`Environment`](ErrorKind::Environment) error.
    pub fn environment(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Environment, message)
    }

    /// An [`Environment`](ErrorKind::Environment) error: the operating system failed while doing `what`.
    pub fn io(what: impl fmt::Display, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        Self::environment(format!("{what}: {source}")).caused_by(source)
    }

    /// An [`Interrupted`](ErrorKind::Interrupted) error.
    pub fn interrupted() -> Self {
        Self::new(ErrorKind::Interrupted, "stopped as asked")
    }

    /// Names the host that is meant, unless one is named already.
    #[must_use]
    pub fn on(mut self, host: &str) -> Self {
        self.0.host.get_or_insert_with(|| host.to_owned());
        self
    }

    /// Says what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Remedy>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Keeps what caused it, unless a cause is kept already.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source.get_or_insert_with(|| source.into());
        self
    }

    /// Says something more about what happened.
    #[must_use]
    pub fn and_also(mut self, more: impl AsRef<str>) -> Self {
        self.0.message.push_str("; ");
        self.0.message.push_str(more.as_ref());
        self
    }

    /// What the caller has to do about it.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What happened, and where.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What happened, without the place that [`engine`](Self::engine) says.
    pub fn message_without_place(&self) -> &str {
        self.0.message.get(self.0.place..).unwrap_or(&self.0.message)
    }

    /// The engine's error that caused this one, with its kind and place.
    pub fn engine(&self) -> Option<&qcow::Error> {
        self.0.source.as_deref().and_then(|source| source.downcast_ref())
    }

    /// The host that is meant.
    pub fn host(&self) -> Option<&str> {
        self.0.host.as_deref()
    }

    /// What to do next.
    pub fn what_next(&self) -> Option<&Remedy> {
        self.0.hint.as_ref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(host) = self.host() {
            write!(f, "{host}: ")?;
        }
        f.write_str(&qcow::Escaped(self.message()).to_string())?;
        match self.what_next() {
            Some(hint) => write!(f, " ({})", qcow::Escaped(&hint.to_string())),
            None => Ok(()),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

/// The engine's error is kept, and its kind where this crate has it; what the policy denies is refused, and all
/// else is of the environment.
impl From<qcow::Error> for Error {
    fn from(error: qcow::Error) -> Self {
        use qcow::ErrorKind as Engine;
        let kind = match error.kind() {
            Engine::Usage | Engine::Exists => ErrorKind::Usage,
            Engine::Denied | Engine::InUse => ErrorKind::Refused,
            Engine::Interrupted => ErrorKind::Interrupted,
            Engine::Corrupt => ErrorKind::Corrupt,
            Engine::Unsupported | Engine::WrongFormat | Engine::Encrypted => ErrorKind::Unsupported,
            Engine::Limit => ErrorKind::Limit,
            Engine::Internal => ErrorKind::Internal,
            _ => ErrorKind::Environment,
        };
        let what = match error.source() {
            Some(source) => format!("{}: {source}", error.message()),
            None => error.message().to_owned(),
        };
        let message = error.reason().to_string();
        let place = message.len().saturating_sub(what.len());
        let hint = error.what_next().cloned().map(Remedy::Engine);
        let inner = Inner { kind, message, host: None, place, hint, source: Some(error.into()) };
        Self(Box::new(inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engines_error_keeps_its_parts() {
        let os = || io::Error::from_raw_os_error(5);
        let engine = || qcow::Error::io("could not read", os()).file("a\nb").hint("look at it");
        let error = Error::from(engine());
        assert_eq!(error.message(), format!("a\\nb: could not read: {}", os()));
        assert_eq!(error.message_without_place(), format!("could not read: {}", os()));
        assert_eq!(error.what_next(), Some(&Remedy::Engine("look at it".into())));
        let inner = error.engine().unwrap();
        assert_eq!(inner.io_source().and_then(io::Error::raw_os_error), Some(5));
        let error = error.and_also("and more").caused_by(os());
        assert!(error.engine().is_some(), "the innermost cause stays");
        assert!(error.message_without_place().ends_with("; and more"));
    }
}
