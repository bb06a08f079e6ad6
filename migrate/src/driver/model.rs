//! A model of two hosts that behaves as libvirt and QEMU were observed to, silent corruption included.
//!
//! It is what plans are tried on, by the thousand, without a hypervisor. Disks are short rows of
//! clusters, a cluster holds one value, and the model remembers what the guest wrote, so that it can
//! tell a wrong disk from a right one. Where observation leaves room, it takes the worse.
//!
//! What it must get right is what goes wrong:
//!
//! - nothing is compared: an incremental copy copies the data of the active layer, whatever is below
//!   at the destination, and whatever the target held before;
//! - only a full copy clears its target first;
//! - a target that exists is taken as it is, but for its size;
//! - the chain in the XML goes before the one in the header, until the next start;
//! - files that were made are not removed when something fails.

mod facts;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use qcow::chain::Format;

use crate::domain::{Change, DiskEdit};
use crate::facts::NamedLayer;
use crate::plan::Flag;
use crate::{Error, Result};

/// Bytes of a cluster.
pub const CLUSTER: u64 = 65536;

/// Which object a file is. It outlives its name while a process has it open.
pub type Inode = u64;

/// A storage that one host or both have mounted.
pub type StorageId = u64;

/// One of the two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// Where the guest is at first.
    Source,
    /// Where it shall go.
    Destination,
}

/// An image file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its format.
    pub format: Format,
    /// What each cluster holds. `None` is what the layer below holds, or zeros.
    pub clusters: Vec<Option<u8>>,
    /// The layer below, as its header names it.
    pub backing: Option<NamedLayer>,
    /// Its internal snapshots.
    pub snapshots: Vec<String>,
    /// It was not closed properly.
    pub dirty: bool,
    /// Another guest of its host writes to it.
    pub in_use: bool,
    /// Counts its changes.
    pub changes: i64,
}

impl Image {
    /// A clean image of these clusters.
    pub fn new(format: Format, clusters: Vec<Option<u8>>, backing: Option<NamedLayer>) -> Self {
        Self {
            format,
            clusters,
            backing,
            snapshots: Vec::new(),
            dirty: false,
            in_use: false,
            changes: 0,
        }
    }

    /// An empty one of `clusters` clusters.
    pub fn empty(format: Format, clusters: usize, backing: Option<NamedLayer>) -> Self {
        Self::new(format, vec![None; clusters], backing)
    }

    /// Size of its disk in bytes.
    pub fn virtual_size(&self) -> u64 {
        (self.clusters.len() as u64).saturating_mul(CLUSTER)
    }

    fn set(&mut self, cluster: usize, value: Option<u8>) {
        if let Some(place) = self.clusters.get_mut(cluster) {
            *place = value;
            self.changes = self.changes.saturating_add(1);
        }
    }
}

/// A disk of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestDisk {
    /// Its name in the guest.
    pub target: String,
    /// The guest cannot write to it.
    pub readonly: bool,
    /// Its image, and the layers below that the XML names.
    pub named: Vec<NamedLayer>,
    /// The XML ends the chain after these.
    pub terminated: bool,
    /// What the guest wrote, and what it therefore must read.
    pub content: Vec<u8>,
    /// What the guest's process has open, by name; empty while there is none.
    open: Vec<(NamedLayer, Inode)>,
}

impl GuestDisk {
    /// A disk whose image is at `path`; the chain is left to the headers.
    pub fn new(target: &str, path: &Path, format: Format) -> Self {
        Self {
            target: target.to_owned(),
            readonly: false,
            named: vec![layer(path, format)],
            terminated: false,
            content: Vec::new(),
            open: Vec::new(),
        }
    }
}

/// What libvirt is asked for; the XML as what changes in it.
#[derive(Debug, Clone, Default)]
pub struct MigrationRequest {
    /// The flags.
    pub flags: Vec<Flag>,
    /// The disks to copy.
    pub migrate_disks: Vec<String>,
    /// What is different in the destination's XML.
    pub edits: Vec<DiskEdit>,
}

/// What happens on the way.
#[derive(Debug, Clone, Default)]
pub struct Scenario {
    /// The guest writes meanwhile: disk, cluster, value.
    pub writes: Vec<(usize, usize, u8)>,
    /// What fails.
    pub fault: Option<Fault>,
}

/// A failure during a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The destination's process does not start.
    Start,
    /// The connection is lost while disks are copied.
    HalfWay,
    /// The guest's memory cannot be moved.
    Memory,
    /// All goes well, but the answer is lost.
    Answer,
}

