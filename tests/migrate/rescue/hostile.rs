//! Processes and images that were made to do harm, and rescues that are cut off.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fixtures::patch::magic;
use fixtures::{Holder, Patch, Scratch, args, needs_qemu, pattern, qemu};

use super::{Found, Guest, names};
use common::{binary, command, qcowtool};

/// Says that a test is not run, in a line that the test harness does not swallow.
fn skipped(why: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let line = format!("SKIPPED: {test}: {why}\n");
    assert!(std::env::var_os("CI").is_none(), "{line}");
    let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// `unshare` with mounts of its own.
fn unshare() -> Command {
    let mut command = Command::new("unshare");
    command.args(if is_root() { &["-m"][..] } else { &["-Urm"][..] });
    command
}

/// Whether mounts of one's own can be had here; says so if not.
fn can_mount() -> bool {
    let mut asked = unshare();
    asked.args(["mount", "-t", "tmpfs", "none", "/mnt"]).stderr(Stdio::null());
    let can = asked.status().is_ok_and(|status| status.success());
    if !can {
        skipped("no mount namespaces can be made here");
    }
    can
}

/// A process that has its own file system at `directory`, with a base of `mebibytes` of noise, an overlay on
/// it, and both open. The base is deleted.
struct Elsewhere {
    holder: Holder,
    directory: PathBuf,
}

impl Elsewhere {
    fn new(scratch: &Scratch, size: &str, mebibytes: usize) -> Self {
        let directory = scratch.subdir("own");
        let content = scratch.file("content", &pattern::noise(11, mebibytes << 20));
        let script = "mount -t tmpfs -o size=$3 none \"$1\" && cp \"$2\" \"$1/base\" && \
                      qemu-img create -q -f qcow2 -b base -F raw \"$1/top\" && \
                      exec qemu-io -f qcow2 \"$1/top\"";
        let holder = Holder::by(
            unshare().args(["sh", "-c", script, "sh"]).args([&directory, &content]).arg(size),
        );
        let own = Self { holder, directory };
        fs::remove_file(own.inside("base")).unwrap();
        own
    }

    /// A file of its file system, as this process can reach it.
    fn inside(&self, name: &str) -> PathBuf {
        let root = format!("/proc/{}/root", self.holder.pid());
        Path::new(&root).join(self.directory.join(name).strip_prefix("/").unwrap())
    }

    fn rescue(&self, options: &[&str]) -> Found {
        let pid = self.holder.pid().to_string();
        let mut arguments = args!["rescue", "--output", "json", "--pid", pid];
        arguments.extend(options.iter().map(std::ffi::OsString::from));
        Found::of(qcowtool(arguments))
    }
}

#[test]
fn a_process_with_mounts_of_its_own_gets_its_file_back_where_it_sees_it() {
    needs_qemu!();
    if !can_mount() {
        return;
    }
    let scratch = Scratch::new();
    let own = Elsewhere::new(&scratch, "16m", 1);
    let found = own.rescue(&["--restore"]).ends(0);
    let base = own.directory.join("base");
    let item = found.item(&base);
    assert_eq!(item["restored"], base.to_str().unwrap());
    assert!(
        item["notes"].to_string().contains("in the mount namespace of the process"),
        "{item:#}"
    );
    assert!(fs::read(own.inside("base")).unwrap() == fs::read(scratch.path("content")).unwrap());
    assert_eq!(names(&own.directory), [""; 0], "it is nobody else's directory");
}

#[test]
fn a_directory_that_covers_the_one_where_the_file_was_gets_nothing() {
    needs_qemu!();
    if !can_mount() {
        return;
    }
    let scratch = Scratch::new();
    let own = Elsewhere::new(&scratch, "16m", 1);
    let other = scratch.subdir("other");
    let pid = own.holder.pid().to_string();
    let mut enter = Command::new("nsenter");
    enter.args(["-t", &pid, "-m"]);
    if !is_root() {
        enter.args(["-U", "--preserve-credentials"]);
    }
    let mounted = enter.args(["mount", "--bind"]).args([&other, &own.directory]).status().unwrap();
    assert!(mounted.success());
    let base = own.directory.join("base");
    let found = own.rescue(&["--restore"]).ends(2);
    assert_eq!(found.item(&base)["code"], "no-directory");
    let safe = scratch.subdir("safe");
    let found = own.rescue(&["--restore", "--to", safe.to_str().unwrap()]).ends(2);
    let item = found.item(&base);
    assert_eq!((&item["result"], &item["restore"]["is"]), (&"saved".into(), &"no".into()));
    assert_eq!(names(&other), [""; 0]);
    assert_eq!(names(&safe).len(), 1);
}

#[test]
fn a_full_file_system_is_left_as_it_was() {
    needs_qemu!();
    if !can_mount() {
        return;
    }
    let scratch = Scratch::new();
    // What is deleted takes its space until it is closed.
    let own = Elsewhere::new(&scratch, "8m", 6);
    let base = own.directory.join("base");
    let found = own.rescue(&["--restore"]).ends(6);
    let item = found.item(&base);
    assert_eq!((&item["result"], &item["kind"]), (&"failed".into(), &"environment".into()));
    assert!(item["hint"].as_str().unwrap().contains("space"), "{item:#}");
    assert_eq!(names(own.inside("")), ["top"]);
}

#[test]
fn too_little_space_elsewhere_is_seen_before() {
    needs_qemu!();
    if !can_mount() {
        return;
    }
    let guest = Guest::new();
    fs::remove_file(guest.template()).unwrap();
    let small = guest.scratch.subdir("small");
    let script = "mount -t tmpfs -o size=64k none \"$1\" && \
                  \"$2\" rescue --pid \"$3\" --to \"$1\" --output json; echo $?; ls -A \"$1\"";
    let output = unshare()
        .args(["sh", "-c", script, "sh"])
        .args([&small, &binary()])
        .arg(guest.pid())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("\"no-space\"") && said.ends_with("}\n2\n"), "{said}");
}

