//! `sparsify`: files become smaller, and disks, snapshots and bitmaps stay what they are, with qemu-img as the judge.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use common::{binary, qcowtool, snapshot_like_qemu};
use fixtures::pattern::Random;
use fixtures::{Holder, Patch, Scratch, args, needs_qemu, qemu, qemu_img, qemu_io};
use serde_json::Value;

fn sparsify(image: &Path, more: &[&str]) -> Value {
    let mut arguments = args!["sparsify", "--output", "json"];
    arguments.extend(more.iter().map(|word| word.into()));
    arguments.push(image.into());
    qcowtool(arguments).json()
}

/// What the file system keeps for it.
fn space(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

/// An image with data, stored zeros, and free places in front of it.
fn wiped(scratch: &Scratch, name: &str, options: &str) -> PathBuf {
    let path = scratch.path(name);
    qemu::create(&path, options, "16M");
    let old = ["write -P 1 0 4M", "write -P 2 4M 4M", "write -P 0 8M 4M", "write -P 3 12M 2M"];
    qemu_io("qcow2", &path, &old);
    qemu_io("qcow2", &path, &["discard 0 3M", "write -P 0 4M 64k"]);
    path
}

#[test]
fn zeros_are_not_stored_any_more_and_the_file_is_cut() {
    needs_qemu!();
    for options in [
        "cluster_size=64k",
        "cluster_size=4k",
        "cluster_size=512",
        "cluster_size=2M",
        "cluster_size=64k,extended_l2=on",
        "compat=0.10,cluster_size=64k",
        "cluster_size=64k,refcount_bits=1",
        "cluster_size=64k,lazy_refcounts=on",
    ] {
        let scratch = Scratch::new();
        let path = wiped(&scratch, "vm.qcow2", options);
        let (content, before) = (qemu::raw_of("qcow2", &path), space(&path));
        let plan = sparsify(&path, &["--dry-run"]);
        assert_eq!(length(&path), plan["file-size-before"], "{options}");
        let outcome = sparsify(&path, &[]);
        qemu::assert_clean(&path);
        assert!(qemu::raw_of("qcow2", &path) == content, "{options}");
        assert_eq!(outcome["verified"], true);
        let most = outcome["file-size-before"].as_u64().unwrap() + (2 << 20);
        assert!(length(&path) < most, "{options}");
        assert_eq!(plan["file-size"], outcome["file-size"], "{options}");
        assert_eq!(outcome["file-size"], length(&path), "{options}");
        // New tables take some of it until what was in their place is free.
        let less = if options.contains("2M") { 1 << 20 } else { 7 << 19 };
        assert!(space(&path) + less <= before, "{options}: {} of {before}", space(&path));
        assert_eq!(outcome["allocated"], space(&path));
        let compact = sparsify(&path, &["--compact"]);
        qemu::assert_clean(&path);
        assert!(qemu::raw_of("qcow2", &path) == content, "{options}: compact");
        assert_eq!(compact["crc32"], outcome["crc32"]);
        assert_eq!(compact["zero-bytes"], 0, "{options}: nothing is left");
        // 7 MiB of data, and what describes them.
        let most = if options.contains("2M") { 26 } else { 11 };
        assert!(length(&path) < most << 20, "{options}: {}", length(&path));
        let again = sparsify(&path, &["--compact"]);
        assert_eq!(again["file-size"], compact["file-size"], "{options}");
        qemu_io("qcow2", &path, &["write -P 9 0 16M", "read -P 9 0 16M"]);
        qemu::assert_clean(&path);
    }
}

#[test]
fn random_images_with_snapshots_bitmaps_and_compressed_clusters_stay_what_they_are() {
    needs_qemu!();
    let kinds = [
        ("cluster_size=64k", false),
        ("cluster_size=4k", true),
        ("cluster_size=512", false),
        ("cluster_size=64k,extended_l2=on", true),
        ("compat=0.10,cluster_size=4k", true),
        ("cluster_size=4k,compression_type=zstd", false),
    ];
    for (seed, (options, backed)) in (1u64..).zip(kinds) {
        let scratch = Scratch::new();
        let path = random(&scratch, options, backed, seed);
        let content = qemu::raw_of("qcow2", &path);
        let names = ["s0", "s1"];
        let snapshots = names.map(|name| snapshot_like_qemu(&path, name));
        let listed = qemu_img(&args!["snapshot", "-l", path]);
        let bitmap = || match options.contains("0.10") {
            true => String::new(),
            false => qcowtool(args!["bitmap", "--output", "json", path, "since"]).stdout(),
        };
        let (dirty, before) = (bitmap(), length(&path));
        for more in [&[][..], &["--compact"]] {
            let what = format!("{options}, {more:?}");
            let outcome = sparsify(&path, more);
            qemu::assert_clean(&path);
            assert!(qemu::raw_of("qcow2", &path) == content, "{what}");
            for (name, old) in names.iter().zip(&snapshots) {
                assert!(snapshot_like_qemu(&path, name) == *old, "{what}: {name}");
            }
            assert_eq!(qemu_img(&args!["snapshot", "-l", path]), listed, "{what}");
            assert_eq!(bitmap(), dirty, "{what}");
            assert!(length(&path) <= before, "{what}");
            assert_eq!(outcome["file-size"], length(&path), "{what}");
        }
        // Over a backing file version 2 has no zeros that take no space.
        if !options.contains("0.10") {
            assert!(length(&path) < before, "{options}: nothing was given back");
        }
        // QEMU goes on with it.
        for name in names {
            qemu_img(&args!["snapshot", "-d", name, path]);
            qemu::assert_clean(&path);
        }
        assert!(qemu::raw_of("qcow2", &path) == content, "{options}: without snapshots");
    }
}

/// Data, zeros and compressed clusters, with two snapshots and a bitmap in between.
fn random(scratch: &Scratch, options: &str, backed: bool, seed: u64) -> PathBuf {
    let path = scratch.path("vm.qcow2");
    let mut options = options.to_owned();
    if backed {
        let base = scratch.file("base.raw", &fixtures::pattern::noise(seed, 3 << 20));
        options.push_str(&format!(",backing_file={},backing_fmt=raw", base.display()));
    }
    qemu::create(&path, &options, "4M");
    let mut random = Random::new(seed);
    for round in 0..3 {
        let mut writes = Vec::new();
        if round == 0 {
            writes.extend(["write -c -P 7 3M 128k", "write -c -P 0 3200k 64k"].map(str::to_owned));
        }
        for value in 0..12 {
            let at = random.below((4 << 20) / 512) * 512;
            let len = ((random.below(300) + 1) * 512).min((4 << 20) - at);
            let value = if value % 3 == 0 { 0 } else { round * 20 + value };
            writes.push(format!("write -P {value} {at} {len}"));
            if value % 5 == 1 {
                writes.push(format!("discard {at} {len}"));
            }
        }
        qemu_io("qcow2", &path, &writes);
        if round < 2 {
            qemu_img(&args!["snapshot", "-c", format!("s{round}"), path]);
        }
        if round == 1 && !options.contains("0.10") {
            qemu_img(&args!["bitmap", "--add", "-g", "4096", path, "since"]);
        }
    }
    qemu_io("qcow2", &path, &["write -z -u 0 1M"]);
    path
}

#[test]
fn a_backing_file_is_not_seen_where_zeros_were_and_need_not_be_there() {
    needs_qemu!();
    for options in
        ["cluster_size=64k", "cluster_size=64k,extended_l2=on", "compat=0.10,cluster_size=64k"]
    {
        let scratch = Scratch::new();
        let base = scratch.file("base.raw", &vec![0xb5; 4 << 20]);
        let path = scratch.path("vm.qcow2");
        let all = format!("{options},backing_file={},backing_fmt=raw", base.display());
        qemu::create(&path, &all, "4M");
        qemu_io("qcow2", &path, &["write -P 0 0 2M", "write -P 1 2M 64k", "write -P 0 2050k 4k"]);
        let (content, before) = (qemu::raw_of("qcow2", &path), space(&path));
        let away = scratch.path("away");
        fs::rename(&base, &away).unwrap();
        let outcome = sparsify(&path, &["--compact"]);
        fs::rename(&away, &base).unwrap();
        assert!(qemu::raw_of("qcow2", &path) == content, "{options}");
        qemu::assert_clean(&path);
        assert!(outcome["zero-bytes"].as_u64().unwrap() >= 2 << 20, "{options}: {outcome}");
        // Version 2 cannot say it, but its file has holes.
        assert!(space(&path) + (3 << 19) <= before, "{options}: {} of {before}", space(&path));
    }
}

#[test]
fn data_files_and_raw_disks_get_holes() {
    needs_qemu!();
    for raw in ["off", "on"] {
        let scratch = Scratch::new();
        let (path, data) = (scratch.path("vm.qcow2"), scratch.path("data"));
        let options = format!("data_file={},data_file_raw={raw}", data.display());
        qemu::create(&path, &options, "8M");
        qemu_io("qcow2", &path, &["write -P 1 0 2M", "write -P 0 2M 4M", "write -P 3 6M 1M"]);
        let (content, before) = (qemu::raw_of("qcow2", &path), space(&data));
        let bytes = fs::read(&data).unwrap();
        sparsify(&path, &[]);
        qemu::assert_clean(&path);
        assert!(qemu::raw_of("qcow2", &path) == content, "raw={raw}");
        if raw == "on" {
            assert!(fs::read(&data).unwrap() == bytes, "the data file is the disk");
        }
        assert!(space(&data) + (4 << 20) <= before, "raw={raw}: {} of {before}", space(&data));
        let said = qcowtool(args!["sparsify", "--compact", path]);
        said.refused_naming(&["data file"]);
    }
    let scratch = Scratch::new();
    let mut bytes = vec![1; 3 << 20];
    bytes[1 << 20..2 << 20].fill(0);
    let path = scratch.file("disk.raw", &bytes);
    let before = space(&path);
    qcowtool(args!["sparsify", path]).refused_naming(&["format"]);
    let outcome = sparsify(&path, &["-f", "raw"]);
    assert_eq!(outcome["zero-bytes"], 1 << 20);
    assert!(fs::read(&path).unwrap() == bytes);
    assert!(space(&path) + (1 << 20) <= before, "{} of {before}", space(&path));
    qcowtool(args!["sparsify", "-f", "raw", "--compact", path]).refused_naming(&["clusters"]);
}

#[test]
fn an_image_that_is_in_use_or_damaged_is_not_written_to() {
    needs_qemu!();
    let scratch = Scratch::new();
    let path = wiped(&scratch, "vm.qcow2", "cluster_size=64k");
    let sound = fs::read(&path).unwrap();
    {
        let _guest = Holder::new(&["-f", "qcow2"], &path);
        qcowtool(args!["sparsify", path]).refused_naming(&["use"]);
    }
    assert!(fs::read(&path).unwrap() == sound);
    type Damage = fn(&mut Patch);
    let damage: [(&str, Damage); 3] = [
        ("marked corrupt", |image| {
            image.set_u64(72, 2);
        }),
        ("errors in its metadata", |image| {
            let block = image.u64(usize::try_from(image.u64(48)).unwrap());
            let cluster = (image.l2_entry(5 << 20) & 0x00ff_ffff_ffff_fe00) / 65536;
            image.set_u16(usize::try_from(block + 2 * cluster).unwrap(), 0);
        }),
        ("errors in its metadata", |image| {
            let l1 = usize::try_from(image.u64(40)).unwrap();
            image.set_u64(l1, u64::MAX);
        }),
    ];
    for (words, damage) in damage {
        fs::write(&path, &sound).unwrap();
        let mut image = Patch::open(&path);
        damage(&mut image);
        image.save();
        let damaged = fs::read(&path).unwrap();
        for more in [&[][..], &["--compact"]] {
            let mut arguments = args!["sparsify"];
            arguments.extend(more.iter().map(Into::into));
            arguments.push(path.clone().into());
            let allocated = space(&path);
            qcowtool(arguments).refused_naming(&[words, "vm.qcow2", "check -r all"]);
            assert!(fs::read(&path).unwrap() == damaged, "{words}");
            assert_eq!(space(&path), allocated, "{words}: no hole was made");
        }
    }
}

#[test]
fn a_plan_and_a_quiet_run_say_what_is_asked_for() {
    needs_qemu!();
    let scratch = Scratch::new();
    let path = wiped(&scratch, "vm.qcow2", "cluster_size=64k");
    let before = fs::read(&path).unwrap();
    let plan = qcowtool(args!["sparsify", "-n", "--compact", path]).ok();
    assert!(plan.contains("would have") && plan.contains("would be moved"), "{plan}");
    assert!(fs::read(&path).unwrap() == before);
    assert_eq!(qcowtool(args!["sparsify", "-q", "--compact", path]).ok(), "");
    qemu::assert_clean(&path);
}

#[test]
fn a_snapshot_is_proven_by_its_place_whatever_its_id_is() {
    needs_qemu!();
    let scratch = Scratch::new();
    let path = wiped(&scratch, "vm.qcow2", "cluster_size=64k");
    qemu_img(&args!["snapshot", "-c", "one", path]);
    qemu_img(&args!["snapshot", "-c", "two", path]);
    qemu_io("qcow2", &path, &["write -P 0 12M 1M"]);
    let content = qemu::raw_of("qcow2", &path);
    let mut image = Patch::open(&path);
    // The id of each is one byte, behind the fixed part and the extra data of its entry.
    let mut entry = usize::try_from(image.u64(64)).unwrap();
    for id in [0xff, b'1'] {
        let at = entry + 40 + image.u32(entry + 36) as usize;
        image.set_u8(at, id);
        entry = (at + 1 + 3).next_multiple_of(8);
    }
    image.save();
    let outcome = sparsify(&path, &["--compact"]);
    assert_eq!((&outcome["snapshots-verified"], &outcome["verified"]), (&2.into(), &true.into()));
    assert!(qemu::raw_of("qcow2", &path) == content);
    qemu::assert_clean(&path);
}

#[test]
fn of_a_strangers_image_the_format_must_be_stated_and_what_it_names_is_not_opened() {
    needs_qemu!();
    let scratch = Scratch::new();
    let path = wiped(&scratch, "vm.qcow2", "cluster_size=64k");
    let content = qemu::raw_of("qcow2", &path);
    qcowtool(args!["sparsify", "--untrusted", path]).refused_naming(&["must be stated", "-f"]);
    let small = ["--untrusted", "-f", "qcow2", "--max-virtual-size", "1M"];
    let refused = [args!["sparsify"], small.map(Into::into).to_vec(), args![path]].concat();
    qcowtool(refused).refused_naming(&["virtual size"]);
    // A data file anywhere else is none of its business.
    let named = scratch.path("named.qcow2");
    std::fs::create_dir(scratch.path("elsewhere")).unwrap();
    let data = scratch.path("elsewhere/secret");
    qemu::create(&named, &format!("data_file={}", data.display()), "4M");
    qemu_io("qcow2", &named, &["write -P 0 0 1M"]);
    let before = (space(&data), fs::read(&data).unwrap());
    qcowtool(args!["sparsify", "--untrusted", "-f", "qcow2", named]).refused_naming(&["secret"]);
    assert!((space(&data), fs::read(&data).unwrap()) == before);
    let outcome = sparsify(&path, &["--untrusted", "-f", "qcow2", "--compact"]);
    assert!(outcome["freed"].as_u64().unwrap() > 4 << 20, "{outcome}");
    assert!(qemu::raw_of("qcow2", &path) == content);
    qemu::assert_clean(&path);
}

#[test]
fn a_signal_at_any_moment_leaves_a_sound_image_with_the_same_content() {
    needs_qemu!();
    let scratch = Scratch::new();
    let path = wiped(&scratch, "vm.qcow2", "cluster_size=4k");
    let (content, begin) = (qemu::raw_of("qcow2", &path), fs::read(&path).unwrap());
    let mut stopped = 0;
    for milliseconds in (0..).map(|step| step * 12) {
        fs::write(&path, &begin).unwrap();
        let mut child = Command::new(binary())
            .args(args!["sparsify", "--compact", path])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        sleep(Duration::from_millis(milliseconds));
        let done = child.try_wait().unwrap().is_some();
        assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().is_ok());
        let ended = child.wait_with_output().unwrap();
        match (ended.status.code(), ended.status.signal()) {
            // It was too late, or too early for the program.
            (Some(0), _) | (_, Some(15)) => {}
            (Some(143), _) => stopped += 1,
            _ => panic!("after {milliseconds} ms: {ended:?}"),
        }
        qemu::assert_clean(&path);
        assert!(qemu::raw_of("qcow2", &path) == content, "after {milliseconds} ms");
        if done {
            break;
        }
    }
    assert!(stopped > 0);
}
