//! Names of images as they stand in headers and on command lines: paths, `file:`, `json:`, and
//! network protocols, which are recognised in order to be refused.
//!
//! Manual: QEMU's "Device URL Syntax" and the `json:` pseudo-protocol.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::{Error, Printable, Result};

/// A name, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageName {
    /// The file; relative if the name was.
    pub(crate) path: PathBuf,
    /// The format driver that a `json:` name asks for.
    pub(crate) driver: Option<String>,
}

impl ImageName {
    /// Understands a name from an image's header (trap 103). It need not be UTF-8.
    pub(crate) fn from_header(name: &[u8]) -> Result<Self> {
        if let Some(json) = name.strip_prefix(b"json:") {
            return from_json(json);
        }
        match protocol(name) {
            None => Ok(Self::plain(name)),
            Some((b"file" | b"host_device", path)) => Ok(Self::plain(path)),
            Some((protocol, _)) => Err(network(&String::from_utf8_lossy(protocol))),
        }
    }

    /// Understands a name that a person gave: `json:` and `file:` as above, all else is a path,
    /// colons included.
    pub(crate) fn from_user(path: &Path) -> Result<Self> {
        let name = path.as_os_str().as_bytes();
        match name.strip_prefix(b"json:") {
            Some(json) => from_json(json),
            None => Ok(Self::plain(name.strip_prefix(b"file:").unwrap_or(name))),
        }
    }

    /// The name of a data file: a path and nothing else (trap 113).
    pub(crate) fn data_file(name: &[u8]) -> Self {
        Self::plain(name)
    }

    /// The path, seen from the directory of the image that holds the name (trap 102).
    pub(crate) fn relative_to(&self, holder: &Path) -> PathBuf {
        match holder.parent() {
            Some(directory) if self.path.is_relative() => directory.join(&self.path),
            _ => self.path.clone(),
        }
    }

    fn plain(path: &[u8]) -> Self {
        Self { path: PathBuf::from(OsStr::from_bytes(path)), driver: None }
    }
}

/// Splits `name` at a colon that comes before the first slash.
fn protocol(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = name.iter().position(|&byte| byte == b':' || byte == b'/')?;
    let (protocol, rest) = name.split_at_checked(end)?;
    Some((protocol, rest.strip_prefix(b":")?))
}

/// `{"driver": "qcow2", "file": {"driver": "file", "filename": "..."}}`, or the same with dots.
fn from_json(json: &[u8]) -> Result<ImageName> {
    let object: Map<String, Value> = serde_json::from_slice(json)
        .map_err(|error| Error::corrupt(format!("the json: name is not a JSON object: {error}")))?;
    let mut options = Vec::new();
    dotted("", &object, &mut options);
    let (mut path, mut driver, mut protocol) = (None, None, None);
    for (key, value) in &options {
        match (key.as_str(), value) {
            ("driver", Value::String(name)) if is_protocol(name) => protocol = Some(name.clone()),
            ("driver", Value::String(name)) => driver = Some(name.clone()),
            ("file.driver", Value::String(name)) => protocol = Some(name.clone()),
            ("filename" | "file.filename", Value::String(name)) => path = Some(name.clone()),
            (key, _) if harmless(key) => {}
            (key, _) => {
                return Err(Error::unsupported(format!(
                    "the json: name has the option '{}', which is not supported",
                    Printable(key)
                ))
                .hint("only names of local files are: driver, file.driver, file.filename"));
            }
        }
    }
    match protocol.as_deref() {
        None | Some("file" | "host_device") => {}
        Some(other) => return Err(network(other)),
    }
    let path = path.ok_or_else(|| Error::corrupt("the json: name does not name a file"))?;
    // Within json: the file driver takes a plain path, except for its own optional prefix.
    let path = path.strip_prefix("file:").unwrap_or(&path);
    Ok(ImageName { path: PathBuf::from(path), driver })
}

fn is_protocol(driver: &str) -> bool {
    matches!(
        driver,
        "file"
            | "host_device"
            | "nbd"
            | "http"
            | "https"
            | "ssh"
            | "rbd"
            | "iscsi"
            | "nfs"
            | "gluster"
    )
}

/// Options that say how QEMU is to reach the file, not which bytes it holds.
fn harmless(key: &str) -> bool {
    let key = key.strip_prefix("file.").unwrap_or(key);
    key.starts_with("cache.")
        || matches!(
            key,
            "read-only"
                | "auto-read-only"
                | "node-name"
                | "locking"
                | "aio"
                | "discard"
                | "detect-zeroes"
                | "force-share"
        )
}

/// Flattens nested objects into dotted keys. serde_json bounds the nesting.
fn dotted(prefix: &str, object: &Map<String, Value>, options: &mut Vec<(String, Value)>) {
    for (key, value) in object {
        let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            Value::Object(nested) => dotted(&key, nested, options),
            value => options.push((key, value.clone())),
        }
    }
}

fn network(protocol: &str) -> Error {
    Error::unsupported(format!(
        "the image is reached through the protocol '{}'; only local files and block devices are",
        Printable(protocol)
    ))
    .hint("copy it to a local file first, for example with `qemu-img convert`")
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
        assert_eq!(name.relative_to(Path::new("/pool/top.qcow2")), Path::new("/pool/base.qcow2"));
        assert_eq!(name.relative_to(Path::new("top.qcow2")), Path::new("base.qcow2"));
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
            r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"/x"},"backing":{"driver":"raw"}}"#,
            "json:[]",
            "json:{",
        ] {
            assert!(ImageName::from_header(name.as_bytes()).is_err(), "{name}");
        }
    }
}
