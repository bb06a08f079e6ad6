//! What each error of the system means: the rows of `docs/errno.md` that can be tried, one after the other.

use std::fs;
use std::path::Path;

use nix::errno::Errno;
use nix::libc;

use super::cases::{Case, by_name};
use super::inject::is_kept;
use super::place::{Golden, Place, is_one_error};
use super::tracer::{Call, Disturbance, On, Refusal, Traced, can_trace};
use fixtures::needs_qemu;

/// How a run ends whose calls fail so.
#[derive(Debug, Clone, Copy)]
enum Ends {
    /// As if nothing had been.
    Same,
    /// With the same result, and a warning with these words.
    Warned(&'static str),
    /// With an error with these words, and nothing has changed.
    Refused(&'static str),
    /// As [`Refused`](Self::Refused), and the whole result has its name.
    Named(&'static str),
    /// As [`Refused`](Self::Refused), and the whole result is there under another name.
    Kept(&'static str),
    /// As [`Refused`](Self::Refused), but for what was overwritten.
    Partly(&'static str),
}

use Ends::{Kept, Named, Partly, Refused, Same, Warned};
use Errno::{
    EACCES, EAGAIN, EBUSY, EINVAL, EIO, EMLINK, ENODEV, ENOLCK, ENOSPC, ENOSYS, EOPNOTSUPP, EPERM,
};

/// What is tried: a case; calls that always fail; a call that fails with each of these errors in turn;
/// how it ends.
type Row = (&'static str, &'static [Refusal], (&'static str, On), &'static [Errno], Ends);

const fn row(
    case: &'static str,
    call: &'static str,
    on: On,
    errnos: &'static [Errno],
    ends: Ends,
) -> Row {
    (case, &[], (call, on), errnos, ends)
}

const fn all(name: &'static str, errno: Errno) -> Refusal {
    Refusal { name, on: On::All, errno }
}

const TAKES: On = On::Argument(1, libc::F_OFD_SETLK as u64);
const ASKS: On = On::Argument(1, libc::F_OFD_GETLK as u64);
const DATA: On = On::Argument(2, libc::SEEK_DATA as u64);
const HOLE: On = On::Argument(2, libc::SEEK_HOLE as u64);
const PUNCHES: On = On::Bits(1, libc::FALLOC_FL_PUNCH_HOLE as u64);
const DIRECT: On = On::Bits(2, libc::O_DIRECT as u64);
const IN_USE: Ends = Refused("in use");
const UNKNOWN: Ends = Refused("could not find out whether the image is in use");

// One error a row keeps the failures apart.
#[rustfmt::skip]
const LOCKS: &[Row] = &[
    row("checksum", "fcntl", TAKES, &[ENOLCK, EINVAL, ENOSYS, EOPNOTSUPP], Same),
    row("checksum", "fcntl", TAKES, &[EAGAIN, EACCES], IN_USE),
    row("checksum", "fcntl", TAKES, &[EIO, EPERM], UNKNOWN),
    row("checksum", "fcntl", ASKS, &[ENOLCK, EINVAL, ENOSYS, EOPNOTSUPP], Same),
    row("checksum", "fcntl", ASKS, &[EIO, EACCES], UNKNOWN),
    row("check -r all", "fcntl", TAKES, &[ENOLCK, EINVAL, ENOSYS, EOPNOTSUPP], Same),
    row("check -r all", "fcntl", TAKES, &[EAGAIN, EACCES], IN_USE),
    row("check -r all", "fcntl", TAKES, &[EIO], UNKNOWN),
    row("create over another", "fcntl", TAKES, &[ENOLCK], Same),
    row("create over another", "fcntl", TAKES, &[EAGAIN, EACCES], IN_USE),
    row("create over another", "fcntl", TAKES, &[EIO], UNKNOWN),
    row("flatten -n", "fcntl", TAKES, &[ENOLCK], Same),
    row("flatten -n", "fcntl", TAKES, &[EAGAIN, EACCES], IN_USE),
    row("flatten -n", "fcntl", TAKES, &[EIO], UNKNOWN),
];

const UNSYNCED: Ends = Warned("cannot sync directories");
const NOT_SYNCED: Ends = Named("could not sync the directory");

#[rustfmt::skip]
const NAMES: &[Row] = &[
    row("create qcow2", "fsync", On::Directories, &[EINVAL, ENOSYS, EOPNOTSUPP], UNSYNCED),
    row("create qcow2", "fsync", On::Directories, &[EIO, ENOSPC], NOT_SYNCED),
    row("flatten over another", "fsync", On::Directories, &[EINVAL], UNSYNCED),
    row("flatten over another", "fsync", On::Directories, &[EIO], NOT_SYNCED),
    row("create with data file", "fsync", On::Directories, &[EINVAL], UNSYNCED),
    row("create with data file", "fsync", On::Directories, &[EIO], NOT_SYNCED),
    row("flatten", "fsync", On::Directories, &[EINVAL], UNSYNCED),
    row("create qcow2", "renameat2", On::All, &[EINVAL, ENOSYS, EOPNOTSUPP], Same),
    row("create qcow2", "renameat2", On::All, &[EIO, ENOSPC, EBUSY], Kept("could not rename")),
    row("create with data file", "renameat2", On::All, &[EIO], Kept("could not rename")),
    row("flatten", "renameat2", On::All, &[EIO], Kept("could not rename")),
    row("flatten over another", "renameat", On::All, &[EIO, EBUSY, EACCES], Kept("could not rename")),
    row("create over another", "statx", On::File("new"), &[EIO, EACCES], Refused("could not look at what is there")),
];

const NO_RENAME: &[Refusal] = &[all("renameat2", EINVAL)];
const NO_LINK: &[Refusal] = &[all("renameat2", EINVAL), all("linkat", EPERM)];
const LINK: (&str, On) = ("linkat", On::All);
const RENAME: (&str, On) = ("renameat", On::All);

#[rustfmt::skip]
const OTHER_WAYS: &[Row] = &[
    ("flatten", NO_RENAME, LINK, &[EPERM, EOPNOTSUPP, ENOSYS, EINVAL, EMLINK], Same),
    ("flatten", NO_RENAME, LINK, &[EIO, ENOSPC, EACCES], Kept("could not rename")),
    ("flatten", NO_LINK, RENAME, &[EIO], Kept("could not rename")),
];

#[rustfmt::skip]
const RIGHTS: &[Row] = &[
    row("create over another", "fchown", On::All, &[EPERM, EINVAL, EIO], Refused("owner and group")),
    row("create over another", "fchmod", On::All, &[EPERM, EIO], Refused("the mode")),
    row("create over another", "fsetxattr", On::All, &[EOPNOTSUPP, EPERM, ENOSPC, EIO], Warned("the attribute 'user.note'")),
    row("create over another", "flistxattr", On::All, &[EIO, EACCES], Refused("could not read the file's attributes")),
    row("create over another", "fremovexattr", On::All, &[EOPNOTSUPP, ENOSYS], Same),
    row("create over another", "fremovexattr", On::All, &[EIO, EPERM], Refused("access control list")),
    row("create over another", "openat", On::File("new"), &[EACCES, EIO], Refused("could not open the file that is to be replaced")),
];

#[rustfmt::skip]
const CONTENT: &[Row] = &[
    row("flatten a raw image", "lseek", DATA, &[EINVAL, EOPNOTSUPP], Same),
    row("flatten a raw image", "lseek", HOLE, &[EINVAL, EOPNOTSUPP], Same),
    row("flatten a raw image", "lseek", DATA, &[EIO], Refused("")),
    row("flatten -n", "fallocate", On::All, &[EOPNOTSUPP, ENOSYS, EINVAL, ENODEV], Same),
    row("flatten -n", "fallocate", PUNCHES, &[EOPNOTSUPP], Same),
    row("flatten -n", "fallocate", On::All, &[EIO, ENOSPC], Partly("is partly overwritten")),
    row("flatten -n", "pwrite64", On::All, &[EIO, ENOSPC], Partly("is partly overwritten")),
    row("flatten -n", "fsync", On::All, &[EIO], Partly("could not sync")),
    row("flatten --direct", "openat", DIRECT, &[EINVAL], Refused("no direct I/O")),
    row("flatten --direct", "openat", DIRECT, &[EIO], Refused("could not open for direct I/O")),
];

/// Makes what is replaced another user's, with an attribute.
fn give_away(path: &Path) {
    if path.exists() {
        std::os::unix::fs::chown(path, Some(36), Some(36)).unwrap();
        let set = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(path, "user.note", b"note", set).unwrap();
    }
}

fn try_out(rows: &[Row], prepare: fn(&Path)) {
    needs_qemu!();
    if !can_trace() {
        return;
    }
    let (place, mut wrong, mut tried) = (Place::new(), Vec::new(), 0);
    for (name, always, (call, on), errnos, ends) in rows {
        let case = by_name(name);
        let golden = Golden::of(&place, case);
        for errno in *errnos {
            tried += 1;
            let room = place.room(case);
            prepare(&room.0.join("new"));
            let refusal = Refusal { name: call, on: *on, errno: *errno };
            let refusals = [*always, &[refusal]].concat().leak();
            let run = place.run(case, &room, Disturbance::Cannot(refusals));
            let failed = |call: &Call, refusal: &Refusal| {
                call.name == refusal.name && call.result == -i64::from(refusal.errno as i32)
            };
            let hit = refusals.iter().all(|of| run.calls.iter().any(|call| failed(call, of)));
            let verdict = match hit {
                false => Err("no call of the kind was made"),
                true => judge(case, &golden, &run, &room.files(), *ends),
            };
            if let Err(what) = verdict {
                let Traced { ended, stderr, .. } = run;
                wrong.push(format!(
                    "{name}: {call} {errno:?}: not {ends:?}, {what}: {ended:?} {stderr}"
                ));
            }
        }
    }
    println!("{tried} errors");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn judge(
    case: &Case,
    golden: &Golden,
    run: &Traced,
    after: &[(String, Vec<u8>)],
    ends: Ends,
) -> Result<(), &'static str> {
    let (code, stderr) = (run.ended.ok(), run.stderr.as_str());
    let failed = code.is_some_and(|code| case.failures.contains(&code)) && is_one_error(stderr);
    let says = |words: &str| stderr.contains(words);
    let holds = match ends {
        Same => code == Some(golden.code) && stderr == golden.stderr && after == golden.after,
        Warned(words) => {
            let warned = stderr.lines().all(|line| line.starts_with("qcowtool: warning: "));
            code == Some(0) && warned && says(words) && after == golden.after
        }
        Refused(words) => failed && says(words) && after == golden.before,
        Named(words) => failed && says(words) && after == golden.after,
        Kept(words) => failed && says(words) && is_kept(stderr, after, golden),
        Partly(words) => failed && says(words),
    };
    if holds { Ok(()) } else { Err("ended otherwise") }
}

#[test]
fn only_no_locks_means_no_locks_and_in_use_is_in_use() {
    try_out(LOCKS, |_| ());
}

#[test]
fn a_name_is_given_in_the_next_way_and_a_whole_result_is_never_removed() {
    try_out(NAMES, |_| ());
    try_out(OTHER_WAYS, |_| ());
}

#[test]
fn rights_that_cannot_be_kept_are_an_error_and_attributes_a_warning() {
    if !rustix::process::geteuid().is_root() {
        return fixtures::skipped("only root can give files away");
    }
    try_out(RIGHTS, give_away);
}

#[test]
fn what_a_file_system_cannot_do_with_content_is_done_in_another_way() {
    try_out(CONTENT, |_| ());
}

/// Each error that is tried is in the document.
#[test]
fn the_document_has_these_rows() {
    let document = fs::read_to_string("docs/errno.md").unwrap();
    for rows in [LOCKS, NAMES, OTHER_WAYS, RIGHTS, CONTENT] {
        for (.., errnos, _) in rows {
            for errno in *errnos {
                let errno = format!("{errno:?}");
                assert!(document.contains(&errno), "docs/errno.md does not have {errno}");
            }
        }
    }
}
