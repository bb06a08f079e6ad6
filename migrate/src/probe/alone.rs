//! One disk of a guest of this machine, without a thought of moving it.

use std::path::Path;

use super::{PinnedFiles, files, is_this_machine, local, on_path};
use crate::domain::{XmlDisk, parse};
use crate::driver::Hypervisor;
use crate::facts::{DiskFacts, DomainFacts, DomainState, Source};
use crate::{Error, Result};

/// A guest and one of its disks.
#[derive(Debug)]
pub struct Alone {
    /// The guest.
    pub domain: DomainFacts,
    /// The disk; there is no place where it shall go.
    pub disk: DiskFacts,
    /// What the guest discards is given back to the host.
    pub discard: bool,
    /// Deleted layers, held open from now on.
    pub pinned: PinnedFiles,
}

/// Finds out everything about the disk of this name, or with this source, of the domain of this name or UUID.
///
/// # Errors
/// [`Usage`](crate::ErrorKind::Usage) if there is no such domain or disk;
/// [`Environment`](crate::ErrorKind::Environment) if the host cannot be asked, or is not this machine.
pub fn alone(hypervisor: &dyn Hypervisor, domain: &str, disk: &str) -> Result<Alone> {
    let host = hypervisor.host()?;
    let domain = hypervisor
        .domain(domain)?
        .ok_or_else(|| Error::usage(format!("there is no domain '{domain}'")).on(&host.hostname))?;
    is_this_machine(&host)?;
    let xml = parse(&domain.live_xml)?;
    let named =
        |found: &&XmlDisk| found.target == disk || local(&found.source) == Some(Path::new(disk));
    let xml_disk = xml.disks.iter().find(named).ok_or_else(|| {
        let targets: Vec<_> = xml.disks.iter().map(|disk| disk.target.as_str()).collect();
        Error::usage(format!("{} has no disk '{disk}'", domain.name))
            .hint(format!("it has {}", targets.join(", ")))
    })?;
    let source = match &xml_disk.source {
        Source::Volume { pool, volume, path: None } => Source::Volume {
            path: hypervisor.volume_path(pool, volume)?,
            pool: pool.clone(),
            volume: volume.clone(),
        },
        other => other.clone(),
    };
    let path = local(&source).map(Path::to_path_buf);
    let chain = path.as_deref().map(|path| {
        files(Path::new("/"), &domain).chain(path, xml_disk.format.as_deref(), &xml_disk.chain)
    });
    let runs = matches!(domain.state, DomainState::Running | DomainState::Paused);
    let mut pinned = PinnedFiles::of_guest(runs);
    if let Some(chain) = &chain {
        pinned
            .hold(&chain.layers)
            .map_err(|error| Error::io("a deleted backing file could not be kept open", error))?;
    }
    let live = runs && path.is_some();
    let ask = |wanted: bool| wanted.then_some((&domain.uuid, &xml_disk.target));
    let disk = DiskFacts {
        target: xml_disk.target.clone(),
        device: xml_disk.device,
        format: xml_disk.format.clone(),
        readonly: xml_disk.readonly,
        shareable: xml_disk.shareable,
        transient: xml_disk.transient,
        cache: xml_disk.cache.clone(),
        block_job: match (&xml_disk.mirror, ask(live)) {
            (Some(job), _) => Some(job.clone()),
            (None, Some((uuid, target))) => hypervisor.block_job(uuid, target)?,
            (None, None) => None,
        },
        live_capacity: match ask(live) {
            Some((uuid, target)) => Some(hypervisor.capacity(uuid, target)?),
            None => None,
        },
        live_chain: on_path(&xml_disk.chain, path.as_deref()),
        migratable_chain: Default::default(),
        source,
        chain,
        destination: None,
    };
    Ok(Alone { disk, discard: xml_disk.discard, domain, pinned })
}
