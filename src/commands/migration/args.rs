//! Arguments that say which guest goes where, and what is wanted and allowed.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use migrate::driver::Directory;
use migrate::facts::{DomainState, Route};
use migrate::hosts::{Connections, DIRECTORY};
use migrate::plan::{Compression, PathMap, Policy, Style, Tuning, Verify};
use migrate::{Error, Result};

use crate::libvirt::connect;
use crate::size;

/// Where guests go, and how that host's files are reached.
#[derive(Debug, Args)]
pub(super) struct DestinationArgs {
    /// libvirt URI of the destination, as both hosts reach it, or dir:DIRECTORY
    #[arg(long, value_name = "URI")]
    to: String,

    /// Access the destination's files through this command and the qcowtool there, such as 'ssh host-b'
    /// [default: through libvirt's storage API alone]
    #[arg(short = 'e', long, value_name = "COMMAND")]
    rsh: Option<String>,

    /// Path of qcowtool on the destination, for --rsh
    #[arg(long, value_name = "PROGRAM", default_value = "qcowtool", requires = "rsh")]
    rsh_program: String,
}

/// Which guest goes where.
#[derive(Debug, Args)]
pub(crate) struct RouteArgs {
    /// Name or UUID of the guest
    #[arg(value_name = "DOMAIN", required_unless_present = "domain_xml")]
    domain: Option<String>,

    /// libvirt URI of the guest's host, which must be this machine
    #[arg(long, value_name = "URI", default_value = "qemu:///system")]
    connect: String,

    #[command(flatten)]
    destination: DestinationArgs,

    /// Read the guest's XML from this file instead of from libvirt
    #[arg(long, value_name = "FILE", conflicts_with_all = ["domain", "connect"],
          help_heading = WITHOUT)]
    domain_xml: Option<PathBuf>,

    /// Directory that holds the guest's files, in place of /
    #[arg(long, value_name = "DIR", requires = "domain_xml", default_value = "/",
          hide_default_value = true, help_heading = WITHOUT)]
    source_root: PathBuf,

    /// The guest is running on another machine: plan a live migration
    #[arg(long, requires = "domain_xml", help_heading = WITHOUT)]
    running: bool,
}

/// Help heading of the options about directories in place of hosts.
const WITHOUT: &str = "Without libvirt";

/// What is wanted and allowed.
#[derive(Debug, Args)]
pub(crate) struct PolicyArgs {
    /// Keep overlays: if the same backing file is already at the destination, always, or never
    #[arg(long, value_enum, value_name = "POLICY", default_value = "auto")]
    policy: StyleArg,

    /// Map the file or directory OLD to NEW at the destination (may be repeated)
    #[arg(long = "map-path", value_name = "OLD=NEW", value_parser = path_map)]
    map_path: Vec<PathMap>,

    /// Directory for the new images
    #[arg(long, value_name = "DIR")]
    target_dir: Option<PathBuf>,

    /// Storage pool of the destination for the new images
    #[arg(long, value_name = "NAME", conflicts_with = "target_dir")]
    target_pool: Option<String>,

    /// State that both hosts share the storage below DIR (may be repeated)
    #[arg(long, value_name = "DIR")]
    shared: Vec<PathBuf>,

    /// State that the hosts do not share the storage below DIR (may be repeated)
    #[arg(long, value_name = "DIR")]
    distinct: Vec<PathBuf>,

    /// Use existing images at the destination, if size and format match
    #[arg(long)]
    adopt: bool,

    /// Continue although internal snapshots are not migrated
    #[arg(long)]
    drop_internal_snapshots: bool,

    /// Copy disks with an external data file into images without one
    #[arg(long)]
    allow_data_file: bool,

    /// Eject the media of removable drives that cannot be migrated
    #[arg(long)]
    eject: bool,

    /// Make directories that the destination lacks, with owner, mode and SELinux label of the source's
    #[arg(long)]
    mkdir: bool,

