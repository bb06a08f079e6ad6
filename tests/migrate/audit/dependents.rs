//! `dependents`: what stands on an image, whatever it is called, and whether it can be deleted.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use fixtures::{Holder, Scratch, args, needs_qemu, qemu};
use serde_json::Value;

use super::pair;
use common::qcowtool;

/// The file names of what stands on an image, the nearest first.
fn on(template: &Path, scratch: &Scratch) -> Vec<String> {
    let run = qcowtool(args!["dependents", "--output", "json", template, "--in", scratch.dir()]);
    let images = run.json()["images"].clone();
    let file =
        |image: &Value| image["path"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
    images.as_array().unwrap().iter().map(file).collect()
}

#[test]
fn whoever_stands_on_it_is_found_by_every_name_of_the_file() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (store, volumes) = (scratch.subdir("store"), scratch.subdir("volumes"));
    let template = store.join("template.qcow2");
    qemu::create(&template, "", "1M");
    fs::hard_link(&template, volumes.join("hard")).unwrap();
    symlink("../store", volumes.join("linked")).unwrap();
    symlink("linked/template.qcow2", volumes.join("soft")).unwrap();
    let json = format!(
        "json:{{\"driver\":\"qcow2\",\"file\":{{\"driver\":\"file\",\"filename\":\"{}\"}}}}",
        template.display()
    );
    let bases = ["../store/template.qcow2", "hard", "soft", "linked/template.qcow2", json.as_str()];
    for (nth, base) in bases.iter().enumerate() {
        qemu::overlay(volumes.join(format!("vm{nth}")), base, "qcow2", "", "");
    }
    qemu::overlay(volumes.join("top"), "vm2", "qcow2", "", "");
    let expected = ["vm0", "vm1", "vm2", "vm3", "vm4", "top"];
    for name in [
        &template,
        &volumes.join("hard"),
        &volumes.join("soft"),
        &volumes.join("linked/template.qcow2"),
    ] {
        assert_eq!(on(name, &scratch), expected, "{}", name.display());
    }
    assert_eq!(on(&volumes.join("vm2"), &scratch), ["top"]);
}

#[test]
fn a_bind_mount_is_the_same_file() {
    needs_qemu!();
    let scratch = Scratch::new();
    pair(&scratch);
    let mount = scratch.subdir("mount");
    let script = "mount --bind \"$1\" \"$2\" && exec \"$3\" dependents \"$2/base.qcow2\" --in \"$1\" --may-delete";
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", script, "sh"])
        .args([scratch.dir(), &mount, &common::binary()])
        .output();
    let Ok(output) = output else { return };
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("unshare") || said.contains("mount:") {
        return; // nobody may mount here
    }
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    // Also when it is gone: then its directory tells.
    let gone = script.replace(" && exec", " && rm \"$1/base.qcow2\" && exec");
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", &gone, "sh"])
        .args([scratch.dir(), &mount, &common::binary()])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("overlay.qcow2 (directly)"));
}

