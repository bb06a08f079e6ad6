//! `qcowtool flatten --live` on a real libvirt host: the disk of a guest that runs comes to stand alone, and what it
//! holds survives the death of QEMU right afterwards. What libvirt does by itself is shown beside it.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::trial::{INTERRUPTED, REFUSED, Running, Trial, Way, needs_migration, says};
use rig::{Disk, Guest, Host, Kind, Ran, Rig, wait_for};
use serde_json::Value;

const METHODS: [&str; 2] = ["pull", "copy"];

/// A guest on A with two disks on templates: it boots from the one and writes to it all the time, and leaves the
/// other as it is. What the second must hold is known to the byte, whatever happens.
struct Story<'a> {
    guest: Guest<'a>,
    rig: &'a Rig,
    data: tempfile::NamedTempFile,
}

impl<'a> Story<'a> {
    fn new(rig: &'a Rig, name: &str) -> Self {
        Self::in_file_system(rig, name, None)
    }

    /// With a file system of its own of so many mebibytes.
    fn in_file_system(rig: &'a Rig, name: &str, mebibytes: Option<u32>) -> Self {
        let mut guest = Guest::new(rig, name);
        if let Some(mebibytes) = mebibytes {
            rig.a.small_file_system(&guest.directory(), mebibytes);
            guest.cache = "writeback"; // some kernels' tmpfs can do no more
        }
        let a = &rig.a;
        let [disk, template, data, base] =
            ["disk.qcow2", "template.qcow2", "data.qcow2", "base.qcow2"].map(|f| guest.path(f));
        a.make_template(&template, &guest.template);
        a.make_overlay(&disk, &template);
        a.qemu_img(["create", "-q", "-f", "qcow2", &base, "64M"]).ok();
        let words = ["-c", "write -q -P 90 0 32M", "-c", "write -q -z 40M 1M"];
        a.run(["qemu-io", "-f", "qcow2"].iter().chain(&words).chain(&[&*base])).ok();
        a.make_overlay(&data, &base);
        a.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 17 5M 3M", &data]).ok();
        let story = Self { data: a.raw_copy(&data), rig, guest };
        story.guest.define(a, &[Disk::qcow2(disk), Disk::qcow2(data)]);
        story.guest.start(a);
        story
    }

    fn a(&self) -> &Host {
        &self.rig.a
    }

    fn path(&self, file: &str) -> String {
        self.guest.path(file)
    }

    fn delete_templates(&self) {
        for file in ["template.qcow2", "base.qcow2"] {
            fs::remove_file(self.a().outside(self.path(file))).unwrap();
        }
    }

    fn command(&self, disk: &str, options: &[&str]) -> Command {
        let mut command = self.a().command(crate::trial::binary());
        command.args(["flatten", "--live", &self.guest.name, disk]).args(options);
        command
    }

    fn flatten(&self, disk: &str, options: &[&str]) -> Ran {
        let output = self.command(disk, options).output().expect("qcowtool starts");
        Ran::of(format!("qcowtool flatten --live {disk} {}", options.join(" ")), output)
    }

    /// What it says as JSON, after it ended well.
    #[track_caller]
    fn flattened(&self, disk: &str, options: &[&str]) -> Value {
        let ran = self.flatten(disk, &[options, &["--output", "json"]].concat());
        serde_json::from_str(&ran.ok()).unwrap_or_else(|e| panic!("{e}: {ran}"))
    }

    /// Starts one that takes a while, and returns when libvirt is at it.
    fn start_slowly(&self, method: &str) -> Running {
        let mut command = self.command("vdb", &["--method", method, "--bandwidth", "4M"]);
        let mut running = Running::start(self.rig, &mut command);
        wait_for(20, "job under way", || {
            running.still_runs();
            self.job("vdb").map(drop)
        });
        running
    }

    /// libvirt's words for the job on a disk.
    fn job(&self, disk: &str) -> Option<String> {
        let said = self.a().virsh(["blockjob", &self.guest.name, disk, "--raw"]).stdout();
        said.contains("type=").then_some(said)
    }

