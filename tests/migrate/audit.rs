//! `audit` and `dependents` on real files: who stands on whom, what is wrong with it, and that neither odd
//! names, nor garbage, nor a tree that changes meanwhile brings them down.

mod dependents;
mod domains;
mod hostile;
mod picture;

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use common::{Run, qcowtool};
use fixtures::{Holder, Patch, Scratch, args, needs_qemu, qemu};
use serde_json::Value;

/// What an audit found.
struct Found {
    run: Run,
    json: Value,
}

impl Found {
    fn of(arguments: Vec<OsString>) -> Self {
        let run = qcowtool([args!["audit", "--output", "json"], arguments].concat());
        let json = serde_json::from_str(&run.stdout())
            .unwrap_or_else(|error| panic!("{error}: {}{}", run.stdout(), run.stderr()));
        Self { run, json }
    }

    fn in_dir(scratch: &Scratch) -> Self {
        Self::of(args![scratch.dir()])
    }

    /// The findings as `severity code file-name`, without those about the mode of bases.
    fn findings(&self) -> Vec<String> {
        let word = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
        let findings = self.json["findings"].as_array().unwrap().iter();
        findings
            .filter(|finding| finding["code"] != "base-writable")
            .map(|finding| {
                let path = word(finding, "path");
                let file = path.rsplit('/').next().unwrap();
                format!("{} {} {file}", word(finding, "severity"), word(finding, "code"))
            })
            .collect()
    }

    /// What is said with a code; the first of them.
    fn said(&self, code: &str) -> String {
        let findings = self.json["findings"].as_array().unwrap();
        let finding = findings.iter().find(|finding| finding["code"] == code);
        finding.unwrap_or_else(|| panic!("no {code} in {}", self.json))["what"]
            .as_str()
            .unwrap()
            .into()
    }

    #[track_caller]
    fn has_only(&self, expected: &[&str]) {
        assert_eq!(self.findings(), expected, "{:#}", self.json["findings"]);
        let errors = expected.iter().any(|finding| finding.starts_with("error "));
        assert_eq!(self.run.code(), Some(if errors { 2 } else { 0 }));
    }

    fn image(&self, path: &Path) -> &Value {
        let images = self.json["images"].as_array().unwrap();
        let image = images.iter().find(|image| image["path"] == path.to_str().unwrap());
        image.unwrap_or_else(|| panic!("no {} in {:#}", path.display(), self.json["images"]))
    }
}

/// `base.qcow2` and `overlay.qcow2` on it.
fn pair(scratch: &Scratch) {
    qemu::create(scratch.path("base.qcow2"), "", "1M");
    qemu::overlay(scratch.path("overlay.qcow2"), "base.qcow2", "qcow2", "", "");
}

fn mode(path: impl AsRef<Path>, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Says that a file was last written so many seconds from now.
fn written_at(path: impl AsRef<Path>, seconds: u64) {
    let time = SystemTime::now() + Duration::from_secs(seconds);
    File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

#[test]
fn a_sound_chain_has_no_findings_and_its_space_is_told() {
    needs_qemu!();
    let scratch = Scratch::new();
    pair(&scratch);
    let base = scratch.path("base.qcow2");
    qemu::qemu_io("qcow2", &base, &["write -P 7 0 512k"]);
    for name in ["second.qcow2", "third.qcow2"] {
        qemu::overlay(scratch.path(name), "base.qcow2", "qcow2", "", "");
    }
    mode(&base, 0o444);
    scratch.file("notes.txt", b"no image");
    let found = Found::in_dir(&scratch);
    found.has_only(&[]);
    let allocated = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&base).unwrap()) * 512;
    let of_base = &found.json["bases"][0];
    assert_eq!(of_base["users"], 3);
    assert_eq!(of_base["allocated"], allocated);
    assert_eq!(of_base["shared"], allocated * 2);
    // Flattening brings what the base has, but never more than the disk of 1 MiB.
    let flattening = found.image(&scratch.path("overlay.qcow2"))["flattening"].as_u64().unwrap();
    assert!((512 << 10..=1 << 20).contains(&flattening), "{flattening}");
    assert_eq!(found.json["summary"]["images"], 4);
    assert_eq!(found.json["summary"]["other-files"], 1);
    assert_eq!(found.json["summary"]["deepest"], 2);
}

