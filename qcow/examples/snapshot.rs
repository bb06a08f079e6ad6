//! Lists an image's internal snapshots, and reads the first sector as it was in each. Needs no cargo feature.
//! `cargo run --example snapshot -- disk.qcow2`

use std::path::Path;

use qcow::chain::{Chain, OpenOptions};
use qcow::format::GuestOffset;

fn main() -> qcow::Result<()> {
    std::env::args_os().skip(1).try_for_each(|image| run(Path::new(&image)).map(drop))
}

/// Returns the first byte of the disk in each snapshot.
pub(crate) fn run(image: &Path) -> qcow::Result<Vec<u8>> {
    let chain = Chain::open(image, &OpenOptions::default())?;
    let Some(image_now) = chain.layers().first().and_then(|layer| layer.image()) else {
        return Ok(Vec::new()); // a raw image
    };
    let mut first_bytes = Vec::new();
    for snapshot in image_now.snapshots() {
        let id = String::from_utf8_lossy(&snapshot.id).into_owned();
        let then = OpenOptions::default().snapshot(id.clone());
        let mut sector = [0; 512];
        Chain::open(image, &then)?.read_at(&mut sector, GuestOffset(0))?;
        println!("snapshot {id} '{}': {:02x?}", snapshot.name.escape_ascii(), sector.first());
        first_bytes.extend(sector.first());
    }
    Ok(first_bytes)
}
