//! The readers: each gives the CRC-32 of a whole disk, reading it in order.

use std::path::Path;

use clap::ValueEnum;

use crate::Result;

/// Bytes read at a time.
const PIECE: usize = 2 << 20;

/// Who reads.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Reader {
    Qcow,
    QcowAll,
    Imago,
    Qcow2Rs,
    Qcow2RsUring,
}

impl Reader {
    pub(crate) const ALL: [Self; 5] =
        [Self::Qcow, Self::QcowAll, Self::Imago, Self::Qcow2Rs, Self::Qcow2RsUring];

    /// The word that chooses it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Qcow => "qcow",
            Self::QcowAll => "qcow-all",
            Self::Imago => "imago",
            Self::Qcow2Rs => "qcow2-rs",
            Self::Qcow2RsUring => "qcow2-rs-uring",
        }
    }

    /// Its name in the report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Qcow => "qcow, one reader",
            Self::QcowAll => "qcow, `checksum` on all cores",
            Self::Imago => "imago",
            Self::Qcow2Rs => "qcow2-rs, system calls",
            Self::Qcow2RsUring => "qcow2-rs, io_uring",
        }
    }

    /// The CRC-32 of the disk.
    pub(crate) fn read(self, path: &Path) -> Result<u32> {
        match self {
            Self::Qcow => qcow(path),
            Self::QcowAll => qcow_all(path),
            Self::Imago => runtime()?.block_on(imago(path)),
            Self::Qcow2Rs => runtime()?.block_on(qcow2_rs(path)),
            Self::Qcow2RsUring => tokio_uring::start(qcow2_rs_uring(path)),
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().build()?)
}

/// A disk in pieces: offset and length.
fn pieces(size: u64) -> impl Iterator<Item = (u64, usize)> {
    let length = move |at| PIECE.min(usize::try_from(size - at).unwrap_or(PIECE));
    (0..size).step_by(PIECE).map(move |at| (at, length(at)))
}

fn qcow(path: &Path) -> Result<u32> {
    let chain = qcow::chain::Chain::open(path, &qcow::chain::OpenOptions::default())?;
    let (mut reader, mut buffer, mut digest) =
        (chain.reader(), vec![0; PIECE], crc32fast::Hasher::new());
    for (at, len) in pieces(chain.virtual_size()) {
        reader.read_at(&mut buffer[..len], qcow::format::GuestOffset(at))?;
        digest.update(&buffer[..len]);
    }
    Ok(digest.finalize())
}

fn qcow_all(path: &Path) -> Result<u32> {
    use qcow::ops::checksum::{ChecksumOptions, checksum};
    let chain = qcow::chain::Chain::open(path, &qcow::chain::OpenOptions::default())?;
    let options = ChecksumOptions::default();
    let done = checksum(&chain, &options, &qcow::Silent, &qcow::CancelToken::new())?;
    Ok(u32::from_str_radix(&done.crc32, 16)?)
}

async fn imago(path: &Path) -> Result<u32> {
    use imago::file::File;
    use imago::qcow2::Qcow2;
    use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate};
    let image = Qcow2::<File>::builder_path(path).open(PermissiveImplicitOpenGate::default());
    let image = FormatAccess::new(image.await?);
    let (mut buffer, mut digest) = (vec![0; PIECE], crc32fast::Hasher::new());
    for (at, len) in pieces(image.size()) {
        image.read(&mut buffer[..len], at).await?;
        digest.update(&buffer[..len]);
    }
    Ok(digest.finalize())
}

/// The same for each of its engines, whose types differ.
macro_rules! read_all {
    ($device:expr) => {{
        let device = $device;
        let mut buffer = qcow2_rs::helpers::Qcow2IoBuf::<u8>::new(PIECE);
        let mut digest = crc32fast::Hasher::new();
        for (at, len) in pieces(device.info.virtual_size()) {
            device.read_at(&mut buffer[..len], at).await.map_err(|error| format!("{error}"))?;
            digest.update(&buffer[..len]);
        }
        Ok(digest.finalize())
    }};
}

fn parameters() -> qcow2_rs::dev::Qcow2DevParams {
    qcow2_rs::dev::Qcow2DevParams::new(9, None, None, true, false)
}

async fn qcow2_rs(path: &Path) -> Result<u32> {
    let device = qcow2_rs::utils::qcow2_setup_dev_sync(path, &parameters());
    let device = device.map_err(|error| format!("{error}"))?;
    device.qcow2_prep_io().await.map_err(|error| format!("{error}"))?;
    read_all!(device)
}

async fn qcow2_rs_uring(path: &Path) -> Result<u32> {
    let device = qcow2_rs::utils::qcow2_setup_dev_uring(path, &parameters()).await;
    read_all!(device.map_err(|error| format!("{error}"))?)
}
