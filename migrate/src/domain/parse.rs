//! From the tree to what is told about disks.

use std::path::{Path, PathBuf};

use roxmltree::{Document, Node};

use super::tree::{attribute, child, children, disks, is, target, text};
use super::{XmlDisk, XmlDomain};
use crate::facts::{Device, NamedLayer, Source, XmlChain};
use crate::{Error, Result};

/// Reads the tree of a domain.
///
/// # Errors
/// [`Usage`](crate::ErrorKind::Usage) if it is not one, or says what libvirt would not accept.
pub(super) fn domain(document: &Document<'_>) -> Result<XmlDomain> {
    let root = document.root_element();
    if !is(root, "domain") {
        let found = root.tag_name().name();
        return Err(Error::usage(format!("the XML is not a domain's but a '{found}'")));
    }
    let name = child(root, "name").map(text).unwrap_or_default();
    if name.is_empty() {
        return Err(Error::usage("the domain's XML has no name"));
    }
    let uuid = child(root, "uuid").map(|uuid| text(uuid).trim().to_owned());
    let mut found: Vec<XmlDisk> = Vec::new();
    for node in disks(document) {
        let next = disk(node)?;
        if found.iter().any(|disk| disk.target == next.target) {
            return Err(Error::usage(format!("the domain's XML has two disks {}", next.target)));
        }
        found.push(next);
    }
    Ok(XmlDomain { name, uuid: uuid.filter(|uuid| !uuid.is_empty()), disks: found })
}

fn disk(node: Node<'_, '_>) -> Result<XmlDisk> {
    let Some(target) = target(node) else {
        return Err(Error::usage("a disk in the domain's XML has no target"));
    };
    let device = match attribute(node, "device") {
        None | Some("disk") => Device::Disk,
        Some("cdrom") => Device::Cdrom,
        Some("floppy") => Device::Floppy,
        Some("lun") => Device::Lun,
        Some(word) => {
            return Err(Error::usage(format!("disk {target} is a '{word}', which is unknown")));
        }
    };
    let driver = |name| child(node, "driver").and_then(|driver| attribute(driver, name));
    let format = driver("type").map(str::to_owned);
    let place = source(node);
    Ok(XmlDisk {
        target: target.to_owned(),
        device,
        chain: chain(node, &place, format.clone()),
        source: place,
        format,
        cache: driver("cache").map(str::to_owned),
        discard: driver("discard") == Some("unmap"),
        // libvirt takes every CD-ROM for one, also where the XML does not say so.
        readonly: device == Device::Cdrom || child(node, "readonly").is_some(),
        shareable: child(node, "shareable").is_some(),
        transient: child(node, "transient").is_some(),
        mirror: child(node, "mirror")
            .map(|mirror| attribute(mirror, "job").unwrap_or("copy").to_owned()),
        special: special(node).map(str::to_owned),
    })
}

/// The element that gives an image of a disk more than a file of its format.
fn special<'a>(disk: Node<'a, '_>) -> Option<&'a str> {
    let names = ["encryption", "slices", "dataStore"];
    let found = disk.descendants().find(|node| names.iter().any(|name| is(*node, name)))?;
    Some(found.tag_name().name())
}

/// Where a `<disk>` or `<backingStore>` has its content.
fn source(node: Node<'_, '_>) -> Source {
    let source = child(node, "source");
    let get = |name| source.and_then(|source| attribute(source, name));
    match attribute(node, "type").unwrap_or("file") {
        "file" => get("file").map_or(Source::None, |path| Source::File { path: path.into() }),
        "block" => get("dev").map_or(Source::None, |path| Source::Block { path: path.into() }),
        "volume" => match (get("pool"), get("volume")) {
            (Some(pool), Some(volume)) => {
                Source::Volume { pool: pool.to_owned(), volume: volume.to_owned(), path: None }
            }
            _ => Source::None,
        },
        "network" => get("protocol").map_or(Source::None, |protocol| Source::Network {
            protocol: protocol.to_owned(),
            local: source.and_then(own_server),
        }),
        _ if source.is_none() => Source::None,
        kind => Source::Other { kind: kind.to_owned() },
    }
}

/// The Unix socket of a server, or `/` for one at the loopback address; `None` if all its addresses are others. A name
/// that other hosts resolve to something else is not known as such.
fn own_server(source: Node<'_, '_>) -> Option<PathBuf> {
    children(source, "host").find_map(|host| {
        let get = |name| attribute(host, name);
        if get("transport") == Some("unix") {
            return Some(get("socket").unwrap_or("/").into());
        }
        let name = get("name")?;
        let loopback = name.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback());
        (loopback || name == "localhost").then(|| "/".into())
    })
}

/// A layer's path, or what stands for it: never something that could be taken for a path on the host.
fn layer_path(node: Node<'_, '_>, source: &Source) -> PathBuf {
    match source {
        Source::File { path } | Source::Block { path } => path.clone(),
        Source::Volume { pool, volume, .. } => format!("volume:{pool}/{volume}").into(),
        Source::Network { protocol, .. } => {
            let name = child(node, "source").and_then(|source| attribute(source, "name"));
            format!("{protocol}:{}", name.unwrap_or_default()).into()
        }
        Source::Other { kind } => format!("{kind}:").into(),
        Source::None => "none:".into(),
    }
}

fn chain(disk: Node<'_, '_>, own: &Source, format: Option<String>) -> XmlChain {
    let mut chain = XmlChain::default();
    if *own == Source::None {
        return chain;
    }
    chain.layers.push(NamedLayer { path: layer_path(disk, own), format });
    let mut above = disk;
    while let Some(layer) = child(above, "backingStore") {
        // What has no type is the terminator, whatever it contains: so libvirt reads it.
        if attribute(layer, "type").is_none() {
            chain.terminated = true;
            break;
        }
        let format = child(layer, "format").and_then(|format| attribute(format, "type"));
        let path = layer_path(layer, &source(layer));
        chain.layers.push(NamedLayer { path, format: format.map(str::to_owned) });
        above = layer;
    }
    if !matches!(own, Source::File { .. } | Source::Block { .. }) && chain.layers.len() == 1 {
        chain.layers.clear();
    }
    chain
}

/// Whether a `<disk>` says anything about its chain.
pub(super) fn has_chain(disk: Node<'_, '_>) -> bool {
    children(disk, "backingStore").next().is_some()
}

/// Whether a path is taken for a device's where nothing else tells: of a medium, of a lower layer. QEMU
/// opens devices and files with different drivers, and refuses the wrong one.
pub(crate) fn is_device(path: &Path) -> bool {
    path.starts_with("/dev") && !path.starts_with("/dev/shm")
}
