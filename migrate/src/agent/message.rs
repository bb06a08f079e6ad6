//! What the two ends say to each other.

use std::path::PathBuf;

use qcow::chain::Format;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::facts::{DirectoryRights, Identity};
use crate::store::content::Piece;
use crate::store::{Mode, Part};
use crate::{Error, ErrorKind, Remedy};

/// Version of the protocol. Both ends must have the same.
pub const PROTOCOL: u32 = 3;
/// The first bytes of each direction.
pub(crate) const MAGIC: &[u8; 8] = b"\x00qcwagt\n";
/// The far end lists no more files than this.
pub(crate) const MOST_FILES: usize = 20_000;
/// The far end says that it still works at least this often, in seconds.
pub(crate) const ALIVE_SECONDS: u64 = 5;
/// Longer texts of the other end are cut.
const LONGEST_TEXT: usize = 4096;

/// What each end says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Hello {
    pub(crate) protocol: u32,
    /// The program's version, for messages.
    pub(crate) program: String,
}

impl Hello {
    pub(crate) fn ours() -> Self {
        Self { protocol: PROTOCOL, program: env!("CARGO_PKG_VERSION").to_owned() }
    }

    pub(crate) fn check(&self) -> crate::Result<()> {
        if self.protocol == PROTOCOL {
            return Ok(());
        }
        Err(Error::environment(format!(
            "the other end has version {} with protocol {}, this one {} with protocol {PROTOCOL}",
            cut(&self.program),
            self.protocol,
            env!("CARGO_PKG_VERSION")
        ))
        .hint("install the same version on both hosts"))
    }
}

/// What is asked. Each has one answer, but for those that say so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case", tag = "ask")]
pub(crate) enum Request {
    Look {
        path: PathBuf,
    },
    Available {
        directory: PathBuf,
    },
    Filesystem {
        directory: PathBuf,
    },
    /// How the host is set up for guests that come and go.
    Setup,
    /// Listens at the lowest and the highest free port of these. Answered by those two.
    Listen {
        first: u16,
        last: u16,
    },
    /// Stops to listen. Answered by the ports at which a connection arrived.
    Heard,
    /// Answered by why a port of a host cannot be reached, or nothing.
    Reach {
        host: String,
        port: u16,
    },
    List {
        directory: PathBuf,
        limit: usize,
    },
    /// Begins a file; the answer says whether something of it is there. Pieces follow, and
    /// [`Lacks`](Self::Lacks) and [`Zero`](Self::Zero), until [`Publish`](Self::Publish) or
    /// [`Abandon`](Self::Abandon).
    Put {
        path: PathBuf,
        key: String,
        len: u64,
        mode: Mode,
    },
    /// Which of these pieces are not there.
    Lacks {
        pieces: Vec<Piece>,
    },
    /// A range reads as zeros. Not answered.
    Zero {
        offset: u64,
        len: u64,
    },
    /// The file is whole. Answered by its identity.
    Publish,
    /// The file will not be finished now.
    Abandon {
        discard: bool,
    },
    /// Answered by the file's length, then pieces, then an answer without value.
    Fetch {
        path: PathBuf,
        limit: u64,
    },
    Chain {
        path: PathBuf,
        format: Option<Format>,
    },
    Digest {
        path: PathBuf,
        format: Format,
    },
    StillDigest {
        path: PathBuf,
        format: Format,
        part: Part,
    },
    Remove {
        path: PathBuf,
        made: Identity,
    },
    IsDirectory {
        path: PathBuf,
    },
    MakeDirectory {
        path: PathBuf,
        rights: DirectoryRights,
    },
    NameDirectory {
        from: PathBuf,
        to: PathBuf,
        made: Identity,
    },
    RemoveDirectory {
        path: PathBuf,
        made: Identity,
    },
    /// What was asked for before is not wanted any more. Not answered.
    Cancel,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case", tag = "say")]
pub(crate) enum Reply {
    /// It takes time.
    Alive,
    /// It is so far.
    Progress { done: u64, total: u64 },
    /// The pieces cannot be written; why is the answer to [`Request::Abandon`].
    Stop,
    /// It is done.
    Done { value: Value },
    /// It is not.
    Failed { kind: String, message: String, hint: Option<String> },
}

impl Reply {
    pub(crate) fn failed(error: &Error) -> Self {
        let (kind, _) = KINDS
            .iter()
            .find(|(_, kind)| *kind == error.kind())
            .unwrap_or(&("environment", ErrorKind::Environment));
        Self::Failed {
            kind: (*kind).to_owned(),
            message: cut(error.message()),
            hint: error.what_next().map(|remedy| cut(&remedy.to_string())),
        }
    }
}

/// The error that the other end had.
pub(crate) fn error_of(kind: &str, message: &str, hint: Option<&str>) -> Error {
    let kind = KINDS.iter().find(|(name, _)| *name == kind);
    let kind = kind.map_or(ErrorKind::Environment, |(_, kind)| *kind);
    let error = Error::new(kind, cut(message));
    match hint {
        Some(hint) => error.hint(Remedy::parse(&cut(hint))),
        None => error,
    }
}

const KINDS: &[(&str, ErrorKind)] = &[
    ("usage", ErrorKind::Usage),
    ("refused", ErrorKind::Refused),
    ("changed", ErrorKind::Changed),
    ("unverified", ErrorKind::Unverified),
    ("in-doubt", ErrorKind::InDoubt),
    ("environment", ErrorKind::Environment),
    ("interrupted", ErrorKind::Interrupted),
    ("corrupt", ErrorKind::Corrupt),
    ("unsupported", ErrorKind::Unsupported),
    ("limit", ErrorKind::Limit),
    ("internal", ErrorKind::Internal),
];

/// Text of the other end.
pub(crate) fn cut(text: &str) -> String {
    text.chars().take(LONGEST_TEXT).collect()
}
