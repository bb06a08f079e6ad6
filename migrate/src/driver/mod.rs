//! What we ask of a hypervisor's management, as a trait; libvirt is one that does it, and a model that
//! behaves as libvirt was observed to is another.

mod block;
mod directory;
#[cfg(feature = "libvirt")]
pub mod libvirt;
pub mod libvirt_errors;
#[cfg(feature = "model")]
pub mod model;

use qcow::CancelToken;

use crate::facts::{
    Abilities, Cpu, CpuFit, DomainFacts, DomainState, HostFacts, PoolFacts, Resources, VolumeFacts,
};
use crate::plan::{Flag, Tuning};
use crate::{Error, Result};

pub use block::{BlockCopy, BlockJobKind, BlockProgress};
pub use directory::Directory;

/// What a host has: domains, storage pools and volumes. Looks only.
pub trait Inventory: Send + Sync {
    /// What the host is.
    ///
    /// # Errors
    /// [`Environment`](crate::ErrorKind::Environment), as all methods here and of [`Hypervisor`].
    fn host(&self) -> Result<HostFacts>;

    /// The names of all domains, running or not, in their order.
    ///
    /// # Errors
    /// See [`host`](Self::host).
    fn names(&self) -> Result<Vec<String>>;

    /// Everything about all domains, running or not.
    ///
    /// # Errors
    /// See [`host`](Self::host).
    fn domains(&self) -> Result<Vec<DomainFacts>>;

    /// The storage pools, active or not.
    ///
    /// # Errors
    /// See [`host`](Self::host).
    fn pools(&self) -> Result<Vec<PoolFacts>>;

    /// The files and devices of an active pool.
    ///
    /// # Errors
    /// See [`host`](Self::host); also if there is no such pool or it is not active.
    fn volumes(&self, pool: &str) -> Result<Vec<VolumeFacts>>;

    /// The path of a volume.
    ///
    /// # Errors
    /// See [`host`](Self::host).
    fn volume_path(&self, pool: &str, volume: &str) -> Result<Option<std::path::PathBuf>>;

    /// The directory of a storage pool; `None` if there is no such pool.
    ///
    /// # Errors
    /// See [`host`](Self::host); also if the pool is no directory.
    fn pool_path(&self, pool: &str) -> Result<Option<std::path::PathBuf>>;

    /// Paths that the host's domains, running or not, name as their disks or as layers below them.
    ///
    /// # Errors
    /// See [`host`](Self::host).
    fn paths_in_use(&self) -> Result<Vec<std::path::PathBuf>>;
}

/// An element of a domain's `<metadata>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metadata<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// The prefix that the namespace gets in the XML.
    pub prefix: &'a str,
    /// The element; `None` removes it.
    pub element: Option<&'a str>,
}

/// One connection to one host's virtualisation management.
///
/// All methods may be called from any thread. A domain is named by its UUID, but in
/// [`domain`](Self::domain), which is how that is learned.
pub trait Hypervisor: Inventory {
    /// What guests the host can run; `None` where none can.
    ///
    /// # Errors
    /// See [`host`](Inventory::host).
    fn abilities(&self) -> Result<Option<Abilities>>;

    /// What the host has for guests; `None` where none can run, or that is not known.
    ///
    /// # Errors
    /// See [`host`](Inventory::host).
    fn resources(&self) -> Result<Option<Resources>> {
        Ok(None)
    }

