//! Domains as they are met, read, edited and mangled.

#![allow(clippy::arithmetic_side_effects, reason = "tests")]

mod edits;
mod mangled;
mod random;
mod reading;

use std::path::PathBuf;

use qcow::chain::Format;

use super::*;

pub(super) const LIVE: &str = include_str!("live.xml");
pub(super) const SNAPSHOT: &str = include_str!("snapshot.xml");
pub(super) const CLOUDSTACK: &str = include_str!("cloudstack.xml");
pub(super) const KUBEVIRT: &str = include_str!("kubevirt.xml");
pub(super) const VENDORS: &str = include_str!("vendors.xml");
pub(super) const MEDIA: &str = include_str!("media.xml");
pub(super) const SOURCES: &str = include_str!("sources.xml");
pub(super) const BUSY: &str = include_str!("busy.xml");

pub(super) const ALL: [&str; 8] =
    [LIVE, SNAPSHOT, CLOUDSTACK, KUBEVIRT, VENDORS, MEDIA, SOURCES, BUSY];

pub(super) fn layer(path: &str, format: &str) -> NamedLayer {
    NamedLayer { path: path.into(), format: Some(format.to_owned()) }
}

pub(super) fn chain(layers: &[(&str, &str)], terminated: bool) -> XmlChain {
    let layers = layers.iter().map(|(path, format)| layer(path, format)).collect();
    XmlChain { layers, terminated }
}

pub(super) fn change(target: &str, change: Change) -> DiskEdit {
    DiskEdit { target: target.to_owned(), change }
}

/// A disk in a QCOW2 file without a backing file.
pub(super) fn alone(target: &str, path: &str) -> DiskEdit {
    on(target, path, &[])
}

/// A QCOW2 overlay on layers.
pub(super) fn on(target: &str, path: &str, below: &[NamedLayer]) -> DiskEdit {
    let change_to = Change::Move {
        path: PathBuf::from(path),
        block: false,
        format: Format::Qcow2,
        below: below.to_vec(),
        slice: None,
    };
    change(target, change_to)
}

pub(super) fn raw(target: &str, path: &str, block: bool, slice: Option<u64>) -> DiskEdit {
    let path = PathBuf::from(path);
    change(target, Change::Move { path, block, format: Format::Raw, below: vec![], slice })
}

pub(super) fn medium(target: &str, path: &str) -> DiskEdit {
    change(target, Change::Medium { path: path.into() })
}

pub(super) fn eject(target: &str) -> DiskEdit {
    change(target, Change::Eject)
}

pub(super) fn disk(xml: &str, target: &str) -> XmlDisk {
    let domain = parse(xml).expect("a domain");
    domain.disks.into_iter().find(|disk| disk.target == target).expect("such a disk")
}

/// The text of the disk of this target, and the text before and after it.
pub(super) fn cut<'a>(xml: &'a str, target: &str) -> (&'a str, &'a str, &'a str) {
    let names = [format!("<target dev='{target}'"), format!("<target bus='virtio' dev='{target}'")];
    let devices = xml.find("<devices>").expect("devices");
    let at = names.iter().find_map(|name| xml[devices..].find(name)).expect("such a target");
    let start = xml[..devices + at].rfind("<disk ").expect("its start");
    let end = start + xml[start..].find("</disk>").expect("its end") + "</disk>".len();
    (&xml[..start], &xml[start..end], &xml[end..])
}
