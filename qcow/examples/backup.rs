//! Copies what a bitmap has as dirty into an overlay over the last backup. Needs no cargo feature.
//! `cargo run --example backup -- vm.qcow2 since-sunday monday.qcow2`

use std::path::Path;

use qcow::chain::{Chain, OpenOptions};
use qcow::disk::{Disk, WriteOptions};

/// Longer ranges are copied in pieces.
const PIECE: u64 = 1 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let argument = |at| std::env::args_os().nth(at).unwrap_or_default();
    let bitmap = argument(2).into_string().map_err(|_| "the bitmap's name is not UTF-8")?;
    let copied = run(Path::new(&argument(1)), &bitmap, Path::new(&argument(3)))?;
    println!("{copied} bytes copied");
    Ok(())
}

pub(crate) fn run(
    image: &Path,
    bitmap: &str,
    overlay: &Path,
) -> Result<u64, Box<dyn std::error::Error>> {
    let chain = Chain::open(image, &OpenOptions::default())?;
    let top = chain.layers().first().and_then(|layer| layer.image());
    let ranges =
        top.ok_or("raw images have no bitmaps")?.bitmap(bitmap.as_bytes())?.dirty_ranges()?;
    let backup = Disk::open(overlay, &OpenOptions::default(), WriteOptions::new())?;
    let (mut piece, mut copied) = (Vec::new(), 0u64);
    for range in ranges {
        let mut range = range?;
        while range.start < range.end {
            let len = range.end.0.saturating_sub(range.start.0).min(PIECE);
            piece.resize(usize::try_from(len)?, 0);
            chain.read_at(&mut piece, range.start)?;
            backup.write_at(&piece, range.start.0)?;
            range.start.0 = range.start.0.saturating_add(len);
            copied = copied.saturating_add(len);
        }
    }
    chain.check_unchanged()?; // no process wrote to the image meanwhile
    backup.close()?;
    Ok(copied)
}
