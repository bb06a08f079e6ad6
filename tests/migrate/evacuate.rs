//! `qcowtool evacuate` between directories that stand for hosts, through the binary.

use std::fs;
use std::path::PathBuf;

use common::{Run, qcowtool};
use fixtures::{Scratch, args, needs_qemu, qemu};
use serde_json::Value;

const IMAGES: &str = "var/lib/libvirt/images";
const DEFINITIONS: &str = "etc/libvirt/qemu";

/// Directories as hosts: guests on `a`, and `b` and `c` to take them.
pub(crate) struct Hosts {
    pub(crate) scratch: Scratch,
}

impl Hosts {
    pub(crate) fn new() -> Self {
        let scratch = Scratch::new();
        for host in ["a", "b", "c"] {
            fs::create_dir_all(scratch.path(host).join(IMAGES)).unwrap();
            fs::create_dir_all(scratch.path(host).join(DEFINITIONS)).unwrap();
        }
        Self { scratch }
    }

    pub(crate) fn disk(&self, host: &str, name: &str) -> PathBuf {
        self.scratch.path(host).join(IMAGES).join(format!("{name}.qcow2"))
    }

    pub(crate) fn definition(&self, host: &str, name: &str) -> PathBuf {
        self.scratch.path(host).join(DEFINITIONS).join(format!("{name}.xml"))
    }

    /// A guest that is shut off, with a disk of its own that holds `kib` KiB of a pattern.
    pub(crate) fn guest(&self, number: u8, kib: u64) -> String {
        let name = format!("guest-{number}");
        qemu::create(&self.disk("a", &name), "", "64M");
        self.write(&name, number, kib);
        self.define(&name, number);
        name
    }

    /// The same on a backing file.
    fn guest_on(&self, base: &str, number: u8, kib: u64) -> String {
        let name = format!("guest-{number}");
        let backing = format!("backing_file={base}.qcow2,backing_fmt=qcow2");
        qemu::create(&self.disk("a", &name), &backing, "64M");
        self.write(&name, number, kib);
        self.define(&name, number);
        name
    }

    fn write(&self, name: &str, pattern: u8, kib: u64) {
        qemu::qemu_io("qcow2", &self.disk("a", name), &[&format!("write -P {pattern} 0 {kib}k")]);
    }

    fn define(&self, name: &str, number: u8) {
        let xml = format!(
            "<domain type='kvm'><name>{name}</name><uuid>0000{number:04x}-8e1c-4a3f-9c0e-8c1a52a6d6a1</uuid>\
             <memory unit='MiB'>64</memory><os><type arch='x86_64' machine='pc'>hvm</type></os>\
             <devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
             <source file='/{IMAGES}/{name}.qcow2'/><target dev='vda' bus='virtio'/></disk></devices></domain>"
        );
        fs::write(self.definition("a", name), xml).unwrap();
    }

    pub(crate) fn uri(&self, host: &str) -> String {
        format!("dir:{}", self.scratch.path(host).display())
    }

    pub(crate) fn words(&self, to: &[&str], words: &str) -> Vec<std::ffi::OsString> {
        let state = self.scratch.path("state");
        let mut all = args!["evacuate", "--connect", self.uri("a"), "--state-dir", state];
        for host in to {
            all.extend(args!["--to", self.uri(host)]);
        }
        all.extend(words.split_whitespace().map(std::ffi::OsString::from));
        all
    }

    pub(crate) fn run(&self, to: &[&str], words: &str) -> Run {
        qcowtool(self.words(to, words))
    }

    /// Ends with this code and prints this report.
    #[track_caller]
    pub(crate) fn report(&self, to: &[&str], words: &str, code: i32) -> Value {
        let run = self.run(to, &format!("{words} --output json"));
        assert_eq!(run.code(), Some(code), "{}{}", run.stdout(), run.stderr());
        serde_json::from_str(&run.stdout()).unwrap()
    }
}

/// The values of a key of all guests, in their order.
fn of<'a>(report: &'a Value, list: &str, key: &str) -> Vec<&'a str> {
    report[list].as_array().unwrap().iter().map(|it| it[key].as_str().unwrap()).collect()
}

