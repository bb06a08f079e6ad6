//! What is done before libvirt looks at the targets (`migrate begin`): pure.

use std::path::{Path, PathBuf};

use qcow::chain::Format;

use super::annotation::{Below, KnownDisk};
use super::config::{Config, FILE, InDoubt};
use crate::domain::{Change, DiskEdit, XmlDisk};
use crate::facts::{BaseFacts, Device, NamedLayer, Source};
use crate::plan::{NewImage, Policy, is_proven};

/// A disk of the arriving guest, and what is at its place on this host.
#[derive(Debug, Clone)]
pub struct Arriving {
    /// The disk as the XML tells it.
    pub disk: XmlDisk,
    /// What is known about it at the source.
    pub known: Option<KnownDisk>,
    /// What is at its path.
    pub place: Place,
    /// The image that the XML names below it, if it is on this host, and what it holds was compared.
    pub bases: Vec<BaseFacts>,
}

/// What is at a disk's path on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Nothing, and the directory is there.
    Free,
    /// Nothing, and the hook may not create anything there; or it cannot, and why.
    Barred(String),
    /// An image: itself and what its header leads to.
    Image {
        /// The layers, the active one first.
        chain: Vec<NamedLayer>,
        /// Another process writes to it, in words.
        in_use: Option<String>,
    },
    /// Something that could not be read, and why.
    Unreadable(String),
}

/// A target that is created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTarget {
    /// The disk's name in the guest.
    pub target: String,
    /// The configured directory that it is below.
    pub root: PathBuf,
    /// The image.
    pub image: NewImage,
    /// Its backing file, if it has one.
    pub base: Option<NamedLayer>,
}

/// What is done about a guest that is about to arrive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// Images that are created.
    pub targets: Vec<NewTarget>,
    /// Changes to the XML.
    pub edits: Vec<DiskEdit>,
    /// Why the migration is refused; nothing else is done then.
    pub refusals: Vec<String>,
    /// Lines for the log, one or more for each disk.
    pub notes: Vec<String>,
}

/// Decides what is done about all disks of a guest.
pub fn decide(disks: &[Arriving], config: &Config) -> Decision {
    let mut decision = Decision::default();
    for arriving in disks {
        let name = arriving.disk.target.as_str();
        match verdict(arriving, config) {
            Verdict::Leave(why) => decision.note(name, why),
            Verdict::Refuse(why) => decision.refusals.push(format!("disk '{name}': {why}")),
            Verdict::Rechain(below, why) => decision.rechain(name, below, why),
            Verdict::Create(target, chain) => {
                let base = match &target.base {
                    Some(base) => format!("over '{}'", base.path.display()),
                    None => "without a backing file".to_owned(),
                };
                let (path, size) = (target.image.path.display(), target.image.virtual_size);
                decision.note(name, format!("'{path}' is created, {size} bytes, {base}"));
                if let Some((below, why)) = chain {
                    decision.rechain(name, below, why);
                }
                decision.targets.push(target);
            }
        }
    }
    decision
}

impl Decision {
    fn note(&mut self, disk: &str, what: String) {
        self.notes.push(format!("disk '{disk}': {what}"));
    }

    fn rechain(&mut self, disk: &str, below: Vec<NamedLayer>, why: String) {
        self.note(disk, why);
        self.edits.push(DiskEdit { target: disk.to_owned(), change: Change::Chain { below } });
    }
}

/// A new chain below a disk, and why.
type NewChain = (Vec<NamedLayer>, String);

enum Verdict {
    Leave(String),
    Refuse(String),
    Rechain(Vec<NamedLayer>, String),
    Create(NewTarget, Option<NewChain>),
}

/// Why a disk is none of the hook's business; `None` if it is.
pub(super) fn not_ours(disk: &XmlDisk) -> Option<String> {
    let no = |why: &str| Some(why.to_owned());
    match (disk.device, &disk.source) {
        (Device::Cdrom | Device::Floppy, _) => return no("left alone: it is a removable medium"),
        (Device::Lun, _) => return no("left alone: it is passed through to the guest"),
        (Device::Disk, Source::File { .. }) => {}
        (Device::Disk, _) => return no("left alone: it is not a file"),
    }
    if disk.readonly || disk.shareable || disk.transient {
        return no("left alone: libvirt does not copy read-only, shareable and transient disks");
    }
    disk.special.as_ref().map(|special| format!("left alone: it has <{special}>"))
}

/// The path of a disk in a file.
pub(super) fn path_of(disk: &XmlDisk) -> Option<&Path> {
    match &disk.source {
        Source::File { path } => Some(path),
        _ => None,
    }
}

