//! Goes through directories, in parallel.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rayon::Scope;

use super::file::Look;
use super::{Scan, in_words, is_gone};
use crate::audit::value::Unseen;

/// File systems that are views of the kernel: what is in them is no image, and reading it may have effects.
const VIEWS: &[u64] = &[
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x27_e0eb,   // cgroup
    0x6367_7270, // cgroup2
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0xcafe_4a11, // bpf
    0x6265_6570, // configfs
    0xde5e_81e4, // efivarfs
    0x6165_676c, // pstore
    0x1cd1,      // devpts
    0xf97c_ff8c, // selinuxfs
    0x4249_4e4d, // binfmt_misc
    0x6573_5543, // fusectl
    0x6e73_6673, // nsfs
    0x1980_0202, // mqueue
];

/// Adds what is in `directory` and below it. Links to directories are not followed.
pub(super) fn enter<'s, 'a: 's>(
    scan: &'s Scan<'a>,
    scope: &Scope<'s>,
    directory: PathBuf,
    asked: bool,
) {
    if scan.cancel.check().is_err() {
        return;
    }
    match entries(scan, &directory) {
        Ok(Some(entries)) => entries.for_each(|entry| match entry {
            Ok(entry) => each(scan, scope, &entry),
            Err(error) => unread(scan, &directory, &error, asked),
        }),
        Ok(None) => {}
        Err(error) => unread(scan, &directory, &error, asked),
    }
}

fn unread(scan: &Scan<'_>, directory: &Path, error: &io::Error, asked: bool) {
    // What goes away under the scan is as if it had never been there.
    if asked || !is_gone(error) {
        let why = in_words(error);
        scan.unseen(Unseen { host: None, path: directory.to_path_buf(), why, asked });
    }
}

/// The entries of a directory; `None` if it has been entered before, by whatever name, or shows no files.
fn entries(scan: &Scan<'_>, directory: &Path) -> io::Result<Option<fs::ReadDir>> {
    let status = fs::symlink_metadata(directory)?;
    if is_view(directory)? {
        return Ok(None);
    }
    {
        let mut found = scan.found();
        if !found.entered.insert((status.dev(), status.ino())) {
            return Ok(None);
        }
        found.survey.directories = found.survey.directories.saturating_add(1);
        found.survey.entered.push(directory.to_path_buf());
    }
    fs::read_dir(directory).map(Some)
}

/// Whether a directory is a view of the kernel.
///
/// # Errors
/// What the system says.
pub(crate) fn is_view(directory: &Path) -> io::Result<bool> {
    let kind = rustix::fs::statfs(directory)?.f_type;
    Ok(u64::try_from(kind).is_ok_and(|kind| VIEWS.contains(&kind)))
}

/// The links to directories that were not entered by any name.
pub(super) fn left_out(links: Vec<PathBuf>, entered: &HashSet<(u64, u64)>) -> Vec<Unseen> {
    let left_out = |link: &PathBuf| {
        let known = |status: fs::Metadata| entered.contains(&(status.dev(), status.ino()));
        !fs::metadata(link).is_ok_and(known) && !is_view(link).unwrap_or(false)
    };
    let why = "it is a link to a directory that was not examined: give that directory too";
    links
        .into_iter()
        .filter(left_out)
        .map(|path| Unseen { host: None, path, why: why.into(), asked: false })
        .collect()
}

fn each<'s, 'a: 's>(scan: &'s Scan<'a>, scope: &Scope<'s>, entry: &fs::DirEntry) {
    let path = entry.path();
    match entry.file_type() {
        Ok(kind) if kind.is_dir() => scope.spawn(move |scope| enter(scan, scope, path, false)),
        Ok(kind) if kind.is_file() => scope.spawn(move |_| {
            let _ = scan.add(&path, false, Look::Passing);
        }),
        Ok(kind) if kind.is_symlink() => scope.spawn(move |_| {
            // Where it leads to nothing, it is no image.
            match fs::metadata(&path) {
                Ok(status) if status.is_file() => drop(scan.add(&path, true, Look::Passing)),
                Ok(status) if status.is_dir() => scan.found().directory_links.push(path),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    unread(scan, &path, &error, false);
                }
                _ => {}
            }
        }),
        // Fifos, sockets and devices.
        Ok(_) => {}
        Err(error) => unread(scan, &path, &error, false),
    }
}
