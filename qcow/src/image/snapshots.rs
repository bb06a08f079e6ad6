//! Reads the snapshot table. Counts and lengths come from the image, so memory is taken only for
//! what has really been read (traps 80 to 82, 144).

use crate::format::{Header, HostOffset, MAX_SNAPSHOT_TABLE_BYTES, MAX_SNAPSHOTS, Snapshot};
use crate::io::{Storage, read_padded};
use crate::{Error, Remedy, Result};

/// Length of the fixed part of an entry.
const FIXED: usize = 40;
/// An entry has two 16-bit lengths and its extra data (at most 1 KiB): this and no more.
const LONGEST: usize = 132 << 10;

/// The snapshots and the table's length in bytes, which ends without padding.
pub(super) fn read(storage: &dyn Storage, header: &Header) -> Result<(Vec<Snapshot>, u64)> {
    let mut snapshots = Vec::new();
    if header.snapshot_count == 0 {
        return Ok((snapshots, 0));
    }
    if header.snapshot_count > MAX_SNAPSHOTS {
        return Err(damaged(format!(
            "{} snapshots, expected at most {MAX_SNAPSHOTS}",
            header.snapshot_count
        )));
    }
    let start = header.snapshots_offset;
    let (mut at, mut end) = (start, start);
    for index in 0..u64::from(header.snapshot_count) {
        let (snapshot, len, padding) = read_entry(storage, header, at.0)
            .map_err(|error| error.structure("snapshot table").index(index).host_offset(at))?;
        at = at.checked_add(len)?;
        end = HostOffset(at.0.saturating_sub(padding));
        if at.0.saturating_sub(start.0) > MAX_SNAPSHOT_TABLE_BYTES {
            return Err(damaged(format!(
                "the table is longer than {MAX_SNAPSHOT_TABLE_BYTES} bytes"
            ))
            .index(index));
        }
        snapshots.push(snapshot);
    }
    Ok((snapshots, end.0.saturating_sub(start.0)))
}

/// An entry, its length, and how much of that is padding.
fn read_entry(storage: &dyn Storage, header: &Header, at: u64) -> Result<(Snapshot, u64, u64)> {
    let mut fixed = [0; FIXED];
    read_padded(storage, &mut fixed, at)?;
    let len = Snapshot::entry_len(&fixed)?;
    if len > LONGEST {
        return Err(damaged(format!("the entry claims {len} bytes, expected at most {LONGEST}")));
    }
    let mut bytes = vec![0; len];
    read_padded(storage, &mut bytes, at)?;
    let (snapshot, consumed) = Snapshot::parse(&bytes, header.version)?;
    let padding = padding(&fixed, snapshot.id.len().saturating_add(snapshot.name.len()));
    Ok((snapshot, consumed as u64, padding))
}

/// Zero to seven bytes up to the next multiple of eight.
fn padding(fixed: &[u8; FIXED], names: usize) -> u64 {
    let extra = fixed.last_chunk().copied().map_or(0, u32::from_be_bytes);
    let used = u64::from(extra).saturating_add(names as u64);
    used.next_multiple_of(8).saturating_sub(used)
}

/// Which snapshot the caller asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    /// By its id, or else by its name.
    IdOrName(String),
    /// By what is given; both must match.
    Exactly { id: Option<String>, name: Option<String> },
}

