//! Migration between two directories that stand for hosts: the same planning and preparing as between
//! libvirt hosts, and the way of guests that are shut off.

mod guest_files;
mod missing;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Run, command, qcowtool};
use fixtures::{Scratch, args, needs_qemu, qemu};
use serde_json::Value;

pub(crate) const IMAGES: &str = "var/lib/libvirt/images";

/// Two directories as hosts, and a guest on the first: vda stands on a template.
pub(crate) struct Hosts {
    pub(crate) scratch: Scratch,
}

impl Hosts {
    pub(crate) fn new() -> Self {
        let scratch = Scratch::new();
        for host in ["a", "b"] {
            fs::create_dir_all(scratch.path(host).join(IMAGES)).unwrap();
        }
        let hosts = Self { scratch };
        let (template, disk) = (hosts.at("a", "template.qcow2"), hosts.at("a", "vm.qcow2"));
        qemu::create(&template, "", "8M");
        qemu::qemu_io("qcow2", &template, &["write -P 7 0 3M", "write -P 8 5M 64k"]);
        overlay(&disk, &format!("/{IMAGES}/template.qcow2"));
        hosts.write("vm.qcow2", "template.qcow2", "write -P 9 1M 200k");
        hosts.define(&[("vda", "vm.qcow2", "qcow2")]);
        hosts
    }

    pub(crate) fn at(&self, host: &str, name: &str) -> PathBuf {
        self.scratch.path(host).join(IMAGES).join(name)
    }

    /// Writes to an overlay as its guest would, on a machine where the directory is the root.
    pub(crate) fn write(&self, name: &str, base: &str, what: &str) {
        let image = self.at("a", name);
        let base = self.at("a", base);
        qemu::qemu_img(&args!["rebase", "-q", "-u", "-F", "qcow2", "-b", base, image]);
        qemu::qemu_io("qcow2", &image, &[what]);
        let own = format!("/{IMAGES}/{}", base.file_name().unwrap().to_str().unwrap());
        qemu::qemu_img(&args!["rebase", "-q", "-u", "-F", "qcow2", "-b", own, image]);
    }

    pub(crate) fn define(&self, disks: &[(&str, &str, &str)]) {
        self.define_with(disks, "", "");
    }

    /// And with more in the guest's `<os>`, and more devices.
    fn define_with(&self, disks: &[(&str, &str, &str)], os: &str, devices: &str) {
        let disks: String = disks
            .iter()
            .map(|(target, name, format)| {
                format!(
                    "<disk type='file' device='disk'><driver name='qemu' type='{format}'/>\
                     <source file='/{IMAGES}/{name}'/><target dev='{target}' bus='virtio'/></disk>"
                )
            })
            .collect();
        let xml = format!(
            "<domain type='kvm'><name>vm</name><uuid>3b9a37ba-8e1c-4a3f-9c0e-8c1a52a6d6a1</uuid>\
             <memory unit='MiB'>64</memory><os><type arch='x86_64'>hvm</type>{os}</os>\
             <devices>{disks}{devices}</devices></domain>"
        );
        fs::write(self.scratch.path("vm.xml"), xml).unwrap();
    }

    pub(crate) fn run(&self, words: &str) -> Run {
        let mut words = words.split_whitespace();
        let mut arguments = args![words.next().unwrap()];
        arguments.extend(args![
            "--domain-xml",
            self.scratch.path("vm.xml"),
            "--source-root",
            self.scratch.path("a"),
            "--to",
            format!("dir:{}", self.scratch.path("b").display()),
            "--state-dir",
            self.scratch.path("state")
        ]);
        arguments.extend(words.map(std::ffi::OsString::from));
        qcowtool(arguments)
    }

    pub(crate) fn ends(&self, words: &[&str]) -> Run {
        let mut arguments: Vec<_> = words.iter().map(std::ffi::OsString::from).collect();
        arguments.extend(args!["--state-dir", self.scratch.path("state")]);
        qcowtool(arguments)
    }

