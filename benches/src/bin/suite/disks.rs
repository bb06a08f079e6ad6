//! The disks that the commands work on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;
use crate::measure::must;

/// Layers of the big chain, template included.
const DEPTH: usize = 4;

/// The directory of this run and the disks in it.
#[derive(Debug)]
pub(crate) struct Disks {
    /// Where everything is made.
    pub(crate) dir: PathBuf,
    /// The active layer of a fragmented, uncompressed chain.
    pub(crate) chain: PathBuf,
    /// An image of 64 TiB that holds nothing.
    pub(crate) empty: PathBuf,
    /// What the guest's disk in the chain holds, in bytes, not counting holes.
    pub(crate) data: u64,
}

impl Disks {
    /// Makes all disks in `dir`, the chain with at least `data` bytes of visible content.
    pub(crate) fn make(dir: &Path, data: u64) -> Result<Self> {
        eprintln!("making the disks in {} ...", dir.display());
        let mut maker = Command::new(std::env::current_exe()?);
        must(maker.arg("chain").arg(dir).args([DEPTH.to_string(), data.to_string()]))?;
        let chain = PathBuf::from(fs::read_to_string(dir.join("top"))?);
        let empty = dir.join("empty-64T.qcow2");
        must(
            Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&empty).arg("64T"),
        )?;
        Ok(Self { dir: dir.to_owned(), chain, empty, data })
    }

    /// A file that a command is to make.
    pub(crate) fn target(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// Makes the chain and writes the name of its active layer into the file `top`.
pub(crate) fn write_chain(dir: &Path, depth: usize, bytes: u64) -> Result<()> {
    let chain = fixtures::big::big_chain(dir, depth, bytes);
    fs::write(dir.join("top"), chain.top().as_os_str().as_encoded_bytes())?;
    Ok(())
}
