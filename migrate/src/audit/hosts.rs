//! What a libvirt tells: its pools, and its domains with their disks.
//!
//! Of this machine, libvirt only says where to look: the files themselves are looked at. The files of
//! another host cannot be, so what its libvirt says is all that is known, and names are all that tells its
//! files apart.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::scan::Scan;
use super::value::{
    Content, Disk, Domain, Form, Header, Image, Key, Link, Name, Need, Presence, Status, Unseen,
    UsedLayer,
};
use crate::Result;
use crate::domain::{XmlDisk, parse};
use crate::driver::Inventory;
use crate::facts::{DomainFacts, DomainState, NamedLayer, PoolFacts, Source, VolumeFacts};
use crate::host::is_local;

impl Scan<'_> {
    /// Adds the pools and domains that a libvirt knows, its own host's files included if that is this
    /// machine.
    ///
    /// # Errors
    /// [`Environment`](crate::ErrorKind::Environment) if it does not answer;
    /// [`Interrupted`](crate::ErrorKind::Interrupted).
    pub fn host(&self, hypervisor: &dyn Inventory) -> Result<()> {
        let facts = hypervisor.host()?;
        let name = (!is_local(&facts)).then_some(facts.hostname);
        let host = Host { scan: self, hypervisor, name };
        let mut below = Vec::new();
        for pool in hypervisor.pools()? {
            host.pool(&pool, &mut below)?;
        }
        let mut known = host.volumes_known();
        for layer in &below {
            if let Some(key) = host.layer(&layer.path).filter(|key| !known.contains(key)) {
                host.end(&key, layer);
            }
        }
        for domain in hypervisor.domains()? {
            host.domain(&domain, &mut known);
        }
        if host.name.is_none() {
            self.domains_are_known();
        }
        Ok(())
    }
}

/// Disks whose chain the XML for another host names. That XML is parsed for its chains alone: what is wrong with it is told
/// of the XML of what runs.
fn named(migratable: &str) -> Vec<(String, Vec<PathBuf>)> {
    let disks = parse(migratable).map(|domain| domain.disks).unwrap_or_default();
    let below = |disk: XmlDisk| {
        let layers = disk.chain.layers.into_iter().skip(1);
        (disk.target, layers.map(|layer| layer.path).collect::<Vec<_>>())
    };
    disks.into_iter().map(below).filter(|(_, below)| !below.is_empty()).collect()
}

struct Host<'a, 'b> {
    scan: &'a Scan<'b>,
    hypervisor: &'a dyn Inventory,
    /// `None` for this machine.
    name: Option<String>,
}

impl Host<'_, '_> {
    fn unseen(&self, path: impl Into<PathBuf>, why: impl Into<String>) {
        let host = self.name.clone();
        self.scan.unseen(Unseen { host, path: path.into(), why: why.into(), asked: false });
    }

    /// Looks at a pool, or keeps what another host tells of it; the backing files of its volumes go to `below`.
    fn pool(&self, pool: &PoolFacts, below: &mut Vec<NamedLayer>) -> Result<()> {
        let in_directory = matches!(pool.kind.as_str(), "dir" | "fs" | "netfs");
        let on_devices = matches!(
            pool.kind.as_str(),
            "logical" | "disk" | "iscsi" | "iscsi-direct" | "scsi" | "mpath" | "zfs" | "vstorage"
        );
        let path = pool.path.clone().unwrap_or_else(|| PathBuf::from(&pool.name));
        if in_directory && self.name.is_none() {
            // What is mounted when the pool is started may not be there now.
            if !pool.active && pool.kind != "dir" {
                self.unseen(&path, format!("the pool '{}' is not started", pool.name));
            }
            return if path.is_absolute() { self.scan.place(&path, false) } else { Ok(()) };
        }
        if !in_directory && !on_devices {
            return Ok(());
        }
        if !pool.active {
            self.unseen(&path, format!("the pool '{}' is not started", pool.name));
            return Ok(());
        }
        for volume in self.hypervisor.volumes(&pool.name)? {
            match &self.name {
                None => drop(self.scan.image(&volume.own.path)),
                Some(host) => {
                    self.scan.keep(told(host, &volume));
                    below.extend(volume.backing);
                }
            }
        }
        Ok(())
    }

    /// The images of another host whose header its libvirt has read.
    fn volumes_known(&self) -> HashSet<Key> {
        self.name.as_deref().map(|host| self.scan.on_host(host)).unwrap_or_default()
    }

    fn domain(&self, facts: &DomainFacts, known: &mut HashSet<Key>) {
        let runs = facts.state != DomainState::ShutOff;
        let mut texts = vec![(&facts.live_xml, Form::Now)];
        texts
            .extend(facts.inactive_xml.as_ref().filter(|_| runs).map(|xml| (xml, Form::NextStart)));
        let mut domain = Domain {
            host: self.name.clone(),
            name: facts.name.clone(),
            uuid: facts.uuid.clone(),
            runs,
            disks: Vec::new(),
            named: if runs { named(&facts.migratable_xml) } else { Vec::new() },
        };
        for (xml, form) in texts {
            match parse(xml) {
                Ok(parsed) => {
                    let disks = parsed.disks.iter();
                    domain.disks.extend(disks.filter_map(|disk| self.disk(disk, form, known)));
                }
                Err(error) => {
                    self.unseen(&facts.name, format!("the domain's XML: {}", error.message()));
                }
            }
        }
        // What the next start uses is worth a word only where it is another image or chain.
        let (now, next): (Vec<_>, Vec<_>) =
            std::mem::take(&mut domain.disks).into_iter().partition(|disk| disk.form == Form::Now);
        let differs = |disk: &Disk| {
            let same = |other: &&Disk| other.target == disk.target;
            now.iter().find(same).is_none_or(|other| !covers(other, disk))
        };
        let next: Vec<_> = next.into_iter().filter(differs).collect();
        domain.disks = now;
        domain.disks.extend(next);
        self.scan.domain(domain);
    }

