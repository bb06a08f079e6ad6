//! Internal snapshots: tables patched by hand; qemu-img says, when the test runs, what each snapshot
//! holds and how `info` lists it.

use common::{
    info_like_qemu, like_qemu, qcowtool, reads, refused_by_us, refuses, snapshot_like_qemu,
};
use fixtures::patch::field;
use fixtures::{Patch, Scratch, args, needs_qemu, qemu, qemu_img, qemu_io};

/// One entry of the snapshot table, as it lies on disk.
#[derive(Clone)]
struct Entry {
    l1_offset: u64,
    l1_size: u32,
    id: &'static [u8],
    name: &'static [u8],
    vm_state: u32,
    extra: Vec<u8>,
}

impl Entry {
    fn bytes(&self, padding: u8) -> Vec<u8> {
        let len16 = |bytes: &[u8]| u16::try_from(bytes.len()).unwrap().to_be_bytes();
        let mut bytes = self.l1_offset.to_be_bytes().to_vec();
        bytes.extend(self.l1_size.to_be_bytes());
        bytes.extend(len16(self.id));
        bytes.extend(len16(self.name));
        bytes.extend(1_700_000_000_u32.to_be_bytes());
        bytes.extend(123_000_000_u32.to_be_bytes());
        bytes.extend(3_723_004_000_000_u64.to_be_bytes());
        bytes.extend(self.vm_state.to_be_bytes());
        bytes.extend(u32::try_from(self.extra.len()).unwrap().to_be_bytes());
        bytes.extend([&self.extra, self.id, self.name].concat());
        bytes.resize(bytes.len().next_multiple_of(8), padding);
        bytes
    }

    fn named(&self, id: &'static [u8], name: &'static [u8]) -> Self {
        Self { id, name, ..self.clone() }
    }

    fn with_extra(&self, extra: impl Into<Vec<u8>>) -> Self {
        Self { extra: extra.into(), ..self.clone() }
    }
}

/// Extra data of 16 bytes: the VM state's size in 64 bits, the disk's size.
fn sizes(vm_state: u64, disk: u64) -> Vec<u8> {
    [vm_state.to_be_bytes(), disk.to_be_bytes()].concat()
}

/// An image of 64 KiB in 4 KiB clusters that was full of the byte 1 when its state was kept, and is
/// full of the byte 2 now; and the entry of the kept state.
fn kept(scratch: &Scratch, options: &str) -> (Patch, Entry) {
    let path = scratch.path("snapshots.qcow2");
    qemu::create(&path, format!("cluster_size=4k,{options}").trim_end_matches(','), "64k");
    qemu_io("qcow2", &path, &["write -P 1 0 64k"]);
    qemu_img(&args!["snapshot", "-c", "before", path]);
    qemu_io("qcow2", &path, &["write -P 2 0 64k"]);
    let image = Patch::open(&path);
    let table = usize::try_from(image.u64(field::SNAPSHOTS_OFFSET)).unwrap();
    let entry = Entry {
        l1_offset: image.u64(table),
        l1_size: image.u32(table + 8),
        id: b"1",
        name: b"before",
        vm_state: 0,
        extra: sizes(0, 64 << 10),
    };
    (image, entry)
}

/// Replaces the snapshot table.
fn set_table<'a>(image: &'a mut Patch, entries: &[Entry], padding: u8) -> &'a mut Patch {
    let table: Vec<u8> = entries.iter().flat_map(|entry| entry.bytes(padding)).collect();
    let at = image.append(&table);
    image.set_u32(field::SNAPSHOTS, u32::try_from(entries.len()).unwrap());
    image.set_u64(field::SNAPSHOTS_OFFSET, at as u64)
}

/// Asserts that both see these bytes in a snapshot.
#[track_caller]
fn holds(image: &Patch, snapshot: &str, expected: &[u8]) {
    image.save();
    assert!(snapshot_like_qemu(&image.path, snapshot) == expected, "snapshot {snapshot}");
    info_like_qemu(&image.path, &[]);
}

#[test]
fn trap_80_entries_are_aligned_and_their_padding_may_be_garbage() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (mut image, entry) = kept(&scratch, "");
    let entries =
        [entry.named(b"1", b"a"), entry.named(b"22", b"bc"), entry.named(b"333", b"defg")];
    set_table(&mut image, &entries, 0xff);
    for snapshot in ["a", "bc", "defg", "1", "22", "333"] {
        holds(&image, snapshot, &[1; 64 << 10]);
    }
}

#[test]
fn trap_81_entries_may_have_no_extra_data_and_not_more_than_1024_bytes() {
    needs_qemu!();
    let scratch = Scratch::new();
    // Version 3 asks for 16 bytes, but only `check` complains when they are not there.
    for (compat, lengths) in [("0.10", &[0, 8, 16, 24, 100, 1024][..]), ("1.1", &[0, 8, 15])] {
        for &length in lengths {
            let (mut image, entry) = kept(&scratch, &format!("compat={compat}"));
            let mut extra = sizes(0, 64 << 10);
            extra.resize(length, 0);
            holds(set_table(&mut image, &[entry.with_extra(extra)], 0), "before", &[1; 64 << 10]);
        }
        let (mut image, entry) = kept(&scratch, &format!("compat={compat}"));
        refuses(set_table(&mut image, &[entry.with_extra(vec![0; 1025])], 0));
    }
}

