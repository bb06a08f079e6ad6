//! The server: listens, starts a thread for each client, and ends in an orderly way.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;

use crate::budget::{Budget, lock};
use crate::connection::{self, Common};
use crate::export::Export;
use crate::link::Link;
use crate::listener::Listener;
use crate::pool::Pool;
use crate::stats::Stats;
use crate::transport::{Transport, timespec};

/// How long accepting rests when the system has no descriptor or no thread left.
const REST: Duration = Duration::from_millis(100);

/// Bounds of a server.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ServerOptions {
    max_connections: usize,
    handshake: Duration,
    grace: Duration,
    threads: usize,
    payload: usize,
    exit_after_last: bool,
    #[cfg(feature = "tls")]
    tls: Option<crate::tls::TlsConfig>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            max_connections: 64,
            handshake: Duration::from_secs(10),
            grace: Duration::from_secs(10),
            threads: 16,
            payload: 64 << 20,
            exit_after_last: false,
            #[cfg(feature = "tls")]
            tls: None,
        }
    }
}

impl ServerOptions {
    /// The default.
    pub fn new() -> Self {
        Self::default()
    }

    /// Connections at once, 64 unless said otherwise; more clients wait. With one, exports do not offer
    /// several connections.
    #[must_use]
    pub fn max_connections(self, count: usize) -> Self {
        Self { max_connections: count.max(1), ..self }
    }

    /// How long a client may take before its first request, 10 s unless said otherwise.
    #[must_use]
    pub fn handshake_timeout(self, handshake: Duration) -> Self {
        Self { handshake, ..self }
    }

    /// How long clients have to read their replies when the server ends, 10 s unless said otherwise.
    #[must_use]
    pub fn grace(self, grace: Duration) -> Self {
        Self { grace, ..self }
    }

    /// Threads for requests that may take long, all connections together: 16 unless said otherwise.
    #[must_use]
    pub fn threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    /// Bytes of payloads that are in memory at once, all connections together: 64 MiB unless said otherwise, and at least
    /// that of the longest request, 32 MiB. Each connection may have 1 MiB besides.
    #[must_use]
    pub fn payload(self, bytes: usize) -> Self {
        Self { payload: bytes.max(32 << 20), ..self }
    }

    /// End when the last client goes.
    #[must_use]
    pub fn exit_after_last(self, exit_after_last: bool) -> Self {
        Self { exit_after_last, ..self }
    }

    /// Encrypt connections, and tell nothing to those that are not.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(self, tls: crate::tls::TlsConfig) -> Self {
        Self { tls: Some(tls), ..self }
    }
}

/// A server of exports.
///
/// ```no_run
/// use std::path::Path;
/// use nbd::{ChainBackend, Export, Listener, Server, ServerOptions};
/// use qcow::chain::{Chain, OpenOptions};
///
/// let chain = Chain::open(Path::new("disk.qcow2"), &OpenOptions::default())?;
/// let export = Export::new("disk.qcow2", Box::new(ChainBackend::new(chain)));
/// let server = Server::new(vec![export], &ServerOptions::new())?;
/// // It ends when something can be read here.
/// let (end, until) = std::os::unix::net::UnixStream::pair()?;
/// server.run(&[Listener::unix(Path::new("/run/disk.sock"))?], &until)?;
/// server.close()?;
/// # drop(end);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Server {
    common: Arc<Common>,
    options: ServerOptions,
    clients: Arc<Clients>,
}

/// The connections that are there.
#[derive(Debug)]
struct Clients {
    list: Mutex<Vec<(Arc<Link>, JoinHandle<()>)>>,
    /// Something is written here when a connection ends.
    wake: OwnedFd,
}

impl Server {
    /// A server of these exports. Two of one name: the first is found.
    ///
    /// # Errors
    /// If the system has no descriptor left.
    pub fn new(exports: Vec<Export>, options: &ServerOptions) -> io::Result<Self> {
        let alone = options.max_connections == 1;
        let multi = |export: Export| if alone { export.multi_conn(false) } else { export };
        let exports: Vec<Export> = exports.into_iter().map(multi).collect();
        let stats = exports.iter().map(|export| Arc::clone(export.stats())).collect();
        let common = Common {
            exports,
            budget: Arc::new(Budget::new(options.payload)),
            pool: Pool::new(options.threads),
            stats: Arc::new(Stats::new(stats)),
            handshake: options.handshake,
            #[cfg(feature = "tls")]
            tls: options.tls.clone(),
        };
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let clients = Arc::new(Clients { list: Mutex::default(), wake });
        Ok(Self { common: Arc::new(common), options: options.clone(), clients })
    }

