//! Reads the snapshot table. Counts and lengths come from the image, so memory is taken only for
//! what has really been read (traps 80 to 82, 144).

use crate::format::{
    Header, HostOffset, MAX_SNAPSHOT_EXTRA, MAX_SNAPSHOT_TABLE_BYTES, MAX_SNAPSHOTS, Snapshot,
};
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
    let len = Snapshot::entry_len(&fixed).map_err(|error| error.hint(Remedy::Repair))?;
    if len > LONGEST {
        return Err(damaged(format!("the entry claims {len} bytes, expected at most {LONGEST}")));
    }
    let mut bytes = vec![0; len];
    read_padded(storage, &mut bytes, at)?;
    let (snapshot, consumed) = Snapshot::parse(&bytes, header.version)?;
    let padding = padding(&fixed, snapshot.id.len().saturating_add(snapshot.name.len()));
    Ok((snapshot, consumed as u64, padding))
}

/// An entry of the table with more extra data than is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overlong {
    pub(crate) index: u64,
    pub(crate) offset: HostOffset,
    /// Bytes of extra data.
    pub(crate) extra: u32,
}

/// The snapshots of a table, without what is beyond the extra data that is read; adds to `overlong` which have more.
///
/// # Errors
/// As reading the table, if anything else is wrong with it.
pub(crate) fn read_cut(
    storage: &dyn Storage,
    header: &Header,
    overlong: &mut Vec<Overlong>,
) -> Result<Vec<Snapshot>> {
    let mut snapshots = Vec::new();
    if header.snapshot_count > MAX_SNAPSHOTS {
        return Err(damaged(format!("{} snapshots", header.snapshot_count)));
    }
    let (mut at, mut total) = (header.snapshots_offset, 0_u64);
    for index in 0..u64::from(header.snapshot_count) {
        let mut fixed = [0; FIXED];
        read_padded(storage, &mut fixed, at.0)?;
        let extra = extra_len(&fixed);
        let beyond = u64::from(extra.saturating_sub(MAX_SNAPSHOT_EXTRA));
        let (snapshot, len) = if beyond == 0 {
            let (snapshot, len, _) = read_entry(storage, header, at.0)?;
            (snapshot, len)
        } else {
            overlong.push(Overlong { index, offset: at, extra });
            read_overlong(storage, header, (at, fixed), beyond)?
        };
        total = total.saturating_add(snapshot.to_bytes()?.len() as u64);
        at = at.checked_add(len)?;
        if total > MAX_SNAPSHOT_TABLE_BYTES || at.0 > storage.len().next_multiple_of(8) {
            return Err(damaged("the table is too long".to_owned()).index(index));
        }
        snapshots.push(snapshot);
    }
    Ok(snapshots)
}

/// An entry without so much of its extra data, and the length that it has with that.
fn read_overlong(
    storage: &dyn Storage,
    header: &Header,
    (at, mut fixed): (HostOffset, [u8; FIXED]),
    beyond: u64,
) -> Result<(Snapshot, u64)> {
    if let Some(len) = fixed.last_chunk_mut() {
        *len = MAX_SNAPSHOT_EXTRA.to_be_bytes();
    }
    let kept = (FIXED as u64).saturating_add(u64::from(MAX_SNAPSHOT_EXTRA));
    let mut bytes = vec![0; Snapshot::entry_len(&fixed)?];
    let (front, back) = bytes.split_at_mut(usize::try_from(kept).unwrap_or(FIXED));
    read_padded(storage, front, at.0)?;
    read_padded(storage, back, at.checked_add(kept.saturating_add(beyond))?.0)?;
    front.split_at_mut(FIXED).0.copy_from_slice(&fixed);
    let (snapshot, _) = Snapshot::parse(&bytes, header.version)?;
    let used = snapshot.id.len().saturating_add(snapshot.name.len()) as u64;
    let len = kept.saturating_add(beyond).saturating_add(used).next_multiple_of(8);
    Ok((snapshot, len))
}

fn extra_len(fixed: &[u8; FIXED]) -> u32 {
    fixed.last_chunk().copied().map_or(0, u32::from_be_bytes)
}

/// Zero to seven bytes up to the next multiple of eight.
fn padding(fixed: &[u8; FIXED], names: usize) -> u64 {
    let used = u64::from(extra_len(fixed)).saturating_add(names as u64);
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