/// The layers that the XML names below a disk.
pub(super) fn named_below(disk: &XmlDisk) -> &[NamedLayer] {
    disk.chain.layers.get(1..).unwrap_or_default()
}

fn verdict(arriving: &Arriving, config: &Config) -> Verdict {
    let disk = &arriving.disk;
    if let Some(why) = not_ours(disk) {
        return Verdict::Leave(why);
    }
    let (Some(path), Some(Ok(format))) =
        (path_of(disk), disk.format.as_deref().map(str::parse::<Format>))
    else {
        return Verdict::Leave("left alone: its format is neither raw nor QCOW2".to_owned());
    };
    let shown = path.display();
    match &arriving.place {
        Place::Barred(why) => {
            Verdict::Leave(format!("'{shown}' is missing and left to libvirt: {why}"))
        }
        Place::Unreadable(why) => Verdict::Leave(format!("'{shown}' is left as it is: {why}")),
        Place::Image { in_use: Some(user), .. } => {
            Verdict::Leave(format!("'{shown}' is left as it is: {user}"))
        }
        Place::Image { chain, .. } => existing(disk, path, chain),
        Place::Free => match config.root_of(path) {
            Some(root) => missing(arriving, config, root, path, format),
            None => Verdict::Leave(format!(
                "'{shown}' is missing and left to libvirt: it is not below a root of {FILE}"
            )),
        },
    }
}

/// A target that is there stays as it is; if the XML names a chain, it becomes that of the target's header, because
/// both must name the same (`ChainsAgree`).
fn existing(disk: &XmlDisk, path: &Path, chain: &[NamedLayer]) -> Verdict {
    let (shown, named) = (path.display(), named_below(disk));
    let below = chain.get(1..).unwrap_or_default();
    if named.is_empty() {
        return Verdict::Leave(format!("'{shown}' is there"));
    }
    let paths =
        |layers: &[NamedLayer]| layers.iter().map(|layer| layer.path.clone()).collect::<Vec<_>>();
    let same = match disk.chain.terminated {
        true => paths(named) == paths(below),
        false => paths(below).starts_with(&paths(named)),
    };
    if same {
        return Verdict::Leave(format!("'{shown}' is there, with the chain that the XML names"));
    }
    if below.iter().any(|layer| layer.format.is_none()) {
        return Verdict::Leave(format!(
            "'{shown}' is left as it is: a format of its chain is not recorded"
        ));
    }
    let instead = match below.first() {
        Some(base) => format!("its backing file '{}'", base.path.display()),
        None => "no backing file".to_owned(),
    };
    let old = named.first().map(|layer| layer.path.display().to_string()).unwrap_or_default();
    Verdict::Rechain(
        below.to_vec(),
        format!("'{shown}' is there, with {instead}: that replaces '{old}' in the XML"),
    )
}

/// A target that is missing is created: over the image that the XML names if that is proven to hold what the source
/// has below its active layer, otherwise without a backing file.
fn missing(
    arriving: &Arriving,
    config: &Config,
    root: &Path,
    path: &Path,
    format: Format,
) -> Verdict {
    let shown = path.display();
    let Some(known) = &arriving.known else {
        let what = format!("the target '{shown}' is missing, and its exact size is not known");
        return match config.unknown_size {
            InDoubt::Allow => Verdict::Leave(format!("{what}: left to libvirt")),
            InDoubt::Refuse => Verdict::Refuse(what),
        };
    };
    let proven = |base: &&BaseFacts| match &known.below {
        Below::Disk { digest, virtual_size } if format == Format::Qcow2 => {
            is_proven(base, digest, *virtual_size, Policy::default().max_depth)
        }
        _ => false,
    };
    let base = arriving.bases.iter().find(proven);
    let named = named_below(&arriving.disk);
    let below = base.map_or_else(Vec::new, |base| base.chain.clone());
    let chain =
        (!named.is_empty() && (named != below || !arriving.disk.chain.terminated)).then(|| {
            let why = match (base, named.first()) {
                (None, Some(first)) => {
                    format!(
                        "the XML's chain ends at the target, without '{}'",
                        first.path.display()
                    )
                }
                _ => "the XML names the chain of the new target".to_owned(),
            };
            (below.clone(), why)
        });
    let qcow2 = format == Format::Qcow2;
    let image = NewImage {
        path: path.to_path_buf(),
        format,
        virtual_size: known.virtual_size,
        cluster_size: known.cluster_size.filter(|_| qcow2),
        extended_l2: qcow2 && known.extended_l2,
    };
    let (target, root) = (arriving.disk.target.clone(), root.to_path_buf());
    Verdict::Create(NewTarget { target, root, image, base: below.into_iter().next() }, chain)
}
