//! Makes an overlay on an image, and an empty image that has the same size and geometry as that image, the target
//! of a copy. `cargo run --example create -- base.qcow2 overlay.qcow2 empty.qcow2`

use std::path::Path;

use qcow::chain::{Format, OpenOptions};
use qcow::ops::create::{Backing, CreateOptions, create, like};

fn main() -> qcow::Result<()> {
    let [base, overlay, empty] =
        [1, 2, 3].map(|at| std::env::args_os().nth(at).unwrap_or_default());
    run(Path::new(&base), Path::new(&overlay), Path::new(&empty))
}

pub(crate) fn run(base: &Path, overlay: &Path, empty: &Path) -> qcow::Result<()> {
    let backing = Backing::new(
        std::path::absolute(base).unwrap_or_else(|_| base.to_path_buf()),
        Format::Qcow2,
    );
    let made = create(overlay, &CreateOptions::default().backing(backing))?;
    println!("{}: disk of {} bytes", made.filename.display(), made.virtual_size);

    let like = like(base, &OpenOptions::default())?;
    let made = create(empty, &like.create)?;
    println!("{}: disk of {} bytes", made.filename.display(), made.virtual_size);
    for lost in &like.not_carried_over {
        println!("not in the new image: {lost:?}");
    }
    Ok(())
}