#[test]
fn images_that_are_not_what_the_overlay_says_are_refused() {
    needs_qemu!();
    // Its magic is gone; its header is cut off; its header is nonsense.
    let damages: [fn(&fs::File); 3] = [
        |file| file.write_all_at(b"JUNK", 0).unwrap(),
        |file| file.set_len(60).unwrap(),
        |file| file.write_all_at(&[0xff; 64], 8).unwrap(),
    ];
    for (nth, damage) in damages.into_iter().enumerate() {
        let guest = Guest::new();
        damage(&fs::File::options().write(true).open(guest.template()).unwrap());
        fs::remove_file(guest.template()).unwrap();
        let found = guest.rescue(&["--restore"]).ends(2);
        assert_eq!(found.item(&guest.template())["code"], "other-format", "damage {nth}");
        assert_eq!(names(guest.scratch.path("store")), [""; 0]);
    }
}

#[test]
fn a_base_that_leads_back_to_itself_is_saved_and_not_put_back() {
    needs_qemu!();
    let guest = Guest::new();
    // While it is open, its header begins to name the image above.
    let mut header = Patch::open(guest.template());
    header.set_header_area(112, &[(magic::BACKING_FORMAT, b"qcow2")], true);
    header.set_backing(512, guest.middle().as_os_str().as_bytes()).save();
    let content = fs::read(guest.template()).unwrap();
    fs::remove_file(guest.template()).unwrap();
    fs::remove_file(guest.middle()).unwrap();
    let found = guest.rescue(&["--restore"]).ends(2);
    for name in [guest.template(), guest.middle()] {
        let item = found.item(&name);
        assert_eq!(item["result"], "saved");
        assert!(
            item["unreadable"].is_string() && item["unrestored"]["why"].is_string(),
            "{item:#}"
        );
    }
    let copy = found.item(&guest.template())["path"].as_str().unwrap().to_owned();
    assert!(fs::read(copy).unwrap() == content);
    assert!(!guest.template().exists() && !guest.middle().exists());
}

