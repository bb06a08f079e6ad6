//! The program of `migrate/examples` does what it says.

use std::fs;

use qcow::ops::create::{CreateOptions, create};

use super::example;

#[test]
fn the_example_plans_between_two_directories() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    for host in [&from, &to] {
        fs::create_dir_all(host.join("images")).unwrap();
    }
    let options = CreateOptions::default().size(1 << 20);
    create(&from.join("images/vm.qcow2"), &options).unwrap();
    let xml = dir.path().join("vm.xml");
    fs::write(
        &xml,
        "<domain type='kvm'><name>vm</name><uuid>3b9a37ba-8e1c-4a3f-9c0e-8c1a52a6d6a1</uuid>\
         <memory unit='MiB'>64</memory><os><type arch='x86_64'>hvm</type></os><devices>\
         <disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
         <source file='/images/vm.qcow2'/><target dev='vda' bus='virtio'/></disk></devices></domain>",
    )
    .unwrap();
    let plan = example::run("vm", &xml, &from, &to).unwrap();
    assert!(plan.contains("/images/vm.qcow2"), "{plan}");
    fs::remove_file(from.join("images/vm.qcow2")).unwrap();
    assert!(example::run("vm", &xml, &from, &to).is_err(), "a disk that is not there has no plan");
}
