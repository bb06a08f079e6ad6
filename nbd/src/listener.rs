//! Sockets that clients connect to.

use std::io;
use std::net::{TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;

use crate::transport::{Socket, Transport};

/// A socket that clients connect to.
#[derive(Debug)]
pub struct Listener {
    socket: Kind,
    /// What is removed at the end.
    path: Option<PathBuf>,
}

#[derive(Debug)]
enum Kind {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    /// A unix socket at `path`, which is removed when this is dropped. A socket that is there and that nobody listens to
    /// any more is replaced; anything else is not. Who may connect, its directory and the umask say.
    ///
    /// # Errors
    /// [`AddrInUse`](io::ErrorKind::AddrInUse) if something is there, or what the system says.
    pub fn unix(path: &Path) -> io::Result<Self> {
        let bind = || UnixListener::bind(path);
        let socket = match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_left_over(path) => {
                std::fs::remove_file(path)?;
                bind()?
            }
            result => result?,
        };
        Ok(Self { socket: Kind::Unix(socket), path: Some(path.to_owned()) })
    }

    /// A TCP port.
    ///
    /// # Errors
    /// What the system says.
    pub fn tcp(address: impl ToSocketAddrs) -> io::Result<Self> {
        Ok(TcpListener::bind(address)?.into())
    }

    /// How a client names it: a path, or an address and a port.
    pub fn name(&self) -> String {
        match &self.socket {
            Kind::Tcp(socket) => {
                socket.local_addr().map_or_else(|_| String::new(), |address| address.to_string())
            }
            Kind::Unix(socket) => {
                let address = socket.local_addr().ok();
                let path = address.as_ref().and_then(|address| address.as_pathname());
                path.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default()
            }
        }
    }

    /// Whether it is a unix socket.
    pub fn is_unix(&self) -> bool {
        matches!(self.socket, Kind::Unix(_))
    }

    /// Never waits for a client that has gone again.
    pub(crate) fn ready(&self) -> io::Result<()> {
        let flags = rustix::fs::fcntl_getfl(self)?;
        Ok(rustix::fs::fcntl_setfl(self, flags | OFlags::NONBLOCK)?)
    }

    pub(crate) fn accept(&self) -> io::Result<Arc<dyn Transport>> {
        Ok(match &self.socket {
            Kind::Unix(socket) => Arc::new(Socket::from(socket.accept()?.0)),
            Kind::Tcp(socket) => Arc::new(Socket::from(socket.accept()?.0)),
        })
    }
}

/// Whether a socket is there that nobody listens to.
fn is_left_over(path: &Path) -> bool {
    let socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    socket && UnixStream::connect(path).is_err_and(refused)
}

impl From<UnixListener> for Listener {
    /// A socket that somebody else has made, and removes.
    fn from(socket: UnixListener) -> Self {
        Self { socket: Kind::Unix(socket), path: None }
    }
}

impl From<TcpListener> for Listener {
    fn from(socket: TcpListener) -> Self {
        Self { socket: Kind::Tcp(socket), path: None }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Kind::Unix(socket) => socket.as_fd(),
            Kind::Tcp(socket) => socket.as_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Where it may not be removed, the next one replaces it.
            let _ = std::fs::remove_file(path);
        }
    }
}