/// Two hosts, their files, and one guest.
#[derive(Debug, Clone)]
pub struct Model {
    files: BTreeMap<Inode, Image>,
    names: BTreeMap<(StorageId, OsString), Inode>,
    mounts: BTreeMap<(Side, PathBuf), StorageId>,
    /// The guest's disks.
    pub disks: Vec<GuestDisk>,
    /// The host that the guest is defined on.
    pub on: Side,
    /// It has a process.
    pub running: bool,
}

impl Model {
    /// Hosts that have mounted these storages at these directories.
    pub fn new(mounts: &[(Side, &str, StorageId)]) -> Self {
        let mounts = mounts.iter().map(|(side, dir, id)| ((*side, PathBuf::from(dir)), *id));
        Self {
            files: BTreeMap::new(),
            names: BTreeMap::new(),
            mounts: mounts.collect(),
            disks: Vec::new(),
            on: Side::Source,
            running: false,
        }
    }

    /// Makes a file. Its name must be free.
    ///
    /// # Errors
    /// If it is not, or the directory is not there.
    pub fn put(&mut self, side: Side, path: &Path, image: Image) -> Result<Inode> {
        let name = self.name(side, path)?;
        if self.names.contains_key(&name) {
            return fail(format!("{} exists", path.display()));
        }
        let inode = self.files.len() as u64;
        self.files.insert(inode, image);
        self.names.insert(name, inode);
        Ok(inode)
    }

    /// Takes a file's name away.
    pub fn unlink(&mut self, side: Side, path: &Path) {
        if let Ok(name) = self.name(side, path) {
            self.names.remove(&name);
        }
    }

    /// The file of a name.
    pub fn look(&self, side: Side, path: &Path) -> Option<(Inode, &Image)> {
        let inode = *self.names.get(&self.name(side, path).ok()?)?;
        Some((inode, self.files.get(&inode)?))
    }

    /// Changes the file of a name, if there is one.
    pub fn change(&mut self, side: Side, path: &Path, change: impl FnOnce(&mut Image)) {
        let Some((inode, _)) = self.look(side, path) else { return };
        if let Some(image) = self.files.get_mut(&inode) {
            change(image);
            image.changes = image.changes.saturating_add(1);
        }
    }

    /// All files, whether they have a name or not.
    pub fn files(&self) -> &BTreeMap<Inode, Image> {
        &self.files
    }

    /// Starts the guest on its host.
    ///
    /// # Errors
    /// If a layer is not there.
    pub fn start(&mut self) -> Result<()> {
        let chains: Vec<_> =
            self.disks.iter().map(|disk| self.open(self.on, disk)).collect::<Result<_>>()?;
        for (disk, open) in self.disks.iter_mut().zip(chains) {
            disk.open = open;
        }
        self.running = true;
        Ok(())
    }

    /// Ends the guest's process.
    pub fn stop(&mut self) {
        for disk in &mut self.disks {
            disk.open.clear();
        }
        self.running = false;
    }

    /// The guest writes.
    pub fn write(&mut self, disk: usize, cluster: usize, value: u8) {
        let Some(disk) = self.disks.get_mut(disk).filter(|disk| !disk.readonly) else { return };
        let Some((_, top)) = disk.open.first() else { return };
        if let Some(place) = disk.content.get_mut(cluster) {
            *place = value;
            if let Some(image) = self.files.get_mut(top) {
                image.set(cluster, Some(value));
            }
        }
    }

    /// What the guest reads of a disk now: from what its process has open, or else as a start would.
    ///
    /// # Errors
    /// If a layer is not there.
    pub fn read(&self, disk: &GuestDisk) -> Result<Vec<u8>> {
        let open = if self.running { disk.open.clone() } else { self.open(self.on, disk)? };
        Ok(self.content(&open))
    }

    /// What the guest would read of a disk after a restart, with chains from the headers alone.
    ///
    /// # Errors
    /// If a layer is not there.
    pub fn read_after_restart(&self, disk: &GuestDisk) -> Result<Vec<u8>> {
        let top = disk.named.first().cloned();
        let cold =
            GuestDisk { named: top.into_iter().collect(), terminated: false, ..disk.clone() };
        Ok(self.content(&self.open(self.on, &cold)?))
    }

