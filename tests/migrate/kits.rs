//! The kits in `integrations`, run by the programs that they are for.

use std::path::{Path, PathBuf};
use std::process::Command;

use common::binary;
use fixtures::{needs_qemu, skipped};

fn kit(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("integrations").join(path)
}

fn has(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

#[test]
fn the_ansible_collection_does_what_it_says() {
    needs_qemu!();
    if !has("ansible-playbook") {
        return skipped("no ansible-playbook here (ansible-core)");
    }
    let ran = Command::new(kit("ansible/tests/run")).arg(binary()).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{out}{err}");
    assert!(out.ends_with("all guests moved\n"), "{out}");
}
