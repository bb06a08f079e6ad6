//! The script of `qcowtool io`: one request per line.

use qcow::io::Zeroes;
use qcow::{Error, Result};

use crate::size;

/// What one line asks for. Offsets and lengths are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Read a range, and compare each byte with the pattern if there is one.
    Read { at: u64, len: u64, pattern: Option<u8> },
    /// Fill a range with a byte.
    Write { at: u64, len: u64, pattern: u8 },
    /// As `Write`, in compressed clusters.
    Compress { at: u64, len: u64, pattern: u8 },
    /// Make a range read as zeros.
    Zero { at: u64, len: u64, how: Zeroes },
    /// Discard a range.
    Discard { at: u64, len: u64 },
    /// Make everything durable.
    Flush,
    /// List what the parts of a range are.
    Map { at: u64, len: u64 },
}

/// The lines that there are.
pub(crate) const FORMS: &str = "\
  read OFFSET LENGTH [BYTE]      read; with BYTE, fail unless every byte is that
  write OFFSET LENGTH BYTE       write LENGTH times BYTE
  compress OFFSET LENGTH BYTE    as write, as compressed clusters
  zero OFFSET LENGTH [keep]      write zeros; keep: keep what is allocated
  zero OFFSET LENGTH allocate    write zeros, and have all of it allocated
  discard OFFSET LENGTH          discard whole clusters
  flush                          make what was written durable
  map OFFSET LENGTH              list what the parts of the range are";

impl Step {
    /// Reads one line; `None` if there is nothing on it but a comment, which begins with `#`.
    ///
    /// # Errors
    /// [`Usage`](qcow::ErrorKind::Usage), with what is wrong.
    pub(crate) fn parse(line: &str) -> Result<Option<Self>> {
        let line = line.split('#').next().unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        let step = match *words.as_slice() {
            [] => return Ok(None),
            ["flush"] => Self::Flush,
            ["read", at, len] => Self::Read { at: offset(at)?, len: offset(len)?, pattern: None },
            ["read", at, len, pattern] => {
                Self::Read { at: offset(at)?, len: offset(len)?, pattern: Some(byte(pattern)?) }
            }
            ["write", at, len, pattern] => {
                Self::Write { at: offset(at)?, len: offset(len)?, pattern: byte(pattern)? }
            }
            ["compress", at, len, pattern] => {
                Self::Compress { at: offset(at)?, len: offset(len)?, pattern: byte(pattern)? }
            }
            ["zero", at, len] => Self::zero(at, len, Zeroes::Unmap)?,
            ["zero", at, len, "keep"] => Self::zero(at, len, Zeroes::Keep)?,
            ["zero", at, len, "allocate"] => Self::zero(at, len, Zeroes::Allocate)?,
            ["discard", at, len] => Self::Discard { at: offset(at)?, len: offset(len)? },
            ["map", at, len] => Self::Map { at: offset(at)?, len: offset(len)? },
            _ => {
                let line = qcow::Escaped(line.trim()).to_string();
                return Err(Error::usage(format!("'{line}' is no command of this form"))
                    .hint("see 'qcowtool io --help' for the commands"));
            }
        };
        Ok(Some(step))
    }

    fn zero(at: &str, len: &str, how: Zeroes) -> Result<Self> {
        Ok(Self::Zero { at: offset(at)?, len: offset(len)?, how })
    }
}

fn offset(text: &str) -> Result<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16)
            .map_err(|_| Error::usage(format!("'{}' is no number", qcow::Escaped(text)))),
        None => size::parse(text),
    }
}

fn byte(text: &str) -> Result<u8> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u8::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_| {
        Error::usage(format!("'{}' is no byte, expected 0 to 255", qcow::Escaped(text)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_what_is_to_be_done() {
        let step = |line| Step::parse(line).unwrap();
        assert_eq!(step("  # nothing"), None);
        assert_eq!(
            step("write 64k 0x10 0xff # all ones"),
            Some(Step::Write { at: 65536, len: 16, pattern: 255 })
        );
        assert_eq!(step("read 0 1M"), Some(Step::Read { at: 0, len: 1 << 20, pattern: None }));
        for (line, how) in [
            ("zero 1 2", Zeroes::Unmap),
            ("zero 1 2 keep", Zeroes::Keep),
            ("zero 1 2 allocate", Zeroes::Allocate),
        ] {
            assert_eq!(step(line), Some(Step::Zero { at: 1, len: 2, how }));
        }
        for wrong in ["write 0 1", "write 0 1 256", "read x 1", "sync", "zero 0 1 maybe"] {
            assert_eq!(Step::parse(wrong).unwrap_err().kind(), qcow::ErrorKind::Usage, "{wrong}");
        }
    }
}
