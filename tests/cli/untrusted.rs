//! Images from others: with `--untrusted` nothing is guessed, nothing else is opened, and no small file
//! stands for endless work. What QEMU itself writes is read as ever.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use common::{checksum, qcowtool};
use fixtures::kept::{self, Expected};
use fixtures::patch::{COPIED, field};
use fixtures::{Patch, Scratch, args, crc32_hex, needs_qemu, qemu, qemu_img, qemu_io};

const QCOW2: [&str; 3] = ["--untrusted", "-f", "qcow2"];

/// Every command that opens an image to look at it or to read it.
fn readers(image: &Path, target: &Path) -> Vec<Vec<OsString>> {
    let options = QCOW2.map(Into::into).to_vec();
    let mut all: Vec<_> = ["info", "map", "measure", "checksum"]
        .into_iter()
        .map(|command| [args![command], options.clone(), args![image]].concat())
        .collect();
    all.push([args!["compare", "-F", "qcow2"], options.clone(), args![image, image]].concat());
    all.push([args!["flatten"], options.clone(), args![image, target]].concat());
    all.push([args!["create", "--like", image], options, args![target]].concat());
    all
}

#[track_caller]
fn all_refuse(image: &Path, words: &[&str]) {
    let scratch = Scratch::new();
    let target = scratch.path("flat");
    for arguments in readers(image, &target) {
        let run = qcowtool(arguments.clone());
        assert!(matches!(run.code(), Some(1 | 2)), "{arguments:?}: {:?}", run.code());
        let line = run.stderr().to_lowercase();
        assert!(words.iter().all(|word| line.contains(word)), "{arguments:?}: {line}");
        assert_eq!(run.stdout(), "", "{arguments:?}");
    }
    assert_eq!(scratch.names(), [""; 0]);
}

#[test]
fn the_format_must_be_stated_and_be_true() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = scratch.path("disk");
    qemu::create(&image, "", "1M");
    for command in ["info", "map", "check", "measure", "checksum"] {
        qcowtool(args![command, "--untrusted", image]).refused_naming(&["must be stated", "-f"]);
        qcowtool(args![command, "--untrusted", "-f", "qcow2", image]).ok();
    }
    // A guest wrote a QCOW2 header to its raw disk: whoever comes after us may guess.
    qcowtool(args!["info", "--untrusted", "-f", "raw", image]).refused_naming(&["a QCOW2 image"]);
    qcowtool(args!["info", "-f", "raw", image]).ok();
}

#[test]
fn a_symbolic_link_is_not_followed() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (image, link) = (scratch.path("disk"), scratch.path("link"));
    qemu::create(&image, "", "1M");
    symlink(&image, &link).unwrap();
    all_refuse(&link, &["symbolic link"]);
    qcowtool(args!["check", "--untrusted", "-f", "qcow2", link]).refused_naming(&["symbolic link"]);
}

#[test]
fn backing_and_data_files_are_refused_unopened_or_stay_below_a_directory() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (inside, outside) = (scratch.subdir("inside"), scratch.subdir("outside"));
    let (base, secret) = (inside.join("base.raw"), outside.join("secret"));
    for file in [&base, &secret] {
        fs::write(file, [7; 65536]).unwrap();
    }
    // Opening it would wait for a writer for ever.
    let fifo = outside.join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    symlink(&secret, inside.join("link")).unwrap();
    symlink(&outside, inside.join("way")).unwrap();
    let on = |name: &str| {
        let image = inside.join("overlay.qcow2");
        qemu_img(&args![
            "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", name, image, "64k"
        ]);
        image
    };
    let below = |image: &Path| {
        qcowtool(args!["checksum", "--untrusted", "-f", "qcow2", "--allow-dir", inside, image])
    };
    all_refuse(&on("base.raw"), &["backing file", "--allow-dir"]);
    below(&on("base.raw")).ok();
    below(&on(base.to_str().unwrap())).ok();
    for name in ["link", "way/secret", "../outside/secret", "way/fifo", secret.to_str().unwrap()] {
        all_refuse(&on(name), &["backing file"]);
        below(&on(name)).refused_naming(&["outside the allowed directories"]);
    }
    below(&on("missing")).refused_naming(&["missing", "no such file"]);

    let image = scratch.path("data.qcow2");
    qemu::create(&image, &format!("data_file={}", fifo.with_file_name("data").display()), "1M");
    fs::remove_file(fifo.with_file_name("data")).unwrap();
    symlink(&fifo, fifo.with_file_name("data")).unwrap();
    all_refuse(&image, &["data file"]);
}

