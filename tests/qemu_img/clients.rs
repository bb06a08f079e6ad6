//! Command lines as OpenStack, CloudStack, oVirt, KubeVirt, libvirt, Proxmox and others build them, with what they take
//! from the outcome. All count on exit code 0 and an empty standard error.

use std::os::unix::fs::PermissionsExt;

use fixtures::needs_qemu;
use serde_json::Value;

use crate::beside::Beside;

/// A base with data, an overlay on it with some more and zeros, and a raw file.
fn images() -> Beside {
    let beside = Beside::new();
    beside.set_up(
        "qemu-img create -q -f qcow2 base.qcow2 4M
         qemu-io -f qcow2 -c 'write -P 1 0 1M' -c 'write -P 2 2M 192k' base.qcow2 >/dev/null
         qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2
         qemu-io -f qcow2 -c 'write -P 3 64k 64k' -c 'write -z 256k 128k' top.qcow2 >/dev/null
         qemu-img convert -O raw base.qcow2 base.raw",
    );
    beside
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn info_says_what_openstack_ovirt_kubevirt_and_lima_read() {
    needs_qemu!();
    let beside = images();
    for line in [
        "info top.qcow2 --force-share --output=json",
        "info top.qcow2 --force-share --output=json -f qcow2",
        "info -f qcow2 --output=json base.qcow2",
        "info --output json -U ./top.qcow2",
        "info --output=json base.raw -f raw",
        "info top.qcow2 --output json --force-share --backing-chain",
        "info -U top.qcow2",
        "info --backing-chain top.qcow2",
        "info base.raw",
    ] {
        beside.same(line);
    }
    let top = json(&beside.same("info --output=json top.qcow2"));
    assert_eq!(top["format"], "qcow2");
    assert_eq!(top["virtual-size"], 4 << 20);
    assert_eq!(top["backing-filename"], "base.qcow2");
    assert_eq!(top["format-specific"]["data"]["compat"], "1.1");
    // Lima asks for no backing file and one child of the same name.
    let base = json(&beside.same("info --output=json --force-share base.qcow2"));
    assert!(base.get("backing-filename").is_none());
    assert_eq!(base["children"][0]["info"]["filename"], base["filename"]);
    let human = beside.same("info top.qcow2");
    assert!(human.lines().any(|line| line == "virtual size: 4 MiB (4194304 bytes)"), "{human}");
    assert!(human.lines().any(|line| line == "backing file: base.qcow2"), "{human}");
}

#[test]
fn images_are_made_as_nova_cinder_cloudstack_libvirt_and_proxmox_ask() {
    needs_qemu!();
    let beside = images();
    for (line, made, format) in [
        ("create -f raw 1.img 20M", "1.img", "raw"),
        ("create -f qcow2 2.img 20971520", "2.img", "qcow2"),
        (
            "create -f qcow2 -o backing_file=base.qcow2,backing_fmt=qcow2,cluster_size=4096,size=8388608 3.img",
            "3.img",
            "qcow2",
        ),
        ("create -f qcow2 -o backing_file=base.qcow2,backing_fmt=qcow2 4.img", "4.img", "qcow2"),
        (
            "create -f qcow2 -o compat=1.1 -b base.raw -F raw -o preallocation=off -u 5.img 4194304",
            "5.img",
            "qcow2",
        ),
        ("create -f raw 6.img 1048576 -o preallocation=falloc", "6.img", "raw"),
        ("create -f qcow2 -b base.qcow2 7.img -F qcow2", "7.img", "qcow2"),
        ("create -o cluster_size=65536,lazy_refcounts=on -f qcow2 8.img 1048576", "8.img", "qcow2"),
        (
            "create -f qcow2 -o preallocation=metadata,nocow=on,compat=1.1,lazy_refcounts 9.img 4096K",
            "9.img",
            "qcow2",
        ),
        ("create -o preallocation=full -f qcow2 10.img 1024K", "10.img", "qcow2"),
        (
            "create -f qcow2 -o backing_file=base.qcow2,backing_fmt=qcow2,preallocation=off,compat=1.1,cluster_size=65536 ./11.img",
            "11.img",
            "qcow2",
        ),
        ("create -q -f qcow2 -b base.qcow2 -F qcow2 -o compat=1.1 12.img", "12.img", "qcow2"),
        ("create 13.img -f qcow2 -o backing_fmt=qcow2 -b base.qcow2", "13.img", "qcow2"),
        ("create -f qcow2 14.img -o size=1048576", "14.img", "qcow2"),
        ("create -f qcow2 -o compat=0.10,cluster_size=2M 15.img 40960M", "15.img", "qcow2"),
        ("create -f qcow2 -o data_file=16.data,data_file_raw=on 16.img 1M", "16.img", "qcow2"),
        ("create -f qcow2 -o extended_l2=on,refcount_bits=1 17.img 3G", "17.img", "qcow2"),
        ("create -f qcow2 -o compression_type=zstd 18.img 1T", "18.img", "qcow2"),
    ] {
        beside.same(line);
        beside.same(&format!("info --output=json -f {format} {made}"));
        if !line.contains("data_file") {
            beside.same_content(made, format);
        }
        let mode = beside.ours_dir().join(made).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644, "{line}");
    }
    // An image that is there is emptied where it is: inode, mode and links stay.
    beside.set_up("ln 1.img link.img; chmod 640 1.img");
    beside.same("create -f qcow2 1.img 1M");
    let status = beside.ours_dir().join("link.img").metadata().unwrap();
    assert_eq!(status.permissions().mode() & 0o777, 0o640);
    beside.same("info -f qcow2 --output=json link.img");
}