#[test]
fn odd_names_are_shown_escaped_and_a_mark_in_a_name_is_none() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (odd, marked) = (scratch.path("odd\n\u{1b}[31m"), scratch.path("base (deleted)"));
    for base in [&odd, &marked] {
        qemu::create(base, "", "1M");
    }
    let tops = ["first", "second"].map(|name| scratch.path(name));
    qemu::overlay(&tops[0], &odd, "qcow2", "", "");
    qemu::overlay(&tops[1], &marked, "qcow2", "", "");
    let holders = tops.each_ref().map(|top| Holder::new(&["-f", "qcow2"], top));
    let [first, second] = holders.each_ref().map(|holder| holder.pid().to_string());
    let nothing = qcowtool(args!["rescue", "--pid", second]);
    assert_eq!(nothing.ok(), "nothing that is open is gone\n");
    fs::remove_file(&odd).unwrap();
    fs::remove_file(&marked).unwrap();
    let run = qcowtool(args!["rescue", "--pid", first, "--restore"]);
    let text = run.ok();
    assert!(!text.contains('\u{1b}') && text.contains("odd\\n"), "{text:?}");
    assert!(odd.exists());
    qcowtool(args!["rescue", "--pid", second, "--restore"]).ok();
    assert!(marked.exists());
}

#[test]
fn who_may_not_look_is_told() {
    needs_qemu!();
    if !is_root() {
        return; // everybody may look into his own processes
    }
    let guest = Guest::new();
    fs::remove_file(guest.template()).unwrap();
    let mut asked = command(&args!["rescue", "--pid", guest.pid()]);
    std::os::unix::process::CommandExt::uid(&mut asked, 65534);
    let Ok(output) = asked.output() else {
        return skipped("another user cannot run the program");
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(6), "{said}");
    assert!(said.contains("are not known") && said.contains("as root"), "{said}");
}

/// Starts a rescue of a large base, and calls `then` with its number when it has begun to write.
fn cut_off(then: impl Fn(u32)) -> (Scratch, Holder, Option<i32>) {
    let scratch = Scratch::new();
    let base = scratch.subdir("store").join("base");
    fs::write(&base, pattern::noise(21, 96 << 20)).unwrap();
    let top = scratch.path("top");
    qemu::overlay(&top, "store/base", "raw", "", "");
    let holder = Holder::new(&["-f", "qcow2"], &top);
    fs::hard_link(&base, scratch.path("original")).unwrap();
    fs::remove_file(&base).unwrap();
    let pid = holder.pid().to_string();
    let mut child = command(&args!["rescue", "--pid", pid, "--restore"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while names(scratch.path("store")).is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(60), "never began to write");
        std::thread::yield_now();
    }
    then(child.id());
    let code = child.wait().unwrap().code();
    (scratch, holder, code)
}

fn signal(name: &str, process: u32) {
    let kill = format!("kill -{name} {process}");
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
}

#[test]
fn a_kill_in_the_middle_leaves_no_file_under_a_final_name_and_the_next_run_ends_it() {
    needs_qemu!();
    let (scratch, holder, _) = cut_off(|process| signal("KILL", process));
    let store = scratch.path("store");
    let original = fs::read(scratch.path("original")).unwrap();
    for name in names(&store) {
        let whole = fs::read(store.join(&name)).unwrap() == original;
        assert!(name.contains(".part-") || whole, "{name} is half a file");
    }
    let pid = holder.pid().to_string();
    qcowtool(args!["rescue", "--pid", pid, "--restore"]).ok();
    assert_eq!(names(&store), ["base"]);
    assert!(fs::read(store.join("base")).unwrap() == original);
}

#[test]
fn a_signal_in_the_middle_leaves_nothing_half_made() {
    needs_qemu!();
    let (scratch, _holder, code) = cut_off(|process| signal("TERM", process));
    let left = names(scratch.path("store"));
    match code {
        Some(143) => assert_eq!(left, [""; 0]),
        // It was faster.
        code => assert_eq!((code, left), (Some(0), vec!["base".to_owned()])),
    }
}
