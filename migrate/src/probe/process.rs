//! The files that a running QEMU holds open, seen through `/proc`: the only way to a base that was
//! deleted while the guest runs.

use std::fs;
use std::path::{Path, PathBuf};

use qcow::chain::WorkingDirectory;

use crate::process::{PROC, Process, deleted_name};

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
#[derive(Debug)]
pub(super) struct OpenFiles {
    descriptors: Vec<Descriptor>,
    /// Where it opens relative names.
    pub(super) directory: WorkingDirectory,
}

impl Default for OpenFiles {
    fn default() -> Self {
        Self { descriptors: Vec::new(), directory: WorkingDirectory::Unknown }
    }
}

impl OpenFiles {
    /// Of the process that runs the domain with this UUID on this machine.
    pub(super) fn of_domain(uuid: &str) -> Self {
        let process = Process::of_domain(Path::new(PROC), uuid).into_iter().next();
        let Some(process) = process else { return Self::default() };
        let descriptors = process.descriptors().ok().flatten().unwrap_or_default();
        Self::among(descriptors, process.working_directory())
    }

    fn among(descriptors: Vec<PathBuf>, directory: WorkingDirectory) -> Self {
        let mut found: Vec<_> = descriptors
            .into_iter()
            .filter_map(|through| {
                let link = fs::read_link(&through).ok()?;
                if !link.is_absolute() {
                    return None; // a socket, a pipe
                }
                let name = deleted_name(&link);
                Some(Descriptor { through, deleted: name.is_some(), name: name.unwrap_or(link) })
            })
            .collect();
        found.sort_by(|a, b| a.through.cmp(&b.through));
        Self { descriptors: found, directory }
    }

    /// Where the file that once was at `name` can still be read: `Some` only if the process has it open
    /// and holds no file of that name that still exists.
    ///
    /// Something else may be at `name` by now: what the guest reads is not that.
    pub(super) fn deleted(&self, name: &Path) -> Option<&Path> {
        let name = canonical(name);
        let mut same = self.descriptors.iter().filter(|descriptor| descriptor.name == name);
        if same.clone().any(|descriptor| !descriptor.deleted) {
            return None;
        }
        same.next().map(|descriptor| descriptor.through.as_path())
    }
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

#[cfg(test)]
mod tests {
    use super::*;

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
        let files = OpenFiles::among(
            fs::read_dir("/proc/self/fd").unwrap().flatten().map(|entry| entry.path()).collect(),
            WorkingDirectory::Unknown,
        );
        let read = |file: &str| {
            files.deleted(&name(file)).map(|through| fs::read_to_string(through).unwrap())
        };
        assert_eq!(read("gone").as_deref(), Some("gone"));
        assert_eq!(read("there"), None);
        assert_eq!(read("replaced").as_deref(), Some("replaced"));
        assert_eq!(read("never"), None);
    }
}
