//! Option values, checked and turned into what the engine takes.

use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use qcow::chain::Format;
use qcow::format::{CompressionType, Version};
use qcow::ops::amend::AmendOptions;
use qcow::ops::{Preallocation, Qcow2Options, RawOptions, TargetOptions};
use qcow::{Error, Escaped, Result};

use super::Item;
use super::table::{self, Key, Kind, Purpose, Spec};
use crate::output::shown;
use crate::size;

/// The value of an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    /// Any text.
    Text(OsString),
    /// Bytes, or another number.
    Number(u64),
    /// On or off.
    Switch(bool),
}

/// The options that were given for a new image of one format.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ImageOptions {
    format: Format,
    values: Vec<(Key, Value)>,
}

impl ImageOptions {
    /// Reads options; of one that is given twice, the later counts.
    ///
    /// # Errors
    /// `Usage` or `Unsupported`, naming the option.
    pub(crate) fn parse(format: Format, purpose: Purpose, items: &[Item]) -> Result<Self> {
        let mut options = Self { format, values: Vec::new() };
        for item in items {
            let spec = table::find(format, purpose, &item.key)?;
            options.set(spec.key, value(spec, item.value.as_deref())?);
        }
        options.refuse_file_system_tricks()?;
        Ok(options)
    }

    /// What `qemu-img` says of an image with this `target` when nothing is asked for: the options
    /// that it always shows, and those that are not at their default.
    pub(crate) fn of(target: &TargetOptions) -> Self {
        let mut options = Self { format: Format::Raw, values: Vec::new() };
        let preallocation = match target {
            TargetOptions::Raw(raw) => raw.preallocation,
            TargetOptions::Qcow2(qcow2) => {
                options.format = Format::Qcow2;
                options.set_from_qcow2(qcow2);
                qcow2.preallocation
            }
            _ => Preallocation::Off,
        };
        if preallocation != Preallocation::Off {
            options.set(Key::Preallocation, text(preallocation.as_str()));
        }
        options
    }

    fn set_from_qcow2(&mut self, qcow2: &Qcow2Options) {
        self.set(Key::ClusterSize, Value::Number(qcow2.cluster_size));
        self.set(Key::ExtendedL2, Value::Switch(qcow2.extended_l2));
        self.set(Key::CompressionType, text(qcow2.compression_type.as_str()));
        self.set(Key::LazyRefcounts, Value::Switch(qcow2.lazy_refcounts));
        self.set(Key::RefcountBits, Value::Number(qcow2.refcount_bits.into()));
        if qcow2.version == Version::V2 {
            self.set(Key::Compat, text("0.10"));
        }
        if let Some(file) = &qcow2.data_file {
            self.set(Key::DataFile, Value::Text(file.into()));
        }
        if qcow2.data_file_raw {
            self.set(Key::DataFileRaw, Value::Switch(true));
        }
    }

    /// Gives an option, replacing an earlier value.
    pub(crate) fn set(&mut self, key: Key, value: Value) {
        self.values.retain(|(other, _)| *other != key);
        self.values.push((key, value));
    }

    /// Takes over all that is given in `other`.
    pub(crate) fn overlay(&mut self, other: Self) {
        other.values.into_iter().for_each(|(key, value)| self.set(key, value));
    }

    /// The virtual size, if given.
    pub(crate) fn size(&self) -> Option<u64> {
        match self.get(Key::Size) {
            Some(Value::Number(bytes)) => Some(*bytes),
            _ => None,
        }
    }

