//! Copies what an overlay has itself, and nothing of what is below it, into a sparse file: the data of an incremental
//! backup. Needs no cargo feature. `cargo run --example incremental -- overlay.qcow2 changes.raw`

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use qcow::chain::{Chain, OpenOptions};
use qcow::extent::ExtentKind;

/// Longer extents are copied in pieces.
const PIECE: usize = 1 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let [overlay, copy] = [1, 2].map(|at| std::env::args_os().nth(at).unwrap_or_default());
    println!("{} bytes copied", run(Path::new(&overlay), Path::new(&copy))?);
    Ok(())
}

pub(crate) fn run(overlay: &Path, copy: &Path) -> Result<u64, Box<dyn std::error::Error>> {
    // Without the backing files: what they have is no part of the increment.
    let chain = Chain::open_alone(overlay, &OpenOptions::default())?;
    let (mut reader, output, mut copied) = (chain.reader(), File::create(copy)?, 0);
    output.set_len(chain.virtual_size())?;
    for extent in chain.extents() {
        let extent = extent?;
        match extent.kind {
            ExtentKind::Unallocated => continue, // the backing file decides
            // Zeros that hide data below have to be recorded, too: they are not what Unallocated is.
            ExtentKind::Zero { .. } => println!("zeros: {} bytes at {}", extent.len, extent.guest),
            _ => {
                for start in (extent.guest.0..extent.end()).step_by(PIECE) {
                    let piece = extent.slice(start, start.saturating_add(PIECE as u64));
                    let mut bytes = vec![0; usize::try_from(piece.len)?];
                    reader.read_extent(&piece, &mut bytes)?;
                    output.write_all_at(&bytes, start)?;
                    copied = piece.len.saturating_add(copied);
                }
            }
        }
    }
    chain.check_unchanged()?; // no process wrote to the image meanwhile
    Ok(copied)
}
