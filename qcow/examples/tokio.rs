//! A disk behind an asynchronous program: many tasks submit requests to one queue and await them. The queue is the same for
//! every runtime. `cargo run --example tokio -- disk.qcow2`, which writes to the disk's first MiB.

use std::path::Path;
use std::sync::Arc;

use qcow::chain::OpenOptions;
use qcow::disk::queue::{Queue, Request};
use qcow::disk::{Disk, WriteOptions};

const TASKS: u8 = 16;
const BLOCK: u64 = 64 << 10;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    std::env::args_os().skip(1).try_for_each(|image| run(Path::new(&image)))
}

/// Every task writes its block, and reads it again.
pub(crate) fn run(image: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let disk = Disk::open(image, &OpenOptions::default(), WriteOptions::new())?;
    let queue = Arc::new(Queue::new(Arc::new(disk), 4)?);
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(async {
        let tasks: Vec<_> =
            (0..TASKS).map(|number| tokio::spawn(task(queue.clone(), number))).collect();
        for task in tasks {
            task.await??;
        }
        queue.submit(Request::Flush).await?;
        Ok::<_, Box<dyn std::error::Error>>(())
    })?;
    let disk = Arc::clone(queue.disk());
    drop(queue); // ends its threads
    Arc::into_inner(disk).ok_or("the disk is in use")?.close()?;
    println!("{TASKS} tasks wrote {BLOCK} bytes each");
    Ok(())
}

async fn task(queue: Arc<Queue>, number: u8) -> qcow::Result<()> {
    let at = u64::from(number).saturating_mul(BLOCK);
    let buf = queue.submit(Request::Write { at, buf: vec![number; 64 << 10] }).await?;
    let read = queue.submit(Request::Read { at, buf }).await?;
    match read.iter().all(|byte| *byte == number) {
        true => Ok(()),
        false => Err(qcow::Error::usage("what was read is not what was written")),
    }
}
