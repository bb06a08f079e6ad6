//! Whether a host that libvirt tells of is the machine that this program runs on.
//!
//! To take another machine's files for our own is worse than not to know them: then headers, bases and
//! digests of the wrong files are read. So a doubt means "no".

use std::fs;

use uuid::Uuid;

use crate::facts::HostFacts;

/// systemd's number of this installation: it belongs to a root file system, as the paths of images do.
const MACHINE_ID: &str = "/etc/machine-id";
/// The firmware's number of this machine, which libvirt calls the host's UUID unless it is told another. Only root
/// may read it. Containers have that of their host, and cheap boards all have the same.
const PRODUCT_UUID: &str = "/sys/class/dmi/id/product_uuid";

/// Whether the host is this machine: by libvirt's UUID of the host where that says something, otherwise by
/// its full name.
///
/// | names | UUIDs | local? |
/// |---|---|---|
/// | equal | any | yes |
/// | equal, but `localhost`, and libvirt is reached through another host's name | equal | yes, otherwise no |
/// | one is the other's first part | not known | yes |
/// | one is the other's first part, and libvirt is reached through a host's name | known and different | no |
/// | different | that of libvirt is this machine's `/etc/machine-id`, and libvirt is reached locally | yes |
/// | different | anything else | no |
pub fn is_local(host: &HostFacts) -> bool {
    Machine::this().is(host)
}

/// The name of this machine.
pub(crate) fn name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// What tells this machine from others.
#[derive(Debug)]
struct Machine {
    name: String,
    machine_id: Option<Uuid>,
    product: Option<Uuid>,
}

/// How far two names are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Names {
    Equal,
    /// One has no domain, and is the first part of the other.
    FirstPart,
    Different,
}

impl Machine {
    fn this() -> Self {
        let read = |file| Uuid::try_parse(fs::read_to_string(file).ok()?.trim()).ok();
        Self { name: name(), machine_id: read(MACHINE_ID), product: read(PRODUCT_UUID) }
    }

    fn is(&self, host: &HostFacts) -> bool {
        let uuid = host.uuid.as_deref().and_then(|uuid| Uuid::try_parse(uuid).ok());
        let by_machine_id = uuid.is_some() && uuid == self.machine_id;
        let by_uuid = by_machine_id || uuid.is_some() && uuid == self.product;
        let known = uuid.is_some() && self.machine_id.is_some() && self.product.is_some();
        let through_a_name =
            host.uri.split_once("://").is_some_and(|(_, rest)| !rest.starts_with('/'));
        match names(&self.name, &host.hostname) {
            // Many machines are called so.
            _ if through_a_name && first(&host.hostname).eq_ignore_ascii_case("localhost") => {
                by_uuid && names(&self.name, &host.hostname) != Names::Different
            }
            Names::Equal => true,
            Names::FirstPart => by_uuid || !(known && through_a_name),
            Names::Different => by_machine_id && !through_a_name,
        }
    }
}

fn names(here: &str, there: &str) -> Names {
    let [here, there] = [here, there].map(|name| name.trim_end_matches('.').to_ascii_lowercase());
    let both_full = here.contains('.') && there.contains('.');
    if here == there {
        Names::Equal
    } else if !both_full && first(&here) == first(&there) {
        Names::FirstPart
    } else {
        Names::Different
    }
}

fn first(name: &str) -> &str {
    name.split('.').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef";
    const BOARD: &str = "03000200-0400-0500-0006-000700080009";
    const OTHER: &str = "ffffffff-4444-4444-8888-cccccccccccc";

    fn local(here: &str, there: &str, uri: &str, uuid: Option<&str>) -> bool {
        let machine = Machine {
            name: here.into(),
            machine_id: Uuid::try_parse(ID).ok(),
            product: Uuid::try_parse(BOARD).ok(),
        };
        machine.is(&HostFacts {
            uri: uri.into(),
            hostname: there.into(),
            uuid: uuid.map(str::to_owned),
            libvirt: None,
            qemu: None,
        })
    }

    #[test]
    fn another_machine_is_not_taken_for_this_one() {
        let (ssh, own) = ("qemu+ssh://node/system", "qemu:///system");
        for (here, there, uri, uuid, expected) in [
            // Full names decide, whatever the firmware says.
            ("node.dc-a", "node.dc-a", ssh, Some(OTHER), true),
            ("node.dc-a", "NODE.dc-a.", own, None, true),
            ("node1.dc-a", "node1.dc-b", own, None, false),
            ("node1.dc-a", "node1.dc-b", own, Some(BOARD), false),
            ("node1.dc-a", "node1.dc-b", ssh, Some(ID), false),
            ("node", "other", own, None, false),
            ("node", "other", own, Some(BOARD), false),
            ("node", "other", ssh, Some(ID), false),
            // The same installation, renamed after libvirt was started.
            ("node", "other", own, Some("01234567-89AB-CDEF-0123-456789ABCDEF"), true),
            // A name without its domain is a name of many, if the UUID does not decide.
            ("node", "node", ssh, Some(OTHER), true),
            ("node", "node.example.org", ssh, None, true),
            ("node", "node.example.org", own, Some(OTHER), true),
            ("node", "node.example.org", ssh, Some(OTHER), false),
            ("node.example.org", "node", ssh, Some(BOARD), true),
            ("node.example.org", "node", ssh, Some(OTHER), false),
            // Every machine may call itself so.
            ("localhost", "localhost", own, None, true),
            ("localhost", "localhost", ssh, None, false),
            ("localhost", "localhost.localdomain", ssh, Some(OTHER), false),
            ("localhost.localdomain", "localhost.localdomain", ssh, None, false),
            ("localhost", "localhost", ssh, Some(BOARD), true),
            ("node", "localhost", ssh, Some(BOARD), false),
        ] {
            assert_eq!(local(here, there, uri, uuid), expected, "{here} {there} {uri} {uuid:?}");
        }
    }

    #[test]
    fn without_its_own_uuids_a_machine_goes_by_names() {
        let machine =
            Machine { name: "node".into(), machine_id: Uuid::try_parse(ID).ok(), product: None };
        let host = |hostname: &str| HostFacts {
            uri: "qemu+tls://node/system".into(),
            hostname: hostname.into(),
            uuid: Some(OTHER.into()),
            libvirt: None,
            qemu: None,
        };
        assert!(machine.is(&host("node.example.org")));
        assert!(!machine.is(&host("other")));
    }
}
