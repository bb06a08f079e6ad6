//! What a probe would find out about the model.

use std::path::{Path, PathBuf};

use qcow::chain::Format;

use super::{CLUSTER, GuestDisk, Image, Inode, Model, Side};
use crate::facts::{
    BaseFacts, ChainFacts, Content, Device, DiskFacts, DomainFacts, DomainState, Facts, FormatFrom,
    HostFacts, Identity, ImageFacts, LayerFacts, Missing, NamedLayer, ObjectFacts, Qcow2Facts,
    Source, Storage, TargetFacts, Version, XmlChain,
};
use crate::plan::{Policy, Style, base_copy_name};

/// Where the files that the guest's process holds open can be read.
const DESCRIPTORS: &str = "/proc/7/fd";

impl Model {
    /// The facts, with digests of lower layers as far as the policy needs them.
    pub fn facts(&self, policy: &Policy) -> Facts {
        let state = if self.running { DomainState::Running } else { DomainState::ShutOff };
        Facts {
            missing: Vec::new(),
            source: host("here"),
            destination: host("there"),
            domain: DomainFacts {
                name: "guest".to_owned(),
                uuid: "guest".to_owned(),
                state,
                persistent: true,
                live_xml: String::new(),
                migratable_xml: String::new(),
                inactive_xml: None,
                job: None,
                snapshots: Vec::new(),
                checkpoints: Vec::new(),
                saved: false,
            },
            clash: (self.on == Side::Destination).then(|| "it exists already".to_owned()),
            disks: self.disks.iter().map(|disk| self.disk(disk, policy)).collect(),
            files: Vec::new(),
        }
    }

    /// The file that can be read at `path` on the source, be it through a process.
    pub fn readable(&self, path: &Path) -> Option<(Inode, &Image)> {
        match path.strip_prefix(DESCRIPTORS) {
            Ok(number) => {
                let inode = number.to_str()?.parse().ok()?;
                Some((inode, self.files.get(&inode)?))
            }
            Err(_) => self.look(Side::Source, path),
        }
    }

    fn disk(&self, disk: &GuestDisk, policy: &Policy) -> DiskFacts {
        let path = disk.named.first().map(|top| top.path.clone()).unwrap_or_default();
        let live_chain = if self.running {
            let layers = disk.open.iter().map(|(layer, _)| layer.clone()).collect();
            XmlChain { layers, terminated: true }
        } else {
            XmlChain { layers: disk.named.clone(), terminated: disk.terminated }
        };
        let mut chain = self.chain(disk);
        let destination = self.place(disk, &path, &mut chain, policy);
        let open = disk.open.first().and_then(|(_, inode)| self.files.get(inode));
        DiskFacts {
            target: disk.target.clone(),
            device: Device::Disk,
            source: Source::File { path },
            format: disk.named.first().and_then(|top| top.format.clone()),
            readonly: disk.readonly,
            shareable: false,
            transient: false,
            cache: None,
            block_job: None,
            live_capacity: open.map(Image::virtual_size),
            migratable_chain: live_chain.clone(),
            live_chain,
            chain: Some(chain),
            destination: Some(destination),
        }
    }

    /// The chain by its headers, through the process where a name is gone.
    fn chain(&self, disk: &GuestDisk) -> ChainFacts {
        let mut layers: Vec<LayerFacts> = Vec::new();
        let mut shown: Vec<(NamedLayer, Inode)> = Vec::new();
        let mut missing = None;
        let mut next = disk.named.first().cloned();
        while let Some(layer) = next.take() {
            let held = disk.open.iter().find(|(open, inode)| {
                open.path == layer.path && !self.names.values().any(|named| named == inode)
            });
            let found = match held {
                Some((_, inode)) => self.files.get(inode).map(|image| (*inode, image, true)),
                None => self.look(Side::Source, &layer.path).map(|(inode, it)| (inode, it, false)),
            };
            let Some((inode, image, deleted)) = found else {
                missing = Some(Missing { path: layer.path, why: "it is not there".to_owned() });
                break;
            };
            let from = if layers.is_empty() { FormatFrom::Xml } else { FormatFrom::Header };
            layers.push(LayerFacts {
                read_from: match deleted {
                    true => Path::new(DESCRIPTORS).join(inode.to_string()),
                    false => layer.path.clone(),
                },
                deleted,
                block_device: false,
                identity: identity(inode, image),
                format: image.format,
                format_from: from,
                virtual_size: image.virtual_size(),
                qcow2: qcow2(image),
                backing: image.backing.as_ref().map(|it| it.path.to_string_lossy().into_owned()),
                backing_format: image.backing.as_ref().and_then(|it| it.format.clone()),
                path: layer.path.clone(),
            });
            shown.push((layer, inode));
            next = image.backing.clone();
        }
        let held = |value: &&Option<u8>| value.is_some();
        let top = shown.first().and_then(|(_, inode)| self.files.get(inode));
        let top_held = top.map_or(0, |top| top.clusters.iter().filter(held).count());
        let all = self.content(&shown).iter().filter(|value| **value != 0).count();
        ChainFacts {
            layers,
            top_bytes: bytes(top_held),
            guest_bytes: missing.is_none().then(|| bytes(all)),
            missing,
            below: None,
        }
    }

