//! What is passed through to libvirt: how memory is sent, and over which network.

use crate::trial::{Trial, Way, needs_migration};
use rig::Rig;

#[test]
fn memory_over_several_connections_to_an_address_and_a_port() {
    needs_migration!();
    let trial = Trial::alone(Rig::shared(), "connections", Way::Agent);
    let address = trial.rig.b.address();
    let options = ["--connections", "2", "--compress", "zstd", "--auto-converge"];
    let network = ["--migrate-address", address, "--disks-port", "49290", "--max-downtime", "500"];
    let options = [&options[..], &network[..]].concat();
    let plan = trial.plan(&options);
    let flags = plan["flags"].as_array().unwrap();
    for flag in ["parallel", "compressed", "auto-converge"] {
        assert!(flags.iter().any(|known| known == flag), "{flag}: {plan:#}");
    }
    trial.arrived(trial.migrate(&options), &["disk.qcow2"]);
    let log = trial.rig.b.outside(format!("/var/log/libvirt/qemu/{}.log", trial.guest.name));
    let log = std::fs::read_to_string(log).unwrap_or_default();
    assert!(!log.contains("multifd-channels is not supported"), "{log}");
}

#[test]
fn what_contradicts_itself_is_refused_and_one_connection_is_compressed() {
    needs_migration!();
    let trial = Trial::alone(Rig::shared(), "xbzrle", Way::Libvirt);
    trial.refused(trial.migrate(&["--compress", "zstd"]), "R12");
    trial.arrived(trial.migrate(&["--compress", "xbzrle"]), &["disk.qcow2"]);
}
