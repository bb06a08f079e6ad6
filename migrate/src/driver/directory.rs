//! A directory in place of a host: no guest runs there, and none moves by itself. For planning and
//! preparing without libvirt, and for guests that are shut off.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use qcow::CancelToken;
use qcow::ops::info::{InfoOptions, info};

use super::{Hypervisor, Inventory, JobProgress, MigrateRequest};
use crate::domain::parse;
use crate::facts::{
    Abilities, Cpu, CpuFit, DomainFacts, DomainState, HostFacts, PoolFacts, VolumeFacts,
};
use crate::fs::{make_directories, sync_path};
use crate::{Error, Result};

/// Where definitions are, below the directory.
const DEFINITIONS: &str = "etc/libvirt/qemu";

/// A directory that stands for a host's root.
#[derive(Debug, Clone)]
pub struct Directory {
    root: PathBuf,
    domain: Option<(PathBuf, DomainState)>,
    /// What its other domains do.
    state: DomainState,
}

impl Directory {
    /// A host whose files are below `root`. Its domains are the files of `etc/libvirt/qemu` there.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_path_buf(), domain: None, state: DomainState::ShutOff }
    }

    /// And which has the domain that the XML at `path` (of this machine) describes, in this state.
    #[must_use]
    pub fn with_domain(mut self, path: &Path, state: DomainState) -> Self {
        self.domain = Some((path.to_path_buf(), state));
        self
    }

    /// And whose domains are in this state, wherever they run.
    #[must_use]
    pub fn with_state(mut self, state: DomainState) -> Self {
        self.state = state;
        self
    }

    /// The domain that it was given.
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage) if its XML cannot be read, or there is none.
    pub fn given(&self) -> Result<DomainFacts> {
        match &self.domain {
            Some((path, state)) => Self::facts(path, *state),
            None => Err(Error::usage("no domain was given")),
        }
    }

    fn facts(path: &Path, state: DomainState) -> Result<DomainFacts> {
        let xml = fs::read_to_string(path).map_err(|error| {
            Error::usage(format!("{} could not be read: {error}", path.display())).caused_by(error)
        })?;
        let domain = parse(&xml)?;
        Ok(DomainFacts {
            uuid: domain.uuid.unwrap_or_else(|| domain.name.clone()),
            name: domain.name,
            state,
            persistent: true,
            live_xml: xml.clone(),
            migratable_xml: xml.clone(),
            inactive_xml: Some(xml),
            job: None,
            snapshots: Vec::new(),
            checkpoints: Vec::new(),
            saved: false,
        })
    }

    fn definition(&self, name: &str) -> PathBuf {
        self.root.join(DEFINITIONS).join(format!("{name}.xml"))
    }

    /// The files that define its domains, if it was not given one. None if there is no directory of them; where it
    /// cannot be read is not known, and must not pass for a guest that does not exist.
    fn files(&self) -> Result<Vec<PathBuf>> {
        let directory = self.root.join(DEFINITIONS);
        let mut paths = match whole(|| fs::read_dir(&directory)?.collect::<io::Result<Vec<_>>>()) {
            Ok(entries) => entries.into_iter().map(|entry| entry.path()).collect::<Vec<_>>(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                let directory = directory.display();
                return Err(Error::io(format!("could not read '{directory}'"), error));
            }
        };
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "xml"));
        paths.sort();
        Ok(paths)
    }

    /// All domains, with the files that define them. One whose file was removed since the directory was read has been
    /// undefined, as when several guests leave at once.
    fn definitions(&self) -> Result<Vec<(PathBuf, DomainFacts)>> {
        if let Some((path, state)) = &self.domain {
            return Ok(vec![(path.clone(), Self::facts(path, *state)?)]);
        }
        let facts = |path: PathBuf| match Self::facts(&path, self.state) {
            Err(_) if is_gone(&path) => None,
            facts => Some(facts.map(|domain| (path, domain))),
        };
        self.files()?.into_iter().filter_map(facts).collect()
    }

    fn find(&self, key: &str) -> Result<Option<(PathBuf, DomainFacts)>> {
        let mut domains = self.definitions()?.into_iter();
        Ok(domains.find(|(_, domain)| domain.name == key || domain.uuid == key))
    }

    fn nothing_runs<T>(&self) -> Result<T> {
        Err(Error::environment("a directory runs no guests").on(&self.name()))
    }

    fn name(&self) -> String {
        format!("dir:{}", self.root.display())
    }
}

/// Reads something as often as that is interrupted.
fn whole<T>(mut read: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match read() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

impl Inventory for Directory {
    fn host(&self) -> Result<HostFacts> {
        Ok(HostFacts {
            uri: self.name(),
            hostname: self.name(),
            uuid: None,
            libvirt: None,
            qemu: None,
        })
    }

    fn names(&self) -> Result<Vec<String>> {
        if self.domain.is_some() {
            return Ok(vec![self.given()?.name]);
        }
        // As libvirt does, by the names of the files: one that cannot be read has a name too.
        let stem = |path: PathBuf| path.file_stem().map(|name| name.to_string_lossy().into_owned());
        Ok(self.files()?.into_iter().filter_map(stem).collect())
    }

    fn domains(&self) -> Result<Vec<DomainFacts>> {
        Ok(self.definitions()?.into_iter().map(|(_, domain)| domain).collect())
    }

    fn pools(&self) -> Result<Vec<PoolFacts>> {
        Ok(Vec::new())
    }

    fn volumes(&self, _pool: &str) -> Result<Vec<VolumeFacts>> {
        Err(Error::environment("a directory has no storage pools").on(&self.name()))
    }

    fn volume_path(&self, _pool: &str, _volume: &str) -> Result<Option<PathBuf>> {
        Ok(None)
    }

    fn pool_path(&self, _pool: &str) -> Result<Option<PathBuf>> {
        Ok(None)
    }

    fn paths_in_use(&self) -> Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for (_, domain) in self.definitions()? {
            for disk in parse(&domain.live_xml)?.disks {
                paths.extend(disk.chain.layers.into_iter().map(|layer| layer.path));
            }
        }
        Ok(paths)
    }
}

