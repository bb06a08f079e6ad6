//! libvirt, through its C library by way of the `virt` crate, and past it where that is not enough. Needs the
//! feature `libvirt`.

mod abilities;
mod block;
mod events;
mod migrate;
mod pools;
pub(crate) mod raw;
pub(crate) mod xml;

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use qcow::CancelToken;
use uuid::Uuid;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::domain_snapshot::DomainSnapshot;
use virt::storage_pool::StoragePool;
use virt_sys as sys;

use self::events::Signal;
use self::raw::{Failure, Outcome, Subscription};
use super::libvirt_errors::{code, translate};
use super::{
    BlockCopy, BlockJobs, BlockProgress, Hypervisor, Inventory, JobProgress, Metadata,
    MigrateRequest, TICK,
};
use crate::facts::{
    Abilities, Cpu, CpuFit, DomainFacts, DomainState, HostFacts, PoolFacts, Resources, Version,
    VolumeFacts,
};
use crate::{Error, Result};

/// Seconds between two questions whether the other end is still there.
const KEEP_ALIVE_SECONDS: i32 = 5;

/// So many unanswered questions end the connection.
const KEEP_ALIVE_COUNT: u32 = 4;

/// How long a connection that broke is tried to be made anew, once: a daemon that is restarted is back by then.
const PATIENCE: Duration = Duration::from_secs(20);

/// From here on, undefining a guest needs to be told to keep its TPM's state.
const KEEP_TPM: Version = Version::new(8, 9, 0);

/// A connection to one host's libvirt. When it breaks, what was asked fails; the next question connects again.
pub struct Connection {
    uri: String,
    read_only: bool,
    live: Mutex<Option<Live>>,
    signal: Arc<Signal>,
}

/// A connection as long as it holds.
struct Live {
    // Dropped before the connection that it is on.
    _subscription: Subscription,
    connect: Connect,
    hostname: String,
    version: Version,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("uri", &self.uri).finish_non_exhaustive()
    }
}

/// A domain's use of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Use {
    /// The domain's name.
    pub(crate) domain: String,
    /// It has a process.
    pub(crate) runs: bool,
    /// The file.
    pub(crate) path: PathBuf,
    /// The domain writes to it, when it runs.
    pub(crate) writes: bool,
}

impl Connection {
    /// Connects to `uri`, such as `qemu:///system` or `qemu+ssh://host/system`. There is no dialogue: who
    /// has to give a password gets an error.
    ///
    /// # Errors
    /// [`Environment`](crate::ErrorKind::Environment).
    pub fn open(uri: &str) -> Result<Self> {
        Self::open_as(uri, false)
    }

    /// Connects to `uri` with libvirt's read-only connection, which can change nothing there.
    ///
    /// # Errors
    /// [`Environment`](crate::ErrorKind::Environment).
    pub fn open_read_only(uri: &str) -> Result<Self> {
        Self::open_as(uri, true)
    }

    fn open_as(uri: &str, read_only: bool) -> Result<Self> {
        events::start()?;
        let connection = Self {
            uri: uri.to_owned(),
            read_only,
            live: Mutex::new(None),
            signal: Arc::new(Signal::default()),
        };
        connection.connect()?;
        Ok(connection)
    }

    /// The URI that was given.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    fn live(&self) -> MutexGuard<'_, Option<Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection; a new one if it is known to be broken.
    pub(crate) fn connect(&self) -> Result<Connect> {
        let mut live = self.live();
        if let Some(live) = live.as_ref().filter(|live| matches!(live.connect.is_alive(), Ok(true)))
        {
            return Ok(live.connect.clone());
        }
        let until = live.take().and_then(|_| Instant::now().checked_add(PATIENCE));
        let opened = loop {
            match self.open_live() {
                Err(_) if until.is_some_and(|until| Instant::now() < until) => {
                    std::thread::sleep(TICK);
                }
                outcome => break outcome.map_err(|failure| told(&failure).on(&self.uri))?,
            }
        };
        let connect = opened.connect.clone();
        *live = Some(opened);
        Ok(connect)
    }