#[test]
fn new_images_are_laid_out_as_qemus() {
    needs_qemu!();
    let beside = Beside::new();
    for options in [
        "cluster_size=65536",
        "cluster_size=512",
        "cluster_size=2M",
        "compat=0.10",
        "refcount_bits=64",
        "extended_l2=on",
        "lazy_refcounts=on,cluster_size=4k",
        "preallocation=metadata",
        "preallocation=metadata,cluster_size=4k",
        "compression_type=zstd",
    ] {
        for size in ["512", "1M", "40M"] {
            beside.same(&format!("create -q -f qcow2 -o {options} a {size}"));
            let [ours, theirs] = beside.dirs().map(|dir| std::fs::read(dir.join("a")).unwrap());
            assert_eq!(ours.len(), theirs.len(), "{options} {size}");
            // Places of the tables, and the tables' first entries.
            assert_eq!(ours[..104], theirs[..104], "{options} {size}");
        }
    }
}

#[test]
fn check_measure_map_and_compare_say_what_ovirt_reads() {
    needs_qemu!();
    let beside = images();
    for line in [
        "check --output json -f qcow2 top.qcow2",
        "check base.qcow2",
        "check -q -f qcow2 base.qcow2",
        "check -r all base.qcow2",
        "map --output json top.qcow2",
        "map top.qcow2",
        "map -f raw --output json base.raw",
        "map --output json --start-offset=4M top.qcow2",
        "map --output json --start-offset=100k --max-length=1M top.qcow2",
        "measure --size 1G -O qcow2",
        "measure --output json -O qcow2 --size 20G -o cluster_size=2M",
        "measure --output json -O raw top.qcow2",
        "measure -O qcow2 -f qcow2 top.qcow2",
        "compare -p -f qcow2 -F raw base.qcow2 base.raw",
        "compare -q base.qcow2 base.qcow2",
    ] {
        beside.same(line);
    }
    let json_name =
        r#"json:{"file":{"driver":"file","filename":"top.qcow2"},"driver":"qcow2","backing":null}"#;
    beside.both(&["measure", "--output", "json", "-O", "qcow2", json_name]).ok();
    let differs =
        beside.both(&["compare", "-f", "qcow2", "-F", "qcow2", "top.qcow2", "base.qcow2"]);
    assert_eq!((differs.code, &*differs.out), (Some(1), "Content mismatch at offset 65536!\n"));
    let strict = beside.both(&["compare", "-s", "top.qcow2", "base.qcow2"]);
    assert_eq!(strict.code, Some(1));
    assert_eq!(beside.both(&["check", "-f", "raw", "base.raw"]).code, Some(63));
    // A leak: 3, and the count.
    beside.set_up("truncate -s $(( $(stat -c %s base.qcow2) / 65536 * 65536 + 65536 )) base.qcow2");
    for dir in beside.dirs() {
        let mut image = fixtures::Patch::open(dir.join("base.qcow2"));
        let block = usize::try_from(image.u64(usize::try_from(image.u64(48)).unwrap())).unwrap();
        let last = image.cluster_size();
        let index = std::fs::metadata(dir.join("base.qcow2")).unwrap().len() as usize / last - 1;
        image.set_u16(block + 2 * index, 1);
        image.save();
    }
    let leaking = beside.both(&["check", "--output", "json", "base.qcow2"]);
    assert_eq!(leaking.code, Some(3));
    assert_eq!(json(&leaking.out)["leaks"], 1);
    assert!(leaking.err.starts_with("Leaked cluster "), "{leaking:?}");
}