#[test]
fn a_data_file_that_a_backing_name_tells_of_is_bound_as_a_recorded_one_is() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (inside, outside) = (scratch.subdir("inside"), scratch.subdir("outside"));
    let (base, secret, near) = (inside.join("base"), outside.join("secret"), inside.join("near"));
    qemu::create(&base, &format!("data_file={}", inside.join("data").display()), "1M");
    qemu_io("qcow2", &base, &["write -P 1 0 64k"]);
    for file in [&secret, &near] {
        fs::write(file, vec![7; 1 << 20]).unwrap();
    }
    let over = |data: &Path| {
        let [base, data] = [&base, data].map(|path| path.display());
        let name = format!(
            r#"json:{{"driver":"qcow2","file":{{"driver":"file","filename":"{base}"}},"data-file":{{"driver":"file","filename":"{data}"}}}}"#
        );
        let image = inside.join("overlay.qcow2");
        qemu_img(&args![
            "create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", name, image, "1M"
        ]);
        image
    };
    let sum = |image: &Path, more: &[&str]| {
        qcowtool([&args!["checksum", "--output", "json", image][..], &args_of(more)].concat())
    };
    let bound = ["--untrusted", "-f", "qcow2", "--allow-dir", inside.to_str().unwrap()];
    let image = over(&near);
    let read = sum(&image, &bound).json()["crc32"].clone();
    assert_eq!(read, sum(&over(&secret), &[]).json()["crc32"]);
    assert_ne!(read, sum(&base, &[]).json()["crc32"]);
    let refused = qcowtool([&args!["checksum", over(&secret)][..], &args_of(&bound)].concat());
    refused.refused_naming(&["outside the allowed directories"]);
}

fn args_of(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

#[test]
fn a_target_is_made_like_and_on_only_what_may_be_used() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (image, target) = (scratch.path("disk"), scratch.path("target"));
    qemu::create(&image, "cluster_size=4k", "1M");
    let like = |options: &str, image: &Path| {
        let options: Vec<_> = options.split_whitespace().map(Into::into).collect();
        qcowtool([args!["create", "--like", image, "--untrusted"], options, args![target]].concat())
    };
    like("", &image).refused_naming(&["must be stated", "-f"]);
    like("-f raw", &image).refused_naming(&["a QCOW2 image"]);
    like("-f qcow2 --max-virtual-size 512k", &image).refused_naming(&["virtual size"]);
    like("-f qcow2 --max-metadata 1", &image).refused();
    let overlay = scratch.path("overlay");
    qemu::overlay(&overlay, "disk", "qcow2", "", "");
    fs::remove_file(&image).unwrap();
    like("-f qcow2", &overlay).refused_naming(&["backing file", "--allow-dir"]);
    assert!(!target.exists());
    // The base is named, and need not be there.
    like(&format!("-f qcow2 --allow-dir {}", scratch.dir().display()), &overlay).ok();
    assert_eq!(qemu::try_info(&target, &[]).unwrap()["virtual-size"], 1 << 20);

    // The same of an image that a new one stands on.
    qemu::create(&image, "", "1M");
    let new = scratch.path("new");
    let on = |options: &[&str]| {
        let options: Vec<_> = options.iter().map(Into::into).collect();
        let on = args!["create", "-f", "qcow2", "-F", "qcow2", "-b", overlay, "--untrusted"];
        qcowtool([on, options, args![new]].concat())
    };
    on(&[]).refused_naming(&["backing file", "--allow-dir"]);
    assert!(!new.exists());
    on(&["--allow-dir", scratch.dir().to_str().unwrap()]).ok();
}

