//! The plan as a value: printable, comparable, serialisable.

use std::fmt;
use std::path::{Path, PathBuf};

use qcow::chain::Format;
use serde::{Deserialize, Serialize};

use super::Policy;
use crate::facts::{FileRole, MissingDirectory, NamedLayer};
use crate::{Remedy, Reword};

/// Name and version of the plan's JSON form.
pub const SCHEMA: &str = "qcowtool-plan/1";

/// What is to be done to every disk of one guest, and how its host is to be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Plan {
    /// [`SCHEMA`].
    pub schema: String,
    /// Digest of everything below but itself: two plans with one digest do the same.
    pub digest: String,
    /// Digest of the facts that must still be so when the plan is carried out.
    pub facts: String,
    /// The guest's name.
    pub domain: String,
    /// The guest's UUID.
    pub uuid: String,
    /// How the source host is reached.
    pub from: String,
    /// How the destination host is reached.
    pub to: String,
    /// How the guest moves.
    pub mode: Mode,
    /// How libvirt copies the disks; one for the whole guest.
    pub copy: CopyMode,
    /// libvirt's flags.
    pub flags: Vec<Flag>,
    /// The disks that libvirt copies, by target name; never empty if `copy` is not `None`.
    pub migrate_disks: Vec<String>,
    /// Those of them in which it looks for zeros.
    pub detect_zeroes: Vec<String>,
    /// MiB a second for each stream.
    pub bandwidth_mib: Option<u64>,
    /// The directories that are made at the destination, those above before those below.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub directories: Vec<MissingDirectory>,
    /// Every disk, in the order of the guest's XML.
    pub disks: Vec<DiskPlan>,
    /// The files that it has or needs besides its disks, in the order of its XML.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<FilePlan>,
    /// The guest's XML at the destination.
    pub destination_xml: String,
    /// What is defined there for the next start; `None` if the guest is not persistent.
    pub persistent_xml: Option<String>,
    /// What it will cost.
    pub predicted: Predicted,
    /// What the operator should know.
    pub warnings: Vec<Warning>,
    /// What the operator wanted and allowed.
    pub policy: Policy,
}

/// How the guest moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// With its process, by libvirt.
    Live,
    /// As files, by us: it is shut off.
    Offline,
}

/// How libvirt copies disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CopyMode {
    /// There is nothing to copy.
    None,
    /// All of them whole (`VIR_MIGRATE_NON_SHARED_DISK`): right whatever the target held.
    Full,
    /// Only what the active layers hold (`VIR_MIGRATE_NON_SHARED_INC`): right only where everything
    /// below is proven equal.
    Incremental,
}

/// libvirt's migration flags, by their names. Those that we never set are not here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names are libvirt's, without VIR_MIGRATE_")]
#[non_exhaustive]
pub enum Flag {
    Live,
    PeerToPeer,
    PersistDest,
    UndefineSource,
    Paused,
    NonSharedDisk,
    NonSharedInc,
    ChangeProtection,
    AbortOnError,
    AutoConverge,
    NonSharedSynchronousWrites,
    Tls,
    Compressed,
    Parallel,
}

impl Flag {
    /// The name, as in the JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::PeerToPeer => "peer-to-peer",
            Self::PersistDest => "persist-dest",
            Self::UndefineSource => "undefine-source",
            Self::Paused => "paused",
            Self::NonSharedDisk => "non-shared-disk",
            Self::NonSharedInc => "non-shared-inc",
            Self::ChangeProtection => "change-protection",
            Self::AbortOnError => "abort-on-error",
            Self::AutoConverge => "auto-converge",
            Self::NonSharedSynchronousWrites => "non-shared-synchronous-writes",
            Self::Tls => "tls",
            Self::Compressed => "compressed",
            Self::Parallel => "parallel",
        }
    }
}

/// Codes of the plan: a name for the code, and what JSON, text and `docs/migration.md` call it.
macro_rules! codes {
    ($(#[$outer:meta])* $name:ident { $($(#[$inner:meta])* $variant:ident = $code:literal,)* }) => {
        $(#[$outer])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$inner])* #[doc = concat!("\n\nCode `", $code, "`.")] #[serde(rename = $code)] $variant,)*
        }

        impl $name {
            /// The code, as in the JSON.
            pub fn code(self) -> &'static str {
                match self {
                    $(Self::$variant => $code,)*
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.code())
            }
        }
    };
}

