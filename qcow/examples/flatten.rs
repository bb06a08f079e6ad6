//! Writes a chain as one standalone image, says how far it is, and stops if asked to: nothing is left then.
//! `cargo run --example flatten -- overlay.qcow2 standalone.qcow2`

use std::path::Path;

use qcow::chain::{Chain, OpenOptions};
use qcow::ops::flatten::{FlattenOptions, FlattenOutcome, flatten};
use qcow::{CancelToken, Observer};

fn main() -> qcow::Result<()> {
    let [source, target] = [1, 2].map(|at| std::env::args_os().nth(at).unwrap_or_default());
    // A signal handler, or another thread, would hold a clone of this, and call `cancel()`.
    let done = run(Path::new(&source), Path::new(&target), &CancelToken::new())?;
    println!("{} bytes of data, CRC-32 {:?}", done.data_bytes, done.crc32);
    Ok(())
}

/// Called by the threads that work.
struct Percent;

impl Observer for Percent {
    fn progress(&self, done: u64, total: u64) {
        let percent = done.saturating_mul(100).checked_div(total).unwrap_or(100);
        eprintln!("{percent} %");
    }
}

pub(crate) fn run(
    source: &Path,
    target: &Path,
    cancel: &CancelToken,
) -> qcow::Result<FlattenOutcome> {
    let chain = Chain::open(source, &OpenOptions::default())?;
    let options = FlattenOptions::default().digest(true);
    flatten(&chain, target, &options, &Percent, cancel)
}
