//! Directories of targets that the destination does not have.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::trial::{Trial, Way, both_ways, needs_migration};
use rig::{Kind, Rig};

const NEW: &str = "/var/lib/libvirt/images/new";

both_ways! {
    fn made_as_at_the_source_and_taken_back(way: Way) {
        let rig = Rig::up();
        let trial = Trial::alone(&rig, "mkdir", way);
        let (guest, a, b) = (&trial.guest, &rig.a, &rig.b);
        let rights = |host: &rig::Host, path: &str| {
            let is = std::fs::metadata(host.outside(path)).unwrap();
            (is.mode() & 0o7777, is.uid(), is.gid())
        };
        let own = a.outside(guest.directory());
        std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o751)).unwrap();
        std::os::unix::fs::chown(&own, Some(0), Some(4321)).unwrap();
        let deeper = format!("{NEW}/deeper");
        let map = format!("{}={deeper}", guest.directory());
        trial.refused(trial.migrate(&["--map-path", &map]), "with --mkdir");
        assert!(!b.has(NEW));

        // What was made is taken back when the guest cannot move.
        let options = ["--map-path", &map, "--mkdir"];
        let fails = [&options[..], &["--migrate-address", "host-b:1"]].concat();
        let failed = trial.migrate(&fails);
        assert_eq!(failed.code(), Some(6), "{failed}");
        trial.stayed();
        assert!(!b.has(NEW), "{failed}");

        trial.migrate(&options).ok();
        assert_eq!(guest.state(a), None);
        assert_eq!(guest.state(b).as_deref(), Some("running"));
        assert_eq!(rights(b, &deeper), rights(a, &guest.directory()));
        guest.wait_writes(b, guest.writes(a) + 100);
        let disk = format!("{deeper}/disk.qcow2");
        assert!(guest.check_disk(b, &disk, Kind::Boot) >= guest.writes(a));
        assert_eq!(b.list(&deeper), ["disk.qcow2"]);
        assert_eq!(b.list(NEW), ["deeper"]);
        // Nothing is left of the pools by which libvirt did it.
        let pools = b.virsh(["pool-list", "--all", "--name"]).ok();
        assert!(!pools.contains("qcowtool-"), "{pools}");
    }
}
