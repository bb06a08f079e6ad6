//! `qcowtool relocate` on a real libvirt host: disks of a guest that writes all the time go to another file system of
//! the same host, and stay whole where that fails.

use std::fs;
use std::process::Command;

use crate::trial::{INTERRUPTED, REFUSED, Running, needs_migration, says};
use rig::{Disk, Guest, Host, Kind, Ran, Rig, wait_for};
use serde_json::Value;

/// A guest on A that boots from an overlay on a template and writes to it, with a second disk on a base of its own;
/// and a file system to go to.
struct Story<'a> {
    guest: Guest<'a>,
    rig: &'a Rig,
    /// What the second disk holds, whatever happens.
    data: Vec<u8>,
    goal: String,
}

impl<'a> Story<'a> {
    fn new(rig: &'a Rig, name: &str) -> Self {
        let mut guest = Guest::new(rig, name);
        let a = &rig.a;
        let goal = guest.path("fast");
        a.small_file_system(&goal, 200);
        guest.cache = "writeback"; // some kernels' tmpfs can do no more
        let [disk, template, data, base] =
            ["disk.qcow2", "template.qcow2", "data.qcow2", "base.qcow2"].map(|f| guest.path(f));
        a.make_template(&template, &guest.template);
        a.make_overlay(&disk, &template);
        a.qemu_img(["create", "-q", "-f", "qcow2", &base, "64M"]).ok();
        a.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 90 0 4M", &base]).ok();
        // By a name that means something else in another directory.
        let named = ["create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2"];
        a.qemu_img(named.iter().copied().chain([&*data])).ok();
        a.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 17 5M 24M", &data]).ok();
        let held = fs::read(a.raw_copy(&data).path()).unwrap();
        let story = Self { data: held, rig, guest, goal };
        story.guest.define(a, &[Disk::qcow2(disk), Disk::qcow2(data)]);
        story.guest.start(a);
        story
    }

    fn a(&self) -> &Host {
        &self.rig.a
    }

    fn command(&self, options: &[&str]) -> Command {
        let mut command = self.a().command(crate::trial::binary());
        command.args(["relocate", &self.guest.name]).args(options);
        if !options.contains(&"--target-pool") {
            command.args(["--target-dir", &self.goal]);
        }
        command
    }

    fn relocate(&self, options: &[&str]) -> Ran {
        let output = self.command(options).output().expect("qcowtool starts");
        Ran::of(format!("qcowtool relocate {}", options.join(" ")), output)
    }

    /// What it says as JSON of each disk, after it ended well.
    #[track_caller]
    fn relocated(&self, options: &[&str]) -> Vec<Value> {
        let ran = self.relocate(&[options, &["--output", "json"]].concat());
        let said: Value = serde_json::from_str(&ran.ok()).unwrap_or_else(|e| panic!("{e}: {ran}"));
        said["disks"].as_array().unwrap().clone()
    }

    /// Starts to move the second disk, which takes a while, and returns when libvirt is at it.
    fn start_slowly(&self) -> Running {
        let mut command = self.command(&["--disk", "vdb", "--bandwidth", "4M"]);
        let mut running = Running::start(self.rig, &mut command);
        wait_for(20, "job under way", || {
            running.still_runs();
            self.job().then_some(())
        });
        running
    }

    fn job(&self) -> bool {
        let said = self.a().virsh(["blockjob", &self.guest.name, "vdb", "--raw"]).stdout();
        said.contains("type=")
    }

    fn sources(&self, inactive: bool) -> String {
        let more = if inactive { &["--inactive"][..] } else { &[] };
        let words = [&["domblklist", &*self.guest.name][..], more].concat();
        self.a().virsh(words).ok()
    }

    fn backing(&self, image: &str) -> Option<String> {
        let info = self.a().qemu_img(["info", "-U", "--output=json", image]).ok();
        let info: Value = serde_json::from_str(&info).unwrap();
        info["backing-filename"].as_str().map(str::to_owned)
    }

