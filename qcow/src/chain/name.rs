//! Names of images as they stand in headers and on command lines: paths, `file:`, `json:`, and
//! network protocols, which are recognised in order to be refused.
//!
//! Manual: QEMU's "Device URL Syntax" and the `json:` pseudo-protocol.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::Format;
use crate::{Error, Escaped, Remedy, Result};

/// Members of a JSON object, nested ones with dotted keys.
pub(crate) type Members = Vec<(String, serde_json::Value)>;

/// A name, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageName {
    /// The file; relative if the name was.
    pub(crate) path: PathBuf,
    /// Where a relative path starts.
    pub(crate) start: Start,
    /// The format driver that a `json:` name asks for.
    pub(crate) driver: Option<String>,
    /// A `json:` name of a file without a format driver: its bytes are the disk, unprobed.
    pub(crate) plain_file: bool,
    /// The format driver has options that only this one knows.
    pub(crate) only: Option<Format>,
    /// The ranges that raw drivers restrict the file to; the innermost last.
    pub(crate) windows: Vec<Window>,
    /// What a `json:` name says of the backing file.
    pub(crate) below: Below,
    /// Where a `json:` name says that the external data file is, whatever the header calls it; a relative path
    /// starts in the working directory of the process.
    pub(crate) data_file: Option<PathBuf>,
}

/// Where a relative path starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// In the directory of the image that has the name.
    Holder,
    /// In the working directory of the process that opens the image.
    Process,
}

/// Where relative names behind `json:` and `file:` start: QEMU takes them for names in the working
/// directory of the process that opens the image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WorkingDirectory {
    /// In that of this process.
    #[default]
    Own,
    /// In this one, which is another process's.
    At(PathBuf),
    /// The process is not known: such a name is refused.
    Unknown,
}

/// A range of a file, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) offset: u64,
    /// `None`: to the end of the file.
    pub(crate) size: Option<u64>,
}

/// What a name says of the image's backing file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Below {
    /// Nothing: it is what the image records.
    Recorded,
    /// There is to be none.
    Nothing,
    /// It is opened by these options.
    Options(Members),
}

impl ImageName {
    /// A name that QEMU shows joined to its holder's directory; `None` for one with a protocol.
    pub(crate) fn shown(name: &Path) -> Option<Self> {
        let name = name.as_os_str().as_bytes();
        protocol(name).is_none().then(|| Self::plain(name, Start::Holder))
    }

    /// The name of a data file: a path and nothing else (trap 113).
    pub(crate) fn data_file(name: &[u8]) -> Self {
        Self::plain(name, Start::Holder)
    }

    /// The path, where the image at `holder` has the name (trap 102).
    pub(crate) fn resolve(&self, holder: &Path, directory: &WorkingDirectory) -> Result<PathBuf> {
        match self.start {
            Start::Holder => Ok(self.beside(holder)),
            Start::Process => in_directory(&self.path, directory),
        }
    }

    /// Where it says that the external data file is.
    pub(crate) fn data_file_in(&self, directory: &WorkingDirectory) -> Result<Option<PathBuf>> {
        self.data_file.as_deref().map(|path| in_directory(path, directory)).transpose()
    }

    /// As [`resolve`](Self::resolve), for a plain name: relative to the directory of `holder`.
    pub(crate) fn beside(&self, holder: &Path) -> PathBuf {
        holder.parent().map_or_else(|| self.path.clone(), |directory| directory.join(&self.path))
    }

    /// Whether the name means another file in every working directory.
    pub(crate) fn depends_on_process(&self) -> bool {
        self.start == Start::Process && self.path.is_relative()
            || self.data_file.as_ref().is_some_and(|path| path.is_relative())
    }

    pub(super) fn plain(path: &[u8], start: Start) -> Self {
        Self {
            path: PathBuf::from(OsStr::from_bytes(path)),
            start,
            driver: None,
            plain_file: false,
            only: None,
            windows: Vec::new(),
            below: Below::Recorded,
            data_file: None,
        }
    }
}

