//! `qcowtool hook` as libvirt calls it: XML on standard input, temporary directories in place of the host's.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{Run, binary, qcowtool};
use fixtures::{Scratch, args, needs_qemu, qemu};
use rig::Ran;
use serde_json::Value;

const UUID: &str = "3b9a37ba-8e1c-4a3f-9c0e-8c1a52a6d6a1";
const SIZE: u64 = 10_000_384;
/// `VIR_MIGRATE_NON_SHARED_INC` with others, as libvirt writes it.
const INCREMENTAL: &str = "0x99";
const FULL: &str = "0x59";

/// A host with one root for images.
struct Host {
    scratch: Scratch,
}

impl Host {
    fn new() -> Self {
        Self::configured("")
    }

    fn configured(more: &str) -> Self {
        let host = Self { scratch: Scratch::new() };
        for directory in ["images", "status"] {
            fs::create_dir(host.path(directory)).unwrap();
        }
        let (root, log) = (host.path("images"), host.path("log"));
        let text = format!("root = {}\nlog = {}\n{more}\n", root.display(), log.display());
        fs::write(host.path("hook.conf"), text).unwrap();
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path(name)
    }

    fn image(&self, name: &str) -> PathBuf {
        self.path("images").join(name)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn called(&self, words: &[&str], xml: &str) -> Ran {
        let mut child = Command::new(binary())
            .args(["hook", "run", "--"])
            .args(words)
            .env("QCOWTOOL_HOOK_CONFIG", self.path("hook.conf"))
            .env("QCOWTOOL_HOOK_STATE", self.path("state"))
            .env("QCOWTOOL_HOOK_STATUS", self.path("status"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It may end without reading.
        let _ = child.stdin.take().unwrap().write_all(xml.as_bytes());
        Ran::of("qcowtool hook", child.wait_with_output().unwrap())
    }

    fn migrate(&self, xml: &str) -> Ran {
        self.called(&["vm", "migrate", "begin", "-"], xml)
    }

    /// QEMU was started with these flags of the API.
    fn started(&self, xml: &str, flags: &str) -> Ran {
        self.status(
            "paused",
            &format!("<job type='none' async='migration in' phase='prepare' flags='{flags}'/>"),
        );
        self.called(&["vm", "started", "begin", "-"], xml)
    }

    fn status(&self, state: &str, job: &str) {
        let text = format!(
            "<domstatus state='{state}' reason='migration' pid='1'>{job}<domain type='kvm'><name>vm</name></domain></domstatus>"
        );
        fs::write(self.path("status").join("vm.xml"), text).unwrap();
    }

    /// The migration ended before the guest ran.
    fn fails(&self, xml: &str) {
        self.status("shutdown", "<job async='migration in' phase='finish3' flags='0x59'/>");
        self.called(&["vm", "stopped", "end", "-"], xml).ok();
        fs::remove_file(self.path("status").join("vm.xml")).unwrap();
        self.called(&["vm", "release", "end", "failed"], xml).ok();
    }
}

/// A guest with one disk; `below` is what the XML names below it.
fn guest(path: &Path, format: &str, below: &str, metadata: &str) -> String {
    let metadata = match metadata {
        "" => String::new(),
        disks => format!(
            "  <metadata>\n    <qcowtool:disks xmlns:qcowtool='urn:qcowtool:disks:1'>{disks}</qcowtool:disks>\n  </metadata>\n"
        ),
    };
    format!(
        "<domain type='kvm'>\n  <name>vm</name>\n  <uuid>{UUID}</uuid>\n{metadata}  <!-- kept -->\n  <devices>\n    \
         <disk type='file' device='disk'>\n      <driver name='qemu' type='{format}'/>\n      \
         <source file='{}'/>\n{below}      <target dev='vda' bus='virtio'/>\n    </disk>\n  </devices>\n</domain>\n",
        path.display()
    )
}

fn chain(path: &Path) -> String {
    format!(
        "      <backingStore type='file'>\n        <format type='qcow2'/>\n        <source file='{}'/>\n        \
         <backingStore/>\n      </backingStore>\n",
        path.display()
    )
}

fn known(more: &str) -> String {
    format!("<qcowtool:disk target='vda' virtual-size='{SIZE}' {more}/>")
}

fn digest(image: &Path) -> String {
    qcowtool(args!["checksum", "--algorithm", "blake3-tree", "--output", "json", image]).json()["blake3-tree"]
        .as_str()
        .unwrap()
        .to_owned()
}

fn info(image: &Path) -> Value {
    serde_json::from_str(&qemu::qemu_img(&args!["info", "--output", "json", image])).unwrap()
}

fn template(path: &Path, pattern: u8) {
    qemu::create(path, "", &SIZE.to_string());
    qemu::qemu_io("qcow2", path, &[&format!("write -P {pattern} 0 3M")]);
}

fn known_base(template: &Path) -> String {
    known(&format!("base-digest='{}' base-size='{SIZE}'", digest(template)))
}

#[test]
fn a_missing_target_is_created_with_the_size_in_the_metadata() {
    needs_qemu!();
    for format in ["qcow2", "raw"] {
        let host = Host::new();
        let disk = host.image("vm.img");
        let ran = host.migrate(&guest(&disk, format, "", &known("")));
        assert_eq!(ran.ok(), "", "the XML stays as it is");
        let info = info(&disk);
        assert_eq!((&info["format"], &info["virtual-size"]), (&format.into(), &SIZE.into()));
        assert_eq!(info.get("backing-filename"), None);
        assert_eq!(fs::metadata(&disk).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(host.log().contains("is created, 10000384 bytes"), "{}", host.log());
    }
}

#[test]
fn a_chain_to_a_file_that_is_not_there_ends_and_nothing_else_changes() {
    needs_qemu!();
    let host = Host::new();
    let (disk, gone) = (host.image("vm.qcow2"), host.image("gone.qcow2"));
    qemu::create(&disk, "", &SIZE.to_string());
    let xml = guest(&disk, "qcow2", &chain(&gone), "");
    let edited = host.migrate(&xml).ok();
    assert_eq!(edited, guest(&disk, "qcow2", "      <backingStore/>\n", ""));
    // The target of another of the same name: what it is replaced by is what is there.
    template(&gone, 3);
    assert_eq!(host.migrate(&xml).ok(), edited);
    // Behind a hook that prints a parsed document.
    let printed = format!("<?xml version=\"1.0\" ?>{}", xml.replace('\'', "\""));
    let wanted = printed.replace(&chain(&gone).replace('\'', "\""), "      <backingStore/>\n");
    assert_eq!(host.migrate(&printed).ok(), wanted);
}

#[test]
fn a_missing_target_becomes_an_overlay_only_over_a_proven_backing_file() {
    needs_qemu!();
    let host = Host::new();
    let (disk, base) = (host.image("vm.qcow2"), host.image("base.qcow2"));
    template(&base, 3);
    let right = guest(&disk, "qcow2", &chain(&base), &known_base(&base));
    assert_eq!(host.migrate(&right).ok(), "", "the XML's chain is that of the new target");
    assert_eq!(info(&disk)["backing-filename"], base.to_str().unwrap());
    host.fails(&right);
    assert!(!disk.exists());
    // Another file of that name and size.
    template(&base, 4);
    let edited = host.migrate(&right).ok();
    assert!(edited.contains("<backingStore/>") && !edited.contains("base.qcow2"), "{edited}");
    assert_eq!(info(&disk).get("backing-filename"), None);
}

#[test]
fn without_a_size_the_migration_is_refused_with_what_helps() {
    let host = Host::new();
    let disk = host.image("vm.qcow2");
    let ran = host.migrate(&guest(&disk, "qcow2", "", ""));
    assert_eq!(ran.code(), Some(2), "{}", ran.stderr());
    for words in
        ["disk 'vda'", "exact size is not known", "qcowtool annotate", "/etc/qcowtool/hook.conf"]
    {
        assert!(ran.stderr().contains(words), "no '{words}': {}", ran.stderr());
    }
    assert!(!disk.exists());
    assert!(host.log().contains("refused"), "{}", host.log());
    let lenient = Host::configured("unknown-size = allow");
    let disk = lenient.image("vm.qcow2");
    assert_eq!(lenient.migrate(&guest(&disk, "qcow2", "", "")).ok(), "");
    assert!(!disk.exists());
}

#[test]
fn nothing_is_created_outside_of_the_roots_or_over_what_is_there() {
    let host = Host::new();
    let other = host.path("elsewhere");
    fs::create_dir(&other).unwrap();
    std::os::unix::fs::symlink(&other, host.image("link")).unwrap();
    let images = host.path("images");
    let ways_out =
        [other.join("vm.qcow2"), host.image("link/vm.qcow2"), images.join("../elsewhere/vm.qcow2")];
    for path in ways_out {
        assert_eq!(host.migrate(&guest(&path, "qcow2", "", &known(""))).ok(), "");
        assert_eq!(fs::read_dir(&other).unwrap().count(), 0, "{}", path.display());
    }
    let there = host.image("vm.qcow2");
    fs::write(&there, "not an image").unwrap();
    assert_eq!(host.migrate(&guest(&there, "qcow2", "", &known(""))).ok(), "");
    assert_eq!(fs::read(&there).unwrap(), b"not an image");
    let dangling = host.image("dangling.qcow2");
    std::os::unix::fs::symlink(other.join("new"), &dangling).unwrap();
    host.migrate(&guest(&dangling, "qcow2", "", &known(""))).ok();
    assert_eq!(fs::read_dir(&other).unwrap().count(), 0);
}

#[test]
fn an_incremental_copy_that_would_leave_garbage_is_refused() {
    needs_qemu!();
    let host = Host::new();
    let (disk, base) = (host.image("vm.qcow2"), host.image("base.qcow2"));
    template(&base, 3);
    let annotated = known_base(&base);
    let refused = |xml: &str, words: &str| {
        let ran = host.started(xml, INCREMENTAL);
        assert_eq!(ran.code(), Some(2), "{}", ran.stderr());
        assert!(ran.stderr().contains(words), "no '{words}': {}", ran.stderr());
        host.started(xml, FULL).ok();
    };
    // An empty stub.
    qemu::create(&disk, "", &SIZE.to_string());
    refused(&guest(&disk, "qcow2", "", ""), "is empty and has no backing file");
    refused(&guest(&disk, "qcow2", "", &annotated), "would lose everything");
    host.started(&guest(&disk, "qcow2", "", &known("base='none'")), INCREMENTAL).ok();
    // The right backing file.
    qemu::qemu_img(&args!["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, disk]);
    host.started(&guest(&disk, "qcow2", &chain(&base), &annotated), INCREMENTAL).ok();
    host.started(&guest(&disk, "qcow2", "", &annotated), INCREMENTAL).ok();
    refused(&guest(&disk, "qcow2", "", ""), "not known what its backing file");
    refused(&guest(&disk, "qcow2", "", &known("base='none'")), "would show through");
    refused(&guest(&disk, "qcow2", &chain(&host.image("x")), &annotated), "its header names");
    // It holds something already.
    qemu::qemu_io("qcow2", &disk, &["write -P 9 1M 64k"]);
    refused(&guest(&disk, "qcow2", "", &annotated), "already holds data");
    // Another backing file of that name.
    template(&base, 4);
    qemu::qemu_img(&args!["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, disk]);
    refused(&guest(&disk, "qcow2", "", &annotated), "does not hold what the source's");
}

#[test]
fn what_is_not_an_arriving_guest_is_never_refused() {
    let host = Host::new();
    let disk = host.image("vm.qcow2");
    fs::write(&disk, "not an image").unwrap();
    let xml = guest(&disk, "qcow2", "", "");
    let started = ["vm", "started", "begin", "-"];
    host.called(&started, &xml).ok();
    assert!(host.log().contains("nothing is refused"), "{}", host.log());
    for (state, job) in
        [("running", "<job type='none' async='start' flags='0x80'/>"), ("running", "")]
    {
        host.status(state, job);
        host.called(&started, &xml).ok();
    }
    for unexpected in [
        "<domstatus/>",
        "junk",
        "<a><b></a>",
        "<domstatus><domain><name>other</name></domain></domstatus>",
    ] {
        fs::write(host.path("status/vm.xml"), unexpected).unwrap();
        host.called(&started, &xml).ok();
    }
    fs::write(host.path("hook.conf"), "nonsense").unwrap();
    host.called(&started, &xml).ok();
    host.called(&["vm", "stopped", "end", "-"], "junk").ok();
    host.called(&["vm", "release", "end", "failed"], "junk").ok();
    host.called(&["vm", "prepare", "begin", "-"], &xml).ok();
    // But a migration to this host is, because what the operator wanted is not known.
    let ran = host.migrate(&xml);
    assert_eq!(ran.code(), Some(1), "{}", ran.stderr());
    assert!(ran.stderr().contains("line 1: is not 'key = value'"), "{}", ran.stderr());
}

#[test]
fn only_what_was_created_for_a_migration_that_failed_is_removed() {
    let host = Host::new();
    let disk = host.image("vm.qcow2");
    let xml = guest(&disk, "qcow2", "", &known("base='none'"));
    let release = |reason: &str| host.called(&["vm", "release", "end", reason], &xml).ok();
    // libvirt gave up before QEMU started; before 10.5 it does not say so.
    for reason in ["failed", "-"] {
        host.migrate(&xml).ok();
        release(reason);
        assert!(!disk.exists(), "{reason}");
    }
    // QEMU ended while the guest was arriving.
    host.migrate(&xml).ok();
    host.started(&xml, FULL).ok();
    host.fails(&xml);
    assert!(!disk.exists());
    // The guest ran, and failed later.
    for state in ["running", "paused"] {
        host.migrate(&xml).ok();
        host.started(&xml, FULL).ok();
        let job = if state == "running" { "<job async='migration in' flags='0x59'/>" } else { "" };
        host.status(state, job);
        host.called(&["vm", "stopped", "end", "-"], &xml).ok();
        release("failed");
        assert!(disk.exists(), "{state}");
        fs::remove_file(&disk).unwrap();
    }
    // Another file has its name by now.
    host.migrate(&xml).ok();
    fs::rename(&disk, host.image("old")).unwrap();
    fs::write(&disk, "of another program").unwrap();
    host.fails(&xml);
    assert_eq!(fs::read(&disk).unwrap(), b"of another program");
    // It was there before.
    host.migrate(&xml).ok();
    host.fails(&xml);
    assert!(disk.exists());
}

#[test]
fn hostile_input_ends_in_one_line() {
    let host = Host::new();
    let disk = host.image("vm.qcow2");
    let cases = [
        String::new(),
        "<domain/>".to_owned(),
        "x".repeat(5 << 20),
        guest(&disk, "qcow2", "", &known("")).replace(UUID, "../../etc"),
    ];
    for xml in cases {
        let ran = host.migrate(&xml);
        assert!(!ran.succeeded(), "{}", ran.stdout());
        assert_eq!(ran.stderr().lines().count(), 1, "{}", ran.stderr());
        assert!(!disk.exists());
    }
    for metadata in
        ["<qcowtool:disk/>", &known("base-digest='x' base-size='1'"), &(known("") + &known(""))]
    {
        let ran = host.migrate(&guest(&disk, "qcow2", "", metadata));
        assert_eq!(ran.code(), Some(2), "{}", ran.stderr());
        assert!(host.log().contains("is not understood"), "{}", host.log());
    }
    for (name, wrong) in [("virtual-size='0x10'", "a number"), ("virtual-size='-1'", "a number")] {
        let xml = guest(&disk, "qcow2", "", &format!("<qcowtool:disk target='vda' {name}/>"));
        assert_eq!(host.migrate(&xml).code(), Some(2));
        assert!(host.log().contains(wrong), "{}", host.log());
    }
    // A name that is no file's.
    host.called(&["../vm", "started", "begin", "-"], &guest(&disk, "qcow2", "", "")).ok();
    assert!(host.log().contains("no name of a file"), "{}", host.log());
}

/// `qcowtool hook ACTION` on directories of its own.
fn hook(host: &Host, words: &[&str]) -> Run {
    let (hooks, config) = (host.path("hooks"), host.path("own.conf"));
    let mut arguments = args!["hook", "--hooks-dir", hooks, "--config", config];
    arguments.extend(words.iter().map(Into::into));
    qcowtool(arguments)
}

#[test]
fn installed_the_script_serves_what_libvirt_calls_it_for() {
    let host = Host::new();
    assert!(hook(&host, &["install"]).stderr().contains("no directory is given"));
    let root = host.path("images");
    let root = root.to_str().unwrap();
    let said = hook(&host, &["install", "--root", root]).ok();
    assert!(said.contains("restart libvirtd"), "{said}");
    let script = host.path("hooks/qemu.d/50-qcowtool");
    assert!(!hook(&host, &["status"]).ok().contains("problem"));
    assert!(!hook(&host, &["install"]).ok().contains("restart libvirtd"), "there was one already");
    assert!(hook(&host, &["install", "--root", root]).stderr().contains("edit its 'root' lines"));

    let disk = host.image("vm.qcow2");
    let call = |words: &[&str], xml: &str| {
        let mut child = Command::new(&script)
            .args(words)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("QCOWTOOL_HOOK_STATE", host.path("state"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let _ = child.stdin.take().unwrap().write_all(xml.as_bytes());
        Ran::of("qcowtool hook", child.wait_with_output().unwrap())
    };
    let configured = fs::read_to_string(host.path("own.conf")).unwrap();
    let log = format!("{configured}log = {}\n", host.path("log").display());
    fs::write(host.path("own.conf"), log).unwrap();
    call(&["vm", "migrate", "begin", "-"], &guest(&disk, "qcow2", "", &known(""))).ok();
    assert!(disk.exists());
    call(&["vm", "prepare", "begin", "-"], "anything").ok();
    // The program goes away: guests start all the same, and a migration to this host says why it does not.
    let text = fs::read_to_string(&script).unwrap();
    fs::write(&script, text.replace("qcowtool='", "qcowtool='/nowhere")).unwrap();
    call(&["vm", "started", "begin", "-"], "").ok();
    let ran = call(&["vm", "migrate", "begin", "-"], "");
    assert!(!ran.succeeded() && ran.stderr().contains("install it again"), "{}", ran.stderr());
    assert!(hook(&host, &["status"]).stdout().contains("problem: '/nowhere"));

    assert!(hook(&host, &["remove"]).ok().contains("is removed"));
    assert!(!script.exists() && host.path("own.conf").exists());
    assert!(hook(&host, &["remove"]).ok().contains("not installed"));
    assert_eq!(hook(&host, &["status"]).code(), Some(6));
}

#[test]
fn hooks_of_others_are_left_alone() {
    let host = Host::new();
    let script = host.path("hooks/qemu.d/50-qcowtool");
    fs::create_dir_all(script.parent().unwrap()).unwrap();
    fs::write(&script, "#!/bin/sh\n").unwrap();
    for action in [vec!["install", "--root", "/srv"], vec!["remove"]] {
        let ran = hook(&host, &action);
        assert_eq!(ran.code(), Some(2), "{}", ran.stderr());
        assert!(ran.stderr().contains("is a script of another program"), "{}", ran.stderr());
    }
    assert_eq!(fs::read(&script).unwrap(), b"#!/bin/sh\n");
    assert!(!host.path("own.conf").exists());
}

#[test]
fn a_backing_file_that_is_no_file_holds_nothing_up() {
    needs_qemu!();
    let host = Host::new();
    let (disk, base) = (host.image("vm.qcow2"), host.image("base.qcow2"));
    assert!(Command::new("mkfifo").arg(&base).status().unwrap().success());
    let digest = "0".repeat(64);
    let metadata = known(&format!("base-digest='{digest}' base-size='{SIZE}'"));
    let edited = host.migrate(&guest(&disk, "qcow2", &chain(&base), &metadata)).ok();
    assert!(edited.contains("<backingStore/>"), "{edited}");
    assert_eq!(info(&disk).get("backing-filename"), None);
}