    /// The second disk's image of this path holds what it must.
    #[track_caller]
    fn holds_data(&self, path: &str) {
        assert!(fs::read(self.a().raw_copy(path).path()).unwrap() == self.data, "{path}");
    }

    /// The second disk is where it was, nothing is left of a run, and the guest goes on.
    #[track_caller]
    fn stayed(&self) {
        let data = self.guest.path("data.qcow2");
        wait_for(20, "end of the job", || (!self.job()).then_some(()));
        assert!(self.sources(false).contains(&format!("{data}\n")), "{}", self.sources(false));
        assert!(self.sources(true).contains(&format!("{data}\n")), "{}", self.sources(true));
        self.guest.goes_on(self.a());
        self.holds_data(&data);
        assert!(!self.a().has(format!("{}/data.qcow2", self.goal)), "a new image is left");
        self.no_records();
    }

    #[track_caller]
    fn no_records(&self) {
        let uuid = self.a().virsh(["domuuid", &self.guest.name]).ok();
        let records = self.a().list("/var/lib/libvirt/qcowtool/live");
        assert!(!records.iter().any(|record| record.contains(uuid.trim())), "{records:?}");
    }
}

impl Drop for Story<'_> {
    fn drop(&mut self) {
        // QEMU has files there.
        self.a().virsh(["destroy", &self.guest.name]);
        self.a().run(["umount", "-l", &self.goal]);
    }
}

/// All disks of a guest that writes go, keep their backing files, hold all that was written, and are what the guest
/// starts from next; the old images are as they were.
#[test]
fn the_disks_of_a_guest_that_writes_go_to_another_file_system() {
    needs_migration!();
    let story = Story::new(Rig::shared(), "relocated");
    let (guest, a) = (&story.guest, story.a());
    // By its own host's libvirt, as somebody may try it.
    let mut command = a.command(crate::trial::binary());
    command.args(["migrate", &guest.name, "--to", "qemu:///system"]);
    let ran = Ran::of("migrate to the same host", command.output().unwrap());
    assert_eq!(ran.code(), Some(REFUSED), "{ran}");
    says(&ran, "`qcowtool relocate`");
    let plan = story.relocated(&["--dry-run"]);
    assert_eq!(plan.len(), 2);
    assert_eq!(plan[1]["keeps-below"], true);
    assert!(plan[1]["copied-bytes"].as_u64() < Some(28 << 20), "{:#}", plan[1]);
    let done = story.relocated(&["--verify", "content"]);
    let new = ["disk.qcow2", "data.qcow2"].map(|name| format!("{}/{name}", story.goal));
    for (done, new) in done.iter().zip(&new) {
        assert_eq!((&done["image"], &done["compared"]), (&new.as_str().into(), &true.into()));
        assert!(story.sources(false).contains(new) && story.sources(true).contains(new));
    }
    assert_eq!(story.backing(&new[0]), Some(guest.path("template.qcow2")));
    assert_eq!(story.backing(&new[1]), Some(guest.path("base.qcow2")));
    story.holds_data(&new[1]);
    story.holds_data(&guest.path("data.qcow2"));
    guest.goes_on(a);
    let writes = guest.check_disk(a, &new[0], Kind::Boot);
    a.virsh(["suspend", &guest.name]).ok();
    a.virsh(["destroy", &guest.name]).ok();
    guest.start(a);
    guest.goes_on(a);
    assert!(guest.check_disk(a, &new[0], Kind::Boot) >= writes);
    story.no_records();
    let ran = story.relocate(&[]);
    says(&ran, "has no disk that is not in");

    // And back, by a pool, into images that stand alone.
    let back = guest.path("back");
    fs::create_dir(a.outside(&back)).unwrap();
    a.run(["chmod", "711", &back]).ok();
    a.pool(&guest.name, &back);
    story.relocated(&["--target-pool", &guest.name, "--standalone"]);
    a.virsh(["pool-destroy", &guest.name]).ok();
    a.virsh(["pool-undefine", &guest.name]).ok();
    let [disk, data] = ["disk.qcow2", "data.qcow2"].map(|name| format!("{back}/{name}"));
    assert_eq!((story.backing(&disk), story.backing(&data)), (None, None));
    story.holds_data(&data);
    guest.goes_on(a);
    guest.check_disk(a, &disk, Kind::Boot);
}

