//! Two hosts in memory, for the tests of programs that move guests: the whole way of a live migration can be
//! gone, with images that are real files, and without libvirt.
//!
//! ```
//! use std::path::Path;
//! use migrate::driver::Inventory;
//! let root = std::env::temp_dir();
//! let [source, destination] = migrate::memory::pair(&root);
//! source.run("<domain><name>web</name><uuid>6f1a9b52-6f2b-4a6e-9a53-0d8a6d0a7c11</uuid></domain>")?;
//! assert_eq!(source.names()?, ["web"]);
//! assert!(destination.names()?.is_empty());
//! # Ok::<(), migrate::Error>(())
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use qcow::chain::{Chain, Format, OpenOptions};
use qcow::ops::flatten::{FlattenOptions, flatten};
use qcow::ops::{RawOptions, TargetOptions};
use qcow::{CancelToken, Silent};

use crate::domain::{XmlDisk, parse};
use crate::driver::{Hypervisor, Inventory, JobProgress, MigrateRequest, check_request};
use crate::facts::{
    Abilities, Cpu, CpuFit, DomainFacts, DomainState, HostFacts, PoolFacts, Source, Version,
    VolumeFacts,
};
use crate::plan::Flag;
use crate::{Error, Result};

/// What goes wrong with the next migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// It fails, and the guest stays.
    Fails,
    /// The guest moves, but the answer is an error.
    AnswerLost,
}

/// One of two hosts.
#[derive(Debug, Clone)]
pub struct MemoryHost {
    both: Arc<Mutex<Both>>,
    at: Side,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
}

#[derive(Debug, Default)]
struct Both {
    source: BTreeMap<String, DomainFacts>,
    destination: BTreeMap<String, DomainFacts>,
    /// What stands for `/` of the destination.
    root: PathBuf,
    fault: Option<Fault>,
}

impl Both {
    fn domains(&mut self, at: Side) -> &mut BTreeMap<String, DomainFacts> {
        match at {
            Side::Source => &mut self.source,
            Side::Destination => &mut self.destination,
        }
    }
}

/// A source, whose files are those of this machine, and a destination, whose files are below `root`.
pub fn pair(root: &Path) -> [MemoryHost; 2] {
    let both = Arc::new(Mutex::new(Both { root: root.to_path_buf(), ..Both::default() }));
    [Side::Source, Side::Destination].map(|at| MemoryHost { both: Arc::clone(&both), at })
}

impl MemoryHost {
    /// Defines and starts a guest.
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage) if its XML cannot be read.
    pub fn run(&self, xml: &str) -> Result<DomainFacts> {
        let facts = facts(xml, xml, DomainState::Running)?;
        self.both().domains(self.at).insert(facts.uuid.clone(), facts.clone());
        Ok(facts)
    }

    /// Has the next migration go wrong.
    pub fn fault(&self, fault: Fault) {
        self.both().fault = Some(fault);
    }

    fn both(&self) -> MutexGuard<'_, Both> {
        self.both.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name(&self) -> String {
        match self.at {
            Side::Source => crate::host::name(),
            Side::Destination => "memory".into(),
        }
    }

    fn change(&self, uuid: &str, state: DomainState) -> Result<()> {
        match self.both().domains(self.at).get_mut(uuid) {
            Some(domain) => {
                domain.state = state;
                Ok(())
            }
            None => Err(no_domain(uuid)),
        }
    }

    /// The disk of a domain of this host.
    fn disk(&self, uuid: &str, target: &str) -> Result<XmlDisk> {
        let xml = match self.both().domains(self.at).get(uuid) {
            Some(domain) => domain.live_xml.clone(),
            None => return Err(no_domain(uuid)),
        };
        disk_of(&xml, target)
    }
}

fn no_domain(uuid: &str) -> Error {
    Error::environment(format!("there is no domain {uuid}"))
}

