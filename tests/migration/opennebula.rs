//! The driver script for OpenNebula, called as OpenNebula calls it: the VM's name in libvirt, the destination, and the action's data on
//! standard input; the files in the VM's directory lie as there.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use crate::trial::{Trial, Way, needs_migration};
use rig::{Ran, Rig};

/// The parts of the action's data that are looked at, among others.
fn data(directory: &str, shared: &str) -> String {
    format!(
        "<VMM_DRIVER_ACTION_DATA><HOST>host-a</HOST><MIGR_HOST>host-b</MIGR_HOST><DEPLOY_ID>x</DEPLOY_ID>\
         <LOCAL_DEPLOYMENT_FILE/><DISK_TARGET_PATH><![CDATA[{directory}]]></DISK_TARGET_PATH>\
         <VM><ID>7</ID><TEMPLATE><SHARED_X>NO</SHARED_X></TEMPLATE></VM>\
         <DATASTORE><ID>0</ID><TEMPLATE>\n<SHARED><![CDATA[{shared}]]></SHARED></TEMPLATE></DATASTORE>\
         </VMM_DRIVER_ACTION_DATA>\n"
    )
}

fn run(trial: &Trial<'_>, words: &str) -> Ran {
    let rig: &Rig = trial.rig;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/integrations/opennebula/migrate_qcowtool");
    let shell = rig.b.remote_shell();
    let (command, _) = shell.rsplit_once(' ').unwrap();
    let mut child = rig
        .a
        .command(script)
        .args([&trial.guest.name, "host-b", "host-a", "7", "0"])
        .env("QCOWTOOL", common::binary())
        .env("QCOWTOOL_SSH", format!("{command} -l root"))
        .env("QEMU_PROTOCOL", "qemu+tcp")
        .env("QCOWTOOL_OPTIONS", words)
        .env("QCOWTOOL_STATE_DIR", format!("/var/lib/libvirt/qcowtool/{}", trial.guest.name))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let data = data(&trial.guest.directory(), "NO");
    child.stdin.take().unwrap().write_all(data.as_bytes()).unwrap();
    Ran::of("migrate_qcowtool", child.wait_with_output().unwrap())
}

#[test]
fn a_vm_goes_with_its_directory_and_stays_whole_if_it_cannot() {
    needs_migration!();
    let rig = Rig::shared();
    let mut trial = Trial::alone(rig, "one-7", Way::Agent);
    let directory = trial.guest.directory();
    fs::write(rig.a.outside(trial.path("vm.xml")), "<VM/>").unwrap();
    fs::remove_dir_all(rig.b.outside(&directory)).unwrap();
    trial.watch();

    // Its disk is there already under another name: the address does not exist.
    let ran = run(&trial, "--migrate-address 192.0.2.77");
    assert!(!ran.succeeded(), "{ran}");
    trial.stayed();
    assert!(!rig.b.has(&directory), "what the script made is gone");

    let ran = run(&trial, "");
    ran.ok();
    trial.lives_on_b(&["disk.qcow2", "vm.xml"]);
    // OpenNebula removes the directory that the VM left: nothing is kept there.
    assert_eq!(rig.a.list(&directory), ["vm.xml"]);
}