    fn place(
        &self,
        disk: &GuestDisk,
        path: &Path,
        chain: &mut ChainFacts,
        policy: &Policy,
    ) -> TargetFacts {
        let target = policy.mapped(path);
        let storage = match (self.name(Side::Source, path), self.name(Side::Destination, &target)) {
            (Ok((source, _)), Ok((destination, _))) if source == destination => Storage::Shared,
            _ => Storage::Distinct,
        };
        let mut destination = TargetFacts {
            object: self.object(&target),
            unusable: self.name(Side::Destination, &target).err().map(|it| it.message().to_owned()),
            available: Some(u64::MAX),
            base_path: chain.layers.get(1).map(|base| policy.mapped(&base.path)),
            bases: Vec::new(),
            storage,
            path: target,
        };
        let asked = policy.style != Style::Full && !disk.readonly && chain.missing.is_none();
        if let (Some(base), true) = (destination.base_path.clone(), asked) {
            destination.bases.extend(self.base(&base));
            let lower = chain.layers.get(1..).unwrap_or_default();
            let digest = self.digest_of_layers(lower);
            destination.bases.extend(self.base(&base_copy_name(&base, &digest)));
            for base in &mut destination.bases {
                base.content = match self.digest(Side::Destination, &base.path) {
                    Some(found) if found == digest => Content::Equal { digest: found },
                    Some(_) => Content::Different,
                    None => Content::Unknown { why: "it cannot be read".to_owned() },
                };
            }
            chain.below = Some(digest);
        }
        destination
    }

    fn object(&self, path: &Path) -> Option<ObjectFacts> {
        let (inode, image) = self.look(Side::Destination, path)?;
        Some(ObjectFacts {
            identity: identity(inode, image),
            block_device: false,
            image: Some(ImageFacts { format: image.format, virtual_size: image.virtual_size() }),
            in_use: image.in_use.then(|| "another guest".to_owned()),
        })
    }

    fn base(&self, path: &Path) -> Option<BaseFacts> {
        let (inode, image) = self.look(Side::Destination, path)?;
        let disk = GuestDisk::new("", path, image.format);
        let open = self.open(Side::Destination, &disk).unwrap_or_default();
        let used = open.iter().any(|(_, layer)| self.files.get(layer).is_some_and(|it| it.in_use));
        Some(BaseFacts {
            path: path.to_path_buf(),
            identity: identity(inode, image),
            chain: open.into_iter().map(|(layer, _)| layer).collect(),
            virtual_size: image.virtual_size(),
            in_use: used.then(|| "another guest".to_owned()),
            content: Content::Unknown { why: "not compared".to_owned() },
        })
    }

    /// Digest of what an image on one of the hosts shows.
    pub fn digest(&self, side: Side, path: &Path) -> Option<String> {
        let format = self.look(side, path)?.1.format;
        Some(digest(&self.show(side, path, format).ok()?))
    }

    fn digest_of_layers(&self, layers: &[LayerFacts]) -> String {
        let open: Vec<_> = layers
            .iter()
            .filter_map(|layer| {
                let (inode, _) = self.readable(&layer.read_from)?;
                Some((NamedLayer { path: PathBuf::new(), format: None }, inode))
            })
            .collect();
        digest(&self.content(&open))
    }
}

/// Digest of a disk, its length included.
fn digest(content: &[u8]) -> String {
    blake3::hash(content).to_hex().to_string()
}

fn host(name: &str) -> HostFacts {
    HostFacts {
        uri: format!("model:{name}"),
        hostname: name.to_owned(),
        uuid: Some(name.to_owned()),
        libvirt: Some(Version::new(11, 3, 0)),
        qemu: Some(Version::new(10, 0, 2)),
    }
}

fn identity(inode: Inode, image: &Image) -> Identity {
    Identity {
        device: None,
        inode: Some(inode),
        links: None,
        size: image.virtual_size(),
        mtime_ns: image.changes,
        ctime_ns: image.changes,
    }
}

fn qcow2(image: &Image) -> Option<Qcow2Facts> {
    (image.format == Format::Qcow2).then(|| Qcow2Facts {
        version: 3,
        cluster_size: CLUSTER,
        extended_l2: false,
        dirty: image.dirty,
        corrupt: false,
        encryption: None,
        data_file: None,
        snapshots: image.snapshots.clone(),
        bitmaps: Vec::new(),
    })
}

fn bytes(clusters: usize) -> u64 {
    (clusters as u64).saturating_mul(CLUSTER)
}