    /// Refuse a chain with more images than this
    #[arg(long, value_name = "N", default_value_t = 16,
          value_parser = clap::value_parser!(u64).range(1..=200))]
    max_depth: u64,

    /// How much to compare after the migration; the guest is paused while content is compared
    #[arg(long, value_enum, value_name = "LEVEL", default_value = "meta")]
    verify: VerifyArg,

    /// Bandwidth limit for all streams together, in bytes per second, such as 100M
    #[arg(long, value_name = "RATE", value_parser = size::parse)]
    bandwidth: Option<u64>,

    /// Encrypt the migration streams of memory and disks (TLS); both hosts need certificates
    #[arg(long)]
    tls: bool,

    /// Mirror guest writes synchronously, so that the copy always converges
    #[arg(long)]
    sync_writes: bool,

    /// Abort the migration if it has not ended after SECONDS
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,

    /// Abort the migration if the guest has written to its disks as fast as they are copied for SECONDS; 0: never
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    stall: u64,

    /// Leave devices that only some hosts can migrate (VFIO, vDPA, virtiofs, 9p) to libvirt and QEMU
    #[arg(long)]
    try_devices: bool,

    /// Slow the guest's processors down if its memory changes faster than it is sent
    #[arg(long, help_heading = MEMORY)]
    auto_converge: bool,

    /// Milliseconds for which the guest may stand still at the end [default: libvirt's, 300]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=60_000),
          help_heading = MEMORY)]
    max_downtime: Option<u64>,

    /// Send memory over N connections (multifd)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(2..),
          help_heading = MEMORY)]
    connections: Option<u8>,

    /// Compress memory: xbzrle over one connection, zlib or zstd with --connections
    #[arg(long, value_enum, value_name = "HOW", help_heading = MEMORY)]
    compress: Option<CompressArg>,

    /// Name or address of the destination on the network for migrations; PORT is that of memory
    /// [default: 'migration_host' of its qemu.conf, or its own name; a free port]
    #[arg(long, value_name = "HOST[:PORT]", help_heading = MEMORY)]
    migrate_address: Option<String>,

    /// Port at which disks arrive [default: a free one]
    #[arg(long, value_name = "PORT", help_heading = MEMORY)]
    disks_port: Option<u16>,

    /// Days to keep the archived source files; 0 removes them as soon as the destination is
    /// verified
    #[arg(long, value_name = "DAYS", default_value_t = 7)]
    retain: u32,
}

/// Help heading of the options that are passed to libvirt.
const MEMORY: &str = "Memory and network";

