//! Arguments as `getopt_long` of glibc takes them apart: options and operands mixed, short ones bundled, long
//! ones shortened, `--`, `POSIXLY_CORRECT`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::say::Stop;

/// One option of a command. Several may have one `key`: those are names of the same thing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Opt {
    pub(super) key: Key,
    long: &'static str,
    short: u8,
    value: bool,
}

/// What an option means; the names are those of the long options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Preallocation,
    Shrink,
    Add,
    Aio,
    Count,
    Depth,
    Drop,
    FlushInterval,
    Native,
    NoDrain,
    Offset,
    Pattern,
    StepSize,
    Write,
    Clear,
    Disable,
    Enable,
    Force,
    Granularity,
    Merge,
    Remove,
    SourceFile,
    Apply,
    Backing,
    BackingChain,
    BackingFormat,
    BackingUnsafe,
    Bitmaps,
    Cache,
    Compress,
    CopyRange,
    Create,
    Delete,
    ForceShare,
    Format,
    Help,
    ImageOpts,
    List,
    MaxLength,
    NoCreate,
    Object,
    Options,
    OutOfOrder,
    Output,
    Parallel,
    Progress,
    Quiet,
    RateLimit,
    Repair,
    Salvage,
    SecondFormat,
    Size,
    SkipBroken,
    Snapshot,
    SourceCache,
    SparseSize,
    StartOffset,
    Strict,
    TargetFormat,
    TargetImageOpts,
    TargetIsZero,
    Trace,
    Version,
}

/// A flag; `short` is 0 where it has no short name.
pub(super) const fn flag(key: Key, short: u8, long: &'static str) -> Opt {
    Opt { key, long, short, value: false }
}

/// An option with a value.
pub(super) const fn value(key: Key, short: u8, long: &'static str) -> Opt {
    Opt { key, long, short, value: true }
}

/// What every command takes.
pub(super) const COMMON: [Opt; 2] =
    [flag(Key::Help, b'h', "help"), value(Key::Object, 0, "object")];

/// The options that were given, in order, and the operands.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    options: Vec<(Key, OsString)>,
    pub(super) operands: Vec<OsString>,
}

impl Parsed {
    /// Whether the flag was given.
    pub(super) fn has(&self, key: Key) -> bool {
        self.options.iter().any(|(given, _)| *given == key)
    }

    /// The value that was given last.
    pub(super) fn last(&self, key: Key) -> Option<&OsStr> {
        self.all(key).last()
    }

    /// As [`last`](Self::last), as text.
    pub(super) fn text(&self, key: Key) -> Option<String> {
        self.last(key).map(|value| value.to_string_lossy().into_owned())
    }

    /// All values of an option, in order.
    pub(super) fn all(&self, key: Key) -> impl Iterator<Item = &OsStr> {
        self.options.iter().filter(move |(given, _)| *given == key).map(|(_, value)| &**value)
    }

    /// All options, in order.
    pub(super) fn in_order(&self) -> impl Iterator<Item = (Key, &OsStr)> {
        self.options.iter().map(|(key, value)| (*key, &**value))
    }

    /// The only operand; else `refusal`, with the hint if `hint` is set.
    pub(super) fn only_operand(&self, refusal: &str, hint: bool) -> Result<&OsStr, Stop> {
        match self.operands.as_slice() {
            [operand] => Ok(operand),
            _ if hint => Err(Stop::usage(refusal)),
            _ => Err(Stop::error(refusal)),
        }
    }
}

/// Takes the arguments of a command apart.
///
/// # Errors
/// For an option that the command does not have, or that lacks its value.
pub(super) fn parse(tables: &[&[Opt]], arguments: &[OsString]) -> Result<Parsed, Stop> {
    let permute = std::env::var_os("POSIXLY_CORRECT").is_none();
    parse_ordered(tables, arguments, permute)
}

fn parse_ordered(tables: &[&[Opt]], arguments: &[OsString], permute: bool) -> Result<Parsed, Stop> {
    let known = || tables.iter().flat_map(|table| table.iter());
    let mut parsed = Parsed::default();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let bytes = argument.as_bytes();
        if bytes == b"--" {
            break;
        }
        if bytes.len() < 2 || !bytes.starts_with(b"-") {
            parsed.operands.push(argument.clone());
            if permute {
                continue;
            }
            break;
        }
        if let Some(long) = bytes.strip_prefix(b"--") {
            let (name, attached) = split_at_equals(long);
            let opt = find_long(known(), name).ok_or_else(|| unrecognized(argument))?;
            let value = match (opt.value, attached) {
                (true, Some(value)) => OsString::from_vec(value.to_vec()),
                (true, None) => rest.next().ok_or_else(|| missing(argument))?.clone(),
                (false, None) => OsString::new(),
                (false, Some(_)) => return Err(unrecognized(argument)),
            };
            parsed.options.push((opt.key, value));
            continue;
        }
        let mut letters = bytes.get(1..).unwrap_or_default();
        while let Some((&letter, after)) = letters.split_first() {
            let opt = known()
                .find(|opt| opt.short == letter && letter != 0)
                .ok_or_else(|| unrecognized(argument))?;
            letters = after;
            let mut value = OsString::new();
            if opt.value {
                value = match after {
                    [] => rest.next().ok_or_else(|| missing(argument))?.clone(),
                    attached => OsString::from_vec(attached.to_vec()),
                };
                letters = &[];
            }
            parsed.options.push((opt.key, value));
        }
    }
    parsed.operands.extend(rest.cloned());
    Ok(parsed)
}