impl Wanted {
    /// Understands what QEMU does: whatever begins with `snapshot.` is a list of `key=value`.
    pub(super) fn parse(text: &str) -> Result<Self> {
        if !text.starts_with("snapshot.") {
            return Ok(Self::IdOrName(text.to_owned()));
        }
        let (mut id, mut name) = (None, None);
        for option in split_options(text).into_iter().filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("snapshot.id", value)) => id = Some(value.to_owned()),
                Some(("snapshot.name", value)) => name = Some(value.to_owned()),
                _ => {
                    return Err(Error::usage(format!(
                        "'{}' is not a valid snapshot selector",
                        crate::Escaped(&option)
                    ))
                    .hint(
                        "give snapshot.id=ID, snapshot.name=NAME, or both with a comma between",
                    ));
                }
            }
        }
        Ok(Self::Exactly { id, name })
    }

    /// The first that fits.
    pub(super) fn find<'s>(&self, snapshots: &'s [Snapshot]) -> Option<&'s Snapshot> {
        let has_id = |id: &str| snapshots.iter().find(|snapshot| snapshot.id == id.as_bytes());
        let has_name =
            |name: &str| snapshots.iter().find(|snapshot| snapshot.name == name.as_bytes());
        match self {
            Self::IdOrName(text) => has_id(text).or_else(|| has_name(text)),
            Self::Exactly { id, name } => snapshots.iter().find(|snapshot| {
                let fits = |wanted: &Option<String>, bytes: &[u8]| {
                    wanted.as_ref().is_none_or(|wanted| wanted.as_bytes() == bytes)
                };
                fits(id, &snapshot.id) && fits(name, &snapshot.name)
            }),
        }
    }

    /// The index of the only one that fits.
    #[cfg(feature = "ops")]
    pub(super) fn find_only(&self, snapshots: &[Snapshot]) -> Result<usize> {
        let fits = |snapshot: &Snapshot| match self {
            Self::IdOrName(text) => {
                snapshot.id == text.as_bytes() || snapshot.name == text.as_bytes()
            }
            Self::Exactly { .. } => self.find(std::slice::from_ref(snapshot)).is_some(),
        };
        let mut found = snapshots.iter().enumerate().filter(|(_, snapshot)| fits(snapshot));
        match (found.next(), found.next()) {
            (Some((index, _)), None) => Ok(index),
            (None, _) => Err(Error::internal("the snapshot is not there any more")),
            (Some((_, first)), Some((_, second))) => {
                let name = |snapshot: &Snapshot| {
                    let text = |bytes| crate::Escaped(&String::from_utf8_lossy(bytes)).to_string();
                    format!("id '{}' ('{}')", text(&snapshot.id), text(&snapshot.name))
                };
                let (first, second) = (name(first), name(second));
                Err(Error::usage(format!(
                    "several internal snapshots have the {self}, among them {first} and {second}"
                ))
                .hint("say snapshot.id=ID, or snapshot.name=NAME"))
            }
        }
    }
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use crate::Escaped;
        match self {
            Self::IdOrName(text) => write!(f, "id or name '{}'", Escaped(text)),
            Self::Exactly { id: Some(id), name: None } => write!(f, "id '{}'", Escaped(id)),
            Self::Exactly { id: None, name: Some(name) } => write!(f, "name '{}'", Escaped(name)),
            Self::Exactly { id, name } => {
                let [id, name] = [id, name].map(|text| text.as_deref().unwrap_or_default());
                write!(f, "id '{}' and the name '{}'", Escaped(id), Escaped(name))
            }
        }
    }
}

/// Parts between single commas; a doubled comma is one that belongs to a part.
fn split_options(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter == ',' && letters.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(letter);
        }
    }
    parts
}

fn damaged(message: String) -> Error {
    Error::corrupt(message).structure("snapshot table").hint(Remedy::DropSnapshots)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exactly(id: Option<&str>, name: Option<&str>) -> Wanted {
        Wanted::Exactly { id: id.map(str::to_owned), name: name.map(str::to_owned) }
    }

    #[test]
    fn the_forms_of_qemu_img_are_understood() {
        for (text, expected) in [
            ("1", Wanted::IdOrName("1".into())),
            ("snapshot", Wanted::IdOrName("snapshot".into())),
            ("snapshot.id=1", exactly(Some("1"), None)),
            ("snapshot.name=snapshot.id=1", exactly(None, Some("snapshot.id=1"))),
            ("snapshot.name=a,,b,snapshot.id=2", exactly(Some("2"), Some("a,b"))),
        ] {
            assert_eq!(Wanted::parse(text).unwrap(), expected, "{text}");
        }
        for text in ["snapshot.", "snapshot.date=1", "snapshot.id", "snapshot.id=1,name=x"] {
            let error = Wanted::parse(text).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Usage, "{text}");
        }
    }
}
