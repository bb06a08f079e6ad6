//! The rows that refuse a disk or leave it where it is.

use std::path::PathBuf;

use crate::Remedy;
use crate::domain::is_device;
use crate::facts::{
    Content, Device, FormatFrom, Identity, LayerFacts, Source, Storage, TargetFacts, Version,
};
use crate::plan::disk::{Disk, Verdict, chain_difference, data_file_of, gone, source_path};
use crate::plan::predicted::worst_file;
use crate::plan::words::list;
use qcow::chain::Format;

/// From here on a hypervisor drops its cache of a file when another host has written to it, so that any
/// cache mode is safe on shared storage.
const DROPS_CACHE: Version = Version::new(6, 2, 0);

fn refuse(message: impl Into<String>, way_out: impl Into<Remedy>) -> Option<Verdict> {
    Some(Verdict::Refuse { message: message.into(), way_out: way_out.into() })
}

fn skip(why: impl Into<String>) -> Option<Verdict> {
    Some(Verdict::Skip { why: why.into() })
}

/// `EmptyDrive`: there is nothing in the drive.
pub(super) fn no_medium(disk: &Disk<'_>) -> Option<Verdict> {
    (disk.disk.source == Source::None).then(|| Verdict::Skip { why: "the drive is empty".into() })
}

/// `ReadOnly`: libvirt does not copy what the guest cannot write to.
pub(super) fn read_only(disk: &Disk<'_>) -> Option<Verdict> {
    let cdrom = disk.disk.device == Device::Cdrom;
    if !disk.disk.readonly && !cdrom {
        return None;
    }
    let path = source_path(&disk.disk.source)?;
    let removable = cdrom || disk.disk.device == Device::Floppy;
    let mut way_out = Remedy::Eject;
    let problem = match disk.destination() {
        Some(destination) => {
            let stays = destination.storage == Storage::Shared && destination.path == path;
            let problem = if stays { differs_at_destination(disk) } else { None };
            if stays && problem.is_none() {
                return skip("a read-only medium on storage that both hosts share");
            }
            if let Some((why, _)) = problem {
                why
            } else if let Storage::Unknown { why } = &destination.storage {
                format!("it is not known whether the destination shares its storage: {why}")
            } else if destination.object.is_some()
                && is_the_same(destination)
                && destination.path == path
            {
                return skip("a read-only medium that is proven to be at the destination too");
            } else if destination.object.is_some() {
                format!("the destination has another '{}' already", destination.path.display())
            } else if let Some((why, remedy)) = disk.obstacle() {
                if remedy == Remedy::AllowDirectory {
                    way_out = Remedy::EjectOrAllowDirectory;
                }
                why
            } else if disk.layers().len() != 1
                || disk.chain().is_none_or(|chain| chain.missing.is_some())
                || disk.top().is_none_or(|top| top.block_device || top.deleted)
            {
                "it is not one whole file".to_owned()
            } else {
                return Some(Verdict::CopyMedium {
                    why: "a read-only medium that the destination has not".into(),
                    from: path.to_path_buf(),
                    to: destination.path.clone(),
                });
            }
        }
        None => "there is no place for it at the destination".to_owned(),
    };
    if disk.policy.eject && removable {
        return Some(Verdict::Eject {
            why: format!("a medium that the guest cannot have at the destination: {problem}"),
        });
    }
    refuse(
        format!(
            "the read-only medium '{}' cannot be had at the destination: {problem}",
            path.display()
        ),
        way_out,
    )
}

/// What exists at the path is proven to have the content that it would be filled with, and is not written to.
fn is_the_same(destination: &TargetFacts) -> bool {
    destination.bases.iter().any(|found| {
        found.path == destination.path
            && found.in_use.is_none()
            && matches!(found.content, Content::Equal { .. })
    })
}