    pub(crate) fn names(&self, host: &str) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.scratch.path(host).join(IMAGES))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// What the guest's disk held, by qemu-img.
    pub(crate) fn content(&self, host: &str, name: &str) -> Vec<u8> {
        let image = self.at(host, name);
        let info = qemu::try_info(&image, &["-U"]).unwrap();
        let raw = self.scratch.path("content.raw");
        let mut source = args!["convert", "-U", "-O", "raw"];
        match info["backing-filename"].as_str() {
            // Absolute names mean the directory's own root here.
            Some(base) => {
                let base = self.at(host, Path::new(base).file_name().unwrap().to_str().unwrap());
                let json = format!(
                    "json:{{\"driver\":\"qcow2\",\"file\":{{\"driver\":\"file\",\"filename\":\"{}\"}},\
                     \"backing\":{{\"driver\":\"qcow2\",\"file\":{{\"driver\":\"file\",\"filename\":\"{}\"}}}}}}",
                    image.display(),
                    base.display()
                );
                source.extend(args![json]);
            }
            None => source.extend(args![image]),
        }
        source.extend(args![raw]);
        qemu::qemu_img(&source);
        fs::read(raw).unwrap()
    }
}

fn overlay(image: &Path, base: &str) {
    qemu::qemu_img(&args![
        "create", "-q", "-f", "qcow2", "-u", "-F", "qcow2", "-b", base, image, "8M"
    ]);
}

fn row(plan: &Value) -> &str {
    plan["disks"][0]["row"].as_str().unwrap()
}

#[test]
fn a_plan_changes_nothing_and_says_why() {
    needs_qemu!();
    let hosts = Hosts::new();
    let plan = hosts.run("plan --running --output json").json();
    assert_eq!((row(&plan), plan["copy"].as_str()), ("D19", Some("full")));
    assert_eq!(plan["migrate-disks"], serde_json::json!(["vda"]));
    assert_eq!(plan["disks"][0]["action"]["image"]["virtual-size"], 8 << 20);
    assert!(plan["destination-xml"].as_str().unwrap().contains("<backingStore/>"));
    let text = hosts.run("plan --running").ok();
    assert!(text.contains("vda  becomes") && text.contains("D19"), "{text}");
    assert!(hosts.names("b").is_empty());
    assert_eq!(hosts.names("a"), ["template.qcow2", "vm.qcow2"]);
}

#[test]
fn a_base_of_the_same_name_and_size_is_only_taken_if_it_holds_the_same() {
    needs_qemu!();
    let hosts = Hosts::new();
    let (here, there) = (hosts.at("a", "template.qcow2"), hosts.at("b", "template.qcow2"));
    qemu::qemu_img(&args!["convert", "-c", "-O", "qcow2", here, there]);
    let plan = hosts.run("plan --running --output json").json();
    assert_eq!((row(&plan), plan["copy"].as_str()), ("D17", Some("incremental")));
    qemu::qemu_io("qcow2", &there, &["write -P 6 6M 512"]);
    let plan = hosts.run("plan --running --output json").json();
    assert_eq!((row(&plan), plan["copy"].as_str()), ("D19", Some("full")));
    let plan = hosts.run("plan --running --policy thin --output json").json();
    assert_eq!((row(&plan), plan["copy"].as_str()), ("D18", Some("incremental")));
    let seed = plan["disks"][0]["action"]["base"]["path"].as_str().unwrap();
    assert!(seed.contains("template-") && seed.ends_with(".qcow2"), "{seed}");
}

#[test]
fn a_running_guest_whose_template_is_gone_is_planned_only_where_its_process_is() {
    needs_qemu!();
    let hosts = Hosts::new();
    fs::remove_file(hosts.at("a", "template.qcow2")).unwrap();
    let plan = hosts.run("plan --running --output json").json();
    assert_eq!((row(&plan), plan["copy"].as_str()), ("D08a", Some("full")));
    let refused = hosts.run("plan --output json");
    assert_eq!(refused.code(), Some(2));
    let refused: Value = serde_json::from_str(&refused.stdout()).unwrap();
    assert_eq!(refused["refusals"][0]["code"], "D08c");
}

#[test]
fn prepare_makes_proven_targets_and_rollback_removes_exactly_those() {
    needs_qemu!();
    let hosts = Hosts::new();
    fs::write(hosts.at("b", "other"), "not ours").unwrap();
    let prepared = hosts.run("prepare --running --policy thin --output json").json();
    assert_eq!(hosts.names("b"), ["other", "template.qcow2", "vm.qcow2"]);
    let target = qemu::try_info(hosts.at("b", "vm.qcow2"), &[]).unwrap();
    assert_eq!(target["virtual-size"], 8 << 20);
    assert_eq!(target["backing-filename"], format!("/{IMAGES}/template.qcow2"));
    assert_eq!(target["backing-filename-format"], "qcow2");
    assert_eq!(prepared["copy"], "incremental");
    let id = prepared["transaction"].as_str().unwrap();
    let open = hosts.ends(&["transactions", "--output", "json"]).json();
    assert_eq!(
        (open[0]["transaction"].as_str(), open[0]["state"].as_str()),
        (Some(id), Some("open"))
    );
    hosts.ends(&["rollback", id]).ok();
    assert_eq!(hosts.names("b"), ["other"]);
    let again = hosts.ends(&["rollback", id]);
    assert_eq!(again.code(), Some(2), "{}", again.stderr());
}

