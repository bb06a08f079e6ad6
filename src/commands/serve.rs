//! `qcowtool serve`: disks over NBD, until a signal comes.

mod exports;
mod http;
mod metrics;
mod sockets;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;

use clap::Args;
use nbd::{Server, ServerOptions};
use qcow::Error;
use serde::Serialize;

use crate::args::{Common, PartArgs, SourceArgs, exit_codes};
use crate::failure::Failure;
use crate::listen::parse_listen;
use crate::output::{OutputFormat, eprint_line, print, print_json, warn_line};
use crate::sandbox::Plan;
use crate::session::Session;
use crate::signals::Watch;

use exports::Exports;
use http::TextServer;
use sockets::Sockets;

/// Help heading of the options about what clients see.
const SHOWN: &str = "Exports";

/// Help heading of the options about encryption.
#[cfg(feature = "tls")]
const ENCRYPTION: &str = "Encryption";

/// Arguments of `serve`.
#[derive(Debug, Args)]
#[command(after_help = concat!(
    "Each image is an export named as its file, or NAME; a single one is also the default export. Images are opened for \
writing, with QEMU's image locks, unless --read-only, --snapshot, --alone or --force-share is given. Whoever can \
connect can read, and write what is not read-only: there are no passwords, only certificates (--tls-dir). Sockets handed over by systemd \
(LISTEN_FDS) are used too.

SIGTERM or SIGINT ends the server: requests are finished, everything is flushed, and it exits with 0; a second \
signal ends it at once. Backups with bitmaps are described in docs/serve.md.

Examples:
  qcowtool serve --read-only --socket /run/vm.sock vm.qcow2
  qcowtool serve --socket vm.sock --exit-after-last vm.qcow2 & qemu-img info 'nbd+unix:///?socket=vm.sock'
  qcowtool serve --read-only --bitmap backup-0 --socket vm.sock vm.qcow2
  qcowtool serve --read-only --snapshot before-upgrade --listen 127.0.0.1:10809 vm.qcow2

", exit_codes!(
"  0    stopped by SIGTERM, SIGINT or SIGHUP, or the last client is gone; everything is on disk
  1    refused or failed, also if something could not be flushed; one line on standard error says why")))]
pub(crate) struct Serve {
    #[command(flatten)]
    pub(crate) common: Common,

    /// Listen on a unix socket at PATH, which is made, and removed at the end; may be repeated
    #[arg(long, value_name = "PATH")]
    socket: Vec<PathBuf>,

    /// Listen on a TCP port; port 0 chooses a free one; may be repeated
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Vec<String>,

    /// Refuse writing
    #[arg(short, long, help_heading = SHOWN)]
    read_only: bool,

    /// Serve the disk as an internal snapshot has it, read-only
    #[arg(long, value_name = "ID|NAME", help_heading = SHOWN)]
    snapshot: Option<String>,

    /// Name of the export [default: the image's file name]
    #[arg(long, value_name = "NAME", help_heading = SHOWN)]
    export: Option<String>,

    /// Offer the dirty ranges of a persistent bitmap as qemu:dirty-bitmap:BITMAP; may be repeated
    #[arg(long, value_name = "BITMAP", help_heading = SHOWN)]
    bitmap: Vec<String>,

    /// Offer the depth of each range in the backing chain as qemu:allocation-depth
    #[arg(long, help_heading = SHOWN)]
    depth: bool,

    #[command(flatten)]
    source: SourceArgs,

    #[command(flatten)]
    part: PartArgs,

    /// Connections at once; more clients wait. With 1, a client is not offered several
    #[arg(long, value_name = "N", default_value_t = 64,
          value_parser = clap::value_parser!(u64).range(1..=1024))]
    max_connections: u64,

    /// Encrypt connections by TLS, and tell nothing without it: with server-cert.pem and server-key.pem in DIR, as QEMU
    /// names them
    #[cfg(feature = "tls")]
    #[arg(long, value_name = "DIR", help_heading = ENCRYPTION)]
    tls_dir: Option<PathBuf>,

    /// Let in only clients whose certificate is signed by ca-cert.pem in DIR
    #[cfg(feature = "tls")]
    #[arg(long, requires = "tls_dir", help_heading = ENCRYPTION)]
    tls_require_client: bool,

    /// End when the last client goes
    #[arg(long)]
    exit_after_last: bool,

    /// Offer metrics for Prometheus over HTTP on this loopback port, or on this address and port; port 0 chooses a free one
    #[arg(long, value_name = "[ADDRESS:]PORT", value_parser = parse_listen)]
    metrics: Option<SocketAddr>,

    /// Write the process number to FILE when clients can connect; it is removed at the end
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,

    /// The images
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<PathBuf>,
}

