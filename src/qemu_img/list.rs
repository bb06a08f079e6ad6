//! Option lists: `key=value,key=value`, where a comma inside a value is written twice.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::say::Stop;

/// One option. A key without a value is on; `no` in front of it switches it off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) key: String,
    /// `None` for a key alone.
    pub(super) value: Option<OsString>,
}

impl Item {
    /// The value as text.
    pub(super) fn text(&self) -> String {
        self.value.as_ref().map_or_else(|| "on".to_owned(), |value| value.to_string_lossy().into())
    }
}

/// All options of the `-o` lists, in order.
///
/// # Errors
/// For a list that is empty, begins with a comma, or ends with one that is not doubled.
pub(super) fn items<'a>(lists: impl Iterator<Item = &'a OsStr>) -> Result<Vec<Item>, Stop> {
    let mut items = Vec::new();
    for list in lists {
        let bytes = list.as_bytes();
        let commas = bytes.iter().rev().take_while(|&&byte| byte == b',').count();
        if bytes.is_empty() || bytes.starts_with(b",") || !commas.is_multiple_of(2) {
            return Err(Stop::error(format!("Invalid option list: {}", list.to_string_lossy())));
        }
        items.extend(split(bytes));
    }
    Ok(items)
}

/// Takes one list apart.
pub(super) fn split(list: &[u8]) -> Vec<Item> {
    let mut items = Vec::new();
    let mut element = Vec::new();
    let mut bytes = list.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        if byte == b',' && bytes.next_if_eq(&b',').is_none() {
            items.push(item(&std::mem::take(&mut element)));
        } else {
            element.push(byte);
        }
    }
    items.push(item(&element));
    items
}

fn item(element: &[u8]) -> Item {
    let mut parts = element.splitn(2, |byte| *byte == b'=');
    let key = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    Item { key, value: parts.next().map(|value| OsString::from_vec(value.to_vec())) }
}

/// Whether the options ask to be listed.
pub(super) fn wants_help(items: &[Item]) -> bool {
    items.iter().any(|item| item.value.is_none() && matches!(item.key.as_str(), "help" | "?"))
}

/// A value with its commas doubled, as it is printed in a list.
pub(super) fn doubled(value: &str) -> String {
    value.replace(',', ",,")
}

/// Reads a switch.
///
/// # Errors
/// For any other word.
pub(super) fn switch(name: &str, value: &str) -> Result<bool, Stop> {
    match value {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err(Stop::error(format!("Parameter '{name}' expects 'on' or 'off'"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(lists: &[&str]) -> Result<Vec<(String, Option<String>)>, Stop> {
        let items = items(lists.iter().map(OsStr::new))?;
        let text = |value: OsString| value.into_string().unwrap();
        Ok(items.into_iter().map(|item| (item.key, item.value.map(text))).collect())
    }

    #[test]
    fn lists_are_joined_and_doubled_commas_are_one() {
        let found = pairs(&["a=1,,2,b", "c="]).unwrap();
        let expected = [("a", Some("1,2")), ("b", None), ("c", Some(""))];
        let expected = expected.map(|(key, value)| (key.to_owned(), value.map(str::to_owned)));
        assert_eq!(found, expected);
    }

    #[test]
    fn lists_with_an_empty_piece_at_an_end_are_refused() {
        for list in ["", ",a", "a,", "a=1,,,", ","] {
            assert_eq!(
                pairs(&[list]).unwrap_err(),
                Stop::error(format!("Invalid option list: {list}"))
            );
        }
        assert!(pairs(&["a=1,,"]).is_ok());
    }
}