#[derive(Debug, Clone, Copy, ValueEnum)]
enum CompressArg {
    Xbzrle,
    Zlib,
    Zstd,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum StyleArg {
    Auto,
    Thin,
    Full,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum VerifyArg {
    None,
    Meta,
    Sample,
    Content,
}

fn path_map(text: &str) -> std::result::Result<PathMap, String> {
    match text.split_once('=') {
        Some((old, new)) if old.starts_with('/') && new.starts_with('/') => {
            Ok(PathMap { old: old.into(), new: new.into() })
        }
        _ => Err("expected OLD=NEW, both absolute paths".into()),
    }
}

impl RouteArgs {
    /// As it is kept in journals.
    pub(crate) fn route(&self) -> Result<Route> {
        if is_directory(&self.connect) {
            return Err(Error::usage("--connect takes the URI of a libvirt, not a directory")
                .hint(
                    "give the guest's XML with --domain-xml, and the directory with --source-root",
                ));
        }
        let domain = match (&self.domain_xml, &self.domain) {
            (Some(xml), _) => {
                Directory::new(&self.source_root).with_domain(xml, self.state()).given()?.name
            }
            (None, Some(domain)) => domain.clone(),
            (None, None) => return Err(Error::usage("DOMAIN is missing")),
        };
        Ok(Route {
            domain,
            from: self.connect.clone(),
            to: absolute_uri(&self.destination.to),
            rsh: self.destination.rsh.clone(),
            rsh_program: self.destination.rsh_program.clone(),
            domain_xml: self.domain_xml.as_deref().map(absolute),
            source_root: absolute(&self.source_root),
            running: self.running,
        })
    }

    fn state(&self) -> DomainState {
        if self.running { DomainState::Running } else { DomainState::ShutOff }
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.into())
}

/// A URI; that of a directory says all of its path.
fn absolute_uri(uri: &str) -> String {
    match uri.strip_prefix(DIRECTORY) {
        Some(directory) => format!("{DIRECTORY}{}", absolute(Path::new(directory)).display()),
        None => uri.to_owned(),
    }
}

/// The way between two hosts, whatever the guest.
pub(super) fn way(from: &str, destination: &DestinationArgs, running: bool) -> Route {
    let from = absolute_uri(from);
    let root = from.strip_prefix(DIRECTORY).unwrap_or("/");
    Route {
        domain: String::new(),
        source_root: PathBuf::from(root),
        to: absolute_uri(&destination.to),
        rsh: destination.rsh.clone(),
        rsh_program: destination.rsh_program.clone(),
        domain_xml: None,
        running,
        from,
    }
}

/// The ways from one host to each of several destinations: a URI, and the command that reaches its files.
pub(super) fn ways(
    from: &str,
    destinations: &[(String, Option<String>)],
    rsh_program: &str,
    running: bool,
) -> Vec<Route> {
    let route = |(to, rsh): &(String, Option<String>)| {
        let (to, rsh, rsh_program) = (to.clone(), rsh.clone(), rsh_program.to_owned());
        way(from, &DestinationArgs { to, rsh, rsh_program }, running)
    };
    destinations.iter().map(route).collect()
}

/// Whether a URI is that of a directory.
pub(crate) fn is_directory(uri: &str) -> bool {
    uri.starts_with(DIRECTORY)
}

/// Connects to both ends.
pub(crate) fn reach(route: &Route) -> Result<Connections> {
    route.connect_by(connect)
}

impl PolicyArgs {
    /// Whether memory or disks arrive at one port, whatever the guest.
    pub(crate) fn has_fixed_port(&self) -> bool {
        let port = |address: &String| match address.rsplit_once(':') {
            Some((host, _)) => host.ends_with(']') || !host.contains(':'),
            None => false,
        };
        self.disks_port.is_some() || self.migrate_address.as_ref().is_some_and(port)
    }

    fn tuning(&self) -> Tuning {
        Tuning::default()
            .auto_converge(self.auto_converge)
            .max_downtime(self.max_downtime)
            .address(self.migrate_address.clone())
            .disks_port(self.disks_port)
            .connections(self.connections)
            .compression(self.compress.map(|how| match how {
                CompressArg::Xbzrle => Compression::Xbzrle,
                CompressArg::Zlib => Compression::Zlib,
                CompressArg::Zstd => Compression::Zstd,
            }))
    }

    /// As the library takes it.
    pub(crate) fn policy(&self, reached: &Connections) -> Result<Policy> {
        let target_dir = match &self.target_pool {
            None => self.target_dir.clone(),
            Some(pool) => Some(reached.destination_pool(pool)?),
        };
        Ok(Policy::default()
            .style(match self.policy {
                StyleArg::Auto => Style::Auto,
                StyleArg::Thin => Style::Thin,
                StyleArg::Full => Style::Full,
            })
            .path_map(self.map_path.clone())
            .target_dir(target_dir)
            .shared(self.shared.clone())
            .distinct(self.distinct.clone())
            .adopt(self.adopt)
            .drop_internal_snapshots(self.drop_internal_snapshots)
            .allow_data_file(self.allow_data_file)
            .eject(self.eject)
            .make_directories(self.mkdir)
            .max_depth(usize::try_from(self.max_depth).unwrap_or(usize::MAX))
            .verify(match self.verify {
                VerifyArg::None => Verify::None,
                VerifyArg::Meta => Verify::Meta,
                VerifyArg::Sample => Verify::Sample,
                VerifyArg::Content => Verify::Content,
            })
            .bandwidth(self.bandwidth)
            .tls(self.tls)
            .sync_writes(self.sync_writes)
            .timeout(self.timeout)
            .try_devices(self.try_devices)
            .stall(self.stall)
            .tuning(self.tuning())
            .retain_days(self.retain))
    }
}
