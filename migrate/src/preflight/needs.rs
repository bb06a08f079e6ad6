//! What a guest needs of a host besides its disks, from its XML.

use roxmltree::{Document, Node};

use crate::facts::DomainState;
use crate::{Error, Result};

/// What has to be compared to know whether a guest can have its processor at the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compares {
    /// Its own with what the destination offers.
    Own,
    /// The two hosts', because it has that of its host.
    Hosts,
}

/// What a guest needs of a host besides its disks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needs {
    /// `kvm`, `qemu`, ...
    pub virtualization: String,
    /// Its architecture.
    pub arch: String,
    /// Its machine type; empty for libvirt's choice.
    pub machine: String,
    /// The element `cpu`; `None` for the hypervisor's choice.
    pub cpu: Option<String>,
    /// How that one means it: `custom`, `host-model`, `host-passthrough`, `maximum`.
    pub cpu_mode: String,
    /// Bytes of memory that it can have.
    pub memory: u64,
    /// Processors that it can have.
    pub vcpus: u64,
}

impl Needs {
    /// Reads a domain's XML.
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage) if it is no XML.
    ///
    /// ```
    /// let xml = "<domain type='kvm'><os><type arch='x86_64' machine='q35'>hvm</type></os>
    ///            <cpu mode='host-model'/></domain>";
    /// let needs = migrate::preflight::Needs::read(xml)?;
    /// assert_eq!((&*needs.machine, &*needs.cpu_mode), ("q35", "host-model"));
    /// # Ok::<(), migrate::Error>(())
    /// ```
    pub fn read(xml: &str) -> Result<Self> {
        let document = Document::parse(xml)
            .map_err(|error| Error::usage(format!("the guest's XML is not XML: {error}")))?;
        let root = document.root_element();
        let kind = child(root, "os").and_then(|os| child(os, "type"));
        let of_kind = |name: &str| kind.and_then(|kind| kind.attribute(name)).unwrap_or_default();
        let cpu = child(root, "cpu");
        // Some have a topology alone, which compares with nothing.
        let means =
            |cpu: &Node<'_, '_>| cpu.has_attribute("mode") || child(*cpu, "model").is_some();
        let cpu = cpu.filter(means);
        Ok(Self {
            virtualization: root.attribute("type").unwrap_or_default().to_owned(),
            arch: of_kind("arch").to_owned(),
            machine: of_kind("machine").to_owned(),
            cpu: cpu.and_then(|cpu| xml.get(cpu.range())).map(str::to_owned),
            cpu_mode: cpu.and_then(|cpu| cpu.attribute("mode")).unwrap_or("custom").to_owned(),
            memory: child(root, "memory").map_or(0, bytes),
            vcpus: child(root, "vcpu").and_then(number).unwrap_or(1),
        })
    }

    /// What is compared for a guest in this state; `None` where it has no processor yet that it would have to
    /// keep.
    pub(super) fn compares(&self, state: DomainState) -> Option<Compares> {
        self.cpu.as_ref()?;
        match (&*self.cpu_mode, state) {
            ("custom", _) => Some(Compares::Own),
            (_, DomainState::ShutOff) => None,
            ("host-passthrough" | "maximum", _) => Some(Compares::Hosts),
            _ => Some(Compares::Own),
        }
    }
}

fn number(node: Node<'_, '_>) -> Option<u64> {
    node.text()?.trim().parse().ok()
}

/// What an element with an attribute `unit` says, as libvirt reads it.
fn bytes(node: Node<'_, '_>) -> u64 {
    let unit = match node.attribute("unit").unwrap_or("KiB") {
        "b" | "bytes" => 1,
        "KB" => 1000,
        "M" | "MiB" => 1 << 20,
        "MB" => 1_000_000,
        "G" | "GiB" => 1 << 30,
        "GB" => 1_000_000_000,
        "T" | "TiB" => 1 << 40,
        "TB" => 1_000_000_000_000,
        _ => 1024,
    };
    number(node).unwrap_or(0).saturating_mul(unit)
}

fn child<'a, 'd>(node: Node<'a, 'd>, name: &str) -> Option<Node<'a, 'd>> {
    node.children().find(|child| child.has_tag_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_is_one_only_if_something_is_said_of_it() {
        let of = |cpu: &str| Needs::read(&format!("<domain type='qemu'>{cpu}</domain>")).unwrap();
        let model = "<cpu match='exact'><model>EPYC</model></cpu>";
        assert_eq!(of(model).cpu.as_deref(), Some(model));
        assert_eq!(of(model).cpu_mode, "custom");
        assert_eq!(of("<cpu><topology sockets='2'/></cpu>").cpu, None);
        assert_eq!(of("<cpu mode='host-passthrough'/>").cpu_mode, "host-passthrough");
        assert_eq!(of("").cpu, None);
        assert!(Needs::read("<domain>").is_err());
    }

    #[test]
    fn memory_is_in_the_unit_that_it_says_and_processors_are_all_it_may_have() {
        let of = |inner: &str| {
            let needs = Needs::read(&format!("<domain type='qemu'>{inner}</domain>")).unwrap();
            (needs.memory, needs.vcpus)
        };
        assert_eq!(of("<memory>2048</memory>"), (2 << 20, 1));
        assert_eq!(of("<memory unit='GiB'>2</memory><vcpu current='1'>4</vcpu>"), (2 << 30, 4));
        assert_eq!(of("<memory unit='MB'>3</memory>"), (3_000_000, 1));
        assert_eq!(of("<memory unit='bytes'>x</memory>"), (0, 1));
    }
}
