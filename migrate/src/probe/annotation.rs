//! What a guest's `<metadata>` is to say about its disks, found at the source.

use std::path::Path;

use super::{Probing, digest, files, is_this_machine, local};
use crate::domain::{XmlDisk, parse};
use crate::driver::Hypervisor;
use crate::facts::{Device, DomainState};
use crate::hook::annotation::{Annotation, Below, KnownDisk};
use crate::probe::PinnedFiles;
use crate::{Error, ErrorKind, Result};

/// A guest and what is known about its disks.
#[derive(Debug)]
pub struct Annotated {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// What is known.
    pub annotation: Annotation,
    /// Disks of which not everything could be found out, and why.
    pub incomplete: Vec<(String, String)>,
}

/// Reads the headers of a guest's disks, and everything below the active layers. The guest must be on this machine.
///
/// # Errors
/// [`Usage`](crate::ErrorKind::Usage) if there is no such domain; [`Environment`](crate::ErrorKind::Environment) if it
/// is on another machine, or libvirt does not answer; [`Interrupted`](crate::ErrorKind::Interrupted).
pub fn annotation(
    source: &dyn Hypervisor,
    domain: &str,
    probing: &Probing<'_>,
) -> Result<Annotated> {
    let host = source.host()?;
    if host.libvirt.is_some() {
        is_this_machine(&host)?;
    }
    let domain = source
        .domain(domain)?
        .ok_or_else(|| Error::usage(format!("there is no domain '{domain}'")).on(&host.hostname))?;
    let runs = matches!(domain.state, DomainState::Running | DomainState::Paused);
    let files = files(Path::new("/"), &domain);
    let mut pinned = PinnedFiles::of_guest(runs);
    let (mut disks, mut incomplete) = (Vec::new(), Vec::new());
    for disk in parse(&domain.live_xml)?.disks.iter().filter(|disk| is_copied(disk)) {
        probing.cancel.check()?;
        let Some(path) = local(&disk.source) else { continue };
        let chain = files.chain(path, disk.format.as_deref(), &disk.chain);
        pinned
            .hold(&chain.layers)
            .map_err(|error| Error::io("a deleted base could not be held open", error))?;
        let Some(top) = chain.layers.first() else {
            let why = chain.missing.map_or_else(String::new, |missing| missing.why);
            incomplete.push((disk.target.clone(), why));
            continue;
        };
        let virtual_size = match runs {
            true => source.capacity(&domain.uuid, &disk.target)?,
            false => top.virtual_size,
        };
        let lower = chain.layers.get(1..).unwrap_or_default();
        let below = match (lower.first(), &chain.missing) {
            (_, Some(missing)) => {
                let why = format!("'{}': {}", missing.path.display(), missing.why);
                incomplete.push((disk.target.clone(), why));
                Below::Unknown
            }
            (None, None) => Below::Nothing,
            (Some(base), None) => match digest(probing, lower, &pinned) {
                Ok(digest) => Below::Disk { digest, virtual_size: base.virtual_size },
                Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
                // The other disks are known nevertheless, and of this one nothing older may stay.
                Err(error) => {
                    incomplete.push((disk.target.clone(), error.to_string()));
                    Below::Unknown
                }
            },
        };
        let qcow2 = top.qcow2.as_ref();
        disks.push(KnownDisk {
            target: disk.target.clone(),
            virtual_size,
            cluster_size: qcow2.map(|it| it.cluster_size),
            extended_l2: qcow2.is_some_and(|it| it.extended_l2),
            below,
        });
    }
    Ok(Annotated {
        name: domain.name,
        uuid: domain.uuid,
        annotation: Annotation { disks },
        incomplete,
    })
}

/// Whether a migration copies the disk's content from a file or device of the host.
fn is_copied(disk: &XmlDisk) -> bool {
    let disk_device = disk.device == Device::Disk;
    disk_device && !disk.readonly && !disk.shareable && local(&disk.source).is_some()
}
