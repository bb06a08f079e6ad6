//! `qcowtool preflight` between two directories that stand for hosts: many guests at once, through the binary.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use common::{Run, qcowtool};
use fixtures::{Scratch, args, needs_qemu, qemu};
use serde_json::Value;

const IMAGES: &str = "var/lib/libvirt/images";
const DEFINITIONS: &str = "etc/libvirt/qemu";

/// Two directories as hosts, and guests on the first.
struct Hosts {
    scratch: Scratch,
}

impl Hosts {
    fn new() -> Self {
        let scratch = Scratch::new();
        for host in ["a", "b"] {
            fs::create_dir_all(scratch.path(host).join(IMAGES)).unwrap();
            fs::create_dir_all(scratch.path(host).join(DEFINITIONS)).unwrap();
        }
        Self { scratch }
    }

    fn at(&self, host: &str, name: &str) -> PathBuf {
        self.scratch.path(host).join(IMAGES).join(name)
    }

    /// A guest with one disk, which holds `kib` KiB.
    fn guest(&self, name: &str, kib: u64) {
        let disk = self.at("a", &format!("{name}.qcow2"));
        qemu::create(&disk, "", "64M");
        qemu::qemu_io("qcow2", &disk, &[&format!("write -P 7 0 {kib}k")]);
        self.define("a", name, &format!("/{IMAGES}/{name}.qcow2"));
    }

    fn define(&self, host: &str, name: &str, disk: &str) {
        let uuid = format!(
            "{:08x}-8e1c-4a3f-9c0e-8c1a52a6d6a1",
            u32::from_str_radix(&hex(name), 16).unwrap()
        );
        let xml = format!(
            "<domain type='kvm'><name>{name}</name><uuid>{uuid}</uuid>\
             <memory unit='MiB'>64</memory><os><type arch='x86_64' machine='pc'>hvm</type></os>\
             <devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
             <source file='{disk}'/><target dev='vda' bus='virtio'/></disk></devices></domain>"
        );
        fs::write(self.definition(host, name), xml).unwrap();
    }

    fn definition(&self, host: &str, name: &str) -> PathBuf {
        self.scratch.path(host).join(DEFINITIONS).join(format!("{name}.xml"))
    }

    fn uri(&self, host: &str) -> String {
        format!("dir:{}", self.scratch.path(host).display())
    }

    fn run(&self, words: &str) -> Run {
        let mut arguments = args![
            "preflight",
            "--connect",
            self.uri("a"),
            "--to",
            self.uri("b"),
            "--state-dir",
            self.scratch.path("state")
        ];
        arguments.extend(words.split_whitespace().map(std::ffi::OsString::from));
        qcowtool(arguments)
    }

    /// Ends with this code and prints this report.
    #[track_caller]
    fn report(&self, words: &str, code: i32) -> Value {
        let run = self.run(&format!("{words} --output json"));
        assert_eq!(run.code(), Some(code), "{}{}", run.stdout(), run.stderr());
        serde_json::from_str(&run.stdout()).unwrap()
    }

    /// Every file below both hosts, with its inode, its length and when it was changed.
    fn files(&self) -> BTreeMap<PathBuf, (u64, u64, i64)> {
        let mut found = BTreeMap::new();
        let mut rest = vec![self.scratch.path("a"), self.scratch.path("b")];
        while let Some(directory) = rest.pop() {
            for entry in fs::read_dir(directory).unwrap().flatten() {
                let (path, status) = (entry.path(), entry.metadata().unwrap());
                if status.is_dir() {
                    rest.push(path);
                } else {
                    found.insert(path, (status.ino(), status.len(), status.mtime_nsec()));
                }
            }
        }
        found
    }
}

/// Four bytes of a name as eight digits.
fn hex(name: &str) -> String {
    name.bytes().chain([0; 4]).take(4).map(|byte| format!("{byte:02x}")).collect()
}

fn of<'a>(report: &'a Value, key: &str) -> Vec<&'a str> {
    report["guests"].as_array().unwrap().iter().map(|it| it[key].as_str().unwrap()).collect()
}

fn guest<'a>(report: &'a Value, name: &str) -> &'a Value {
    report["guests"].as_array().unwrap().iter().find(|it| it["name"] == name).unwrap()
}

