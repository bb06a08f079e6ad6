//! Guests that libvirt and QEMU do not migrate while they run: refused before anything is made, and rightly so.

use crate::trial::{REFUSED, Trial, Way, needs_migration};
use rig::{Disk, Rig};

#[test]
fn what_libvirt_refuses_is_refused_before_anything_is_made() {
    needs_migration!();
    let rig = Rig::shared();
    // This machine has one place for such memory, whatever the host: its name is this process's alone.
    let memory = format!("qcowtool-rig-{}", std::process::id());
    let shmem = format!(
        "<shmem name='{memory}' role='peer'><model type='ivshmem-plain'/><size unit='M'>1</size></shmem>"
    );
    let devices = [
        ("shmem", shmem.as_str()),
        ("sound", "<sound model='virtio'/>"),
        (
            "crypto",
            "<crypto model='virtio' type='qemu'><backend model='builtin' queues='1'/></crypto>",
        ),
    ];
    for (name, device) in devices {
        let mut trial = Trial::new(rig, name, Way::Agent);
        trial.guest.more.push(("</devices>", device.to_owned()));
        let disk = trial.disk();
        rig.a.make_template(&disk, &trial.guest.template);
        trial.run(&[Disk::qcow2(disk)]);
        let ran = trial.migrate(&[]);
        assert_eq!(ran.code(), Some(REFUSED), "{ran}");
        assert!(ran.stderr().contains("refused (R11)"), "{ran}");
        trial.stayed();
        // libvirt would have said so when the target was there.
        rig.b.qemu_img(["create", "-q", "-f", "qcow2", &trial.disk(), "64M"]).ok();
        let ran = trial.guest.virsh_migrate(&["--copy-storage-all"]);
        assert!(!ran.succeeded(), "{ran}");
        assert!(ran.stderr().contains("migrat"), "{ran}");
        // The way out: shut off, it goes.
        std::fs::remove_file(rig.b.outside(trial.disk())).unwrap();
        rig.a.virsh(["destroy", &trial.guest.name]).ok();
        trial.migrate(&[]).ok();
    }
    let _ = std::fs::remove_file(std::path::Path::new("/dev/shm").join(memory));
}
