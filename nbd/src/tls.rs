//! Encryption of a stream, with certificates under the names that QEMU gives them.

use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};

use crate::budget::lock;
use crate::transport::{Transport, Wait};

/// Bytes that are encrypted at once.
const PIECE: usize = 64 << 10;

/// The server's certificate, and whom it lets in.
#[derive(Clone)]
pub struct TlsConfig(Arc<ServerConfig>);

impl fmt::Debug for TlsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConfig").finish_non_exhaustive()
    }
}

impl TlsConfig {
    /// Reads `server-cert.pem` and `server-key.pem` in this directory, and, if clients have to show a certificate of
    /// theirs, `ca-cert.pem`, which must have signed it. TLS 1.2 and 1.3; there are no pre-shared keys.
    ///
    /// # Errors
    /// [`Io`](qcow::ErrorKind::Io) or [`NotFound`](qcow::ErrorKind::NotFound) if a file cannot be read,
    /// [`Usage`](qcow::ErrorKind::Usage) if it is not what its name says.
    pub fn from_directory(directory: &Path, require_client: bool) -> qcow::Result<Self> {
        let chain = certificates(&directory.join("server-cert.pem"))?;
        let path = directory.join("server-key.pem");
        let key = PrivateKeyDer::from_pem_slice(&read(&path)?);
        let key = key.map_err(|error| wrong(&path, "a private key", &error))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| qcow::Error::internal(error.to_string()))?;
        let builder = if require_client {
            let path = directory.join("ca-cert.pem");
            let mut roots = RootCertStore::empty();
            for certificate in certificates(&path)? {
                let added = roots.add(certificate);
                added.map_err(|error| wrong(&path, "the certificate of an authority", &error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            let verifier = verifier.build();
            builder.with_client_cert_verifier(
                verifier
                    .map_err(|error| wrong(&path, "the certificate of an authority", &error))?,
            )
        } else {
            builder.with_no_client_auth()
        };
        let config = builder.with_single_cert(chain, key).map_err(|error| {
            wrong(&directory.join("server-cert.pem"), "the certificate of the key", &error)
        })?;
        Ok(Self(Arc::new(config)))
    }
}

fn certificates(path: &Path) -> qcow::Result<Vec<CertificateDer<'static>>> {
    let pem = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|error| wrong(path, "a certificate", &error))?;
    if found.is_empty() {
        return Err(qcow::Error::usage("there is no certificate in it").file(path));
    }
    Ok(found)
}

fn read(path: &Path) -> qcow::Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| qcow::Error::io("could not read", error).file(path))
}

fn wrong(path: &Path, what: &str, error: &dyn fmt::Display) -> qcow::Error {
    qcow::Error::usage(format!("it is not {what}: {error}")).file(path)
}

/// A stream that is encrypted. The connection's state has one lock; nobody waits for the other side while holding it.
pub(crate) struct Tls {
    inner: Arc<dyn Transport>,
    state: Mutex<State>,
    received: Mutex<Received>,
}

struct State {
    connection: ServerConnection,
    /// Encrypted and not sent yet.
    pending: Vec<u8>,
}

/// Encrypted and not looked at yet.
struct Received {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl Tls {
    /// Encrypts a stream whose client does so too, from now on.
    ///
    /// # Errors
    /// If they do not agree until `deadline`.
    pub(crate) fn accept(
        inner: Arc<dyn Transport>,
        config: &TlsConfig,
        deadline: Instant,
    ) -> io::Result<Self> {
        let mut connection =
            ServerConnection::new(Arc::clone(&config.0)).map_err(io::Error::other)?;
        connection.set_buffer_limit(None);
        let state = Mutex::new(State { connection, pending: Vec::new() });
        let received = Mutex::new(Received { bytes: vec![0; PIECE], start: 0, end: 0 });
        let tls = Self { inner, state, received };
        loop {
            let shaken = !lock(&tls.state).connection.is_handshaking();
            tls.flush(Wait::Until(deadline))?;
            if shaken {
                return Ok(tls);
            }
            let taken = tls.take(Some(deadline));
            // Tells the client what it does wrong.
            tls.flush(Wait::Until(deadline))?;
            if taken? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Receives and decrypts something; 0 at the end of the stream.
    fn take(&self, deadline: Option<Instant>) -> io::Result<usize> {
        let mut received = lock(&self.received);
        if received.start == received.end {
            let len = self.inner.receive(&mut received.bytes, deadline)?;
            (received.start, received.end) = (0, len);
        }
        let mut rest = received.bytes.get(received.start..received.end).unwrap_or_default();
        let mut state = lock(&self.state);
        let taken = state.connection.read_tls(&mut rest)?;
        received.start = received.start.saturating_add(taken);
        let processed = state.connection.process_new_packets();
        processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(taken)
    }
}

impl State {
    /// Sends what is encrypted, without waiting. Whether all of it is sent.
    fn send(&mut self, inner: &dyn Transport) -> io::Result<bool> {
        while self.connection.wants_write() {
            self.connection.write_tls(&mut self.pending)?;
        }
        let mut sent = 0;
        while let Some(rest) = self.pending.get(sent..).filter(|rest| !rest.is_empty()) {
            match inner.send(&[IoSlice::new(rest)], Wait::No) {
                Ok(len) => sent = len.saturating_add(sent),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        self.pending.drain(..sent.min(self.pending.len()));
        Ok(self.pending.is_empty())
    }
}

impl Transport for Tls {
    fn receive(&self, buf: &mut [u8], deadline: Option<Instant>) -> io::Result<usize> {
        loop {
            match lock(&self.state).connection.reader().read(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
            if self.take(deadline)? == 0 {
                return Ok(0);
            }
            // An answer of the encryption itself, to a change of keys for instance; who sends next sends it otherwise.
            lock(&self.state).send(&*self.inner)?;
        }
    }

    fn send(&self, bufs: &[IoSlice<'_>], wait: Wait) -> io::Result<usize> {
        loop {
            let mut state = lock(&self.state);
            if state.send(&*self.inner)? {
                let mut taken: usize = 0;
                for buf in bufs {
                    let room = PIECE.saturating_sub(taken).min(buf.len());
                    let piece = buf.get(..room).unwrap_or_default();
                    taken = taken.saturating_add(state.connection.writer().write(piece)?);
                }
                // What is left is sent by the next one, or by `flush`.
                state.send(&*self.inner)?;
                return Ok(taken);
            }
            drop(state);
            self.inner.wait_to_send(wait)?;
        }
    }

    fn flush(&self, wait: Wait) -> io::Result<()> {
        while !lock(&self.state).send(&*self.inner)? {
            self.inner.wait_to_send(wait)?;
        }
        Ok(())
    }

    fn wait_to_send(&self, wait: Wait) -> io::Result<()> {
        self.inner.wait_to_send(wait)
    }

    fn stop_receiving(&self) {
        self.inner.stop_receiving();
    }

    fn cut(&self) {
        let mut state = lock(&self.state);
        state.connection.send_close_notify();
        let _ = state.send(&*self.inner);
        self.inner.cut();
    }

    fn peer_is_gone(&self) -> bool {
        self.inner.peer_is_gone()
    }
}
