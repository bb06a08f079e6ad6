//! What tests of evacuations onto two hosts share.

use std::process::Command;

use serde_json::Value;

use crate::trial::{Trial, Way, binary};
use rig::{Disk, Host, Kind, Ran, Rig, host::IMAGES, wait_for, wait_until};

/// Bytes of each guest's second disk, all of which have this value.
const DATA: (usize, u8) = (48 << 20, 90);

/// `qcowtool evacuate` on A, with these words more.
pub(crate) fn evacuate(rig: &Rig, words: &[&str]) -> Command {
    let mut command = rig.a.command(binary());
    command.args(["evacuate", "--connect", "qemu:///system", "--output", "json"]).args(words);
    command
}

/// How B and C are named as destinations.
pub(crate) fn to_both(rig: &Rig) -> Vec<String> {
    let shell = rig.b.remote_shell().replace("host-b", "{host}");
    let words = ["--to", &rig.b.uri(), "--to", &rig.c().uri(), "-e", &shell];
    words.map(Into::into).into()
}

#[track_caller]
pub(crate) fn report(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout()).unwrap_or_else(|error| panic!("{error}: {ran}"))
}

/// What an evacuation reports of this guest.
#[track_caller]
pub(crate) fn told<'a>(report: &'a Value, name: &str) -> &'a Value {
    let guests = report["guests"].as_array().unwrap();
    guests.iter().find(|guest| guest["name"] == name).unwrap_or_else(|| panic!("{report:#}"))
}

/// Whether libvirt copies the guest's disks now.
pub(crate) fn copies(rig: &Rig, trial: &Trial<'_>) -> bool {
    let job = rig.a.virsh(["domjobinfo", &trial.guest.name]).stdout();
    let done = job.lines().find_map(|l| l.strip_prefix("File processed:").map(str::trim));
    done.is_some_and(|amount| !amount.starts_with("0.000"))
}

/// MiB of [`small_images`].
const ROOM: u32 = 700;

/// C's images get a file system of their own, which can be [full](fill).
pub(crate) fn small_images(rig: &Rig) {
    rig.c().small_file_system(IMAGES, ROOM);
}

/// C has no room any more. The file system shrinks to what is used of it: a file that takes the rest would take as long as
/// a guest's copy.
pub(crate) fn fill(rig: &Rig) {
    // What is written meanwhile may be more than that.
    wait_for(20, "full file system", || {
        let used = rig.c().run(["df", "--output=used", "-k", IMAGES]).ok();
        let used: u32 = used.lines().last()?.trim().parse().ok()?;
        resize(rig, &format!("{}k", used + 1024)).succeeded().then_some(())
    });
}

/// It has room again.
pub(crate) fn empty(rig: &Rig) {
    resize(rig, &format!("{ROOM}m")).ok();
}

fn resize(rig: &Rig, size: &str) -> Ran {
    rig.c().run(["mount", "-o", &format!("remount,size={size}"), IMAGES])
}

/// Kills the QEMU of a guest on a host. Whether there was one.
pub(crate) fn kill_qemu(host: &Host, name: &str) -> bool {
    let pid = host.run(["cat", &format!("/run/libvirt/qemu/{name}.pid")]);
    pid.succeeded() && host.run(["kill", "-KILL", pid.stdout().trim()]).succeeded()
}

/// A guest whose disk stands alone, beside one with data; it takes some seconds.
pub(crate) fn slow_alone<'a>(rig: &'a Rig, name: &str) -> Trial<'a> {
    let mut trial = Trial::new(rig, name, Way::Agent);
    alone(&mut trial, true);
    trial
}

/// The same of a guest that is there already, which may be shut off.
pub(crate) fn alone(trial: &mut Trial<'_>, runs: bool) {
    let rig = trial.rig;
    (trial.guest.template.burst, trial.guest.cache) = (1, "writeback");
    let (disk, data) = (trial.disk(), trial.path("data.qcow2"));
    rig.a.make_template(&disk, &trial.guest.template);
    rig.a.qemu_img(["create", "-q", "-f", "qcow2", &data, "48M"]).ok();
    rig.a.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 90 0 48M", &data]).ok();
    let disks = [Disk::qcow2(disk), Disk::qcow2(data)];
    match runs {
        true => trial.run(&disks),
        false => trial.guest.define(&rig.a, &disks),
    }
}

/// The only host that knows the guest, where it runs, or is in one of these states.
#[track_caller]
pub(crate) fn place<'r>(rig: &'r Rig, trial: &Trial<'_>, states: &[&str]) -> &'r Host {
    let guest = &trial.guest;
    let known = || rig.all().into_iter().filter_map(|host| Some((host, guest.state(host)?)));
    // Where a migration has just failed, libvirt takes a moment to forget the guest.
    wait_until(60, || {
        let seen: Vec<_> = known().collect();
        match &seen[..] {
            [(only, state)] if state == "running" || states.contains(&&**state) => Ok(*only),
            _ => {
                let seen: Vec<_> = seen.iter().map(|(host, state)| (host.name(), state)).collect();
                Err(format!("{} is not on one host and well: {seen:?}", guest.name))
            }
        }
    })
}

/// The guest is on one host, goes on if it runs, and all that its disks hold is right: every sector is recomputed. Where it is.
#[track_caller]
pub(crate) fn whole<'r>(rig: &'r Rig, trial: &Trial<'_>, states: &[&str]) -> &'r Host {
    let (host, guest) = (place(rig, trial, states), &trial.guest);
    if guest.state(host).as_deref() == Some("running") {
        // They write little, so that their disks can be copied.
        guest.wait_writes(host, guest.writes(host) + 3);
    }
    if std::ptr::eq(host, &rig.a) && trial.lost_its_template() {
        // The template has no name any more: what the guest reads back itself is what is known.
        assert_eq!(guest.complaint(host), None);
        return host;
    }
    guest.check_disk(host, &trial.disk(), Kind::Boot);
    let data = std::fs::read(host.raw_copy(&trial.path("data.qcow2")).path()).unwrap();
    let (length, value) = DATA;
    let block = [value; 1 << 16];
    let right = data.chunks(block.len()).all(|chunk| chunk == &block[..chunk.len()]);
    assert!(data.len() == length && right, "the data of {} on {}", guest.name, host.name());
    assert!(guest.writes(host) >= guest.writes(&rig.a) || !states.is_empty());
    host
}

/// A destination holds the disks of the guests that live there and nothing else.
#[track_caller]
pub(crate) fn nothing_is_left(rig: &Rig, trials: &[Trial<'_>]) {
    for trial in trials {
        for host in [&rig.b, rig.c()] {
            let expected: &[&str] = match trial.guest.state(host) {
                Some(_) => &["data.qcow2", "disk.qcow2"],
                None => &[],
            };
            let found = host.list(trial.guest.directory());
            assert_eq!(found, expected, "{} on {}", trial.guest.name, host.name());
        }
    }
}