#[test]
fn bases_and_data_files_that_are_gone_are_errors() {
    needs_qemu!();
    let scratch = Scratch::new();
    pair(&scratch);
    let data = format!("data_file={},data_file_raw=on", scratch.path("data.raw").display());
    qemu::create(scratch.path("split.qcow2"), &data, "1M");
    Found::in_dir(&scratch).has_only(&[]);
    fs::remove_file(scratch.path("base.qcow2")).unwrap();
    fs::remove_file(scratch.path("data.raw")).unwrap();
    let found = Found::in_dir(&scratch);
    found.has_only(&["error base-missing overlay.qcow2", "error base-missing split.qcow2"]);
    assert!(found.said("base-missing").contains("base.qcow2' does not exist"));
}

#[test]
fn a_base_that_is_no_file_is_an_error() {
    needs_qemu!();
    let scratch = Scratch::new();
    pair(&scratch);
    fs::remove_file(scratch.path("base.qcow2")).unwrap();
    scratch.subdir("base.qcow2");
    Found::in_dir(&scratch).has_only(&["error base-unusable overlay.qcow2"]);
}

#[test]
fn a_base_that_was_written_after_its_overlay_was_made_is_suspicious() {
    needs_qemu!();
    let scratch = Scratch::new();
    pair(&scratch);
    written_at(scratch.path("base.qcow2"), 3600);
    let found = Found::in_dir(&scratch);
    found.has_only(&["warning base-modified overlay.qcow2"]);
    assert!(found.said("base-modified").contains("base modified after its overlay"));
    // Who owns the base, and what it is called, changes its inode and proves nothing.
    written_at(scratch.path("base.qcow2"), 0);
    mode(scratch.path("base.qcow2"), 0o600);
    Found::in_dir(&scratch).has_only(&[]);
}

#[test]
fn a_base_whose_file_is_younger_than_its_overlay_was_replaced() {
    needs_qemu!();
    let scratch = Scratch::new();
    pair(&scratch);
    let base = scratch.path("base.qcow2");
    if fs::metadata(&base).unwrap().created().is_err() {
        return; // this file system does not know when files were made
    }
    let before = fs::metadata(&base).unwrap().modified().unwrap();
    std::thread::sleep(Duration::from_millis(20));
    fs::copy(&base, scratch.path("copy")).unwrap();
    fs::rename(scratch.path("copy"), &base).unwrap();
    // As `cp -p` leaves it.
    File::options().write(true).open(&base).unwrap().set_modified(before).unwrap();
    Found::in_dir(&scratch).has_only(&["warning base-replaced overlay.qcow2"]);
}

#[test]
fn a_manifest_proves_a_base_equal_or_different() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (images, manifests) = (scratch.subdir("images"), scratch.subdir("manifests"));
    let base = images.join("base.qcow2");
    qemu::create(&base, "", "1M");
    qemu::qemu_io("qcow2", &base, &["write -P 7 0 512k"]);
    let manifest = manifests.join("base.manifest");
    qcowtool(args!["checksum", "--algorithm", "blake3-tree", "--manifest", manifest, base]).ok();
    fs::write(manifests.join("README"), "no manifest").unwrap();
    qemu::overlay(images.join("overlay.qcow2"), "base.qcow2", "qcow2", "", "");
    written_at(&base, 3600);
    let audit = || Found::of(args!["--manifests", manifests, images]);
    Found::of(args![images]).has_only(&["warning base-modified overlay.qcow2"]);
    audit().has_only(&[]);
    qemu::qemu_io("qcow2", &base, &["write -P 8 4k 512"]);
    audit().has_only(&["error base-different base.qcow2"]);
}

#[test]
fn formats_that_are_wrong_or_not_recorded() {
    needs_qemu!();
    let scratch = Scratch::new();
    pair(&scratch);
    scratch.file("plain", &[0; 4096]);
    let unchecked = |name: &str, base: &str, format: &str| {
        let image = scratch.path(name);
        qemu::qemu_img(&args![
            "create", "-q", "-u", "-f", "qcow2", "-b", base, "-F", format, image, "1M"
        ]);
    };
    unchecked("as-raw.qcow2", "base.qcow2", "raw");
    unchecked("as-qcow2.qcow2", "plain", "qcow2");
    unchecked("right.qcow2", "plain", "raw");
    // An extension that nobody knows in place of the one that records the format.
    let mut bytes = fs::read(scratch.path("overlay.qcow2")).unwrap();
    let extension = b"\xe2\x79\x2a\xca";
    let at = bytes.windows(4).position(|four| four == extension).unwrap();
    bytes[at] = 0x11;
    fs::write(scratch.path("overlay.qcow2"), bytes).unwrap();
    Found::in_dir(&scratch).has_only(&[
        "error format-wrong as-qcow2.qcow2",
        "error format-wrong as-raw.qcow2",
        "warning format-unrecorded overlay.qcow2",
    ]);
}