    /// The value of an option that takes text, if given.
    pub(crate) fn text(&self, key: Key) -> Option<&OsStr> {
        match self.get(key) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    fn get(&self, key: Key) -> Option<&Value> {
        self.values.iter().find(|(other, _)| *other == key).map(|(_, value)| value)
    }

    /// What the engine is to make. Whether the options go together is for the engine to say.
    ///
    /// # Errors
    /// `Usage` for a word that an option does not know.
    pub(crate) fn target(&self) -> Result<TargetOptions> {
        match self.format {
            Format::Raw => self.raw(),
            Format::Qcow2 => self.qcow2(),
            other => {
                Err(Error::unsupported(format!("an image of the format {other} cannot be made")))
            }
        }
    }

    fn raw(&self) -> Result<TargetOptions> {
        let mut raw = RawOptions::default();
        if let Some(word) = self.text(Key::Preallocation) {
            raw.preallocation = preallocation(word)?;
        }
        Ok(TargetOptions::Raw(raw))
    }

    fn qcow2(&self) -> Result<TargetOptions> {
        let mut qcow2 = Qcow2Options::default();
        for (key, value) in &self.values {
            match (key, value) {
                (Key::ClusterSize, Value::Number(bytes)) => qcow2.cluster_size = *bytes,
                (Key::ExtendedL2, Value::Switch(on)) => qcow2.extended_l2 = *on,
                (Key::Preallocation, Value::Text(word)) => {
                    qcow2.preallocation = preallocation(word)?;
                }
                (Key::CompressionType, Value::Text(word)) => {
                    qcow2.compression_type = compression_type(word)?;
                }
                (Key::Compat, Value::Text(word)) => qcow2.version = version(word)?,
                (Key::DataFile, Value::Text(file)) => qcow2.data_file = Some(PathBuf::from(file)),
                (Key::DataFileRaw, Value::Switch(on)) => qcow2.data_file_raw = *on,
                (Key::LazyRefcounts, Value::Switch(on)) => qcow2.lazy_refcounts = *on,
                (Key::RefcountBits, Value::Number(bits)) => {
                    qcow2.refcount_bits = u32::try_from(*bits).unwrap_or(u32::MAX);
                }
                _ => {}
            }
        }
        Ok(TargetOptions::Qcow2(qcow2))
    }

    /// What the engine is to change.
    ///
    /// # Errors
    /// As [`target`](Self::target).
    pub(crate) fn amend(&self) -> Result<AmendOptions> {
        let mut amend = AmendOptions::default();
        for (key, value) in &self.values {
            amend = match (key, value) {
                (Key::Compat, Value::Text(word)) => amend.version(version(word)?),
                (Key::DataFile, Value::Text(file)) => amend.data_file(PathBuf::from(file)),
                (Key::DataFileRaw, Value::Switch(on)) => amend.data_file_raw(*on),
                (Key::LazyRefcounts, Value::Switch(on)) => amend.lazy_refcounts(*on),
                (Key::RefcountBits, Value::Number(bits)) => {
                    amend.refcount_bits(u32::try_from(*bits).unwrap_or(u32::MAX))
                }
                _ => amend,
            };
        }
        Ok(amend)
    }

    /// The line that `qemu-img create` prints for an image with these options.
    pub(crate) fn formatting_line(&self, path: &Path) -> String {
        let mut line = format!("Formatting '{}', fmt={}", shown(path), self.format);
        for spec in table::specs(self.format) {
            let Some(value) = self.get(spec.key) else { continue };
            let value = match value {
                Value::Number(number) => number.to_string(),
                Value::Switch(true) => "on".to_owned(),
                Value::Switch(false) => "off".to_owned(),
                Value::Text(text) => {
                    Escaped(&text.to_string_lossy()).to_string().replace(',', ",,")
                }
            };
            let _ = write!(line, " {}={value}", spec.name);
        }
        line
    }

    /// Two options that QEMU passes on to the file system.
    fn refuse_file_system_tricks(&self) -> Result<()> {
        if self.get(Key::Nocow) == Some(&Value::Switch(true)) {
            return Err(Error::unsupported("option 'nocow': only 'off' is supported")
                .hint("set the attribute on the directory first: chattr +C DIRECTORY"));
        }
        match self.get(Key::ExtentSizeHint) {
            None | Some(Value::Number(0)) => Ok(()),
            _ => Err(Error::unsupported("option 'extent_size_hint': only 0 is supported")
                .hint("set it on the directory first: xfs_io -c 'extsize SIZE' DIRECTORY")),
        }
    }
}

fn text(word: &str) -> Value {
    Value::Text(word.into())
}

/// Reads a value as its option wants it. A key alone switches on.
fn value(spec: &Spec, given: Option<&OsStr>) -> Result<Value> {
    let Some(given) = given else {
        return match spec.kind {
            Kind::Switch => Ok(Value::Switch(true)),
            _ => Err(Error::usage(format!("option '{}' needs a value", spec.name))),
        };
    };
    let word = given.to_string_lossy();
    let refused = |expected: &str| {
        Error::usage(format!("option '{}': found '{word}', expected {expected}", spec.name))
    };
    match spec.kind {
        Kind::Text if given.is_empty() => Err(refused("a value")),
        Kind::Text => Ok(Value::Text(given.to_owned())),
        Kind::Size => size::parse(&word)
            .map(Value::Number)
            .map_err(|_| refused("a size below 2^64, such as 65536 or 64k")),
        Kind::Number => number(&word).map(Value::Number).ok_or_else(|| refused("a number")),
        Kind::Switch => match &*word {
            "on" | "yes" | "true" | "y" => Ok(Value::Switch(true)),
            "off" | "no" | "false" | "n" => Ok(Value::Switch(false)),
            _ => Err(refused("on or off")),
        },
    }
}

fn number(word: &str) -> Option<u64> {
    match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => word.parse().ok(),
    }
}

fn unknown_word(option: &str, word: &OsStr, expected: &str) -> Error {
    let word = word.to_string_lossy();
    Error::usage(format!("option '{option}': found '{word}', expected {expected}"))
}

fn preallocation(word: &OsStr) -> Result<Preallocation> {
    use Preallocation::{Falloc, Full, Metadata, Off};
    [Off, Metadata, Falloc, Full]
        .into_iter()
        .find(|known| known.as_str() == word)
        .ok_or_else(|| unknown_word("preallocation", word, "off, metadata, falloc or full"))
}

fn compression_type(word: &OsStr) -> Result<CompressionType> {
    match word.to_str() {
        Some("zlib") => Ok(CompressionType::Zlib),
        Some("zstd") => Ok(CompressionType::Zstd),
        _ => Err(unknown_word("compression_type", word, "zlib or zstd")),
    }
}

fn version(word: &OsStr) -> Result<Version> {
    match word.to_str() {
        Some("0.10" | "v2") => Ok(Version::V2),
        Some("1.1" | "v3") => Ok(Version::V3),
        _ => Err(unknown_word("compat", word, "0.10 or v2, 1.1 or v3")),
    }
}

#[cfg(test)]
mod tests;
