//! `--force` and `-n`: a file that another process, a loop device or an image uses is left alone, and
//! what is replaced keeps its rights.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use common::qcowtool;
use fixtures::{Holder, Loop, Scratch, args, assert_bytes, needs_qemu, qemu, skipped};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::XattrFlags;

/// Locks as other programs have them; none is QEMU's.
#[derive(Debug, Clone, Copy)]
enum Lock {
    /// cloud-hypervisor: from byte 0 to the end.
    Range,
    /// As an open file description, to the end however long the file becomes.
    Everything,
    /// `lockf`.
    Process,
}

/// An exclusive lock on the file until it is dropped.
fn locked(path: &Path, how: Lock) -> File {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let len = file.metadata().unwrap().len();
    let lock = libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: if matches!(how, Lock::Range) { len as i64 } else { 0 },
        l_pid: 0,
    };
    let request = match how {
        Lock::Process => FcntlArg::F_SETLK(&lock),
        _ => FcntlArg::F_OFD_SETLK(&lock),
    };
    fcntl(file.as_fd(), request).unwrap();
    file
}

/// An image with a leak.
fn leaking(path: &Path) {
    qemu::create(path, "", "1M");
    qemu::qemu_io("qcow2", path, &["write -P 1 0 128k"]);
    let mut image = fixtures::Patch::open(path);
    image.set_l2_entry(0, 0);
    image.save_as(path);
}

#[test]
fn an_exclusive_lock_of_another_program_is_not_taken_for_a_file_system_without_locks() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (image, raw) = (scratch.path("image.qcow2"), scratch.file("disk.raw", &[7; 4096]));
    let source = scratch.path("source.qcow2");
    qemu::create(&source, "", "4k");
    for how in [Lock::Range, Lock::Everything, Lock::Process] {
        leaking(&image);
        let before = (fs::read(&image).unwrap(), fs::read(&raw).unwrap());
        let held = (locked(&image, how), locked(&raw, how));
        let by = match how {
            Lock::Range => "an exclusive lock of bytes 0 to ".to_owned(),
            Lock::Everything => "an exclusive lock from byte 0 on".to_owned(),
            Lock::Process => format!("process {}", std::process::id()),
        };
        let in_use = |command: Vec<OsString>, words: &[&str]| {
            qcowtool(command).refused_naming(&[&["in use", by.as_str()], words].concat());
        };
        in_use(args!["checksum", image], &["-U"]);
        in_use(args!["checksum", "-f", "raw", raw], &["-U"]);
        in_use(args!["info", image], &["-U"]);
        in_use(args!["check", image], &["-U"]);
        in_use(args!["check", "-r", "all", image], &["stop"]);
        for target in [&image, &raw] {
            in_use(args!["flatten", "--force", source, target], &["--force-in-use"]);
            in_use(args!["create", "--force", "-f", "raw", target, "4k"], &["--force-in-use"]);
            in_use(args!["flatten", "-n", "-O", "raw", source, target], &["stop the process"]);
        }
        in_use(args!["checksum", "--manifest", raw, "--force", source], &["--force-in-use"]);
        // What is advised.
        qcowtool(args!["checksum", "-U", image]).ok();
        qcowtool(args!["checksum", "-U", "-f", "raw", raw]).ok();
        assert_bytes!(fs::read(&image).unwrap(), before.0, "{how:?}");
        assert_bytes!(fs::read(&raw).unwrap(), before.1, "{how:?}");
        drop(held);
        qcowtool(args!["checksum", image]).ok();
        qcowtool(args!["check", "-r", "all", image]).ok();
    }
}

#[test]
fn a_device_that_another_program_has_locked_is_not_overwritten() {
    needs_qemu!();
    let scratch = Scratch::new();
    let source = scratch.path("source.qcow2");
    qemu::create(&source, "", "1M");
    let volume = scratch.file("volume", &vec![0xa5; 2 << 20]);
    let Some(device) = Loop::over(&volume) else { return };
    let held = locked(&device.0, Lock::Everything);
    for options in [args!["--device"], args!["-n"]] {
        let all = [args!["flatten", "-O", "raw"], options, args![source, device.0]].concat();
        qcowtool(all).refused_naming(&["in use", "an exclusive lock"]);
    }
    drop(held);
    assert_bytes!(fs::read(&device.0).unwrap(), vec![0xa5; 2 << 20]);
}

