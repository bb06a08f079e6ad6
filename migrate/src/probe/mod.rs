//! Finds out what is so on both hosts, and changes nothing there but for a file that is made and removed
//! again to see whether two directories are the same storage.
//!
//! The source's files are read here, on the guest's own host; the destination's through a
//! [`Store`].

mod alone;
mod annotation;
mod certificate;
pub(crate) mod destination;
mod guest_files;
pub(crate) mod ports;
mod process;
pub(crate) mod room;
pub(crate) mod setup;
mod source;

use std::cell::RefCell;
use std::fs::File;
use std::path::Path;

use qcow::io::Replace;
use qcow::ops::digest::Manifest;
use qcow::{CancelToken, Observer};

use crate::domain::{XmlDisk, XmlDomain, parse};
use crate::driver::Hypervisor;
use crate::facts::{
    ChainFacts, Content, DiskFacts, DomainFacts, DomainState, Facts, HostFacts, LayerFacts,
    MissingDirectory, Source, Storage, TargetFacts, XmlChain,
};
use crate::plan::{Policy, Style, base_copy_name};
use crate::store::{Store, Wanted};
use crate::{Error, Result, host};

pub use alone::{Alone, alone};
pub use annotation::{Annotated, annotation};
pub use source::PinnedFiles;
use source::SourceFiles;

/// The two ends of a migration, as they are reached.
#[derive(Clone, Copy)]
pub struct Hosts<'a> {
    /// The virtualisation of the guest's host.
    pub source: &'a dyn Hypervisor,
    /// That of the other host.
    pub destination: &'a dyn Hypervisor,
    /// What stands for `/` of the guest's host on this machine: `/` itself, or a directory.
    pub source_root: &'a Path,
    /// The files of the other host.
    pub store: &'a dyn Store,
}

impl std::fmt::Debug for Hosts<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hosts").field("source_root", &self.source_root).finish_non_exhaustive()
    }
}

/// How a probe goes about it.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Probing<'a> {
    /// What the operator wants: paths, and whether bases matter.
    pub policy: &'a Policy,
    /// Directory where digests of disks that have not changed since are kept; `None` keeps none.
    pub cache: Option<&'a Path>,
    /// Is told how far the reading of bases is.
    pub observer: &'a dyn Observer,
    /// Stops it.
    pub cancel: &'a CancelToken,
}

impl<'a> Probing<'a> {
    /// A probe under this policy that keeps no digests.
    #[must_use]
    pub fn new(policy: &'a Policy, observer: &'a dyn Observer, cancel: &'a CancelToken) -> Self {
        Self { policy, cache: None, observer, cancel }
    }

    /// Replaces [`cache`](field@Self::cache).
    #[must_use]
    pub fn cache(self, cache: Option<&'a Path>) -> Self {
        Self { cache, ..self }
    }
}

impl std::fmt::Debug for Probing<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probing").field("policy", &self.policy).finish_non_exhaustive()
    }
}

/// What a probe brings.
#[derive(Debug)]
pub struct Probed {
    /// The facts.
    pub facts: Facts,
    /// Deleted files, held open from now on.
    pub pinned: PinnedFiles,
}

/// Finds out everything about the domain of this name or UUID.
///
/// # Errors
/// [`Usage`](crate::ErrorKind::Usage) if there is no such domain; [`Environment`](crate::ErrorKind::Environment)
/// if a host cannot be asked; [`Interrupted`](crate::ErrorKind::Interrupted).
pub fn probe(hosts: &Hosts<'_>, domain: &str, probing: &Probing<'_>) -> Result<Probed> {
    let source = hosts.source.host()?;
    let destination = hosts.destination.host()?;
    let domain = hosts.source.domain(domain)?.ok_or_else(|| {
        Error::usage(format!("there is no domain '{domain}'")).on(&source.hostname)
    })?;
    if source.libvirt.is_some() {
        is_this_machine(&source)?;
    }
    let clash = clash(hosts.destination, &domain)?;
    let runs = matches!(domain.state, DomainState::Running | DomainState::Paused);
    let mut pinned = PinnedFiles::of_guest(runs);
    let files = files(hosts.source_root, &domain);
    let probe = Disks { hosts, probing, files, missing: RefCell::default() };
    let disks = probe.all(&domain, &mut pinned)?;
    let files = probe.guest_files(&domain, &pinned)?;
    let missing = probe.missing.into_inner();
    Ok(Probed {
        facts: Facts { source, destination, domain, clash, disks, files, missing },
        pinned,
    })
}

