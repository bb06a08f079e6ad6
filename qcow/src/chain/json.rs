//! `json:` names: which file, which range of it, in which format, with which data file and over which backing file.
//!
//! Manual: QEMU's `json:` pseudo-protocol; the members are those of `BlockdevOptions`.

mod members;

use std::borrow::Cow;
use std::path::PathBuf;

use members::Options;
use serde_json::Value;

use super::Format;
use super::name::{Below, ImageName, Members, Start, Window, is_network, network};
use crate::{Error, Escaped, Result};

/// What a node's external data file is called among its options.
const DATA_FILE: &str = "data-file";

/// Understands what follows `json:`.
pub(super) fn parse(json: &[u8]) -> Result<ImageName> {
    let Options(options) = serde_json::from_slice(&in_double_quotes(json)).map_err(|error| {
        Error::corrupt(format!(
            "the json: name cannot be understood: {}",
            Escaped(&error.to_string())
        ))
    })?;
    interpret(options)
}

/// JSON as QEMU reads it, with double quotes only: QEMU takes text in single quotes too, and `\'` in either.
///
/// ```
/// let json = br#"{'a': "it's", 'b': 'say "x"', 'c': 'd\'e'}"#;
/// let standard = br#"{"a": "it's", "b": "say \"x\"", "c": "d'e"}"#;
/// assert_eq!(*qcow::chain::in_double_quotes(json), *standard);
/// ```
pub fn in_double_quotes(json: &[u8]) -> Cow<'_, [u8]> {
    if !json.contains(&b'\'') {
        return Cow::Borrowed(json);
    }
    let mut double = Vec::with_capacity(json.len());
    let mut within = None;
    let mut bytes = json.iter().copied();
    while let Some(byte) = bytes.next() {
        match (within, byte) {
            (None, b'\'' | b'"') => {
                within = Some(byte);
                double.push(b'"');
            }
            (Some(quote), _) if quote == byte => {
                within = None;
                double.push(b'"');
            }
            (Some(_), b'"') => double.extend(br#"\""#),
            (Some(_), b'\\') => match bytes.next() {
                Some(b'\'') => double.push(b'\''),
                next => double.extend([byte].into_iter().chain(next)),
            },
            _ => double.push(byte),
        }
    }
    Cow::Owned(double)
}

/// `{"driver": "qcow2", "file": {"driver": "file", "filename": "..."}}`, or the same with dots.
fn interpret(options: Members) -> Result<ImageName> {
    let (below, rest) = take_backing(options)?;
    let (data_file, rest) = take_data_file(rest)?;
    let (file, own) = children(rest, "file");
    let driver = text(&own, "driver")?.map(str::to_owned);
    let (mut windows, mut only) = (Vec::new(), None);
    let plain_file = file.is_empty();
    let path = if plain_file {
        file_node(&own, driver.as_deref(), true)?
    } else {
        refuse_network(driver.as_deref())?;
        windows.extend(window(&own)?);
        only = belongs_to(&own);
        check_keys(&own, |key| matches!(key, "driver" | "offset" | "size") || for_qcow2(key))?;
        file_below(file, &mut windows)?
    };
    if data_file.is_some() {
        if plain_file || only == Some(Format::Raw) {
            return Err(Error::unsupported("only the qcow2 driver has an external data file"));
        }
        only = Some(Format::Qcow2);
    }
    Ok(ImageName {
        path,
        start: Start::Process,
        driver: driver.filter(|_| !plain_file),
        plain_file,
        only,
        windows,
        below,
        data_file,
    })
}

/// The file of a node below a format driver, which raw drivers may restrict to a range.
fn file_below(mut node: Members, windows: &mut Vec<Window>) -> Result<PathBuf> {
    loop {
        let (file, own) = children(node, "file");
        let driver = text(&own, "driver")?;
        if file.is_empty() {
            return file_node(&own, driver, false);
        }
        refuse_network(driver)?;
        if driver != Some("raw") {
            let found = driver.unwrap_or("none");
            return Err(Error::unsupported(format!(
                "the json: name puts the driver '{}' below another; only raw is read there",
                Escaped(found)
            )));
        }
        windows.extend(window(&own)?);
        check_keys(&own, |key| matches!(key, "driver" | "offset" | "size"))?;
        node = file;
    }
}