/// What replaces a file, with and without being told that it may be in use.
fn replacers(source: &Path, target: &Path) -> [Vec<OsString>; 2] {
    [args!["flatten", "-q", source, target], args!["create", "-q", "-f", "qcow2", target, "64M"]]
}

fn with(command: &[OsString], option: &str) -> Vec<OsString> {
    let mut all = command.to_vec();
    all.insert(1, option.into());
    all
}

#[test]
fn an_image_that_qemu_has_open_and_its_base_are_replaced_only_by_force_in_use() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (base, top) = (scratch.path("base.qcow2"), scratch.subdir("top").join("top.qcow2"));
    let source = scratch.path("source.qcow2");
    qemu::create(&source, "", "4M");
    qemu::create(&base, "", "64M");
    qemu::overlay(&top, &base, "qcow2", "", "");
    let guest = Holder::new(&[], &top);
    for target in [&base, &top] {
        for command in replacers(&source, target) {
            let number = target.metadata().unwrap().ino();
            qcowtool(with(&command, "--force")).refused_naming(&["in use", "--force-in-use"]);
            assert_eq!(target.metadata().unwrap().ino(), number);
        }
    }
    guest.finish("write -P 7 0 64k\nquit\n");
    qemu::qemu_io("qcow2", &top, &["read -P 7 0 64k"]);
    let guest = Holder::new(&[], &top);
    let number = top.metadata().unwrap().ino();
    qcowtool(with(&replacers(&source, &top)[0], "--force-in-use")).ok();
    assert_ne!(top.metadata().unwrap().ino(), number);
    drop(guest);
    qcowtool(with(&replacers(&source, &top)[0], "--force")).ok();
}

#[test]
fn a_file_that_an_image_beside_it_needs_is_replaced_only_by_force_in_use() {
    needs_qemu!();
    let scratch = Scratch::new();
    let source = scratch.path("source.qcow2");
    qemu::create(&source, "", "4M");
    let base = scratch.file("base.raw", &[1; 4096]);
    qemu::overlay(scratch.path("overlay.qcow2"), "base.raw", "raw", "", "");
    let data = scratch.path("data.raw");
    qemu::create(scratch.path("image.qcow2"), &format!("data_file={}", data.display()), "64k");
    for (target, words) in [
        (&base, ["'overlay.qcow2'", "its backing file"]),
        (&data, ["'image.qcow2'", "its data file"]),
    ] {
        let before = fs::read(target).unwrap();
        for command in replacers(&source, target) {
            let run = qcowtool(with(&command, "--force"));
            run.refused_naming(&[&words[..], &["in use", "--force-in-use"]].concat());
        }
        let into = args!["flatten", "-n", "-O", "raw", scratch.path("small.qcow2"), target];
        qemu::create(scratch.path("small.qcow2"), "", "4k");
        qcowtool(into.clone()).refused_naming(&[words[0], "--force-in-use"]);
        assert_bytes!(fs::read(target).unwrap(), before);
        qcowtool(with(&into, "--force-in-use")).ok();
        qcowtool(with(&replacers(&source, target)[1], "--force-in-use")).ok();
        assert_ne!(fs::read(target).unwrap(), before);
    }
}

#[test]
fn a_file_that_a_loop_device_is_backed_by_is_replaced_only_by_force_in_use() {
    needs_qemu!();
    let scratch = Scratch::new();
    let source = scratch.path("source.qcow2");
    qemu::create(&source, "", "4k");
    let volume = scratch.file("volume", &[5; 8192]);
    let Some(device) = Loop::over(&volume) else { return };
    let named = device.0.to_str().unwrap();
    for sandbox in ["auto", "off"] {
        for command in replacers(&source, &volume) {
            let mut command = with(&command, "--force");
            command.insert(1, format!("--sandbox={sandbox}").into());
            qcowtool(command).refused_naming(&["in use", named, "--force-in-use"]);
        }
        let untrusted = args!["flatten", "--untrusted", "-f", "qcow2", "--force", source, volume];
        qcowtool(untrusted).refused_naming(&[named]);
        let manifest = args!["checksum", "--manifest", volume, "--force", source];
        qcowtool(manifest).refused_naming(&[named]);
        let into = args!["flatten", "-n", "-O", "raw", source, volume];
        qcowtool(into).refused_naming(&[named]);
    }
    assert_bytes!(fs::read(&volume).unwrap(), vec![5; 8192]);
    drop(device);
    qcowtool(with(&replacers(&source, &volume)[0], "--force")).ok();
}