/// `OverTheNetwork`: the hypervisor reaches it from everywhere, or from its own host only.
pub(super) fn over_the_network(disk: &Disk<'_>) -> Option<Verdict> {
    let Source::Network { protocol, local } = &disk.disk.source else { return None };
    let shared = |path: &&PathBuf| disk.policy.shared.iter().any(|dir| path.starts_with(dir));
    let Some(path) = local.as_ref().filter(|path| !shared(path)) else {
        return skip(format!("reached over the network ({protocol})"));
    };
    let how = match path.as_os_str() == "/" {
        true => "the loopback address".to_owned(),
        false => format!("the Unix socket '{}'", path.display()),
    };
    refuse(
        format!(
            "its {protocol} server is reached by {how}, behind which the destination has another, or none"
        ),
        "have its server listen at an address that both hosts reach, and put that into the guest's definition",
    )
}

/// `SharedStorage`: both hosts see the same file under the same name, all of its layers included.
pub(super) fn on_shared_storage(disk: &Disk<'_>) -> Option<Verdict> {
    let destination = disk.destination()?;
    let path = source_path(&disk.disk.source)?;
    if destination.storage != Storage::Shared || destination.path != path {
        return None;
    }
    if let Some((why, way_out)) = differs_at_destination(disk) {
        return refuse(format!("'{}' is on shared storage, but {why}", path.display()), way_out);
    }
    let cache = disk.disk.cache.as_deref();
    let careful = matches!(cache, Some("none" | "directsync"));
    let drops = [&disk.facts.source, &disk.facts.destination]
        .iter()
        .all(|host| host.qemu.is_some_and(|version| version >= DROPS_CACHE));
    if disk.live() && !careful && !drops {
        return refuse(
            "the disk is on shared storage, and the destination's hypervisor could read stale data \
             from its host's cache",
            "set cache='none' or 'directsync' for the disk",
        );
    }
    skip("on storage that both hosts share")
}

/// Why a start there from the same names would not give what the guest has here, and what to do.
fn differs_at_destination(disk: &Disk<'_>) -> Option<(String, Remedy)> {
    let mount = || Remedy::from("look whether the same storage is mounted on both hosts");
    let flatten = || Remedy::from("flatten the disk where it is (virsh blockcopy --pivot)");
    let Some(object) = &disk.destination()?.object else {
        return Some(("the destination has no such file".to_owned(), mount()));
    };
    if disk.top().is_some_and(|top| other_inode(&top.identity, &object.identity)) {
        return Some(("the destination has another file of that name".to_owned(), mount()));
    }
    if let Some(path) = gone(disk) {
        return Some((format!("its layer '{path}' was deleted"), flatten()));
    }
    if let Some(difference) = chain_difference(disk) {
        return Some((
            format!("the running chain differs from the headers: {difference}"),
            flatten(),
        ));
    }
    let layer = disk.below().iter().find(|layer| !shared_too(disk, layer))?;
    let why = format!(
        "it is not known whether its layer '{}' is on shared storage too",
        layer.path.display()
    );
    Some((why, Remedy::StateShared))
}

/// Whether the two are known to be different files. The device's number is each host's own.
fn other_inode(a: &Identity, b: &Identity) -> bool {
    matches!((a.inode, b.inode), (Some(a), Some(b)) if a != b)
}

/// Whether a lower layer is where the active one is, or where the operator says that all is shared, and
/// keeps its name.
fn shared_too(disk: &Disk<'_>, layer: &LayerFacts) -> bool {
    let beside = disk.top().is_some_and(|top| top.path.parent() == layer.path.parent());
    beside || disk.policy.shared.iter().any(|dir| layer.path.starts_with(dir))
}

/// `StorageUnknown`: whether to copy cannot be said.
pub(super) fn storage_unknown(disk: &Disk<'_>) -> Option<Verdict> {
    if matches!(disk.disk.source, Source::Other { .. }) {
        return None;
    }
    let why = match disk.destination().map(|destination| &destination.storage) {
        Some(Storage::Unknown { why }) => why.as_str(),
        Some(_) => return None,
        None => "nothing is known about its path at the destination",
    };
    refuse(
        format!("it is not known whether the destination shares the disk's storage: {why}"),
        Remedy::StateStorage,
    )
}

/// `Shareable`: another guest may write to it meanwhile.
pub(super) fn shareable(disk: &Disk<'_>) -> Option<Verdict> {
    if !disk.disk.shareable {
        return None;
    }
    refuse(
        "other guests may write to the disk (<shareable/>), and its storage is not shared",
        "detach it, or put it on storage that both hosts share",
    )
}