#[test]
fn trap_82_the_64_bit_size_of_the_vm_state_wins() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (mut image, entry) = kept(&scratch, "");
    let entry = Entry { vm_state: 77, ..entry.with_extra(sizes(5 << 32, 64 << 10)) };
    reads(set_table(&mut image, std::slice::from_ref(&entry), 0));
    let (mut image, _) = kept(&scratch, "compat=0.10");
    reads(set_table(&mut image, &[entry.with_extra([])], 0));
}

#[test]
fn trap_83_instruction_counts_are_listed_as_qemu_lists_them() {
    needs_qemu!();
    let scratch = Scratch::new();
    for icount in [0, 12345, u64::MAX] {
        let (mut image, entry) = kept(&scratch, "");
        let extra = [sizes(0, 64 << 10), icount.to_be_bytes().to_vec()].concat();
        reads(set_table(&mut image, &[entry.with_extra(extra)], 0));
    }
}

#[test]
fn trap_84_reading_a_snapshot_keeps_the_disks_current_size() {
    needs_qemu!();
    let scratch = Scratch::new();
    for size in [0, 1000, 16 << 10, 128 << 10, 1 << 40] {
        let (mut image, entry) = kept(&scratch, "");
        let entry = entry.with_extra(sizes(0, size));
        holds(set_table(&mut image, &[entry], 0), "before", &[1; 64 << 10]);
    }
    // Really smaller, and really larger, than the disk is now.
    for (now, expected) in
        [("32k", vec![1; 32 << 10]), ("96k", [vec![1; 64 << 10], vec![0; 32 << 10]].concat())]
    {
        let (image, _) = kept(&scratch, "");
        qemu_img(&args!["resize", "-q", "--shrink", "-f", "qcow2", image.path, now]);
        holds(&Patch::open(&image.path), "before", &expected);
    }
}

#[test]
fn trap_84_a_snapshots_l1_may_be_shorter_than_the_disk_is_now() {
    needs_qemu!();
    let scratch = Scratch::new();
    let path = scratch.path("snapshots.qcow2");
    // 512-byte clusters: an L1 entry covers 32 KiB, a cluster of L1 table 2 MiB.
    qemu::create(&path, "cluster_size=512", "64k");
    qemu_io("qcow2", &path, &["write -P 1 0 64k"]);
    qemu_img(&args!["snapshot", "-c", "before", path]);
    qemu_img(&args!["resize", "-q", "-f", "qcow2", path, "3M"]);
    qemu_io("qcow2", &path, &["write -P 2 0 3M"]);
    let mut expected = vec![1; 64 << 10];
    expected.resize(3 << 20, 0);
    holds(&Patch::open(&path), "before", &expected);
}

#[test]
fn trap_85_a_grown_overlays_snapshot_shows_the_base_beyond_its_own_size() {
    needs_qemu!();
    let scratch = Scratch::new();
    scratch.file("base.raw", &[9; 64 << 10]);
    let path = scratch.path("overlay.qcow2");
    qemu::overlay(&path, "base.raw", "raw", "cluster_size=4k", "32k");
    qemu_io("qcow2", &path, &["write -P 1 0 8k"]);
    qemu_img(&args!["snapshot", "-c", "small", path]);
    qemu_img(&args!["resize", "-q", "-f", "qcow2", path, "64k"]);
    let expected = [vec![1; 8 << 10], vec![9; 56 << 10]].concat();
    holds(&Patch::open(&path), "small", &expected);
}

#[test]
fn trap_86_names_may_be_empty_equal_long_and_ids_are_strings() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (mut image, entry) = kept(&scratch, "");
    let long: &'static [u8] = &[b'n'; 300];
    let odd = entry.named("ключ".as_bytes(), b"x\x1b[31m\ny\"\\");
    let entries = [
        entry.named(b"7", b""),
        entry.named(b"abc", b"twin"),
        Entry { l1_offset: image.u64(field::L1_OFFSET), ..entry.named(b"def", b"twin") },
        entry.named(b"9", long),
        odd,
    ];
    set_table(&mut image, &entries, 0);
    holds(&image, "7", &[1; 64 << 10]);
    holds(&image, "twin", &[1; 64 << 10]);
    holds(&image, "def", &[2; 64 << 10]);
    holds(&image, "ключ", &[1; 64 << 10]);
    // Names go to terminals: nothing that steers one gets through.
    let text = qcowtool(args!["info", image.path]).ok();
    assert!(!text.contains('\x1b'), "{text:?}");
    assert!(text.lines().any(|line| line.contains("x") && line.contains("[31m")), "{text:?}");
    assert!(
        !text.lines().any(|line| line.starts_with('y')),
        "a name does not begin a line: {text:?}"
    );
}

