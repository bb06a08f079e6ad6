//! What a command needs to open, from its arguments alone.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use qcow::chain::{FilePolicy, OpenOptions, local_path};

/// Where the kernel lists block devices: whether a loop device is backed by a file that is replaced.
const DEVICES: [&str; 2] = ["/sys/block", "/sys/devices/virtual/block"];

/// What a command still needs. One that is not given anything may open nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// An image may name any local file: reading cannot be bound before the chain is open.
    anything: bool,
    /// Files and directories that may be read.
    reads: Vec<PathBuf>,
    /// Directories that may be read at the end, too.
    reads_late: Vec<PathBuf>,
    /// Files and devices that are changed in place.
    changes: Vec<PathBuf>,
    /// Directories in which outputs are made at once, and renamed at the end.
    makes: Vec<PathBuf>,
    /// Directories in which outputs are made at the end.
    makes_late: Vec<PathBuf>,
    /// What is read and changed is opened again later.
    opened_again: bool,
    /// Clients connect to a socket that is there.
    serving: bool,
}

impl Plan {
    /// A command that opens no file.
    pub fn new() -> Self {
        Self::default()
    }

    /// The file, or what is below the directory, at `path` is read.
    #[must_use]
    pub fn reading(mut self, path: impl Into<PathBuf>) -> Self {
        self.reads.push(path.into());
        self
    }

    /// The image that a person calls `name` is read, and nothing that it names.
    #[must_use]
    pub fn image(self, name: &Path) -> Self {
        // Opening the name reports what is wrong with it.
        match local_path(name) {
            Ok(path) => self.reading(path),
            Err(_) => self,
        }
    }

    /// The image that a person calls `name` is read, with what `options` let it name.
    #[must_use]
    pub fn chain(mut self, name: &Path, options: &OpenOptions) -> Self {
        self = self.image(name);
        for files in [&options.policy.backing, &options.policy.data_file] {
            match files {
                FilePolicy::AnyLocal => self.anything = true,
                FilePolicy::Within(directories) => self.reads.extend_from_slice(directories),
                FilePolicy::InRoot(directory) => self.reads.push(directory.clone()),
                // Nothing more; and what is not known here is not read.
                _ => {}
            }
        }
        self
    }

    /// Local time is shown: what says which that is, is read.
    #[must_use]
    pub fn local_time(mut self) -> Self {
        let named = std::env::var_os("TZDIR").into_iter().chain(std::env::var_os("TZ"));
        let named = named.map(|name| match name.as_encoded_bytes().strip_prefix(b":") {
            Some(path) => PathBuf::from(OsStr::from_bytes(path)),
            None => PathBuf::from(name),
        });
        self.reads.extend(named.filter(|path| path.is_absolute()));
        self.reads.extend(["/etc/localtime".into(), "/usr/share/zoneinfo".into()]);
        self
    }

    /// The file or device that a person calls `name` is changed in place.
    #[must_use]
    pub fn changing(mut self, name: &Path) -> Self {
        self.changes.extend(local_path(name));
        self
    }

    /// What is read and changed is opened again when all else is open.
    #[must_use]
    pub fn opened_again(mut self) -> Self {
        self.opened_again = true;
        self
    }

    /// As [`changing`](Self::changing); images beside it are looked at, which may need it.
    #[must_use]
    pub fn overwriting(mut self, name: &Path) -> Self {
        self.reads.extend(DEVICES.map(PathBuf::from));
        if let Ok(path) = local_path(name) {
            self.reads.push(directory(&path));
        }
        self.changing(name)
    }

    /// A file is begun at `target` when all is open.
    #[must_use]
    pub fn making(mut self, target: &Path) -> Self {
        self.makes.push(directory(target));
        self.reads.extend(DEVICES.map(PathBuf::from));
        self
    }

    /// A file is made at `target` when the work is done.
    #[must_use]
    pub fn making_late(mut self, target: &Path) -> Self {
        self.makes_late.push(directory(target));
        self.reads_late.extend(DEVICES.map(PathBuf::from));
        self
    }