    fn open_live(&self) -> Outcome<Live> {
        // `virt` panics where there is a NUL byte.
        CString::new(self.uri.as_str())?;
        let open = if self.read_only { Connect::open_read_only } else { Connect::open };
        let connect = open(Some(&self.uri))?;
        // Connections without a wire have no such thing.
        let _ = connect.set_keep_alive(KEEP_ALIVE_SECONDS, KEEP_ALIVE_COUNT);
        Ok(Live {
            hostname: connect.hostname()?,
            version: Version::from_number(connect.lib_version()?.into()),
            _subscription: Subscription::new(&connect, &self.signal),
            connect,
        })
    }

    /// How messages call the host.
    pub(crate) fn hostname(&self) -> String {
        self.live().as_ref().map_or_else(|| self.uri.clone(), |live| live.hostname.clone())
    }

    /// libvirt's version there.
    fn version(&self) -> Result<Version> {
        let connect = self.connect()?;
        let known = self.live().as_ref().map(|live| live.version);
        match known {
            Some(version) => Ok(version),
            None => Ok(Version::from_number(self.say(connect.lib_version())?.into())),
        }
    }

    /// Translates a failure, and says on which host it was.
    pub(crate) fn say<T>(&self, outcome: Outcome<T>) -> Result<T> {
        outcome.map_err(|failure| told(&failure).on(&self.hostname()))
    }

    /// Asks what changes nothing if it is asked twice: once more, over a new connection, if this one turns out to be broken. Where
    /// a cable was out for a while, libvirt learns that only from the next question.
    pub(crate) fn ask<T>(&self, ask: impl Fn(&Connect) -> Outcome<T>) -> Result<T> {
        let connect = self.connect()?;
        match ask(&connect) {
            Err(_) if !matches!(connect.is_alive(), Ok(true)) => self.say(ask(&self.connect()?)),
            outcome => self.say(outcome),
        }
    }

    fn lookup(&self, uuid: &str) -> Result<Domain> {
        self.ask(|connect| connect.lookup_domain_by_uuid_string(uuid))
    }

    /// What `ask` says of the domain; `None` if it is not there, or goes away meanwhile.
    fn of_domain<T>(&self, uuid: &str, ask: impl Fn(&Domain) -> Outcome<T>) -> Result<Option<T>> {
        self.ask(|connect| {
            let domain = connect.lookup_domain_by_uuid_string(uuid);
            unless(code::NO_DOMAIN, domain.and_then(|domain| ask(&domain)))
        })
    }

    /// Which files the host's domains use, running or not.
    pub(crate) fn uses(&self) -> Result<Vec<Use>> {
        let mut uses = Vec::new();
        for domain in self.say(self.connect()?.list_all_domains(0))? {
            let of_domain = || {
                let name = domain.name()?;
                let runs = matches!(
                    state(raw::state(&domain)?.0),
                    DomainState::Running | DomainState::Paused | DomainState::Other
                );
                let mut texts = vec![(domain.xml_desc(0)?, runs)];
                if runs && domain.is_persistent()? {
                    texts.push((domain.xml_desc(sys::VIR_DOMAIN_XML_INACTIVE)?, false));
                }
                Ok((name, texts))
            };
            let Some((name, texts)) = self.say(unless(code::NO_DOMAIN, of_domain()))? else {
                continue;
            };
            for (text, runs) in texts {
                let files = xml::disk_files(&text).map_err(|error| error.on(&self.hostname()))?;
                uses.extend(files.into_iter().map(|(path, writes)| Use {
                    domain: name.clone(),
                    runs,
                    path,
                    writes,
                }));
            }
        }
        Ok(uses)
    }

    /// Makes libvirt look again at what is in a pool, waiting a little for a job that fills it.
    pub(crate) fn refresh(&self, pool: &StoragePool) -> Result<()> {
        self.say(patiently(|| pool.refresh(0)))
    }
}

/// The error that a failure means.
fn told(failure: &Failure) -> Error {
    let (code, from) = (failure.code().to_raw(), failure.domain().to_raw());
    translate(code.cast_signed(), from.cast_signed(), failure.message())
}

/// Whether the failure has this code.
pub(crate) fn is(failure: &Failure, code: i32) -> bool {
    failure.code().to_raw().cast_signed() == code
}

/// `None` for a failure with this code.
pub(crate) fn unless<T>(code: i32, outcome: Outcome<T>) -> Outcome<Option<T>> {
    match outcome {
        Err(failure) if is(&failure, code) => Ok(None),
        outcome => outcome.map(Some),
    }
}