#[test]
fn copies_are_what_nova_glance_kubevirt_incus_and_image_builders_make() {
    needs_qemu!();
    let beside = images();
    for (line, made, format) in [
        ("convert -t none -O raw -f qcow2 top.qcow2 1.img", "1.img", "raw"),
        ("convert -t writeback -O qcow2 -f raw base.raw 2.img -c", "2.img", "qcow2"),
        ("convert -f qcow2 -O raw top.qcow2 top.qcow2.raw", "top.qcow2.raw", "raw"),
        ("convert -O qcow2 -t none -S 0 -f qcow2 base.qcow2 3.img", "3.img", "qcow2"),
        ("convert -O raw -t none -S 4k -f qcow2 -W top.qcow2 4.img", "4.img", "raw"),
        ("convert -q -f qcow2 -O qcow2 top.qcow2 5.img", "5.img", "qcow2"),
        ("convert -c -f raw base.raw -O qcow2 -o compression_type=zstd 6.img", "6.img", "qcow2"),
        ("convert -O qcow2 -c -o compat=1.1 -m 4 top.qcow2 7.img", "7.img", "qcow2"),
        ("convert -c -O qcow2 -o compat=0.10 top.qcow2 8.img", "8.img", "qcow2"),
        ("convert -O raw top.qcow2 9.img -o preallocation=falloc", "9.img", "raw"),
        (
            "convert -U --image-opts -O raw driver=qcow2,file.filename=top.qcow2 10.img",
            "10.img",
            "raw",
        ),
        ("convert top.qcow2 11.img -m 4 -O qcow2 -U", "11.img", "qcow2"),
    ] {
        assert_eq!(beside.same(line), "", "{line}");
        beside.same_content(made, format);
    }
    beside.set_up("truncate -s 4M volume");
    let line = "convert -p -f qcow2 -O raw -t writeback -T none -t none -W -n --target-is-zero top.qcow2 volume";
    let words: Vec<&str> = line.split_whitespace().collect();
    let shown = beside.ours(&words).ok();
    beside.theirs_says(&words);
    beside.same_content("volume", "raw");
    let parts: Vec<&str> =
        shown.split('\r').map(str::trim).filter(|part| !part.is_empty()).collect();
    assert_eq!((parts.first(), parts.last()), (Some(&"(0.00/100%)"), Some(&"(100.00/100%)")));
    assert!(shown.ends_with("\r\n"), "{shown:?}");
}

#[test]
fn snapshots_are_listed_as_scripts_cut_them_apart() {
    needs_qemu!();
    let beside = images();
    assert_eq!(beside.same("snapshot -l base.qcow2"), "");
    beside.same("snapshot -c before-upgrade base.qcow2");
    beside.same("snapshot -q -c second base.qcow2");
    let list = beside.same("snapshot -U -l base.qcow2");
    let ids: Vec<&str> =
        list.lines().skip(2).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(ids, ["1", "2"]);
    beside.same("convert -U -f qcow2 -O qcow2 -l snapshot.name=second base.qcow2 one.qcow2");
    beside.same_content("one.qcow2", "qcow2");
    beside.set_up("qemu-io -f qcow2 -c 'write -P 9 1M 1M' base.qcow2 >/dev/null");
    beside.same("snapshot -q -a before-upgrade base.qcow2");
    beside.same_content("base.qcow2", "qcow2");
    beside.same("snapshot -d before-upgrade base.qcow2");
    beside.same("snapshot --image-opts -d second driver=qcow2,file.filename=base.qcow2");
    beside.same("check -q base.qcow2");
    let gone = beside.both(&["snapshot", "-d", "second", "base.qcow2"]);
    assert!(gone.refused().contains("snapshot not found"));
    assert_eq!(beside.same("snapshot -l base.raw"), "");
}

