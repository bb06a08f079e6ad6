//! What the programs that prepare guests' storage advise is carried out here, with the commands that they name.

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{binary, qcowtool};
use fixtures::{Holder, Patch, Scratch, args, needs_qemu, qemu, qemu_img};
use serde_json::Value;

use crate::directories::{Hosts, IMAGES};

/// What an audit of the directory advises about `code`; `None` if it has no such finding.
fn advised(scratch: &Scratch, code: &str, more: &[&str]) -> Option<String> {
    let mut arguments = args!["audit", "--output", "json", scratch.dir()];
    arguments.extend(more.iter().map(Into::into));
    let report: Value = serde_json::from_str(&qcowtool(arguments).stdout()).unwrap();
    let found = report["findings"].as_array().unwrap().iter().find(|it| it["code"] == code)?;
    Some(found["way-out"].as_str().unwrap().to_owned())
}

/// Runs the command between backquotes that begins with `start`, with names for what it leaves open.
#[track_caller]
fn run(scratch: &Scratch, advice: &str, start: &str, names: &[(&str, &str)], code: i32) {
    let command = advice.split('`').skip(1).step_by(2).find(|part| part.starts_with(start));
    let command = command.unwrap_or_else(|| panic!("no `{start}`: {advice}"));
    let line = names.iter().fold(command.to_owned(), |line, (open, name)| line.replace(open, name));
    shell(scratch, &line, code);
}

#[track_caller]
fn shell(scratch: &Scratch, line: &str, code: i32) {
    let mut bash = Command::new("bash");
    bash.arg("-c").arg(format!("qcowtool() {{ \"$QCOWTOOL\" \"$@\"; }}; {line}"));
    let output = bash.env("QCOWTOOL", binary()).current_dir(scratch.dir()).output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{line}: {output:?}");
}

/// `base` and `top` on it, of which `format` is recorded for the base.
fn pair(scratch: &Scratch, format: &str) {
    qemu::create(scratch.path("base"), "", "1M");
    let top = scratch.path("top");
    qemu_img(&args!["create", "-q", "-u", "-f", "qcow2", "-b", "base", "-F", format, top, "1M"]);
}

#[test]
fn what_an_audit_advises_about_backing_files() {
    needs_qemu!();
    let scratch = Scratch::new();
    pair(&scratch, "raw");
    let advice = advised(&scratch, "format-wrong", &[]).unwrap();
    run(&scratch, &advice, "qemu-img rebase", &[("IMAGE", "top")], 0);
    assert_eq!(advised(&scratch, "format-wrong", &[]), None);

    // Without the extension that records the format.
    let mut bytes = fs::read(scratch.path("top")).unwrap();
    let at = bytes.windows(4).position(|four| four == b"\xe2\x79\x2a\xca").unwrap();
    bytes[at] = 0x11;
    fs::write(scratch.path("top"), bytes).unwrap();
    let advice = advised(&scratch, "format-unrecorded", &[]).unwrap();
    let names = [("FORMAT", "qcow2"), ("BASE", "base"), ("IMAGE", "top")];
    run(&scratch, &advice, "qemu-img rebase", &names, 0);
    assert_eq!(advised(&scratch, "format-unrecorded", &[]), None);

    // Under a second name, in a directory in which a relative name means nothing.
    let other = scratch.subdir("other");
    qemu::create(other.join("base"), "", "1M");
    fs::hard_link(scratch.path("top"), other.join("top")).unwrap();
    let advice = advised(&scratch, "base-by-name", &[]).unwrap();
    assert!(advice.contains("qemu-img rebase -u"), "{advice}");
    let base = scratch.path("base");
    qemu_img(&args!["rebase", "-u", "-F", "qcow2", "-b", base, scratch.path("top")]);
    assert_eq!(advised(&scratch, "base-by-name", &[]), None);
    fs::remove_dir_all(other).unwrap();

    // A loop.
    qemu_img(&args!["rebase", "-u", "-F", "qcow2", "-b", "top", base]);
    let advice = advised(&scratch, "loop", &[]).unwrap();
    assert!(advice.contains("qemu-img rebase -u"), "{advice}");
    qemu_img(&args!["rebase", "-u", "-b", "", base]);
    assert_eq!(advised(&scratch, "loop", &[]), None);

    // Written after its overlay: a manifest that it had before tells what it is.
    let manifests = scratch.subdir("manifests");
    let manifest = manifests.join("base.qcowtool-tree");
    let tree = args!["checksum", "--algorithm", "blake3-tree", "--manifest", manifest, base];
    qcowtool(tree).ok();
    let late = std::time::SystemTime::now() + std::time::Duration::from_secs(1000);
    fs::File::options().write(true).open(&base).unwrap().set_modified(late).unwrap();
    let advice = advised(&scratch, "base-modified", &[]).unwrap();
    assert!(advice.contains("--manifests DIR"), "{advice}");
    let with = ["--manifests", manifests.to_str().unwrap()];
    assert_eq!(advised(&scratch, "base-modified", &with), None);
}

#[test]
fn what_an_audit_advises_about_long_chains() {
    needs_qemu!();
    let scratch = Scratch::new();
    fixtures::chains::deep(scratch.dir(), 5);
    let deep = ["--max-depth", "4"];
    let advice = advised(&scratch, "chain-deep", &deep).unwrap();
    assert!(advice.contains("`qcowtool flatten`"), "{advice}");
    shell(&scratch, "qcowtool flatten layer2.qcow2 new && mv new layer2.qcow2", 0);
    assert_eq!(advised(&scratch, "chain-deep", &deep), None);
}

