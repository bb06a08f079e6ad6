//! What an image says about itself and the images below it: `cargo run --example info -- disk.qcow2`

use std::path::Path;

use qcow::ops::info::{InfoOptions, info};

fn main() -> qcow::Result<()> {
    std::env::args_os().skip(1).try_for_each(|image| run(Path::new(&image)).map(drop))
}

/// Returns how many images there are.
pub(crate) fn run(image: &Path) -> qcow::Result<usize> {
    let options = InfoOptions::default().backing_chain(true);
    let images = info(image, &options)?;
    for image in &images {
        println!(
            "{}: {}, disk of {} bytes, {} bytes on the file system, {} snapshots",
            image.filename.display(),
            image.format,
            image.virtual_size,
            image.actual_size,
            image.snapshots.len(),
        );
    }
    Ok(images.len())
}