#[test]
fn overlays_are_rebased_and_committed_as_cinder_ovirt_and_opennebula_do() {
    needs_qemu!();
    let beside = images();
    beside.set_up("cp base.qcow2 other.qcow2; qemu-io -f qcow2 -c 'write -P 7 3M 64k' other.qcow2 >/dev/null; cp top.qcow2 two.qcow2; cp top.qcow2 three.qcow2");
    for (line, made) in [
        ("rebase -u -b other.qcow2 two.qcow2 -F qcow2", "two.qcow2"),
        ("rebase -t none -T none -u -f qcow2 -F qcow2 -b base.qcow2 two.qcow2", "two.qcow2"),
        ("rebase -f qcow2 -F qcow2 -b other.qcow2 top.qcow2", "top.qcow2"),
        ("rebase top.qcow2 -U -u -F qcow2 -q -b other.qcow2", "top.qcow2"),
        ("rebase -p -b  top.qcow2", "top.qcow2"),
        ("commit -d two.qcow2", "base.qcow2"),
        ("commit three.qcow2 -q", "base.qcow2"),
        ("check -q three.qcow2", "three.qcow2"),
        ("info --output=json three.qcow2", "three.qcow2"),
    ] {
        // Two blanks are an empty name.
        let words: Vec<&str> = line.split(' ').collect();
        beside.both(&words).ok();
        beside.same_content(made, "qcow2");
    }
    let alone = json(&beside.same("info --output=json top.qcow2"));
    assert!(alone.get("backing-filename").is_none());
    let refused = beside.both(&["commit", "base.qcow2"]).refused();
    assert_eq!(refused, "qemu-img: Image does not have a backing file\n");
}

#[test]
fn existing_images_several_sources_and_parts_are_copied_as_proxmox_and_ovirt_do() {
    needs_qemu!();
    let beside = images();
    beside.set_up("truncate -s 4M volume; qemu-img snapshot -c s base.qcow2");
    beside.set_up("qemu-img create -q -f qcow2 ready.qcow2 4M; qemu-io -f qcow2 -c 'write -P 8 0 4M' ready.qcow2 >/dev/null");
    beside.set_up("qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 over.qcow2");
    beside.same("convert -t none -T none -n -f qcow2 -O qcow2 -B base.qcow2 top.qcow2 over.qcow2");
    beside.same_content("over.qcow2", "qcow2");
    let [ours, theirs] = beside.dirs().map(|dir| {
        let map = fixtures::args!["map", "--output", "json", dir.join("over.qcow2")];
        let map: serde_json::Value = serde_json::from_str(&fixtures::qemu_img(&map)).unwrap();
        let own = map.as_array().unwrap().iter().filter(|range| range["depth"] == 0);
        own.map(|range| range["length"].as_u64().unwrap()).sum::<u64>()
    });
    assert_eq!(ours, theirs, "what the backing file has is left to it");
    // Whatever the image had, it reads as the source then, and keeps what follows the disk.
    beside.set_up(
        "qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 full.qcow2 5M
         qemu-io -f qcow2 -c 'write -P 8 0 5M' full.qcow2 >/dev/null",
    );
    let onto = "convert -n -f qcow2 -O qcow2 -B base.qcow2 top.qcow2 full.qcow2";
    assert_eq!(beside.ours(&onto.split(' ').collect::<Vec<_>>()).ok(), "");
    let whole = "convert -n -f qcow2 -O qcow2 top.qcow2 full.qcow2";
    assert_eq!(beside.theirs(&whole.split(' ').collect::<Vec<_>>()).ok(), "");
    beside.same_content("full.qcow2", "qcow2");
    for (line, made, format) in [
        ("convert -n -f qcow2 -O qcow2 top.qcow2 ready.qcow2", "ready.qcow2", "qcow2"),
        (
            "convert -n -l snapshot.name=s --target-image-opts -f qcow2 base.qcow2 \
             driver=qcow2,discard-no-unref=true,file.driver=file,file.filename=ready.qcow2",
            "ready.qcow2",
            "qcow2",
        ),
        (
            "convert -n -T none -r 1G -f qcow2 --target-image-opts top.qcow2 driver=raw,file.filename=volume",
            "volume",
            "raw",
        ),
        (
            "convert -n --target-image-opts top.qcow2 file.filename=ready.qcow2",
            "ready.qcow2",
            "qcow2",
        ),
        (
            "convert -t none -T none -f qcow2 -O qcow2 -o compat=1.1,backing_file=base.qcow2,backing_fmt=qcow2 top.qcow2 1.img",
            "1.img",
            "qcow2",
        ),
        ("convert -O qcow2 -B base.qcow2 -F qcow2 top.qcow2 2.img", "2.img", "qcow2"),
        ("convert -O raw base.raw top.qcow2 3.img", "3.img", "raw"),
        ("dd -f qcow2 -O qcow2 bs=64k count=40 skip=3 if=top.qcow2 of=4.img", "4.img", "qcow2"),
        ("dd bs=1M if=base.raw of=5.img", "5.img", "raw"),
    ] {
        assert_eq!(beside.same(line), "", "{line}");
        beside.same_content(made, format);
    }
    let small = "convert -n -f qcow2 -O qcow2 top.qcow2 small.qcow2";
    beside.set_up("qemu-img create -q -f qcow2 small.qcow2 1M");
    let said = beside.both(&small.split(' ').collect::<Vec<_>>()).refused();
    assert_eq!(said, "qemu-img: output file is smaller than input file\n");
    for (target, why) in [
        ("ready.qcow2", "Cannot find device='ready.qcow2' nor node-name='ready.qcow2'"),
        (
            "driver=qcow2,file.filename=a,foo=1",
            "Block format 'qcow2' does not support the option 'foo'",
        ),
        ("driver=qcow2,file.filename=gone", "Could not open 'gone': No such file or directory"),
    ] {
        let words = ["convert", "-n", "--target-image-opts", "top.qcow2", target];
        let said = beside.both(&words).refused();
        assert_eq!(said, format!("qemu-img: Could not open '{target}': {why}\n"));
    }
    let part = "driver=raw,file.filename=volume,offset=512";
    let said = beside.ours(&["convert", "-n", "--target-image-opts", "top.qcow2", part]).refused();
    assert!(said.contains("a target cannot have the option 'offset'"), "{said}");
}

