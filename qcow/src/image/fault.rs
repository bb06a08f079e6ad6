//! Ranges of the guest's disk that cannot be read, for operations that go on past damage.

use std::ops::Range;

use rustix::io::Errno;

use crate::{Error, ErrorKind};

/// A range of the guest's disk that cannot be read, and why.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) guest: Range<u64>,
    pub(crate) error: Error,
}

/// Where faults are collected; `None` makes the first one the end of the operation.
pub(crate) type Faults<'f> = Option<&'f mut Vec<Fault>>;

/// Takes note of `error` and lets the operation go on, if that is wanted and the error is one of damage.
///
/// # Errors
/// `error` itself if not.
pub(crate) fn tolerate(
    faults: &mut Faults<'_>,
    guest: Range<u64>,
    error: Error,
) -> Result<(), Error> {
    match faults {
        Some(faults) if is_damage(&error) => {
            push(faults, Fault { guest, error });
            Ok(())
        }
        _ => Err(error),
    }
}

/// Adds a fault, joined to the last one if they touch and are of one kind.
fn push(faults: &mut Vec<Fault>, fault: Fault) {
    if let Some(last) = faults.last_mut()
        && last.guest.end == fault.guest.start
        && last.error.kind() == fault.error.kind()
        && last.error.place().structure == fault.error.place().structure
    {
        last.guest.end = fault.guest.end;
        return;
    }
    faults.push(fault);
}

/// Whether the image, or the medium that holds it, is damaged at one place. All other errors (no
/// memory, a device that is gone, a server that has forgotten the file) say nothing about the
/// place: what is there could still be read another time.
pub(crate) fn is_damage(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::Corrupt => true,
        ErrorKind::Io => error
            .io_source()
            .and_then(std::io::Error::raw_os_error)
            .is_some_and(|number| MEDIUM.contains(&Errno::from_raw_os_error(number))),
        _ => false,
    }
}

/// What Linux answers where a sector or a block cannot be read.
const MEDIUM: [Errno; 6] = [
    // The usual answer of drives, and of most file systems and network file systems.
    Errno::IO,
    // A medium error, as the block layer says it.
    Errno::NODATA,
    // A target that failed internally, as the block layer says it.
    Errno::REMOTEIO,
    // Integrity data (T10 DIF) that does not fit.
    Errno::ILSEQ,
    // A checksum of XFS or ext4 that does not fit.
    Errno::BADMSG,
    // XFS and ext4: corrupt metadata of the file.
    Errno::UCLEAN,
];

#[cfg(test)]
mod tests {
    use super::*;

    fn io(number: Errno) -> Error {
        Error::io("could not read", number.into())
    }

    #[test]
    fn only_what_says_something_about_the_place_is_damage() {
        for number in MEDIUM {
            assert!(is_damage(&io(number)), "{number}");
        }
        for number in [Errno::NOMEM, Errno::ACCESS, Errno::STALE, Errno::NODEV, Errno::NOLINK] {
            assert!(!is_damage(&io(number)), "{number}");
        }
        assert!(is_damage(&Error::corrupt("x")));
        assert!(!is_damage(&Error::interrupted()) && !is_damage(&Error::limit("x")));
    }

    #[test]
    fn neighbours_of_one_kind_are_one_and_a_strict_reader_ends_at_the_first() {
        let mut list = Vec::new();
        let mut faults = Some(&mut list);
        for (guest, structure) in [(0..1, "L2 table"), (1..2, "L2 table"), (2..3, "L1 table")] {
            let error = Error::corrupt("x").structure(structure);
            tolerate(&mut faults, guest, error).unwrap();
        }
        let ranges: Vec<_> = list.iter().map(|fault| fault.guest.clone()).collect();
        assert_eq!(ranges, [0..2, 2..3]);
        assert!(tolerate(&mut None, 0..1, Error::corrupt("x")).is_err());
    }
}
