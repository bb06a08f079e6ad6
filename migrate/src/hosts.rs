//! Connections to both hosts of a migration, owned: what a [`Route`] leads to.

use std::path::Path;
use std::sync::Arc;

use crate::driver::{Directory, Hypervisor};
use crate::facts::{DomainState, Route};
use crate::preflight;
use crate::probe::Hosts;
use crate::store::{LocalStore, RemoteStore, Store};
use crate::{Error, Result};

/// What stands before a directory that is used in place of a host.
pub const DIRECTORY: &str = "dir:";

/// What a connection to a host may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everything.
    Full,
    /// Look only, also where the user would have the right to change something.
    ReadOnly,
}

/// A connection to one host.
#[derive(Clone)]
pub struct Connected {
    /// Its virtualisation.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Its files.
    pub store: Arc<dyn Store>,
}

impl std::fmt::Debug for Connected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connected")
    }
}

impl Connected {
    /// Connects to the libvirt at `uri`; its files are reached through its storage API.
    ///
    /// # Errors
    /// [`Environment`](crate::ErrorKind::Environment).
    #[cfg(feature = "libvirt")]
    pub fn to_libvirt(uri: &str) -> Result<Self> {
        Self::with_access(uri, Access::Full)
    }

    /// As [`to_libvirt`](Self::to_libvirt), with this access.
    ///
    /// # Errors
    /// [`Environment`](crate::ErrorKind::Environment).
    #[cfg(feature = "libvirt")]
    pub fn with_access(uri: &str, access: Access) -> Result<Self> {
        let connection = Arc::new(match access {
            Access::Full => crate::driver::libvirt::Connection::open(uri)?,
            Access::ReadOnly => crate::driver::libvirt::Connection::open_read_only(uri)?,
        });
        let store = Arc::new(crate::store::libvirt::LibvirtStore::new(connection.clone()));
        Ok(Self { hypervisor: connection, store })
    }
}

/// Both hosts, connected. May be kept, and moved between threads.
#[derive(Clone)]
pub struct Connections {
    source: Arc<dyn Hypervisor>,
    destination: Arc<dyn Hypervisor>,
    store: Arc<dyn Store>,
    /// The program at the destination, where `store` goes through it.
    agent: Option<Arc<RemoteStore>>,
    route: Route,
}

impl std::fmt::Debug for Connections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connections").field("route", &self.route).finish_non_exhaustive()
    }
}

impl Route {
    /// Connects to both hosts through libvirt.
    ///
    /// # Errors
    /// [`Environment`](crate::ErrorKind::Environment) if one cannot be reached.
    #[cfg(feature = "libvirt")]
    pub fn connect(&self) -> Result<Connections> {
        self.connect_by(Connected::to_libvirt)
    }

    /// Connects to both hosts. What is no directory is reached by `connect`, which takes a URI.
    ///
    /// # Errors
    /// What `connect` says; [`Environment`](crate::ErrorKind::Environment) if the destination's files cannot be
    /// reached.
    pub fn connect_by(&self, connect: impl Fn(&str) -> Result<Connected>) -> Result<Connections> {
        let state = if self.running { DomainState::Running } else { DomainState::ShutOff };
        let source: Arc<dyn Hypervisor> = match &self.domain_xml {
            Some(xml) => Arc::new(Directory::new(&self.source_root).with_domain(xml, state)),
            None => match directory(&self.from) {
                Some(root) => Arc::new(Directory::new(root).with_state(state)),
                None => connect(&self.from)?.hypervisor,
            },
        };
        let route = self.clone();
        if let Some(root) = directory(&self.to) {
            let destination = Arc::new(Directory::new(root));
            let store = Arc::new(LocalStore::new(root)?);
            return Ok(Connections { source, destination, store, agent: None, route });
        }
        let Connected { hypervisor: destination, store } = connect(&self.to)?;
        let Some(rsh) = &self.rsh else {
            return Ok(Connections { source, destination, store, agent: None, route });
        };
        let words: Vec<String> = rsh.split_whitespace().map(str::to_owned).collect();
        let agent = Arc::new(RemoteStore::spawn(&words, &self.rsh_program)?);
        Ok(Connections { source, destination, store: agent.clone(), agent: Some(agent), route })
    }
}

impl Connections {
    /// As a probe and a run take them.
    pub fn hosts(&self) -> Hosts<'_> {
        Hosts {
            source: &*self.source,
            source_root: &self.route.source_root,
            destination: &*self.destination,
            store: &*self.store,
        }
    }

    /// As a preflight takes them.
    pub fn participants(&self) -> preflight::Participants<'_> {
        preflight::Participants { hosts: self.hosts(), agent: self.agent.as_deref() }
    }

    /// The names of the domains of the source.
    ///
    /// # Errors
    /// [`Environment`](crate::ErrorKind::Environment).
    pub fn names(&self) -> Result<Vec<String>> {
        self.source.names()
    }

    /// The same for another guest.
    pub(crate) fn for_guest(mut self, domain: &str) -> Self {
        domain.clone_into(&mut self.route.domain);
        self
    }

    /// Whether the program at the destination still answers; libvirt is connected to anew where it must be.
    pub(crate) fn is_alive(&self) -> bool {
        self.agent.as_ref().is_none_or(|agent| agent.heard().is_ok())
    }

    /// How they were reached.
    pub fn route(&self) -> &Route {
        &self.route
    }

    /// The directory of a storage pool of the destination.
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage) if there is no such pool;
    /// [`Environment`](crate::ErrorKind::Environment).
    pub fn destination_pool(&self, pool: &str) -> Result<std::path::PathBuf> {
        let missing = || {
            Error::usage(format!("there is no storage pool '{pool}'"))
                .hint("virsh pool-list --all lists them")
        };
        self.destination.pool_path(pool)?.ok_or_else(missing)
    }
}

/// The directory that a URI of one names.
fn directory(uri: &str) -> Option<&Path> {
    uri.strip_prefix(DIRECTORY).map(Path::new)
}