#[test]
fn neither_rollback_nor_resume_takes_the_disks_of_a_guest_that_somebody_else_moved() {
    needs_qemu!();
    let hosts = Hosts::new();
    let prepared = hosts.run("prepare --running --output json").json();
    let definitions = hosts.scratch.path("b").join("etc/libvirt/qemu");
    fs::create_dir_all(&definitions).unwrap();
    fs::copy(hosts.scratch.path("vm.xml"), definitions.join("vm.xml")).unwrap();
    for verb in ["rollback", "resume"] {
        let refused = hosts.ends(&[verb, prepared["transaction"].as_str().unwrap()]);
        assert_eq!(refused.code(), Some(2), "{verb}: {}", refused.stderr());
        assert_eq!(hosts.names("b"), ["vm.qcow2"], "{verb}");
    }
}

#[test]
fn a_guest_that_is_shut_off_is_on_one_host_however_the_run_was_cut_off() {
    needs_qemu!();
    for (verb, defined) in [("rollback", false), ("resume", true)] {
        let hosts = Hosts::new();
        let moved = hosts.run("migrate --output json").json();
        let id = moved["transaction"].as_str().unwrap();
        // As if it had been killed once the guest was defined there.
        let journal = hosts.scratch.path("state").join(format!("transactions/{id}.journal"));
        let text = fs::read_to_string(&journal).unwrap();
        let defined_at = text.find("\"define\"").unwrap();
        let end = defined_at + text[defined_at..].find('\n').unwrap() + 1;
        fs::write(&journal, &text[..end]).unwrap();
        let kept = moved["retained"][0]["is"].as_str().unwrap().rsplit('/').next().unwrap();
        fs::rename(hosts.at("a", kept), hosts.at("a", "vm.qcow2")).unwrap();

        hosts.ends(&[verb, id]).ok();
        let definition = hosts.scratch.path("b").join("etc/libvirt/qemu/vm.xml");
        assert_eq!(definition.exists(), defined, "{verb}");
        assert_eq!(hosts.at("b", "vm.qcow2").exists(), defined, "{verb}");
        assert_eq!(hosts.at("a", "vm.qcow2").exists(), !defined, "{verb}");
    }
}

#[test]
fn once_its_files_are_being_put_away_a_guest_that_moved_is_not_taken_back() {
    needs_qemu!();
    for retain in ["--retain 7", "--retain 0"] {
        let hosts = Hosts::new();
        let words = format!("migrate {retain} --output json");
        let id = hosts.run(&words).json()["transaction"].as_str().unwrap().to_owned();
        // As if it had been killed when the file had its new name, and nothing said so yet.
        let journal = hosts.scratch.path("state").join(format!("transactions/{id}.journal"));
        let text = fs::read_to_string(&journal).unwrap();
        let begun = text.find("\"retire\"").unwrap();
        fs::write(&journal, &text[..begun + text[begun..].find('\n').unwrap() + 1]).unwrap();

        let refused = hosts.ends(&["rollback", &id]);
        assert_eq!(refused.code(), Some(2), "{}", refused.stderr());
        assert!(refused.stderr().contains("qcowtool resume"), "{}", refused.stderr());
        assert!(hosts.scratch.path("b").join("etc/libvirt/qemu/vm.xml").exists());
        assert!(hosts.at("b", "vm.qcow2").exists());
        if retain == "--retain 7" {
            hosts.ends(&["resume", &id]).ok();
            let kept = hosts.ends(&["transactions", "--output", "json"]).json();
            assert!(kept[0]["kept"][0].as_str().unwrap().contains(".migrated-"), "{kept}");
        }
    }
}

#[test]
fn definitions_that_cannot_be_read_are_not_taken_for_none() {
    needs_qemu!();
    let hosts = Hosts::new();
    fs::create_dir_all(hosts.scratch.path("b").join("etc/libvirt")).unwrap();
    fs::write(hosts.scratch.path("b").join("etc/libvirt/qemu"), "no directory").unwrap();
    let refused = hosts.run("migrate");
    assert_eq!(refused.code(), Some(6), "{}", refused.stderr());
    assert!(refused.stderr().contains("etc/libvirt/qemu"), "{}", refused.stderr());
    assert!(hosts.names("b").is_empty());
}