fn split_at_equals(long: &[u8]) -> (&[u8], Option<&[u8]>) {
    match long.iter().position(|&byte| byte == b'=').and_then(|at| long.split_at_checked(at)) {
        Some((name, value)) => (name, value.get(1..)),
        None => (long, None),
    }
}

/// The option of this name, or the one that begins so, if all that do mean the same.
fn find_long<'a>(known: impl Iterator<Item = &'a Opt>, name: &[u8]) -> Option<Opt> {
    let mut found: Option<Opt> = None;
    let mut ambiguous = false;
    for opt in known.filter(|opt| opt.long.as_bytes().starts_with(name) && !opt.long.is_empty()) {
        if opt.long.as_bytes() == name {
            return Some(*opt);
        }
        ambiguous |= found.is_some_and(|other| other.key != opt.key);
        found = Some(*opt);
    }
    found.filter(|_| !ambiguous && !name.is_empty())
}

fn unrecognized(argument: &OsStr) -> Stop {
    Stop::usage(format!("unrecognized option '{}'", argument.to_string_lossy()))
}

fn missing(argument: &OsStr) -> Stop {
    Stop::usage(format!("missing argument for option '{}'", argument.to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[Opt] = &[
        value(Key::Format, b'f', "format"),
        value(Key::Output, 0, "output"),
        value(Key::Options, b'o', "options"),
        flag(Key::ForceShare, b'U', "force-share"),
        flag(Key::Quiet, b'q', "quiet"),
        flag(Key::Progress, b'p', ""),
    ];

    fn parsed(words: &[&str], permute: bool) -> Result<Parsed, Stop> {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        parse_ordered(&[TABLE], &words, permute)
    }

    #[test]
    fn options_after_operands_count_unless_posix_says_no() {
        let given = parsed(&["a", "--output", "json", "-U"], true).unwrap();
        assert!(given.has(Key::ForceShare));
        assert_eq!(given.text(Key::Output).as_deref(), Some("json"));
        assert_eq!(given.operands, ["a"]);
        let given = parsed(&["a", "-U"], false).unwrap();
        assert!(!given.has(Key::ForceShare));
        assert_eq!(given.operands, ["a", "-U"]);
    }

    #[test]
    fn values_are_attached_or_apart_and_flags_are_bundled() {
        let given = parsed(&["-pqfraw", "-f", "qcow2", "--", "-U"], true).unwrap();
        assert!(given.has(Key::Progress) && given.has(Key::Quiet) && !given.has(Key::ForceShare));
        assert_eq!(given.text(Key::Format).as_deref(), Some("qcow2"));
        assert_eq!(given.operands, ["-U"]);
    }

    #[test]
    fn long_names_may_be_shortened_while_they_mean_one_thing() {
        assert_eq!(parsed(&["--out=x"], true).unwrap().text(Key::Output).as_deref(), Some("x"));
        assert!(parsed(&["--force"], true).unwrap().has(Key::ForceShare));
        assert!(parsed(&["--fo"], true).is_err());
        assert!(parsed(&["--quiet=1"], true).is_err());
        assert!(parsed(&["--="], true).is_err());
    }

    #[test]
    fn what_is_wrong_is_quoted_as_it_was_given() {
        let said = |words: &[&str]| parsed(words, true).unwrap_err().lines();
        let hint = "Try 'qemu-img --help' for more information";
        assert_eq!(said(&["-z"]), ["unrecognized option '-z'", hint]);
        assert_eq!(said(&["--foo=1"]), ["unrecognized option '--foo=1'", hint]);
        assert_eq!(said(&["-f"]), ["missing argument for option '-f'", hint]);
        assert_eq!(said(&["--output"]), ["missing argument for option '--output'", hint]);
    }

    #[test]
    fn a_dash_alone_is_a_name() {
        assert_eq!(parsed(&["-"], true).unwrap().operands, ["-"]);
    }
}