/// An image of 64 KiB clusters whose first cluster holds data, with room for 64 L1 entries: 32 GiB.
fn one_cluster(scratch: &Scratch, options: &str) -> Patch {
    let path = scratch.path("bomb.qcow2");
    qemu::create(&path, options, "32G");
    qemu_io("qcow2", &path, &["write -P 7 0 64k"]);
    Patch::open(path)
}

#[test]
fn one_table_behind_every_l1_entry_is_refused() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut bomb = one_cluster(&scratch, "");
    let table = bomb.u64(bomb.l1_entry_at(0));
    let l1 = bomb.l1_entry_at(0);
    for index in 0..64 {
        bomb.set_u64(l1 + 8 * index, table);
    }
    bomb.save();
    reads_nothing(&bomb.path, "in use by another entry");
}

#[test]
fn one_cluster_behind_every_guest_cluster_is_refused() {
    needs_qemu!();
    for options in ["", "extended_l2=on"] {
        let scratch = Scratch::new();
        let mut bomb = one_cluster(&scratch, options);
        // With subclusters, all but the first of them.
        if options.is_empty() {
            let entry = bomb.l2_entry(0);
            bomb.set_l2_entry(64 << 10, entry);
        } else {
            let entry = bomb.l2_entry(0);
            for guest in [0, 64 << 10] {
                bomb.set_l2_entry(guest, entry).set_subclusters(guest, 0xffff_fffe);
            }
        }
        bomb.save();
        reads_nothing(&bomb.path, "in use by another entry");
    }
}

#[test]
fn data_and_tables_past_the_end_are_refused() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut bomb = one_cluster(&scratch, "");
    bomb.set_l2_entry(64 << 10, COPIED | 1 << 40).save();
    reads_nothing(&bomb.path, "past the end");
    let mut bomb = one_cluster(&scratch, "");
    let second = bomb.l1_entry_at(0) + 8;
    bomb.set_u64(second, COPIED | 1 << 40).save();
    reads_nothing(&bomb.path, "past the end");
}

#[test]
fn one_compressed_cluster_behind_every_guest_cluster_is_refused() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (raw, image) = (scratch.path("raw"), scratch.path("bomb.qcow2"));
    fs::write(&raw, [7; 65536]).unwrap();
    qemu_img(&args!["convert", "-c", "-O", "qcow2", raw, image]);
    qemu_img(&args!["resize", "-q", image, "4G"]);
    let mut bomb = Patch::open(&image);
    let entry = bomb.l2_entry(0);
    for cluster in 1..8192 {
        bomb.set_l2_entry(cluster << 16, entry);
    }
    let second = bomb.l1_entry_at(0) + 8;
    // More than one table can name.
    let table = bomb.bytes[bomb.u64(second - 8) as usize & 0xffff_fe00..][..65536].to_vec();
    for index in 0..7 {
        let at = bomb.append(&table) as u64;
        bomb.set_u64(second + 8 * index, COPIED | at);
    }
    bomb.save();
    reads_nothing(&image, "compressed clusters");
}

/// What reads data refuses; without `--untrusted` QEMU and we read it.
#[track_caller]
fn reads_nothing(image: &Path, word: &str) {
    for command in ["map", "checksum"] {
        let run = qcowtool([args![command], QCOW2.map(Into::into).to_vec(), args![image]].concat());
        run.refused_naming(&[word]);
    }
    qcowtool([args!["info"], QCOW2.map(Into::into).to_vec(), args![image]].concat()).ok();
    qcowtool(args!["info", image]).ok();
}

