//! Volumes and other block devices that the operator has made at the destination, as targets.

use crate::trial::{REFUSED, Trial, Way, needs_migration, says};
use rig::{Disk, Host, Kind, Rig};

/// A volume of the operator's as the target, by the name that is a link to its device: refused until it is there and may
/// be overwritten, and of no other size than the disk's unless it is larger, of which the guest sees nothing.
#[test]
fn a_device_as_the_target() {
    needs_migration!();
    let rig = Rig::shared();
    for (name, larger) in [("to-device", 0), ("to-larger-device", 4 << 20)] {
        let mut trial = Trial::new(rig, name, Way::Agent);
        let size = trial.guest.template.size;
        let Some(device) = rig.b.block_device(name, size + larger) else {
            return rig::rig::skipped("no loop devices here");
        };
        let raw = trial.path("disk.img");
        trial.guest.template.write(&rig.a.outside(&raw));
        trial.run(&[Disk::raw(&*raw)]);
        let volume = format!("/dev/vg-{name}/web");
        let map = format!("{raw}={volume}");
        let ran = trial.migrate(&["--map-path", &map, "--mkdir"]);
        trial.refused(ran, &format!("create a device of {size} bytes there"));
        assert!(!rig.b.has(&volume));
        rig.b.run(["mkdir", &format!("/dev/vg-{name}")]).ok();
        rig.b.run(["ln", "-s", &device, &volume]).ok();
        trial.refused(trial.migrate(&["--map-path", &map]), "overwrite it with --adopt");

        // Nor is what the system uses.
        rig.b.run(["mkfs.ext4", "-q", &device]).ok();
        let mounted =
            rig.b.run(["sh", "-c", &format!("mkdir /run/{name} && mount {device} /run/{name}")]);
        if mounted.succeeded() {
            let ran = trial.migrate(&["--map-path", &map, "--adopt"]);
            trial.refused(ran, "it is mounted, or part of a volume group");
            rig.b.run(["umount", &format!("/run/{name}")]).ok();
        }

        let (guest, a, b) = (&trial.guest, &rig.a, &rig.b);
        trial.migrate(&["--map-path", &map, "--adopt", "--verify", "content"]).ok();
        assert_eq!((guest.state(a), guest.state(b).as_deref()), (None, Some("running")));
        guest.wait_writes(b, guest.writes(a) + 100);
        let on_disk = |host: &Host| {
            host.virsh(["suspend", &guest.name]).ok();
            let copy = host.raw_copy(&volume);
            copy.as_file().set_len(size).unwrap();
            let found = guest.template.check(copy.path(), Kind::Boot).unwrap();
            host.virsh(["resume", &guest.name]).ok();
            found
        };
        let writes = on_disk(b);
        assert!(writes >= guest.writes(a));
        for inactive in [&[][..], &["--inactive"]] {
            let xml = b.virsh([&["dumpxml", &*guest.name][..], inactive].concat()).ok();
            assert!(xml.contains(&format!("dev='{volume}'")), "{xml}");
        }
        b.virsh(["suspend", &guest.name]).ok();
        b.virsh(["destroy", &guest.name]).ok();
        guest.start(b);
        guest.goes_on(b);
        assert!(on_disk(b) >= writes);
        b.virsh(["destroy", &guest.name]).ok();
    }
}

/// A QCOW2 disk goes into a QCOW2 image of its size that the operator has made in a volume.
#[test]
fn a_qcow2_image_in_a_volume_as_the_target() {
    needs_migration!();
    let rig = Rig::shared();
    let trial = Trial::alone(rig, "into-volume", Way::Agent);
    let (guest, a, b, disk) = (&trial.guest, &rig.a, &rig.b, trial.disk());
    let Some(device) = b.block_device("into-volume", guest.template.size * 2) else {
        return rig::rig::skipped("no loop devices here");
    };
    let volume = "/dev/vg-into/web";
    b.run(["mkdir", "/dev/vg-into"]).ok();
    b.run(["ln", "-s", &device, volume]).ok();
    let map = format!("{disk}={volume}");
    // There is no image yet.
    let ran = trial.migrate(&["--map-path", &map, "--adopt"]);
    assert_eq!(ran.code(), Some(REFUSED), "{ran}");
    trial.stayed();
    b.qemu_img(["create", "-q", "-f", "qcow2", volume, &guest.template.size.to_string()]).ok();

    trial.migrate(&["--map-path", &map, "--adopt", "--verify", "content"]).ok();
    assert_eq!((guest.state(a), guest.state(b).as_deref()), (None, Some("running")));
    guest.wait_writes(b, guest.writes(a) + 50);
    let writes = guest.check_disk(b, volume, Kind::Boot);
    assert!(writes >= guest.writes(a));
    b.virsh(["suspend", &guest.name]).ok();
    b.virsh(["destroy", &guest.name]).ok();
    guest.start(b);
    guest.goes_on(b);
    assert!(guest.check_disk(b, volume, Kind::Boot) >= writes);
    b.virsh(["destroy", &guest.name]).ok();
}

/// A guest that is shut off goes to new files only, and it is said how it gets onto a device.
#[test]
fn a_device_as_the_target_of_a_guest_that_is_shut_off() {
    needs_migration!();
    let rig = Rig::shared();
    let mut trial = Trial::new(rig, "off-to-device", Way::Agent);
    let Some(device) = rig.b.block_device("off-to-device", trial.guest.template.size) else {
        return rig::rig::skipped("no loop devices here");
    };
    let raw = trial.path("disk.img");
    trial.guest.template.write(&rig.a.outside(&raw));
    trial.run(&[Disk::raw(&*raw)]);
    rig.a.virsh(["destroy", &trial.guest.name]).ok();
    let map = format!("{raw}={device}");
    let ran = trial.migrate(&["--map-path", &map, "--adopt"]);
    assert_eq!(ran.code(), Some(REFUSED), "{ran}");
    says(&ran, "virsh start --paused");
    // As it says.
    rig.a.virsh(["start", "--paused", &trial.guest.name]).ok();
    trial.migrate(&["--map-path", &map, "--adopt"]).ok();
    assert_eq!(trial.guest.state(&rig.b).as_deref(), Some("paused"));
    rig.b.virsh(["resume", &trial.guest.name]).ok();
    trial.guest.wait_writes(&rig.b, 50);
    rig.b.virsh(["destroy", &trial.guest.name]).ok();
}