#[test]
fn bitmaps_and_options_are_changed_as_ovirt_and_opennebula_do() {
    needs_qemu!();
    let beside = images();
    for line in [
        "bitmap --add --enable base.qcow2 one -g 65536",
        "bitmap --add --disable base.qcow2 two -g 32768",
        "bitmap base.qcow2 three --add",
        "bitmap --merge one base.qcow2 two",
        "bitmap base.qcow2 three --remove",
        "info --output=json base.qcow2",
        "bitmap --remove base.qcow2 one",
        "bitmap --remove base.qcow2 two",
        "amend -o compat=1.1 top.qcow2",
        "amend -o lazy_refcounts=on,refcount_bits=32 top.qcow2",
        "info --output=json top.qcow2",
        "amend -o compat=0.10,refcount_bits=16,lazy_refcounts=off base.qcow2",
        "info --output=json base.qcow2",
    ] {
        beside.same(line);
    }
    beside.same_content("base.qcow2", "qcow2");
    beside.same_content("top.qcow2", "qcow2");
    let said = beside.ours(&["bitmap", "--remove", "top.qcow2", "none"]).refused();
    assert_eq!(
        said,
        "qemu-img: Operation remove on bitmap none failed: Dirty bitmap 'none' not found\n"
    );
}

#[test]
fn disks_are_resized_as_cloudstack_proxmox_and_multipass_do() {
    needs_qemu!();
    let beside = images();
    for line in [
        "resize top.qcow2 8388608",
        "resize top.qcow2 +1048576",
        "resize -f qcow2 base.qcow2 20M",
        "resize -f raw base.raw 8M",
        "resize --image-opts driver=qcow2,file.filename=base.qcow2 21M",
        "resize --shrink base.qcow2 -1M",
        "resize -q --shrink -f raw base.raw 4M",
        "amend -o size=24M base.qcow2",
        "map --output json --start-offset=4M top.qcow2",
    ] {
        beside.same(line);
    }
    for (name, format) in [("top.qcow2", "qcow2"), ("base.qcow2", "qcow2"), ("base.raw", "raw")] {
        beside.same_content(name, format);
    }
    let refused = beside.both(&["resize", "base.qcow2", "-1M"]).refused();
    assert!(refused.contains("--shrink"), "{refused}");
    let refused = beside.both(&["resize", "base.qcow2", "0"]).refused();
    assert_eq!(refused, "qemu-img: New image size must be positive\n");
}
