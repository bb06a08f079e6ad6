//! Names of images on the command line: plain ones, `file:`, `json:`, and option lists with `--image-opts`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::list::{self, Item};
use super::say::Stop;
use super::tuning;

/// An image that is opened: the name that the library takes, and the one that messages show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) shown: String,
}

impl Source {
    /// The file that it means, where it is a plain one.
    pub(super) fn file(&self) -> PathBuf {
        qcow::chain::local_path(&self.path).unwrap_or_else(|_| self.path.clone())
    }

    /// The name by which it is changed in place: its file, and all that is said where that says where a data file is.
    pub(super) fn to_change(&self) -> PathBuf {
        let places = self.keys().iter().any(|key| is_data_file(key));
        if places { self.path.clone() } else { self.file() }
    }

    /// Whether it says where the image's external data file is.
    pub(super) fn states_data_file(&self) -> bool {
        self.keys().iter().any(|key| key.starts_with("data-file."))
    }

    /// What a tree of options says something of, with dots between the levels.
    pub(super) fn keys(&self) -> Vec<String> {
        let tree = self.tree().unwrap_or_default();
        flattened(&tree).into_iter().map(|(key, _)| key).collect()
    }

    fn tree(&self) -> Option<Map<String, Value>> {
        let json = self.path.as_os_str().as_bytes().strip_prefix(b"json:")?;
        serde_json::from_slice(json).ok()
    }

    /// Whether it is a tree of options, and not a plain name.
    pub(super) fn is_tree(&self) -> bool {
        self.path.as_os_str().as_bytes().starts_with(b"json:")
    }

    /// The name that `info` shows: of a `json:` name that says no more than which file and format, the
    /// file's.
    pub(super) fn canonical(&self) -> PathBuf {
        if !self.is_tree() {
            return self.file();
        }
        let Some(tree) = self.tree() else { return self.path.clone() };
        // A data file is not opened, and so not part of what is shown.
        let plain = flattened(&tree).iter().all(|(key, _)| {
            matches!(key.as_str(), "driver" | "file.driver" | "file.filename" | "filename")
                || key.starts_with(DATA_FILE)
        });
        if plain { self.file() } else { self.path.clone() }
    }
}

/// How options about an image's external data file begin.
const DATA_FILE: &str = "data-file";

/// Whether an option is about the external data file of an image, or of one below it.
fn is_data_file(key: &str) -> bool {
    key.rsplit("backing.").next().is_some_and(|key| key.starts_with(DATA_FILE))
}

fn flattened(tree: &Map<String, Value>) -> Vec<(String, &Value)> {
    let mut flat = Vec::new();
    let mut open: Vec<(String, &Map<String, Value>)> = vec![(String::new(), tree)];
    while let Some((prefix, tree)) = open.pop() {
        for (key, value) in tree {
            let key = format!("{prefix}{key}");
            match value {
                Value::Object(inner) => open.push((format!("{key}."), inner)),
                value => flat.push((key, value)),
            }
        }
    }
    flat
}

/// The image that an operand names; an option list with `image_opts`.
///
/// # Errors
/// For other protocols than local files, and for options that are not known.
pub(super) fn source(operand: &OsStr, image_opts: bool) -> Result<Source, Stop> {
    let shown = operand.to_string_lossy().into_owned();
    if image_opts {
        return from_options(operand).map_err(|stop| {
            let whole = |line: &String| {
                ["Cannot find", "Could not"].iter().any(|start| line.starts_with(start))
            };
            if stop.lines().first().is_some_and(whole) {
                stop
            } else {
                stop.prepend(format_args!("Could not open '{shown}': "))
            }
        });
    }
    match protocol(operand.as_bytes()) {
        Some((b"json", json)) => {
            let path = [b"json:", &*qcow::chain::in_double_quotes(json)].concat();
            Ok(Source { path: PathBuf::from(OsString::from_vec(path)), shown })
        }
        None | Some((b"file" | b"host_device", _)) => Ok(Source { path: operand.into(), shown }),
        Some((protocol, _)) => Err(unknown_protocol(&shown, protocol)),
    }
}

fn unknown_protocol(shown: &str, protocol: &[u8]) -> Stop {
    let protocol = String::from_utf8_lossy(protocol);
    Stop::error(format!("Could not open '{shown}': Unknown protocol '{protocol}'"))
}

/// The file that is to be made.
///
/// # Errors
/// For names of other protocols.
pub(super) fn target(operand: &OsStr) -> Result<PathBuf, Stop> {
    match protocol(operand.as_bytes()) {
        None => Ok(operand.into()),
        Some((b"file" | b"host_device", rest)) => Ok(PathBuf::from(OsStr::from_bytes(rest))),
        Some((protocol, _)) => {
            let protocol = String::from_utf8_lossy(protocol);
            Err(Stop::error(format!("Unknown protocol '{protocol}'")))
        }
    }
}

