//! The image for each run, and what must be in it afterwards.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use fixtures::{args, pattern, qemu};

use super::rows::{BLOCK, Before, PATTERN, Row, SIZE, stamp};
use super::writers::Writer;
use crate::Result;

/// The name of the internal snapshot.
pub(crate) const SNAPSHOT: &str = "one";

/// Files of a row; those that a run does not change are made once.
#[derive(Debug)]
pub(crate) struct Images {
    /// The content of the disk before, and of its snapshot or backing file.
    pub(crate) before: PathBuf,
    pub(crate) backing: Option<PathBuf>,
    pub(crate) has_snapshot: bool,
    first: PathBuf,
    /// The content afterwards: of requests that bear their places, and of those of `qemu-img bench`.
    stamped: PathBuf,
    plain: PathBuf,
    image: PathBuf,
    /// Room for the content of a snapshot.
    pub(crate) snapshot: PathBuf,
}

impl Images {
    /// Makes those of a row in a directory, in place of those of another.
    pub(crate) fn make(row: &Row, dir: &Path) -> Result<Self> {
        let mut images = Self {
            before: dir.join("before.raw"),
            backing: None,
            has_snapshot: row.before == Before::Snapshot,
            first: dir.join("first.qcow2"),
            stamped: dir.join("stamped.raw"),
            plain: dir.join("plain.raw"),
            image: dir.join("image"),
            snapshot: dir.join("snapshot.raw"),
        };
        let before = File::create(&images.before)?;
        before.set_len(SIZE)?;
        if row.before != Before::Nothing {
            let piece = 1 << 20;
            for at in (0..SIZE).step_by(piece) {
                before.write_all_at(&pattern::noise(at, piece), at)?;
            }
        }
        let first = &images.first;
        let convert = |to: &Path| {
            qemu::try_qemu_img(&args!["convert", "-f", "raw", "-O", "qcow2", images.before, to])
        };
        match row.before {
            Before::Nothing => qemu::create(first, "", &SIZE.to_string()),
            Before::Data => drop(convert(first)?),
            Before::Backing => {
                let backing = dir.join("backing.qcow2");
                convert(&backing)?;
                qemu::overlay(first, &backing, "qcow2", "", "");
                images.backing = Some(backing);
            }
            Before::Snapshot => {
                convert(first)?;
                qemu::try_qemu_img(&args!["snapshot", "-c", SNAPSHOT, first])?;
            }
        }
        for (path, stamped) in [(&images.stamped, true), (&images.plain, false)] {
            copy(&images.before, path)?;
            let file = File::options().write(true).open(path)?;
            let mut block = [PATTERN; BLOCK];
            for at in row.places() {
                if stamped {
                    stamp(&mut block, at);
                }
                file.write_all_at(&block, at)?;
            }
        }
        Ok(images)
    }

    /// A new image for a run of this writer.
    pub(crate) fn fresh(&self, writer: Writer) -> Result<&Path> {
        copy(if writer == Writer::Raw { &self.before } else { &self.first }, &self.image)?;
        Ok(&self.image)
    }

    /// What must be in it afterwards.
    pub(crate) fn wanted(&self, writer: Writer) -> &Path {
        if writer == Writer::Qemu { &self.plain } else { &self.stamped }
    }
}

/// Copies a file to a new one; holes may become data, but not those of a file that is all hole.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_file(to)?;
    }
    let (length, blocks) = {
        use std::os::unix::fs::MetadataExt;
        let metadata = fs::metadata(from)?;
        (metadata.len(), metadata.blocks())
    };
    if blocks == 0 {
        File::create(to)?.set_len(length)?;
    } else {
        fs::copy(from, to)?;
    }
    Ok(())
}
