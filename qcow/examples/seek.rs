//! A guest's disk as `Read + Seek`, which is what crates for partition tables and file systems take. Needs no cargo
//! feature. `cargo run --example seek -- disk.qcow2`

use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use qcow::chain::{Chain, OpenOptions};

fn main() -> io::Result<()> {
    let image = std::env::args_os().nth(1).unwrap_or_default();
    let chain = Chain::open(Path::new(&image), &OpenOptions::default())?; // an error of ours is an io::Error
    println!("a partition table: {}", has_partition_table(&mut chain.cursor())?);
    Ok(())
}

/// Knows nothing of images.
pub(crate) fn has_partition_table(disk: &mut (impl Read + Seek)) -> io::Result<bool> {
    let mut signature = [0; 2];
    disk.seek(SeekFrom::Start(510))?;
    disk.read_exact(&mut signature)?;
    Ok(signature == [0x55, 0xaa])
}