fn facts(live: &str, inactive: &str, state: DomainState) -> Result<DomainFacts> {
    let domain = parse(live)?;
    Ok(DomainFacts {
        uuid: domain.uuid.unwrap_or_else(|| domain.name.clone()),
        name: domain.name,
        state,
        persistent: true,
        live_xml: live.to_owned(),
        migratable_xml: live.to_owned(),
        inactive_xml: Some(inactive.to_owned()),
        job: None,
        snapshots: Vec::new(),
        checkpoints: Vec::new(),
        saved: false,
    })
}

fn disk_of(xml: &str, target: &str) -> Result<XmlDisk> {
    let disk = parse(xml)?.disks.into_iter().find(|disk| disk.target == target);
    disk.ok_or_else(|| Error::environment(format!("there is no disk {target}")))
}

fn path_of(disk: &XmlDisk) -> Result<&Path> {
    match &disk.source {
        Source::File { path } | Source::Block { path } => Ok(path),
        _ => Err(Error::environment(format!("the disk {} is no file", disk.target))),
    }
}

fn chain(disk: &XmlDisk) -> Result<Chain> {
    let format = disk.format.as_deref().unwrap_or("raw").parse::<qcow::chain::Format>()?;
    let open = OpenOptions::default().format(format).force_share(true);
    Ok(Chain::open(path_of(disk)?, &open)?)
}

/// Fills the image that `to` names below `root`, as the hypervisor does: it must be there already.
fn copy(from: &XmlDisk, to: &XmlDisk, root: &Path, incremental: bool) -> Result<()> {
    let path = path_of(to)?;
    let place = root.join(path.strip_prefix("/").unwrap_or(path));
    if !place.exists() {
        return Err(Error::environment(format!("there is no image {}", path.display())));
    }
    let mut filled = place.clone().into_os_string();
    filled.push(".filled");
    let filled = PathBuf::from(filled);
    let open = chain(from)?;
    if incremental {
        fs::copy(path_of(from)?, &filled).map_err(|error| Error::io("could not copy", error))?;
    } else {
        let mut options = FlattenOptions::default();
        if from.format.as_deref() != Some(Format::Qcow2.as_str()) {
            options.target = TargetOptions::Raw(RawOptions::default());
        }
        flatten(&open, &filled, &options, &Silent, &CancelToken::new())?;
    }
    // Into the file that is there, which stays the file that it was.
    let done = fs::copy(&filled, &place).and_then(|_| fs::remove_file(&filled));
    done.map_err(|error| Error::io("could not fill the image", error))
}

impl Inventory for MemoryHost {
    fn host(&self) -> Result<HostFacts> {
        Ok(HostFacts {
            uri: format!("memory:///{}", self.name()),
            hostname: self.name(),
            uuid: None,
            libvirt: Some(Version::new(11, 3, 0)),
            qemu: Some(Version::new(10, 0, 2)),
        })
    }

    fn names(&self) -> Result<Vec<String>> {
        let mut names: Vec<_> = self.domains()?.into_iter().map(|domain| domain.name).collect();
        names.sort_unstable();
        Ok(names)
    }

    fn domains(&self) -> Result<Vec<DomainFacts>> {
        Ok(self.both().domains(self.at).values().cloned().collect())
    }

    fn pools(&self) -> Result<Vec<PoolFacts>> {
        Ok(Vec::new())
    }

    fn volumes(&self, _pool: &str) -> Result<Vec<VolumeFacts>> {
        Ok(Vec::new())
    }

    fn volume_path(&self, _pool: &str, _volume: &str) -> Result<Option<PathBuf>> {
        Ok(None)
    }

    fn pool_path(&self, _pool: &str) -> Result<Option<PathBuf>> {
        Ok(None)
    }

    fn paths_in_use(&self) -> Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for domain in self.domains()? {
            for disk in parse(&domain.live_xml)?.disks {
                paths.extend(path_of(&disk).map(Path::to_path_buf));
                paths.extend(disk.chain.layers.into_iter().map(|layer| layer.path));
            }
        }
        Ok(paths)
    }
}

impl Hypervisor for MemoryHost {
    fn abilities(&self) -> Result<Option<Abilities>> {
        Ok(None)
    }

