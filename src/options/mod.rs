//! Option strings: `-o key=value,key=value`, and what they ask of a new image.
//!
//! [`request`] knows only the grammar, [`table`] which options there are, [`ImageOptions`] what
//! they mean.

mod image;
mod table;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

pub(crate) use image::{ImageOptions, Value};
use qcow::{Error, Result};
pub(crate) use table::{Key, Purpose, help};

/// What the `-o` options of one command line ask.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// `help` or `?` is among them: list what there is.
    Help,
    /// These options, in the order given.
    Options(Vec<Item>),
}

/// One `key=value`, or a key alone.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Item {
    /// What stands before the first `=`.
    pub(crate) key: String,
    /// What stands after it, with `,,` read as a comma.
    pub(crate) value: Option<OsString>,
}

/// Takes option lists apart.
///
/// # Errors
/// `Usage` for an empty option.
pub(crate) fn request(lists: &[OsString]) -> Result<Request> {
    let mut items = Vec::new();
    let mut help = false;
    for list in lists {
        for element in split(list.as_bytes()) {
            match element.as_slice() {
                b"" => return Err(empty_option(list)),
                b"help" | b"?" => help = true,
                element => items.push(item(element)),
            }
        }
    }
    Ok(if help { Request::Help } else { Request::Options(items) })
}

/// Cuts at single commas; of two, one stays.
fn split(list: &[u8]) -> Vec<Vec<u8>> {
    let mut elements = Vec::new();
    let mut element = Vec::new();
    let mut bytes = list.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        if byte == b',' && bytes.next_if_eq(&b',').is_none() {
            elements.push(std::mem::take(&mut element));
        } else {
            element.push(byte);
        }
    }
    elements.push(element);
    elements
}

fn item(element: &[u8]) -> Item {
    let mut parts = element.splitn(2, |byte| *byte == b'=');
    let key = parts.next().unwrap_or_default();
    Item {
        key: String::from_utf8_lossy(key).into_owned(),
        value: parts.next().map(|value| OsString::from_vec(value.to_vec())),
    }
}

fn empty_option(list: &OsStr) -> Error {
    Error::usage(format!("the option list '{}' has an empty option", list.to_string_lossy()))
        .hint("a comma inside a value is written ',,'")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(lists: &[&str]) -> Vec<(String, Option<String>)> {
        let lists: Vec<OsString> = lists.iter().map(OsString::from).collect();
        let Request::Options(items) = request(&lists).unwrap() else { panic!("help") };
        let text = |value: OsString| value.into_string().unwrap();
        items.into_iter().map(|item| (item.key, item.value.map(text))).collect()
    }

    fn pair(key: &str, value: &str) -> (String, Option<String>) {
        (key.to_owned(), Some(value.to_owned()))
    }

    #[test]
    fn options_are_cut_at_commas_and_repeat() {
        let expected = [pair("a", "1"), pair("b", "2"), pair("c", "3")];
        assert_eq!(items(&["a=1,b=2", "c=3"]), expected);
    }

    #[test]
    fn two_commas_are_one_in_the_value() {
        assert_eq!(items(&["f=a,,b,g=1"]), [pair("f", "a,b"), pair("g", "1")]);
        assert_eq!(items(&["f=a,,,g=1"]), [pair("f", "a,"), pair("g", "1")]);
        assert_eq!(items(&["f=,,,,"]), [pair("f", ",,")]);
    }

    #[test]
    fn only_the_first_equals_sign_cuts() {
        assert_eq!(items(&["f=a=b"]), [pair("f", "a=b")]);
        assert_eq!(items(&["f="]), [pair("f", "")]);
        assert_eq!(items(&["f"]), [("f".to_owned(), None)]);
    }

    #[test]
    fn empty_options_are_refused_as_qemu_img_refuses_them() {
        for list in ["", ",", ",a=1", "a=1,", "a=1,,,"] {
            assert!(request(&[list.into()]).is_err(), "{list:?}");
        }
    }

    #[test]
    fn help_is_seen_anywhere() {
        for list in ["help", "?", "a=1,help", "?,a=1"] {
            assert_eq!(request(&[list.into()]).unwrap(), Request::Help, "{list:?}");
        }
        assert_eq!(items(&["helper=1"]), [pair("helper", "1")]);
    }

    #[test]
    fn values_need_not_be_utf_8() {
        let list = OsString::from_vec(b"data_file=\xff,,x".to_vec());
        let Request::Options(items) = request(&[list]).unwrap() else { panic!("help") };
        assert_eq!(items[0].value.as_deref().unwrap().as_bytes(), b"\xff,x");
    }
}
