//! What libvirt tells of what a host can run.

use roxmltree::Node;

use super::raw::{self, CpuCompared};
use super::xml::{child, document, text};
use super::{Connection, code, is};
use crate::Result;
use crate::facts::{Abilities, Cpu, CpuFit, GuestKind, Resources};

pub(super) fn abilities(connection: &Connection) -> Result<Abilities> {
    let xml = connection.say(connection.connect()?.capabilities())?;
    parse(&xml).map_err(|error| error.on(&connection.hostname()))
}

pub(super) fn resources(connection: &Connection) -> Result<Resources> {
    let connect = connection.connect()?;
    let node = connection.say(connect.node_info())?;
    let bytes = |kib: u64| kib.saturating_mul(1024);
    // Where libvirt cannot tell what is used, only guests are counted.
    let available = match raw::memory(&connect) {
        Err(failure) if is(&failure, code::NO_SUPPORT) => node.memory,
        memory => connection.say(memory)?.available(),
    };
    Ok(Resources {
        memory: bytes(node.memory),
        memory_available: bytes(available).min(bytes(node.memory)),
        cpus: node.cpus.into(),
    })
}

pub(super) fn compare_cpu(connection: &Connection, cpu: &Cpu<'_>) -> Result<CpuFit> {
    let connect = connection.connect()?;
    Ok(match raw::compare_cpu(&connect, cpu) {
        Ok(CpuCompared::Identical) => CpuFit::Identical,
        Ok(CpuCompared::Superset) => CpuFit::Superset,
        Ok(CpuCompared::Incompatible) => {
            CpuFit::Incompatible { why: "it lacks something that the other has".into() }
        }
        Err(failure) if is(&failure, code::CPU_INCOMPATIBLE) => {
            CpuFit::Incompatible { why: failure.message().to_owned() }
        }
        Err(failure) => match connect.is_alive() {
            Ok(true) => CpuFit::Unknown { why: failure.message().to_owned() },
            _ => return connection.say(Err(failure)),
        },
    })
}

fn parse(capabilities: &str) -> Result<Abilities> {
    let document = document(capabilities, "a host's capabilities")?;
    let root = document.root_element();
    let cpu = child(root, "host").and_then(|host| child(host, "cpu"));
    let named = |node: Node<'_, '_>, name: &'static str| {
        node.children().filter(move |child| child.has_tag_name(name)).count() > 0
    };
    let mut guests = Vec::new();
    let of_this_kind = |node: &Node<'_, '_>| {
        node.has_tag_name("guest") && text(*node, &["os_type"]) == Some("hvm")
    };
    for arch in root.children().filter(of_this_kind).filter_map(|guest| child(guest, "arch")) {
        for domain in arch.children().filter(|node| node.has_tag_name("domain")) {
            // What is said of all kinds holds where nothing is said of this one.
            let place = if named(domain, "machine") { domain } else { arch };
            guests.push(GuestKind {
                arch: arch.attribute("name").unwrap_or_default().to_owned(),
                virtualization: domain.attribute("type").unwrap_or_default().to_owned(),
                machines: machines(place),
            });
        }
    }
    Ok(Abilities {
        cpu: cpu.and_then(|cpu| capabilities.get(cpu.range())).map(str::to_owned),
        guests,
    })
}

/// With what names stand for: a definition may have the one or the other.
fn machines(place: Node<'_, '_>) -> Vec<String> {
    let machines = place.children().filter(|node| node.has_tag_name("machine"));
    let mut names: Vec<_> = machines
        .flat_map(|node| [node.text().map(str::trim), node.attribute("canonical")])
        .flatten()
        .map(str::to_owned)
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_types_are_those_of_the_kind_of_guest() {
        let xml = "<capabilities><host><uuid>x</uuid><cpu><arch>x86_64</arch></cpu></host>
            <guest><os_type>hvm</os_type><arch name='x86_64'><wordsize>64</wordsize>
              <emulator>/usr/bin/qemu</emulator>
              <machine canonical='pc-i440fx-9.0' maxCpus='255'>pc</machine><machine>q35</machine>
              <domain type='qemu'/>
              <domain type='kvm'><machine>only-kvm</machine></domain></arch></guest>
            <guest><os_type>xen</os_type><arch name='i686'><domain type='xen'/></arch></guest>
            </capabilities>";
        let abilities = parse(xml).unwrap();
        assert_eq!(abilities.cpu.as_deref(), Some("<cpu><arch>x86_64</arch></cpu>"));
        let [qemu, kvm] = &abilities.guests[..] else { panic!("{abilities:?}") };
        assert_eq!(
            (&*qemu.arch, &*qemu.virtualization, &qemu.machines[..]),
            ("x86_64", "qemu", &["pc", "pc-i440fx-9.0", "q35"].map(str::to_owned)[..])
        );
        assert_eq!(
            (&*kvm.virtualization, &kvm.machines[..]),
            ("kvm", &["only-kvm".to_owned()][..])
        );
    }
}
