//! A file system of our own on a loop device, for what the machine's cannot do.

use std::env;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::command::must;
use crate::failure::Result;

/// Set in a process that has its own view of what is mounted.
const OWN: &str = "QCOWTOOL_SUITE_OWN_MOUNTS";

/// A mounted file system; dropped, it is unmounted.
#[derive(Debug)]
pub(crate) struct Mount(PathBuf);

/// Starts this program anew with its own view of what is mounted, if it may: then nothing stays mounted
/// however it ends.
pub(crate) fn in_own_namespace() -> Result<()> {
    let unshare = || {
        let mut command = Command::new("unshare");
        command.arg("--mount").stderr(Stdio::null());
        command
    };
    if env::var_os(OWN).is_some() || !unshare().arg("true").status().is_ok_and(|s| s.success()) {
        return Ok(());
    }
    let mut again = Command::new("unshare");
    again.arg("--mount").arg(env::current_exe()?).args(env::args_os().skip(1)).env(OWN, "1");
    Err(again.exec().into())
}

impl Mount {
    /// An XFS of `size` bytes, sparse, with shared blocks, in the file `image`, mounted at `point`.
    ///
    /// # Errors
    /// What stood in the way: no `mkfs.xfs`, no right to mount, no loop device.
    pub(crate) fn xfs(image: &Path, size: u64, point: &Path) -> Result<Self> {
        if env::var_os(OWN).is_none() {
            return Err("mounting needs root and mount namespaces".into());
        }
        fs::File::create(image)?.set_len(size)?;
        fs::create_dir(point)?;
        must(Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(image))?;
        must(Command::new("mount").args(["-o", "loop"]).args([image, point]))?;
        Ok(Self(point.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = must(Command::new("umount").arg(&self.0)) {
            eprintln!("suite: {error}");
        }
    }
}