codes! {
    /// The rows of the decision table, by what fits a disk; `docs/migration.md` has what is done then.
    Row {
        /// A drive without a medium.
        EmptyDrive = "D01",
        /// A CD-ROM, or a read-only disk.
        ReadOnly = "D02",
        /// The hypervisor reaches it over the network.
        OverTheNetwork = "D03",
        /// Both hosts share its storage, under one path.
        SharedStorage = "D04",
        /// Whether both hosts share its storage is not known.
        StorageUnknown = "D05",
        /// `<shareable/>`, and not on shared storage.
        Shareable = "D06",
        /// A device or directory that is passed through to the guest.
        PassedThrough = "D07",
        /// A layer was deleted, and the guest's process still holds it open.
        LayerDeleted = "D08a",
        /// A layer was deleted, and its content was saved.
        LayerRescued = "D08b",
        /// A layer is gone.
        LayerLost = "D08c",
        /// What the chain is, is in doubt: headers, definition and what runs disagree.
        ChainInDoubt = "D09",
        /// It has an external data file.
        DataFile = "D10",
        /// The active layer has internal snapshots.
        InternalSnapshots = "D11",
        /// It is encrypted.
        Encrypted = "D12",
        /// A raw file.
        RawFile = "D13",
        /// A raw block device.
        RawDevice = "D14",
        /// QCOW2 on a block device.
        Qcow2OnDevice = "D15",
        /// QCOW2 without a base.
        NoBase = "D16",
        /// QCOW2 on a base that is proven to be at the destination.
        BasePresent = "D17",
        /// QCOW2 on a backing file that is copied to the destination.
        BaseBrought = "D18",
        /// QCOW2 on a base, copied whole.
        FullCopy = "D19",
        /// Something is at its path at the destination.
        PathOccupied = "D20",
        /// A layer is marked as corrupt, or was not closed properly.
        UncleanLayer = "D21",
        /// It has persistent bitmaps or checkpoints; decides nothing.
        Bitmaps = "D22",
        /// Its directory at the destination cannot be used, or two disks would go to one path.
        PlaceUnusable = "D23",
    }
}

codes! {
    /// The proofs that an incremental copy needs, all of them.
    Proof {
        /// The sizes are equal to the byte.
        SizesEqual = "P1",
        /// The target's active layer is empty.
        TargetEmpty = "P2",
        /// Below the active layers, source and target hold the same.
        ContentBelowEqual = "P3",
        /// A target without a base reads as zeros everywhere.
        ReadsAsZeros = "P4",
        /// The target's base cannot change.
        BaseFixed = "P5",
        /// The source's lower layers have not changed.
        SourceLayersFixed = "P6",
        /// The target's header and its XML name the same chain.
        ChainsAgree = "P7",
        /// No target is one of the source's files.
        NotASourceFile = "P8",
        /// We made the target in this run.
        MadeByThisRun = "P9",
    }
}

codes! {
    /// The rows for files other than disks' images; `docs/migration.md` has what is done then.
    FileRow {
        /// The guest runs: libvirt and QEMU carry what it has written.
        ByLibvirt = "F01",
        /// It cannot be read at the source.
        Unreadable = "F02",
        /// The source does not have it (yet).
        NotMade = "F03",
        /// The destination has a file of equal content at its path.
        EqualThere = "F04",
        /// Firmware of the host's packages.
        FirmwareOfHost = "F05",
        /// The state of a TPM, and not equal at the destination.
        TpmState = "F06",
        /// The destination has another file at its path.
        InTheWay = "F07",
        /// It cannot be made at the destination.
        PlaceUnusable = "F08",
        /// It is copied.
        Copied = "F09",
    }
}

/// What is done to one file other than a disk's image, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FilePlan {
    /// Its path, on both hosts.
    pub path: PathBuf,
    /// What it is for the guest.
    pub role: FileRole,
    /// The row that decided.
    pub row: FileRow,
    /// That row in words.
    pub why: String,
    /// What is done.
    pub action: FileAction,
    /// Bytes that go over the network.
    pub transfer_bytes: u64,
    /// Bytes that it will take at the destination.
    pub space_bytes: u64,
}

/// What is done to a file other than a disk's image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "do")]
pub enum FileAction {
    /// Nothing.
    Skip,
    /// It is copied, byte for byte, before the guest moves. Nothing may be at its path.
    Copy,
}

impl FilePlan {
    /// Where it is made at the destination, if it is.
    pub fn made(&self) -> Option<&Path> {
        matches!(self.action, FileAction::Copy).then_some(self.path.as_path())
    }
}

/// What is done to one disk, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DiskPlan {
    /// The disk's name in the guest's XML.
    pub target: String,
    /// The row of the decision table that decided.
    pub row: Row,
    /// That row in words, with the facts that made it fit.
    pub why: String,
    /// What is done.
    pub action: Action,
    /// Proofs that preparation still has to give before an incremental copy may start; those that the
    /// facts already gave are not listed.
    pub proofs: Vec<Proof>,
    /// Bytes that go over the network for this disk, preparation included.
    pub transfer_bytes: u64,
    /// Bytes that it will take at the destination.
    pub space_bytes: u64,
}