/// `PassedThrough`: no image that could be copied.
pub(super) fn passed_through(disk: &Disk<'_>) -> Option<Verdict> {
    let kind = match (&disk.disk.source, disk.disk.device) {
        (Source::Other { kind }, _) => kind.as_str(),
        (_, Device::Lun) => "lun",
        _ => return None,
    };
    refuse(
        format!("a disk of type '{kind}' cannot be copied"),
        "detach it before, and attach one at the destination",
    )
}

/// `LayerLost`: a layer is gone, and no process holds it open.
pub(super) fn layer_lost(disk: &Disk<'_>) -> Option<Verdict> {
    let way_out = "restore the original file, from a copy whose digest is known; a file of the same \
                   name is not enough";
    let Some(chain) = disk.chain() else {
        return refuse("the disk's image could not be read", "make it readable");
    };
    let missing = |what: &str| {
        let message = match &chain.missing {
            Some(missing) => {
                format!("{what} '{}' cannot be opened: {}", missing.path.display(), missing.why)
            }
            None => format!("{what} cannot be opened"),
        };
        refuse(message, way_out)
    };
    if chain.layers.is_empty() {
        return missing("the active layer");
    }
    if disk.live() {
        return None;
    }
    if chain.missing.is_some() {
        return missing("the layer");
    }
    let deleted = chain.layers.iter().find(|layer| layer.deleted)?;
    refuse(format!("the layer '{}' was deleted", deleted.path.display()), way_out)
}

/// `Encrypted`: nothing here makes encrypted targets.
pub(super) fn encrypted(disk: &Disk<'_>) -> Option<Verdict> {
    let (layer, kind) = disk
        .layers()
        .iter()
        .find_map(|layer| Some((layer, layer.qcow2.as_ref()?.encryption.as_ref()?)))?;
    refuse(
        format!("'{}' is encrypted ({kind})", layer.path.display()),
        if disk.live() {
            "shut the guest off, then copy the disk's files as they are, together with its secret"
        } else {
            "copy the disk's files as they are, together with its secret, and define the guest there"
        },
    )
}

/// `UncleanLayer`: what is known to be wrong is not spread.
pub(super) fn corrupt(disk: &Disk<'_>) -> Option<Verdict> {
    let layer = disk
        .layers()
        .iter()
        .find(|layer| layer.qcow2.as_ref().is_some_and(|qcow2| qcow2.corrupt))?;
    refuse(
        format!("'{}' is marked as corrupt", layer.path.display()),
        "shut the guest off, and check and repair the image",
    )
}

/// `ChainInDoubt`, where a running hypervisor cannot settle which chain is right, or where it is too long.
pub(super) fn chain_in_doubt(disk: &Disk<'_>) -> Option<Verdict> {
    let top = disk.top()?;
    if top.format_from == FormatFrom::Nowhere {
        return refuse(
            "the format of the disk's image is not recorded, and guessing it is dangerous",
            "put <driver type> into the guest's definition",
        );
    }
    let (depth, most) = (disk.layers().len(), disk.policy.max_depth);
    if depth > most {
        return refuse(
            format!("the disk's chain has {depth} layers, and {most} are allowed"),
            Remedy::AllowDepth,
        );
    }
    if disk.live() {
        return None;
    }
    if let Some(layer) = disk.below().iter().find(|layer| layer.format_from == FormatFrom::Nowhere)
    {
        return refuse(
            format!("the format of the layer '{}' is not recorded", layer.path.display()),
            Remedy::RecordFormat,
        );
    }
    let difference = chain_difference(disk)?;
    refuse(
        format!("the definition and the images' headers disagree about the chain: {difference}"),
        "find out which is right, and correct the other",
    )
}

/// `DataFile`: the guest's data is in another file than the image.
pub(super) fn data_file(disk: &Disk<'_>) -> Option<Verdict> {
    let (layer, name) = data_file_of(disk)?;
    if disk.policy.allow_data_file {
        return None;
    }
    refuse(
        format!("'{}' keeps its data in another file, '{name}'", layer.path.display()),
        Remedy::AllowDataFile,
    )
}

