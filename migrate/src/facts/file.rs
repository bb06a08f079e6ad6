//! The files that a guest has or needs besides the images of its disks.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Content, LayerFacts, ObjectFacts};

/// What a file is for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FileRole {
    /// The variables of its UEFI firmware: boot entries, Secure Boot keys.
    Nvram,
    /// What its NVRAM is made from where there is none.
    NvramTemplate,
    /// Its firmware.
    Loader,
    /// A kernel that it boots directly.
    Kernel,
    /// The initial RAM disk of that kernel.
    Initrd,
    /// The device tree of that kernel.
    Dtb,
    /// The shim in front of that kernel.
    Shim,
    /// A table of its ACPI.
    AcpiTable,
    /// The ROM of a device.
    Rom,
    /// A file that its firmware reads (`fw_cfg`).
    FirmwareConfig,
    /// Memory that keeps its content: an NVDIMM.
    Nvdimm,
    /// The state of its TPM.
    TpmState,
}

impl FileRole {
    /// The guest writes to it, and no other guest uses it.
    pub fn is_state(self) -> bool {
        matches!(self, Self::Nvram | Self::Nvdimm | Self::TpmState)
    }

    /// In words, for messages.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Nvram => "the NVRAM",
            Self::NvramTemplate => "the template of the NVRAM",
            Self::Loader => "the firmware",
            Self::Kernel => "the kernel",
            Self::Initrd => "the initial RAM disk",
            Self::Dtb => "the device tree",
            Self::Shim => "the shim",
            Self::AcpiTable => "the ACPI table",
            Self::Rom => "the device ROM",
            Self::FirmwareConfig => "the fw_cfg file",
            Self::Nvdimm => "the NVDIMM",
            Self::TpmState => "the TPM's state",
        }
    }
}

/// A file of a guest, and what is at the same path at the destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FileFacts {
    /// What it is for the guest.
    pub role: FileRole,
    /// Its path, on both hosts.
    pub path: PathBuf,
    /// The file at the source, as the raw bytes that it is; `None` if it cannot be read or does not exist.
    pub file: Option<LayerFacts>,
    /// Why it cannot be read; `None` if it could be, or does not exist.
    pub unreadable: Option<String>,
    /// What is at that path at the destination.
    #[serde(rename = "there")]
    pub destination: FilePlace,
}

/// What is at a file's path at the destination.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FilePlace {
    /// The object; `None` if there is none, or it could not be examined.
    pub object: Option<ObjectFacts>,
    /// Whether it is equal to the source's file; `None` if nothing is there.
    pub content: Option<Content>,
    /// Why nothing can be made there; `None` if it can be, or if something is there.
    pub unusable: Option<String>,
    /// Free bytes there, if nothing is there.
    pub available: Option<u64>,
}
