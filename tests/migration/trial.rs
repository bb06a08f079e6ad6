//! What the tests of migration share: running qcowtool on host A as an operator would, and what must be
//! so afterwards, however it ended.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, ExitStatus, Output, Stdio};

pub(crate) use common::binary;
use rig::{Disk, Guest, Host, Kind, Ran, Rig, wait_for};
use serde_json::Value;

/// Returns from a test, with a visible line, where there can be no rig or this build cannot migrate.
macro_rules! needs_migration {
    () => {
        rig::needs_rig!();
        if !$crate::trial::can_migrate() {
            rig::rig::skipped("this build of qcowtool cannot migrate");
            return;
        }
    };
}
pub(crate) use needs_migration;

/// Makes two tests of one story: with nothing on B but libvirt, and with qcowtool there, called by ssh.
macro_rules! both_ways {
    ($($(#[$attribute:meta])* fn $name:ident($way:ident: Way) $body:block)*) => {$(
        mod $name {
            use super::*;

            $(#[$attribute])*
            fn story($way: Way) $body

            #[test]
            fn with_libvirt_only() {
                needs_migration!();
                story(Way::Libvirt);
            }

            #[test]
            fn with_an_agent() {
                needs_migration!();
                story(Way::Agent);
            }
        }
    )*};
}
pub(crate) use both_ways;

/// How B's files are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Through libvirt's storage API; B has a pool over the guest's directory, as CloudStack's hosts have.
    Libvirt,
    /// By qcowtool on B, called through ssh.
    Agent,
}

/// How a run of qcowtool ends; `docs/exit-codes.md`.
pub(crate) const REFUSED: i32 = 2;
pub(crate) const CHANGED: i32 = 3;
pub(crate) const INTERRUPTED: i32 = 130;

/// One guest and the attempts to move it from A to B.
pub(crate) struct Trial<'a> {
    pub(crate) guest: Guest<'a>,
    pub(crate) rig: &'a Rig,
    way: Way,
    /// What was in the guest's directories when [`watch`](Self::watch) was called.
    before: [Listing; 2],
    /// A template that was deleted, kept for comparing with what a retained overlay says.
    deleted: Option<(String, Vec<u8>)>,
}

/// Each file of a directory and of those below: its inode, and when it was last written to.
type Listing = BTreeMap<String, (u64, i64)>;

impl<'a> Trial<'a> {
    pub(crate) fn new(rig: &'a Rig, name: &str, way: Way) -> Self {
        let name = format!("{name}-{}", if way == Way::Agent { "agent" } else { "libvirt" });
        let guest = Guest::new(rig, &name);
        if way == Way::Libvirt {
            rig.b.pool(&name, &guest.directory());
        }
        Self { guest, rig, way, before: Default::default(), deleted: None }
    }

    /// The guest that most stories begin with: an overlay on a template.
    pub(crate) fn on_template(rig: &'a Rig, name: &str, way: Way) -> Self {
        let mut trial = Self::new(rig, name, way);
        trial.guest.run_on_template();
        trial.watch();
        trial
    }

    /// A guest on a disk that stands alone.
    pub(crate) fn alone(rig: &'a Rig, name: &str, way: Way) -> Self {
        let mut trial = Self::new(rig, name, way);
        let disk = trial.disk();
        rig.a.make_template(&disk, &trial.guest.template);
        trial.run(&[Disk::qcow2(disk)]);
        trial
    }

    /// Defines the guest with these disks on A and starts it.
    pub(crate) fn run(&mut self, disks: &[Disk]) {
        self.guest.define(&self.rig.a, disks);
        self.guest.start(&self.rig.a);
        self.watch();
    }

    pub(crate) fn path(&self, file: &str) -> String {
        self.guest.path(file)
    }

    /// The disk that the guest boots from.
    pub(crate) fn disk(&self) -> String {
        self.path("disk.qcow2")
    }

    /// Copies a file of A's to the same place on B.
    pub(crate) fn copy_to_b(&self, file: &str) {
        let path = self.path(file);
        fs::copy(self.rig.a.outside(&path), self.rig.b.outside(&path)).unwrap();
    }