/// An access control list that lets user 1234 read and write: the kernel's version 2, then tag, rights
/// and number of each entry.
fn acl() -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    let none = u32::MAX;
    for (tag, rights, id) in
        [(1_u16, 6_u16, none), (2, 6, 1234), (4, 4, none), (0x10, 6, none), (0x20, 0, none)]
    {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(rights.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

fn attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 4096];
    let len = rustix::fs::getxattr(path, name, value.as_mut_slice()).ok()?;
    value.truncate(len);
    Some(value)
}

#[test]
fn what_is_replaced_keeps_owner_group_mode_list_and_attributes() {
    needs_qemu!();
    let scratch = Scratch::new();
    let source = scratch.path("source.qcow2");
    qemu::create(&source, "", "4M");
    let root = rustix::process::geteuid().is_root();
    if !root {
        skipped("only root can give files away");
    }
    for (name, makes) in [("a", 0), ("b", 1)] {
        let target = scratch.file(name, b"old");
        let set = |name: &str, value: &[u8]| {
            rustix::fs::setxattr(&target, name, value, XattrFlags::empty())
        };
        if root {
            std::os::unix::fs::chown(&target, Some(36), Some(107)).unwrap();
        }
        let list = set("system.posix_acl_access", &acl());
        let note = set("user.note", b"of the operator");
        if list.is_err() || note.is_err() {
            skipped("the file system of temporary files has no lists or attributes");
        }
        let before = target.metadata().unwrap();
        let attributes = ["system.posix_acl_access", "user.note", "security.selinux"];
        let attributes = attributes.map(|name| (name, attribute(&target, name)));
        qcowtool(with(&replacers(&source, &target)[makes], "--force")).ok();
        let after = target.metadata().unwrap();
        assert_ne!(after.ino(), before.ino());
        let rights = |of: &fs::Metadata| (of.uid(), of.gid(), of.mode() & 0o7777);
        assert_eq!(rights(&after), rights(&before));
        for (name, value) in attributes {
            assert_eq!(attribute(&target, name), value, "{name}");
        }
    }
}

#[test]
fn a_list_that_the_directory_gives_new_files_does_not_add_to_what_is_replaced() {
    needs_qemu!();
    let scratch = Scratch::new();
    let dir = scratch.subdir("dir");
    let target = dir.join("disk");
    fs::write(&target, "old").unwrap();
    let set = rustix::fs::setxattr(&dir, "system.posix_acl_default", &acl(), XattrFlags::empty());
    if set.is_err() {
        return skipped("the file system of temporary files has no access control lists");
    }
    let mode = target.metadata().unwrap().mode();
    qcowtool(args!["create", "-q", "--force", target, "1M"]).ok();
    assert_eq!(attribute(&target, "system.posix_acl_access"), None);
    assert_eq!(target.metadata().unwrap().mode(), mode);
}

#[test]
fn an_owner_that_cannot_be_kept_ends_the_run_before_anything_is_written() {
    needs_qemu!();
    if !rustix::process::geteuid().is_root() {
        return skipped("needs root, to be another user");
    }
    let scratch = Scratch::new();
    let dir = scratch.subdir("dir");
    let target = dir.join("disk");
    fs::write(&target, "old").unwrap();
    std::os::unix::fs::chown(&target, Some(36), Some(36)).unwrap();
    for open in [scratch.dir(), &dir] {
        fs::set_permissions(open, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    }
    let binary = scratch.path("qcowtool");
    fs::copy(common::binary(), &binary).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid=1234", "--regid=1234", "--clear-groups"])
        .arg(&binary)
        .args(args!["create", "--force", target, "1M"])
        .output();
    let Ok(output) = output else { return skipped("no setpriv here") };
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("owner and group") && message.contains("as root"), "{message}");
    assert_eq!(fs::read(&target).unwrap(), b"old");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    // What is advised.
    qcowtool(args!["create", "-q", "--force", target, "1M"]).ok();
    assert_eq!(target.metadata().unwrap().uid(), 36);
}
