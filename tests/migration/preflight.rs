//! `qcowtool preflight` between two real libvirt hosts: what it says of hosts and of many guests at once, and that it
//! changes nothing.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::trial::{REFUSED, binary, needs_migration};
use rig::{Disk, Guest, Host, Ran, Rig};
use serde_json::Value;

const STATE: &str = "/var/lib/libvirt/qcowtool";
/// A host, a file or a service did not do what was asked of it.
const ENVIRONMENT: i32 = 6;

/// Certificates that openssl made, without their keys.
const HOST_B: &str = include_str!("../../migrate/src/probe/certificate/host-b.pem");
const EXPIRED: &str = include_str!("../../migrate/src/probe/certificate/expired.pem");
const OTHER: &str = include_str!("../../migrate/src/probe/certificate/other.pem");
const FUTURE: &str = include_str!("../../migrate/src/probe/certificate/future.pem");

fn preflight(rig: &Rig, to: &str, options: &[&str]) -> Ran {
    let words = ["preflight", "--to", to, "--state-dir", STATE];
    let output = rig.a.command(binary()).args(words).args(options).output();
    Ran::of(format!("qcowtool preflight {}", options.join(" ")), output.expect("qcowtool starts"))
}

/// The report, with qcowtool on B called through ssh, or with nothing there but libvirt.
#[track_caller]
fn report(rig: &Rig, agent: bool, options: &[&str], code: i32) -> Value {
    let shell = rig.b.remote_shell();
    let with = if agent { vec!["-e", &shell] } else { vec![] };
    let ran = preflight(rig, &rig.b.uri(), &[options, &with, &["--output", "json"]].concat());
    assert_eq!(ran.code(), Some(code), "{ran}");
    serde_json::from_str(&ran.stdout()).unwrap_or_else(|error| panic!("{error}: {ran}"))
}

/// The check of this name between the hosts.
#[track_caller]
fn check<'a>(report: &'a Value, name: &str) -> (&'a str, &'a str) {
    let checks = report["checks"].as_array().unwrap();
    let found = checks.iter().find(|check| check["check"] == name);
    let found = found.unwrap_or_else(|| panic!("no {name}: {checks:#?}"));
    (found["is"].as_str().unwrap(), found["message"].as_str().unwrap())
}

#[track_caller]
fn guest<'a>(report: &'a Value, guest: &Guest<'_>) -> &'a Value {
    let guests = report["guests"].as_array().unwrap();
    guests
        .iter()
        .find(|found| found["name"] == *guest.name)
        .unwrap_or_else(|| panic!("{guests:#?}"))
}

/// The check of this name in a list of them.
fn has(checks: &Value, name: &str, is: &str) -> bool {
    checks.as_array().unwrap().iter().any(|check| check["check"] == name && check["is"] == is)
}

/// A guest on a disk of its own at this path of A's.
fn alone<'a>(rig: &'a Rig, name: &str, disk: &str) -> Guest<'a> {
    let guest = Guest::new(rig, name);
    rig.a.make_template(disk, &guest.template);
    guest.define(&rig.a, &[Disk::qcow2(disk)]);
    guest
}

/// What a host has: its files below its images, its guests and what they do, its pools.
fn inventory(host: &Host) -> (Vec<(PathBuf, u64)>, String, String) {
    let mut files = Vec::new();
    let mut rest = vec![host.outside(rig::host::IMAGES)];
    while let Some(directory) = rest.pop() {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            let status = entry.metadata().unwrap();
            if status.is_dir() {
                rest.push(entry.path());
            } else {
                files.push((entry.path(), status.ino()));
            }
        }
    }
    files.sort();
    (files, host.virsh(["list", "--all"]).ok(), host.virsh(["pool-list", "--all"]).ok())
}

