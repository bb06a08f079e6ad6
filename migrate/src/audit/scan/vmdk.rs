//! Reads what a VMDK image names: its parent and the files of its extents.
//!
//! The names are in a descriptor, lines of text that are a file of their own or a part of a sparse image. No
//! byte of it is trusted: at most [`LONGEST`] bytes are read, and a line that is not understood is skipped,
//! as QEMU skips it. What the names mean is decided by who follows them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use qcow::io::{Storage, read_padded};

use crate::audit::value::Header;

/// Descriptors are read so far and no farther, which is as far as QEMU reads them.
const LONGEST: u64 = 1 << 20;
/// The least that QEMU reads of a descriptor inside an image, whatever length the header gives.
const EMBEDDED: u64 = 20 * SECTOR;
const SECTOR: u64 = 512;
/// Bytes of the header of a sparse image that are looked at.
const SPARSE_HEADER: usize = 44;
/// What `parentCID` is where there is no parent.
const NO_PARENT: u32 = u32::MAX;

/// Whether a file that starts so is VMDK: a sparse image, an extent of ESX, or a descriptor.
pub(super) fn is_vmdk(start: &[u8]) -> bool {
    [b"KDMV".as_slice(), b"COWD", b"# Disk DescriptorFile"].iter().any(|is| start.starts_with(is))
        || starts_with_version(start)
}

/// QEMU takes for a descriptor any text whose first line, apart from comments and empty lines, is a version
/// that it knows.
fn starts_with_version(start: &[u8]) -> bool {
    let mut lines = start.split_inclusive(|byte| *byte == b'\n').filter(|line| {
        let line = line.trim_ascii();
        !line.is_empty() && !line.starts_with(b"#")
    });
    let first = lines.next().unwrap_or_default();
    [b"version=1".as_slice(), b"version=2", b"version=3"].iter().any(|version| {
        let rest = first.strip_prefix(*version);
        rest.is_some_and(|rest| rest == b"\n" || rest == b"\r\n")
    })
}

/// What the descriptor of the image in `storage` says, and what could not be understood of it, with whether
/// the image is broken.
pub(super) fn header(storage: &dyn Storage) -> (Option<Header>, Option<(String, bool)>) {
    match read(storage) {
        Ok((header, problem)) => (Some(header), problem.map(|why| (why, false))),
        Err(why) => (None, Some((why, true))),
    }
}

fn read(storage: &dyn Storage) -> Result<(Header, Option<String>), String> {
    let mut start = [0; SPARSE_HEADER];
    read_padded(storage, &mut start, 0).map_err(|error| error.message().to_owned())?;
    if start.starts_with(b"COWD") {
        // An extent, which names nothing: the descriptor that names it also names the parent.
        return Ok((Header::default(), None));
    }
    if !start.starts_with(b"KDMV") {
        let text = text(storage, 0, storage.len())?;
        return Ok(parse(&text).into_header());
    }
    // Little-endian.
    let field = |at: usize| -> u64 {
        let bytes = start.iter().skip(at).take(8).rev();
        bytes.fold(0, |value, byte| value << 8 | u64::from(*byte))
    };
    let (sectors, place, length) = (field(12), field(28), field(36));
    if place == 0 {
        let virtual_size = sectors.saturating_mul(SECTOR);
        return Ok((Header { virtual_size, ..Header::default() }, None));
    }
    let place = place.checked_mul(SECTOR).filter(|at| *at < storage.len()).ok_or_else(|| {
        format!("the header of this VMDK image has its descriptor at sector {place}, past its end")
    })?;
    let length = length.saturating_mul(SECTOR).max(EMBEDDED);
    let mut found = parse(&text(storage, place, length)?);
    // An image that has its data in itself may have another name by now than it has in its descriptor.
    if sectors != 0 {
        found.extents.clear();
        found.sectors = sectors;
    }
    Ok(found.into_header())
}

