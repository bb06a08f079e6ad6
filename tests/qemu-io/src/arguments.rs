//! The arguments of the program itself.

use std::ffi::OsString;

use crate::flags::{self, Flags};
use crate::image::Spec;

/// What the program was asked to do.
pub(crate) struct Given {
    /// The image, if one is named.
    pub(crate) spec: Spec,
    /// The commands of `-c`; without any they are read from standard input.
    pub(crate) commands: Vec<String>,
}

/// Long options and the letters that mean the same; the second list takes a value. `O` and `G` have no letter.
const LONG: [(&str, char); 9] = [
    ("read-only", 'r'),
    ("snapshot", 's'),
    ("nocache", 'n'),
    ("copy-on-read", 'C'),
    ("misalign", 'm'),
    ("native-aio", 'k'),
    ("force-share", 'U'),
    ("image-opts", 'G'),
    ("quiet", 'q'),
];
const LONG_WITH_VALUE: [(&str, char); 7] = [
    ("cmd", 'c'),
    ("format", 'f'),
    ("aio", 'i'),
    ("cache", 't'),
    ("discard", 'd'),
    ("trace", 'T'),
    ("object", 'O'),
];
const LETTERS: Flags = Flags { alone: "rsnCmkUGq", with_value: "cfitdTO" };

/// Takes the arguments apart.
///
/// # Errors
/// For options that are not known, and for formats and options of images that are not there.
pub(crate) fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Given, String> {
    let mut words = Vec::new();
    for argument in arguments {
        let text = argument.into_string().map_err(|_| "a name that is no UTF-8".to_owned())?;
        match text.strip_prefix("--").filter(|name| !name.is_empty()) {
            Some(long) => words.extend(short(long)?),
            None => words.push(text),
        }
    }
    let given = flags::parse(&LETTERS, &words)?;
    let mut spec = Spec {
        image_opts: given.has('G'),
        read_only: given.has('r'),
        snapshot: given.has('s'),
        copy_on_read: given.has('C'),
        force_share: given.has('U'),
        ..Spec::default()
    };
    if let Some(format) = given.value('f') {
        spec.format = Some(format.parse().map_err(|_| format!("Unknown driver '{format}'"))?);
    }
    match given.operands.as_slice() {
        [] => {}
        [name] => spec.name.clone_from(name),
        _ => return Err("more than one file".to_owned()),
    }
    Ok(Given { spec, commands: given.all('c').map(str::to_owned).collect() })
}

/// A long option as the letter for it, and its value.
fn short(long: &str) -> Result<Vec<String>, String> {
    let (name, value) = match long.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (long, None),
    };
    if let Some((_, letter)) = LONG.iter().find(|(known, _)| *known == name) {
        return Ok(vec![format!("-{letter}")]);
    }
    let Some((_, letter)) = LONG_WITH_VALUE.iter().find(|(known, _)| *known == name) else {
        return Err(format!("unrecognized option '--{name}'"));
    };
    Ok(match value {
        Some(value) => vec![format!("-{letter}{value}")],
        None => vec![format!("-{letter}")],
    })
}