/// A path of the process that opens the image.
fn in_directory(path: &Path, directory: &WorkingDirectory) -> Result<PathBuf> {
    match directory {
        _ if path.is_absolute() => Ok(path.to_path_buf()),
        WorkingDirectory::Own => Ok(path.to_path_buf()),
        WorkingDirectory::At(directory) => Ok(directory.join(path)),
        WorkingDirectory::Unknown => Err(Error::unsupported(format!(
            "the name '{}' is relative behind json: or file:, and the working directory of the process that \
             opens the image is not known",
            Escaped(&path.to_string_lossy())
        ))
        .hint("record an absolute name in the image, or a plain relative one")),
    }
}

/// Splits `name` at a colon that comes before the first slash.
pub(super) fn protocol(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = name.iter().position(|&byte| byte == b':' || byte == b'/')?;
    let (protocol, rest) = name.split_at_checked(end)?;
    Some((protocol, rest.strip_prefix(b":")?))
}

/// Whether a name that a person gave is one of another protocol, and not of a file with a colon.
pub(super) fn is_url(protocol: &[u8], rest: &[u8]) -> bool {
    let text = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
    let scheme = !protocol.is_empty() && protocol.iter().all(text);
    scheme && rest.starts_with(b"//") || std::str::from_utf8(protocol).is_ok_and(is_network)
}

/// Whether QEMU has a driver of this name for what is not a local file.
pub(super) fn is_network(driver: &str) -> bool {
    matches!(
        driver,
        "nbd"
            | "http"
            | "https"
            | "ftp"
            | "ftps"
            | "ssh"
            | "rbd"
            | "iscsi"
            | "iser"
            | "nfs"
            | "gluster"
    )
}

pub(super) fn network(protocol: &str) -> Error {
    Error::unsupported(format!(
        "the image is reached through the protocol '{}'; only local files and block devices are",
        Escaped(protocol)
    ))
    .hint(Remedy::CopyToLocalFile)
}

