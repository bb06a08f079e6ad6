//! The commands: their names, their options, and what their arguments mean.

use qcow::io::Zeroes;
use qcowtool::shared;

use crate::flags::{self, Flags, Parsed};
use crate::requests::{FILL, Read, What, Write};

/// One command.
#[derive(Debug)]
pub(crate) enum Command {
    Read(Read),
    Write(Write),
    /// Carried out beside what comes after it.
    ReadBeside(Read),
    WriteBeside(Write),
    WaitForAll,
    Flush,
    Alloc {
        at: u64,
        len: u64,
        shown: String,
    },
    Map,
    Length,
    Info,
    Truncate(u64),
    Open(Parsed),
    Reopen(Parsed),
    Close,
    Quit,
    /// Ends the process by this signal.
    Raise(i32),
    Abort,
    Sleep(u64),
}

impl Command {
    /// Where the request ends in the state of the machine, if that is what it is for.
    pub(crate) fn end_in_state(&self) -> Option<u64> {
        match self {
            Self::Read(read) if read.state => Some(read.at.saturating_add(read.len)),
            Self::Write(write) if write.state => Some(write.at.saturating_add(write.len)),
            _ => None,
        }
    }
}

struct Known {
    names: &'static [&'static str],
    flags: Flags,
    operands: std::ops::RangeInclusive<usize>,
    read: fn(&Parsed) -> Result<Command, String>,
}

const ANY: usize = usize::MAX;

const KNOWN: &[Known] = &[
    command(&["read", "r"], "abCpqrv", "Psl", 2, ANY, |given| read(given).map(Command::Read)),
    command(&["readv"], "Cqrv", "P", 2, ANY, |given| {
        Ok(Command::Read(Read { name: "readv", ..read(given)? }))
    }),
    command(&["aio_read"], "Ciqrv", "P", 2, ANY, |given| {
        Ok(Command::ReadBeside(Read { name: "aio_read", ..read(given)? }))
    }),
    command(&["write", "w"], "bcCfnpqruz", "Ps", 2, ANY, |given| write(given).map(Command::Write)),
    command(&["writev"], "Cfqr", "P", 2, ANY, |given| {
        Ok(Command::Write(Write { name: "writev", ..write(given)? }))
    }),
    command(&["aio_write"], "Cfiqruz", "P", 2, ANY, |given| {
        Ok(Command::WriteBeside(Write { name: "aio_write", ..write(given)? }))
    }),
    command(&["discard", "d"], "Cq", "", 2, ANY, |given| {
        Ok(Command::Write(Write { name: "discard", what: What::Discard, ..write(given)? }))
    }),
    command(&["aio_flush"], "", "", 0, 0, |_| Ok(Command::WaitForAll)),
    command(&["flush", "f"], "", "", 0, 0, |_| Ok(Command::Flush)),
    command(&["alloc"], "", "", 1, 2, alloc),
    command(&["map"], "", "", 0, 0, |_| Ok(Command::Map)),
    command(&["length", "l"], "", "", 0, 0, |_| Ok(Command::Length)),
    command(&["info", "i"], "", "", 0, 0, |_| Ok(Command::Info)),
    command(&["truncate", "t"], "", "m", 1, 1, |given| {
        Ok(Command::Truncate(number(&given.operands[0])?))
    }),
    command(&["open", "o"], "rsnCkU", "oitd", 0, 1, opened),
    command(&["reopen"], "rw", "oc", 0, 0, reopened),
    command(&["close", "c"], "", "", 0, 0, |_| Ok(Command::Close)),
    command(&["quit", "q"], "", "", 0, 0, |_| Ok(Command::Quit)),
    command(&["sigraise"], "", "", 1, 1, |given| {
        let signal = given.operands[0].parse().map_err(|_| "no such signal".to_owned())?;
        Ok(Command::Raise(signal))
    }),
    command(&["abort"], "", "", 0, 0, |_| Ok(Command::Abort)),
    command(&["sleep"], "", "", 1, 1, |given| Ok(Command::Sleep(number(&given.operands[0])?))),
];

const fn command(
    names: &'static [&'static str],
    alone: &'static str,
    with_value: &'static str,
    least: usize,
    most: usize,
    read: fn(&Parsed) -> Result<Command, String>,
) -> Known {
    Known { names, flags: Flags { alone, with_value }, operands: least..=most, read }
}

/// Why a line is no command, and where that is said.
#[derive(Debug)]
pub(crate) enum Wrong {
    /// On standard error.
    Unknown(String),
    /// On standard output.
    Argument(String),
}

/// The command of a line; `None` for an empty one.
///
/// # Errors
/// In the words of `qemu-io`.
pub(crate) fn parse(line: &str) -> Result<Option<Command>, Wrong> {
    let mut words = line.split(' ').filter(|word| !word.is_empty()).map(str::to_owned);
    let Some(name) = words.next() else { return Ok(None) };
    let unknown = || Wrong::Unknown(format!("command \"{name}\" not found"));
    let known = KNOWN.iter().find(|known| known.names.contains(&&*name)).ok_or_else(unknown)?;
    let words: Vec<String> = words.collect();
    let given = flags::parse(&known.flags, &words)
        .map_err(|error| Wrong::Unknown(format!("{name}: {error}")))?;
    let (count, least, most) =
        (given.operands.len(), *known.operands.start(), *known.operands.end());
    if !known.operands.contains(&count) {
        let expected = match most {
            ANY => format!("at least {least} arguments"),
            _ if least == most => format!("{least} arguments"),
            _ => format!("between {least} and {most} arguments"),
        };
        return Err(Wrong::Unknown(format!(
            "bad argument count {count} to {name}, expected {expected}"
        )));
    }
    (known.read)(&given).map(Some).map_err(Wrong::Argument)
}

