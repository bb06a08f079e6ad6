//! Lists what the persistent dirty bitmaps of an image have as changed. Needs no cargo feature.
//! `cargo run --example bitmap -- disk.qcow2`

use std::path::Path;

use qcow::chain::{Chain, OpenOptions};

fn main() -> qcow::Result<()> {
    std::env::args_os().skip(1).try_for_each(|image| run(Path::new(&image)).map(drop))
}

/// Returns how many bytes are dirty in all bitmaps that can be trusted.
pub(crate) fn run(image: &Path) -> qcow::Result<u64> {
    let chain = Chain::open(image, &OpenOptions::default())?;
    let Some(image) = chain.layers().first().and_then(|layer| layer.image()) else { return Ok(0) };
    let mut dirty: u64 = 0;
    for bitmap in image.bitmaps() {
        let name = bitmap.name.escape_ascii();
        let ranges = match image.bitmap(&bitmap.name)?.dirty_ranges() {
            Ok(ranges) => ranges,
            // It does not tell what has changed: copy everything.
            Err(error) => {
                println!("{name}: {error}");
                continue;
            }
        };
        for range in ranges {
            let range = range?;
            println!("{name}: {} to {}", range.start, range.end);
            dirty = dirty.saturating_add(range.end.0.saturating_sub(range.start.0));
        }
    }
    Ok(dirty)
}
