//! Names of images as they stand in headers and on command lines: paths, `file:`, `json:`, and
//! network protocols, which are recognised in order to be refused.
//!
//! Manual: QEMU's "Device URL Syntax" and the `json:` pseudo-protocol.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::{Error, Printable, Remedy, Result};

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

    /// A name that QEMU shows joined to its holder's directory; `None` for one with a protocol.
    pub(crate) fn shown(name: &Path) -> Option<Self> {
        let name = name.as_os_str().as_bytes();
        protocol(name).is_none().then(|| Self::plain(name))
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
    let Options(options) = serde_json::from_slice(json).map_err(|error| {
        Error::corrupt(format!(
            "the json: name cannot be understood: {}",
            Printable(&error.to_string())
        ))
    })?;
    let text = |wanted: &str| {
        options.iter().find_map(|(key, value)| value.as_deref().filter(|_| key == wanted))
    };
    let driver = text("driver");
    // The driver of the file decides first: what else is there depends on it.
    let protocol = text("file.driver").or_else(|| driver.filter(|name| is_protocol(name)));
    if let Some(other) = protocol.filter(|name| !matches!(*name, "file" | "host_device")) {
        return Err(network(other));
    }
    for (key, value) in &options {
        let known = matches!(key.as_str(), "driver" | "file.driver" | "filename" | "file.filename");
        if !(harmless(key) || known && value.is_some()) {
            return Err(Error::unsupported(format!(
                "the json: name has the option '{}', which is not supported",
                Printable(key)
            ))
            .hint("only names of local files are: driver, file.driver, file.filename"));
        }
    }
    let path = text("file.filename")
        .or_else(|| text("filename"))
        .ok_or_else(|| Error::corrupt("the json: name does not name a file"))?;
    // Within json: the file driver takes a plain path, except for its own optional prefix.
    let path = path.strip_prefix("file:").unwrap_or(path);
    let driver = driver.filter(|name| !is_protocol(name)).map(str::to_owned);
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

/// The members of a JSON object, nested ones with dotted keys. A key that comes twice is an error,
/// as in QEMU: two readers could take it in two ways. A value that is not a string is `None`: no option
/// that matters has one. serde_json bounds the nesting.
struct Options(Vec<(String, Option<String>)>);

impl<'de> Deserialize<'de> for Options {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(OptionsVisitor)
    }
}

struct OptionsVisitor;

impl<'de> Visitor<'de> for OptionsVisitor {
    type Value = Options;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(
        self,
        mut members: A,
    ) -> std::result::Result<Options, A::Error> {
        let mut options: Vec<(String, Option<String>)> = Vec::new();
        while let Some(key) = members.next_key::<String>()? {
            let found = match members.next_value::<Member>()? {
                Member::Nested(Options(nested)) => nested
                    .into_iter()
                    .map(|(inner, value)| (format!("{key}.{inner}"), value))
                    .collect(),
                Member::Plain(value) => vec![(key, value)],
            };
            for (key, value) in found {
                if options.iter().any(|(known, _)| *known == key) {
                    return Err(A::Error::custom(format!("the key '{key}' comes twice")));
                }
                options.push((key, value));
            }
        }
        Ok(Options(options))
    }
}

/// The value of a member. Read by hand: what is derived needs a procedural macro, which a program that only
/// reads images should not have to build.
enum Member {
    Nested(Options),
    Plain(Option<String>),
}

impl<'de> Deserialize<'de> for Member {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(MemberVisitor)
    }
}

struct MemberVisitor;

impl<'de> Visitor<'de> for MemberVisitor {
    type Value = Member;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> std::result::Result<Member, A::Error> {
        OptionsVisitor.visit_map(members).map(Member::Nested)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> std::result::Result<Member, A::Error> {
        while values.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Member::Plain(None))
    }

    fn visit_str<E>(self, text: &str) -> std::result::Result<Member, E> {
        Ok(Member::Plain(Some(text.to_owned())))
    }

    fn visit_bool<E>(self, _: bool) -> std::result::Result<Member, E> {
        Ok(Member::Plain(None))
    }

    fn visit_i64<E>(self, _: i64) -> std::result::Result<Member, E> {
        Ok(Member::Plain(None))
    }

    fn visit_u64<E>(self, _: u64) -> std::result::Result<Member, E> {
        Ok(Member::Plain(None))
    }

    fn visit_f64<E>(self, _: f64) -> std::result::Result<Member, E> {
        Ok(Member::Plain(None))
    }

    fn visit_unit<E>(self) -> std::result::Result<Member, E> {
        Ok(Member::Plain(None))
    }
}

fn network(protocol: &str) -> Error {
    Error::unsupported(format!(
        "the image is reached through the protocol '{}'; only local files and block devices are",
        Printable(protocol)
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
            r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"/a b","cache":{"direct":true},
                "cache.lists":[1,{"a":[null]}],"aio":null,"discard":-1,"locking":2,"read-only":0.5}}"#,
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
            r#"json:{"driver":"qcow2","file":{"filename":"/x","filename":"/y"}}"#,
            r#"json:{"driver":"qcow2","file":{"filename":"/x"},"file.filename":"/y"}"#,
            r#"json:{"driver":"qcow2","file":{"filename":7}}"#,
            "json:[]",
            "json:{",
        ] {
            assert!(ImageName::from_header(name.as_bytes()).is_err(), "{name}");
        }
    }
}
