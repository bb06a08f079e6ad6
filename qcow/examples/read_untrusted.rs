//! Reads 4 KiB through a backing chain that comes from somebody else: nothing is guessed, no file outside of one
//! directory is opened, and what could take endless work is refused. Needs no cargo feature.
//!
//! `cargo run --example read_untrusted -- disk.qcow2 /srv/images`

use std::path::Path;

use qcow::chain::{Chain, FilePolicy, Format, Limits, OpenOptions, Policy};
use qcow::format::GuestOffset;

fn main() -> qcow::Result<()> {
    let [image, directory] = [1, 2].map(|at| std::env::args_os().nth(at).unwrap_or_default());
    let bytes = run(Path::new(&image), Path::new(&directory))?;
    println!(
        "the sum of the first 4096 bytes is {}",
        bytes.iter().map(|&byte| u64::from(byte)).sum::<u64>()
    );
    Ok(())
}

pub(crate) fn run(image: &Path, directory: &Path) -> qcow::Result<[u8; 4096]> {
    let options = OpenOptions::default()
        .format(Format::Qcow2)
        .policy(
            Policy::default()
                .backing(FilePolicy::Within(vec![directory.to_path_buf()]))
                .data_file(FilePolicy::Deny)
                .strict(true),
        )
        .limits(Limits::untrusted());
    let mut bytes = [0; 4096];
    Chain::open(image, &options)?.read_at(&mut bytes, GuestOffset(0))?;
    Ok(bytes)
}