    /// Kills QEMU, as the machine's running out of memory does.
    fn kill(&self) {
        let a = self.a();
        let pid = a.run(["cat", &format!("/run/libvirt/qemu/{}.pid", self.guest.name)]).ok();
        a.run(["kill", "-KILL", pid.trim()]).ok();
        wait_for(20, "end of the guest", || {
            (self.guest.state(a).as_deref() == Some("shut off")).then_some(())
        });
    }

    /// What an image holds by itself, whatever its header says that is below it.
    fn content(&self, file: &str) -> Vec<u8> {
        fs::read(self.a().raw_copy(&self.path(file)).path()).unwrap()
    }

    fn expected(&self) -> Vec<u8> {
        fs::read(self.data.path()).unwrap()
    }

    /// `qemu-img check` finds nothing worse than space that nothing uses, as after any death of QEMU.
    #[track_caller]
    fn is_consistent(&self, file: &str) {
        let ran = self.a().qemu_img(["check", "-q", "-U", &self.path(file)]);
        assert!(matches!(ran.code(), Some(0 | 3)), "{ran}");
    }

    /// The image stands alone, is consistent, and holds what the second disk must hold.
    #[track_caller]
    fn holds_all(&self, file: &str) {
        self.is_consistent(file);
        let info = self.a().qemu_img(["info", "-U", &self.path(file)]).ok();
        assert!(!info.contains("backing file"), "{info}");
        assert!(self.content(file) == self.expected(), "{file} lost something");
    }

    /// The second disk is what it was, over its base, no job runs, and the guest goes on.
    #[track_caller]
    fn stayed(&self) {
        wait_for(20, "end of the job", || self.job("vdb").is_none().then_some(()));
        let disks = self.a().virsh(["domblklist", &self.guest.name]).ok();
        assert!(disks.contains(&self.path("data.qcow2")), "{disks}");
        let info = self.a().qemu_img(["info", "-U", &self.path("data.qcow2")]).ok();
        assert!(info.contains("base.qcow2"), "{info}");
        self.guest.goes_on(self.a());
        assert!(self.content("data.qcow2") == self.expected());
        self.no_marks();
    }

    /// No run is taken for one that was cut off.
    #[track_caller]
    fn no_marks(&self) {
        let uuid = self.a().virsh(["domuuid", &self.guest.name]).ok();
        let marks = self.a().list("/var/lib/libvirt/qcowtool/live");
        assert!(!marks.iter().any(|mark| mark.contains(uuid.trim())), "{marks:?}");
    }

    /// It was refused with this code, and nothing was changed.
    #[track_caller]
    fn refused(&self, disk: &str, options: &[&str], code: &str) {
        let files = self.a().list(self.guest.directory());
        let ran = self.flatten(disk, &[options, &["--output", "json"]].concat());
        assert_eq!(ran.code(), Some(REFUSED), "{ran}");
        let said: Value =
            serde_json::from_str(&ran.stdout()).unwrap_or_else(|e| panic!("{e}: {ran}"));
        let all = said["refusals"].as_array().unwrap();
        assert!(all.iter().any(|refusal| refusal["code"] == code), "no {code}: {ran}");
        assert_eq!(self.a().list(self.guest.directory()), files);
    }
}

/// What libvirt and QEMU do by themselves, and what all this is about: libvirt says that the pull is done, and
/// the image that is left when QEMU dies is consistent, stands on nothing, and has lost its template.
#[test]
fn a_plain_pull_is_lost_with_qemu() {
    needs_migration!();
    let story = Story::new(Rig::shared(), "plain");
    story.a().virsh(["blockpull", &story.guest.name, "vdb", "--wait"]).ok();
    story.kill();
    let data = story.path("data.qcow2");
    let info = story.a().qemu_img(["info", &data]).ok();
    assert!(!info.contains("backing file"), "{info}");
    story.is_consistent("data.qcow2");
    assert!(story.content("data.qcow2") != story.expected(), "QEMU wrote it all: good news");

    // The way back that qcowtool tells, where the base is still there.
    let base = story.path("base.qcow2");
    story.a().qemu_img(["rebase", "-u", "-b", &base, "-F", "qcow2", &data]).ok();
    assert!(story.content("data.qcow2") == story.expected());
}

