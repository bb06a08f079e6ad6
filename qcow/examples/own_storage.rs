//! An image whose bytes live somewhere else than in a file: here in pieces in memory, as an object store has them.
//! Needs no cargo feature. `cargo run --example own_storage -- disk.qcow2`

use std::io;
use std::path::Path;
use std::sync::Arc;

use qcow::chain::{Chain, Format};
use qcow::format::GuestOffset;
use qcow::io::Storage;

const PIECE: usize = 4096;

/// Pieces of [`PIECE`] bytes, the last one shorter.
#[derive(Debug)]
struct Pieces(Vec<Vec<u8>>);

impl Storage for Pieces {
    fn len(&self) -> u64 {
        self.0.iter().map(|piece| piece.len() as u64).sum()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let bytes = self.0.iter().skip(offset / PIECE).flatten().skip(offset % PIECE);
        let read = buf.iter_mut().zip(bytes).map(|(to, from)| *to = *from).count();
        Ok(read)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let image = std::env::args_os().nth(1).unwrap_or_default();
    println!("{:02x?}", run(Path::new(&image))?);
    Ok(())
}

/// Returns the first bytes of the disk.
pub(crate) fn run(image: &Path) -> Result<[u8; 16], Box<dyn std::error::Error>> {
    let pieces = std::fs::read(image)?.chunks(PIECE).map(<[u8]>::to_vec).collect();
    let storage = Arc::new(Pieces(pieces));
    let chain = Chain::builder().layer("bucket/disk", storage, Format::Qcow2).open()?;
    let mut bytes = [0; 16];
    chain.read_at(&mut bytes, GuestOffset(0))?;
    Ok(bytes)
}