    /// Deletes the template under the running guest, on A.
    pub(crate) fn delete_template(&mut self) {
        let path = self.path("template.qcow2");
        let outside = self.rig.a.outside(&path);
        self.deleted = Some((path, fs::read(&outside).unwrap()));
        fs::remove_file(outside).unwrap();
        self.watch();
    }

    /// Whether the file under its disk was deleted.
    pub(crate) fn lost_its_template(&self) -> bool {
        self.deleted.is_some()
    }

    /// Remembers what is in the guest's directories: from here on, nothing of it may be lost, and what is
    /// new must be explained.
    pub(crate) fn watch(&mut self) {
        self.before = self.rig.hosts().map(|host| self.listing(host));
    }

    fn listing(&self, host: &Host) -> Listing {
        let mut listing = Listing::new();
        let top = host.outside(self.guest.directory());
        let mut rest = vec![top.clone()];
        while let Some(directory) = rest.pop() {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    rest.push(path);
                    continue;
                }
                let name = path.strip_prefix(&top).unwrap().to_string_lossy().into_owned();
                let is = fs::metadata(&path).unwrap();
                // The disks of the running guest change all the time.
                let changes = std::ptr::eq(host, &self.rig.a) && !name.contains("template");
                let written =
                    if changes { 0 } else { is.mtime() * 1_000_000_000 + is.mtime_nsec() };
                listing.insert(name, (is.ino(), written));
            }
        }
        listing
    }

    // --- running qcowtool ------------------------------------------------------------------------

    /// Where this trial's journals are, on A.
    fn state_directory(&self) -> String {
        format!("/var/lib/libvirt/qcowtool/{}", self.guest.name)
    }

    /// qcowtool on A, not yet started.
    fn command(&self, words: &[&str]) -> Command {
        self.command_by(self.way, words)
    }

    fn command_by(&self, way: Way, words: &[&str]) -> Command {
        let mut command = self.rig.a.command(binary());
        command.args(words).args(["--state-dir", &self.state_directory()]);
        if way == Way::Agent && words.contains(&"--to") {
            command.args(["-e", &self.rig.b.remote_shell()]);
        }
        command
    }

    fn moving(&self, verb: &str, options: &[&str]) -> Command {
        let to = self.rig.b.uri();
        let words = [verb, &self.guest.name, "--connect", "qemu:///system", "--to", &to];
        self.command(&[&words, options].concat())
    }

    /// `qcowtool VERB DOMAIN --connect ... --to ... OPTIONS`.
    pub(crate) fn tool(&self, verb: &str, options: &[&str]) -> Ran {
        let output = self.moving(verb, options).output().expect("qcowtool starts");
        Ran::of(format!("qcowtool {verb} {} {}", self.guest.name, options.join(" ")), output)
    }

    pub(crate) fn migrate(&self, options: &[&str]) -> Ran {
        self.tool("migrate", options)
    }

    /// `qcowtool VERB ID`, for the commands that go on with a transaction.
    pub(crate) fn go_on(&self, verb: &str, id: &str) -> Ran {
        let output = self.command(&[verb, id]).output().expect("qcowtool starts");
        Ran::of(format!("qcowtool {verb} {id}"), output)
    }

    /// The plan as JSON.
    #[track_caller]
    pub(crate) fn plan(&self, options: &[&str]) -> Value {
        let ran = self.tool("plan", &[options, &["--output", "json"]].concat());
        let value: Value = serde_json::from_str(&ran.ok()).unwrap_or_else(|e| panic!("{e}: {ran}"));
        if value["plan"].is_object() { value["plan"].clone() } else { value }
    }

    /// The plan as JSON, with B's files reached in this way.
    #[track_caller]
    pub(crate) fn plan_by(&self, way: Way) -> Value {
        let to = self.rig.b.uri();
        let words = ["plan", &self.guest.name, "--to", &to, "--output", "json"];
        let output = self.command_by(way, &words).output().expect("qcowtool starts");
        let ran = Ran::of(format!("qcowtool plan, {way:?}"), output);
        serde_json::from_str(&ran.ok()).unwrap_or_else(|e| panic!("{e}: {ran}"))
    }

    /// Asserts how libvirt would copy, and which row of the decision table each disk is in.
    #[track_caller]
    pub(crate) fn plans(&self, options: &[&str], copy: &str, rows: &[&str]) {
        let plan = self.plan(options);
        assert_eq!(plan["copy"], copy, "{plan:#}");
        let found: Vec<_> =
            plan["disks"].as_array().into_iter().flatten().map(|d| &d["row"]).collect();
        assert_eq!(found, rows, "{plan:#}");
    }

    /// The journals that exist, by the names of their transactions.
    pub(crate) fn transactions(&self) -> Vec<String> {
        let root = self.rig.a.outside(self.state_directory());
        let mut rest = vec![root];
        let mut found = Vec::new();
        while let Some(directory) = rest.pop() {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if entry.path().is_dir() {
                    rest.push(entry.path());
                } else if let Some(id) = name.strip_suffix(".journal") {
                    found.push(id.to_owned());
                }
            }
        }
        found.sort();
        found
    }

    /// Those of them that have not ended.
    #[track_caller]
    pub(crate) fn open_transactions(&self) -> Vec<String> {
        let words = ["transactions", "--open", "--output", "json"];
        let output = self.command(&words).output().expect("qcowtool starts");
        let ran = Ran::of("qcowtool transactions --open".to_owned(), output);
        let listed: Value =
            serde_json::from_str(&ran.ok()).unwrap_or_else(|e| panic!("{e}: {ran}"));
        let ids = listed.as_array().into_iter().flatten();
        ids.map(|one| one["transaction"].as_str().unwrap().to_owned()).collect()
    }

    /// The only transaction there is.
    #[track_caller]
    pub(crate) fn transaction(&self) -> String {
        let [id] = &self.transactions()[..] else { panic!("{:?}", self.transactions()) };
        id.clone()
    }

    /// The guest of CloudStack's case, whose template is deleted, with enough data on a second disk and few
    /// enough writes on the first that a migration takes some seconds, and ends.
    pub(crate) fn slow_orphan(rig: &'a Rig, way: Way) -> Self {
        let mut trial = Self::new(rig, "slow", way);
        trial.run_slow_orphan("none");
        trial
    }

    /// The same for a guest that is there already, with a cache mode that the file systems allow.
    pub(crate) fn run_slow_orphan(&mut self, cache: &'static str) {
        (self.guest.template.burst, self.guest.cache) = (1, cache);
        let (a, disk, template) = (&self.rig.a, self.disk(), self.path("template.qcow2"));
        a.make_template(&template, &self.guest.template);
        a.make_overlay(&disk, &template);
        let data = self.path("data.qcow2");
        a.qemu_img(["create", "-q", "-f", "qcow2", &data, "48M"]).ok();
        a.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 90 0 48M", &data]).ok();
        self.run(&[Disk::qcow2(disk), Disk::qcow2(data)]);
        self.delete_template();
    }

    /// Starts a migration that takes some seconds, and returns when libvirt is at it.
    pub(crate) fn start_slowly(&self, options: &[&str]) -> Running {
        // That is for three streams together.
        let slow = [&["--bandwidth", "18M"], options].concat();
        let mut running = Running::start(self.rig, &mut self.moving("migrate", &slow));
        wait_for(20, "migration under way", || {
            let job = self.rig.a.virsh(["domjobinfo", &self.guest.name]).stdout();
            let done = job.lines().find_map(|l| l.strip_prefix("File processed:").map(str::trim));
            if done.is_some_and(|amount| !amount.starts_with("0.000")) {
                return Some(());
            }
            running.still_runs();
            None
        });
        running
    }

    // --- what must be so afterwards ----------------------------------------------------------------

    /// It arrived: the guest runs on B and only there, its disk is right and is `leaves[0]`, the
    /// guest would start again, the source file is kept under another name, and the directory on B holds
    /// what it held and `leaves`.
    #[track_caller]
    pub(crate) fn arrived(&self, ran: Ran, leaves: &[&str]) {
        ran.ok();
        self.lives_on_b(leaves);
        self.source_is_kept(&self.disk());
    }

    /// See [`arrived`](Self::arrived), of which this is the part about B.
    #[track_caller]
    pub(crate) fn lives_on_b(&self, leaves: &[&str]) {
        let (guest, a, b) = (&self.guest, &self.rig.a, &self.rig.b);
        assert_eq!(guest.state(a), None, "the guest is still known on A");
        assert_eq!(guest.state(b).as_deref(), Some("running"));
        guest.wait_writes(b, guest.writes(a) + 100);
        assert!(!guest.serial(b).contains("BOOT"), "the guest was started anew");
        let disk = self.path(leaves[0]);
        let writes = guest.check_disk(b, &disk, Kind::Boot);
        assert!(writes >= guest.writes(a), "{writes} writes arrived of {}", guest.writes(a));
        self.b_holds(leaves);

        // It would not be the first that works until it is started again.
        let definition = b.virsh(["dumpxml", "--inactive", &guest.name]).ok();
        assert!(definition.contains(&format!("'{disk}'")), "{definition}");
        b.virsh(["suspend", &guest.name]).ok();
        b.virsh(["destroy", &guest.name]).ok();
        guest.start(b);
        guest.goes_on(b);
        let again = guest.check_disk(b, &disk, Kind::Boot);
        assert!(again >= writes, "{again} writes after the next start, {writes} before");
    }

    /// B's directory holds what it held, and these files.
    #[track_caller]
    fn b_holds(&self, leaves: &[&str]) {
        let after = self.listing(&self.rig.b);
        for (name, before) in &self.before[1] {
            assert_eq!(after.get(name), Some(before), "{name} on B is not what it was");
        }
        let new: Vec<_> = after.keys().filter(|name| !self.before[1].contains_key(*name)).collect();
        let mut expected: Vec<_> =
            leaves.iter().filter(|l| !self.before[1].contains_key(**l)).collect();
        expected.sort();
        assert_eq!(new, expected, "new files on B");
    }

    /// The file that the guest left on A is there under a name that says so, and holds what it held.
    #[track_caller]
    pub(crate) fn source_is_kept(&self, disk: &str) {
        let a = &self.rig.a;
        let prefix = format!("{}.migrated-", disk.rsplit('/').next().unwrap());
        let names = a.list(self.guest.directory());
        let kept: Vec<_> = names.iter().filter(|name| name.starts_with(&prefix)).collect();
        let [kept] = kept[..] else { panic!("not one file {prefix}* in {names:?}") };
        assert!(!a.has(disk), "{disk} is still there besides {kept}");
        if let Some((path, content)) = &self.deleted {
            fs::write(a.outside(path), content).unwrap();
        }
        let writes = a.check(&self.path(kept), &self.guest.template, Kind::Boot).unwrap();
        assert!(writes >= self.guest.writes(a), "{writes} writes of {}", self.guest.writes(a));
        if let Some((path, _)) = &self.deleted {
            fs::remove_file(a.outside(path)).unwrap();
        }
    }

    /// It did not arrive: the guest goes on where it was with the disk it had, B has neither the guest nor a
    /// file that it had not, and no file is lost anywhere.
    #[track_caller]
    pub(crate) fn stayed(&self) {
        let (guest, a, b) = (&self.guest, &self.rig.a, &self.rig.b);
        assert_eq!(guest.state(a).as_deref(), Some("running"));
        assert_eq!(guest.state(b), None, "the guest is known on B");
        guest.goes_on(a);
        let job = a.virsh(["domjobinfo", &guest.name]).stdout();
        assert!(job.contains("None"), "a job is left: {job}");
        let there = self.listing(b);
        assert_eq!(there, self.before[1], "files on B");
        let after = self.listing(a);
        assert_eq!(after, self.before[0], "files on A");
        if self.deleted.is_none() {
            let disks = a.virsh(["domblklist", &guest.name]).ok();
            let boot = disks.lines().find_map(|line| line.trim().strip_prefix("vda"));
            guest.check_disk(a, boot.expect("a disk vda").trim(), Kind::Boot);
        }
    }

    /// qcowtool refused, in words that contain these, and changed nothing.
    #[track_caller]
    pub(crate) fn refused(&self, ran: Ran, words: &str) {
        assert_eq!(ran.code(), Some(REFUSED), "{ran}");
        says(&ran, words);
        self.stayed();
    }

    /// Either is right; anything else is not.
    #[track_caller]
    pub(crate) fn arrived_or_refused(&self, ran: Ran, leaves: &[&str]) {
        match ran.code() {
            Some(REFUSED) => self.stayed(),
            _ => self.arrived(ran, leaves),
        }
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let state = self.state_directory();
            eprintln!("--- journals:\n{}", self.rig.a.run(["grep", "-r", "", &state]).stdout());
        }
        if self.way == Way::Libvirt {
            self.rig.b.virsh(["pool-destroy", &self.guest.name]);
            self.rig.b.virsh(["pool-undefine", &self.guest.name]);
        }
    }
}