/// The main case: the templates are deleted, the guest runs, both its disks come to stand alone, and QEMU is
/// killed right afterwards.
fn what_is_flattened_survives(method: &str) {
    needs_migration!();
    let rig = Rig::shared();
    let story = Story::new(rig, &format!("survives-{method}"));
    let template = story.a().outside(story.path("template.raw"));
    story.guest.template.write(&template);
    story.delete_templates();
    let image = |name: &str| match method {
        "copy" => format!("{name}-flat.qcow2"),
        _ => format!("{name}.qcow2"),
    };
    for (target, name) in [("vda", "disk"), ("vdb", "data")] {
        let done = story.flattened(target, &["--method", method]);
        assert_eq!(done["image"], story.path(&image(name)), "{done:#}");
        assert_eq!(done["tables-compared"], method == "pull", "{done:#}");
    }
    story.kill();
    story.holds_all(&image("data"));
    // Of what the guest wrote without a flush of its own, some may be lost: not of the template.
    let boot = story.content(&image("disk"));
    let unwritten = 7 << 20;
    assert!(boot[..unwritten] == fs::read(&template).unwrap()[..unwritten], "the template is lost");
    story.is_consistent(&image("disk"));
    story.no_marks();

    // And it starts again, from what its definition says.
    story.guest.start(story.a());
    story.guest.goes_on(story.a());
    let disks = story.a().virsh(["domblklist", &story.guest.name]).ok();
    assert!(disks.contains(&story.path(&image("data"))), "{disks}");
}

#[test]
fn a_pull_survives_the_death_of_qemu() {
    what_is_flattened_survives("pull");
}

#[test]
fn a_copy_survives_the_death_of_qemu() {
    what_is_flattened_survives("copy");
}

/// Every sector that the guest writes meanwhile is there.
#[test]
fn the_guest_writes_all_the_time() {
    needs_migration!();
    for method in METHODS {
        let story = Story::new(Rig::shared(), &format!("writes-{method}"));
        story.delete_templates();
        let done = story.flattened("vda", &["--method", method, "--bandwidth", "8M"]);
        let image = done["image"].as_str().unwrap().to_owned();
        story.guest.goes_on(story.a());
        story.guest.check_disk(story.a(), &image, Kind::Boot);
    }
}

/// Afterwards it is a disk like any other that stands alone, and migrates as one.
#[test]
fn afterwards_it_migrates_as_a_disk_without_template() {
    needs_migration!();
    let mut trial = Trial::on_template(Rig::shared(), "migrates", Way::Libvirt);
    trial.delete_template();
    trial.plans(&[], "full", &["D08a"]);
    let words = ["flatten", "--live", &*trial.guest.name, "vda"];
    let output = trial.rig.a.command(crate::trial::binary()).args(words).output().unwrap();
    Ran::of("qcowtool flatten --live", output).ok();
    trial.watch();
    trial.plans(&[], "full", &["D16"]);
    trial.arrived(trial.migrate(&[]), &["disk.qcow2"]);
}

/// A base that others stand on too stays as it is.
#[test]
fn a_shared_base_is_not_touched() {
    needs_migration!();
    let story = Story::new(Rig::shared(), "shared");
    let base = story.a().outside(story.path("base.qcow2"));
    let before = fs::read(&base).unwrap();
    let plan = story.flattened("vdb", &["--dry-run"]);
    assert_eq!(plan["below"][0]["path"], story.path("base.qcow2"));
    assert_eq!(plan["below"][0]["deleted"], false);
    // 32 MiB, less the 3 that the overlay holds itself.
    assert_eq!(plan["copied-bytes"], 29 << 20);
    assert!(plan["grows-bytes"].as_u64().unwrap() >= 29 << 20);
    story.stayed();
    let done = story.flattened("vdb", &[]);
    assert!(done["length-bytes"].as_u64() <= plan["length-bytes"].as_u64(), "{plan:#} {done:#}");
    story.holds_all("data.qcow2");
    assert!(fs::read(&base).unwrap() == before, "the base was changed");
}