    /// How a processor compares with what the host offers.
    ///
    /// # Errors
    /// See [`host`](Inventory::host). What libvirt cannot compare is [`Unknown`](CpuFit::Unknown), not an error.
    fn compare_cpu(&self, cpu: &Cpu<'_>) -> Result<CpuFit>;

    /// Everything about the domain of this name or UUID; `None` if there is none.
    ///
    /// # Errors
    /// See [`host`](Inventory::host).
    fn domain(&self, name_or_uuid: &str) -> Result<Option<DomainFacts>>;

    /// What the domain does now; `None` if there is none.
    ///
    /// # Errors
    /// See [`host`](Inventory::host).
    fn state(&self, uuid: &str) -> Result<Option<DomainState>>;

    /// Whether a paused domain is paused because it is still arriving from another host.
    ///
    /// # Errors
    /// See [`host`](Inventory::host).
    fn is_arriving(&self, _uuid: &str) -> Result<bool> {
        Ok(false)
    }

    /// Size in bytes of the disk `target`, as the running hypervisor reports it.
    ///
    /// # Errors
    /// See [`host`](Inventory::host).
    fn capacity(&self, uuid: &str, target: &str) -> Result<u64>;

    /// The block job that runs on the disk `target`, in words.
    ///
    /// # Errors
    /// See [`host`](Inventory::host).
    fn block_job(&self, uuid: &str, target: &str) -> Result<Option<String>>;

    /// Writes the one element of a namespace into the domain's `<metadata>`, for now and for its next start. It is given
    /// without a prefix; `None` removes it.
    ///
    /// # Errors
    /// See [`host`](Inventory::host); [`Unsupported`](crate::ErrorKind::Unsupported) where domains have no metadata.
    fn set_metadata(&self, _uuid: &str, _metadata: &Metadata<'_>) -> Result<()> {
        Err(Error::new(crate::ErrorKind::Unsupported, "domains have no metadata there"))
    }

    /// Migrates, and returns when libvirt says that it is over. What it says is not the outcome: that is
    /// decided by the state of both hosts. Every [`TICK`] or so `watch` is told how far it is; when
    /// `cancel` is set the job is aborted, and the call still waits for the end.
    ///
    /// # Errors
    /// What libvirt said, translated.
    fn migrate(
        &self,
        request: &MigrateRequest,
        watch: &dyn Fn(&JobProgress),
        cancel: &CancelToken,
    ) -> Result<()>;

    /// Aborts the domain's job; fine if there is none.
    ///
    /// # Errors
    /// See [`host`](Inventory::host).
    fn abort(&self, uuid: &str) -> Result<()>;

    /// The domain's job; `None` if there is none.
    ///
    /// # Errors
    /// See [`host`](Inventory::host).
    fn job(&self, uuid: &str) -> Result<Option<JobProgress>>;

    /// Stops the domain's processors.
    ///
    /// # Errors
    /// See [`host`](Inventory::host).
    fn suspend(&self, uuid: &str) -> Result<()>;

    /// Lets them run again.
    ///
    /// # Errors
    /// See [`host`](Inventory::host).
    fn resume(&self, uuid: &str) -> Result<()>;

    /// Starts a domain that is shut off.
    ///
    /// # Errors
    /// See [`host`](Inventory::host).
    fn start(&self, uuid: &str) -> Result<()>;

    /// Kills the domain's process.
    ///
    /// # Errors
    /// See [`host`](Inventory::host).
    fn destroy(&self, uuid: &str) -> Result<()>;

    /// Defines a domain.
    ///
    /// # Errors
    /// See [`host`](Inventory::host).
    fn define(&self, xml: &str) -> Result<()>;

    /// Forgets a domain's definition, but not its NVRAM or other files.
    ///
    /// # Errors
    /// See [`host`](Inventory::host).
    fn undefine(&self, uuid: &str) -> Result<()>;

    /// Makes libvirt look again at the pools that cover these directories.
    ///
    /// # Errors
    /// See [`host`](Inventory::host).
    fn refresh_pools(&self, directories: &[&std::path::Path]) -> Result<()>;

    /// Jobs on the disks of running guests; `None` where there are none, as in a directory.
    fn block_jobs(&self) -> Option<&dyn BlockJobs> {
        None
    }

    /// Returns when something happened to any of the host's domains or to the connection, or after
    /// `at_most`. To wait for a state: ask, wait, ask again.
    fn wait(&self, at_most: std::time::Duration) {
        std::thread::sleep(at_most);
    }
}

/// Jobs of a host on the disks of its running guests. Domains are named by their UUIDs.
pub trait BlockJobs: Send + Sync {
    /// Starts to fill the active layer of the disk `target` with all that the layers below hold, after which it
    /// has no backing file. `bandwidth` is in bytes a second. Returns at once.
    ///
    /// # Errors
    /// See [`host`](Inventory::host).
    fn block_pull(&self, uuid: &str, target: &str, bandwidth: Option<u64>) -> Result<()>;

