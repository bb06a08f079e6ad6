//! Asking the source for the sizes of a guest's disks: each host that is connected to this host's libvirt and may be
//! asked, by a process of its own that can be ended.

use std::io::Read as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use migrate::hook::annotation::{Annotation, Below, KnownDisk};
use migrate::hook::{config, peers};
use migrate::{Error, Result};

use crate::failure::Failure;
use crate::libvirt::connect_read_only;
use crate::output::print_json;

/// No answer is longer, in bytes.
const LONGEST: u64 = 1 << 20;

/// One host has this long to answer.
const PATIENCE: Duration = Duration::from_secs(10);

const TICK: Duration = Duration::from_millis(20);

/// What one host is asked.
#[derive(Debug, Args)]
pub(super) struct Ask {
    /// libvirt URI of the host
    #[arg(long, value_name = "URI")]
    connect: String,

    /// UUID of the guest
    #[arg(value_name = "UUID")]
    uuid: String,

    /// Names of its disks
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
}

impl Ask {
    /// Asks, and prints what is known.
    pub(super) fn run(self) -> Result<(), Failure> {
        let host = connect_read_only(&self.connect)?;
        let size = |target: &String| {
            let virtual_size = host.hypervisor.capacity(&self.uuid, target)?;
            let (target, below) = (target.clone(), Below::Unknown);
            Ok(KnownDisk { target, virtual_size, cluster_size: None, extended_l2: false, below })
        };
        let disks: Result<Vec<_>> = self.targets.iter().map(size).collect();
        print_json(&Annotation { disks: disks? })
    }
}

/// A question to the source.
pub(super) struct Question {
    /// Who may be asked, and how.
    pub(super) peers: config::Ask,
    /// When all of the call must be done; half of it is for this.
    pub(super) deadline: Duration,
}

impl Question {
    /// Asks one connected host after the other, until one knows the guest.
    pub(super) fn put(&self, uuid: &str, targets: &[String]) -> Result<Annotation> {
        let end = Instant::now().checked_add(self.deadline.checked_div(2).unwrap_or_default());
        let mut failed = None;
        for address in connected().into_iter().filter(|address| self.peers.allows(*address)) {
            let until = Instant::now().checked_add(PATIENCE).min(end);
            match one(&self.peers.uri_of(address), uuid, targets, until) {
                Ok(annotation) => return Ok(annotation),
                Err(error) => failed = Some(error.on(&address.to_string())),
            }
        }
        Err(failed.unwrap_or_else(|| {
            Error::environment("no host that may be asked ('peer') is connected to this libvirt")
        }))
    }
}

fn connected() -> Vec<IpAddr> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let read = |path: &&str| std::fs::read_to_string(path).unwrap_or_default();
    let mut found: Vec<_> = tables.iter().flat_map(|path| peers::connected(&read(path))).collect();
    found.sort();
    found.dedup();
    found
}

/// Asks one host by a process that is ended when its time is over.
fn one(uri: &str, uuid: &str, targets: &[String], until: Option<Instant>) -> Result<Annotation> {
    let failed = |error: std::io::Error| Error::io("could not start qcowtool to ask", error);
    let program = std::env::current_exe().map_err(failed)?;
    let mut child = Command::new(program)
        .args(["hook", "ask", "--connect", uri, "--", uuid])
        .args(targets)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let status = loop {
        match child.try_wait().map_err(failed)? {
            Some(status) => break status,
            None if until.is_some_and(|until| Instant::now() < until) => std::thread::sleep(TICK),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(Error::environment(format!("{uri} did not answer in time")));
            }
        }
    };
    let mut text = String::new();
    let read = match status.success() {
        true => child.stdout.take().map(|it| it.take(LONGEST).read_to_string(&mut text)),
        false => child.stderr.take().map(|it| it.take(LONGEST).read_to_string(&mut text)),
    };
    read.transpose().map_err(failed)?;
    if !status.success() {
        return Err(Error::environment(text.trim().to_owned()));
    }
    serde_json::from_str(&text).map_err(|error| Error::io(format!("the answer of {uri}"), error))
}