/// The images of the guest are files of its host: only there can they be read.
///
/// # Errors
/// [`Refused`](crate::ErrorKind::Refused) on any other machine.
pub(crate) fn is_this_machine(source: &HostFacts) -> Result<()> {
    if host::is_local(source) {
        return Ok(());
    }
    let this_host = host::name();
    let host = &source.hostname;
    let message =
        format!("the guest is on {host}, and this is {this_host}: its images are files there");
    Err(Error::refused(message).hint(crate::Remedy::RunOnGuestsHost(host.clone())))
}

fn clash(destination: &dyn Hypervisor, domain: &DomainFacts) -> Result<Option<String>> {
    for key in [&domain.uuid, &domain.name] {
        if let Some(other) = destination.domain(key)? {
            return Ok(Some(format!("'{}' with UUID {}", other.name, other.uuid)));
        }
    }
    Ok(None)
}

fn files(root: &Path, domain: &DomainFacts) -> SourceFiles {
    let open = match domain.state {
        DomainState::Running | DomainState::Paused => process::OpenFiles::of_domain(&domain.uuid),
        _ => process::OpenFiles::default(),
    };
    SourceFiles { root: root.to_path_buf(), open }
}

/// Goes through the disks of one domain.
struct Disks<'a> {
    hosts: &'a Hosts<'a>,
    probing: &'a Probing<'a>,
    files: SourceFiles,
    /// Directories that the destination does not have.
    missing: RefCell<Vec<MissingDirectory>>,
}

impl Disks<'_> {
    fn all(&self, domain: &DomainFacts, pinned: &mut PinnedFiles) -> Result<Vec<DiskFacts>> {
        let live = parse(&domain.live_xml)?;
        let migratable = parse(&domain.migratable_xml)?;
        live.disks.iter().map(|disk| self.disk(domain, disk, &migratable, pinned)).collect()
    }

    fn disk(
        &self,
        domain: &DomainFacts,
        disk: &XmlDisk,
        migratable: &XmlDomain,
        pinned: &mut PinnedFiles,
    ) -> Result<DiskFacts> {
        self.probing.cancel.check()?;
        let source = self.named(disk)?;
        let path = local(&source).map(Path::to_path_buf);
        let mut chain =
            path.as_deref().map(|path| self.files.chain(path, disk.format.as_deref(), &disk.chain));
        if let Some(chain) = &chain {
            pinned.hold(&chain.layers).map_err(|error| {
                Error::io("a deleted backing file could not be kept open", error)
            })?;
        }
        let destination = match (&path, &mut chain) {
            (Some(path), Some(chain)) => Some(self.destination(disk, path, chain, pinned)?),
            _ => None,
        };
        let runs = matches!(domain.state, DomainState::Running | DomainState::Paused);
        let live = runs && path.is_some();
        let in_migratable = migratable.disks.iter().find(|other| other.target == disk.target);
        Ok(DiskFacts {
            target: disk.target.clone(),
            device: disk.device,
            format: disk.format.clone(),
            readonly: disk.readonly,
            shareable: disk.shareable,
            transient: disk.transient,
            cache: disk.cache.clone(),
            block_job: match &disk.mirror {
                Some(job) => Some(job.clone()),
                None if live => self.hosts.source.block_job(&domain.uuid, &disk.target)?,
                None => None,
            },
            live_capacity: if live {
                Some(self.hosts.source.capacity(&domain.uuid, &disk.target)?)
            } else {
                None
            },
            live_chain: on_path(&disk.chain, path.as_deref()),
            migratable_chain: in_migratable
                .map(|disk| on_path(&disk.chain, path.as_deref()))
                .unwrap_or_default(),
            source,
            chain,
            destination,
        })
    }

    /// The source with the path of a volume filled in.
    fn named(&self, disk: &XmlDisk) -> Result<Source> {
        Ok(match &disk.source {
            Source::Volume { pool, volume, path: None } => Source::Volume {
                path: self.hosts.source.volume_path(pool, volume)?,
                pool: pool.clone(),
                volume: volume.clone(),
            },
            other => other.clone(),
        })
    }

    /// The place where the disk at `path` shall go, and what could be its base there.
    fn destination(
        &self,
        disk: &XmlDisk,
        path: &Path,
        chain: &mut ChainFacts,
        pinned: &PinnedFiles,
    ) -> Result<TargetFacts> {
        let (policy, store) = (self.probing.policy, self.hosts.store);
        let target = policy.mapped(path);
        let directory = |path: &Path| path.parent().unwrap_or(Path::new("/")).to_path_buf();
        let (named, destination) = (directory(path), directory(&target));
        // A directory that is not there cannot be the same.
        let storage = match store.available(&destination) {
            Ok(_) => destination::storage(
                policy,
                (&named, &self.files.real(&named)),
                store,
                &destination,
            ),
            Err(_) => Storage::Distinct,
        };
        let room = self.room(&destination, &named);
        let mut facts = destination::place(store, policy, target, storage, Some(chain), room)?;
        if let (Style::Thin, Some(base), Some(own)) =
            (policy.style, &facts.base_path, chain.layers.get(1))
        {
            // Whether a backing file can be made there shows when it has to be.
            let _ = self.room(&directory(base), &directory(&own.path));
        }
        if disk.readonly && facts.storage != Storage::Shared && chain.layers.len() == 1 {
            self.medium(&mut facts, &chain.layers, pinned)?;
        }
        let read_only = disk.readonly || facts.storage == Storage::Shared;
        let below = chain.layers.get(1..).unwrap_or_default().to_vec();
        let (Some(base), Some(path), false) = (below.first(), facts.base_path.clone(), read_only)
        else {
            return Ok(facts);
        };
        facts.bases = destination::bases(store, std::slice::from_ref(&path), base.format);
        let complete = chain.missing.is_none();
        if !complete || !destination::wants_digest(policy.style, &facts.bases, base.virtual_size) {
            return Ok(facts);
        }
        let digest = self.digest(&below, pinned)?;
        // A backing file that an earlier migration copied there.
        facts.bases.extend(destination::bases(
            store,
            &[base_copy_name(&path, &digest)],
            base.format,
        ));
        chain.below = Some(digest);
        self.compare(&mut facts, &below, chain.below.as_deref().unwrap_or_default(), pinned)?;
        Ok(facts)
    }

    /// Whether what is at the place of a read-only medium is that medium.
    fn medium(
        &self,
        facts: &mut TargetFacts,
        layers: &[LayerFacts],
        pinned: &PinnedFiles,
    ) -> Result<()> {
        if facts.object.is_none() {
            return Ok(());
        }
        let Some(medium) = layers.first() else { return Ok(()) };
        let names = std::slice::from_ref(&facts.path);
        facts.bases = destination::bases(self.hosts.store, names, medium.format);
        let size = medium.virtual_size;
        if facts.bases.iter().any(|base| base.virtual_size == size) {
            let digest = self.digest(layers, pinned)?;
            self.compare(facts, layers, &digest, pinned)?;
        }
        Ok(())
    }

    fn digest(&self, layers: &[LayerFacts], pinned: &PinnedFiles) -> Result<String> {
        digest(self.probing, layers, pinned)
    }

    fn compare(
        &self,
        facts: &mut TargetFacts,
        below: &[LayerFacts],
        digest: &str,
        pinned: &PinnedFiles,
    ) -> Result<()> {
        let size = below.first().map_or(0, |layer| layer.virtual_size);
        // Where the other end can only hand out files, one file can be compared with one file.
        let file = match below {
            [only] => File::open(pinned.place(only)).ok(),
            _ => None,
        };
        let wanted = Wanted { digest, file: file.as_ref() };
        for base in &mut facts.bases {
            let Some(format) = base.chain.first().and_then(|layer| layer.format.as_deref()) else {
                continue;
            };
            if base.virtual_size != size {
                base.content = Content::Different;
                continue;
            }
            let Probing { observer, cancel, .. } = self.probing;
            base.content = self.hosts.store.same_content(
                &base.path,
                format.parse()?,
                &wanted,
                *observer,
                cancel,
            )?;
        }
        Ok(())
    }
}

