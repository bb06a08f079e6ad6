//! The kits in `integrations`, run by the programs that they are for.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::binary;
use fixtures::{Scratch, needs_qemu, qemu, skipped};

fn kit(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("integrations").join(path)
}

fn has(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

#[test]
fn the_ansible_collection_does_what_it_says() {
    needs_qemu!();
    if !has("ansible-playbook") {
        return skipped("no ansible-playbook here (ansible-core)");
    }
    let ran = Command::new(kit("ansible/tests/run")).arg(binary()).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{out}{err}");
    assert!(out.ends_with("all guests moved\n"), "{out}");
}

/// Directories in place of hosts, with one guest on `a` and a template that its disk is an overlay on.
fn hosts() -> Scratch {
    const IMAGES: &str = "var/lib/libvirt/images";
    let scratch = Scratch::new();
    for host in ["a", "b"] {
        fs::create_dir_all(scratch.path(host).join(IMAGES)).unwrap();
        fs::create_dir_all(scratch.path(host).join("etc/libvirt/qemu")).unwrap();
    }
    let images = scratch.path("a").join(IMAGES);
    qemu::create(images.join("template"), "", "1M");
    let backing = "backing_file=template,backing_fmt=qcow2";
    qemu::create(images.join("disk"), backing, "1M");
    let xml = format!(
        "<domain type='kvm'><name>web</name><uuid>6f1a9b52-6f2b-4a6e-9a53-0d8a6d0a7c11</uuid><os><type \
         arch='x86_64'>hvm</type></os><devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
         <source file='/{IMAGES}/disk'/><target dev='vda' bus='virtio'/></disk></devices></domain>"
    );
    fs::write(scratch.path("a").join("etc/libvirt/qemu/web.xml"), xml).unwrap();
    scratch
}

#[test]
fn rolling_maintenance_is_stopped_unless_every_guest_has_a_place() {
    needs_qemu!();
    let scratch = hosts();
    let list = scratch.path("destinations");
    let pre_flight = |payload: &Path| {
        let output = Command::new(kit("cloudstack/PreFlight"))
            .arg(payload)
            .env("QCOWTOOL", binary())
            .env("QCOWTOOL_CONNECT", format!("dir:{}", scratch.path("a").display()))
            .env("QCOWTOOL_DESTINATIONS", &list)
            .env("QCOWTOOL_STATE_DIR", scratch.path("state"))
            .output()
            .unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        (output.status.code(), said.into_owned())
    };
    let none = Path::new("no such file, as a payload may be anything");
    let (code, said) = pre_flight(none);
    assert!(code == Some(1) && said.contains("cannot be read"), "{said}");
    fs::write(&list, format!("dir:{}\n", scratch.path("b").display())).unwrap();
    let (code, said) = pre_flight(none);
    assert_eq!(code, Some(0), "{said}");
    // Something is at its place.
    fs::write(scratch.path("b").join("var/lib/libvirt/images/disk"), "another's").unwrap();
    let (code, said) = pre_flight(&list);
    assert!(code == Some(1) && said.contains("web stays"), "{said}");
}

#[test]
fn a_template_is_deleted_only_if_no_host_needs_it() {
    needs_qemu!();
    let scratch = hosts();
    // In place of ssh: `shell HOST COMMAND`, and a host that cannot be reached.
    let shell = scratch.path("shell");
    let lines = "#!/bin/sh\n[ \"$1\" != away ] || exit 255\nshift\nexec sh -c \"$*\"\n";
    fs::write(&shell, lines).unwrap();
    fs::set_permissions(&shell, fs::Permissions::from_mode(0o755)).unwrap();
    let may_delete = |hosts: &[&str]| {
        let images = scratch.path("a").join("var/lib/libvirt/images");
        let mut command = Command::new(kit("cloudstack/may-delete-template"));
        let command = command.arg("template").args(hosts).env("QCOWTOOL", binary());
        let command = command.env("SSH", &shell).env("DIRECTORY", images);
        command.env("QCOWTOOL_CONNECT", "").output().unwrap().status.code()
    };
    assert_eq!(may_delete(&["one"]), Some(1));
    assert_eq!(may_delete(&["away", "one"]), Some(1), "it is known that it is needed");
    fs::remove_file(scratch.path("a").join("var/lib/libvirt/images/disk")).unwrap();
    assert_eq!(may_delete(&["one"]), Some(0));
    assert_eq!(may_delete(&["one", "away"]), Some(6));
    assert_eq!(may_delete(&[]), Some(6));
}