#[test]
fn trap_87_an_id_is_looked_for_before_a_name() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (mut image, entry) = kept(&scratch, "");
    let active = Entry { l1_offset: image.u64(field::L1_OFFSET), ..entry.named(b"1", b"2") };
    set_table(&mut image, &[active, entry.named(b"2", b"1")], 0);
    holds(&image, "1", &[2; 64 << 10]);
    holds(&image, "2", &[1; 64 << 10]);
}

#[test]
fn a_snapshot_that_is_not_there_is_refused() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (image, _) = kept(&scratch, "");
    let message = refused_by_us(&image.path, &["--snapshot", "after"]);
    assert!(message.contains("after"), "{message}");
    refused_by_us(&scratch.file("disk.raw", &[0; 512]), &["-f", "raw", "--snapshot", "before"]);
    qcowtool(args!["info", "--snapshot", "after", image.path]).refused();
    let text = qcowtool(args!["info", "--snapshot", "before", image.path]).ok();
    assert!(text.contains("before"), "{text}");
}

#[test]
fn trap_140_144_a_snapshot_table_is_bounded_by_count_and_by_the_file() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (image, _) = kept(&scratch, "");
    for count in [65_537, u32::MAX, 1 << 31] {
        refuses(image.clone().set_u32(field::SNAPSHOTS, count));
    }
    // As many as are allowed, none of which are there.
    like_qemu(image.clone().set_u32(field::SNAPSHOTS, 65_536));
    for offset in [1, 512, 1 << 40, u64::MAX, !0xfff, 1 << 63] {
        like_qemu(image.clone().set_u64(field::SNAPSHOTS_OFFSET, offset));
    }
    // The table's last entry is cut by the end of the file.
    let (mut image, entry) = kept(&scratch, "");
    set_table(&mut image, &[entry.clone(), entry], 0);
    let table = usize::try_from(image.u64(field::SNAPSHOTS_OFFSET)).unwrap();
    for length in [64 + 20, 64 + 50, 64] {
        like_qemu(image.clone().resize(table + length));
    }
}

#[test]
fn trap_140_141_a_snapshots_l1_is_bounded_and_aligned() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (image, entry) = kept(&scratch, "");
    let bad = [
        Entry { l1_offset: entry.l1_offset + 512, ..entry.clone() },
        Entry { l1_offset: !0xfff, ..entry.clone() },
        Entry { l1_size: (32 << 20) / 8 + 1, ..entry.clone() },
        Entry { l1_size: u32::MAX, ..entry.clone() },
    ];
    for entry in bad {
        let mut image = image.clone();
        set_table(&mut image, &[entry], 0);
        reads(&image);
        let theirs = qemu::try_raw_of("qcow2", &image.path, Some("before"));
        assert!(theirs.is_err(), "qemu-img reads the snapshot");
        refused_by_us(&image.path, &["--snapshot", "before"]);
    }
}

#[test]
fn snapshots_are_named_as_for_qemu_img() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = scratch.path("k.qcow2");
    qemu::create(&image, "", "1M");
    // The second one's name is the first one's id.
    for (number, name) in ["first", "1", "with,comma", "snapshot.id=1"].into_iter().enumerate() {
        qemu_io("qcow2", &image, &[format!("write -P {} 0 64k", number + 1)]);
        qemu_img(&args!["snapshot", "-c", name, image]);
    }
    for (wanted, byte) in [
        ("first", 1),
        ("1", 1),
        ("4", 4),
        ("snapshot.name=1", 2),
        ("snapshot.id=1", 1),
        ("snapshot.id=2,snapshot.name=1", 2),
        ("snapshot.name=with,,comma", 3),
        ("with,comma", 3),
        ("snapshot.name=snapshot.id=1", 4),
    ] {
        assert_eq!(snapshot_like_qemu(&image, wanted)[0], byte, "{wanted}");
        for command in ["checksum", "measure", "flatten"] {
            let mut words = args![command, "-l", wanted, image];
            if command == "flatten" {
                words.extend(args!["-q", "--force", scratch.path("target.qcow2")]);
            }
            qcowtool(words).ok();
        }
        qcowtool(args!["map", "--snapshot", wanted, image]).ok();
        let info = qcowtool(args!["info", "--snapshot", wanted, "--output", "json", image]).json();
        assert_eq!(info["snapshots"][0]["id"], byte.to_string(), "{wanted}");
    }
    for wanted in
        ["snapshot.id=2,snapshot.name=first", "snapshot.name=3", "snapshot.", "snapshot.x=1"]
    {
        assert!(qemu::try_raw_of("qcow2", &image, Some(wanted)).is_err(), "{wanted}");
        qcowtool(args!["checksum", "-l", wanted, image]).refused();
    }
}
