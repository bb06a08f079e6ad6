//! What can go wrong around a migration, sorted by what the caller has to do about it.

use std::fmt;

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
    /// Nobody can say on which host the guest runs; nothing was deleted.
    InDoubt,
    /// A host, a file or a service did not do what was asked of it.
    Environment,
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
            Self::Interrupted => "interrupted",
        }
    }
}

/// An error: what happened, on which host, and what to do next.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    message: String,
    host: Option<String>,
    hint: Option<String>,
}

impl Error {
    /// An error of `kind`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), host: None, hint: None }))
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
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
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

    /// What happened.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The host that is meant.
    pub fn host(&self) -> Option<&str> {
        self.0.host.as_deref()
    }

    /// What to do next.
    pub fn what_next(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(host) = self.host() {
            write!(f, "{host}: ")?;
        }
        f.write_str(&qcow::Printable(self.message()).to_string())?;
        match self.what_next() {
            Some(hint) => write!(f, " ({})", qcow::Printable(hint)),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// The engine's errors are all of the environment here, but for what the caller got wrong and for
/// what policy denies.
impl From<qcow::Error> for Error {
    fn from(error: qcow::Error) -> Self {
        let kind = match error.kind() {
            qcow::ErrorKind::Usage | qcow::ErrorKind::Exists => ErrorKind::Usage,
            qcow::ErrorKind::Denied | qcow::ErrorKind::InUse => ErrorKind::Refused,
            qcow::ErrorKind::Interrupted => ErrorKind::Interrupted,
            _ => ErrorKind::Environment,
        };
        Self::new(kind, error.to_string())
    }
}