#[test]
fn all_guests_of_a_host_at_once() {
    needs_migration!();
    let rig = Rig::up();
    let on_template = Guest::new(&rig, "on-template");
    on_template.run_on_template();
    let template = on_template.path("template.qcow2");
    fs::copy(rig.a.outside(&template), rig.b.outside(&template)).unwrap();
    let off = alone(&rig, "off", "/var/lib/libvirt/images/off/disk.qcow2");
    let shareable = Guest::new(&rig, "shareable");
    let (disk, data) = (shareable.path("disk.qcow2"), shareable.path("data.img"));
    rig.a.make_template(&disk, &shareable.template);
    fs::write(rig.a.outside(&data), [7; 1 << 20]).unwrap();
    shareable.define(&rig.a, &[Disk::qcow2(disk), Disk::raw(data).with("<shareable/>")]);
    shareable.start(&rig.a);
    let odd = Guest::new(&rig, "odd-cpu");
    let disk = odd.path("disk.qcow2");
    rig.a.make_template(&disk, &odd.template);
    let model =
        "<cpu mode='custom' match='exact' check='none'><model>EPYC-Genoa</model></cpu></domain>";
    let xml = rig::guest::xml(&odd.name, "none", &[Disk::qcow2(disk)]).replace("</domain>", model);
    fs::write(rig.a.outside("/run/odd.xml"), xml).unwrap();
    rig.a.virsh(["define", "/run/odd.xml"]).ok();

    let before = rig.hosts().map(inventory);
    for agent in [true, false] {
        let found = report(&rig, agent, &["--all"], REFUSED);
        assert_eq!(found["is"], "red");
        let total = &found["total"];
        assert_eq!((&total["guests"], &total["ready"]), (&4.into(), &2.into()), "{found:#}");
        let of = |one: &Guest<'_>, key: &str| guest(&found, one)[key].clone();
        assert_eq!(
            (of(&on_template, "is"), of(&on_template, "copy")),
            ("green".into(), "incremental".into())
        );
        assert_eq!((of(&off, "is"), of(&off, "mode")), ("green".into(), "offline".into()));
        assert_eq!(of(&shareable, "refusals")[0]["code"], "D06");
        // libvirt itself says that an emulated processor is not that one.
        assert!(has(&of(&odd, "checks"), "cpu", "red"), "{found:#}");
        assert!(has(&of(&on_template, "checks"), "cpu", "green"), "{found:#}");
        assert!(has(&of(&on_template, "checks"), "machine", "green"), "{found:#}");
        for name in ["hosts", "libvirt", "qemu", "cpu", "names"] {
            assert_eq!(check(&found, name).0, "green", "{name}");
        }
        for name in ["ports-there", "ports-back", "clock"] {
            assert_eq!(check(&found, name).0, if agent { "green" } else { "unseen" }, "{name}");
        }
        for place in found["places"].as_array().unwrap() {
            assert_eq!((&place["storage"], &place["is"]), (&"distinct".into(), &"green".into()));
        }
        assert_eq!(rig.hosts().map(inventory), before, "nothing is changed, and nothing is left");
    }
    let green = [&*on_template.name, &*off.name];
    assert_eq!(report(&rig, true, &green, 0)["is"], "green");
    for running in [&on_template, &shareable] {
        running.goes_on(&rig.a);
    }

    // The name of one is taken there by another.
    let other = rig::guest::xml(&off.name, "none", &[Disk::qcow2("/nowhere")]);
    fs::write(rig.b.outside("/run/other.xml"), other).unwrap();
    rig.b.virsh(["define", "/run/other.xml"]).ok();
    let found = report(&rig, true, &green, REFUSED);
    let (is, message) = check(&found, "names");
    assert!(is == "red" && message.contains(&off.name), "{message}");
    assert_eq!(guest(&found, &off)["refusals"][0]["code"], "R6");
    assert_eq!(guest(&found, &on_template)["is"], "green");
    rig.b.virsh(["undefine", &off.name]).ok();

    // Its word is kept: what is green goes.
    let (uri, shell) = (rig.b.uri(), rig.b.remote_shell());
    for name in green {
        let words = ["migrate", name, "--to", &uri, "-e", &shell, "--state-dir", STATE];
        let ran = rig.a.command(binary()).args(words).output().unwrap();
        Ran::of(format!("qcowtool migrate {name}"), ran).ok();
    }
}

