//! A disk of another kind behind the server: here bytes in memory, which are lost at the end.
//! `cargo run --example own_backend -- memory.sock`, and then `nbdcopy disk.raw 'nbd+unix:///?socket=memory.sock'`.

use std::error::Error;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{PoisonError, RwLock};

use nbd::wire::Errno;
use nbd::{Backend, Context, Export, Extents, Failed, Listener, Server, ServerOptions, Zero};

fn main() -> Result<(), Box<dyn Error>> {
    let socket = std::env::args_os().nth(1).unwrap_or_default();
    let server = Server::new(vec![export(64 << 20)], &ServerOptions::new().exit_after_last(true))?;
    let (until, _end) = UnixStream::pair()?;
    server.run(&[Listener::unix(Path::new(&socket))?], &until)?;
    server.close()?;
    Ok(())
}

/// An export of this many bytes of memory.
pub(crate) fn export(size: usize) -> Export {
    Export::new("", Box::new(Memory(RwLock::new(vec![0; size]))))
}

/// The server has many threads, and checks ranges before it asks.
#[derive(Debug)]
struct Memory(RwLock<Vec<u8>>);

impl Memory {
    /// Does something to a part of the bytes.
    fn change(&self, at: u64, len: u64, change: impl FnOnce(&mut [u8])) -> Result<(), Failed> {
        let mut bytes = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let part = bytes.get_mut(at..).and_then(|rest| rest.get_mut(..len));
        change(part.ok_or_else(|| Failed::new(Errno::Invalid, "not on the disk"))?);
        Ok(())
    }
}

impl Backend for Memory {
    fn size(&self) -> u64 {
        self.0.read().unwrap_or_else(PoisonError::into_inner).len() as u64
    }

    fn can_write(&self) -> bool {
        true
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> Result<(), Failed> {
        let bytes = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let part = bytes.get(at..).and_then(|rest| rest.get(..buf.len()));
        buf.copy_from_slice(part.ok_or_else(|| Failed::new(Errno::Invalid, "not on the disk"))?);
        Ok(())
    }

    /// All of it is data, as far as this disk knows.
    fn extents(&self, _: &Context, _: u64, len: u64, found: &mut Extents) -> Result<(), Failed> {
        found.push(len, 0);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], at: u64) -> Result<(), Failed> {
        self.change(at, buf.len() as u64, |part| part.copy_from_slice(buf))
    }

    fn write_zeroes(&self, at: u64, len: u64, _: Zero) -> Result<(), Failed> {
        self.change(at, len, |part| part.fill(0))
    }

    /// Nothing is given back: what is discarded may keep its bytes.
    fn discard(&self, _: u64, _: u64) -> Result<(), Failed> {
        Ok(())
    }
}