/// libvirt has forgotten its start, and QEMU still holds the templates.
#[test]
fn after_libvirtd_was_started_anew() {
    needs_migration!();
    let rig = Rig::up();
    for method in METHODS {
        let story = Story::new(&rig, &format!("anew-{method}"));
        story.delete_templates();
        rig.a.stop_daemon();
        rig.a.start_daemon();
        let image = story.flattened("vdb", &["--method", method])["image"].clone();
        story.kill();
        story.holds_all(Path::new(image.as_str().unwrap()).file_name().unwrap().to_str().unwrap());
    }
}

#[test]
fn libvirtd_is_started_anew_meanwhile() {
    needs_migration!();
    let rig = Rig::up();
    for (method, image) in [("pull", "data.qcow2"), ("copy", "data-flat.qcow2")] {
        let story = Story::new(&rig, &format!("meanwhile-{method}"));
        let running = story.start_slowly(method);
        rig.a.stop_daemon();
        rig.a.start_daemon();
        running.end().ok();
        story.guest.goes_on(&rig.a);
        story.kill();
        story.holds_all(image);
        story.no_marks();
    }
}

#[test]
fn the_operator_interrupts() {
    needs_migration!();
    for method in METHODS {
        let story = Story::new(Rig::shared(), &format!("interrupted-{method}"));
        let files = story.a().list(story.guest.directory());
        let running = story.start_slowly(method);
        running.signal("INT");
        let ran = running.end();
        assert_eq!(ran.code(), Some(INTERRUPTED), "{ran}");
        assert!(story.job("vdb").is_none(), "the job was not waited for");
        story.stayed();
        assert_eq!(story.a().list(story.guest.directory()), files, "a new image is left");
        // It is no obstacle to the next.
        story.flatten("vdb", &["--method", method]).ok();
    }
}

/// Nobody waits for libvirt's job any more; the same command goes on with it.
#[test]
fn killed_and_called_again() {
    needs_migration!();
    for (method, image) in [("pull", "data.qcow2"), ("copy", "data-flat.qcow2")] {
        let story = Story::new(Rig::shared(), &format!("again-{method}"));
        let running = story.start_slowly(method);
        running.signal("KILL");
        running.end();
        let done = story.flattened("vdb", &["--method", method]);
        assert_eq!(done["went-on"], true, "{done:#}");
        story.kill();
        story.holds_all(image);
        story.no_marks();
    }
}

/// The job came to its end while nobody looked: what was pulled is not on the disk until the same command is called
/// again.
#[test]
fn killed_and_called_again_when_all_was_pulled() {
    needs_migration!();
    let story = Story::new(Rig::shared(), "pulled");
    let running = story.start_slowly("pull");
    running.signal("KILL");
    running.end();
    story.a().virsh(["blockjob", &story.guest.name, "vdb", "--bandwidth", "0"]).ok();
    wait_for(60, "end of the pull", || story.job("vdb").is_none().then_some(()));
    let done = story.flattened("vdb", &[]);
    assert_eq!(done["went-on"], true, "{done:#}");
    story.kill();
    story.holds_all("data.qcow2");
}

/// The hole itself: QEMU dies after the pull and before the flush. That is found out, and the way back is told.
#[test]
fn what_was_lost_is_not_called_done() {
    needs_migration!();
    let story = Story::new(Rig::shared(), "lost");
    let running = story.start_slowly("pull");
    running.signal("KILL");
    running.end();
    story.a().virsh(["blockjob", &story.guest.name, "vdb", "--bandwidth", "0"]).ok();
    wait_for(60, "end of the pull", || story.job("vdb").is_none().then_some(()));
    story.kill();
    let ran = story.flatten("vdb", &[]);
    assert_eq!(ran.code(), Some(4), "{ran}");
    says(&ran, "qemu-img rebase -u");
    let (data, base) = (story.path("data.qcow2"), story.path("base.qcow2"));
    story.a().qemu_img(["rebase", "-u", "-b", &base, "-F", "qcow2", &data]).ok();
    assert!(story.content("data.qcow2") == story.expected());
}

