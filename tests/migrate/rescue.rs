//! `rescue` on real files: bases that were deleted while a process (qemu-io) holds them open come back as they
//! were, and what must not be copied or put back is not.

mod candidates;
mod hostile;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use common::{Run, qcowtool};
use fixtures::{Holder, Scratch, args, needs_qemu, pattern, qemu};
use serde_json::Value;

/// A template in one directory, a layer and an overlay on it in another, and a process that has them open.
struct Guest {
    scratch: Scratch,
    holder: Option<Holder>,
    /// What the guest sees.
    disk: Vec<u8>,
}

impl Guest {
    fn new() -> Self {
        Self::prepared(|_| {})
    }

    /// `before` may do something to the images before they are opened.
    fn prepared(before: impl Fn(&Self)) -> Self {
        let mut guest = Self { scratch: Scratch::new(), holder: None, disk: Vec::new() };
        guest.scratch.subdir("store");
        guest.scratch.subdir("volumes");
        qemu::create(guest.template(), "cluster_size=4k", "4M");
        let content = guest.scratch.file("content", &pattern::mixed(1, 1 << 20));
        let write = format!("write -q -s {} 0 1M", content.display());
        qemu::qemu_io("qcow2", guest.template(), &[write]);
        qemu::overlay(guest.middle(), "../store/template", "qcow2", "", "");
        qemu::qemu_io("qcow2", guest.middle(), &["write -q -P 7 512k 64k"]);
        qemu::overlay(guest.top(), guest.middle(), "qcow2", "", "");
        qemu::qemu_io("qcow2", guest.top(), &["write -q -P 9 2M 64k"]);
        before(&guest);
        guest.disk = qemu::raw_of("qcow2", guest.top());
        guest.holder = Some(Holder::new(&["-f", "qcow2"], &guest.top()));
        guest
    }

    fn template(&self) -> PathBuf {
        self.scratch.path("store/template")
    }

    fn middle(&self) -> PathBuf {
        self.scratch.path("volumes/middle")
    }

    fn top(&self) -> PathBuf {
        self.scratch.path("volumes/top")
    }

    fn pid(&self) -> String {
        self.holder.as_ref().unwrap().pid().to_string()
    }

    /// `rescue --pid` with JSON.
    fn rescue(&self, options: &[&str]) -> Found {
        let mut arguments = args!["rescue", "--output", "json", "--pid", self.pid()];
        arguments.extend(options.iter().map(OsString::from));
        Found::of(qcowtool(arguments))
    }

    /// Ends the process, and asserts that the disk is what it was.
    #[track_caller]
    fn is_as_it_was(&mut self) {
        self.holder = None;
        assert!(qemu::raw_of("qcow2", self.top()) == self.disk, "the disk is another one");
    }
}

/// What a run found and did.
struct Found {
    run: Run,
    json: Value,
}

impl Found {
    #[track_caller]
    fn of(run: Run) -> Self {
        let json = serde_json::from_str(&run.stdout())
            .unwrap_or_else(|error| panic!("{error}: {}{}", run.stdout(), run.stderr()));
        Self { run, json }
    }

    /// The item about the file that had this name.
    #[track_caller]
    fn item(&self, name: &Path) -> &Value {
        let items = self.json["items"].as_array().unwrap();
        let item = items.iter().find(|item| item["name"] == name.to_str().unwrap());
        item.unwrap_or_else(|| panic!("no {} in {:#}", name.display(), self.json))
    }

    #[track_caller]
    fn ends(self, code: i32) -> Self {
        assert_eq!(self.run.code(), Some(code), "{:#}\n{}", self.json, self.run.stderr());
        self
    }
}

fn names(directory: impl AsRef<Path>) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

fn tree_hash(image: &Path) -> String {
    let arguments = args!["checksum", "--algorithm", "blake3-tree", "--output", "json", image];
    qcowtool(arguments).json()["blake3-tree"].as_str().unwrap().to_owned()
}

