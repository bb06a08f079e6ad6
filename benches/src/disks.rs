//! Makers of the disks that the commands work on. The same arguments make the same disks, but for the
//! real files, which are those of the machine.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use fixtures::pattern::{Random, mixed};

use crate::command::must;
use crate::failure::Result;

/// Content is taken from a pool of this many bytes, which compress to about a half.
const POOL: usize = 4 << 20;
const CLUSTER: usize = 64 << 10;

/// A fragmented chain of `depth` layers with at least `bytes` of visible data; its active layer.
pub(crate) fn chain(dir: &Path, depth: usize, bytes: u64) -> Result<PathBuf> {
    let dir = dir.join(format!("depth{depth}"));
    fs::create_dir(&dir)?;
    let mut maker = Command::new(std::env::current_exe()?);
    must(maker.arg("chain").arg(&dir).args([depth.to_string(), bytes.to_string()]))?;
    Ok(PathBuf::from(fs::read_to_string(dir.join("top"))?))
}

/// The part `chain`: makes it and writes the name of its active layer into the file `top`.
pub(crate) fn write_chain(dir: &Path, depth: usize, bytes: u64) -> Result<()> {
    let chain = fixtures::big::big_chain(dir, depth, bytes);
    fs::write(dir.join("top"), chain.top().as_os_str().as_encoded_bytes())?;
    Ok(())
}

/// A raw disk of `bytes` bytes without a hole.
pub(crate) fn dense(dir: &Path, bytes: u64) -> Result<PathBuf> {
    let path = dir.join(format!("dense{bytes}.raw"));
    let mut maker = Command::new(std::env::current_exe()?);
    must(maker.arg("dense").arg(&path).arg(bytes.to_string()))?;
    Ok(path)
}

/// The part `dense`.
pub(crate) fn write_dense(path: &Path, bytes: u64) -> Result<()> {
    let pool = mixed(0xde45e, POOL + CLUSTER);
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    for cluster in 0..bytes / CLUSTER as u64 {
        let at = Random::new(cluster).below(POOL as u64 / 64) as usize * 64;
        out.write_all(&cluster.to_be_bytes())?;
        out.write_all(&pool[at + 8..at + CLUSTER])?;
    }
    Ok(out.flush()?)
}

/// A qcow2 image of `size` bytes with `writes` of 256 KiB strewn over it.
pub(crate) fn strewn(dir: &Path, size: u64, writes: u64) -> Result<PathBuf> {
    const WRITE: u64 = 256 << 10;
    let path = empty(dir, &[], &size.to_string())?;
    let mut random = Random::new(size);
    let write = |_| {
        let at = random.below(size / WRITE) * WRITE;
        format!("write -P {} {at} {WRITE}", 1 + random.below(255))
    };
    let writes: Vec<_> = (0..writes).map(write).collect();
    let mut command = Command::new("qemu-io");
    writes.iter().for_each(|write| _ = command.args(["-c", write]));
    let said = must(command.args(["-f", "qcow2", "-t", "unsafe"]).arg(&path))?;
    if said.contains("failed") {
        return Err(format!("qemu-io: {said}").into());
    }
    Ok(path)
}

/// A qcow2 image of `size` that holds nothing.
pub(crate) fn empty(dir: &Path, options: &[&str], size: &str) -> Result<PathBuf> {
    let path = dir.join(format!("{size}.qcow2"));
    let mut command = Command::new("qemu-img");
    must(command.args(["create", "-q", "-f", "qcow2"]).args(options).arg(&path).arg(size))?;
    Ok(path)
}

/// The same disk as a new image, made by qemu-img with `words`.
pub(crate) fn converted(source: &Path, name: &str, words: &[&str]) -> Result<PathBuf> {
    let path = source.with_file_name(name);
    let mut command = Command::new("qemu-img");
    must(command.args(["convert", "-W", "-m", "16"]).args(words).args([source, &path]))?;
    Ok(path)
}

/// An ext4 file system with about `bytes` of this machine's files in it, as a raw disk: the first files
/// of /usr by name.
pub(crate) fn file_system(dir: &Path, bytes: u64) -> Result<PathBuf> {
    const ID: &str = "5d6e7f80-0004-4a5b-8c9d-0123456789ab";
    let (stage, disk) = (dir.join("files"), dir.join("tree.raw"));
    fs::create_dir(&stage)?;
    // The last file is cut off, and tar complains of that.
    let script = r#"tar -C / --sort=name -cf - usr 2>/dev/null | head -c "$1" |
        tar -C "$2" --no-same-owner -xf - 2>/dev/null || test -d "$2/usr""#;
    let mut command = Command::new("sh");
    must(command.args(["-c", script, "sh", &bytes.to_string()]).arg(&stage))?;
    File::create(&disk)?.set_len(bytes + bytes / 2)?;
    let mut command = Command::new("mke2fs");
    command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
    command.args(["-q", "-F", "-t", "ext4", "-U", ID, "-E", &format!("hash_seed={ID}"), "-d"]);
    must(command.args([&stage, &disk]))?;
    fs::remove_dir_all(&stage)?;
    Ok(disk)
}