#[test]
fn room_for_each_and_not_for_all() {
    needs_migration!();
    let rig = Rig::up();
    // Each needs about ten.
    let room = "/var/lib/libvirt/images/room";
    rig.b.small_file_system(room, 16);
    let names = ["first", "second"];
    let guests = names
        .map(|name| alone(&rig, name, &format!("/var/lib/libvirt/images/{name}/{name}.qcow2")));
    for agent in [true, false] {
        for one in &guests {
            assert_eq!(report(&rig, agent, &[&one.name, "--target-dir", room], 0)["is"], "green");
        }
        let found = report(&rig, agent, &["--all", "--target-dir", room], REFUSED);
        let [place] = &found["places"].as_array().unwrap()[..] else { panic!("{found:#}") };
        assert!(has(&place["checks"], "space", "red"), "{place:#}");
        assert!(place["needed-bytes"].as_u64() > place["available-bytes"].as_u64(), "{place:#}");
        assert_eq!((&found["total"]["ready"], &found["total"]["refused"]), (&1.into(), &1.into()));
        assert!(has(&found["guests"][1]["checks"], "space", "red"), "{found:#}");
    }
}

#[test]
fn places_that_are_not_what_they_should_be() {
    needs_migration!();
    let rig = Rig::up();
    let one = alone(&rig, "placed", "/var/lib/libvirt/images/placed/disk.qcow2");
    let directory = one.directory();
    let place = |agent, code| report(&rig, agent, &[&one.name], code)["places"][0].clone();

    rig.b.virsh(["pool-define-as", "later", "dir", "--target", &directory]).ok();
    for agent in [true, false] {
        let found = place(agent, 0);
        assert!(has(&found["checks"], "pool", "note") && found["pool"] == "later", "{found:#}");
    }
    assert!(rig.b.virsh(["pool-info", "later"]).ok().contains("inactive"), "it is left as it was");
    rig.b.virsh(["pool-undefine", "later"]).ok();

    // Its storage is not mounted: images would land on what is below.
    let of_nfs = ["--source-host", "filer.invalid", "--source-path", "/x", "--target", &directory];
    rig.b.virsh([&["pool-define-as", "far", "netfs"][..], &of_nfs].concat()).ok();
    let found = place(true, REFUSED);
    assert!(has(&found["checks"], "pool", "red"), "{found:#}");
    rig.b.virsh(["pool-undefine", "far"]).ok();

    fs::remove_dir(rig.b.outside(&directory)).unwrap();
    for agent in [true, false] {
        let found = place(agent, REFUSED);
        assert!(has(&found["checks"], "directory", "red"), "{found:#}");
    }
    let ran = preflight(&rig, &rig.b.uri(), &[&one.name, "--target-pool", "nowhere"]);
    assert_eq!(ran.code(), Some(1), "{ran}");
    crate::trial::says(&ran, "nowhere");
}

#[test]
fn a_daemon_that_is_down() {
    needs_migration!();
    let rig = Rig::up();
    let one = alone(&rig, "waiting", "/var/lib/libvirt/images/waiting/disk.qcow2");
    rig.b.stop_daemon();
    let ran = preflight(&rig, &rig.b.uri(), &[&one.name]);
    assert_eq!((ran.code(), ran.stdout()), (Some(ENVIRONMENT), String::new()), "{ran}");
    assert!(ran.stderr().lines().count() == 1, "{ran}");
    rig.b.start_daemon();
    let found = report(&rig, true, &[&one.name], 0);
    assert_eq!(found["is"], "green");
    // By its UUID it is the same guest.
    let uuid = found["guests"][0]["uuid"].as_str().unwrap();
    assert_eq!(report(&rig, true, &[&one.name, uuid], 0)["total"]["guests"], 1);
    // Guests are looked at where they are.
    let ran = preflight(&rig, "qemu:///system", &["--all", "--connect", &rig.b.uri()]);
    assert_eq!((ran.code(), ran.stdout()), (Some(REFUSED), String::new()), "{ran}");
    crate::trial::says(&ran, "the guest is on host-b");
}