/// Tries again, for some seconds, what libvirt refuses while a volume of the pool is being made or filled.
pub(crate) fn patiently<T>(mut ask: impl FnMut() -> Outcome<T>) -> Outcome<T> {
    const PAUSE: Duration = Duration::from_millis(100);
    const TIMES: u32 = 50;
    for _ in 0..TIMES {
        match ask() {
            Err(failure) if is_busy(failure.message()) => std::thread::sleep(PAUSE),
            outcome => return outcome,
        }
    }
    ask()
}

/// libvirt's words for "not now" in its storage driver, which have no code of their own.
fn is_busy(message: &str) -> bool {
    ["asynchronous jobs running", "is still being allocated", "is still in use"]
        .iter()
        .any(|words| message.contains(words))
}

/// `virDomainState`.
fn state(number: u32) -> DomainState {
    match number {
        sys::VIR_DOMAIN_RUNNING | sys::VIR_DOMAIN_BLOCKED => DomainState::Running,
        sys::VIR_DOMAIN_PAUSED => DomainState::Paused,
        sys::VIR_DOMAIN_SHUTOFF => DomainState::ShutOff,
        _ => DomainState::Other,
    }
}

/// `virDomainBlockJobType`.
fn block_job(kind: i32) -> &'static str {
    match kind.unsigned_abs() {
        sys::VIR_DOMAIN_BLOCK_JOB_TYPE_PULL => "block pull",
        sys::VIR_DOMAIN_BLOCK_JOB_TYPE_COPY => "block copy",
        sys::VIR_DOMAIN_BLOCK_JOB_TYPE_COMMIT | sys::VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT => {
            "block commit"
        }
        sys::VIR_DOMAIN_BLOCK_JOB_TYPE_BACKUP => "backup",
        _ => "a block job",
    }
}

impl Inventory for Connection {
    fn host(&self) -> Result<HostFacts> {
        let connect = self.connect()?;
        let capabilities = self.say(connect.capabilities())?;
        let qemu = self.say(connect.hyp_version())?;
        Ok(HostFacts {
            uri: self.uri.clone(),
            hostname: self.say(connect.hostname())?,
            uuid: xml::host_uuid(&capabilities).map_err(|error| error.on(&self.hostname()))?,
            libvirt: Some(self.version()?),
            qemu: (qemu != 0).then(|| Version::from_number(qemu.into())),
        })
    }

    fn names(&self) -> Result<Vec<String>> {
        let all = self.say(self.connect()?.list_all_domains(0))?;
        let names = all.iter().map(|domain| self.say(unless(code::NO_DOMAIN, domain.name())));
        let mut names: Vec<_> = names.filter_map(Result::transpose).collect::<Result<_>>()?;
        names.sort_unstable();
        Ok(names)
    }

    fn domains(&self) -> Result<Vec<DomainFacts>> {
        let mut found = Vec::new();
        for domain in self.say(self.connect()?.list_all_domains(0))? {
            if let Some(uuid) = self.say(unless(code::NO_DOMAIN, domain.uuid_string()))? {
                found.extend(self.domain(&uuid)?);
            }
        }
        Ok(found)
    }

    fn pools(&self) -> Result<Vec<PoolFacts>> {
        pools::pools(self)
    }

    fn volumes(&self, pool: &str) -> Result<Vec<VolumeFacts>> {
        pools::volumes(self, pool)
    }

    fn volume_path(&self, pool: &str, volume: &str) -> Result<Option<PathBuf>> {
        let connect = self.connect()?;
        let Some(pool) =
            self.say(unless(code::NO_STORAGE_POOL, connect.lookup_storage_pool_by_name(pool)))?
        else {
            return Ok(None);
        };
        let path = pool.lookup_storage_vol_by_name(volume).and_then(|volume| volume.path());
        Ok(self.say(unless(code::NO_STORAGE_VOL, path))?.map(PathBuf::from))
    }