/// The text at this place, up to the first NUL.
fn text(storage: &dyn Storage, place: u64, length: u64) -> Result<Vec<u8>, String> {
    let length = length.min(LONGEST).min(storage.len().saturating_sub(place));
    let mut text = vec![0; usize::try_from(length).unwrap_or_default()];
    read_padded(storage, &mut text, place).map_err(|error| error.message().to_owned())?;
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    text.truncate(end);
    if end as u64 == LONGEST {
        return Err(format!("the descriptor of this VMDK image is longer than {LONGEST} bytes"));
    }
    Ok(text)
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Descriptor {
    parent: Option<PathBuf>,
    parent_id: Option<u32>,
    extents: Vec<PathBuf>,
    sectors: u64,
}

impl Descriptor {
    fn into_header(self) -> (Header, Option<String>) {
        let problem = match (&self.parent, self.parent_id) {
            (None, Some(id)) if id != NO_PARENT => Some(format!(
                "this VMDK image has a parent (parentCID={id:08x}) that its descriptor does not name"
            )),
            (Some(parent), _) if parent.as_os_str().as_bytes().contains(&b'\\') => Some(format!(
                "the parent of this VMDK image has the name of another operating system, '{}', so its file on this host is not known",
                parent.display()
            )),
            _ => None,
        };
        let header = Header {
            virtual_size: self.sectors.saturating_mul(SECTOR),
            // A descriptor has no place for a format, because a parent is always VMDK.
            backing_format: self.parent.is_some().then(|| "vmdk".into()),
            backing: self.parent,
            extents: self.extents,
            ..Header::default()
        };
        (header, problem)
    }
}

fn parse(text: &[u8]) -> Descriptor {
    let mut found = Descriptor::default();
    for line in text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii) {
        if let Some(rest) = after(line, b"parentFileNameHint") {
            let name = quoted(rest).filter(|name| !name.is_empty());
            found.parent = found.parent.or(name.map(path));
        } else if let Some(rest) = after(line, b"parentCID") {
            let digits = rest.trim_ascii().strip_prefix(b"=").map(<[u8]>::trim_ascii);
            let id = digits.and_then(|digits| str::from_utf8(digits).ok());
            found.parent_id = id.and_then(|id| u32::from_str_radix(id, 16).ok());
        } else if let Some((sectors, name)) = extent(line) {
            found.sectors = found.sectors.saturating_add(sectors);
            found.extents.extend(name.map(path));
        }
    }
    found
}

/// An extent's length in sectors, and its file: `RW 2048 FLAT "disk-flat.vmdk" 0`. Extents of zeros have no
/// file.
fn extent(line: &[u8]) -> Option<(u64, Option<&[u8]>)> {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let access = words.next()?;
    if ![b"RW".as_slice(), b"RDONLY", b"NOACCESS"].iter().any(|is| access.eq_ignore_ascii_case(is))
    {
        return None;
    }
    let sectors = str::from_utf8(words.next()?).ok()?.parse().ok()?;
    Some((sectors, quoted(line).filter(|name| !name.is_empty())))
}

/// What follows a word, wherever in the line that is: QEMU does not mind either.
fn after<'a>(line: &'a [u8], word: &[u8]) -> Option<&'a [u8]> {
    let at = line.windows(word.len()).position(|part| part.eq_ignore_ascii_case(word))?;
    line.get(at.checked_add(word.len())?..)
}

/// What is between the first two quotation marks.
fn quoted(text: &[u8]) -> Option<&[u8]> {
    let mut parts = text.split(|byte| *byte == b'"');
    let (_, inside) = (parts.next()?, parts.next()?);
    parts.next().map(|_| inside)
}

fn path(name: &[u8]) -> PathBuf {
    OsStr::from_bytes(name).into()
}

#[cfg(test)]
#[allow(clippy::restriction, reason = "tests assert by panicking")]
mod tests {
    use proptest::prelude::*;
    use qcow::io::MemoryStorage;