#[test]
fn a_time_limit() {
    needs_migration!();
    for method in METHODS {
        let story = Story::new(Rig::shared(), &format!("limit-{method}"));
        let options = ["--method", method, "--bandwidth", "1M", "--timeout", "1"];
        let ran = story.flatten("vdb", &options);
        assert_eq!(ran.code(), Some(6), "{ran}");
        says(&ran, "not done after 1 second");
        story.stayed();
    }
}

/// There was room when it was planned. QEMU may stop the guest then, as it does for any guest that finds its disk
/// full; the disk has the chain that it had.
#[test]
fn the_disk_becomes_full() {
    needs_migration!();
    let rig = Rig::up();
    for method in METHODS {
        let story = Story::in_file_system(&rig, &format!("full-{method}"), Some(220));
        let running = story.start_slowly(method);
        let junk = story.path("junk");
        rig.a.run(["dd", "if=/dev/zero", "bs=64k", &format!("of={junk}")]);
        let ran = running.end();
        assert_eq!(ran.code(), Some(6), "{ran}");
        fs::remove_file(rig.a.outside(&junk)).unwrap();
        rig.a.virsh(["resume", &story.guest.name]);
        story.stayed();
    }
}

#[test]
fn too_little_room_is_refused() {
    needs_migration!();
    let rig = Rig::up();
    let story = Story::in_file_system(&rig, "small", Some(100));
    METHODS.iter().for_each(|method| story.refused("vdb", &["--method", method], "no-room"));
    // Elsewhere there is room.
    let target = format!("{}/small-elsewhere.qcow2", rig::host::IMAGES);
    story.flatten("vdb", &["--method", "copy", "--target", &target]).ok();
    story.kill();
    let content = fs::read(rig.a.raw_copy(&target).path()).unwrap();
    assert!(content == story.expected());
}

#[test]
fn another_job_on_the_disk_is_refused() {
    needs_migration!();
    let story = Story::new(Rig::shared(), "busy");
    let name = &story.guest.name;
    story.a().virsh(["blockpull", name, "vdb", "--bandwidth", "1"]).ok();
    METHODS.iter().for_each(|method| story.refused("vdb", &["--method", method], "busy"));
    story.a().virsh(["blockjob", name, "vdb", "--abort"]).ok();
    story.stayed();
}

#[test]
fn what_makes_no_sense_is_refused() {
    needs_migration!();
    let story = Story::new(Rig::shared(), "senseless");
    let a = story.a();
    fs::write(a.outside(story.path("data-flat.qcow2")), "somebody's").unwrap();
    story.refused("vdb", &["--method", "copy"], "name-taken");
    story.flatten("vdb", &[]).ok();
    story.refused("vdb", &[], "stands-alone");
    assert_eq!(story.flatten("vdz", &[]).code(), Some(1));
    a.virsh(["suspend", &story.guest.name]).ok();
    a.virsh(["destroy", &story.guest.name]).ok();
    story.refused("vda", &[], "not-running");
}

/// libvirt does not make QEMU write out the disks of a guest that stands still already.
#[test]
fn a_paused_guest_is_copied_and_stays_paused() {
    needs_migration!();
    let story = Story::new(Rig::shared(), "paused");
    story.delete_templates();
    story.a().virsh(["suspend", &story.guest.name]).ok();
    story.refused("vdb", &[], "paused");
    story.flatten("vdb", &["--method", "copy"]).ok();
    assert_eq!(story.guest.state(story.a()).as_deref(), Some("paused"));
    story.kill();
    story.holds_all("data-flat.qcow2");
}
