//! Advice in plain words.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use common::binary;
use fixtures::patch::field;
use fixtures::{Patch, Scratch, args, needs_qemu, qemu, qemu_img, skipped};

use super::shell::{image, refused, shell, works};

#[test]
fn plain_words() {
    needs_qemu!();
    let scratch = Scratch::new();
    let path = image(&scratch, "image", "");
    qemu_img(&args!["snapshot", "-c", "before", path]);
    qemu::overlay(scratch.path("top"), "image", "qcow2", "", "");
    let mut newer = Patch::open(&path);
    newer.set_u8(field::INCOMPATIBLE, 0x40).save_as(scratch.path("newer"));
    works(&scratch, "ln -s image link; mkdir directory b c");
    let long = "x".repeat(500);
    let json = r#"'{"driver":"qcow2","file":{"driver":"file","filename":"image"}}'"#;
    let json = json.replacen('{', "json:{", 1);
    let extra = json.replace(r#""qcow2","#, r#""qcow2","cache":"x","#);
    let range = json.replace(r#""qcow2","#, r#""raw","offset":512,"size":512,"#);
    let own = r#"-f qcow2 'json:{"driver":"file","filename":"image"}'"#;
    // What is refused, what the message advises, and what works; "" where there is nothing to be done here.
    let rows = [
        ("create -o foo=1 n1 1M", "'-o help' lists them all", "create -o help"),
        (
            &format!("create -u -o cluster_size=512 -b {long} -F qcow2 n2 1M"),
            "use a shorter backing file name or larger clusters",
            &format!("create -u -o cluster_size=4k -b {long} -F qcow2 n2 1M"),
        ),
        (
            "checksum --snapshot snapshot.foo=1 image",
            "snapshot.name=NAME",
            "checksum --snapshot snapshot.name=before image",
        ),
        (&format!("checksum {extra}"), "supported are driver", &format!("checksum {json}")),
        (&format!("check {range}"), "copy that range into a file", ""),
        (&format!("checksum {own}"), "name the format's driver", &format!("checksum {json}")),
        ("checksum --backing-format image=raw top", "leave out what is stated", "checksum top"),
        ("checksum --backing-format x=raw top", "or leave it out", "checksum top"),
        (
            "flatten image directory",
            "give the name of a file to create",
            "flatten image directory/n3",
        ),
        (
            "flatten --force image directory",
            "give the name of a file",
            "flatten image directory/n4",
        ),
        (
            "checksum --untrusted -f qcow2 link",
            "the name of the link's target",
            "checksum --untrusted -f qcow2 image",
        ),
        ("io -c 'wrote 0 1 1' image", "see 'qcowtool io --help'", "io --help"),
        ("checksum --untrusted -f raw image", "a program that guesses formats", ""),
        ("create -f raw -b image -F qcow2 n9", "leave out -f raw", "create -b image -F qcow2 n9"),
        ("flatten -f qcow2 - n10 < image", "Name a file", "flatten -f qcow2 image n10"),
        ("rescue -f qcow2 image", "give --candidates or --manifest", ""),
        ("checksum newer", "a newer program wrote this image", ""),
        ("create -o encrypt.format=luks n5 1M", "encrypt inside the guest", "create n5 1M"),
        ("create -o nocow=on n6 1M", "on the directory first: chattr", "create n6 1M"),
        ("create -o extent_size_hint=1M n7 1M", "on the directory first: xfs_io", "create n7 1M"),
        (
            "measure --size 8E -O qcow2",
            "the largest has 9223372036854775296 bytes",
            "measure --size 9223372036854775296 -O raw",
        ),
        (
            "evacuate --connect dir:. --to dir:b --to dir:c -e ssh --dry-run",
            "write {host} for the host's name",
            "evacuate --connect dir:. --to dir:b --to dir:c -e 'ssh {host}' --dry-run",
        ),
        (
            "evacuate --connect dir:. --to dir:b --disks-port 49300",
            "migrate one guest at a time",
            "evacuate --connect dir:. --to dir:b --disks-port 49300 --parallel 1 --state-dir state",
        ),
        ("flatten --live --target x vm vda", "add --method copy", ""),
    ];
    for (wrong, advice, right) in rows {
        refused(&scratch, &format!("qcowtool {wrong}"), advice);
        if !right.is_empty() {
            works(&scratch, &format!("qcowtool {right}"));
        }
    }
    let line = "qcowtool flatten -O raw image n8";
    let limit = "this process's limit for the size of files";
    refused(&scratch, &format!("(ulimit -f 100; {line})"), limit);
    works(&scratch, line);
}

#[test]
fn an_image_is_not_written_to_a_terminal() {
    needs_qemu!();
    let scratch = Scratch::new();
    image(&scratch, "image", "");
    if !shell(&scratch, "script -qec true /dev/null < /dev/null").status.success() {
        return skipped("no script here");
    }
    let line = "script -qec '\"$QCOWTOOL\" flatten image -' /dev/null < /dev/null";
    let said = String::from_utf8_lossy(&shell(&scratch, line).stdout).into_owned();
    assert!(said.contains("name a file, or redirect standard output"), "{said}");
    works(&scratch, "qcowtool flatten image - > new && qcowtool compare image new");
    works(&scratch, "qcowtool flatten image named && qcowtool compare image named");
}

#[test]
fn a_port_that_is_taken() {
    let scratch = Scratch::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let monitor = |port: u16| format!("timeout 3 \"$QCOWTOOL\" monitor --listen {port} .");
    refused(&scratch, &monitor(port), "choose another port, or 0 for one that is free");
    // It is stopped when its time is over.
    let listening = shell(&scratch, &format!("{} | head -n 1", monitor(0))).stdout;
    assert!(String::from_utf8_lossy(&listening).starts_with("listening at http://127.0.0.1:"));
}

/// Another user's file is replaced by root alone, who can give the new one away; or it is moved away.
#[test]
fn what_only_root_can_keep() {
    needs_qemu!();
    let scratch = Scratch::new();
    image(&scratch, "image", "");
    image(&scratch, "old", "");
    fs::copy(binary(), scratch.path("qcowtool")).unwrap();
    let mode = |name: &str, mode| {
        fs::set_permissions(scratch.path(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(".", 0o777);
    mode("old", 0o666);
    let nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups";
    if !shell(&scratch, &format!("{nobody} ./qcowtool checksum image")).status.success() {
        return skipped("only root can be another user");
    }
    let line = format!("{nobody} ./qcowtool flatten --force image old");
    refused(&scratch, &line, "run it as root or as the file's owner");
    works(&scratch, "./qcowtool flatten --force image old");
    works(&scratch, &format!("{nobody} mv old away && {line}"));
}
