//! What is written into guests' metadata, through libvirt's own test driver: it is what is so now, and nothing older.

use std::fs;
use std::path::Path;

use migrate::annotate::{Change, refresh, remove, write};
use migrate::driver::Hypervisor;
use migrate::driver::libvirt::Connection;
use migrate::hook::annotation::{Annotation, Below};
use migrate::plan::Policy;
use migrate::probe::Probing;
use migrate::{CancelToken, Silent};
use qcow::chain::Format;
use qcow::ops::create::{Backing, CreateOptions, create};

const UUID: &str = "11111111-2222-4333-8444-666666666666";
const MIB: u64 = 1 << 20;

/// A guest that is shut off, with a disk there.
fn define(connection: &Connection, disk: &Path) {
    let xml = format!(
        "<domain type='test'><name>kept</name><uuid>{UUID}</uuid><memory>8192</memory><os><type>hvm</type></os>\
         <devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{}'/>\
         <target dev='vda' bus='virtio'/></disk></devices></domain>",
        disk.display()
    );
    connection.define(&xml).unwrap();
}

fn overlay(path: &Path, base: &Path, size: u64) {
    let _ = fs::remove_file(path);
    let backing = Backing::new(base, Format::Raw);
    create(path, &CreateOptions::default().size(Some(size)).backing(backing)).unwrap();
}

#[test]
fn what_is_written_is_what_is_so_now() {
    let directory = tempfile::tempdir().unwrap();
    let (disk, base) = (directory.path().join("disk.qcow2"), directory.path().join("base.raw"));
    fs::write(&base, vec![7; MIB as usize]).unwrap();
    overlay(&disk, &base, MIB);
    let connection = Connection::open("test:///default").unwrap();
    define(&connection, &disk);
    let (policy, never) = (Policy::default(), CancelToken::new());
    let probing = Probing::new(&policy, &Silent, &never);
    let written = || {
        let domain = connection.domain("kept").unwrap().unwrap();
        Annotation::in_domain(&domain.live_xml).unwrap()
    };
    let refreshed = || {
        let (change, found) = refresh(&connection, "kept", &probing).unwrap();
        let found = found.unwrap();
        assert_eq!(written(), Some(found.annotation));
        (change, found.incomplete.len())
    };
    let below = || written().unwrap().disks[0].below.clone();
    assert_eq!(written(), None);
    assert_eq!(refreshed(), (Change::Written, 0));
    let Below::Disk { digest, virtual_size: MIB } = below() else { panic!("{:?}", below()) };
    assert_eq!(refreshed(), (Change::None, 0));

    // Resized, then over another backing file of that name and size.
    overlay(&disk, &base, 2 * MIB);
    assert_eq!(refreshed(), (Change::Written, 0));
    assert_eq!(written().unwrap().disks[0].virtual_size, 2 * MIB);
    fs::write(&base, vec![8; MIB as usize]).unwrap();
    assert_eq!(refreshed(), (Change::Written, 0));
    assert!(matches!(below(), Below::Disk { digest: other, .. } if other != digest));

    // What cannot be read is not said to hold what it held.
    fs::remove_file(&base).unwrap();
    assert_eq!(refreshed(), (Change::Written, 1));
    assert_eq!(below(), Below::Unknown);
    assert_eq!(refreshed(), (Change::None, 1));

    write(&connection, "kept", &probing).unwrap();
    assert_eq!(remove(&connection, "kept").unwrap(), "kept");
    assert_eq!(remove(&connection, UUID).unwrap(), "kept");
    assert_eq!(written(), None);
}