#[test]
fn may_delete_has_three_answers() {
    needs_qemu!();
    let scratch = Scratch::new();
    pair(&scratch);
    let (base, overlay) = (scratch.path("base.qcow2"), scratch.path("overlay.qcow2"));
    let ask = |template: &Path| {
        let run = qcowtool(args!["dependents", template, "--in", scratch.dir(), "--may-delete"]);
        (run.code(), run.stdout(), run.stderr())
    };
    let (code, listed, said) = ask(&base);
    assert_eq!((code, said.as_str()), (Some(1), ""));
    assert!(listed.contains("overlay.qcow2 (directly)"), "{listed}");
    let (code, listed, _) = ask(&overlay);
    assert_eq!((code, listed), (Some(0), format!("nothing depends on {}\n", overlay.display())));
    // A header that cannot be read may name it.
    scratch.file("broken.qcow2", b"QFI\xfb\0\0\0\x03");
    let (code, _, said) = ask(&overlay);
    assert_eq!(code, Some(6));
    assert!(said.contains("broken.qcow2") && said.contains("header"), "{said}");
    assert_eq!(ask(&base).0, Some(1), "what is found is in use, whatever could not be seen");
    fs::remove_file(scratch.path("broken.qcow2")).unwrap();
    // A directory that is not there was meant to be looked at.
    let gone = scratch.path("gone");
    let run = qcowtool(args!["dependents", overlay, "--may-delete", "--in", scratch.dir(), gone]);
    assert_eq!(run.code(), Some(6));
    // What is behind a link to a directory was not looked at.
    let elsewhere = Scratch::new();
    symlink(elsewhere.dir(), scratch.path("link")).unwrap();
    let (code, _, said) = ask(&overlay);
    assert_eq!(code, Some(6));
    assert!(said.contains("link to a directory"), "{said}");
    let both = args!["dependents", overlay, "--may-delete", "--in", scratch.dir(), elsewhere.dir()];
    assert_eq!(qcowtool(both).code(), Some(0));
    fs::remove_file(scratch.path("link")).unwrap();
    // A directory cannot be told apart by names from what stands on it.
    assert_eq!(ask(scratch.dir()).0, Some(6));
    // A name that nobody knows may be a slip.
    let (code, _, said) = ask(&scratch.path("slip.qcow2"));
    assert_eq!(code, Some(6));
    assert!(said.contains("no file has this name"), "{said}");
    // A libvirt that cannot be asked.
    let run = qcowtool(args!["dependents", overlay, "--may-delete", "--connect", "nonsense:///x"]);
    assert_eq!(run.code(), Some(6), "{}", run.stderr());
    // A json: name of a range of a file is of that file; one that is not understood may be of any.
    let odd = scratch.path("odd.qcow2");
    for (option, code) in [("offset", 1), ("surprise", 6)] {
        let name = format!(
            "json:{{\"driver\":\"raw\",\"{option}\":512,\"file.filename\":\"{}\"}}",
            overlay.display()
        );
        let header = args!["create", "-q", "-u", "-f", "qcow2", "-b", name, "-F", "raw", odd, "1M"];
        qemu::qemu_img(&header);
        assert_eq!(ask(&overlay).0, Some(code), "{option}");
    }
}

#[test]
fn a_deleted_template_is_looked_up_by_the_name_in_headers() {
    needs_qemu!();
    let scratch = Scratch::new();
    let store = scratch.subdir("store");
    let template = store.join("template.qcow2");
    qemu::create(&template, "", "1M");
    qemu::overlay(scratch.path("vm"), "store/template.qcow2", "qcow2", "", "");
    symlink("store/template.qcow2", scratch.path("soft")).unwrap();
    qemu::overlay(scratch.path("vm2"), "soft", "qcow2", "", "");
    fs::remove_file(&template).unwrap();
    assert_eq!(on(&template, &scratch), ["vm", "vm2"]);
    // Also if its directory is gone.
    fs::remove_file(scratch.path("vm2")).unwrap();
    fs::remove_dir(&store).unwrap();
    assert_eq!(
        on(&scratch.dir().canonicalize().unwrap().join("store/template.qcow2"), &scratch),
        ["vm"]
    );
}

#[test]
fn who_has_it_open_depends_on_it() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = scratch.path("alone.qcow2");
    qemu::create(&image, "", "1M");
    let ask = || qcowtool(args!["dependents", image, "--in", scratch.dir(), "--may-delete"]);
    assert_eq!(ask().code(), Some(0));
    let holder = Holder::new(&["-r"], &image);
    let run = ask();
    assert_eq!(run.code(), Some(1));
    let line = format!("process {} (qemu-io) has it open for reading\n", holder.pid());
    assert_eq!(run.stdout(), line);
    // Deleted, it is needed all the same, and so is what an overlay stands on that was deleted.
    fs::remove_file(&image).unwrap();
    assert_eq!(ask().code(), Some(1));
    drop(holder);
    pair(&scratch);
    let _holder = Holder::new(&["-r"], &scratch.path("overlay.qcow2"));
    fs::remove_file(scratch.path("overlay.qcow2")).unwrap();
    assert_eq!(on(&scratch.path("base.qcow2"), &scratch), ["overlay.qcow2"]);
}

#[test]
fn a_data_file_has_a_dependent_too() {
    needs_qemu!();
    let scratch = Scratch::new();
    let data = scratch.path("data.raw");
    let options = format!("data_file={},data_file_raw=on", data.display());
    qemu::create(scratch.path("split.qcow2"), &options, "1M");
    assert_eq!(on(&data, &scratch), ["split.qcow2"]);
}