fn refuse_network(driver: Option<&str>) -> Result<()> {
    driver.filter(|name| is_network(name)).map_or(Ok(()), |name| Err(network(name)))
}

/// Reads options of a backing file: a whole name if they name a file, else changes to what is recorded.
pub(super) fn overlay(
    options: &Members,
    recorded: impl Fn() -> Result<ImageName>,
) -> Result<ImageName> {
    let (below, rest) = take_backing(options.clone())?;
    let (data_file, own) = take_data_file(rest)?;
    if own.iter().any(|(key, _)| key == "filename" || key == "file" || key.starts_with("file.")) {
        return interpret(options.clone());
    }
    let recorded = recorded()?;
    check_keys(&own, |key| matches!(key, "driver" | "offset" | "size") || for_qcow2(key))?;
    let more = !recorded.windows.is_empty() || recorded.data_file.is_some();
    if more || recorded.below != Below::Recorded {
        return Err(Error::unsupported(
            "the json: name changes options of a backing file whose own name is a json: name",
        ));
    }
    let driver = text(&own, "driver")?.map(str::to_owned);
    let windows: Vec<_> = window(&own)?.into_iter().collect();
    let only = match (&data_file, belongs_to(&own)) {
        (Some(_), Some(Format::Raw)) => {
            return Err(Error::unsupported("only the qcow2 driver has an external data file"));
        }
        (Some(_), _) => Some(Format::Qcow2),
        (None, only) => only,
    };
    Ok(ImageName {
        driver: driver.or(recorded.driver),
        only,
        windows,
        below,
        data_file,
        ..recorded
    })
}

/// Whether options state the format driver themselves.
pub(super) fn states_driver(options: &Members) -> bool {
    options.iter().any(|(key, value)| key == "driver" && value.is_string())
}

/// Takes out what is said of the backing file.
fn take_backing(options: Members) -> Result<(Below, Members)> {
    let mut below = Below::Recorded;
    let (backing, mut rest) = children(options, "backing");
    if !backing.is_empty() {
        below = Below::Options(backing);
    }
    if let Some(at) = rest.iter().position(|(key, _)| key == "backing") {
        let (_, value) = rest.remove(at);
        below = match (value, below) {
            (Value::Null, Below::Recorded) => Below::Nothing,
            (Value::String(name), Below::Recorded) if name.is_empty() => Below::Nothing,
            _ => {
                return Err(Error::unsupported(
                    "the json: name refers to a backing node by its name",
                ));
            }
        };
    }
    Ok((below, rest))
}

/// Takes out where the external data file is: a file, which raw drivers may be above of.
fn take_data_file(options: Members) -> Result<(Option<PathBuf>, Members)> {
    let (node, mut rest) = children(options, DATA_FILE);
    let by_name = rest.iter().position(|(key, _)| key == DATA_FILE);
    if by_name.is_some_and(|at| !rest.remove(at).1.is_null()) {
        return Err(Error::unsupported("the json: name refers to a data file by a node's name"));
    }
    if node.is_empty() {
        return Ok((None, rest));
    }
    let mut windows = Vec::new();
    let path = file_below(node, &mut windows)?;
    if windows.iter().any(|window| *window != Window { offset: 0, size: None }) {
        return Err(Error::unsupported(
            "the json: name means a range of a data file, not a whole one",
        )
        .hint("copy that range into a file of its own"));
    }
    Ok((Some(path), rest))
}

/// Splits members into those below `parent`, without its name, and the others.
fn children(options: Members, parent: &str) -> (Members, Members) {
    let (mut inner, mut own) = (Vec::new(), Vec::new());
    for (key, value) in options {
        match key.strip_prefix(parent).and_then(|rest| rest.strip_prefix('.')) {
            Some(rest) => inner.push((rest.to_owned(), value)),
            None => own.push((key, value)),
        }
    }
    (inner, own)
}

