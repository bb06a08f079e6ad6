//! The files that a domain's XML names besides its disks.

use std::path::{Path, PathBuf};

use roxmltree::{Document, Node};

use super::tree::{attribute, child, children, text};
use crate::facts::FileRole;

/// Where libvirt's system daemon keeps the state of TPMs, each guest's in a directory of its UUID.
const TPM_STATES: &str = "/var/lib/libvirt/swtpm";

/// The files that a domain has or needs besides its disks, by their paths on its host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct XmlFiles {
    /// Single files, in the order of the XML; none twice.
    pub files: Vec<(FileRole, PathBuf)>,
    /// The directory with the state of its emulated TPM.
    pub tpm_state: Option<PathBuf>,
}

pub(super) fn files(document: &Document<'_>, uuid: Option<&str>) -> XmlFiles {
    let root = document.root_element();
    let mut found = XmlFiles::default();
    let os = child(root, "os");
    let mut add = |role, path: &str| {
        let path = PathBuf::from(path.trim());
        if path.is_absolute() && !found.files.iter().any(|(_, known)| *known == path) {
            found.files.push((role, path));
        }
    };
    if let Some(loader) = os.and_then(|os| child(os, "loader")) {
        // Firmware that the guest writes to has its variables in itself.
        let role = match attribute(loader, "readonly") {
            Some("no") => FileRole::Nvram,
            _ => FileRole::Loader,
        };
        add(role, &text(loader));
    }
    for nvram in os.iter().flat_map(|os| children(*os, "nvram")) {
        let source = child(nvram, "source");
        let inner = source.and_then(|node| attribute(node, "file").or(attribute(node, "dev")));
        match inner {
            Some(path) => add(FileRole::Nvram, path),
            None => add(FileRole::Nvram, &text(nvram)),
        }
        if let Some(template) = attribute(nvram, "template") {
            add(FileRole::NvramTemplate, template);
        }
    }
    for varstore in os.iter().flat_map(|os| children(*os, "varstore")) {
        let both = [(FileRole::Nvram, "path"), (FileRole::NvramTemplate, "template")];
        for (role, name) in both {
            if let Some(path) = attribute(varstore, name) {
                add(role, path);
            }
        }
    }
    let of_kernel = [
        (FileRole::Kernel, "kernel"),
        (FileRole::Initrd, "initrd"),
        (FileRole::Dtb, "dtb"),
        (FileRole::Shim, "shim"),
    ];
    for (role, name) in of_kernel {
        if let Some(node) = os.and_then(|os| child(os, name)) {
            add(role, &text(node));
        }
    }
    for acpi in os.iter().flat_map(|os| children(*os, "acpi")) {
        children(acpi, "table").for_each(|table| add(FileRole::AcpiTable, &text(table)));
    }
    for sysinfo in children(root, "sysinfo") {
        let named = children(sysinfo, "entry").filter_map(|entry| attribute(entry, "file"));
        named.for_each(|path| add(FileRole::FirmwareConfig, path));
    }
    let devices = || children(root, "devices").flat_map(|devices| devices.children());
    for device in devices() {
        if let Some(path) = child(device, "rom").and_then(|rom| attribute(rom, "file")) {
            add(FileRole::Rom, path);
        }
        if let Some(path) = keeps_memory(device) {
            add(FileRole::Nvdimm, &path);
        }
    }
    found.tpm_state = devices().find_map(|device| tpm_state(device, uuid));
    found
}

/// The path of a memory device that keeps its content.
fn keeps_memory(device: Node<'_, '_>) -> Option<String> {
    if !super::tree::is(device, "memory")
        || !matches!(attribute(device, "model"), Some("nvdimm" | "virtio-pmem"))
    {
        return None;
    }
    child(device, "source").and_then(|source| child(source, "path")).map(text)
}

/// The directory with the state of an emulated TPM.
fn tpm_state(device: Node<'_, '_>, uuid: Option<&str>) -> Option<PathBuf> {
    if !super::tree::is(device, "tpm") {
        return None;
    }
    let backend = child(device, "backend")?;
    if attribute(backend, "type") != Some("emulator") {
        return None;
    }
    if let Some(path) = child(backend, "source").and_then(|source| attribute(source, "path")) {
        return Some(path.into());
    }
    let version = match attribute(backend, "version") {
        Some("1.2") => "tpm1.2",
        _ => "tpm2",
    };
    Some(Path::new(TPM_STATES).join(uuid?).join(version))
}
