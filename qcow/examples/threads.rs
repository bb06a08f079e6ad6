//! Several threads read one chain: it is opened once, and each thread has a handle of its own. Needs no cargo feature.
//! `cargo run --example threads -- disk.qcow2`

use std::path::Path;
use std::thread;

use qcow::chain::{Chain, OpenOptions};
use qcow::format::GuestOffset;

const THREADS: usize = 4;
const PIECE: usize = 64 << 10;

fn main() -> qcow::Result<()> {
    std::env::args_os().skip(1).try_for_each(|image| run(Path::new(&image)).map(drop))
}

/// Returns how many bytes of the disk are not zero.
pub(crate) fn run(image: &Path) -> qcow::Result<usize> {
    let chain = Chain::open(image, &OpenOptions::default())?;
    let threads: Vec<_> = (0..THREADS)
        .map(|first| {
            let chain = chain.clone(); // a handle: the files and the cache of tables are shared
            thread::spawn(move || count(&chain, first))
        })
        .collect();
    let mut sum: usize = 0;
    for thread in threads {
        let counted = thread.join().map_err(|_| qcow::Error::usage("a thread panicked"))?;
        sum = sum.saturating_add(counted?);
    }
    println!("{sum} bytes are not zero");
    Ok(sum)
}

/// Of each [`THREADS`] pieces, one.
fn count(chain: &Chain, first: usize) -> qcow::Result<usize> {
    let (mut reader, mut sum) = (chain.reader(), 0usize);
    let pieces = (0..chain.virtual_size()).step_by(PIECE);
    for offset in pieces.skip(first).step_by(THREADS) {
        let rest = chain.virtual_size().saturating_sub(offset);
        let mut bytes = vec![0; usize::try_from(rest).unwrap_or(PIECE).min(PIECE)];
        reader.read_at(&mut bytes, GuestOffset(offset))?;
        sum = sum.saturating_add(bytes.iter().filter(|&&byte| byte != 0).count());
    }
    Ok(sum)
}
