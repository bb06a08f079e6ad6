//! What the two ends say to each other.

use std::path::PathBuf;

use qcow::chain::Format;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::facts::{DirectoryRights, Identity};
use crate::store::content::Piece;
use crate::store::{Mode, Part};
use crate::{Error, ErrorKind, Remedy};

/// Version of the protocol. Both ends must have the same: it is raised whenever a message changes, or is new, so that an older
/// end is refused before anything is done and not in the middle of it.
pub const PROTOCOL: u32 = 4;
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
    /// The name of its host. Ends before protocol 4 do not say it.
    #[serde(default)]
    pub(crate) host: Option<String>,
}

impl Hello {
    pub(crate) fn ours() -> Self {
        let program = env!("CARGO_PKG_VERSION").to_owned();
        Self { protocol: PROTOCOL, program, host: Some(crate::host::name()) }
    }

    /// Whether this is an end that we can speak with; `reached` is how, for messages.
    pub(crate) fn check(&self, reached: Option<&str>) -> crate::Result<()> {
        if self.protocol == PROTOCOL {
            return Ok(());
        }
        let own = Self::ours();
        let there = match (&self.host, reached) {
            (Some(host), _) => cut(host),
            (None, Some(words)) => format!("the host at '{words}'"),
            (None, None) => "the other host".to_owned(),
        };
        let older = if self.protocol < PROTOCOL { there.clone() } else { crate::host::name() };
        Err(Error::environment(format!(
            "{there} has version {} (protocol {}), and {} has {} (protocol {PROTOCOL}): they do not understand each other, and \
             nothing was done",
            cut(&self.program),
            self.protocol,
            crate::host::name(),
            own.program,
        ))
        .hint(format!("install the same version on both: {older} has the older one")))
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
    /// To a question that this end does not know.
    pub(crate) fn unknown(why: &Error) -> Self {
        let Hello { program, .. } = Hello::ours();
        let text = format!(
            "version {program} on {} does not know what it is asked for ({})",
            crate::host::name(),
            why.message()
        );
        let error = Error::new(ErrorKind::Unsupported, text);
        Self::failed(&error.hint("install the same version on both hosts"))
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    /// One of each message, as it travels.
    fn all() -> Vec<String> {
        let path = || PathBuf::from("/p");
        let made = Identity::default();
        let rights = DirectoryRights { mode: 1, owner: 1, group: 1, label: None };
        let pieces = vec![Piece { offset: 1, len: 1, digest: "d".into() }];
        let size = 1;
        let parts = [
            Part::Whole,
            Part::Leaves(vec![1]),
            Part::Within { size, leaves: None },
            Part::Within { size, leaves: Some(vec![1]) },
        ];
        let still =
            parts.map(|part| Request::StillDigest { path: path(), format: Format::Raw, part });
        let put = |mode| Request::Put { path: path(), key: "k".into(), len: 1, mode };
        let requests = [
            Request::Look { path: path() },
            Request::Available { directory: path() },
            Request::Filesystem { directory: path() },
            Request::Setup,
            Request::Listen { first: 1, last: 2 },
            Request::Heard,
            Request::Reach { host: "h".into(), port: 1 },
            Request::List { directory: path(), limit: 1 },
            put(Mode::Private),
            put(Mode::ReadOnly),
            Request::Lacks { pieces },
            Request::Zero { offset: 1, len: 1 },
            Request::Publish,
            Request::Abandon { discard: true },
            Request::Fetch { path: path(), limit: 1 },
            Request::Chain { path: path(), format: None },
            Request::Digest { path: path(), format: Format::Qcow2 },
            Request::Remove { path: path(), made },
            Request::IsDirectory { path: path() },
            Request::MakeDirectory { path: path(), rights },
            Request::NameDirectory { from: path(), to: path(), made },
            Request::RemoveDirectory { path: path(), made },
            Request::Cancel,
        ];
        let hint = Some("h".into());
        let replies = [
            Reply::Alive,
            Reply::Progress { done: 1, total: 1 },
            Reply::Stop,
            Reply::Done { value: Value::Null },
            Reply::Failed { kind: "k".into(), message: "m".into(), hint },
        ];
        let requests = requests.iter().chain(&still).map(serde_json::to_string);
        requests.chain(replies.iter().map(serde_json::to_string)).map(Result::unwrap).collect()
    }

    /// Whoever changes a message raises the version, so that an older end is refused by it.
    #[test]
    fn the_version_is_that_of_these_messages() {
        let digest = blake3::hash(all().join("\n").as_bytes()).to_hex();
        assert_eq!(
            (PROTOCOL, digest.get(..16)),
            (4, Some("8f7cde58d334afc9")),
            "messages have changed: raise PROTOCOL, and give the new digest here"
        );
    }
}
