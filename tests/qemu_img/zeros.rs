//! Zeros that are written into images that are there: what `map` says about them, and about what lies below.

use fixtures::needs_qemu;

use crate::beside::Beside;

#[test]
fn zeros_are_copied_into_an_existing_image_as_zeros_whatever_it_is_backed_by() {
    needs_qemu!();
    let beside = Beside::new();
    beside.set_up(
        "qemu-img create -q -f qcow2 empty 8M
         qemu-img create -q -f qcow2 old 8M
         qemu-img create -q -f qcow2 -o compat=0.10 oldest 8M
         qemu-img create -q -f qcow2 base 8M
         qemu-img create -q -f qcow2 -o cluster_size=4k -b base -F qcow2 over
         qemu-img create -q -f qcow2 -o compat=0.10 -b base -F qcow2 oldest-over",
    );
    for target in ["old", "oldest", "over", "oldest-over"] {
        beside.same(&format!("convert -n -O qcow2 empty {target}"));
        let mapped = beside.same(&format!("map --output json {target}"));
        assert_eq!(mapped.contains("\"present\": true"), target != "oldest", "{mapped}");
        beside.same_content(target, "qcow2");
    }
}

#[test]
fn zeros_are_committed_as_zeros_where_the_base_has_nothing() {
    needs_qemu!();
    let beside = Beside::new();
    beside.set_up(
        "qemu-img create -q -f qcow2 base 4M
         qemu-img create -q -f qcow2 -b base -F qcow2 top 8M
         qemu-io -f qcow2 -c 'write -z 1M 1M' -c 'write -P 5 3M 64k' top >/dev/null",
    );
    beside.same("commit top");
    let mapped = beside.same("map --output json base");
    assert!(mapped.contains("\"start\": 1048576, \"length\": 1048576, \"depth\": 0, \"present\": true, \"zero\": true"), "{mapped}");
    beside.same_content("base", "qcow2");
}

#[test]
fn images_with_a_data_file_are_changed_and_so_is_the_data_file() {
    needs_qemu!();
    let beside = Beside::new();
    beside.set_up(
        "qemu-img create -q -f qcow2 -o data_file=a.raw,data_file_raw=on a 1M
         qemu-img create -q -f raw source 1M; printf abc | dd of=source conv=notrunc status=none
         qemu-img create -q -f qcow2 -b a -F qcow2 -o data_file=o.raw over
         qemu-img create -q -f qcow2 -b a -F qcow2 top
         qemu-io -f qcow2 -c 'write -P 5 0 64k' top >/dev/null",
    );
    // QEMU looks for the data file in the working directory.
    let holds_the_same = |image: &str| {
        beside.same(&format!("convert -O raw {image} copy"));
        beside.same_content("copy", "raw");
    };
    for (line, changed) in [
        ("convert -n -f raw -O qcow2 source a", "a"),
        ("rebase -b source -F raw over", "over"),
        ("commit top", "a"),
        ("resize a 2M", "a"),
        ("amend -o size=3M a", "a"),
    ] {
        beside.same(line);
        holds_the_same(changed);
    }
    beside.same_content("a.raw", "raw");
    // What the data file has behind the disk is data, and the list of the map names that file.
    beside.set_up("truncate -s 4M a.raw; printf more | dd of=a.raw bs=1 seek=3500000 conv=notrunc status=none");
    beside.same("resize a 4M");
    beside.same_content("a.raw", "raw");
    holds_the_same("a");
    assert!(beside.ours(&["map", "a"]).ok().contains(" a.raw\n"));
    assert!(beside.ours(&["bench", "-w", "-c", "4", "a"]).out.contains("Run completed"));
}

#[test]
fn the_size_changes_before_the_version_goes_down() {
    needs_qemu!();
    let beside = Beside::new();
    beside.set_up(
        "qemu-img create -q -f qcow2 a 4M; qemu-io -f qcow2 -c 'write -P 1 1M 64k' a >/dev/null",
    );
    beside.same("amend -o compat=0.10,size=2M,lazy_refcounts=off a");
    beside.same_content("a", "qcow2");
    let info = beside.same("info a");
    assert!(info.contains("compat: 0.10") && info.contains("(2097152 bytes)"), "{info}");
    // A snapshot of another size is in the way of the version only.
    beside.set_up("qemu-img amend -o compat=1.1 a; qemu-img snapshot -c s a");
    let refused = beside.both(&["amend", "-o", "compat=0.10,size=3M", "a"]).refused();
    assert_eq!(refused, "qemu-img: Internal snapshots prevent downgrade of image\n");
    assert!(beside.same("info a").contains("(3145728 bytes)"));
}

#[test]
fn options_for_qemus_caches_are_held_against_what_it_takes() {
    needs_qemu!();
    let beside = Beside::new();
    beside.set_up("qemu-img create -q -f qcow2 a 4M");
    for options in [
        "cache-size=1M,l2-cache-size=512k",
        "cache-size=1M,l2-cache-size=2M",
        "cache-size=1M,refcount-cache-size=2M",
        "cache-size=1M,l2-cache-size=1M,refcount-cache-size=1M",
        "overlap-check=some",
        "overlap-check=all,overlap-check.template=none",
        "lazy-refcounts=perhaps",
    ] {
        let list = format!("driver=qcow2,file.filename=a,{options}");
        let (ours, theirs) = (["info", "--image-opts", &list], ["info", "--image-opts", &list]);
        let (ours, theirs) = (beside.ours(&ours), beside.theirs(&theirs));
        assert_eq!((ours.code, ours.err), (theirs.code, theirs.err), "{options}");
    }
}

#[test]
fn what_an_overlay_has_is_committed_wherever_it_lies() {
    needs_qemu!();
    let beside = Beside::new();
    // Data that the kernel can copy, in parts of clusters of the base too; compressed, short, and past the end of its file.
    beside.set_up(
        "qemu-img create -q -f qcow2 -o cluster_size=64k base 8M; qemu-io -f qcow2 -c 'write -P 9 0 3M' base >/dev/null
         qemu-img create -q -f raw raw.base 8M
         for base in base raw.base; do
           format=qcow2; [ $base = base ] || format=raw
           qemu-img create -q -f qcow2 -o cluster_size=4k -b $base -F $format $base.top
           qemu-io -f qcow2 -c 'write -P 1 100k 900k' -c 'write -c -P 2 2M 256k' -c 'write -P 3 4M 4k' -c 'write -P 0 5M 128k' \\
             -c 'write -P 4 6M 1M' $base.top >/dev/null
           truncate -s -300k $base.top
         done",
    );
    for (base, format) in [("base", "qcow2"), ("raw.base", "raw")] {
        beside.same(&format!("commit -d {base}.top"));
        beside.same_content(base, format);
    }
}