    fn pool_path(&self, pool: &str) -> Result<Option<PathBuf>> {
        let connect = self.connect()?;
        let Some(pool) =
            self.say(unless(code::NO_STORAGE_POOL, connect.lookup_storage_pool_by_name(pool)))?
        else {
            return Ok(None);
        };
        let xml = self.say(pool.xml_desc(0))?;
        let document = xml::document(&xml, "a storage pool")?;
        let path = xml::text(document.root_element(), &["target", "path"]).map(PathBuf::from);
        let none = || Error::usage("the storage pool is no directory");
        path.map(Some).ok_or_else(none)
    }

    fn paths_in_use(&self) -> Result<Vec<PathBuf>> {
        let mut paths: Vec<_> = self.uses()?.into_iter().map(|used| used.path).collect();
        paths.sort_unstable();
        paths.dedup();
        Ok(paths)
    }
}

impl Hypervisor for Connection {
    fn block_jobs(&self) -> Option<&dyn BlockJobs> {
        Some(self)
    }

    fn abilities(&self) -> Result<Option<Abilities>> {
        abilities::abilities(self).map(Some)
    }

    fn resources(&self) -> Result<Option<Resources>> {
        abilities::resources(self).map(Some)
    }

    fn compare_cpu(&self, cpu: &Cpu<'_>) -> Result<CpuFit> {
        abilities::compare_cpu(self, cpu)
    }

    fn domain(&self, name_or_uuid: &str) -> Result<Option<DomainFacts>> {
        let find = |connect: &Connect| {
            if Uuid::try_parse(name_or_uuid).is_ok() {
                let by_uuid = connect.lookup_domain_by_uuid_string(name_or_uuid);
                if let Some(domain) = unless(code::NO_DOMAIN, by_uuid)? {
                    return Ok(domain);
                }
            }
            connect.lookup_domain_by_name(name_or_uuid)
        };
        let facts = |domain: Domain| {
            let persistent = domain.is_persistent()?;
            // With passwords, or the guest would arrive without them.
            let secure = sys::VIR_DOMAIN_XML_SECURE;
            let inactive = || domain.xml_desc(secure | sys::VIR_DOMAIN_XML_INACTIVE);
            Ok(DomainFacts {
                name: domain.name()?,
                uuid: domain.uuid_string()?,
                state: state(raw::state(&domain)?.0),
                persistent,
                live_xml: domain.xml_desc(0)?,
                migratable_xml: domain.xml_desc(secure | sys::VIR_DOMAIN_XML_MIGRATABLE)?,
                inactive_xml: persistent.then(inactive).transpose()?,
                job: migrate::job_in_words(&domain)?,
                snapshots: snapshots(&domain)?,
                checkpoints: supported(raw::checkpoints(&domain))?,
                saved: supported(domain.has_managed_save(0))?,
            })
        };
        self.ask(|connect| unless(code::NO_DOMAIN, find(connect).and_then(facts)))
    }

    fn state(&self, uuid: &str) -> Result<Option<DomainState>> {
        Ok(self.of_domain(uuid, raw::state)?.map(|(number, _)| state(number)))
    }

    fn is_arriving(&self, uuid: &str) -> Result<bool> {
        let arriving = (sys::VIR_DOMAIN_PAUSED, sys::VIR_DOMAIN_PAUSED_MIGRATION);
        Ok(self.of_domain(uuid, raw::state)? == Some(arriving))
    }

    fn capacity(&self, uuid: &str, target: &str) -> Result<u64> {
        let domain = self.lookup(uuid)?;
        self.say(raw::capacity(&domain, target))
    }

    fn set_metadata(&self, uuid: &str, metadata: &Metadata<'_>) -> Result<()> {
        let domain = self.lookup(uuid)?;
        let live = self.say(domain.is_active())?;
        let defined = self.say(domain.is_persistent())?;
        let live = if live { sys::VIR_DOMAIN_AFFECT_LIVE } else { 0 };
        let config = if defined { sys::VIR_DOMAIN_AFFECT_CONFIG } else { 0 };
        let kind = i32::try_from(sys::VIR_DOMAIN_METADATA_ELEMENT).unwrap_or_default();
        let (prefix, namespace) = (Some(metadata.prefix), Some(metadata.namespace));
        self.say(domain.set_metadata(kind, metadata.element, prefix, namespace, live | config))
    }