/// What is printed when clients can connect.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Serving {
    /// One for each export and socket.
    uris: Vec<String>,
    exports: Vec<exports::Shown>,
    /// Where the metrics are.
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics: Option<String>,
}

impl Serve {
    /// Serves until a signal comes, or the last client goes.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let watch = Watch::start()?;
        let wanted = Exports::of(&self)?.until(watch.token());
        let until = watch.readable()?;
        let sockets = Sockets::open(&self.socket, &self.listen)?;
        let metrics = self.metrics.map(TextServer::open).transpose()?;
        let options = self.options()?;
        let uris = sockets.uris(&wanted.names(), self.is_encrypted());
        let session = Session::start(&self.common, self.plan(&wanted))?;
        let exports = watch.settle(wanted.open(&session, &self.part))?;
        let shown = exports.iter().map(|(_, shown)| shown.clone()).collect::<Vec<_>>();
        let exports = exports.into_iter().map(|(export, _)| export).collect();
        let failed = |error| Error::io("could not serve", error);
        let server = Server::new(exports, &options).map_err(failed)?;
        let _pid_file = self.pid_file.as_deref().map(PidFile::write).transpose()?;
        session.all_is_open()?;
        self.tell(Serving {
            uris,
            exports: shown,
            metrics: metrics.as_ref().map(TextServer::url),
        })?;
        let ended =
            with_metrics(&server, metrics.as_ref(), || server.run(sockets.listeners(), &until))
                .map_err(failed);
        let stats = server.stats();
        let closed = server.close();
        stats.take_messages().iter().for_each(warn_line);
        if self.common.verbosity.verbose {
            let (served, errors) = (stats.served(), stats.errors());
            eprint_line(format_args!("{served} connections served, {errors} requests failed"));
        }
        ended.and(closed).map_err(Failure::from)
    }

    /// Reads certificates, which is not possible later.
    fn options(&self) -> Result<ServerOptions, Error> {
        let connections = usize::try_from(self.max_connections).unwrap_or(1);
        let options =
            ServerOptions::new().max_connections(connections).exit_after_last(self.exit_after_last);
        #[cfg(feature = "tls")]
        if let Some(directory) = &self.tls_dir {
            let tls = nbd::TlsConfig::from_directory(directory, self.tls_require_client)?;
            return Ok(options.tls(tls));
        }
        Ok(options)
    }

    fn is_encrypted(&self) -> bool {
        #[cfg(feature = "tls")]
        if self.tls_dir.is_some() {
            return true;
        }
        false
    }

    fn plan(&self, exports: &Exports) -> Plan {
        let made = self.socket.iter().chain(&self.pid_file);
        made.fold(exports.plan().serving(), |plan, path| plan.making(path))
    }

    fn tell(&self, serving: Serving) -> Result<(), Failure> {
        match self.common.format() {
            OutputFormat::Json => print_json(&serving),
            OutputFormat::Human if self.common.verbosity.quiet => Ok(()),
            OutputFormat::Human => {
                serving.uris.iter().try_for_each(|uri| print(format_args!("serving: {uri}\n")))?;
                let metrics = serving.metrics.iter();
                metrics.map(|url| format!("metrics: {url}\n")).try_for_each(print)
            }
        }
    }
}

/// Offers the metrics while `run` does its work.
fn with_metrics(
    server: &Server,
    metrics: Option<&TextServer>,
    run: impl FnOnce() -> std::io::Result<()>,
) -> std::io::Result<()> {
    let Some(metrics) = metrics else { return run() };
    thread::scope(|scope| {
        let text = || metrics::metrics(server.exports());
        thread::Builder::new()
            .name("metrics".to_owned())
            .spawn_scoped(scope, move || metrics.serve(text))?;
        let result = run();
        metrics.stop();
        result
    })
}

/// A file with this process' number, as long as it serves.
#[derive(Debug)]
struct PidFile<'a>(&'a Path);

impl<'a> PidFile<'a> {
    fn write(path: &'a Path) -> Result<Self, Error> {
        std::fs::write(path, format!("{}\n", std::process::id()))
            .map_err(|error| Error::io("could not write the process number", error).file(path))?;
        Ok(Self(path))
    }
}

impl Drop for PidFile<'_> {
    fn drop(&mut self) {
        // It is only stale.
        let _ = std::fs::remove_file(self.0);
    }
}