#[test]
fn vmdk_clones_and_the_extents_of_descriptors_depend_on_files() {
    needs_qemu!();
    let scratch = Scratch::new();
    let vmdk = |name: &str, options: &[&str]| {
        let status = Command::new("qemu-img")
            .args(["create", "-q", "-f", "vmdk"])
            .args(options)
            .arg(scratch.path(name))
            .args((!options.contains(&"-b")).then_some("8M"))
            .status();
        assert!(status.unwrap().success());
    };
    vmdk("tpl.vmdk", &[]);
    vmdk("clone.vmdk", &["-b", "tpl.vmdk", "-F", "vmdk"]);
    vmdk("flat.vmdk", &["-o", "subformat=monolithicFlat"]);
    vmdk("split.vmdk", &["-o", "subformat=twoGbMaxExtentSparse"]);
    qemu::overlay(scratch.path("top.qcow2"), "clone.vmdk", "vmdk", "", "");
    for (name, expected) in [
        ("tpl.vmdk", &["clone.vmdk", "top.qcow2"][..]),
        ("flat-flat.vmdk", &["flat.vmdk"]),
        ("split-s001.vmdk", &["split.vmdk"]),
        ("flat.vmdk", &[]),
        ("top.qcow2", &[]),
    ] {
        assert_eq!(on(&scratch.path(name), &scratch), expected, "{name}");
        let asked = args!["dependents", scratch.path(name), "--in", scratch.dir(), "--may-delete"];
        assert_eq!(qcowtool(asked).code(), Some(i32::from(!expected.is_empty())), "{name}");
    }
    // Of a clone that does not name its parent, nobody can say what it needs.
    let clone = scratch.path("clone.vmdk");
    let mut bytes = fs::read(&clone).unwrap();
    let at = bytes.windows(18).position(|part| part == b"parentFileNameHint").unwrap();
    bytes[at..at + 18].copy_from_slice(b"parentFileNameLost");
    fs::write(&clone, bytes).unwrap();
    let asked =
        args!["dependents", scratch.path("tpl.vmdk"), "--in", scratch.dir(), "--may-delete"];
    let run = qcowtool(asked);
    assert_eq!(run.code(), Some(6));
    assert!(run.stderr().contains("clone.vmdk: ") && run.stderr().contains("parentCID="));
}

#[test]
fn an_audit_tells_of_extents_that_are_not_there() {
    needs_qemu!();
    let scratch = Scratch::new();
    let descriptor = "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n\
        createType=\"twoGbMaxExtentFlat\"\nRW 4 FLAT \"here.vmdk\" 0\nRW 4 FLAT \"gone.vmdk\" 0\n";
    scratch.file("disk.vmdk", descriptor.as_bytes());
    scratch.file("here.vmdk", &[0; 2048]);
    let found = super::Found::in_dir(&scratch);
    assert_eq!(found.findings(), ["error base-missing disk.vmdk"]);
    assert!(found.said("base-missing").contains("gone.vmdk"));
    let image = found.image(&scratch.path("disk.vmdk"));
    assert_eq!(image["format"], "vmdk");
    assert_eq!(image["extents"].as_array().unwrap().len(), 2, "{image}");
}

#[test]
fn a_loop_device_depends_on_its_file_and_what_stands_on_the_device_too() {
    needs_qemu!();
    let scratch = Scratch::new();
    let disk = scratch.file("disk.img", &[0; 1 << 20]);
    let attached = Command::new("losetup").args(["--find", "--show"]).arg(&disk).output();
    let Ok(attached) = attached.map(|output| String::from_utf8(output.stdout).unwrap()) else {
        println!("SKIPPED: there is no losetup");
        return;
    };
    let device = attached.trim();
    if device.is_empty() {
        println!("SKIPPED: no loop device can be set up here");
        return;
    }
    let overlay = scratch.path("overlay.qcow2");
    let made = std::panic::catch_unwind(|| {
        qemu::overlay(&overlay, device, "raw", "", "");
        let found = on(&disk, &scratch);
        let asked = args!["dependents", &disk, "--in", scratch.dir(), "--may-delete"];
        (found, qcowtool(asked).code())
    });
    // The kernel keeps the file of a device that nobody detached.
    let detached = Command::new("losetup").args(["--detach", device]).status().unwrap();
    let (found, code) = made.unwrap();
    let name = device.rsplit('/').next().unwrap();
    assert_eq!(found, [name, "overlay.qcow2"]);
    assert_eq!(code, Some(1));
    assert!(detached.success());
    fs::remove_file(&overlay).unwrap();
    let asked = args!["dependents", &disk, "--in", scratch.dir(), "--may-delete"];
    assert_eq!(qcowtool(asked).code(), Some(0));
}
