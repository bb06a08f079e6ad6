//! Devices and settings of a guest that keep libvirt or QEMU from migrating it while it runs.
//!
//! libvirt asks QEMU for its reasons only when the migration begins, when images have been made already. So what
//! they will refuse is read from the XML. That QEMU 10 refuses a device was tried with `-only-migratable`.

use roxmltree::{Document, Node};

use super::tree::{attribute, child, children, is};

/// Something that keeps a running guest from being migrated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// What it is, and why it cannot be migrated.
    pub what: String,
    /// What the operator can do.
    pub way_out: &'static str,
    /// Some hosts or versions can migrate it: libvirt and QEMU may be left to decide.
    pub maybe: bool,
    /// It belongs to its host, so that a guest that is shut off would get another one, or none, at the destination.
    pub of_host: bool,
}

const DETACH: &str =
    "detach it (virsh detach-device), and attach one at the destination; or shut the guest off";
const RESTART: &str = "take it out of the definition and restart the guest; or shut the guest off";

pub(super) fn obstacles(document: &Document<'_>) -> Vec<Obstacle> {
    let root = document.root_element();
    let mut found: Vec<Obstacle> = children(root, "devices")
        .flat_map(|devices| devices.children())
        .filter_map(device)
        .collect();
    found.extend(processor(root));
    if let Some(kind) = child(root, "launchSecurity").and_then(|node| attribute(node, "type")) {
        found.push(obstacle(format!("the memory is encrypted ({kind})"), RESTART));
    }
    found
}

fn obstacle(what: impl Into<String>, way_out: &'static str) -> Obstacle {
    Obstacle { what: what.into(), way_out, maybe: false, of_host: false }
}

fn of_host(what: impl Into<String>) -> Obstacle {
    Obstacle { of_host: true, ..obstacle(what, DETACH) }
}

fn device(device: Node<'_, '_>) -> Option<Obstacle> {
    let get = |name| attribute(device, name);
    let model = get("model").unwrap_or_default();
    match device.tag_name().name() {
        _ if !is(device, device.tag_name().name()) => None,
        "hostdev" => hostdev(device),
        "interface" => interface(device),
        "shmem" => {
            let name = get("name").unwrap_or_default();
            let what = format!("the shared memory '{name}' has another role than 'master'");
            (get("role") != Some("master")).then(|| obstacle(what, DETACH))
        }
        "filesystem" => {
            let driver = child(device, "driver").and_then(|driver| attribute(driver, "type"));
            let kind = if driver == Some("virtiofs") { "virtiofs" } else { "9p" };
            let target = child(device, "target").and_then(|target| attribute(target, "dir"));
            let target = target.unwrap_or_default();
            Some(Obstacle {
                maybe: true,
                ..of_host(format!("the file system '{target}' ({kind}) is a directory of the host"))
            })
        }
        "tpm" => {
            let backend = child(device, "backend").and_then(|backend| attribute(backend, "type"));
            (backend == Some("passthrough")).then(|| of_host("the TPM is that of the host"))
        }
        "input" if get("type") == Some("passthrough") => {
            Some(of_host("an input device of the host is passed through"))
        }
        "smartcard" if matches!(get("mode"), Some("host" | "host-certificates")) => {
            Some(of_host("a smart card of the host is passed through"))
        }
        "sound" if matches!(model, "usb" | "virtio") => {
            Some(obstacle(format!("QEMU cannot migrate the sound device '{model}'"), RESTART))
        }
        "crypto" => Some(obstacle("QEMU cannot migrate the device 'crypto'", DETACH)),
        "iommu" if model == "amd" => Some(obstacle("QEMU cannot migrate the IOMMU 'amd'", RESTART)),
        "memory" if model == "sgx-epc" => {
            Some(of_host("the memory of SGX enclaves cannot be migrated"))
        }
        "video" => video(device),
        "disk" => {
            let bus = child(device, "target").and_then(|target| attribute(target, "bus"));
            (bus == Some("nvme"))
                .then(|| obstacle("QEMU cannot migrate disks on the bus 'nvme'", RESTART))
        }
        _ => None,
    }
}

/// A device of the host. USB devices come back if the destination has them.
fn hostdev(device: Node<'_, '_>) -> Option<Obstacle> {
    if takes_itself_out(device) {
        return None;
    }
    let kind = attribute(device, "type").unwrap_or_default();
    let protocol = child(device, "source").and_then(|source| attribute(source, "protocol"));
    match kind {
        "usb" => None,
        "scsi" if protocol == Some("iscsi") => None,
        "pci" | "mdev" => Some(Obstacle {
            maybe: true,
            ..of_host(format!("a device of the host ({kind}) is passed through"))
        }),
        _ => Some(of_host(format!("a device of the host ({kind}) is passed through"))),
    }
}

fn interface(device: Node<'_, '_>) -> Option<Obstacle> {
    match attribute(device, "type") {
        Some(kind @ ("hostdev" | "vdpa")) if !takes_itself_out(device) => Some(Obstacle {
            maybe: true,
            ..of_host(format!("a network device of the host ({kind}) is passed through"))
        }),
        _ => None,
    }
}

/// QEMU unplugs the device for the migration, and the guest goes on with its stand-in.
fn takes_itself_out(device: Node<'_, '_>) -> bool {
    child(device, "teaming").is_some_and(|node| attribute(node, "type") == Some("transient"))
}

fn video(device: Node<'_, '_>) -> Option<Obstacle> {
    let model = child(device, "model")?;
    let accelerated =
        child(model, "acceleration").is_some_and(|node| attribute(node, "accel3d") == Some("yes"));
    let driver = child(device, "driver").and_then(|driver| attribute(driver, "name"));
    let virtio = attribute(model, "type") == Some("virtio");
    if virtio && (accelerated || driver == Some("vhostuser")) {
        return Some(obstacle(
            "QEMU cannot migrate a video device that draws on the host",
            RESTART,
        ));
    }
    None
}

/// A processor whose clock must not change, without its frequency being said.
fn processor(root: Node<'_, '_>) -> Option<Obstacle> {
    let cpu = child(root, "cpu")?;
    let says_frequency =
        children(root, "clock").flat_map(|clock| children(clock, "timer")).any(|timer| {
            attribute(timer, "name") == Some("tsc") && attribute(timer, "frequency").is_some()
        });
    if says_frequency {
        return None;
    }
    let invariant = children(cpu, "feature").any(|feature| {
        attribute(feature, "name") == Some("invtsc")
            && !matches!(attribute(feature, "policy"), Some("disable" | "forbid"))
    });
    let way_out = "give the TSC a frequency (<timer name='tsc' frequency=...>), or take that out of the \
                   definition, and restart the guest; or shut it off";
    if invariant {
        return Some(obstacle(
            "the processor has the feature 'invtsc', and the TSC no frequency",
            way_out,
        ));
    }
    (attribute(cpu, "migratable") == Some("off")).then(|| Obstacle {
        maybe: true,
        ..obstacle("the processor has what cannot be migrated (migratable='off')", way_out)
    })
}