/// What a layer held that was deleted goes into the new image.
#[test]
fn a_deleted_template_goes_along() {
    needs_migration!();
    let story = Story::new(Rig::shared(), "relocated-orphan");
    let template = story.guest.path("template.qcow2");
    fs::remove_file(story.a().outside(&template)).unwrap();
    let done = story.relocated(&["--disk", "vda"]);
    let new = done[0]["image"].as_str().unwrap().to_owned();
    assert_eq!(story.backing(&new), None);
    story.guest.goes_on(story.a());
    story.guest.check_disk(story.a(), &new, Kind::Boot);
}

#[test]
fn the_operator_interrupts() {
    needs_migration!();
    let story = Story::new(Rig::shared(), "relocate-int");
    let running = story.start_slowly();
    running.signal("INT");
    let ran = running.end();
    assert_eq!(ran.code(), Some(INTERRUPTED), "{ran}");
    story.stayed();
}

/// Nobody waits for libvirt's job any more; the same command goes on with it.
#[test]
fn killed_and_called_again() {
    needs_migration!();
    let story = Story::new(Rig::shared(), "relocate-kill");
    let running = story.start_slowly();
    running.signal("KILL");
    running.end();
    story.guest.goes_on(story.a());
    let done = story.relocated(&["--disk", "vdb"]);
    assert_eq!(done[0]["went-on"], true, "{:#}", done[0]);
    story.holds_data(done[0]["image"].as_str().unwrap());
    story.guest.goes_on(story.a());
    story.no_records();
}

/// There was room when it was planned.
#[test]
fn the_target_becomes_full() {
    needs_migration!();
    let story = Story::new(Rig::shared(), "relocate-full");
    let running = story.start_slowly();
    let junk = format!("{}/junk", story.goal);
    story.a().run(["dd", "if=/dev/zero", "bs=64k", &format!("of={junk}")]);
    let ran = running.end();
    assert_eq!(ran.code(), Some(6), "{ran}");
    fs::remove_file(story.a().outside(&junk)).unwrap();
    story.stayed();
    story.relocated(&["--disk", "vdb"]);
}

/// Before anything is made, and for all disks before the first one goes.
#[test]
fn what_cannot_go_is_refused() {
    needs_migration!();
    let story = Story::new(Rig::shared(), "relocate-refused");
    let taken = format!("{}/data.qcow2", story.goal);
    fs::write(story.a().outside(&taken), "another's").unwrap();
    let refused = |options: &[&str], code: &str| {
        let ran = story.relocate(&[options, &["--output", "json"]].concat());
        assert_eq!(ran.code(), Some(REFUSED), "{ran}");
        let said: Value = serde_json::from_str(&ran.stdout()).unwrap();
        assert_eq!(said["refusals"][0]["code"], code, "{ran}");
    };
    refused(&[], "name-taken");
    assert!(!story.a().has(format!("{}/disk.qcow2", story.goal)));
    assert_eq!(fs::read(story.a().outside(&taken)).unwrap(), b"another's");
    fs::remove_file(story.a().outside(&taken)).unwrap();
    let junk = format!("{}/junk", story.goal);
    story.a().run(["fallocate", "-l", "130M", &junk]).ok();
    refused(&["--disk", "vdb"], "no-room");
    story.stayed();
    story.a().virsh(["suspend", &story.guest.name]).ok();
    story.a().virsh(["destroy", &story.guest.name]).ok();
    refused(&[], "not-running");
}
