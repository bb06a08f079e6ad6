//! The files that a guest which is shut off has besides its disks: NVRAM, kernels, the state of its TPM.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use fixtures::needs_qemu;
use serde_json::Value;

use super::Hosts;

const NVRAM: &str = "var/lib/libvirt/qemu/nvram/vm_VARS.fd";
const TPM: &str = "var/lib/libvirt/swtpm/3b9a37ba-8e1c-4a3f-9c0e-8c1a52a6d6a1/tpm2";
const DISK: [(&str, &str, &str); 1] = [("vda", "vm.qcow2", "qcow2")];

/// Not whole sectors: what a digest of a disk would not see must be seen.
fn variables() -> Vec<u8> {
    (0..131_000_u32).map(|at| (at % 251) as u8).collect()
}

impl Hosts {
    fn place(&self, host: &str, path: &str) -> PathBuf {
        self.scratch.path(host).join(path)
    }

    fn write_file(&self, host: &str, path: &str, bytes: &[u8]) {
        let file = self.place(host, path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, bytes).unwrap();
    }

    fn with_nvram() -> Self {
        let hosts = Self::new();
        hosts.write_file("a", NVRAM, &variables());
        fs::create_dir_all(hosts.place("b", NVRAM).parent().unwrap()).unwrap();
        hosts.define_with(&DISK, &format!("<nvram>/{NVRAM}</nvram>"), "");
        hosts
    }

    fn refused(&self, words: &str) -> Vec<Value> {
        let refused = self.run(&format!("{words} --output json"));
        assert_eq!(refused.code(), Some(2), "{}", refused.stderr());
        let refused: Value = serde_json::from_str(&refused.stdout()).unwrap();
        refused["refusals"].as_array().unwrap().clone()
    }
}

#[test]
fn nvram_goes_with_a_guest_that_is_shut_off() {
    needs_qemu!();
    let hosts = Hosts::with_nvram();
    let plan = hosts.run("plan --output json").json();
    assert_eq!(
        (&plan["files"][0]["row"], &plan["files"][0]["action"]["do"]),
        (&"F09".into(), &"copy".into())
    );
    assert!(hosts.run("plan").ok().contains(&format!("'/{NVRAM}' (the NVRAM) is copied")));
    assert!(!hosts.place("b", NVRAM).exists(), "a plan changes nothing");

    let moved = hosts.run("migrate --output json").json();
    assert_eq!(fs::read(hosts.place("b", NVRAM)).unwrap(), variables());
    assert_eq!(fs::metadata(hosts.place("b", NVRAM)).unwrap().mode() & 0o777, 0o600);
    // As with its disks, what stays at the source has another name: the guest can come back.
    assert!(!hosts.place("a", NVRAM).exists());
    let kept = moved["retained"].as_array().unwrap();
    let kept = kept.iter().find(|file| file["was"] == format!("/{NVRAM}")).unwrap();
    let kept = kept["is"].as_str().unwrap().trim_start_matches('/');
    assert_eq!(fs::read(hosts.place("a", kept)).unwrap(), variables());
}

#[test]
fn a_rollback_removes_the_copy_of_the_nvram_and_the_guest_keeps_its_own() {
    needs_qemu!();
    let hosts = Hosts::with_nvram();
    let id = hosts.run("prepare --output json").json()["transaction"].as_str().unwrap().to_owned();
    assert!(hosts.place("b", NVRAM).exists());
    hosts.ends(&["rollback", &id]).ok();
    assert!(!hosts.place("b", NVRAM).exists());
    assert_eq!(fs::read(hosts.place("a", NVRAM)).unwrap(), variables());
}

