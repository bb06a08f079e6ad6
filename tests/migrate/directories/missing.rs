//! Directories that the destination does not have.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use fixtures::{args, needs_qemu, qemu};

use super::{Hosts, IMAGES, overlay};

/// A guest whose disk is in directories of its own, with modes that no umask gives.
fn hosts() -> Hosts {
    let hosts = Hosts::new();
    let own = hosts.at("a", "guests/vm");
    fs::create_dir_all(&own).unwrap();
    fs::set_permissions(&own, fs::Permissions::from_mode(0o2751)).unwrap();
    fs::set_permissions(hosts.at("a", "guests"), fs::Permissions::from_mode(0o777)).unwrap();
    if is_root() {
        std::os::unix::fs::chown(&own, Some(1234), Some(4321)).unwrap();
        fs::set_permissions(&own, fs::Permissions::from_mode(0o2751)).unwrap();
    }
    qemu::create(hosts.at("a", "guests/vm/vm.qcow2"), "", "8M");
    let image = hosts.at("a", "guests/vm/vm.qcow2");
    qemu::qemu_io("qcow2", &image, &["write -P 5 1M 64k"]);
    hosts.define(&[("vda", "guests/vm/vm.qcow2", "qcow2")]);
    hosts
}

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

fn rights(path: PathBuf) -> (u32, u32, u32) {
    let is = fs::metadata(path).unwrap();
    (is.mode() & 0o7777, is.uid(), is.gid())
}

#[test]
fn a_missing_directory_is_refused_and_made_as_at_the_source_where_that_is_allowed() {
    needs_qemu!();
    let hosts = hosts();
    let refused = hosts.run("migrate");
    assert_eq!(refused.code(), Some(2), "{}", refused.stderr());
    let said = refused.stderr();
    assert!(said.contains("D23") && said.contains("/guests/vm'"), "{said}");
    assert!(said.contains("with --mkdir"), "{said}");
    assert!(hosts.names("b").is_empty());

    let plan = hosts.run("plan --mkdir --output json").json();
    let directories: Vec<_> = (plan["directories"].as_array().unwrap().iter())
        .map(|directory| directory["path"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(directories, [format!("/{IMAGES}/guests"), format!("/{IMAGES}/guests/vm")]);
    assert!(hosts.names("b").is_empty(), "a plan made something");

    hosts.run("migrate --mkdir --verify content").ok();
    for directory in ["guests", "guests/vm"] {
        assert_eq!(rights(hosts.at("b", directory)), rights(hosts.at("a", directory)));
    }
    let moved = hosts.at("b", "guests/vm/vm.qcow2");
    let kept = fs::read_dir(hosts.at("a", "guests/vm")).unwrap().next().unwrap().unwrap().path();
    qemu::qemu_img(&args!["compare", "-f", "qcow2", "-F", "qcow2", moved, kept]);
    assert_eq!(fs::read_dir(hosts.at("b", "guests")).unwrap().count(), 1);
}

#[test]
fn rollback_removes_the_directories_that_were_made_and_are_empty() {
    needs_qemu!();
    let hosts = hosts();
    let prepare =
        || hosts.run("prepare --running --mkdir --output json").json()["transaction"].clone();
    let id = prepare();
    assert!(hosts.at("b", "guests/vm/vm.qcow2").exists());
    hosts.ends(&["rollback", id.as_str().unwrap()]).ok();
    assert!(hosts.names("b").is_empty(), "{:?}", hosts.names("b"));

    // Another program puts a file there.
    let id = prepare();
    fs::write(hosts.at("b", "guests/other"), "not ours").unwrap();
    let left = hosts.ends(&["rollback", id.as_str().unwrap()]);
    let said = left.stdout() + &left.stderr();
    assert!(said.contains("the directory is not empty"), "{said}");
    assert_eq!(hosts.names("b"), ["guests"]);
    assert!(!hosts.at("b", "guests/vm").exists());
    assert_eq!(fs::read(hosts.at("b", "guests/other")).unwrap(), b"not ours");
    let open = hosts.ends(&["transactions", "--open", "--output", "json"]).json();
    assert_eq!(open, serde_json::json!([]), "it is not ended");

    // One that existed stays, also when it is empty.
    fs::remove_file(hosts.at("b", "guests/other")).unwrap();
    let id = prepare();
    hosts.ends(&["rollback", id.as_str().unwrap()]).ok();
    assert_eq!(hosts.names("b"), ["guests"]);
    assert!(!hosts.at("b", "guests/vm").exists());
}

#[test]
fn the_directory_of_a_backing_file_that_is_brought_is_made_too() {
    needs_qemu!();
    let hosts = Hosts::new();
    fs::create_dir(hosts.at("a", "templates")).unwrap();
    fs::copy(hosts.at("a", "template.qcow2"), hosts.at("a", "templates/t.qcow2")).unwrap();
    overlay(&hosts.at("a", "vm.qcow2"), &format!("/{IMAGES}/templates/t.qcow2"));
    let refused = hosts.run("migrate --policy thin");
    assert_eq!(refused.code(), Some(2), "{}", refused.stderr());
    assert!(refused.stderr().contains("its backing file cannot be copied"), "{}", refused.stderr());
    assert!(refused.stderr().contains("--mkdir"), "{}", refused.stderr());
    hosts.run("migrate --policy thin --mkdir").ok();
    let (there, source) = (hosts.at("b", "templates/t.qcow2"), hosts.at("a", "templates/t.qcow2"));
    assert_eq!(fs::read(there).unwrap(), fs::read(source).unwrap());
    assert_eq!(hosts.names("b"), ["templates", "vm.qcow2"]);
}