#[test]
fn a_run_that_was_cut_off_before_it_began_is_rolled_back() {
    needs_qemu!();
    let hosts = Hosts::new();
    let prepared = hosts.run("prepare --running --output json").json();
    let id = prepared["transaction"].as_str().unwrap();
    fs::remove_file(hosts.at("b", "vm.qcow2")).unwrap();
    let journal = hosts.scratch.path("state").join(format!("transactions/{id}.journal"));
    let text = fs::read_to_string(&journal).unwrap();
    fs::write(&journal, &text[..=text.find('\n').unwrap()]).unwrap();

    let resumed = hosts.ends(&["resume", id]);
    assert_eq!(resumed.code(), Some(6));
    assert!(resumed.stderr().contains("qcowtool rollback"), "{}", resumed.stderr());
    hosts.ends(&["rollback", id]).ok();
    assert_eq!(
        hosts.ends(&["transactions", "--open", "--output", "json"]).json(),
        serde_json::json!([])
    );
    assert_eq!(hosts.ends(&["rollback", id]).code(), Some(2));
    hosts.run("prepare --running --output json").json();
}

#[test]
fn a_medium_comes_along_from_where_the_guests_files_are() {
    needs_qemu!();
    let hosts = Hosts::new();
    fs::write(hosts.at("a", "medium.iso"), [7; 1 << 20]).unwrap();
    let xml = fs::read_to_string(hosts.scratch.path("vm.xml")).unwrap();
    let cdrom = format!(
        "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/>\
         <source file='/{IMAGES}/medium.iso'/><target dev='sda' bus='sata'/><readonly/></disk></devices>"
    );
    fs::write(hosts.scratch.path("vm.xml"), xml.replace("</devices>", &cdrom)).unwrap();
    hosts.run("migrate").ok();
    assert_eq!(fs::read(hosts.at("b", "medium.iso")).unwrap(), [7; 1 << 20]);
    assert_eq!(hosts.names("b"), ["medium.iso", "vm.qcow2"]);
}

#[test]
fn rollback_leaves_what_is_another_file_by_now() {
    needs_qemu!();
    let hosts = Hosts::new();
    let prepared = hosts.run("prepare --running --output json").json();
    let target = hosts.at("b", "vm.qcow2");
    fs::rename(&target, hosts.at("b", "away")).unwrap();
    fs::write(&target, "somebody else's").unwrap();
    hosts.ends(&["rollback", prepared["transaction"].as_str().unwrap()]);
    assert_eq!(fs::read(&target).unwrap(), b"somebody else's");
    assert!(hosts.at("b", "away").exists());
}

#[test]
fn a_guest_that_is_shut_off_moves_as_files_and_keeps_its_content() {
    needs_qemu!();
    for (policy, names) in
        [("full", vec!["vm.qcow2"]), ("thin", vec!["template.qcow2", "vm.qcow2"])]
    {
        let hosts = Hosts::new();
        let before = hosts.content("a", "vm.qcow2");
        let moved = hosts.run(&format!("migrate --policy {policy} --output json")).json();
        assert_eq!(
            (moved["mode"].as_str(), moved["verified"].as_str()),
            (Some("offline"), Some("content"))
        );
        assert_eq!(hosts.names("b"), names);
        assert!(hosts.content("b", "vm.qcow2") == before, "{policy}: the content is another");
        qemu::assert_clean(hosts.at("b", "vm.qcow2"));
        assert!(hosts.scratch.path("b").join("etc/libvirt/qemu/vm.xml").exists());
    }
}