    /// Clients connect to sockets that were made before.
    #[must_use]
    pub fn serving(mut self) -> Self {
        self.serving = true;
        self
    }

    /// Whether clients connect.
    pub(super) fn serves(&self) -> bool {
        self.serving
    }

    /// What may be opened before all is open.
    pub(super) fn before(&self) -> Rights<'_> {
        Rights {
            anything: self.anything,
            read: self.reads.iter().chain(&self.reads_late).map(PathBuf::as_path).collect(),
            change: &self.changes,
            make: self.makes.iter().chain(&self.makes_late).map(PathBuf::as_path).collect(),
            rename: Vec::new(),
        }
    }

    /// What may be opened when all is open.
    pub(super) fn after(&self) -> Rights<'_> {
        let (read, change) =
            if self.opened_again { (&*self.reads, &*self.changes) } else { (&[][..], &[][..]) };
        Rights {
            anything: false,
            read: read.iter().chain(&self.reads_late).map(PathBuf::as_path).collect(),
            change,
            make: self.makes_late.iter().map(PathBuf::as_path).collect(),
            rename: self.makes.iter().map(PathBuf::as_path).collect(),
        }
    }
}

/// What may be opened; nothing else may.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rights<'a> {
    /// Everything may be read.
    pub(super) anything: bool,
    /// These files, and what is below these directories, may be read.
    pub(super) read: Vec<&'a Path>,
    /// These files may be read and written.
    pub(super) change: &'a [PathBuf],
    /// Below these directories files may be made, read, written, renamed and removed.
    pub(super) make: Vec<&'a Path>,
    /// Below these directories files may be renamed and removed.
    pub(super) rename: Vec<&'a Path>,
}

/// The directory that holds `target`.
fn directory(target: &Path) -> PathBuf {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use qcow::chain::Policy;

    use super::*;

    fn options(files: FilePolicy) -> OpenOptions {
        let policy = Policy::default().backing(files.clone()).data_file(files);
        OpenOptions::default().policy(policy)
    }

    #[test]
    fn reading_is_bound_as_the_policy_binds_it_and_ends_when_all_is_open() {
        let name = Path::new("/images/top.qcow2");
        let open = Plan::new().chain(name, &options(FilePolicy::AnyLocal));
        assert!(open.before().anything);
        assert!(!open.after().anything && open.after().read.is_empty());
        let within = options(FilePolicy::Within(vec!["/templates".into()]));
        let bound = Plan::new().chain(name, &within);
        assert!(!bound.before().anything);
        assert!(bound.before().read.contains(&Path::new("/templates")));
        assert!(bound.before().read.contains(&name));
        let alone = Plan::new().chain(name, &options(FilePolicy::Deny));
        assert_eq!(alone.before().read, [name]);
    }

    #[test]
    fn an_image_that_is_opened_again_is_all_that_stays() {
        let name = Path::new("/images/top.qcow2");
        let plan = Plan::new().chain(name, &options(FilePolicy::AnyLocal)).changing(name);
        assert!(plan.after().read.is_empty() && plan.after().change.is_empty());
        let plan = plan.opened_again();
        assert!(plan.before().anything && !plan.after().anything);
        assert_eq!(
            (plan.after().read, plan.after().change),
            (vec![name], &[name.to_path_buf()][..])
        );
    }

    #[test]
    fn an_output_that_is_begun_can_only_be_renamed_later_and_one_of_the_end_can_be_made() {
        let plan = Plan::new().making(Path::new("/a/x")).making_late(Path::new("y"));
        assert_eq!(plan.before().make, [Path::new("/a"), Path::new(".")]);
        assert_eq!(plan.after().rename, [Path::new("/a")]);
        assert_eq!(plan.after().make, [Path::new(".")]);
    }

    #[test]
    fn a_json_name_gives_access_to_the_file_that_it_means() {
        let name = Path::new(r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"/a"}}"#);
        assert_eq!(Plan::new().image(name).before().read, [Path::new("/a")]);
    }
}
