//! An NBD server for QCOW2 and raw disk images, to be embedded: it takes disks of the crate `qcow`, or any that
//! implements [`Backend`], and serves them over unix sockets, TCP, or a stream of yours.
//!
//! - [`wire`]: the protocol's bytes, pure, for servers and clients
//! - [`handshake`]: the negotiation, an option in and replies out, without I/O
//! - [`Export`]: a disk under a name, with the metadata contexts that it offers
//! - [`Server`]: listeners, a thread per client, a pool that all share, bounds for all of it
//!
//! What clients get: fixed newstyle negotiation, structured replies and extended headers, `base:allocation`,
//! `qemu:allocation-depth` and `qemu:dirty-bitmap:NAME`, holes in place of zeros, replies out of order, several
//! connections of one client; on disks that can be written to, FUA, trimming, and zeroing with and without holes. There is no
//! asynchronous runtime: requests that take no time are answered by the thread that received them, the others by a pool.
//!
//! With the feature `tls`, connections are encrypted by rustls (`NBD_OPT_STARTTLS`), and those that are not are refused.
//!
//! A server holds at most [`payload`](ServerOptions::payload) bytes of requests and replies, and about 1.5 MiB for each
//! connection besides.

pub mod handshake;
pub mod wire;

mod backend;
mod budget;
mod connection;
mod context;
mod export;
mod link;
mod listener;
mod pool;
mod server;
mod stats;
#[cfg(feature = "tls")]
mod tls;
mod transport;

pub use backend::{Backend, ChainBackend, DiskBackend, Failed, Zero};
pub use context::{Context, Extents, MAX_EXTENTS, STATE_DIRTY, STATE_HOLE, STATE_ZERO};
pub use export::Export;
pub use listener::Listener;
pub use server::{Server, ServerOptions};
pub use stats::{Count, ExportStats, LATENCY_BOUNDS, Stats};
#[cfg(feature = "tls")]
pub use tls::TlsConfig;
pub use transport::{Socket, Transport, Wait};

/// The program in the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