#[test]
fn a_host_is_looked_at_whole_and_nothing_is_changed() {
    needs_qemu!();
    let hosts = Hosts::new();
    for (name, kib) in [("big", 4096), ("small", 64), ("middle", 1024)] {
        hosts.guest(name, kib);
    }
    let before = hosts.files();
    let report = hosts.report("--all --running", 0);
    assert_eq!(
        (&report["is"], &report["schema"]),
        (&"green".into(), &"qcowtool-preflight/1".into())
    );
    assert_eq!(of(&report, "name"), ["small", "middle", "big"]);
    assert_eq!(of(&report, "copy"), ["full"; 3]);
    let transfers: Vec<_> = report["guests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["transfer-bytes"].as_u64().unwrap())
        .collect();
    assert_eq!(transfers, [64 << 10, 1 << 20, 4 << 20]);
    assert_eq!(report["total"]["transfer-bytes"], (64 << 10) + (1 << 20) + (4 << 20));
    assert_eq!(report["places"][0]["directory"], format!("/{IMAGES}"));
    assert_eq!(report["places"][0]["storage"], "distinct");
    assert_eq!(hosts.files(), before);

    let shut_off = hosts.report("--all", 0);
    assert_eq!(
        (of(&shut_off, "mode"), of(&shut_off, "state")),
        (vec!["offline"; 3], vec!["shut-off"; 3])
    );
    let some = hosts.report("big small big", 0);
    assert_eq!(of(&some, "name"), ["small", "big"]);
}

#[test]
fn one_guest_that_is_refused_or_broken_does_not_hide_the_others() {
    needs_qemu!();
    let hosts = Hosts::new();
    ["good", "taken", "torn", "lost"].into_iter().for_each(|name| hosts.guest(name, 64));
    hosts.define("b", "taken", "/elsewhere");
    fs::write(hosts.definition("a", "torn"), "<domain>").unwrap();
    fs::remove_file(hosts.at("a", "lost.qcow2")).unwrap();
    let report = hosts.report("--all", 2);
    assert_eq!(of(&report, "name"), ["good", "lost", "taken", "torn"]);
    assert_eq!(of(&report, "is"), ["green", "red", "red", "failed"]);
    assert_eq!(guest(&report, "taken")["refusals"][0]["code"], "R6");
    assert_eq!(guest(&report, "lost")["refusals"][0]["code"], "D08c");
    let total = &report["total"];
    assert_eq!(
        (&total["ready"], &total["refused"], &total["failed"]),
        (&1.into(), &2.into(), &1.into())
    );
    assert_eq!(hosts.report("good", 0)["is"], "green");

    // What could not be looked at is no refusal, and has a code of its own.
    assert_eq!(hosts.report("good torn", 6)["is"], "failed");
    assert_eq!(hosts.report("good nobody", 6)["is"], "failed");
}

#[test]
fn the_table_says_in_words_what_it_shows() {
    needs_qemu!();
    let hosts = Hosts::new();
    ["good", "taken"].into_iter().for_each(|name| hosts.guest(name, 64));
    hosts.define("b", "taken", "/elsewhere");
    let run = hosts.run("--all");
    assert_eq!(run.code(), Some(2));
    let text = run.stdout();
    let line =
        |words: &str| text.lines().any(|line| words.split(' ').all(|word| line.contains(word)));
    assert!(line("green 1 good D16"), "{text}");
    assert!(line("red - taken"), "{text}");
    assert!(line("refused (R6)"), "{text}");
    assert!(line("red 1 of 2 guests can move"), "{text}");
    assert!(line("unseen ports-there"), "{text}");
    assert!(!text.contains('\x1b'), "no terminal, no colours: {text:?}");
}

#[test]
fn a_directory_that_is_missing_there_is_red() {
    needs_qemu!();
    let hosts = Hosts::new();
    hosts.guest("vm", 64);
    fs::remove_dir(hosts.scratch.path("b").join(IMAGES)).unwrap();
    let report = hosts.report("vm", 2);
    assert_eq!(
        (&report["places"][0]["is"], &guest(&report, "vm")["is"]),
        (&"red".into(), &"red".into())
    );
    fs::create_dir_all(hosts.scratch.path("b").join("data")).unwrap();
    let report = hosts.report("vm --target-dir /data", 0);
    assert_eq!(report["places"][0]["directory"], "/data");
}

#[test]
fn two_disks_of_one_name_do_not_fit_into_one_directory() {
    needs_qemu!();
    let hosts = Hosts::new();
    ["one", "two"].into_iter().for_each(|name| hosts.guest(name, 64));
    let other = hosts.scratch.path("a").join("data");
    fs::create_dir_all(&other).unwrap();
    fs::rename(hosts.at("a", "two.qcow2"), other.join("one.qcow2")).unwrap();
    hosts.define("a", "two", "/data/one.qcow2");
    let report = hosts.report(&format!("--all --target-dir /{IMAGES}"), 2);
    assert_eq!(
        (of(&report, "name"), of(&report, "is")),
        (vec!["one", "two"], vec!["green", "red"])
    );
    let checks = guest(&report, "two")["checks"].as_array().unwrap();
    assert!(checks.iter().any(|check| check["check"] == "target"), "{checks:#?}");
}

#[test]
fn a_template_of_many_is_brought_once() {
    needs_qemu!();
    let hosts = Hosts::new();
    let template = hosts.at("a", "template.qcow2");
    qemu::create(&template, "", "64M");
    qemu::qemu_io("qcow2", &template, &["write -P 7 0 8M"]);
    for name in ["one", "two", "three"] {
        let disk = hosts.at("a", &format!("{name}.qcow2"));
        let base = format!("/{IMAGES}/template.qcow2");
        qemu::qemu_img(&args![
            "create", "-q", "-f", "qcow2", "-u", "-F", "qcow2", "-b", base, disk, "64M"
        ]);
        hosts.define("a", name, &format!("/{IMAGES}/{name}.qcow2"));
    }
    let report = hosts.report("--all --running --policy thin", 0);
    assert_eq!(of(&report, "copy"), ["incremental"; 3]);
    let transfer = report["total"]["transfer-bytes"].as_u64().unwrap();
    let length = fs::metadata(&template).unwrap().len();
    assert_eq!(transfer, length, "the overlays hold nothing of their own");
    assert_eq!(report["guests"][0]["transfer-bytes"], length);
    assert_eq!(report["guests"][2]["transfer-bytes"], 0);
}

#[test]
fn shared_storage_is_found_by_a_file_that_is_gone_afterwards() {
    needs_qemu!();
    let hosts = Hosts::new();
    hosts.guest("vm", 64);
    let (a, b) = (hosts.scratch.path("a"), hosts.scratch.path("b"));
    fs::remove_dir(b.join(IMAGES)).unwrap();
    fs::remove_dir_all(b.join(DEFINITIONS)).unwrap();
    // One host's directory under both names: what is written on one appears on the other.
    let to = format!("dir:{}", a.display());
    let run = qcowtool(args![
        "preflight",
        "vm",
        "--connect",
        hosts.uri("a"),
        "--to",
        to,
        "--output",
        "json",
        "--state-dir",
        hosts.scratch.path("state")
    ]);
    let report: Value = serde_json::from_str(&run.stdout()).unwrap();
    assert_eq!(report["places"][0]["storage"], "shared");
    let names: Vec<_> =
        fs::read_dir(a.join(IMAGES)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["vm.qcow2"]);
}

#[test]
fn what_is_asked_for_must_make_sense() {
    let hosts = Hosts::new();
    assert_eq!(hosts.run("").code(), Some(1));
    assert_eq!(hosts.run("vm --all").code(), Some(1));
    assert_eq!(hosts.run("--all --target-pool nowhere").code(), Some(1));
    // What one guest may be taken from is said in another way.
    let run = qcowtool(args!["plan", "vm", "--connect", hosts.uri("a"), "--to", hosts.uri("b")]);
    assert!(run.code() == Some(1) && run.stderr().contains("--domain-xml"), "{}", run.stderr());
    let empty = hosts.report("--all", 0);
    assert_eq!(empty["total"]["guests"], 0);
    // A host that is not there at all.
    let nowhere = Path::new("/nonexistent/host");
    let run = qcowtool(args![
        "preflight",
        "--all",
        "--connect",
        hosts.uri("a"),
        "--to",
        format!("dir:{}", nowhere.display()),
        "--state-dir",
        hosts.scratch.path("state")
    ]);
    assert_eq!((run.code(), run.stdout().as_str()), (Some(6), ""), "{}", run.stderr());
}