#[test]
fn a_deleted_base_is_copied_as_it_was_and_the_copy_is_found_again() {
    needs_qemu!();
    let guest = Guest::new();
    let template = guest.template();
    fs::set_permissions(&template, fs::Permissions::from_mode(0o444)).unwrap();
    let before = (fs::read(&template).unwrap(), fs::metadata(&template).unwrap());
    let hash = tree_hash(&template);
    fs::remove_file(&template).unwrap();

    let plan = guest.rescue(&["--dry-run"]).ends(0);
    let item = plan.item(&template);
    assert_eq!(item["action"], "save");
    assert_eq!(item["needed-by"], serde_json::json!([guest.middle()]));
    assert_eq!(item["virtual-size"], 4 << 20);
    assert_eq!(names(guest.scratch.path("store")), [""; 0], "a dry run makes nothing");

    let found = guest.rescue(&[]).ends(0);
    let item = found.item(&template);
    assert_eq!(item["result"], "saved");
    assert_eq!(item["tree-hash"], hash);
    assert_eq!(item["found"], false);
    let copy = PathBuf::from(item["path"].as_str().unwrap());
    assert_eq!(item["copy"], copy.to_str().unwrap());
    let name = copy.file_name().unwrap().to_str().unwrap();
    assert!(name.starts_with("template.rescued-"), "{name}");
    assert_eq!(names(guest.scratch.path("store")), [name]);
    assert!(fs::read(&copy).unwrap() == before.0, "the copy is another file");
    let after = fs::metadata(&copy).unwrap();
    let kept = |status: &fs::Metadata| (status.mode(), status.uid(), status.gid(), status.mtime());
    assert_eq!(kept(&after), kept(&before.1));

    // Once more, and nothing is copied a second time.
    let again = guest.rescue(&[]).ends(0);
    assert_eq!(again.item(&template)["found"], true);
    assert_eq!(again.item(&template)["path"], copy.to_str().unwrap());
    assert_eq!(fs::metadata(&copy).unwrap().ino(), after.ino());
}

#[test]
fn several_layers_come_back_under_their_names_and_the_disk_is_as_it_was() {
    needs_qemu!();
    let mut guest = Guest::new();
    fs::remove_file(guest.template()).unwrap();
    fs::remove_file(guest.middle()).unwrap();
    let found = guest.rescue(&["--restore"]).ends(0);
    for name in [guest.template(), guest.middle()] {
        assert_eq!(found.item(&name)["restored"], name.to_str().unwrap());
    }
    assert_eq!(names(guest.scratch.path("store")), ["template"]);
    assert_eq!(names(guest.scratch.path("volumes")), ["middle", "top"]);
    // What is back needs nothing more.
    let again = guest.rescue(&["--restore"]).ends(0);
    assert_eq!(again.item(&guest.template())["result"], "nothing");
    assert_eq!(names(guest.scratch.path("store")), ["template"]);
    guest.is_as_it_was();
}

#[test]
fn a_copy_goes_to_another_directory_and_one_comes_back() {
    needs_qemu!();
    let mut guest = Guest::new();
    let safe = guest.scratch.subdir("safe");
    fs::remove_file(guest.template()).unwrap();
    let to = safe.to_str().unwrap().to_owned();
    let found = guest.rescue(&["--to", &to, "--restore"]).ends(0);
    let item = found.item(&guest.template());
    assert_eq!(item["restored"], guest.template().to_str().unwrap());
    let copy = PathBuf::from(item["path"].as_str().unwrap());
    assert_eq!(copy.parent(), Some(safe.as_path()));
    assert!(fs::read(&copy).unwrap() == fs::read(guest.template()).unwrap());
    assert_eq!(names(guest.scratch.path("store")), ["template"]);
    guest.is_as_it_was();
}

#[test]
fn a_raw_base_is_known_by_what_stands_on_it() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (base, top) = (scratch.path("base.img"), scratch.path("top.qcow2"));
    pattern::write_raw(&base, 8 << 20, &[(4 << 20, &pattern::noise(3, 300_000))]);
    qemu::overlay(&top, "base.img", "raw", "", "");
    let disk = qemu::raw_of("qcow2", &top);
    let holder = Holder::new(&["-f", "qcow2"], &top);
    let allocated = fs::metadata(&base).unwrap().blocks();
    fs::remove_file(&base).unwrap();
    let pid = holder.pid().to_string();
    let run = qcowtool(args!["rescue", "--output", "json", "--pid", pid, "--restore"]);
    let found = Found::of(run).ends(0);
    assert_eq!(found.item(&base)["format"], "raw");
    drop(holder);
    assert!(qemu::raw_of("qcow2", &top) == disk);
    let blocks = fs::metadata(&base).unwrap().blocks();
    assert!(blocks <= allocated + 64, "holes are gone: {blocks} blocks of {allocated}");
}