    fn disk(&self, disk: &XmlDisk, form: Form, known: &mut HashSet<Key>) -> Option<Disk> {
        let own = match &disk.source {
            Source::File { path } | Source::Block { path } => path.clone(),
            Source::Volume { pool, volume, path } => match path
                .clone()
                .or_else(|| self.hypervisor.volume_path(pool, volume).ok().flatten())
            {
                Some(path) => path,
                None => {
                    let name = format!("volume:{pool}/{volume}");
                    self.unseen(name, "libvirt does not report the path of this volume");
                    return None;
                }
            },
            Source::None | Source::Network { .. } | Source::Other { .. } => return None,
        };
        let own = (own, disk.format.clone());
        let below = disk.chain.layers.iter().skip(1);
        let below = below.map(|layer| (layer.path.clone(), layer.format.clone()));
        let mut layers = Vec::new();
        let mut whole = true;
        for (name, format) in std::iter::once(own).chain(below) {
            // Below what is no file, nothing is known to be one.
            if !name.is_absolute() {
                whole = false;
                break;
            }
            let Some(key) = self.layer(&name) else { break };
            let name = if self.name.is_none() { super::scan::canonical(&name) } else { name };
            layers.push(UsedLayer { key, name, format });
        }
        let terminated = disk.chain.terminated && whole;
        self.told_by_xml(&layers, terminated, known);
        (!layers.is_empty()).then(|| Disk {
            target: disk.target.clone(),
            form,
            layers,
            terminated,
            writes: !disk.readonly,
            shareable: disk.shareable,
        })
    }

    fn layer(&self, name: &Path) -> Option<Key> {
        let Some(host) = &self.name else { return self.scan.image(name) };
        let key = Key::Name { host: Some(host.clone()), path: name.to_path_buf() };
        let own = Name { symlink: false, path: name.to_path_buf() };
        self.scan.keep(Image::new(key.clone(), own, Presence::Elsewhere));
        Some(key)
    }

    /// Of another host, the chain in a domain's XML is all that tells the backing file of an image
    /// outside of the pools.
    fn told_by_xml(&self, layers: &[UsedLayer], terminated: bool, known: &mut HashSet<Key>) {
        if self.name.is_none() {
            return;
        }
        // What runs is told to its end, and first; the next start's XML says less of the same images.
        if terminated {
            known.extend(layers.iter().map(|layer| layer.key.clone()));
        }
        for pair in layers.windows(2) {
            let [above, below] = pair else { continue };
            let mut image = Image::new(
                above.key.clone(),
                Name { symlink: false, path: above.name.clone() },
                Presence::Elsewhere,
            );
            image.links.push(link(&above.name, &below.name, below.key.clone()));
            self.scan.keep(image);
        }
        if let Some(last) = layers.last().filter(|_| !terminated)
            && !known.contains(&last.key)
        {
            let layer = NamedLayer { path: last.name.clone(), format: last.format.clone() };
            self.end(&last.key, &layer);
        }
    }

    /// An image of another host that is in none of its pools: its backing file is not known.
    fn end(&self, key: &Key, layer: &NamedLayer) {
        if key.host().is_some() && layer.format.as_deref() != Some("raw") {
            self.unseen(
                &layer.path,
                "it is in no started pool of that host, so its backing file is not known",
            );
        }
    }
}

/// Whether what a domain uses now says all that another description of the disk says.
fn covers(now: &Disk, next: &Disk) -> bool {
    let keys =
        |disk: &Disk| -> Vec<Key> { disk.layers.iter().map(|layer| layer.key.clone()).collect() };
    keys(now).starts_with(&keys(next)) && (!next.terminated || keys(now).len() == keys(next).len())
}

/// A volume of another host as an image.
fn told(host: &str, volume: &VolumeFacts) -> Image {
    let key = |path: &Path| Key::Name { host: Some(host.to_owned()), path: path.to_path_buf() };
    let own = volume.own.path.clone();
    let name = Name { symlink: false, path: own.clone() };
    let mut image = Image::new(key(&own), name, Presence::Elsewhere);
    image.status = Status { allocated: volume.allocation, ..Status::default() };
    if let Some(base) = &volume.backing {
        image.links.push(link(&own, &base.path, key(&base.path)));
    }
    image.content = match volume.own.format.as_deref() {
        Some("qcow2") => Content::Qcow2,
        Some("raw") => Content::Raw,
        _ => Content::Unknown,
    };
    image.header = (image.content == Content::Qcow2)
        .then(|| Header { virtual_size: volume.capacity, ..Header::default() });
    image
}

fn link(from: &Path, name: &Path, to: Key) -> Link {
    let through = from.parent().unwrap_or(Path::new("/")).to_path_buf();
    Link { need: Need::Backing, through, name: name.to_path_buf(), to }
}