#[test]
fn a_plan_is_carried_out_only_while_it_is_true() {
    needs_qemu!();
    let hosts = Hosts::new();
    let plan = hosts.run("plan --running --output json").ok();
    let file = hosts.scratch.path("plan.json");
    fs::write(&file, &plan).unwrap();
    let words = format!("prepare --running --plan {}", file.display());
    qemu::qemu_io("qcow2", hosts.at("a", "template.qcow2"), &["write -P 1 0 512"]);
    let changed = hosts.run(&words);
    assert_eq!(changed.code(), Some(3), "{}", changed.stderr());
    assert!(hosts.names("b").is_empty());

    let plan = hosts.run("plan --running --output json").ok();
    fs::write(&file, &plan).unwrap();
    fs::write(hosts.at("b", "vm.qcow2"), "in the way").unwrap();
    assert_eq!(hosts.run(&words).code(), Some(3));
    fs::remove_file(hosts.at("b", "vm.qcow2")).unwrap();
    fs::write(&file, plan.replace("\"full\"", "\"incremental\"")).unwrap();
    assert_eq!(hosts.run(&words).code(), Some(1), "a plan that was edited is no plan");
    fs::write(&file, &plan).unwrap();
    hosts.run(&words).ok();
    assert_eq!(hosts.names("b"), ["vm.qcow2"]);
}

#[test]
fn the_program_without_libvirt_says_what_is_missing() {
    let without = command(&args!["plan", "vm", "--to", "qemu:///system"]);
    // A copy that has no other program beside it.
    let scratch = Scratch::new();
    let copy = scratch.path("qcowtool");
    // Made by another process: a program that some process has open for writing, such as a child that is just
    // being started by another test, cannot be run.
    let copied = std::process::Command::new("cp").arg(without.get_program()).arg(&copy).status();
    assert!(copied.unwrap().success());
    let words: Vec<_> = without.get_args().map(ToOwned::to_owned).collect();
    let output = std::process::Command::new(&copy).args(words).env("PATH", "").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(6), "{said}");
    assert!(said.contains("install qcowtool-libvirt beside qcowtool"), "{said}");
    // What is installed there takes its place.
    let beside = scratch.path("qcowtool-libvirt");
    fs::write(&beside, "#!/bin/sh\necho \"$@\"\n").unwrap();
    fs::set_permissions(&beside, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let words = ["plan", "vm", "--to", "qemu:///system"];
    let output = std::process::Command::new(&copy).args(words).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), words.join(" ") + "\n");
}

#[test]
fn what_was_kept_goes_when_its_time_has_passed_and_not_before() {
    needs_qemu!();
    let hosts = Hosts::new();
    hosts.run("migrate --retain 7").ok();
    let kept = hosts.names("a");
    assert!(kept.iter().any(|name| name.starts_with("vm.qcow2.migrated-")), "{kept:?}");
    hosts.ends(&["transactions", "--expire"]).ok();
    assert_eq!(hosts.names("a"), kept);
    let later = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(8 * 24);
    let expired = migrate::run::expire(&hosts.scratch.path("state"), later).unwrap();
    assert!(expired.len() == 1 && expired[0].removed.is_ok(), "{expired:?}");
    assert_eq!(hosts.names("a"), ["template.qcow2"]);
    assert!(migrate::run::expire(&hosts.scratch.path("state"), later).unwrap().is_empty());

    // Nobody knows what a journal keeps that cannot be read: a timer must not take that for well.
    let journals = hosts.scratch.path("state").join(migrate::run::JOURNALS);
    let one = fs::read_dir(&journals).unwrap().next().unwrap().unwrap().path();
    fs::write(one, "rubbish\n").unwrap();
    hosts.ends(&["transactions"]).ok();
    assert_ne!(hosts.ends(&["transactions", "--expire"]).code(), Some(0));
}

#[test]
fn nothing_is_kept_that_nobody_wants_to_keep() {
    needs_qemu!();
    let hosts = Hosts::new();
    hosts.run("migrate --retain 0").ok();
    assert_eq!(hosts.names("a"), ["template.qcow2"]);
    let listed = hosts.ends(&["transactions", "--output", "json"]).json();
    assert_eq!(listed[0]["kept"], serde_json::json!([]));
}

#[test]
fn an_encrypted_disk_is_refused_by_its_row_whether_the_guest_runs_or_not() {
    needs_qemu!();
    let hosts = Hosts::new();
    let disk = hosts.at("a", "luks.qcow2");
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    qemu::qemu_img(&args![
        "create",
        "-q",
        "-f",
        "qcow2",
        "--object",
        "secret,id=s,data=x",
        "-o",
        options,
        disk,
        "8M"
    ]);
    hosts.define(&[("vda", "luks.qcow2", "qcow2")]);
    for running in ["", "--running "] {
        let ran = hosts.run(&format!("plan {running}--output json"));
        assert_eq!(ran.code(), Some(2), "{}", ran.stderr());
        let refused: Value = serde_json::from_str(&ran.stdout()).unwrap();
        assert_eq!(refused["refusals"][0]["code"], "D12", "{refused}");
    }
}