#[test]
fn what_the_guest_writes_to_is_never_copied() {
    needs_qemu!();
    let guest = Guest::new();
    fs::remove_file(guest.top()).unwrap();
    fs::remove_file(guest.template()).unwrap();
    let found = guest.rescue(&[]).ends(2);
    let active = found.item(&guest.top());
    assert_eq!((&active["action"], &active["result"]), (&"refuse".into(), &"refused".into()));
    assert_eq!(active["code"], "active-layer");
    // The reference of the deleted overlay still counts.
    assert_eq!(found.item(&guest.template())["result"], "saved");
    assert_eq!(names(guest.scratch.path("volumes")), ["middle"]);
}

#[test]
fn the_top_of_a_disk_that_is_only_read_is_no_base() {
    needs_qemu!();
    let mut guest = Guest::new();
    guest.holder = Some(Holder::new(&["-r", "-f", "qcow2"], &guest.middle()));
    fs::remove_file(guest.middle()).unwrap();
    let found = guest.rescue(&[]).ends(2);
    assert_eq!(found.item(&guest.middle())["code"], "no-base");
}

#[test]
fn a_base_that_somebody_may_write_to_is_not_copied() {
    needs_qemu!();
    let guest = Guest::new();
    let writer = fs::File::options().append(true).open(guest.template()).unwrap();
    fs::remove_file(guest.template()).unwrap();
    let found = guest.rescue(&[]).ends(2);
    let item = found.item(&guest.template());
    assert_eq!(item["code"], "written");
    let own = format!("process {} ", std::process::id());
    assert!(item["why"].as_str().unwrap().contains(&own), "{item:#}");
    assert_eq!(names(guest.scratch.path("store")), [""; 0]);
    drop(writer);
    guest.rescue(&[]).ends(0);
}

#[test]
fn another_file_under_the_name_is_left_alone() {
    needs_qemu!();
    let guest = Guest::new();
    let template = guest.template();
    let content = fs::read(&template).unwrap();
    fs::remove_file(&template).unwrap();
    fs::write(&template, "another template").unwrap();
    let found = guest.rescue(&["--restore"]).ends(2);
    let item = found.item(&template);
    assert_eq!(item["restore"]["is"], "no");
    assert!(item["restore"]["why"].as_str().unwrap().contains("taken"), "{item:#}");
    assert_eq!(fs::read(&template).unwrap(), b"another template");
    assert!(fs::read(item["path"].as_str().unwrap()).unwrap() == content);
}

#[test]
fn where_the_directory_is_gone_another_must_be_named() {
    needs_qemu!();
    let guest = Guest::new();
    let template = guest.template();
    fs::remove_file(&template).unwrap();
    fs::remove_dir(guest.scratch.path("store")).unwrap();
    let found = guest.rescue(&["--restore"]).ends(2);
    assert_eq!(found.item(&template)["code"], "no-directory");
    // One of the same name is not the one.
    guest.scratch.subdir("store");
    let safe = guest.scratch.subdir("safe");
    let to = safe.to_str().unwrap().to_owned();
    let found = guest.rescue(&["--to", &to]).ends(0);
    assert_eq!(found.item(&template)["result"], "saved");
    assert_eq!(names(&safe).len(), 1);
}

#[test]
fn leftovers_of_nfs_get_their_names_back_if_there_is_no_doubt() {
    needs_qemu!();
    let mut guest = Guest::new();
    let left = guest.template().with_file_name(".nfs0000000000a1b2c300000007");
    fs::rename(guest.template(), &left).unwrap();
    let found = guest.rescue(&["--restore"]).ends(0);
    let item = found.item(&guest.template());
    assert_eq!(item["restored"], guest.template().to_str().unwrap());
    assert!(item["notes"].to_string().contains(".nfs0000"), "{item:#}");
    fs::remove_file(left).unwrap();
    guest.is_as_it_was();
}

#[test]
fn of_two_leftovers_in_a_directory_what_they_name_tells_which_is_which() {
    needs_qemu!();
    // Both layers in one directory.
    let mut guest = Guest::prepared(|guest| {
        fs::copy(guest.template(), guest.scratch.path("volumes/template")).unwrap();
        let rebase =
            args!["rebase", "-u", "-f", "qcow2", "-b", "template", "-F", "qcow2", guest.middle()];
        qemu::qemu_img(&rebase);
    });
    let left = |nth| guest.scratch.path(format!("volumes/.nfs0000000000a1b2c30000000{nth}"));
    fs::rename(guest.scratch.path("volumes/template"), left(1)).unwrap();
    fs::rename(guest.middle(), left(2)).unwrap();
    guest.rescue(&["--restore"]).ends(0);
    for nth in [1, 2] {
        fs::remove_file(left(nth)).unwrap();
    }
    assert_eq!(names(guest.scratch.path("volumes")), ["middle", "template", "top"]);
    guest.is_as_it_was();
}

