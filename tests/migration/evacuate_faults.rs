//! Guests of every kind leave a host at once: what can go arrives, what cannot stays whole; and what a loop of
//! `virsh migrate` makes of those that stayed.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::thread;

use serde_json::Value;

use crate::trial::{REFUSED, binary, needs_migration};
use rig::{Disk, Guest, Host, Kind, Ran, Rig};

/// On B: a guest of this name does not start as long as there is a file.
const HOOK: &str = "#!/bin/sh
case \"$1 $2\" in 'broken started') [ ! -e /run/broken ] ;; esac
";

fn install(host: &Host) {
    let path = host.outside("/etc/libvirt/hooks/qemu");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, HOOK).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(host.outside("/run/broken"), "").unwrap();
    host.stop_daemon();
    host.start_daemon();
}

/// The images of a guest of this kind on A.
fn guest<'a>(rig: &'a Rig, name: &str) -> Guest<'a> {
    let mut guest = Guest::new(rig, name);
    // Some kernels' tmpfs can do no more, which one of them would go to.
    guest.cache = "writeback";
    let (disk, template) = (guest.path("disk.qcow2"), guest.path("template.qcow2"));
    match name {
        "orphan" => {
            rig.a.make_template(&template, &guest.template);
            rig.a.make_overlay(&disk, &template);
        }
        _ => rig.a.make_template(&disk, &guest.template),
    }
    if name == "snapshot" {
        rig.a.qemu_img(["snapshot", "-c", "before", &disk]).ok();
    }
    guest.define(&rig.a, &[Disk::qcow2(disk)]);
    guest
}

/// Has them run, all at once, and then in the state that they leave in.
fn start(rig: &Rig, guests: &[Guest<'_>]) {
    thread::scope(|scope| {
        for guest in guests.iter().filter(|guest| guest.name != "stopped") {
            scope.spawn(|| guest.start(&rig.a));
        }
    });
    rig.a.virsh(["suspend", "paused"]).ok();
    fs::remove_file(rig.a.outside(format!("{}/orphan/template.qcow2", rig::host::IMAGES))).unwrap();
}

fn evacuate(rig: &Rig, words: &[&str]) -> (Option<i32>, Value) {
    let mut command = rig.a.command(binary());
    command.args(["evacuate", "--output", "json"]).args(words);
    let ran = Ran::of("qcowtool evacuate", command.output().expect("it starts"));
    let report =
        serde_json::from_str(&ran.stdout()).unwrap_or_else(|error| panic!("{error}: {ran}"));
    (ran.code(), report)
}

/// How it ended for each guest: its ending, or the code of the first refusal.
fn endings(report: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let begun = report["guests"].as_array().unwrap().iter();
    let begun = begun.map(|guest| (text(&guest["name"]), text(&guest["ending"])));
    let refused = report["refused"].as_array().unwrap().iter().map(|guest| {
        let code = &guest["reasons"][0]["refusals"][0]["code"];
        (text(&guest["name"]), format!("refused: {}", text(code)))
    });
    begun.chain(refused).collect()
}

fn table(rows: &[(&str, &str)]) -> BTreeMap<String, String> {
    rows.iter().map(|(name, ending)| ((*name).to_owned(), (*ending).to_owned())).collect()
}

/// It is on B alone, in the state that it left in, with all that it wrote.
#[track_caller]
fn arrived(rig: &Rig, guest: &Guest<'_>) {
    let (a, b, disk) = (&rig.a, &rig.b, guest.path("disk.qcow2"));
    let state = match &*guest.name {
        "paused" => "paused",
        "stopped" => "shut off",
        _ => "running",
    };
    assert_eq!((guest.state(a), guest.state(b).as_deref()), (None, Some(state)), "{}", guest.name);
    if state == "running" {
        guest.wait_writes(b, guest.writes(a) + 50);
    }
    let writes = guest.check_disk(b, &disk, Kind::Boot);
    assert!(writes >= guest.writes(a), "{}: {writes} of {}", guest.name, guest.writes(a));
    if state == "paused" {
        b.virsh(["resume", &guest.name]).ok();
        guest.wait_writes(b, guest.writes(a) + 50);
    }
    assert_eq!(b.list(guest.directory()), ["disk.qcow2"]);
    // The others need the processors.
    b.virsh(["destroy", &guest.name]);
}

/// It goes on at A, and B has nothing of it.
#[track_caller]
fn stayed(rig: &Rig, guest: &Guest<'_>) {
    let (a, b) = (&rig.a, &rig.b);
    let states = (guest.state(a), guest.state(b));
    assert_eq!((states.0.as_deref(), states.1), (Some("running"), None), "{}", guest.name);
    assert!(b.list(guest.directory()).is_empty(), "{:?}", b.list(guest.directory()));
    guest.goes_on(a);
    guest.check_disk(a, &guest.path("disk.qcow2"), Kind::Boot);
}

#[test]
fn what_can_go_arrives_and_what_cannot_stays_where_a_loop_of_virsh_loses_a_snapshot() {
    needs_migration!();
    let rig = Rig::up();
    install(&rig.b);
    let names = ["broken", "first", "large", "orphan", "paused", "second", "snapshot", "stopped"];
    let guests = names.map(|name| guest(&rig, name));
    let by_name = |name: &str| guests.iter().find(|guest| guest.name == name).unwrap();
    rig.b.small_file_system(&by_name("large").directory(), 6);
    start(&rig, &guests);

    let (to, shell) = (rig.b.uri(), rig.b.remote_shell());
    let (code, report) = evacuate(&rig, &["--to", &to, "-e", &shell, "--parallel", "3"]);
    let went = ["first", "orphan", "paused", "second", "stopped"];
    let mut expected = table(&went.map(|name| (name, "moved")));
    let others = [("broken", "failed"), ("large", "refused: space"), ("snapshot", "refused: D11")];
    expected.extend(table(&others));
    assert_eq!((code, endings(&report)), (Some(6), expected.clone()), "{report:#}");
    for guest in &guests {
        match expected[&guest.name] == "moved" {
            true => arrived(&rig, guest),
            false => stayed(&rig, guest),
        }
    }

    // The fault is mended.
    fs::remove_file(rig.b.outside("/run/broken")).unwrap();
    let (code, report) = evacuate(&rig, &["--resume"]);
    expected.insert("broken".into(), "moved".into());
    assert_eq!((code, endings(&report)), (Some(REFUSED), expected), "{report:#}");
    arrived(&rig, by_name("broken"));

    // What libvirt alone makes of the two that stayed, with a pool for each, as it asks for.
    let loop_of_virsh = ["large", "snapshot"].map(|name| {
        let guest = by_name(name);
        rig.b.pool(name, &guest.directory());
        guest.virsh_migrate(&["--copy-storage-all"]).succeeded()
    });
    assert_eq!(loop_of_virsh, [false, true]);
    let large = by_name("large");
    assert_eq!((large.state(&rig.a).as_deref(), large.state(&rig.b)), (Some("running"), None));
    let snapshot = by_name("snapshot");
    assert_eq!(snapshot.state(&rig.b).as_deref(), Some("running"));
    let kept = |host: &Host| {
        let disk = snapshot.path("disk.qcow2");
        host.qemu_img(["snapshot", "-U", "-l", &disk]).ok().contains("before")
    };
    assert_eq!((kept(&rig.a), kept(&rig.b)), (true, false), "virsh says that all is well");
}