/// The file that the innermost node names.
fn file_node(own: &Members, driver: Option<&str>, outermost: bool) -> Result<PathBuf> {
    match driver {
        Some("file" | "host_device") => {}
        None if !outermost => {}
        Some(other) if is_network(other) => return Err(network(other)),
        _ => return Err(Error::corrupt("the json: name does not name a file")),
    }
    if own.iter().any(|(key, _)| key == "file") {
        return Err(Error::unsupported("the json: name refers to a node by its name"));
    }
    check_keys(own, |key| matches!(key, "driver" | "filename"))?;
    // A plain path, whatever it looks like: QEMU takes no prefix off here.
    let path = text(own, "filename")?
        .ok_or_else(|| Error::corrupt("the json: name does not name a file"))?;
    Ok(PathBuf::from(path))
}

fn check_keys(own: &Members, known: impl Fn(&str) -> bool) -> Result<()> {
    for (key, _) in own {
        if !(harmless(key) || known(key)) {
            return Err(Error::unsupported(format!(
                "the json: name has the option '{}', which is not supported",
                Escaped(key)
            ))
            .hint("supported are driver, file.driver, file.filename, offset, size, backing and data-file"));
        }
    }
    Ok(())
}

/// The member `key`, which is text if it is there.
fn text<'a>(own: &'a Members, key: &str) -> Result<Option<&'a str>> {
    match own.iter().find(|(name, _)| name == key) {
        None => Ok(None),
        Some((_, Value::String(text))) => Ok(Some(text)),
        Some(_) => {
            Err(Error::corrupt(format!("in the json: name, '{}' is not text", Escaped(key))))
        }
    }
}

/// The one format driver that knows all options of a node; `None` if each does.
fn belongs_to(own: &Members) -> Option<Format> {
    let keys = || own.iter().map(|(key, _)| key.as_str());
    if keys().any(for_qcow2) {
        return Some(Format::Qcow2);
    }
    keys().any(|key| matches!(key, "offset" | "size")).then_some(Format::Raw)
}

/// The range that a raw node restricts its file to.
fn window(own: &Members) -> Result<Option<Window>> {
    let (offset, size) = (number(own, "offset")?, number(own, "size")?);
    let given = offset.is_some() || size.is_some();
    Ok(given.then(|| Window { offset: offset.unwrap_or(0), size }))
}

/// A count of bytes, as a number or as text with a unit; `null` is as if it were not there.
fn number(own: &Members, key: &str) -> Result<Option<u64>> {
    let value = match own.iter().find(|(name, _)| name == key) {
        None | Some((_, Value::Null)) => return Ok(None),
        Some((_, value)) => value,
    };
    let bytes = match value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => bytes(text),
        _ => None,
    };
    let refused = || {
        let value = value.to_string();
        Error::corrupt(format!(
            "in the json: name, '{}' is {}, expected a number of bytes",
            Escaped(key),
            Escaped(&value)
        ))
    };
    bytes.map(Some).ok_or_else(refused)
}

fn bytes(text: &str) -> Option<u64> {
    if let Some(digits) = text.strip_prefix("0x") {
        return u64::from_str_radix(digits, 16).ok();
    }
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text.strip_prefix(digits)? {
        "" | "b" | "B" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        "p" | "P" => 50,
        "e" | "E" => 60,
        _ => return None,
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1_u64.checked_shl(shift)?)
}

/// Options that say how QEMU is to reach the file, not which bytes it holds.
fn harmless(key: &str) -> bool {
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

/// Options of QEMU's qcow2 driver that do not change what is read.
fn for_qcow2(key: &str) -> bool {
    matches!(
        key,
        "lazy-refcounts"
            | "cache-size"
            | "l2-cache-size"
            | "l2-cache-entry-size"
            | "refcount-cache-size"
            | "cache-clean-interval"
            | "discard-no-unref"
            | "pass-discard-request"
            | "pass-discard-snapshot"
            | "pass-discard-other"
            | "overlap-check"
    )
}