#[test]
fn what_was_deleted_and_is_still_open_is_found_without_libvirt() {
    needs_qemu!();
    let scratch = Scratch::new();
    pair(&scratch);
    let base = scratch.path("base.qcow2");
    let holder = Holder::new(&["-r"], &scratch.path("overlay.qcow2"));
    fs::remove_file(&base).unwrap();
    let found = Found::in_dir(&scratch);
    found.has_only(&["error base-missing overlay.qcow2", "error deleted-open base.qcow2"]);
    let process = format!("process {} (qemu-io)", holder.pid());
    for code in ["base-missing", "deleted-open"] {
        assert!(found.said(code).contains(&process), "{}", found.said(code));
    }
    // The way out leads to the content.
    let text = found.json["findings"].to_string();
    let through = &text[text.find("/proc/").unwrap()..];
    let through = &through[..through.find(['"', ' ']).unwrap()];
    assert!(fs::read(through).unwrap().starts_with(b"QFI\xfb"), "{through}");
    // A file of such a name has not been deleted.
    let odd = scratch.path("odd (deleted)");
    qemu::create(&odd, "", "1M");
    let _odd = Holder::new(&["-r"], &odd);
    assert_eq!(Found::in_dir(&scratch).findings().len(), 2);
    // And so does it when another file has the name.
    qemu::create(&base, "", "1M");
    let findings = Found::in_dir(&scratch).findings();
    assert!(findings.contains(&"error deleted-open base.qcow2".into()), "{findings:?}");
}

#[test]
fn who_writes_to_an_image_is_reported_and_not_disturbed() {
    needs_qemu!();
    let scratch = Scratch::new();
    pair(&scratch);
    let overlay = scratch.path("overlay.qcow2");
    let holder = Holder::new(&[], &overlay);
    let found = Found::in_dir(&scratch);
    found.has_only(&["info locked overlay.qcow2"]);
    let image = found.image(&overlay);
    assert!(image["locks"].as_array().unwrap().contains(&"write".into()), "{image}");
    assert_eq!(image["holders"][0]["process"], holder.pid());
    assert_eq!(image["holders"][0]["writes"], true);
    holder.finish("write -P 1 0 64k\nquit\n");
}

#[test]
fn bases_that_nobody_uses_and_bases_that_can_be_written_to() {
    needs_qemu!();
    let scratch = Scratch::new();
    pair(&scratch);
    let (base, alone) = (scratch.path("base.qcow2"), scratch.path("alone.qcow2"));
    qemu::create(&alone, "", "1M");
    // What can be written to may be the disk of a guest that nobody told us of.
    Found::in_dir(&scratch).has_only(&[]);
    mode(&alone, 0o444);
    Found::in_dir(&scratch).has_only(&["info base-unused alone.qcow2"]);
    for (bits, expected) in [(0o444, None), (0o644, Some("info")), (0o664, Some("warning"))] {
        mode(&base, bits);
        let found = Found::in_dir(&scratch);
        let findings = found.json["findings"].as_array().unwrap();
        let finding = findings.iter().find(|finding| finding["code"] == "base-writable");
        assert_eq!(finding.map(|finding| finding["severity"].as_str().unwrap()), expected);
    }
}

#[test]
fn deep_chains_and_circles() {
    needs_qemu!();
    let scratch = Scratch::new();
    let chain = fixtures::chains::deep(scratch.dir(), 5);
    Found::in_dir(&scratch).has_only(&[]);
    Found::of(args!["--max-depth", "5", scratch.dir()]).has_only(&[]);
    Found::of(args!["--max-depth", "4", scratch.dir()])
        .has_only(&["warning chain-deep layer4.qcow2"]);
    qemu::qemu_img(&args!["rebase", "-u", "-b", "layer2.qcow2", "-F", "qcow2", chain.template()]);
    let found = Found::in_dir(&scratch);
    // In a circle one stands on a younger one, if the clock ticked between the two.
    let mut told = found.findings();
    told.retain(|finding| *finding != "warning base-replaced layer0.qcow2");
    assert_eq!(told, ["error loop layer0.qcow2"]);
    assert_eq!(found.run.code(), Some(2));
    assert!(found.said("loop").starts_with("3 images form a backing-file loop"));
    // Nothing is drawn twice, and all of it is.
    let tree = qcowtool(args!["audit", "--tree", scratch.dir()]).stdout();
    for layer in 0..5 {
        assert!(tree.contains(&format!("layer{layer}.qcow2\n")), "{tree}");
    }
}