/// A run of qcowtool under way.
pub(crate) struct Running {
    child: Child,
    /// Files, because a pipe would wait for whoever else holds it.
    said: [tempfile::NamedTempFile; 2],
}

impl Running {
    pub(crate) fn start(rig: &Rig, command: &mut Command) -> Self {
        let said = [0; 2].map(|_| tempfile::NamedTempFile::new_in(rig.directory()).unwrap());
        let [out, err] = [0, 1].map(|i| Stdio::from(said[i].reopen().unwrap()));
        let child = command.stdout(out).stderr(err).spawn();
        Self { child: child.expect("qcowtool starts"), said }
    }

    /// Panics if it has ended.
    #[track_caller]
    pub(crate) fn still_runs(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("it ended early: {}", self.ran(status));
        }
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// What it has said on standard error so far, behind the first `from` bytes.
    pub(crate) fn said_behind(&self, from: usize) -> String {
        let said = fs::read(self.said[1].path()).unwrap();
        String::from_utf8_lossy(said.get(from..).unwrap_or_default()).into_owned()
    }

    /// Sends qcowtool itself a signal, not what waits for it.
    pub(crate) fn signal(&self, signal: &str) {
        assert!(self.try_signal(signal), "it has ended before '{signal}'");
    }

    /// Lets it go on that was sent `STOP`, and what waits for it, which stops as well.
    pub(crate) fn go_on(&self) {
        let waiting = self.child.id().to_string();
        Command::new("kill").args(["-s", "CONT", &waiting]).status().unwrap();
        self.try_signal("CONT");
    }