/// What is done to one disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "do")]
pub enum Action {
    /// Nothing: no content, storage that both hosts reach, or a read-only medium that is there too.
    Skip,
    /// The medium is taken out of the drive in the destination's XML.
    Eject,
    /// A read-only medium is copied as it is before the guest moves.
    CopyMedium {
        /// On the source.
        from: PathBuf,
        /// On the destination; it must not exist.
        to: PathBuf,
    },
    /// A new image is made, and filled by the migration (or, offline, by us).
    Create {
        /// What is made.
        image: NewImage,
        /// Its backing file; `None` for none.
        base: Option<BasePlan>,
    },
    /// An existing image or device is filled, whatever it holds.
    Adopt {
        /// Its path.
        path: PathBuf,
        /// Its format.
        format: Format,
    },
}

impl Action {
    /// Path of the disk at the destination, if the action gives it one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Skip | Self::Eject => None,
            Self::CopyMedium { to, .. } => Some(to),
            Self::Create { image, .. } => Some(&image.path),
            Self::Adopt { path, .. } => Some(path),
        }
    }

    /// Format of the image that libvirt, or we, fill.
    pub fn format(&self) -> Option<Format> {
        match self {
            Self::Skip | Self::Eject | Self::CopyMedium { .. } => None,
            Self::Create { image, .. } => Some(image.format),
            Self::Adopt { format, .. } => Some(*format),
        }
    }
}

impl Plan {
    /// Every path at the destination where something is made.
    pub fn made_paths(&self) -> Vec<&Path> {
        let mut paths = Vec::new();
        for disk in &self.disks {
            match &disk.action {
                Action::Skip | Action::Eject | Action::Adopt { .. } => {}
                Action::CopyMedium { to, .. } => paths.push(to.as_path()),
                Action::Create { image, base } => {
                    if let Some(BasePlan::BaseCopy { path, .. }) = base {
                        paths.push(path);
                    }
                    paths.push(&image.path);
                }
            }
        }
        paths.extend(self.files.iter().filter_map(FilePlan::made));
        paths
    }

    /// The directories at the destination where something is made, each once.
    pub fn made_directories(&self) -> Vec<&Path> {
        let mut directories: Vec<_> =
            self.made_paths().into_iter().filter_map(Path::parent).collect();
        directories.sort();
        directories.dedup();
        directories
    }
}

/// An image that is to be made at the destination. It must not exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NewImage {
    /// Its path.
    pub path: PathBuf,
    /// Raw or QCOW2.
    pub format: Format,
    /// Size of its disk: exactly the guest's.
    pub virtual_size: u64,
    /// Size of its clusters; `None` for raw.
    pub cluster_size: Option<u64>,
    /// With subclusters.
    pub extended_l2: bool,
}

/// The backing file of a new overlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "base")]
pub enum BasePlan {
    /// Something that is there already, proven to hold what the source's lower layers hold.
    Existing {
        /// Itself and everything below it.
        chain: Vec<NamedLayer>,
        /// The digest that it and the source's lower layers have.
        digest: String,
    },
    /// It is copied to the destination first, under a name that is still free; then it is digested.
    #[serde(rename = "seed")]
    BaseCopy {
        /// Its path at the destination.
        path: PathBuf,
        /// Its format there.
        format: Format,
        /// How it comes to be.
        how: BaseCopyMethod,
        /// Digest of the source's lower layers.
        digest: String,
    },
}

/// How a backing file is copied to the destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "how")]
pub enum BaseCopyMethod {
    /// The one lower layer, as the file it is.
    CopyFile {
        /// Where it can be read: its path, or the descriptor that a process holds open.
        from: PathBuf,
    },
    /// All lower layers, made into one image.
    Flatten {
        /// Where the uppermost of them can be read.
        from: PathBuf,
        /// Its format.
        format: Format,
    },
}

/// What a migration will cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Predicted {
    /// Bytes over the network, without the guest's memory.
    pub transfer_bytes: u64,
    /// Bytes of storage at the destination.
    pub space_bytes: u64,
}

/// Something the operator should know, but nothing that stops the migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Warning {
    /// A stable word for programs, such as `internal-snapshots-lost`.
    pub code: String,
    /// The disk that is meant.
    pub disk: Option<String>,
    /// What it is.
    pub message: String,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Refusal {
    /// The rule: `R1` to `R9`, or the row of the decision table.
    pub code: String,
    /// The disk that is meant.
    pub disk: Option<String>,
    /// What is in the way.
    pub message: String,
    /// What the operator can do about it.
    pub way_out: Remedy,
}

impl Reword for Refusal {
    fn reword(&mut self, words: &dyn Fn(&Remedy) -> Option<String>) {
        self.way_out.reword(words);
    }
}