/// The tree hash of what `layers` show, read once and kept while no layer changes.
fn digest(probing: &Probing<'_>, layers: &[LayerFacts], pinned: &PinnedFiles) -> Result<String> {
    let chain = pinned.open(layers)?;
    let kept = probing.cache.zip(layers.first()).map(|(cache, top)| {
        let name = blake3::hash(top.path.as_os_str().as_encoded_bytes()).to_hex();
        cache.join(format!("{name}.manifest"))
    });
    if let Some(kept) = &kept
        && let Ok(manifest) = Manifest::read_trusted(kept, &chain, None)
    {
        return Ok(manifest.tree.root.to_string());
    }
    let Probing { observer, cancel, .. } = probing;
    let manifest = Manifest::take(&chain, None, 0, *observer, cancel)?;
    if let Some(kept) = kept {
        // Next time it is read again; that is all.
        let _ = manifest.write(&kept, Replace::InUse);
    }
    Ok(manifest.tree.root.to_string())
}

/// The chain with its first name, which may be that of a volume, as a path.
fn on_path(chain: &XmlChain, path: Option<&Path>) -> XmlChain {
    let mut chain = chain.clone();
    if let (Some(path), Some(first)) = (path, chain.layers.first_mut()) {
        first.path = path.to_path_buf();
    }
    chain
}

/// The path of a source that is a file or a device of its host.
fn local(source: &Source) -> Option<&Path> {
    match source {
        Source::File { path } | Source::Block { path } => Some(path),
        Source::Volume { path, .. } => path.as_deref(),
        Source::None | Source::Network { .. } | Source::Other { .. } => None,
    }
}