#[test]
fn ports_names_and_certificates() {
    needs_migration!();
    let rig = Rig::up();
    let one = alone(&rig, "ported", "/var/lib/libvirt/images/ported/disk.qcow2");
    let say = |host: &Host, line: &str| {
        let path = host.outside("/etc/libvirt/qemu.conf");
        writeln!(fs::OpenOptions::new().append(true).open(path).unwrap(), "{line}").unwrap();
    };
    for host in rig.hosts() {
        say(host, "migrate_tls_x509_cert_dir = \"/var/lib/libvirt/tls\"");
        fs::create_dir(host.outside("/var/lib/libvirt/tls")).unwrap();
    }
    say(&rig.b, "migration_port_min = 50000");
    say(&rig.b, "migration_port_max = 50001");

    let found = report(&rig, true, &[&one.name, "--tls"], REFUSED);
    let (is, message) = check(&found, "tls");
    assert!(
        is == "red" && message.contains("/var/lib/libvirt/tls/ca-cert.pem at the source"),
        "{message}"
    );
    let write = |host: &Host, name: &str, text: &str| {
        fs::write(host.outside(format!("/var/lib/libvirt/tls/{name}")), text).unwrap();
    };
    let file = |host: &Host, name: &str| {
        write(host, name, if name.ends_with("-cert.pem") { HOST_B } else { "" });
    };
    for name in ["ca-cert.pem", "client-cert.pem", "client-key.pem"] {
        file(&rig.a, name);
    }
    for name in ["ca-cert.pem", "server-cert.pem"] {
        file(&rig.b, name);
    }
    let found = report(&rig, true, &[&one.name, "--tls"], REFUSED);
    assert!(
        check(&found, "tls").1.ends_with("/server-key.pem at the destination"),
        "{:?}",
        check(&found, "tls")
    );
    file(&rig.b, "server-key.pem");
    let found = report(&rig, true, &[&one.name, "--tls"], 0);
    let (is, message) = check(&found, "tls");
    assert!(is == "green" && message.contains("valid until 2070-01-01"), "{message}");
    for (host, name, text, words) in [
        (
            &rig.b,
            "server-cert.pem",
            EXPIRED,
            "server-cert.pem at the destination has expired on 2021-01-01",
        ),
        (&rig.b, "server-cert.pem", OTHER, "is for other, and guests are sent to host-b"),
        (&rig.a, "client-cert.pem", FUTURE, "at the source is not valid before 2060-01-01"),
        (&rig.a, "ca-cert.pem", "", "ca-cert.pem at the source cannot be used"),
    ] {
        write(host, name, text);
        let found = report(&rig, true, &[&one.name, "--tls"], REFUSED);
        let (is, message) = check(&found, "tls");
        assert!(is == "red" && message.contains(words), "{message}");
        file(host, name);
    }
    assert_eq!(check(&found, "ports-there").1, "host-b was reached at 50000 and 50001");

    // On A, B's name leads to A: libvirt would be told to send the guest there.
    let hosts = rig.a.outside("/etc/hosts");
    fs::write(&hosts, "127.0.0.1 localhost\n192.0.2.1 host-a host-b\n").unwrap();
    let (to, shell) =
        ("qemu+tcp://192.0.2.2/system", rig.b.remote_shell().replace("host-b", "192.0.2.2"));
    let ran = preflight(&rig, to, &[&one.name, "-e", &shell, "--output", "json"]);
    assert_eq!(ran.code(), Some(REFUSED), "{ran}");
    let found: Value = serde_json::from_str(&ran.stdout()).unwrap();
    let (is, message) = check(&found, "ports-there");
    assert!(is == "red" && message.starts_with("host-b cannot be reached at 50000"), "{message}");
    assert_eq!(check(&found, "ports-back").0, "green");
    assert_eq!(guest(&found, &one)["is"], "green");
}