    /// As [`signal`](Self::signal), if it has not ended.
    pub(crate) fn try_signal(&self, signal: &str) -> bool {
        let waiting = self.child.id();
        let children = format!("/proc/{waiting}/task/{waiting}/children");
        let inner = fs::read_to_string(children).unwrap_or_default();
        !inner.is_empty()
            && Command::new("kill").args(["-s", signal, inner.trim()]).status().unwrap().success()
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) -> Ran {
        let status = self.child.wait().unwrap();
        self.ran(status)
    }

    fn ran(&self, status: ExitStatus) -> Ran {
        let [stdout, stderr] = self.said.each_ref().map(|file| fs::read(file.path()).unwrap());
        Ran::of("qcowtool", Output { status, stdout, stderr })
    }
}

/// Asserts that a refusal has these words in it.
#[track_caller]
pub(crate) fn says(ran: &Ran, words: &str) {
    let said = ran.stdout() + &ran.stderr();
    assert!(said.contains(words), "it does not say '{words}': {ran}");
}

/// Whether the binary has the commands at all; it may have been built without libvirt.
pub(crate) fn can_migrate() -> bool {
    let asked = Command::new(binary()).args(["migrate", "--help"]).stdin(Stdio::null()).output();
    asked.expect("qcowtool starts").status.success()
}