#[test]
fn a_plan_says_who_goes_where_and_changes_nothing() {
    needs_qemu!();
    let hosts = Hosts::new();
    for (number, kib) in [(1, 4096), (2, 64), (3, 1024)] {
        hosts.guest(number, kib);
    }
    let plan = hosts.report(&["b", "c"], "--dry-run", 0);
    assert_eq!(plan["schema"], "qcowtool-evacuation/1");
    assert_eq!(of(&plan, "guests", "name"), ["guest-2", "guest-3", "guest-1"]);
    assert_eq!(plan["total"]["transfer-bytes"], (4096 + 64 + 1024) << 10);
    let places: Vec<_> =
        plan["destinations"].as_array().unwrap().iter().map(|it| &it["guests"]).collect();
    assert!(places.iter().all(|guests| guests.as_u64() > Some(0)), "{plan:#}");
    for host in ["b", "c"] {
        assert_eq!(fs::read_dir(hosts.scratch.path(host).join(IMAGES)).unwrap().count(), 0);
    }
    let some = hosts.report(&["b"], "--dry-run --guest guest-1 --guest guest-1", 0);
    assert_eq!(of(&some, "guests", "name"), ["guest-1"]);
}

#[test]
fn what_cannot_go_is_named_with_the_reason_at_each_destination() {
    needs_qemu!();
    let hosts = Hosts::new();
    let (taken, lost) = (hosts.guest(1, 64), hosts.guest(2, 64));
    hosts.guest(3, 64);
    fs::write(hosts.disk("b", &taken), "another's").unwrap();
    fs::remove_file(hosts.disk("a", &lost)).unwrap();
    let plan = hosts.report(&["b", "c"], "--dry-run", 2);
    assert_eq!(of(&plan, "refused", "name"), [lost.as_str()]);
    let codes = |at: usize| &plan["refused"][0]["reasons"][at]["refusals"][0]["code"];
    assert_eq!((codes(0), codes(1)), (&"D08c".into(), &"D08c".into()));
    let guest = |name: &str| {
        plan["guests"].as_array().unwrap().iter().find(|it| it["name"] == name).unwrap().clone()
    };
    assert_eq!(guest(&taken)["to"], hosts.uri("c"), "the other one has its path taken");
    let text = hosts.run(&["b", "c"], "--dry-run");
    assert_eq!(text.code(), Some(2));
    assert!(text.stdout().contains("guest-2 stays") && text.stdout().contains("2 of 3 guests go"));
}

#[test]
fn a_shared_backing_file_comes_with_the_first_that_needs_it() {
    needs_qemu!();
    let hosts = Hosts::new();
    let base = hosts.disk("a", "base");
    qemu::create(&base, "", "64M");
    qemu::qemu_io("qcow2", &base, &["write -P 9 1M 2M"]);
    for number in 1..4 {
        hosts.guest_on("base", number, 64 * u64::from(number));
    }
    let plan = hosts.report(&["b"], "--dry-run --policy thin", 0);
    let brings: Vec<_> = plan["guests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|guest| guest["brings"].as_array().unwrap().len())
        .collect();
    assert_eq!(brings, [1, 0, 0], "{plan:#}");
    let own: u64 = (64 + 128 + 192) << 10;
    let copied = fs::metadata(&base).unwrap().len();
    assert_eq!(plan["total"]["transfer-bytes"], own + copied);
}

#[test]
fn destinations_come_from_an_inventory_too() {
    needs_qemu!();
    let hosts = Hosts::new();
    hosts.guest(1, 64);
    let inventory = hosts.scratch.path("hosts");
    fs::write(&inventory, format!("# two\n{}\n{}\n", hosts.uri("b"), hosts.uri("c"))).unwrap();
    let words = format!("--dry-run --inventory {}", inventory.display());
    assert_eq!(hosts.report(&[], &words, 0)["destinations"].as_array().unwrap().len(), 2);
    let several = hosts.run(&["b", "c"], "--dry-run -e ssh");
    assert_eq!(several.code(), Some(1));
    assert!(several.stderr().contains("{host}"), "{}", several.stderr());
    assert_eq!(hosts.run(&[], "--dry-run").code(), Some(1));
}