    /// Starts to copy the disk `target`, all layers of it or the active one, into an image that exists. Returns at once. The copy
    /// is kept in step with the disk until it is [taken](Self::pivot) or [given up](Self::abort_block_job).
    ///
    /// # Errors
    /// See [`block_pull`](Self::block_pull).
    fn block_copy(&self, uuid: &str, target: &str, copy: &BlockCopy) -> Result<()>;

    /// The job on the disk `target`; `None` if there is none, or the guest has no process.
    ///
    /// # Errors
    /// See [`host`](Inventory::host).
    fn block_progress(&self, uuid: &str, target: &str) -> Result<Option<BlockProgress>>;

    /// Has the guest use the copy from now on. `Ok(false)` if it is not in step yet.
    ///
    /// # Errors
    /// See [`block_pull`](Self::block_pull).
    fn pivot(&self, uuid: &str, target: &str) -> Result<bool>;

    /// Aborts the job on the disk `target` and waits for its end; fine if there is none.
    ///
    /// # Errors
    /// See [`host`](Inventory::host).
    fn abort_block_job(&self, uuid: &str, target: &str) -> Result<()>;
}

/// How often the progress of a migration is told.
pub const TICK: std::time::Duration = std::time::Duration::from_millis(250);

/// What libvirt is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrateRequest {
    /// The domain.
    pub uuid: String,
    /// The destination's URI, as the source's libvirt reaches it.
    pub to: String,
    /// libvirt's flags.
    pub flags: Vec<Flag>,
    /// The disks to copy; never empty if a flag asks for copies.
    pub migrate_disks: Vec<String>,
    /// Those in which to look for zeros; the driver leaves it away where libvirt is too old for it.
    pub detect_zeroes: Vec<String>,
    /// The guest's XML at the destination.
    pub destination_xml: String,
    /// What is defined there.
    pub persistent_xml: Option<String>,
    /// MiB a second for each stream.
    pub bandwidth_mib: Option<u64>,
    /// Where memory goes, such as `tcp://host`; libvirt's own choice if `None`.
    pub migrate_uri: Option<String>,
    /// How memory is sent.
    pub tuning: Tuning,
}

/// How far a migration is. Bytes; totals grow while the guest writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JobProgress {
    /// Of all copied disks together.
    pub disk_total: u64,
    /// Done of them.
    pub disk_processed: u64,
    /// Bytes a second.
    pub disk_rate: u64,
    /// Of the guest's memory; 0 until the disks are in step.
    pub memory_total: u64,
    /// Done of it.
    pub memory_processed: u64,
    /// Bytes a second.
    pub memory_rate: u64,
    /// Milliseconds since the start.
    pub elapsed_ms: u64,
}

/// What no request may ask for: the last check before libvirt.
///
/// # Errors
/// [`Refused`](crate::ErrorKind::Refused).
pub fn check_request(request: &MigrateRequest) -> Result<()> {
    let full = request.flags.contains(&Flag::NonSharedDisk);
    let incremental = request.flags.contains(&Flag::NonSharedInc);
    if full && incremental {
        return Err(Error::refused("full and incremental copies exclude each other"));
    }
    if (full || incremental) && request.migrate_disks.is_empty() {
        return Err(Error::refused(
            "a copy of disks without saying which would copy all of them, shared ones too",
        ));
    }
    if !request.migrate_disks.is_empty() && !full && !incremental {
        return Err(Error::refused("disks to copy are named, but not how"));
    }
    Ok(())
}