    /// What the image at `path` and all below it show.
    ///
    /// # Errors
    /// If a layer is not there.
    pub fn show(&self, side: Side, path: &Path, format: Format) -> Result<Vec<u8>> {
        let disk = GuestDisk::new("", path, format);
        Ok(self.content(&self.open(side, &disk)?))
    }

    /// libvirt's part: everything from the first check to the end, good or bad. The guest is afterwards where
    /// [`on`](Self::on) says, whatever the answer.
    ///
    /// # Errors
    /// What libvirt would say.
    pub fn migrate(&mut self, request: &MigrationRequest, scenario: &Scenario) -> Result<()> {
        let full = request.flags.contains(&Flag::NonSharedDisk);
        let incremental = request.flags.contains(&Flag::NonSharedInc);
        if full && incremental {
            return fail("the storage flags exclude each other");
        }
        let copied = self.copied(request, full || incremental)?;
        let edited: Vec<GuestDisk> =
            self.disks.iter().map(|disk| edited(disk, &request.edits)).collect();

        // Prepare: what exists is taken as it is.
        for disk in edited.iter().filter(|disk| copied.contains(&disk.target)) {
            let path = &top_of(disk)?.path;
            if self.look(Side::Destination, path).is_none() {
                return fail(if incremental {
                    "pre-creation for incremental copies is not supported".to_owned()
                } else {
                    format!("no storage pool for {}", path.display())
                });
            }
        }
        let mut arrived = edited;
        for disk in &mut arrived {
            disk.open = self.open(Side::Destination, disk)?;
        }
        if scenario.fault == Some(Fault::Start) {
            return fail("the destination's process did not start");
        }
        for (source, destination) in self.disks.iter().zip(&arrived) {
            let same =
                source.open.first().map(|it| it.1) == destination.open.first().map(|it| it.1);
            if same && copied.contains(&source.target) {
                return fail("failed to get a write lock");
            }
        }

        // Perform.
        for (source, destination) in self.disks.clone().iter().zip(&arrived) {
            if copied.contains(&source.target) {
                self.mirror(source, destination, full, scenario.fault == Some(Fault::HalfWay))?;
            }
        }
        for (disk, cluster, value) in &scenario.writes {
            self.write(*disk, *cluster, *value);
            let mirrored = arrived
                .get(*disk)
                .filter(|disk| copied.contains(&disk.target) && *cluster < disk.content.len());
            let top = mirrored.and_then(|disk| disk.open.first()).map(|(_, inode)| *inode);
            if let Some(image) = top.and_then(|inode| self.files.get_mut(&inode)) {
                image.set(*cluster, Some(*value));
            }
        }
        if scenario.fault == Some(Fault::Memory) {
            return fail("the connection was lost");
        }

        // It runs there from here on.
        for (disk, arrived) in self.disks.iter_mut().zip(arrived) {
            *disk = GuestDisk { content: std::mem::take(&mut disk.content), ..arrived };
        }
        self.on = Side::Destination;
        match scenario.fault {
            Some(Fault::Answer) => fail("the connection was lost"),
            _ => Ok(()),
        }
    }

    /// Names of the disks that are copied; an empty list is all of them.
    fn copied(&self, request: &MigrationRequest, storage: bool) -> Result<Vec<String>> {
        let writable = |disk: &&GuestDisk| !disk.readonly;
        if !storage {
            if !request.migrate_disks.is_empty() {
                return fail("disks without a storage flag");
            }
        } else if request.migrate_disks.is_empty() {
            let all = self.disks.iter().filter(writable);
            return Ok(all.map(|disk| disk.target.clone()).collect());
        }
        for name in &request.migrate_disks {
            match self.disks.iter().find(|disk| disk.target == *name) {
                None => return fail(format!("no disk {name}")),
                Some(disk) if disk.readonly => return fail("cannot migrate a read-only disk"),
                Some(_) => {}
            }
        }
        for disk in self.disks.iter().filter(writable) {
            let listed = request.migrate_disks.contains(&disk.target);
            let path = &top_of(disk)?.path;
            if !listed && self.storage(path) == Some(false) {
                return fail("migration without shared storage is unsafe");
            }
        }
        Ok(request.migrate_disks.clone())
    }

    /// Whether both hosts have the same storage at the directory of `path`.
    fn storage(&self, path: &Path) -> Option<bool> {
        let directory = path.parent()?.to_path_buf();
        let mounted = |side| self.mounts.get(&(side, directory.clone()));
        Some(mounted(Side::Source)? == mounted(Side::Destination)?)
    }