fn number(text: &str) -> Result<u64, String> {
    shared::parse_size(text).filter(|&number| i64::try_from(number).is_ok()).ok_or_else(|| {
        format!("Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- {text}")
    })
}

/// The first operand, and the sum of the others.
fn range(given: &Parsed) -> Result<(u64, u64), String> {
    let at = number(&given.operands[0])?;
    let mut len = 0_u64;
    for part in &given.operands[1..] {
        len += number(part)?;
        if len > LONGEST && !(given.has('n') && given.has('z')) {
            return Err(format!("length cannot exceed {LONGEST} without -n, given {part}"));
        }
    }
    Ok((at, len))
}

/// The longest request.
const LONGEST: u64 = (2 << 30) - 512;

fn pattern(text: &str) -> Result<u8, String> {
    let number = shared::parse_size(text).and_then(|number| u8::try_from(number).ok());
    number.ok_or_else(|| format!("{text} is not a valid pattern byte"))
}

fn read(given: &Parsed) -> Result<Read, String> {
    let (at, len) = range(given)?;
    let verify = match given.value('P') {
        None => None,
        Some(text) => {
            let start = given.value('s').map_or(Ok(0), number)?;
            let count = given.value('l').map_or(Ok(len.saturating_sub(start)), number)?;
            if start.checked_add(count).is_none_or(|end| end > len) {
                return Err("pattern verification range exceeds end of read data".to_owned());
            }
            Some((pattern(text)?, start, count))
        }
    };
    let (dump, quiet) = (given.has('v'), given.has('q'));
    Ok(Read { at, len, verify, dump, quiet, copy_up: false, state: given.has('b'), name: "read" })
}

fn write(given: &Parsed) -> Result<Write, String> {
    if [given.has('z'), given.has('P'), given.has('s')].iter().filter(|&&is| is).count() > 1 {
        return Err("Only one of -z, -P, and -s can be specified at the same time".to_owned());
    }
    if given.has('u') && !given.has('z') {
        return Err("-u requires -z to be specified".to_owned());
    }
    let (at, len) = range(given)?;
    let bytes = match (given.value('s'), given.value('P')) {
        (Some(file), _) => {
            let bytes = std::fs::read(file).map_err(|error| format!("{file}: {error}"))?;
            Some(bytes).filter(|bytes| !bytes.is_empty()).ok_or(format!("{file}: file empty"))?
        }
        (None, Some(text)) => vec![pattern(text)?],
        (None, None) => vec![FILL],
    };
    let what = match (given.has('z'), given.has('c')) {
        (true, _) if given.has('u') => What::Zeroes(Zeroes::Unmap),
        (true, _) => What::Zeroes(Zeroes::Keep),
        (false, true) => What::Compressed(bytes),
        (false, false) => What::Bytes(bytes),
    };
    if given.has('c') {
        for (value, name, text) in
            [(at, "offset", &given.operands[0]), (len, "count", &given.operands[1])]
        {
            if value % 512 != 0 {
                return Err(format!("{text} is not a sector-aligned value for '{name}'"));
            }
        }
    }
    let (durable, quiet, state) = (given.has('f'), given.has('q'), given.has('b'));
    Ok(Write { at, len, what, durable, state, quiet, name: "write" })
}

fn alloc(given: &Parsed) -> Result<Command, String> {
    let at = number(&given.operands[0])?;
    let len = given.operands.get(1).map_or(Ok(512), |text| number(text))?;
    Ok(Command::Alloc { at, len, shown: crate::show::size(at) })
}

// The values of these are read where the image is known.
fn opened(given: &Parsed) -> Result<Command, String> {
    Ok(Command::Open(given.clone()))
}

fn reopened(given: &Parsed) -> Result<Command, String> {
    Ok(Command::Reopen(given.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(line: &str) -> String {
        match parse(line) {
            Err(Wrong::Unknown(text) | Wrong::Argument(text)) => text,
            Ok(found) => panic!("{found:?}"),
        }
    }

    #[test]
    fn mistakes_are_told_as_by_qemu_io() {
        assert_eq!(wrong("foo"), "command \"foo\" not found");
        assert_eq!(wrong("read 0"), "bad argument count 1 to read, expected at least 2 arguments");
        assert_eq!(wrong("write -P 300 0 1"), "300 is not a valid pattern byte");
        assert_eq!(wrong("write -c 1000 512"), "1000 is not a sector-aligned value for 'offset'");
        assert!(parse("  ").unwrap().is_none());
    }

    #[test]
    fn the_parts_of_a_vector_are_one_request() {
        let Ok(Some(Command::Write(write))) = parse("writev -P 3 1k 512 1k") else { panic!() };
        assert_eq!((write.at, write.len), (1024, 1536));
    }
}