    /// What it has done so far.
    pub fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.common.stats)
    }

    /// What it serves.
    pub fn exports(&self) -> &[Export] {
        &self.common.exports
    }

    /// Serves one client, in this thread, until it goes.
    pub fn serve(&self, transport: Arc<dyn Transport>) {
        connection::serve(&self.common, &Arc::new(Link::new(transport)));
    }

    /// Serves those who connect to `listeners`, until something can be read from `until` or, if the options say so, the
    /// last client goes. Then no new clients are let in, what was asked for is done and answered, and all connections
    /// are ended.
    ///
    /// # Errors
    /// What the system says about the listeners.
    pub fn run(&self, listeners: &[Listener], until: impl AsFd) -> io::Result<()> {
        listeners.iter().try_for_each(Listener::ready)?;
        let result = self.accept(listeners, &until);
        self.end();
        result
    }

    /// Makes everything durable, and gives up the disks. To be called when [`run`](Self::run) has returned.
    ///
    /// # Errors
    /// The first disk that could not be closed in an orderly way; all are closed. [`Usage`](qcow::ErrorKind::Usage) if a
    /// client is still being served.
    pub fn close(self) -> qcow::Result<()> {
        // What has answered its client may still hold the disk.
        self.common.pool.finish();
        let common = Arc::into_inner(self.common)
            .ok_or_else(|| qcow::Error::usage("a client is still being served"))?;
        let mut result = Ok(());
        for export in common.exports {
            let closed = export.into_backend().close();
            result = result.and(closed);
        }
        result
    }

    fn accept(&self, listeners: &[Listener], until: &impl AsFd) -> io::Result<()> {
        loop {
            let count = self.reap();
            if self.options.exit_after_last && count == 0 && self.common.stats.served() > 0 {
                return Ok(());
            }
            let open = if count < self.options.max_connections { listeners } else { &[] };
            let mut polled = vec![
                PollFd::new(until, PollFlags::IN),
                PollFd::new(&self.clients.wake, PollFlags::IN),
            ];
            polled.extend(open.iter().map(|listener| PollFd::new(listener, PollFlags::IN)));
            match poll(&mut polled, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
            if ready.first() == Some(&true) {
                return Ok(());
            }
            let _ = rustix::io::read(&self.clients.wake, &mut [0; 8][..]);
            for (listener, _) in open.iter().zip(ready.iter().skip(2)).filter(|(_, ready)| **ready)
            {
                match listener.accept() {
                    Ok(transport) => self.start(transport),
                    Err(error) if is_passing(&error) => {}
                    // No descriptors, no memory: those who are there may go.
                    Err(_) => rest(until),
                }
            }
        }
    }

    /// Starts a thread for a client; without a thread, the client is sent away.
    fn start(&self, transport: Arc<dyn Transport>) {
        let link = Arc::new(Link::new(transport));
        let mut list = lock(&self.clients.list);
        let (common, clients) = (Arc::clone(&self.common), Arc::clone(&self.clients));
        let started = {
            let link = Arc::clone(&link);
            thread::Builder::new().name("nbd-client".to_owned()).spawn(move || {
                connection::serve(&common, &link);
                drop(common);
                // Any number does. If there is no room for it, the server is awake already.
                let _ = rustix::io::write(&clients.wake, &[1; 8]);
            })
        };
        match started {
            Ok(thread) => list.push((link, thread)),
            Err(_) => link.cut(),
        }
    }

    /// Forgets connections that have ended. How many are left.
    fn reap(&self) -> usize {
        let mut list = lock(&self.clients.list);
        let mut left = Vec::with_capacity(list.len());
        for (link, thread) in list.drain(..) {
            if link.is_finished() {
                let _ = thread.join();
            } else {
                left.push((link, thread));
            }
        }
        *list = left;
        list.len()
    }

    /// Ends all connections: what was asked for is answered, if the client takes it in time.
    fn end(&self) {
        let clients: Vec<_> = lock(&self.clients.list).drain(..).collect();
        clients.iter().for_each(|(link, _)| link.stop());
        let now = Instant::now();
        let deadline = now.checked_add(self.options.grace).unwrap_or(now);
        for (link, _) in &clients {
            link.wait_until_finished(deadline);
        }
        for (link, thread) in clients {
            link.cut();
            let _ = thread.join();
        }
    }
}

/// Whether an error of accepting is about one client only.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind;
    let kinds = [ErrorKind::WouldBlock, ErrorKind::Interrupted, ErrorKind::ConnectionAborted];
    kinds.contains(&error.kind())
}

fn rest(until: &impl AsFd) {
    let mut polled = [PollFd::new(until, PollFlags::IN)];
    let _ = poll(&mut polled, Some(&timespec(REST)));
}
