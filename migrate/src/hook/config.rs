//! The hook's configuration: one file of lines `key = value`.

use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use crate::{Error, Result};

/// Where it is, if not told otherwise.
pub const FILE: &str = "/etc/qcowtool/hook.conf";

/// No configuration is longer, in bytes.
pub const LONGEST: u64 = 64 << 10;

/// Seconds in which a call must be done, if not told otherwise.
pub const DEADLINE: u64 = 60;

/// No deadline may be later, in seconds.
const LATEST: u64 = 3600;

/// What stands for the address of a peer in the URI that it is asked by.
pub const PEER: &str = "{peer}";

/// What the operator wants.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// Directories below which targets may be created, and backing files are read.
    pub roots: Vec<PathBuf>,
    /// What happens to a missing target whose size is not known.
    pub unknown_size: InDoubt,
    /// What happens to an incremental copy onto an overlay whose backing file is not proven.
    pub unproven_base: InDoubt,
    /// Who may be asked about the source.
    pub ask: Option<Ask>,
    /// How long one call may take.
    pub deadline: Duration,
    /// The file that decisions are written to.
    pub log: PathBuf,
}

/// What is done where nothing proves that a copy will be right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InDoubt {
    /// The migration is refused.
    Refuse,
    /// It is left to libvirt, with a line in the log.
    Allow,
}

/// How the source is asked, and which hosts may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// The libvirt URI, with [`PEER`] in place of the address.
    pub uri: String,
    /// Addresses that may be asked: networks as an address and the bits of it that count.
    pub peers: Vec<(IpAddr, u8)>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            roots: Vec::new(),
            unknown_size: InDoubt::Refuse,
            unproven_base: InDoubt::Refuse,
            ask: None,
            deadline: Duration::from_secs(DEADLINE),
            log: PathBuf::from("/var/log/libvirt/qemu/qcowtool-hook.log"),
        }
    }
}

impl Config {
    /// Reads the text of a configuration. Comments begin with `#`; `root` and `peer` may be repeated.
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage), naming the line.
    pub fn parse(text: &str) -> Result<Self> {
        let mut config = Self::default();
        let (mut uri, mut peers) = (None, Vec::new());
        for (number, line) in (1_u32..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |what: &str| Error::usage(format!("line {number}: {what}"));
            let Some((key, value)) = line.split_once('=') else {
                return Err(wrong("is not 'key = value'"));
            };
            let (key, value) = (key.trim(), value.trim());
            match key {
                "root" => config.roots.push(
                    directory(value)
                        .ok_or_else(|| wrong("root is not an absolute path below /"))?,
                ),
                "unknown-size" => {
                    config.unknown_size =
                        doubt(value).ok_or_else(|| wrong("unknown-size is 'refuse' or 'allow'"))?
                }
                "unproven-base" => {
                    config.unproven_base =
                        doubt(value).ok_or_else(|| wrong("unproven-base is 'refuse' or 'allow'"))?
                }
                "ask" if value == "none" => uri = None,
                "ask" if value.contains(PEER) => uri = Some(value.to_owned()),
                "ask" => return Err(wrong("ask is 'none', or a libvirt URI with {peer} in it")),
                "peer" => peers.push(
                    network(value)
                        .ok_or_else(|| wrong("peer is not an address, or an address/bits"))?,
                ),
                "deadline" => {
                    config.deadline = seconds(value)
                        .ok_or_else(|| wrong("deadline is a number of seconds from 1 to 3600"))?
                }
                "log" if Path::new(value).is_absolute() => config.log = PathBuf::from(value),
                "log" => return Err(wrong("log is not an absolute path")),
                _ => return Err(wrong(&format!("there is no setting '{key}'"))),
            }
        }
        config.ask = uri.map(|uri| Ask { uri, peers });
        if config.ask.as_ref().is_some_and(|ask| ask.peers.is_empty()) {
            return Err(Error::usage("ask is set, and no peer may be asked: set peer"));
        }
        Ok(config)
    }

    /// The root that a path is below, by its name alone; the path has no `..`.
    pub fn root_of(&self, path: &Path) -> Option<&Path> {
        let plain =
            path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        let mut roots = self.roots.iter().filter(|root| path.starts_with(root) && path != **root);
        roots.next().filter(|_| plain).map(PathBuf::as_path)
    }

    /// Lines of a configuration for these roots.
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage) if one of them is no directory's absolute path below `/`.
    pub fn root_lines(roots: &[PathBuf]) -> Result<String> {
        let line = |root: &PathBuf| {
            let text = root.to_str().filter(|text| !text.contains(['\n', '\r']));
            let text = text.filter(|text| directory(text.trim()).is_some_and(|it| it == *root));
            text.map(|text| format!("root = {text}\n")).ok_or_else(|| {
                Error::usage(format!("'{}' is not an absolute path below /", root.display()))
            })
        };
        roots.iter().map(line).collect()
    }
}

impl Ask {
    /// Whether this address may be asked.
    pub fn allows(&self, address: IpAddr) -> bool {
        self.peers.iter().any(|(network, bits)| match (network, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let shift = 32_u32.saturating_sub((*bits).into());
                let significant = |it: u32| it.checked_shr(shift).unwrap_or(0);
                significant((*network).into()) == significant(address.into())
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let shift = 128_u32.saturating_sub((*bits).into());
                let significant = |it: u128| it.checked_shr(shift).unwrap_or(0);
                significant((*network).into()) == significant(address.into())
            }
            _ => false,
        })
    }

    /// The URI of a host.
    pub fn uri_of(&self, address: IpAddr) -> String {
        let text = match address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        };
        self.uri.replace(PEER, &text)
    }
}

/// An absolute path that is not `/` and has no `.` or `..`.
fn directory(value: &str) -> Option<PathBuf> {
    let path = Path::new(value);
    let plain =
        path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    (path.is_absolute() && plain && path.components().count() > 1)
        .then(|| path.components().collect())
}

fn doubt(value: &str) -> Option<InDoubt> {
    match value {
        "refuse" => Some(InDoubt::Refuse),
        "allow" => Some(InDoubt::Allow),
        _ => None,
    }
}

fn seconds(value: &str) -> Option<Duration> {
    value.parse().ok().filter(|seconds| (1..=LATEST).contains(seconds)).map(Duration::from_secs)
}

fn network(value: &str) -> Option<(IpAddr, u8)> {
    let (address, bits) = match value.split_once('/') {
        Some((address, bits)) => (address, Some(bits.parse::<u8>().ok()?)),
        None => (value, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let bits = bits.unwrap_or(most);
    (bits <= most).then_some((address, bits))
}