    use super::*;

    const TEXT: &str = "# Disk DescriptorFile\r\nversion=1\r\nCID=b5de6c77\r\nparentCID = 5367F6FB\r\n\
        createType=\"vmfs\"\r\nparentFileNameHint=\"../tpl/a b.vmdk\"\r\n\
        RW 16384 VMFS \"x-flat.vmdk\"\r\nRDONLY 8 SPARSE \"dir/x-s002.vmdk\"\r\nRW 4 ZERO\r\n\
        RW nonsense FLAT \"no\" 0\r\nRWX 1 FLAT \"no\" 0\r\n";

    fn sparse(sectors: u64, place: u64, length: u64, text: &str) -> MemoryStorage {
        let mut bytes = vec![0; 512];
        bytes[..4].copy_from_slice(b"KDMV");
        for (at, value) in [(12, sectors), (28, place), (36, length)] {
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        bytes.extend(text.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        MemoryStorage::new(bytes)
    }

    #[test]
    fn parents_and_extents_are_read_from_descriptors_of_their_own_and_inside_of_images() {
        let (header, problem) = header(&MemoryStorage::new(TEXT.as_bytes().to_vec()));
        let header_of_text = header.unwrap();
        assert_eq!(problem, None);
        assert_eq!(header_of_text.backing.as_deref().unwrap().to_str(), Some("../tpl/a b.vmdk"));
        assert_eq!(
            header_of_text.extents,
            [PathBuf::from("x-flat.vmdk"), "dir/x-s002.vmdk".into()]
        );
        assert_eq!(header_of_text.virtual_size, 16396 * 512);
        let inside = super::header(&sparse(16384, 1, 0, TEXT)).0.unwrap();
        assert_eq!(inside.backing, header_of_text.backing);
        assert_eq!((inside.extents.len(), inside.virtual_size), (0, 16384 * 512));
        // Without a capacity the image is only the place of a descriptor.
        assert_eq!(super::header(&sparse(0, 1, 20, TEXT)).0.unwrap().extents.len(), 2);
    }

    #[test]
    fn a_parent_that_is_not_known_is_told() {
        for (text, said) in [
            ("version=1\nparentCID=00000001\n", "parentCID=00000001"),
            ("version=1\nparentCID=1\nparentFileNameHint=\"C:\\vm\\a.vmdk\"\n", "C:\\vm\\a.vmdk"),
        ] {
            let (_, problem) = header(&MemoryStorage::new(text.as_bytes().to_vec()));
            let (why, broken) = problem.unwrap();
            assert!(why.contains(said) && !broken, "{why}");
        }
        let (none, problem) = header(&sparse(8, u64::MAX / 2, 1, ""));
        assert!(none.is_none() && problem.unwrap().1);
        let long = [b"version=1\n".to_vec(), vec![b'#'; 2 << 20]].concat();
        assert!(header(&MemoryStorage::new(long)).1.unwrap().0.contains("longer than"));
    }

    #[test]
    fn a_descriptor_is_known_as_qemu_knows_it() {
        for (start, is) in [
            ("KDMV", true),
            ("COWD", true),
            ("# Disk DescriptorFile\n", true),
            ("# a comment\n\n  \nversion=2\r\nCID=1\n", true),
            ("version=4\n", false),
            ("version=1 \n", false),
            ("# nothing but a comment\n", false),
            ("", false),
        ] {
            assert_eq!(is_vmdk(start.as_bytes()), is, "{start:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_bring_it_down(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..2048),
            magic in prop::sample::select(vec![b"KDMV".as_slice(), b"COWD", b"version=1\n"]),
        ) {
            let end = magic.len().min(bytes.len());
            bytes[..end].copy_from_slice(&magic[..end]);
            let _ = header(&MemoryStorage::new(bytes));
        }
    }
}