/// Nothing has this name, not even a symbolic link that leads nowhere.
fn is_gone(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

impl Hypervisor for Directory {
    fn abilities(&self) -> Result<Option<Abilities>> {
        Ok(None)
    }

    fn compare_cpu(&self, _cpu: &Cpu<'_>) -> Result<CpuFit> {
        Ok(CpuFit::Unknown { why: "a directory has no processor".into() })
    }

    fn domain(&self, name_or_uuid: &str) -> Result<Option<DomainFacts>> {
        // One that cannot be read is in the way of itself alone.
        let own = self.definition(name_or_uuid);
        if self.domain.is_none() && self.files()?.contains(&own) {
            let domain = Self::facts(&own, self.state)?;
            if domain.name == name_or_uuid || domain.uuid == name_or_uuid {
                return Ok(Some(domain));
            }
        }
        Ok(self.find(name_or_uuid)?.map(|(_, domain)| domain))
    }

    fn state(&self, uuid: &str) -> Result<Option<DomainState>> {
        Ok(self.find(uuid)?.map(|(_, domain)| domain.state))
    }

    fn capacity(&self, uuid: &str, target: &str) -> Result<u64> {
        // Whoever says that the guest runs elsewhere has only its image to tell the size.
        let (_, domain) =
            self.find(uuid)?.ok_or_else(|| Error::usage("there is no such domain"))?;
        let disks = parse(&domain.live_xml)?.disks;
        let disk = disks.into_iter().find(|disk| disk.target == target);
        let layer = disk.as_ref().and_then(|disk| disk.chain.layers.first());
        let (Some(disk), Some(layer)) = (&disk, layer) else { return self.nothing_runs() };
        let path = self.root.join(layer.path.strip_prefix("/").unwrap_or(&layer.path));
        let format = disk.format.as_deref().map(str::parse).transpose()?;
        let open = qcow::chain::OpenOptions::default().format(format).force_share(true);
        // Of an encrypted image too, which cannot be read but has a header: the planner says what is wrong with it.
        let images = info(&path, &InfoOptions::default().open(open))?;
        images
            .first()
            .map(|image| image.virtual_size)
            .ok_or_else(|| Error::environment(format!("{} has no size", path.display())))
    }

    fn block_job(&self, _uuid: &str, _target: &str) -> Result<Option<String>> {
        Ok(None)
    }

    fn migrate(
        &self,
        _request: &MigrateRequest,
        _watch: &dyn Fn(&JobProgress),
        _cancel: &CancelToken,
    ) -> Result<()> {
        self.nothing_runs()
    }

    fn abort(&self, _uuid: &str) -> Result<()> {
        Ok(())
    }

    fn job(&self, _uuid: &str) -> Result<Option<JobProgress>> {
        Ok(None)
    }

    fn suspend(&self, _uuid: &str) -> Result<()> {
        self.nothing_runs()
    }

    fn resume(&self, _uuid: &str) -> Result<()> {
        self.nothing_runs()
    }

    fn start(&self, _uuid: &str) -> Result<()> {
        self.nothing_runs()
    }

    fn destroy(&self, _uuid: &str) -> Result<()> {
        self.nothing_runs()
    }

    fn define(&self, xml: &str) -> Result<()> {
        let path = self.definition(&parse(xml)?.name);
        let failed = |error| Error::io(format!("{} could not be written", path.display()), error);
        // The definition appears whole, and never in place of another; it is durable before anybody relies on it.
        let directory = path.parent().unwrap_or(Path::new("/"));
        make_directories(directory, 0o755)?;
        let mut file = tempfile::NamedTempFile::new_in(directory).map_err(failed)?;
        std::io::Write::write_all(&mut file, xml.as_bytes()).map_err(failed)?;
        file.as_file().sync_all().map_err(failed)?;
        file.persist_noclobber(&path).map_err(|error| failed(error.error))?;
        sync_path(directory).inspect_err(|_| drop(fs::remove_file(&path)))
    }

    fn undefine(&self, uuid: &str) -> Result<()> {
        // The file that the caller named is the caller's.
        let found = if self.domain.is_none() { self.find(uuid)? } else { None };
        let Some((path, _)) = found else { return Ok(()) };
        fs::remove_file(&path).map_err(|error| {
            Error::io(format!("{} could not be removed", path.display()), error)
        })?;
        path.parent().map_or(Ok(()), sync_path)
    }

    fn refresh_pools(&self, _directories: &[&Path]) -> Result<()> {
        Ok(())
    }
}
