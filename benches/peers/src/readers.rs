//! The readers: each gives the CRC-32 of a whole disk, reading it in order, or of pieces of it, reading them at random.

use std::path::Path;
use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::Result;

/// Bytes read at a time, in order.
const PIECE: usize = 2 << 20;
/// Bytes read at a time, at random.
const BLOCK: usize = 4096;

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

    /// Those that can read anywhere.
    pub(crate) const RANDOM: [Self; 4] =
        [Self::Qcow, Self::Imago, Self::Qcow2Rs, Self::Qcow2RsUring];

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

/// A pass over places all over the disk: what was read, and how long it took.
pub(crate) struct Pass {
    pub(crate) digest: u32,
    pub(crate) time: Duration,
}

impl Reader {
    /// Reads `count` blocks at random twice; the second pass, with warm caches, is the one that counts.
    pub(crate) fn read_at_random(self, path: &Path, count: u64) -> Result<Pass> {
        match self {
            Self::Qcow => random_qcow(path, count),
            Self::Imago => runtime()?.block_on(random_imago(path, count)),
            Self::Qcow2Rs => runtime()?.block_on(random_qcow2_rs(path, count)),
            Self::Qcow2RsUring => tokio_uring::start(random_qcow2_rs_uring(path, count)),
            Self::QcowAll => Err("it reads whole disks only".into()),
        }
    }
}

/// The offsets of the blocks, the same for all readers.
fn places(size: u64, count: u64) -> impl Iterator<Item = u64> {
    let mut random = fixtures::pattern::Random::new(0x4ead);
    let blocks = (size / BLOCK as u64).max(1);
    (0..count).map(move |_| random.below(blocks) * BLOCK as u64)
}

/// Two passes with `read`, an expression that fills the buffer from the offset.
macro_rules! two_passes {
    ($size:expr, $count:expr, $buffer:ident, $at:ident, $read:expr) => {{
        let mut pass = Pass { digest: 0, time: Duration::ZERO };
        for _ in 0..2 {
            let mut digest = crc32fast::Hasher::new();
            let start = Instant::now();
            for $at in places($size, $count) {
                $read;
                digest.update(&$buffer[..BLOCK]);
            }
            pass = Pass { digest: digest.finalize(), time: start.elapsed() };
        }
        Ok(pass)
    }};
}

fn random_qcow(path: &Path, count: u64) -> Result<Pass> {
    let chain = qcow::chain::Chain::open(path, &qcow::chain::OpenOptions::default())?;
    let (mut reader, mut buffer) = (chain.reader(), vec![0; BLOCK]);
    two_passes!(
        chain.virtual_size(),
        count,
        buffer,
        at,
        reader.read_at(&mut buffer, qcow::format::GuestOffset(at))?
    )
}

async fn random_imago(path: &Path, count: u64) -> Result<Pass> {
    let image = open_imago(path).await?;
    let mut buffer = vec![0; BLOCK];
    two_passes!(image.size(), count, buffer, at, image.read(&mut buffer[..], at).await?)
}

/// The same for each of qcow2-rs's engines, whose types differ.
macro_rules! random_qcow2_rs {
    ($device:expr, $count:expr) => {{
        let device = $device;
        let mut buffer = qcow2_rs::helpers::Qcow2IoBuf::<u8>::new(BLOCK);
        let failed = |error| format!("{error}");
        two_passes!(
            device.info.virtual_size(),
            $count,
            buffer,
            at,
            device.read_at(&mut buffer[..BLOCK], at).await.map_err(failed)?
        )
    }};
}

async fn random_qcow2_rs(path: &Path, count: u64) -> Result<Pass> {
    let device = qcow2_rs::utils::qcow2_setup_dev_sync(path, &parameters());
    let device = device.map_err(|error| format!("{error}"))?;
    device.qcow2_prep_io().await.map_err(|error| format!("{error}"))?;
    random_qcow2_rs!(device, count)
}

async fn random_qcow2_rs_uring(path: &Path, count: u64) -> Result<Pass> {
    let device = qcow2_rs::utils::qcow2_setup_dev_uring(path, &parameters()).await;
    random_qcow2_rs!(device.map_err(|error| format!("{error}"))?, count)
}

pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
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
    use qcow::ops::digest::{DigestOptions, digest};
    let chain = qcow::chain::Chain::open(path, &qcow::chain::OpenOptions::default())?;
    let options = DigestOptions::default();
    let done = digest(&chain, &options, &qcow::Silent, &qcow::CancelToken::new())?;
    Ok(u32::from_str_radix(&done.digest.to_string(), 16)?)
}

async fn open_imago(path: &Path) -> Result<imago::FormatAccess<imago::file::File>> {
    use imago::file::File;
    use imago::qcow2::Qcow2;
    use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate};
    let image = Qcow2::<File>::builder_path(path).open(PermissiveImplicitOpenGate::default());
    Ok(FormatAccess::new(image.await?))
}

async fn imago(path: &Path) -> Result<u32> {
    let image = open_imago(path).await?;
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