#[test]
fn corrupt_and_dirty_images() {
    needs_qemu!();
    const INCOMPATIBLE: usize = 79;
    let scratch = Scratch::new();
    for (name, bit) in [("corrupt.qcow2", 2), ("dirty.qcow2", 1)] {
        let path = scratch.path(name);
        qemu::create(&path, "", "1M");
        Patch::open(&path).set_u8(INCOMPATIBLE, bit).save();
    }
    Found::in_dir(&scratch).has_only(&["error corrupt corrupt.qcow2", "warning dirty dirty.qcow2"]);
}

#[test]
fn the_tree_and_the_text_for_people() {
    needs_qemu!();
    let scratch = Scratch::new();
    pair(&scratch);
    qemu::overlay(scratch.path("top.qcow2"), "overlay.qcow2", "qcow2", "", "");
    qemu::overlay(scratch.path("zweig.qcow2"), "base.qcow2", "qcow2", "", "");
    let dir = scratch.dir().canonicalize().unwrap();
    let text = qcowtool(args!["audit", "--tree", scratch.dir()]).ok();
    let dir = dir.display();
    let expected = format!(
        "{dir}/base.qcow2\n|-- {dir}/overlay.qcow2\n|   `-- {dir}/top.qcow2\n`-- {dir}/zweig.qcow2\n\n"
    );
    assert!(text.starts_with(&expected), "{text}");
    assert!(text.contains("4 images, 3 of them on others, deepest chain 3;"), "{text}");
    assert!(text.ends_with("0 errors, 0 warnings, 2 notes\n"), "{text}");
}

#[test]
fn metrics_have_the_figures_of_the_json() {
    needs_qemu!();
    let scratch = Scratch::new();
    pair(&scratch);
    qemu::overlay(scratch.path("a \"b\\c\".qcow2"), "base.qcow2", "qcow2", "", "");
    qemu::overlay(scratch.path("on.qcow2"), "a \"b\\c\".qcow2", "qcow2", "", "");
    qemu::create(scratch.path("gone.qcow2"), "", "1M");
    qemu::overlay(scratch.path("lost.qcow2"), "gone.qcow2", "qcow2", "", "");
    fs::remove_file(scratch.path("gone.qcow2")).unwrap();
    let json = Found::in_dir(&scratch).json;
    let run = qcowtool(args!["audit", "--output", "prometheus", scratch.dir()]);
    assert_eq!(run.code(), Some(2));
    let metrics = run.stdout();
    let value = |metric: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(metric));
        line.unwrap_or_else(|| panic!("no {metric} in {metrics}")).trim().parse::<u64>().unwrap()
    };
    assert_eq!(value("qcowtool_audit_images "), json["summary"]["images"]);
    assert_eq!(value("qcowtool_audit_shared_bytes "), json["summary"]["shared"]);
    let findings = |severity: &str, code: &str| {
        value(&format!("qcowtool_audit_findings{{severity=\"{severity}\",code=\"{code}\"}}"))
    };
    assert_eq!(findings("error", "base-missing"), 1);
    assert_eq!(findings("error", "loop"), 0);
    let dir = scratch.dir().canonicalize().unwrap();
    let users = |name: &str| {
        value(&format!("qcowtool_audit_base_users{{host=\"\",path=\"{}/{name}\"}}", dir.display()))
    };
    assert_eq!(users("base.qcow2"), 2);
    assert_eq!(users(r#"a \"b\\c\".qcow2"#), 1);
    // Every line is a comment or a metric and its value.
    for line in metrics.lines().filter(|line| !line.starts_with("# ")) {
        assert!(line.starts_with("qcowtool_audit_"), "{line}");
        assert!(line.rsplit(' ').next().unwrap().parse::<u64>().is_ok(), "{line}");
    }
}

#[test]
fn who_could_not_look_ends_with_1() {
    let scratch = Scratch::new();
    qcowtool(args!["audit"]).refused();
    qcowtool(args!["audit", scratch.path("nowhere")]).refused_naming(&["nowhere", "no such file"]);
    // A view of the kernel is no directory of images.
    let proc = Found::of(args!["/proc"]);
    assert_eq!(proc.json["summary"]["directories"], 0);
    qcowtool(args!["audit", "--connect", "nonsense:///x"]).refused();
    // One of two is there, so that the other is a finding.
    let found = Found::of(args![scratch.dir(), scratch.path("nowhere")]);
    found.has_only(&["error unreadable nowhere"]);
}
