//! `qcowtool monitor`: the audit, again and again, as metrics and as a page.

mod annotator;
mod board;
mod pace;
mod page;
mod scanner;
mod server;
mod watching;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use clap::Args;
use migrate::audit::Options;
use qcow::Error;
use serde::Serialize;

use crate::args::{OutputArgs, exit_codes};
use crate::commands::audit::hosts;
use crate::commands::migration::State;
use crate::failure::Failure;
use crate::listen::parse_listen;
use crate::output::{OutputFormat, eprint_line, print, print_json};
use crate::signals::Watch;

use self::annotator::Annotator;
use self::board::Board;
use self::scanner::Scanner;
use self::server::{Server, Site};
use self::watching::Bell;

/// A scan that hangs, on a host that does not answer, does not keep the program.
const PARTING: Duration = Duration::from_secs(5);

/// Not everything about the guests' disks could be found out and written.
const INCOMPLETE: u8 = 6;

/// Arguments of `monitor`.
#[derive(Debug, Args)]
#[command(
    after_help = concat!(
    "Audits as 'qcowtool audit' does, after file events in the examined directories and at every interval; \
writes of running guests are not such events. Nothing is changed, except with --annotate the guests' metadata. Only \
directories in PATH and those of the pools and domains of --connect are reported.

Over HTTP: / (a page), /metrics, /audit.json, /graph.svg, /health; GET and HEAD only. Every client that can \
connect can read it: listen on an address other than loopback only if that is intended. The metrics, rules for \
alerts and a dashboard are in docs/monitor.md.

Examples:
  qcowtool monitor --listen 9177 /var/lib/libvirt/images
  qcowtool monitor --listen 127.0.0.1:9177 --connect qemu:///system --interval 300
  qcowtool monitor --textfile /var/lib/node_exporter/qcowtool.prom --connect qemu:///system
  qcowtool monitor --once --textfile /var/lib/node_exporter/qcowtool.prom /srv/images
  qcowtool monitor --listen 9177 --connect qemu:///system --annotate

", exit_codes!(
"  0    stopped by SIGINT (Ctrl-C), SIGTERM or SIGHUP; with --once: written
  1    wrong usage, or it could not listen; with --once: nothing could be looked at, or not written
  6    with --once --annotate: not everything about the guests' disks could be found out and written")))]
pub(crate) struct Monitor {
    #[command(flatten)]
    pub(crate) output: OutputArgs,

    /// Serve HTTP on this loopback port, or on this address and port; port 0 chooses a free one
    #[arg(long, value_name = "[ADDRESS:]PORT", value_parser = parse_listen,
          required_unless_present = "textfile")]
    listen: Option<SocketAddr>,

    /// Also accept requests whose Host header is NAME, besides IP addresses (may be repeated)
    #[arg(long, value_name = "NAME", requires = "listen")]
    allow_host: Vec<String>,

    /// Write the metrics to this file after each scan, for the node exporter's textfile collector
    #[arg(long, value_name = "FILE")]
    textfile: Option<PathBuf>,

    /// Scan at least every SECONDS, even without file events
    #[arg(long, value_name = "SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    interval: u64,

    /// Scan once, write the textfile, and exit
    #[arg(long, requires = "textfile", conflicts_with = "listen")]
    once: bool,

    /// Report chains with more images than this
    #[arg(long, value_name = "N", default_value_t = 16,
          value_parser = clap::value_parser!(u64).range(1..=200))]
    max_depth: u64,

    /// Also examine the pools and domains of this libvirt URI (may be repeated)
    #[arg(long, value_name = "URI")]
    connect: Vec<String>,

    /// Keep exact sizes and digests in the metadata of the guests of --connect, as 'qcowtool annotate' writes them
    #[arg(long, requires = "connect")]
    annotate: bool,

    #[command(flatten)]
    state: State,

    /// Directories, searched recursively, and images
    #[arg(value_name = "PATH", required_unless_present = "connect")]
    paths: Vec<PathBuf>,
}

