//! Processes and what they have open, seen through `/proc`.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use qcow::chain::WorkingDirectory;

/// Where processes are.
pub(crate) const PROC: &str = "/proc";

/// Ends the link text of a descriptor whose file has no name any more.
const DELETED: &[u8] = b" (deleted)";

/// A process that has a program.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    /// Its number.
    pub(crate) number: u32,
    /// Its program, and the guest's name if it tells.
    pub(crate) shown: String,
    /// Its program is called so.
    pub(crate) qemu: bool,
    place: PathBuf,
    line: Vec<u8>,
}

impl Process {
    /// The numbers of all processes but this one.
    pub(crate) fn numbers(proc: &Path) -> Vec<u32> {
        let own = std::process::id();
        let Ok(entries) = fs::read_dir(proc) else { return Vec::new() };
        let numbers =
            entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        numbers.filter(|number| *number != own).collect()
    }

    /// The process of this number; `None` if there is none, or it is a thread of the kernel.
    pub(crate) fn now(proc: &Path, number: u32) -> Option<Self> {
        let place = proc.join(number.to_string());
        let line = fs::read(place.join("cmdline")).ok()?;
        // Threads of the kernel have none, and no files.
        let program = line.split(|byte| *byte == 0).next().filter(|word| !word.is_empty())?;
        let qemu = program.windows(4).any(|part| part == b"qemu");
        let file_name = program.rsplit(|byte| *byte == b'/').next().unwrap_or(program);
        let mut shown = String::from_utf8_lossy(file_name).into_owned();
        if let Some(guest) = guest(&line).filter(|_| qemu) {
            shown = format!("{shown}, guest '{guest}'");
        }
        Some(Self { number, shown, qemu, place, line })
    }

    /// The processes that say that they run the domain with this UUID.
    pub(crate) fn of_domain(proc: &Path, uuid: &str) -> Vec<Self> {
        let numbers = Self::numbers(proc).into_iter();
        let processes = numbers.filter_map(|number| Self::now(proc, number));
        processes.filter(|process| runs_domain(&process.line, uuid)).collect()
    }

    /// Whether the number is still that of a process with the same command line.
    pub(crate) fn is_there(&self) -> bool {
        fs::read(self.place.join("cmdline")).is_ok_and(|line| line == self.line)
    }

    /// Where relative names start that it opens now; unknown if it is gone or this user may not look.
    pub(crate) fn working_directory(&self) -> WorkingDirectory {
        fs::read_link(self.place.join("cwd"))
            .map_or(WorkingDirectory::Unknown, WorkingDirectory::At)
    }

    /// Names under which the files that it has open can be opened again. `None` if it is gone.
    ///
    /// # Errors
    /// What the system says where this user may not look.
    pub(crate) fn descriptors(&self) -> io::Result<Option<Vec<PathBuf>>> {
        match fs::read_dir(self.place.join("fd")) {
            Ok(entries) => Ok(Some(entries.flatten().map(|entry| entry.path()).collect())),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Whether that is how `/proc` says that there is no such process any more. Where it goes away between two steps of one
/// look, the kernel says it in a way of its own (ESRCH).
fn is_gone(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

/// The name that a file without a name once had, by the link text of a descriptor; `None` if the text does
/// not say so. A file may have such a text for a name.
pub(crate) fn deleted_name(link: &Path) -> Option<PathBuf> {
    let name = link.as_os_str().as_bytes().strip_suffix(DELETED)?;
    Some(std::ffi::OsStr::from_bytes(name).into())
}

/// Whether a descriptor was opened for writing.
pub(crate) fn writes(descriptor: &Path) -> bool {
    let number = descriptor.file_name().unwrap_or_default();
    let process = descriptor.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
    let told = fs::read_to_string(process.join("fdinfo").join(number)).unwrap_or_default();
    let flags = told.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok());
    // O_WRONLY and O_RDWR.
    flags.is_some_and(|flags| flags & 0o3 != 0)
}

/// QEMU's own temporary overlays have no name from the start, and memory has none ever.
pub(crate) fn is_temporary(name: &Path) -> bool {
    let file = name.file_name().map_or(&[][..], OsStrExt::as_bytes);
    file.starts_with(b"vl.") || name.as_os_str().as_bytes().starts_with(b"/memfd:")
}

/// Whether a command line, its words ended by NUL, is that of the domain with this UUID.
fn runs_domain(line: &[u8], uuid: &str) -> bool {
    let mut words = line.split(|&byte| byte == 0);
    let program = words.next().unwrap_or_default();
    let qemu = program.windows(4).any(|part| part == b"qemu");
    let mut words = words.skip_while(|word| *word != b"-uuid");
    qemu && words.next().is_some() && words.next() == Some(uuid.as_bytes())
}

/// The name in `-name NAME` or `-name guest=NAME,...`.
fn guest(line: &[u8]) -> Option<String> {
    let mut words = line.split(|byte| *byte == 0).skip_while(|word| *word != b"-name");
    let value = String::from_utf8_lossy(words.nth(1)?).into_owned();
    let name = value.split(',').next()?;
    Some(name.strip_prefix("guest=").unwrap_or(name).to_owned())
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
    fn a_guest_is_known_by_its_name() {
        let of = |line: &[u8]| guest(line);
        assert_eq!(of(b"qemu\0-name\0guest=vm,debug-threads=on\0-S\0").as_deref(), Some("vm"));
        assert_eq!(of(b"qemu\0-name\0vm\0").as_deref(), Some("vm"));
        assert_eq!(of(b"qemu\0-name"), None);
    }

    #[test]
    fn a_deleted_file_is_known_by_what_the_kernel_adds() {
        assert_eq!(deleted_name(Path::new("/a/b (deleted)")).unwrap(), Path::new("/a/b"));
        assert_eq!(deleted_name(Path::new("/a/b")), None);
    }
}
