//! Files of guests besides their disks, between two libvirt hosts: firmware variables and their template.

use std::fs;

use crate::trial::{Trial, Way, both_ways, needs_migration};
use rig::{Disk, Kind, Rig};

/// A guest on a disk of its own, with SeaBIOS as its flash and 128 KiB of variables beside it.
fn with_nvram<'a>(rig: &'a Rig, name: &str, way: Way) -> (Trial<'a>, Vec<u8>) {
    let mut trial = Trial::new(rig, name, way);
    let (nvram, template) = (trial.path("VARS.fd"), trial.path("VARS-template.fd"));
    let variables: Vec<u8> = (0..131_072_u32).map(|at| (at % 253) as u8).collect();
    fs::write(rig.a.outside(&nvram), &variables).unwrap();
    fs::write(rig.a.outside(&template), vec![0; variables.len()]).unwrap();
    let os = format!(
        "<loader readonly='yes' type='pflash'>/usr/share/seabios/bios-256k.bin</loader>\
         <nvram template='{template}'>{nvram}</nvram>"
    );
    trial.guest.more.push(("</os>", os));
    trial.guest.more.push(("<devices>", "<features><acpi/></features>".to_owned()));
    let disk = trial.disk();
    rig.a.make_template(&disk, &trial.guest.template);
    trial.run(&[Disk::qcow2(disk)]);
    (trial, variables)
}

both_ways! {
    /// Nobody but us brings the variables of a guest that is shut off.
    fn nvram_of_a_stopped_guest(way: Way) {
        let (trial, variables) = with_nvram(Rig::shared(), "nvram-off", way);
        let (a, b, guest) = (&trial.rig.a, &trial.rig.b, &trial.guest);
        a.virsh(["suspend", &guest.name]).ok();
        a.virsh(["destroy", &guest.name]).ok();
        trial.migrate(&[]).ok();
        let nvram = trial.path("VARS.fd");
        assert_eq!(fs::read(b.outside(&nvram)).unwrap(), variables);
        assert!(!a.has(&nvram), "what is left here has another name");
        assert!(!b.has(trial.path("VARS-template.fd")), "nothing is made from it any more");
        // libvirt gives it to QEMU's user.
        guest.start(b);
        guest.goes_on(b);
        assert_eq!(fs::read(b.outside(&nvram)).unwrap(), variables);
        guest.check_disk(b, &trial.disk(), Kind::Boot);
    }

    /// Of a running guest QEMU does, into a file that libvirt makes from the template.
    fn nvram_of_a_running_guest(way: Way) {
        let (trial, variables) = with_nvram(Rig::shared(), "nvram-on", way);
        let ran = trial.migrate(&[]);
        trial.arrived(ran, &["disk.qcow2", "VARS.fd", "VARS-template.fd"]);
        assert_eq!(fs::read(trial.rig.b.outside(trial.path("VARS.fd"))).unwrap(), variables);
    }

    /// What was prepared of them goes with the rest.
    fn nvram_is_rolled_back(way: Way) {
        let (trial, variables) = with_nvram(Rig::shared(), "nvram-back", way);
        let (a, b, guest) = (&trial.rig.a, &trial.rig.b, &trial.guest);
        a.virsh(["destroy", &guest.name]).ok();
        trial.tool("prepare", &[]).ok();
        assert!(b.has(trial.path("VARS.fd")));
        trial.go_on("rollback", &trial.transaction()).ok();
        assert!(!b.has(trial.path("VARS.fd")) && !b.has(trial.disk()));
        assert_eq!(fs::read(a.outside(trial.path("VARS.fd"))).unwrap(), variables);
        guest.start(a);
    }
}

/// A guest whose memory libvirt has saved is more than its disks.
#[test]
fn a_saved_guest_is_refused_until_it_is_started() {
    needs_migration!();
    let rig = Rig::shared();
    let trial = Trial::alone(rig, "saved", Way::Agent);
    let (a, guest) = (&rig.a, &trial.guest);
    a.virsh(["managedsave", &guest.name]).ok();
    let ran = trial.migrate(&[]);
    assert_eq!(ran.code(), Some(crate::trial::REFUSED), "{ran}");
    assert!(
        ran.stderr().contains("refused (R10)") && ran.stderr().contains("virsh start"),
        "{ran}"
    );
    a.virsh(["start", &guest.name]).ok();
    trial.migrate(&[]).ok();
    trial.lives_on_b(&["disk.qcow2"]);
}