/// What comes before the first colon, if it comes before any slash.
fn protocol(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = name.iter().position(|&byte| byte == b':' || byte == b'/')?;
    let (protocol, rest) = name.split_at_checked(end)?;
    let rest = rest.strip_prefix(b":")?;
    let text = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
    protocol.iter().all(text).then_some((protocol, rest))
}

/// A file name as QEMU shows it: one with a colon in front of any slash could be taken for a protocol.
pub(super) fn unambiguous(path: &Path) -> PathBuf {
    let bytes = path.as_os_str().as_bytes();
    match protocol(bytes) {
        Some((prefix, _)) if prefix != b"json" => {
            PathBuf::from(OsString::from_vec([b"./", bytes].concat()))
        }
        _ => path.to_path_buf(),
    }
}

/// Turns an option list into the `json:` name that means the same.
fn from_options(operand: &OsStr) -> Result<Source, Stop> {
    let shown = operand.to_string_lossy().into_owned();
    let items = list::split(operand.as_bytes());
    if let Some(Item { key, value: None }) = items.first() {
        return Err(Stop::error(format!("Cannot find device='{key}' nor node-name='{key}'")));
    }
    let (mut tree, mut tuned) = (Map::new(), Vec::new());
    let driver = items.iter().rev().find(|item| item.key == "driver").map(Item::text);
    for item in &items {
        let text = item.text();
        match item.key.as_str() {
            "backing" if text.is_empty() => {
                tree.insert("backing".to_owned(), Value::Null);
            }
            key if tuning::is_tuning(key.rsplit("backing.").next().unwrap_or(key)) => {
                tuned.push((item.key.clone(), text));
            }
            DATA_FILE => {
                let why = format!("Cannot find device='{text}' nor node-name='{text}'");
                return Err(Stop::error(format!("Could not open '{shown}': {why}")));
            }
            key if key.strip_prefix("data-file.").is_some_and(tuning::is_for_files) => {
                tuned.push((item.key.clone(), text));
            }
            key => {
                let raw = driver.as_deref() == Some("raw") && key.starts_with(DATA_FILE);
                if raw || !known(key) {
                    let driver = driver.as_deref().unwrap_or("qcow2");
                    return Err(Stop::error(format!(
                        "Block format '{driver}' does not support the option '{key}'"
                    )));
                }
                tree.insert(key.to_owned(), Value::String(text));
            }
        }
    }
    if let Some(driver) =
        driver.filter(|driver| !matches!(driver.as_str(), "qcow2" | "raw" | "file" | "host_device"))
    {
        return Err(Stop::error(format!("Unknown driver '{driver}'")));
    }
    tuning::check(&tuned, None)?;
    let path = PathBuf::from(format!("json:{}", Value::Object(tree)));
    Ok(Source { path, shown })
}

fn known(key: &str) -> bool {
    let last = key.rsplit('.').next().unwrap_or(key);
    matches!(last, "driver" | "filename" | "offset" | "size" | "file" | "backing")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_before_a_slash_is_a_protocol_and_file_is_cut_off() {
        assert_eq!(target(OsStr::new("file:x:y")).unwrap(), Path::new("x:y"));
        assert_eq!(target(OsStr::new("./x:y")).unwrap(), Path::new("./x:y"));
        assert_eq!(target(OsStr::new("/x:y")).unwrap(), Path::new("/x:y"));
        let said = target(OsStr::new("x:y")).unwrap_err().lines();
        assert_eq!(said, ["Unknown protocol 'x'"]);
        assert_eq!(unambiguous(Path::new("x:y")), Path::new("./x:y"));
        let said = source(OsStr::new("nbd:h"), false).unwrap_err().lines();
        assert_eq!(said, ["Could not open 'nbd:h': Unknown protocol 'nbd'"]);
    }

    #[test]
    fn an_option_list_is_a_json_name() {
        let list = "driver=qcow2,file.filename=a,,b,cache.direct=on,backing=,overlap-check=all";
        let found = source(OsStr::new(list), true).unwrap();
        let expected = r#"json:{"driver":"qcow2","file.filename":"a,b","backing":null}"#;
        assert_eq!(found.path, Path::new(expected));
        assert_eq!(found.shown, list);
        let said = |list: &str| source(OsStr::new(list), true).unwrap_err().lines();
        assert_eq!(said("a"), ["Cannot find device='a' nor node-name='a'"]);
        assert_eq!(
            said("driver=qcow2,foo=1"),
            [
                "Could not open 'driver=qcow2,foo=1': Block format 'qcow2' does not support the option 'foo'"
            ]
        );
    }

    #[test]
    fn a_json_name_that_says_no_more_than_a_file_is_shown_as_the_file() {
        let shown = |name: &str| source(OsStr::new(name), false).unwrap().canonical();
        let plain = r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"a"}}"#;
        assert_eq!(shown(plain), Path::new("a"));
        let more = r#"json:{"driver":"raw","file.filename":"a","offset":512}"#;
        assert_eq!(shown(more), Path::new(more));
    }
}