#[test]
fn nvram_of_another_guest_is_not_overwritten_and_moving_it_away_helps() {
    needs_qemu!();
    let hosts = Hosts::with_nvram();
    // Equal as whole sectors, but longer.
    let mut other = variables();
    other.resize(other.len().next_multiple_of(512), 0);
    hosts.write_file("b", NVRAM, &other);
    let refusals = hosts.refused("plan");
    assert_eq!(refusals[0]["code"], "F07");
    assert!(refusals[0]["way-out"].as_str().unwrap().contains("move it away"), "{refusals:?}");
    assert_eq!(hosts.run("migrate").code(), Some(2));
    assert_eq!(fs::read(hosts.place("b", NVRAM)).unwrap(), other);
    fs::rename(hosts.place("b", NVRAM), hosts.place("b", "away")).unwrap();
    hosts.run("migrate").ok();
    assert_eq!(fs::read(hosts.place("b", NVRAM)).unwrap(), variables());
}

#[test]
fn nvram_without_a_directory_there_is_refused_and_making_it_helps() {
    needs_qemu!();
    for allowed in [false, true] {
        let hosts = Hosts::with_nvram();
        let directory = hosts.place("b", NVRAM).parent().unwrap().to_path_buf();
        fs::remove_dir(&directory).unwrap();
        let refusals = hosts.refused("plan");
        assert_eq!(refusals[0]["code"], "F08");
        let way_out = refusals[0]["way-out"].as_str().unwrap();
        assert!(
            way_out.starts_with("create its directory there, or") && way_out.contains("--mkdir")
        );
        if allowed {
            hosts.run("migrate --mkdir").ok();
        } else {
            fs::create_dir(&directory).unwrap();
            hosts.run("migrate").ok();
        }
        assert_eq!(fs::read(hosts.place("b", NVRAM)).unwrap(), variables());
    }
}

#[test]
fn kernels_are_brought_and_stay_for_other_guests() {
    needs_qemu!();
    let hosts = Hosts::new();
    for (name, bytes) in [("boot/vmlinuz", b"kernel"), ("boot/initrd", b"initrd")] {
        hosts.write_file("a", name, bytes);
    }
    hosts.write_file("b", "boot/vmlinuz", b"kernel");
    let os = "<kernel>/boot/vmlinuz</kernel><initrd>/boot/initrd</initrd>";
    hosts.define_with(&DISK, os, "");
    let plan = hosts.run("plan --running --output json").json();
    let rows: Vec<_> = plan["files"].as_array().unwrap().iter().map(|file| &file["row"]).collect();
    assert_eq!(rows, ["F04", "F09"]);
    hosts.run("migrate").ok();
    assert_eq!(fs::read(hosts.place("b", "boot/initrd")).unwrap(), b"initrd");
    assert!(hosts.place("a", "boot/initrd").exists() && hosts.place("a", "boot/vmlinuz").exists());
}

#[test]
fn the_state_of_a_tpm_is_refused_until_it_was_copied_with_its_owners() {
    needs_qemu!();
    let hosts = Hosts::new();
    hosts.write_file("a", &format!("{TPM}/tpm2-00.permall"), b"keys of BitLocker");
    hosts.write_file("a", &format!("{TPM}/.lock"), b"");
    let tpm = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>";
    hosts.define_with(&DISK, "", tpm);
    let refusals = hosts.refused("plan");
    assert_eq!((refusals.len(), &refusals[0]["code"]), (1, &"F06".into()));
    let way_out = refusals[0]["way-out"].as_str().unwrap();
    assert!(way_out.contains(&format!("copy '/{TPM}'")), "{way_out}");
    assert_eq!(hosts.run("migrate").code(), Some(2));

    // What it says: with tar.
    let script = "tar -C \"$1\" --numeric-owner --xattrs -cf - \"$3\" | tar -C \"$2\" --numeric-owner --xattrs -xf -";
    let copied = Command::new("sh")
        .args(["-c", script, "sh"])
        .args([hosts.place("a", ""), hosts.place("b", ""), TPM.into()])
        .status();
    assert!(copied.unwrap().success());
    let plan = hosts.run("plan --output json").json();
    assert_eq!(plan["files"][0]["row"], "F04");
    hosts.run("migrate").ok();
    assert!(hosts.place("a", &format!("{TPM}/tpm2-00.permall")).exists(), "the source's is left");

    // A guest that never started has none.
    let hosts = Hosts::new();
    hosts.define_with(&DISK, "", tpm);
    hosts.run("migrate").ok();
}