#[test]
fn what_an_audit_advises_about_damage() {
    needs_qemu!();
    const INCOMPATIBLE: usize = 79;
    let scratch = Scratch::new();
    for (code, bit) in [("corrupt", 2), ("dirty", 1)] {
        let path = scratch.path("image");
        qemu::create(&path, "", "1M");
        Patch::open(&path).set_u8(INCOMPATIBLE, bit).save();
        let advice = advised(&scratch, code, &[]).unwrap();
        let start =
            if code == "corrupt" { "qcowtool check -r all" } else { "qcowtool check -r leaks" };
        let command = advice.split('`').find(|part| part.starts_with(start));
        shell(&scratch, &format!("{} image", command.unwrap()), 0);
        assert_eq!(advised(&scratch, code, &[]), None, "{code}");
    }
    // A copy that ended early; it is copied again.
    let path = scratch.path("image");
    qemu::qemu_io("qcow2", &path, &["write -P 1 0 1M"]);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let advice = advised(&scratch, "truncated", &[]).unwrap();
    let check = advice.split('`').find(|part| part.starts_with("qcowtool check")).unwrap();
    shell(&scratch, &format!("{check} image"), 2);
    fs::write(&path, whole).unwrap();
    shell(&scratch, &format!("{check} image"), 0);
    assert_eq!(advised(&scratch, "truncated", &[]), None);
    // A header that is not understood: the check names what is wrong.
    Patch::open(&path).set_u32(20, 40).save();
    let advice = advised(&scratch, "header-broken", &[]).unwrap();
    let check = advice.split('`').find(|part| part.starts_with("qcowtool check")).unwrap();
    let output = qcowtool(args![check.split(' ').nth(1).unwrap(), "-f", "qcow2", path]);
    assert!(output.code() != Some(0) && output.stderr().contains("cluster"), "{}", output.stderr());
}

#[test]
fn what_an_audit_advises_about_deleted_files() {
    needs_qemu!();
    let scratch = Scratch::new();
    pair(&scratch, "qcow2");
    let holder = Holder::new(&["-r"], &scratch.path("top"));
    fs::remove_file(scratch.path("base")).unwrap();
    let advice = advised(&scratch, "base-missing", &[]).unwrap();
    let saved = advised(&scratch, "deleted-open", &[]).unwrap();
    assert!(saved.contains("`qcowtool rescue`") && saved.contains("/proc/"), "{saved}");
    let rescue = advice.split('`').find(|part| part.starts_with("qcowtool rescue")).unwrap();
    shell(&scratch, &format!("{rescue} --pid {}", holder.pid()), 0);
    for code in ["base-missing", "deleted-open"] {
        let left = advised(&scratch, code, &[]);
        assert!(left.is_none() || code == "deleted-open", "{left:?}");
    }
    drop(holder);
    shell(&scratch, "qcowtool checksum top", 0);
}

/// What a program says of an error, and the transaction that it is about.
fn prepared(hosts: &Hosts) -> String {
    let prepared = hosts.run("prepare --running --output json").json();
    prepared["transaction"].as_str().unwrap().to_owned()
}

#[test]
fn what_is_left_of_a_transaction_is_removed_and_the_transaction_ended() {
    needs_qemu!();
    let hosts = Hosts::new();
    let id = prepared(&hosts);
    let target = hosts.at("b", "vm.qcow2");
    let holder = Holder::new(&[], &target);
    let refused = hosts.ends(&["rollback", &id]);
    assert_ne!(refused.code(), Some(0));
    assert!(refused.stderr().contains("end the transaction with --leave"), "{}", refused.stderr());
    drop(holder);
    fs::remove_file(&target).unwrap();
    hosts.ends(&["rollback", "--leave", &id]).ok();
    let open = hosts.ends(&["transactions", "--open", "--output", "json"]).json();
    assert_eq!(open, serde_json::json!([]));
    // Its name is free: the next run succeeds.
    hosts.run("migrate").ok();
}

#[test]
fn what_plan_and_preflight_want_of_a_guest_in_a_directory() {
    needs_qemu!();
    let hosts = Hosts::new();
    let to = format!("dir:{}", hosts.scratch.path("b").display());
    let from = format!("dir:{}", hosts.scratch.path("a").display());
    let refused = qcowtool(args!["plan", "vm", "--connect", from, "--to", to]);
    refused.refused_naming(&["--domain-xml", "--source-root"]);
    hosts.run("plan").ok();
    let preflight = |arguments: &[&str]| {
        let mut words = args!["preflight", "--to", to, "--state-dir", hosts.scratch.path("state")];
        words.extend(arguments.iter().map(Into::into));
        qcowtool(words)
    };
    let refused = preflight(&["--running", "vm"]);
    assert!(refused.stderr().contains("give --connect dir:DIRECTORY"), "{}", refused.stderr());
    // A directory that lists its guests.
    let etc = hosts.scratch.path("a").join("etc/libvirt/qemu");
    fs::create_dir_all(&etc).unwrap();
    fs::copy(hosts.scratch.path("vm.xml"), etc.join("vm.xml")).unwrap();
    let looked = preflight(&["--running", "vm", "--connect", &from, "--output", "json"]);
    assert!(looked.stdout().contains("\"vm\""), "{} {}", looked.stdout(), looked.stderr());
    assert!(!Path::new(IMAGES).is_absolute());
}