#[test]
fn all_processes_are_looked_through() {
    needs_qemu!();
    let guest = Guest::new();
    fs::remove_file(guest.template()).unwrap();
    // Others on this machine may hold deleted files too: nothing is saved here.
    let run = qcowtool(args!["rescue", "--qemu-from-proc", "--dry-run", "--output", "json"]);
    let found = Found::of(run);
    let holders = found.item(&guest.template())["holders"].as_array().unwrap();
    let pid: u64 = guest.pid().parse().unwrap();
    assert!(holders.iter().any(|holder| holder["process"] == pid), "{holders:?}");
}

#[test]
fn a_base_that_many_guests_share_is_saved_once() {
    needs_qemu!();
    let guest = Guest::new();
    let second = guest.scratch.path("volumes/second");
    qemu::overlay(&second, "../store/template", "qcow2", "", "");
    let other = Holder::new(&["-f", "qcow2"], &second);
    fs::remove_file(guest.template()).unwrap();
    let run = qcowtool(args!["rescue", "--qemu-from-proc", "--dry-run", "--output", "json"]);
    let found = Found::of(run);
    let item = found.item(&guest.template());
    assert_eq!(item["needed-by"], serde_json::json!([guest.middle(), second]));
    let mut pids = [guest.pid().parse().unwrap(), other.pid()];
    pids.sort();
    let holders: Vec<_> = item["holders"].as_array().unwrap().iter().collect();
    assert_eq!(holders.iter().map(|holder| &holder["process"]).collect::<Vec<_>>(), pids);
    let times = found.json["items"].as_array().unwrap();
    let times = times.iter().filter(|item| item["name"] == guest.template().to_str().unwrap());
    assert_eq!(times.count(), 1);
}

#[test]
fn text_for_people_says_before_and_after() {
    needs_qemu!();
    let guest = Guest::new();
    fs::remove_file(guest.template()).unwrap();
    let run = qcowtool(args!["rescue", "--pid", guest.pid(), "--restore"]);
    let text = run.ok();
    let says = ["can be saved as", "can be restored", "is back", "tree hash"];
    let places: Vec<_> =
        says.iter().map(|words| text.find(words).unwrap_or_else(|| panic!("{text}"))).collect();
    assert!(places.is_sorted(), "{text}");
}

#[test]
fn nothing_to_do_and_wrong_usage() {
    needs_qemu!();
    let guest = Guest::new();
    let run = qcowtool(args!["rescue", "--pid", guest.pid()]);
    assert_eq!(run.ok(), "nothing that is open is gone\n");
    for arguments in [
        args!["rescue"],
        args!["rescue", "--pid", "4294967295"],
        args!["rescue", "--pid", "1", "--qemu-from-proc"],
        args!["rescue", "-f", "qcow2", guest.top()],
        args!["rescue", "--pid", guest.pid(), "--to", guest.scratch.path("nowhere")],
        args!["rescue", "--pid", guest.pid(), "--to", guest.top()],
    ] {
        qcowtool(arguments).refused();
    }
}

#[test]
fn a_relative_name_behind_a_protocol_is_of_the_working_directory_of_the_guests_process() {
    needs_qemu!();
    let scratch = Scratch::new();
    let content = pattern::mixed(3, 1 << 20);
    let base = scratch.file("base.raw", &content);
    let images = scratch.subdir("images");
    let top = images.join("top.qcow2");
    // Beside the image is another file of that name, which the guest never saw.
    fs::write(images.join("base.raw"), vec![0xee; 1 << 20]).unwrap();
    let create =
        args!["create", "-q", "-u", "-f", "qcow2", "-b", "file:base.raw", "-F", "raw", top];
    fixtures::qemu_img(&[create, args!["1M"]].concat());
    let mut qemu_io = std::process::Command::new("qemu-io");
    qemu_io.args(["-f", "qcow2", "images/top.qcow2"]).current_dir(scratch.dir());
    let holder = Holder::by(&mut qemu_io);
    fs::remove_file(&base).unwrap();
    let pid = holder.pid().to_string();
    let arguments = args!["rescue", "--output", "json", "--pid", pid, "--restore"];
    let found = Found::of(qcowtool(arguments)).ends(0);
    let item = found.item(&base);
    assert_eq!(item["needed-by"], serde_json::json!([top]), "{item:#}");
    assert_eq!(item["restored"], base.to_str().unwrap(), "{item:#}");
    assert!(fs::read(&base).unwrap() == content, "the file is another one");
}
