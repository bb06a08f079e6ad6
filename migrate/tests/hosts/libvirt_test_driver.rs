//! The libvirt driver and store against libvirt's own test driver, which needs no daemon: connections,
//! domains, pools, and what happens where a hypervisor cannot do what is asked of it.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use migrate::ErrorKind;
use migrate::driver::libvirt::Connection;
use migrate::driver::{Hypervisor, Inventory, MigrateRequest};
use migrate::facts::DomainState;
use migrate::plan::Flag;
use qcow::CancelToken;

const URI: &str = "test:///default";

fn connection() -> Connection {
    Connection::open(URI).unwrap()
}

#[test]
fn a_host_says_what_it_is() {
    let host = connection().host().unwrap();
    assert_eq!(host.uri, URI);
    assert!(!host.hostname.is_empty());
    assert!(host.libvirt.unwrap().major >= 6);
}

#[test]
fn a_domain_is_found_by_name_and_by_uuid() {
    let connection = connection();
    let by_name = connection.domain("test").unwrap().unwrap();
    assert_eq!(by_name.state, DomainState::Running);
    assert!(by_name.persistent && by_name.job.is_none() && by_name.inactive_xml.is_some());
    assert!(by_name.live_xml.contains(&by_name.uuid));
    let by_uuid = connection.domain(&by_name.uuid).unwrap().unwrap();
    assert_eq!(by_uuid, by_name);
    assert_eq!(connection.domain("nobody").unwrap(), None);
    let nobody = "00000000-0000-4000-8000-000000000000";
    assert_eq!(connection.domain(nobody).unwrap(), None);
    assert_eq!(connection.state(nobody).unwrap(), None);
    connection.abort(nobody).unwrap();
}

#[test]
fn a_domain_lives_through_all_its_states() {
    let connection = connection();
    let uuid = "11111111-2222-4333-8444-555555555555";
    let xml = format!(
        "<domain type='test'><name>life</name><uuid>{uuid}</uuid><memory>8192</memory>\
         <os><type>hvm</type></os><devices><disk type='file' device='disk'><source file='/v/life.qcow2'/>\
         <target dev='vda' bus='virtio'/></disk></devices></domain>"
    );
    let state = || connection.state(uuid).unwrap();
    assert_eq!(state(), None);
    connection.define(&xml).unwrap();
    assert_eq!(state(), Some(DomainState::ShutOff));
    assert!(connection.paths_in_use().unwrap().contains(&PathBuf::from("/v/life.qcow2")));
    connection.start(uuid).unwrap();
    assert_eq!(state(), Some(DomainState::Running));
    connection.suspend(uuid).unwrap();
    assert_eq!(state(), Some(DomainState::Paused));
    connection.resume(uuid).unwrap();
    assert_eq!(state(), Some(DomainState::Running));
    connection.destroy(uuid).unwrap();
    assert_eq!(state(), Some(DomainState::ShutOff));
    let gone = connection.start("00000000-0000-4000-8000-000000000000").unwrap_err();
    assert!(gone.message().contains("no such guest"), "{gone}");
}

#[test]
fn an_event_ends_the_waiting() {
    let connection = connection();
    let uuid = connection.domain("test").unwrap().unwrap().uuid;
    let noticed = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Until it is noticed: the one who waits may not have begun.
        scope.spawn(|| {
            while !noticed.load(std::sync::atomic::Ordering::SeqCst) {
                connection.suspend(&uuid).unwrap();
                connection.resume(&uuid).unwrap();
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        // Nobody waits so long; without events this test never ends.
        connection.wait(Duration::from_secs(86400));
        noticed.store(true, std::sync::atomic::Ordering::SeqCst);
    });
}

#[test]
fn a_hypervisor_that_cannot_migrate_says_so() {
    let connection = connection();
    let domain = connection.domain("test").unwrap().unwrap();
    let mut request = MigrateRequest {
        uuid: domain.uuid,
        to: "qemu+tcp://nowhere.invalid/system".into(),
        flags: vec![Flag::Live, Flag::PeerToPeer],
        migrate_disks: Vec::new(),
        detect_zeroes: Vec::new(),
        destination_xml: domain.migratable_xml,
        persistent_xml: None,
        bandwidth_mib: Some(1),
        migrate_uri: None,
        tuning: migrate::plan::Tuning::default(),
    };
    let cancel = CancelToken::new();
    let error = connection.migrate(&request, &|_| {}, &cancel).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment);
    assert!(error.what_next().is_some(), "{error}");
    request.flags = vec![Flag::Live];
    let error = connection.migrate(&request, &|_| {}, &cancel).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    request.flags = vec![Flag::Live, Flag::PeerToPeer, Flag::NonSharedInc];
    let error = connection.migrate(&request, &|_| {}, &cancel).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
}

#[test]
fn who_is_not_there_is_named() {
    let error =
        Connection::open("qemu+unix:///system?socket=/nonexistent/libvirt-sock").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment);
    let told = error.to_string();
    assert!(
        told.contains("/nonexistent/libvirt-sock") && told.contains("systemctl start"),
        "{told}"
    );
    let error = Connection::open("nonsense").unwrap_err();
    assert!(error.to_string().starts_with("nonsense: "), "{error}");
    assert_eq!(Connection::open("test:///\0").unwrap_err().kind(), ErrorKind::Environment);
}

#[test]
fn the_snapshots_of_a_domain_are_named() {
    let uuid = "22222222-3333-4444-8555-666666666666";
    let domain = |inside: &str| {
        format!(
            "<domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'><name>kept</name>\
             <uuid>{uuid}</uuid><memory>8192</memory><os><type>hvm</type></os>{inside}</domain>"
        )
    };
    let snapshot = |name: &str| {
        format!(
            "<test:domainsnapshot><name>{name}</name><creationTime>1700000000</creationTime>\
             <state>shutoff</state><active>0</active>{}</test:domainsnapshot>",
            domain("")
        )
    };
    let node = format!("<node>{}</node>", domain(&(snapshot("before") + &snapshot("after"))));
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(node.as_bytes()).unwrap();
    let connection = Connection::open(&format!("test://{}", file.path().display())).unwrap();
    let mut snapshots = connection.domain("kept").unwrap().unwrap().snapshots;
    snapshots.sort();
    assert_eq!(snapshots, ["after", "before"]);
}

#[test]
fn a_volume_that_is_not_there_has_no_path() {
    let connection = connection();
    assert_eq!(connection.volume_path("default-pool", "nothing").unwrap(), None);
    assert_eq!(connection.volume_path("no-pool", "nothing").unwrap(), None);
}
