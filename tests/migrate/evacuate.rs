//! `qcowtool evacuate` between directories that stand for hosts, through the binary.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
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
        qemu::create(self.disk("a", &name), "", "64M");
        self.write(&name, number, kib);
        self.define(&name, number);
        name
    }

    /// The same on a backing file.
    fn guest_on(&self, base: &str, number: u8, kib: u64) -> String {
        let name = format!("guest-{number}");
        let backing = format!("backing_file={base}.qcow2,backing_fmt=qcow2");
        qemu::create(self.disk("a", &name), &backing, "64M");
        self.write(&name, number, kib);
        self.define(&name, number);
        name
    }

    fn write(&self, name: &str, pattern: u8, kib: u64) {
        qemu::qemu_io("qcow2", self.disk("a", name), &[&format!("write -P {pattern} 0 {kib}k")]);
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

    /// Goes on with an evacuation, to a good end.
    #[track_caller]
    fn resume(&self, words: &str) -> Value {
        let state = self.scratch.path("state");
        let mut all = args!["evacuate", "--state-dir", state, "--resume"];
        all.extend(words.split_whitespace().map(std::ffi::OsString::from));
        let run = qcowtool(all);
        assert_eq!(run.code(), Some(0), "{}{}", run.stdout(), run.stderr());
        serde_json::from_str(&run.stdout()).unwrap()
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

    // All at once as far as that can be: two wait for the backing file.
    hosts.report(&["b"], "--policy thin --parallel 3", 0);
    let images = fs::read_dir(hosts.scratch.path("b").join(IMAGES)).unwrap();
    assert_eq!(images.count(), 4, "three overlays and one backing file");
    assert_eq!(fs::read(hosts.disk("b", "base")).unwrap(), fs::read(&base).unwrap());
    for number in 1..4 {
        let image = fs::read(hosts.disk("b", &format!("guest-{number}"))).unwrap();
        let name = format!("/{IMAGES}/base.qcow2");
        let names = |part: &[u8]| part == name.as_bytes();
        assert!(image[..4096].windows(name.len()).any(names), "it is an overlay on that");
    }
}

/// A program that does this.
fn program(hosts: &Hosts, name: &str, lines: &str) -> String {
    let path = hosts.scratch.path(name);
    fs::write(&path, format!("#!/bin/sh\n{lines}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

/// The guest is defined on this host alone, and its disk there holds its pattern.
#[track_caller]
fn assert_at(hosts: &Hosts, number: u8, host: &str, kib: u64) {
    let name = format!("guest-{number}");
    for other in ["a", "b", "c"] {
        assert_eq!(hosts.definition(other, &name).exists(), other == host, "{name} on {other}");
    }
    let read = format!("read -P {number} 0 {kib}k");
    qemu::qemu_io("qcow2", hosts.disk(host, &name), &[&read]);
}

/// Where the report says that each guest is or would be.
fn to(report: &Value) -> BTreeMap<String, (String, String)> {
    let guests = report["guests"].as_array().unwrap().iter();
    let word = |guest: &Value, key: &str| guest[key].as_str().unwrap().to_owned();
    guests.map(|it| (word(it, "name"), (word(it, "ending"), word(it, "to")))).collect()
}

#[test]
fn a_host_is_emptied_and_all_of_it_is_told() {
    needs_qemu!();
    let hosts = Hosts::new();
    for number in 1..5 {
        hosts.guest(number, 64 * u64::from(number));
    }
    let told = hosts.scratch.path("told");
    let words = "echo \"$QCOWTOOL_GUEST $QCOWTOOL_UUID $QCOWTOOL_RESULT\" >>";
    let hook = program(&hosts, "hook", &format!("{words} {}", told.display()));
    let metrics = hosts.scratch.path("evacuate.prom");
    let words = format!(
        "--before {hook} --after {hook} --metrics {} --progress json --output json",
        metrics.display()
    );
    let run = hosts.run(&["b", "c"], &words);
    assert_eq!(run.code(), Some(0), "{}{}", run.stdout(), run.stderr());
    let report: Value = serde_json::from_str(&run.stdout()).unwrap();
    assert_eq!(report["schema"], "qcowtool-evacuated/1");
    let to = to(&report);
    for number in 1..5 {
        let (ending, to) = &to[&format!("guest-{number}")];
        assert_eq!(ending, "moved");
        let host = if *to == hosts.uri("b") { "b" } else { "c" };
        assert_at(&hosts, number, host, 64 * u64::from(number));
    }
    let events: Vec<Value> =
        run.stderr().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let count = |event: &str| events.iter().filter(|it| it["event"] == event).count();
    assert_eq!((count("begun"), count("started"), count("ended")), (1, 4, 4));
    let told = fs::read_to_string(told).unwrap();
    assert_eq!(told.lines().count(), 8);
    assert_eq!(told.lines().filter(|line| line.ends_with(" moved")).count(), 4, "{told}");
    let metrics = fs::read_to_string(metrics).unwrap();
    assert!(metrics.contains("qcowtool_evacuation_guests{state=\"moved\"} 4"), "{metrics}");
    assert!(metrics.contains("qcowtool_evacuation_guests{state=\"running\"} 0"), "{metrics}");
    assert_eq!(hosts.report(&["b"], "", 0)["guests"].as_array().unwrap().len(), 0, "it is empty");
}

#[test]
fn killed_in_the_middle_it_goes_on_where_it_was() {
    needs_qemu!();
    let hosts = Hosts::new();
    for number in 1..6 {
        hosts.guest(number, 64 * u64::from(number));
    }
    // Its parent is qcowtool.
    let kills =
        "test \"$QCOWTOOL_GUEST\" != guest-3 || test -e KILLED || { touch KILLED; kill -9 $PPID; }";
    let kills = kills.replace("KILLED", &hosts.scratch.path("killed").display().to_string());
    let hook = program(&hosts, "hook", &kills);
    let run = hosts.run(&["b", "c"], &format!("--parallel 1 --before {hook}"));
    assert_eq!(run.code(), None, "{}{}", run.stdout(), run.stderr());
    let gone = (1..6).filter(|number| !hosts.definition("a", &format!("guest-{number}")).exists());
    assert_eq!(gone.collect::<Vec<u8>>(), [1, 2]);
    let report = hosts.resume("--output json");
    let to = to(&report);
    assert_eq!(to.len(), 5, "those before the kill too: {report:#}");
    for number in 1..6 {
        let (ending, to) = &to[&format!("guest-{number}")];
        assert_eq!(ending, "moved");
        let host = if *to == hosts.uri("b") { "b" } else { "c" };
        assert_at(&hosts, number, host, 64 * u64::from(number));
    }
}

#[test]
fn ctrl_c_lets_what_is_under_way_arrive_and_leaves_the_rest() {
    needs_qemu!();
    let hosts = Hosts::new();
    for number in 1..4 {
        hosts.guest(number, 64);
    }
    let hook = program(
        &hosts,
        "hook",
        "test \"$QCOWTOOL_GUEST\" != guest-2 || { kill -INT $PPID; sleep 1; }",
    );
    let run = hosts.run(&["b"], &format!("--parallel 1 --before {hook} --output json"));
    assert_eq!(run.code(), Some(130), "{}{}", run.stdout(), run.stderr());
    let report: Value = serde_json::from_str(&run.stdout()).unwrap();
    let endings: Vec<_> = to(&report).into_values().map(|(ending, _)| ending).collect();
    assert_eq!(endings, ["moved", "moved", "waiting"]);
    assert_at(&hosts, 2, "b", 64);
    assert_at(&hosts, 3, "a", 64);
    let id = report["id"].as_str().unwrap();
    let report = hosts.resume(&format!("{id} --output json"));
    assert_eq!(to(&report).into_values().filter(|(ending, _)| ending == "moved").count(), 3);
}

#[test]
fn the_exit_codes_of_programs_are_respected() {
    needs_qemu!();
    let hosts = Hosts::new();
    for number in 1..4 {
        hosts.guest(number, 64);
    }
    let no = program(&hosts, "no", "test \"$QCOWTOOL_GUEST\" != guest-1 || exit 7");
    let report = hosts.report(&["b"], &format!("--parallel 1 --before {no}"), 2);
    assert_eq!(to(&report)["guest-1"].0, "refused");
    assert!(report["guests"][0]["error"].as_str().unwrap().contains("exit code 7"), "{report:#}");
    assert_at(&hosts, 1, "a", 64);
    assert_at(&hosts, 2, "b", 64);
    hosts.guest(4, 64);
    let report = hosts.report(&["c"], "--parallel 1 --after /bin/false", 6);
    let endings: Vec<_> = to(&report).into_values().map(|(ending, _)| ending).collect();
    assert_eq!(endings, ["moved", "waiting"], "{report:#}");
    assert!(report["stopped"].as_str().unwrap().contains("guest-1"));
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

#[test]
fn guests_that_go_at_once_share_the_directories_that_are_made_for_them() {
    needs_qemu!();
    let hosts = Hosts::new();
    let names: Vec<_> = (1..=6).map(|number| hosts.guest(number, 64)).collect();
    let words = "--target-dir /srv/new/deeper --parallel 6";
    let refused = hosts.report(&["b"], words, 2);
    let reason = &refused["refused"][0]["reasons"][0]["refusals"][0];
    assert_eq!(reason["code"], "D23", "{refused:#}");
    assert!(reason["way-out"].as_str().unwrap().contains("--mkdir"), "{refused:#}");
    assert!(!hosts.scratch.path("b").join("srv").exists());

    let moved = hosts.report(&["b"], &format!("{words} --mkdir"), 0);
    assert_eq!(of(&moved, "guests", "ending"), ["moved"; 6]);
    let directory = hosts.scratch.path("b").join("srv/new/deeper");
    let mut found: Vec<_> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    assert_eq!(found, names.iter().map(|name| format!("{name}.qcow2")).collect::<Vec<_>>());
    for above in ["srv", "srv/new"] {
        // Nothing else, and none under a name of its own.
        assert_eq!(fs::read_dir(hosts.scratch.path("b").join(above)).unwrap().count(), 1);
    }
}