    fn block_job(&self, uuid: &str, target: &str) -> Result<Option<String>> {
        let domain = self.lookup(uuid)?;
        let job = match raw::block_job(&domain, target) {
            // A guest that is off has none.
            Err(failure) if is(&failure, code::OPERATION_INVALID) => None,
            outcome => self.say(outcome)?,
        };
        Ok(job.map(|(kind, done, total)| format!("{}, {done} of {total} bytes", block_job(kind))))
    }

    fn migrate(
        &self,
        request: &MigrateRequest,
        watch: &dyn Fn(&JobProgress),
        cancel: &CancelToken,
    ) -> Result<()> {
        let domain = self.lookup(&request.uuid)?;
        migrate::run(&domain, request, self.version()?, &self.signal, watch, cancel)
    }

    fn abort(&self, uuid: &str) -> Result<()> {
        let aborted = self.of_domain(uuid, |domain| {
            match raw::abort_job(domain) {
                // No job, or no process that could have one.
                Err(failure)
                    if is(&failure, code::OPERATION_INVALID) && !migrate::has_job(domain) =>
                {
                    Ok(())
                }
                outcome => outcome,
            }
        });
        aborted.map(drop)
    }

    fn job(&self, uuid: &str) -> Result<Option<JobProgress>> {
        Ok(self.of_domain(uuid, migrate::progress)?.flatten())
    }

    fn suspend(&self, uuid: &str) -> Result<()> {
        let domain = self.lookup(uuid)?;
        self.say(domain.suspend())
    }

    fn resume(&self, uuid: &str) -> Result<()> {
        let domain = self.lookup(uuid)?;
        self.say(domain.resume())
    }

    fn start(&self, uuid: &str) -> Result<()> {
        let domain = self.lookup(uuid)?;
        self.say(domain.create())
    }

    fn destroy(&self, uuid: &str) -> Result<()> {
        let domain = self.lookup(uuid)?;
        self.say(domain.destroy())
    }

    fn define(&self, xml: &str) -> Result<()> {
        let connect = self.connect()?;
        self.say(connect.define_domain_xml(xml)).map(drop)
    }

    /// A saved state, snapshots and checkpoints make it fail: they would be lost.
    fn undefine(&self, uuid: &str) -> Result<()> {
        let domain = self.lookup(uuid)?;
        let mut flags = sys::VIR_DOMAIN_UNDEFINE_KEEP_NVRAM;
        if self.version()? >= KEEP_TPM {
            flags |= sys::VIR_DOMAIN_UNDEFINE_KEEP_TPM;
        }
        self.say(domain.undefine_flags(flags))
    }

    fn wait(&self, at_most: Duration) {
        self.signal.wait(self.signal.count(), at_most);
    }

    fn refresh_pools(&self, directories: &[&Path]) -> Result<()> {
        let connect = self.connect()?;
        for directory in directories {
            let Some(directory) = directory.to_str() else { continue };
            let found = connect.lookup_storage_pool_by_target_path(directory);
            if let Some(pool) = self.say(unless(code::NO_STORAGE_POOL, found))? {
                self.refresh(&pool)?;
            }
        }
        Ok(())
    }
}

impl BlockJobs for Connection {
    fn block_pull(&self, uuid: &str, target: &str, bandwidth: Option<u64>) -> Result<()> {
        block::pull(self, uuid, target, bandwidth)
    }

    fn block_copy(&self, uuid: &str, target: &str, copy: &BlockCopy) -> Result<()> {
        block::copy(self, uuid, target, copy)
    }

    fn block_progress(&self, uuid: &str, target: &str) -> Result<Option<BlockProgress>> {
        block::progress(self, uuid, target)
    }

    fn pivot(&self, uuid: &str, target: &str) -> Result<bool> {
        block::pivot(self, uuid, target)
    }

    fn abort_block_job(&self, uuid: &str, target: &str) -> Result<()> {
        block::abort(self, uuid, target)
    }
}

/// The names of the domain's snapshots.
fn snapshots(domain: &Domain) -> Outcome<Vec<String>> {
    domain.list_all_snapshots(0)?.iter().map(DomainSnapshot::name).collect()
}

/// Nothing, where the hypervisor has no such thing.
fn supported<T: Default>(outcome: Outcome<T>) -> Outcome<T> {
    Ok(unless(code::NO_SUPPORT, outcome)?.unwrap_or_default())
}
