//! The files that a running QEMU holds open, seen through `/proc`: the only way to a base that was
//! deleted while the guest runs.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Ends the link text of a descriptor whose file has no name any more.
const DELETED: &[u8] = b" (deleted)";

/// A descriptor of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Descriptor {
    /// Where the open file can be opened again.
    through: PathBuf,
    /// The name under which it was opened, without what the kernel adds.
    name: PathBuf,
    deleted: bool,
}

/// What a QEMU process holds open. Empty if it was not found, or if we may not look.
#[derive(Debug, Default)]
pub(super) struct OpenFiles(Vec<Descriptor>);

impl OpenFiles {
    /// Of the process that runs the domain with this UUID on this machine.
    pub(super) fn of_domain(uuid: &str) -> Self {
        let Ok(entries) = fs::read_dir("/proc") else { return Self::default() };
        entries
            .flatten()
            .map(|entry| entry.path())
            .find(|process| {
                fs::read(process.join("cmdline")).is_ok_and(|line| runs_domain(&line, uuid))
            })
            .map(|process| Self::of_process(&process.join("fd")))
            .unwrap_or_default()
    }

    fn of_process(descriptors: &Path) -> Self {
        let Ok(entries) = fs::read_dir(descriptors) else { return Self::default() };
        let mut found: Vec<_> = entries
            .flatten()
            .filter_map(|entry| {
                let link = fs::read_link(entry.path()).ok()?;
                let bytes = link.as_os_str().as_bytes();
                if !bytes.starts_with(b"/") {
                    return None; // a socket, a pipe
                }
                let name = bytes.strip_suffix(DELETED);
                Some(Descriptor {
                    through: entry.path(),
                    name: name.map_or_else(|| link.clone(), path),
                    deleted: name.is_some(),
                })
            })
            .collect();
        found.sort_by(|a, b| a.through.cmp(&b.through));
        Self(found)
    }

    /// Where the file that once was at `name` can still be read: `Some` only if the process has it open
    /// and holds no file of that name that still exists.
    ///
    /// Something else may be at `name` by now: what the guest reads is not that.
    pub(super) fn deleted(&self, name: &Path) -> Option<&Path> {
        let name = canonical(name);
        let mut same = self.0.iter().filter(|descriptor| descriptor.name == name);
        if same.clone().any(|descriptor| !descriptor.deleted) {
            return None;
        }
        same.next().map(|descriptor| descriptor.through.as_path())
    }
}

/// Whether a command line, its words ended by NUL, is that of the domain with this UUID.
fn runs_domain(line: &[u8], uuid: &str) -> bool {
    let mut words = line.split(|&byte| byte == 0);
    let program = words.next().unwrap_or_default();
    let qemu = program.windows(4).any(|part| part == b"qemu");
    let mut words = words.skip_while(|word| *word != b"-uuid");
    qemu && words.next().is_some() && words.next() == Some(uuid.as_bytes())
}

/// `name` with the symbolic links of its directory resolved, as the kernel shows it. The file need not
/// exist.
fn canonical(name: &Path) -> PathBuf {
    if let Ok(real) = name.canonicalize() {
        return real;
    }
    match (name.parent().and_then(|parent| parent.canonicalize().ok()), name.file_name()) {
        (Some(parent), Some(file)) => parent.join(file),
        _ => name.to_path_buf(),
    }
}

fn path(bytes: &[u8]) -> PathBuf {
    std::ffi::OsStr::from_bytes(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_of_a_domain_is_known_by_its_uuid() {
        let line = b"/usr/bin/qemu-system-x86_64\0-name\0guest=vm\0-uuid\0abc-1\0-smp\0one\0";
        assert!(runs_domain(line, "abc-1"));
        assert!(!runs_domain(line, "abc"));
        assert!(!runs_domain(b"/bin/sh\0-uuid\0abc-1\0", "abc-1"));
        assert!(!runs_domain(b"/usr/bin/qemu-system-x86_64\0-uuid", "abc-1"));
    }

    #[test]
    fn a_deleted_file_is_found_and_one_that_still_has_its_name_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let name = |name: &str| dir.path().canonicalize().unwrap().join(name);
        for file in ["gone", "there", "replaced"] {
            fs::write(name(file), file).unwrap();
        }
        let _held: Vec<_> =
            ["gone", "there", "replaced"].map(|file| fs::File::open(name(file)).unwrap()).into();
        fs::remove_file(name("gone")).unwrap();
        fs::remove_file(name("replaced")).unwrap();
        fs::write(name("replaced"), "another").unwrap();
        let files = OpenFiles::of_process(Path::new("/proc/self/fd"));
        let read = |file: &str| {
            files.deleted(&name(file)).map(|through| fs::read_to_string(through).unwrap())
        };
        assert_eq!(read("gone").as_deref(), Some("gone"));
        assert_eq!(read("there"), None);
        assert_eq!(read("replaced").as_deref(), Some("replaced"));
        assert_eq!(read("never"), None);
    }
}