/// File names need not be UTF-8; JSON must be.
#[cfg(feature = "serde")]
pub(crate) fn path_text<S: serde::Serializer>(
    path: &Path,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

/// As [`path_text`], for several.
#[cfg(feature = "serde")]
pub(crate) fn path_texts<S: serde::Serializer>(
    paths: &[PathBuf],
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_seq(paths.iter().map(|path| path.to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn path_of(name: &[u8]) -> PathBuf {
        ImageName::from_header(name).unwrap().path
    }

    #[test]
    fn trap_103_a_colon_before_the_first_slash_is_a_protocol() {
        assert_eq!(path_of(b"/dir/a:b"), Path::new("/dir/a:b"));
        assert_eq!(path_of(b"./a:b"), Path::new("./a:b"));
        assert_eq!(path_of(b"file:a:b"), Path::new("a:b"));
        let error = ImageName::from_header(b"nbd://host/export").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("'nbd'"), "{error}");
    }

    #[test]
    fn trap_10_names_need_not_be_utf8() {
        assert_eq!(path_of(b"\xff\xfe").as_os_str().as_bytes(), b"\xff\xfe");
    }

    #[test]
    fn trap_102_relative_names_start_at_the_holder() {
        let name = ImageName::from_header(b"base.qcow2").unwrap();
        assert_eq!(name.beside(Path::new("/pool/top.qcow2")), Path::new("/pool/base.qcow2"));
        assert_eq!(name.beside(Path::new("top.qcow2")), Path::new("base.qcow2"));
    }

    #[test]
    fn json_names_of_files_are_understood_nested_or_dotted() {
        for name in [
            r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"/a b"}}"#,
            r#"json:{"driver":"qcow2","file.driver":"file","file.filename":"/a b"}"#,
        ] {
            let name = ImageName::from_header(name.as_bytes()).unwrap();
            assert_eq!(name.path, Path::new("/a b"));
            assert_eq!(name.driver.as_deref(), Some("qcow2"));
        }
    }

    #[test]
    fn json_names_that_leave_the_machine_are_refused() {
        for name in [
            r#"json:{"driver":"nbd","host":"h"}"#,
            r#"json:{"driver":"qcow2","file":{"driver":"https","url":"u"}}"#,
            r#"json:{"driver":"raw","file":{"driver":"file","filename":"/x"},"offset":-1}"#,
            r#"json:{"driver":"raw","file":{"driver":"file","filename":"/x"},"size":"1x"}"#,
            r#"json:{"driver":"raw","file":{"driver":"raw","offset":512}}"#,
            r#"json:{"filename":"/x"}"#,
            r#"json:{"driver":"qcow2","filename":"/x"}"#,
            "json:[]",
            "json:{",
        ] {
            assert!(ImageName::from_header(name.as_bytes()).is_err(), "{name}");
        }
    }

    #[test]
    fn names_behind_json_and_file_start_where_the_process_works() {
        let holder = Path::new("/pool/top.qcow2");
        let json = r#"json:{"driver":"raw","file":{"driver":"file","filename":"b"}}"#;
        for (name, expected) in [("b", "/pool/b"), ("file:b", "/work/b"), (json, "/work/b")] {
            let name = ImageName::from_header(name.as_bytes()).unwrap();
            let work = WorkingDirectory::At("/work".into());
            assert_eq!(name.resolve(holder, &work).unwrap(), Path::new(expected));
            let refused = name.resolve(holder, &WorkingDirectory::Unknown).is_err();
            assert_eq!(refused, expected.starts_with("/work"));
            assert_eq!(name.depends_on_process(), expected.starts_with("/work"));
        }
    }

    #[test]
    fn json_names_tell_ranges_and_what_is_below() {
        let name = |text: &str| ImageName::from_header(text.as_bytes()).unwrap();
        let raw = name(
            r#"json:{"driver":"raw","size":"0x400","file":{"driver":"raw","offset":"1k",
               "file":{"driver":"file","filename":"/x"}}}"#,
        );
        let expected =
            [Window { offset: 0, size: Some(1024) }, Window { offset: 1024, size: None }];
        assert_eq!(raw.windows, expected);
        let alone = name(
            r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"/x"},"backing":null}"#,
        );
        assert_eq!(alone.below, Below::Nothing);
    }

    #[test]
    fn json_names_tell_where_the_data_file_is() {
        let parsed = |data: &str| {
            let json = format!(r#"json:{{"driver":"qcow2","file.filename":"/x",{data}}}"#);
            ImageName::from_header(json.as_bytes())
        };
        for data in [
            r#""data-file":{"driver":"file","filename":"d"}"#,
            r#""data-file.filename":"d","data-file.locking":"off""#,
            r#""data-file":{"driver":"raw","file":{"filename":"d"}}"#,
        ] {
            let name = parsed(data).unwrap();
            assert_eq!(name.data_file.as_deref(), Some(Path::new("d")), "{data}");
            assert_eq!(name.only, Some(Format::Qcow2));
            assert!(name.depends_on_process() && name.path == Path::new("/x"));
            let at = WorkingDirectory::At("/work".into());
            assert_eq!(name.data_file_in(&at).unwrap(), Some("/work/d".into()));
            assert!(name.data_file_in(&WorkingDirectory::Unknown).is_err());
        }
        assert_eq!(parsed(r#""data-file":null"#).unwrap().data_file, None);
        for data in [
            r#""data-file":"node""#,
            r#""data-file":{"driver":"file"}"#,
            r#""data-file":{"filename":"d","size":512}"#,
            r#""data-file":{"driver":"raw","size":512,"file":{"filename":"d"}}"#,
            r#""data-file":{"driver":"qcow2","file":{"filename":"d"}}"#,
            r#""data-file":{"driver":"nbd","host":"h"}"#,
            r#""data-file.filename":"d","offset":512"#,
        ] {
            assert!(parsed(data).is_err(), "{data}");
        }
        let file = br#"json:{"driver":"file","filename":"/x","data-file.filename":"d"}"#;
        assert!(ImageName::from_header(file).is_err());
    }

    #[test]
    fn names_of_other_protocols_are_refused_and_files_with_a_colon_are_not() {
        for name in
            ["https://h/x", "nbd://h/x", "nbd:unix:/s", "rbd:pool/img", "ssh://h/x", "abc://x"]
        {
            assert!(ImageName::from_user(Path::new(name)).is_err(), "{name}");
        }
        for name in ["a:b", "./rbd:pool", "/x/nbd://y", "vm:disk.qcow2"] {
            assert_eq!(ImageName::from_user(Path::new(name)).unwrap().path, Path::new(name));
        }
    }
}
