//! Serves an image for reading and writing over a unix socket until the last client goes, and says what clients did.
//! `cargo run --example serve -- disk.qcow2 disk.sock`, and then `nbdinfo 'nbd+unix:///?socket=disk.sock'`.

use std::error::Error;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use nbd::wire::Command;
use nbd::{DiskBackend, Export, Listener, Server, ServerOptions};
use qcow::chain::OpenOptions;
use qcow::disk::{Disk, WriteOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let [image, socket] = [1, 2].map(|at| std::env::args_os().nth(at).unwrap_or_default());
    let [reads, writes] = run(Path::new(&image), Listener::unix(Path::new(&socket))?)?;
    println!("{reads} reads, {writes} writes");
    Ok(())
}

/// How many reads and writes there were. When this returns, everything is on the disk.
pub(crate) fn run(image: &Path, listener: Listener) -> Result<[u64; 2], Box<dyn Error>> {
    let disk = Disk::open(image, &OpenOptions::default(), WriteOptions::new())?;
    let export = Export::new("", Box::new(DiskBackend::new(disk)));
    let done = Arc::clone(export.stats());
    let server = Server::new(vec![export], &ServerOptions::new().exit_after_last(true))?;
    // A program would end the server earlier by writing to the other end, from a handler of signals for instance.
    let (until, _end) = UnixStream::pair()?;
    server.run(&[listener], &until)?;
    server.close()?;
    let [reads, writes] = [Command::Read, Command::Write].map(|command| done.of(command));
    Ok([reads.requests, writes.requests])
}