#[test]
fn limits_can_be_set() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = scratch.path("disk.qcow2");
    qemu::create(&image, "", "65T");
    let info = |options: &[&str]| {
        let options = options.iter().map(Into::into).collect();
        qcowtool([args!["info"], options, args![image]].concat())
    };
    info(&[]).ok();
    info(&QCOW2).refused_naming(&["virtual size", "--max-virtual-size"]);
    info(&[&QCOW2[..], &["--max-virtual-size", "65T"]].concat()).ok();
    info(&["--max-virtual-size", "64T"]).refused_naming(&["virtual size"]);
    // The L1 table of 65 TiB has 1040 KiB.
    info(&["--max-metadata", "1M"]).refused_naming(&["tables", "--max-metadata"]);
    info(&["--max-metadata", "2M"]).ok();
}

#[test]
fn sha_256_is_not_taken_of_zeros_without_end() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = scratch.path("disk.qcow2");
    qemu::create(&image, "", "5G");
    let checksum = |algorithm: &str, options: &[&str]| {
        let options = options.iter().map(Into::into).collect();
        qcowtool([args!["checksum", "--algorithm", algorithm], options, args![image]].concat())
    };
    checksum("sha256", &QCOW2).refused_naming(&["virtual size", "--max-virtual-size"]);
    checksum("blake3-tree", &QCOW2).ok();
    qemu::create(&image, "", "1M");
    checksum("sha256", &QCOW2).ok();
    checksum("sha256", &[&QCOW2[..], &["--max-virtual-size", "1k"]].concat()).refused();
}

#[test]
fn what_qemu_writes_is_read_as_ever() {
    needs_qemu!();
    for row in kept::table() {
        if let Expected::Reads(crc) = row.expected
            && row.snapshot.is_none()
        {
            let run = qcowtool(args![
                "checksum",
                "--untrusted",
                "-f",
                row.format,
                "--allow-dir",
                kept::dir(),
                row.path()
            ]);
            if ODD.contains(&row.file.as_str()) {
                run.refused();
            } else {
                assert!(run.ok().contains(&format!("{crc:08x}")), "{}", row.file);
            }
        }
    }
    let scratch = Scratch::new();
    // The best that deflate can do.
    for options in ["cluster_size=512", "cluster_size=64k", "cluster_size=2M"] {
        let (raw, image) = (scratch.path("raw"), scratch.path("disk.qcow2"));
        fs::write(&raw, vec![7; 4 << 20]).unwrap();
        qemu_img(&args!["convert", "-c", "-O", "qcow2", "-o", options, raw, image]);
        assert_eq!(checksum(&image, &QCOW2), crc32_hex(&vec![7; 4 << 20]), "{options}");
        fs::remove_file(image).unwrap();
    }
    for options in ["compat=0.10", "extended_l2=on", "preallocation=metadata", "cluster_size=512"] {
        let image = scratch.path("disk.qcow2");
        qemu::create(&image, options, "8M");
        qemu_io("qcow2", &image, &["write -P 1 0 100k", "write -z 1M 1M", "write -P 2 3M 5k"]);
        if !options.starts_with("ext") {
            qemu_img(&args!["snapshot", "-c", "one", image]);
        }
        qemu_io("qcow2", &image, &["write -P 3 64k 700k", "discard 128k 64k"]);
        let expected = crc32_hex(&qemu::raw_of("qcow2", &image));
        assert_eq!(checksum(&image, &QCOW2), expected, "{options}");
        fs::remove_file(image).unwrap();
    }
}

/// Images of the table that are damaged.
const ODD: [&str; 1] = ["truncated.qcow2"];

#[test]
fn a_version_that_lies_about_its_tables_is_no_way_around() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut bomb = one_cluster(&scratch, "");
    // 2^22 entries claimed, where the file ends after a few.
    bomb.set_u32(field::L1_SIZE, 1 << 22).save();
    let run = qcowtool(args!["checksum", "--untrusted", "-f", "qcow2", bomb.path]);
    run.refused_naming(&["tables", "--max-metadata"]);
}