    fn compare_cpu(&self, _cpu: &Cpu<'_>) -> Result<CpuFit> {
        Ok(CpuFit::Identical)
    }

    fn domain(&self, name_or_uuid: &str) -> Result<Option<DomainFacts>> {
        let is = |domain: &DomainFacts| domain.name == name_or_uuid || domain.uuid == name_or_uuid;
        Ok(self.domains()?.into_iter().find(is))
    }

    fn state(&self, uuid: &str) -> Result<Option<DomainState>> {
        Ok(self.both().domains(self.at).get(uuid).map(|domain| domain.state))
    }

    fn capacity(&self, uuid: &str, target: &str) -> Result<u64> {
        Ok(chain(&self.disk(uuid, target)?)?.virtual_size())
    }

    fn block_job(&self, _uuid: &str, _target: &str) -> Result<Option<String>> {
        Ok(None)
    }

    fn migrate(
        &self,
        request: &MigrateRequest,
        watch: &dyn Fn(&JobProgress),
        cancel: &CancelToken,
    ) -> Result<()> {
        check_request(request)?;
        let (root, fault) = {
            let mut both = self.both();
            (both.root.clone(), both.fault.take())
        };
        let incremental = request.flags.contains(&Flag::NonSharedInc);
        for target in &request.migrate_disks {
            let to = disk_of(&request.destination_xml, target)?;
            copy(&self.disk(&request.uuid, target)?, &to, &root, incremental)?;
            watch(&JobProgress { disk_total: 1, disk_processed: 1, ..JobProgress::default() });
        }
        watch(&JobProgress { memory_total: 1, ..JobProgress::default() });
        cancel.check()?;
        if fault == Some(Fault::Fails) {
            return Err(Error::environment("the migration fails, as was asked for"));
        }
        let paused = request.flags.contains(&Flag::Paused);
        let state = if paused { DomainState::Paused } else { DomainState::Running };
        let inactive = request.persistent_xml.as_deref().unwrap_or(&request.destination_xml);
        let arrived = facts(&request.destination_xml, inactive, state)?;
        let mut both = self.both();
        both.destination.insert(request.uuid.clone(), arrived);
        if request.flags.contains(&Flag::UndefineSource) {
            both.source.remove(&request.uuid);
        } else if let Some(left) = both.source.get_mut(&request.uuid) {
            left.state = DomainState::ShutOff;
        }
        match fault {
            Some(Fault::AnswerLost) => {
                Err(Error::environment("the answer is lost, as was asked for"))
            }
            _ => Ok(()),
        }
    }

    fn abort(&self, _uuid: &str) -> Result<()> {
        Ok(())
    }

    fn job(&self, _uuid: &str) -> Result<Option<JobProgress>> {
        Ok(None)
    }

    fn suspend(&self, uuid: &str) -> Result<()> {
        self.change(uuid, DomainState::Paused)
    }

    fn resume(&self, uuid: &str) -> Result<()> {
        self.change(uuid, DomainState::Running)
    }

    fn start(&self, uuid: &str) -> Result<()> {
        self.change(uuid, DomainState::Running)
    }

    fn destroy(&self, uuid: &str) -> Result<()> {
        self.change(uuid, DomainState::ShutOff)
    }

    fn define(&self, xml: &str) -> Result<()> {
        let facts = facts(xml, xml, DomainState::ShutOff)?;
        let mut both = self.both();
        match both.domains(self.at).get_mut(&facts.uuid) {
            Some(known) => known.inactive_xml = facts.inactive_xml,
            None => drop(both.domains(self.at).insert(facts.uuid.clone(), facts)),
        }
        Ok(())
    }

    fn undefine(&self, uuid: &str) -> Result<()> {
        self.both().domains(self.at).remove(uuid);
        Ok(())
    }

    fn refresh_pools(&self, _directories: &[&Path]) -> Result<()> {
        Ok(())
    }

    fn wait(&self, _at_most: std::time::Duration) {}
}