/// What is printed when it listens.
#[derive(Debug, Serialize)]
struct Listening {
    listening: String,
}

/// Why it ends.
enum End {
    /// A signal.
    Asked,
    /// The scanner cannot continue.
    Scanner(std::io::Result<()>),
}

impl Monitor {
    /// Looks until it is stopped.
    pub(crate) fn run(self) -> Result<(), Failure> {
        // Where this program has no libvirt, the one that has takes its place here, before anything is begun.
        drop(hosts(&self.connect));
        let bell = Arc::new(Bell::new().map_err(failed)?);
        let (ended, end) = channel();
        let watch = Watch::start_telling({
            let (bell, ended) = (Arc::clone(&bell), ended.clone());
            move || {
                bell.ring();
                let _ = ended.send(End::Asked);
            }
        })?;
        let interval = Duration::from_secs(self.interval);
        let board = Arc::new(Board::new(interval));
        let mut annotator = self
            .annotate
            .then(|| {
                // Without digests that are kept, each round would read all backing files again.
                let digests = self.state.digests();
                migrate::journal::make_directory(&digests)?;
                let (uris, board) = (self.connect.clone(), Arc::clone(&board));
                let cancel = watch.token().clone();
                Ok::<_, migrate::Error>(Annotator { uris, digests, interval, board, cancel })
            })
            .transpose()?;
        let annotates_once = annotator.take_if(|_| self.once);
        let scanner = Scanner {
            paths: self.paths,
            uris: self.connect,
            options: Options::default().deep(usize::try_from(self.max_depth).unwrap_or(usize::MAX)),
            interval,
            textfile: self.textfile,
            serves: self.listen.is_some(),
            board: Arc::clone(&board),
            bell,
            cancel: watch.token().clone(),
            annotator: annotator.map(Annotator::start).transpose().map_err(failed)?,
        };
        if self.once {
            let complete = annotates_once.is_none_or(|annotator| annotator.once());
            watch.settle_migration(scanner.once())?;
            return if complete { Ok(()) } else { Err(Failure::Verdict(INCOMPLETE)) };
        }
        let names = self.allow_host.iter().map(|name| name.to_ascii_lowercase()).collect();
        let site = Site { board, names };
        let server =
            self.listen.map(|address| listen(address, site, self.output.output)).transpose()?;
        start(scanner, ended)?;
        let reason = end.recv();
        if let Some(server) = server {
            server.stop();
        }
        match reason {
            Ok(End::Scanner(Err(error))) => Err(failed(error).into()),
            // Waits for the scan that goes on, so that a textfile is not left half made.
            Ok(End::Asked) => {
                let _ = end.recv_timeout(PARTING);
                Ok(())
            }
            Ok(End::Scanner(Ok(()))) | Err(_) => Ok(()),
        }
    }
}

fn start(scanner: Scanner, ended: Sender<End>) -> Result<(), Failure> {
    let run = move || {
        let result = scanner.run();
        let _ = ended.send(End::Scanner(result));
    };
    thread::Builder::new().name("scanner".to_owned()).spawn(run).map_err(failed)?;
    Ok(())
}

fn listen(address: SocketAddr, site: Site, format: OutputFormat) -> Result<Server, Failure> {
    let cannot = |error| {
        Error::io(format!("could not listen at {address}"), error)
            .hint("choose another port, or 0 for one that is free")
    };
    let listener = TcpListener::bind(address).map_err(cannot)?;
    let bound = listener.local_addr().map_err(cannot)?;
    if !bound.ip().is_loopback() {
        eprint_line(format_args!(
            "qcowtool: warning: any client that reaches {bound} can read the names of images and domains; there is \
             no password and no encryption"
        ));
    }
    let server = Server::start(listener, site).map_err(cannot)?;
    let url = format!("http://{bound}/");
    match format {
        OutputFormat::Json => print_json(&Listening { listening: url })?,
        OutputFormat::Human => print(format_args!("listening at {url}\n"))?,
    }
    Ok(server)
}

fn failed(error: std::io::Error) -> Error {
    Error::io("could not start to monitor", error)
}
