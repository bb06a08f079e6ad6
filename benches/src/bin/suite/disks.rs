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
    /// An image without data whose clusters are all allocated, and its size as text.
    pub(crate) preallocated: (PathBuf, &'static str),
    /// What the guest's disk in the chain holds, in bytes, not counting holes.
    pub(crate) data: u64,
}

impl Disks {
    /// Makes all disks in `dir`, the chain with at least `data` bytes of visible content, the one
    /// that is all metadata for `metadata` of disk.
    pub(crate) fn make(dir: &Path, data: u64, metadata: &'static str) -> Result<Self> {
        eprintln!("making the disks in {} ...", dir.display());
        let mut maker = Command::new(std::env::current_exe()?);
        must(maker.arg("chain").arg(dir).args([DEPTH.to_string(), data.to_string()]))?;
        let chain = PathBuf::from(fs::read_to_string(dir.join("top"))?);
        let create = |name: &str, options: &[&str], size: &str| {
            let path = dir.join(name);
            let mut command = Command::new("qemu-img");
            command.args(["create", "-q", "-f", "qcow2"]).args(options).arg(&path).arg(size);
            must(&mut command).map(|_| path)
        };
        let empty = create("empty-64T.qcow2", &[], "64T")?;
        let allocated = ["-o", "preallocation=metadata"];
        let preallocated = (create("preallocated.qcow2", &allocated, metadata)?, metadata);
        Ok(Self { dir: dir.to_owned(), chain, empty, preallocated, data })
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
