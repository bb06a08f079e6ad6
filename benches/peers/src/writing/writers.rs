//! The writers: each carries out the requests of a row by its documented interface, one after the other, flushes as that asks,
//! and syncs.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use clap::ValueEnum;

use super::rows::{BLOCK, PATTERN, Row, stamp};
use crate::Result;
use crate::readers::runtime;

/// Who writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Writer {
    Raw,
    Qcow,
    Imago,
    ImagoSync,
    Qcow2Rs,
    Qcow2RsUring,
    Qemu,
}

impl Writer {
    pub(crate) const ALL: [Self; 7] = [
        Self::Raw,
        Self::Qcow,
        Self::Imago,
        Self::ImagoSync,
        Self::Qcow2Rs,
        Self::Qcow2RsUring,
        Self::Qemu,
    ];

    /// The word that chooses it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow => "qcow",
            Self::Imago => "imago",
            Self::ImagoSync => "imago-sync",
            Self::Qcow2Rs => "qcow2-rs",
            Self::Qcow2RsUring => "qcow2-rs-uring",
            Self::Qemu => "qemu",
        }
    }

    /// Its name in the report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw file, `pwrite`",
            Self::Qcow => "qcow",
            Self::Imago => "imago, async on tokio",
            Self::ImagoSync => "imago, without async",
            Self::Qcow2Rs => "qcow2-rs, system calls",
            Self::Qcow2RsUring => "qcow2-rs, io_uring",
            Self::Qemu => "`qemu-img bench`",
        }
    }

    /// The format of what it writes to.
    pub(crate) fn format(self) -> &'static str {
        if self == Self::Raw { "raw" } else { "qcow2" }
    }

    /// Writes all requests to the image.
    pub(crate) fn write(self, row: &Row, image: &Path) -> Result<()> {
        match self {
            Self::Raw => raw(row, image),
            Self::Qcow => qcow(row, image),
            Self::Imago => runtime()?.block_on(imago(row, image)),
            Self::Qcow2Rs => runtime()?.block_on(qcow2_rs(row, image)),
            Self::Qcow2RsUring => tokio_uring::start(qcow2_rs_uring(row, image)),
            Self::ImagoSync | Self::Qemu => Err("it is a program of its own".into()),
        }
    }
}

/// All requests of a row with `write`, an expression that writes the buffer to the offset.
macro_rules! requests {
    ($row:expr, $buffer:ident, $at:ident, $write:expr) => {
        for $at in $row.places() {
            stamp(&mut $buffer[..], $at);
            $write;
        }
    };
}

fn raw(row: &Row, image: &Path) -> Result<()> {
    let file = File::options().write(true).open(image)?;
    let mut buffer = vec![PATTERN; BLOCK];
    requests!(row, buffer, at, file.write_all_at(&buffer, at)?);
    Ok(file.sync_data()?)
}

fn qcow(row: &Row, image: &Path) -> Result<()> {
    use qcow::chain::{Format, OpenOptions};
    use qcow::disk::{Disk, WriteOptions};
    let open = OpenOptions::default().format(Format::Qcow2);
    let disk = Disk::open(image, &open, WriteOptions::new())?;
    let mut buffer = vec![PATTERN; BLOCK];
    requests!(row, buffer, at, disk.write_at(&buffer, at)?);
    disk.flush()?;
    Ok(disk.close()?)
}

async fn imago(row: &Row, image: &Path) -> Result<()> {
    use imago::file::File;
    use imago::qcow2::Qcow2;
    use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate};
    let opened = Qcow2::<File>::builder_path(image).write(true);
    let disk = FormatAccess::new(opened.open(PermissiveImplicitOpenGate::default()).await?);
    let mut buffer = vec![PATTERN; BLOCK];
    requests!(row, buffer, at, disk.write(&buffer[..], at).await?);
    // The first writes what it keeps in memory, the second makes that durable.
    disk.flush().await?;
    Ok(disk.sync().await?)
}

/// The same for each of qcow2-rs's engines, whose types differ.
macro_rules! qcow2_rs {
    ($device:expr, $row:expr) => {{
        let device = $device;
        let failed = |error| format!("{error}");
        let mut buffer = qcow2_rs::helpers::Qcow2IoBuf::<u8>::new(BLOCK);
        buffer.fill(PATTERN);
        requests!($row, buffer, at, device.write_at(&buffer[..], at).await.map_err(failed)?);
        // As with imago; it counts as dirty what has to be written.
        if device.need_flush_meta() {
            device.flush_meta().await.map_err(failed)?;
        }
        let size = usize::try_from(device.info.virtual_size())?;
        Ok(device.fsync_range(0, size).await.map_err(failed)?)
    }};
}

/// Blocks of 512 bytes, caches as it likes, to be written, through the page cache.
fn parameters() -> qcow2_rs::dev::Qcow2DevParams {
    qcow2_rs::dev::Qcow2DevParams::new(9, None, None, false, false)
}

async fn qcow2_rs(row: &Row, image: &Path) -> Result<()> {
    let device = qcow2_rs::utils::qcow2_setup_dev_sync(image, &parameters());
    let device = device.map_err(|error| format!("{error}"))?;
    device.qcow2_prep_io().await.map_err(|error| format!("{error}"))?;
    qcow2_rs!(device, row)
}

async fn qcow2_rs_uring(row: &Row, image: &Path) -> Result<()> {
    let device = qcow2_rs::utils::qcow2_setup_dev_uring(image, &parameters()).await;
    qcow2_rs!(device.map_err(|error| format!("{error}"))?, row)
}