/// `InternalSnapshots`: they are not copied by any method.
pub(super) fn internal_snapshots(disk: &Disk<'_>) -> Option<Verdict> {
    let names = &disk.top()?.qcow2.as_ref()?.snapshots;
    if names.is_empty() || disk.policy.drop_internal_snapshots {
        return None;
    }
    refuse(
        format!("the image has internal snapshots, and they are not copied: {}", list(names)),
        Remedy::DropSnapshots,
    )
}

/// `PlaceUnusable`: the place cannot be written to, or is a device's that is not there, or two disks would go to one.
pub(super) fn place_unusable(disk: &Disk<'_>) -> Option<Verdict> {
    let destination = disk.destination()?;
    // A file there would be gone with the host's next start.
    if destination.object.is_none() && is_device(&destination.path) {
        let size = match disk.top()?.format {
            Format::Raw => disk.size(),
            _ => worst_file(disk),
        };
        let path = destination.path.display();
        return refuse(
            format!("'{path}' is among the destination's devices, and does not exist"),
            Remedy::MakeDevice(size.to_string()),
        );
    }
    if let Some((why, way_out)) = disk.obstacle() {
        return refuse(
            format!("'{}' cannot be made at the destination: {why}", destination.path.display()),
            way_out,
        );
    }
    let twin = disk.facts.disks.iter().find(|other| {
        other.target != disk.disk.target
            && other.destination.as_ref().is_some_and(|place| place.path == destination.path)
    })?;
    refuse(
        format!("it and '{}' would both go to '{}'", twin.target, destination.path.display()),
        Remedy::MapPath,
    )
}

/// `PathOccupied`: there is something at the target's path.
pub(super) fn occupied(disk: &Disk<'_>) -> Option<Verdict> {
    let destination = disk.destination()?;
    let object = destination.object.as_ref()?;
    let path = destination.path.display();
    let elsewhere = "map the disk's path to one that is free";
    if !disk.policy.adopt {
        return refuse(
            format!("the destination has '{path}' already, and its content is not known"),
            Remedy::Adopt,
        );
    }
    if !disk.live() && object.block_device {
        return refuse(
            format!(
                "'{path}' is a device, and the disks of a guest that is shut off go to new images only"
            ),
            "migrate the guest while it runs, or is paused (virsh start --paused); or map the disk's path to one that \
             is free",
        );
    }
    if !disk.live() {
        return refuse(
            format!(
                "'{path}' exists, and the disks of a guest that is shut off go to new images only"
            ),
            elsewhere,
        );
    }
    let sources = disk.facts.disks.iter().filter_map(|disk| disk.chain.as_ref());
    let own = sources.flat_map(|chain| &chain.layers).any(|layer| {
        maybe_same(&layer.identity, &object.identity, destination.storage == Storage::Shared)
    });
    if own {
        return refuse(format!("'{path}' may be one of the guest's own images"), elsewhere);
    }
    if let Some(who) = &object.in_use {
        return refuse(format!("'{path}' is in use: {who}"), elsewhere);
    }
    let (format, size) = (disk.top()?.format, disk.size());
    let fits = match (&object.image, object.block_device, format) {
        (_, true, Format::Raw) => object.identity.size >= size,
        (Some(image), block, _) => {
            let room = !block || object.identity.size >= worst_file(disk);
            image.format == format && image.virtual_size == size && room
        }
        (None, _, _) => false,
    };
    if fits {
        return None;
    }
    refuse(
        format!(
            "'{path}' cannot be adopted: it must be {} of exactly {size} bytes",
            format.as_str()
        ),
        elsewhere,
    )
}

/// Whether they may be one object. On shared storage the inode alone tells, because each host has its own
/// number for the device; and what is not known proves nothing.
fn maybe_same(source: &Identity, target: &Identity, shared: bool) -> bool {
    let same = |a: Option<u64>, b: Option<u64>| match (a, b) {
        (Some(a), Some(b)) => a == b,
        _ => shared,
    };
    same(source.inode, target.inode) && (shared || same(source.device, target.device))
}
