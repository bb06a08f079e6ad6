//! A hook whose time is over.

use std::fs;

use migrate::hook::annotation::{Annotation, Below, KnownDisk, NAMESPACE};
use migrate::hook::{Call, Config, Hook, Paths};
use migrate::{CancelToken, ErrorKind, Silent};
use qcow::chain::{Chain, OpenOptions};
use qcow::ops::create::{CreateOptions, create};
use qcow::ops::digest::tree_hash;

#[test]
fn when_time_is_over_nothing_is_created_and_nothing_unproven_let_through() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    let (disk, base) = (path("vm.qcow2"), path("base.qcow2"));
    let mut options = CreateOptions::default();
    options.size = Some(1 << 20);
    create(&base, &options).unwrap();
    let chain = Chain::open(&base, &OpenOptions::default()).unwrap();
    let digest = tree_hash(&chain, 0, &Silent, &CancelToken::new()).unwrap().root.to_string();
    let known = KnownDisk {
        target: "vda".into(),
        virtual_size: 1 << 20,
        cluster_size: None,
        extended_l2: false,
        below: Below::Disk { digest, virtual_size: 1 << 20 },
    };
    let element = Annotation { disks: vec![known] }.to_xml().unwrap();
    let element = element.replace("<disks>", &format!("<disks xmlns='{NAMESPACE}'>"));
    let xml = format!(
        "<domain><name>vm</name><uuid>3b9a37ba-8e1c-4a3f-9c0e-8c1a52a6d6a1</uuid><metadata>{element}</metadata>\
         <devices><disk type='file' device='disk'><driver type='qcow2'/><source file='{}'/>\
         <backingStore type='file'><format type='qcow2'/><source file='{}'/><backingStore/></backingStore>\
         <target dev='vda'/></disk></devices></domain>",
        disk.display(),
        base.display()
    );
    let call = |operation: &str, in_time: bool| {
        let config = Config::parse(&format!("root = {}", scratch.path().display()));
        let paths = Paths { state: path("state"), status: scratch.path().into() };
        let cancel = CancelToken::new();
        if !in_time {
            cancel.cancel();
        }
        let call = Call {
            guest: "vm".into(),
            operation: operation.into(),
            sub_operation: "begin".into(),
            extra: "-".into(),
        };
        Hook::new(config, paths, &|_| {}, cancel).call(&call, &xml)
    };
    let error = call("migrate", false).unwrap_err();
    assert!(error.message().contains("deadline"), "{error}");
    assert!(!disk.exists());
    call("migrate", true).unwrap();
    assert!(disk.exists());

    let job = "<job async='migration in' flags='0x99'/>";
    let status =
        format!("<domstatus state='paused'>{job}<domain><name>vm</name></domain></domstatus>");
    fs::write(path("vm.xml"), status).unwrap();
    call("started", true).unwrap();
    let error = call("started", false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.message().contains("could not be read within 60 seconds"), "{error}");
}