    /// One disk's copy.
    fn mirror(
        &mut self,
        source: &GuestDisk,
        destination: &GuestDisk,
        full: bool,
        half: bool,
    ) -> Result<()> {
        let inode = |disk: &GuestDisk| disk.open.first().map(|(_, inode)| *inode);
        let (Some(from), Some(to)) = (inode(source), inode(destination)) else {
            return fail("a disk is not open");
        };
        let size = |inode| self.files.get(inode).map(|image| image.clusters.len());
        if size(&from) != size(&to) {
            return fail("source and target have different sizes");
        }
        let content = self.content(&source.open);
        let held = self.files.get(&from).map(|image| image.clusters.clone()).unwrap_or_default();
        // Zeros under a base have to be written; without one, letting go of the cluster is enough.
        let zero = if destination.open.len() > 1 { Some(0) } else { None };
        let Some(target) = self.files.get_mut(&to) else { return fail("the target is gone") };
        let stop_at = if half { held.len() / 2 } else { held.len() };
        for (cluster, (value, held)) in content.iter().zip(&held).enumerate() {
            if cluster >= stop_at {
                return fail("the connection was lost");
            }
            if full {
                target.set(cluster, if *value == 0 { zero } else { Some(*value) });
            } else if held.is_some() {
                // Nothing else is touched, whatever the target holds there.
                target.set(cluster, *held);
            }
        }
        Ok(())
    }

    /// What a process that starts on `side` opens for a disk.
    fn open(&self, side: Side, disk: &GuestDisk) -> Result<Vec<(NamedLayer, Inode)>> {
        let mut open = Vec::new();
        let mut named = disk.named.iter().cloned();
        let mut next = named.next();
        while let Some(layer) = next {
            let Some((inode, image)) = self.look(side, &layer.path) else {
                return fail(format!("cannot access {}", layer.path.display()));
            };
            next = named.next().or_else(|| image.backing.clone().filter(|_| !disk.terminated));
            open.push((layer, inode));
            if open.len() > self.files.len() {
                return fail("the chain has no end");
            }
        }
        Ok(open)
    }

    /// What a chain of open files shows.
    fn content(&self, open: &[(NamedLayer, Inode)]) -> Vec<u8> {
        let layers: Vec<&Image> =
            open.iter().filter_map(|(_, inode)| self.files.get(inode)).collect();
        let length = layers.first().map_or(0, |top| top.clusters.len());
        (0..length)
            .map(|cluster| {
                // Past the end of a shorter layer there are zeros, whatever is below it.
                let reach = layers.iter().take_while(|image| cluster < image.clusters.len());
                reach.filter_map(|image| *image.clusters.get(cluster)?).next().unwrap_or(0)
            })
            .collect()
    }

    fn name(&self, side: Side, path: &Path) -> Result<(StorageId, OsString)> {
        let directory = path.parent().unwrap_or(Path::new("/")).to_path_buf();
        match (self.mounts.get(&(side, directory)), path.file_name()) {
            (Some(storage), Some(name)) => Ok((*storage, name.to_os_string())),
            _ => fail(format!("there is no directory for {}", path.display())),
        }
    }
}

/// A disk as the destination's XML has it.
pub fn edited(disk: &GuestDisk, edits: &[DiskEdit]) -> GuestDisk {
    let mut disk = disk.clone();
    let Some(edit) = edits.iter().find(|edit| edit.target == disk.target) else { return disk };
    match &edit.change {
        Change::Move { path, format, below, .. } => {
            disk.named = vec![layer(path, *format)];
            disk.named.extend(below.iter().cloned());
            disk.terminated = true;
        }
        Change::Medium { path } => {
            if let Some(top) = disk.named.first_mut() {
                top.path.clone_from(path);
            }
        }
        Change::Chain { below } => {
            disk.named.truncate(1);
            disk.named.extend(below.iter().cloned());
            disk.terminated = true;
        }
        Change::Eject => {
            disk.named.clear();
            disk.content.clear();
        }
    }
    disk
}

fn top_of(disk: &GuestDisk) -> Result<&NamedLayer> {
    disk.named.first().ok_or_else(|| Error::environment("the drive is empty"))
}

/// A layer with its format.
pub fn layer(path: &Path, format: Format) -> NamedLayer {
    NamedLayer { path: path.to_path_buf(), format: Some(format.as_str().to_owned()) }
}

fn fail<T>(message: impl Into<String>) -> Result<T> {
    Err(Error::environment(message))
}
