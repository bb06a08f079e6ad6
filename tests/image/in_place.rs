//! Random changes in place, each by us on one copy of an image and by QEMU on another: the disk and every snapshot
//! read the same afterwards, and both copies are clean by both checks.

use std::fs;
use std::path::Path;

use common::{qcowtool, snapshot_like_qemu};
use fixtures::pattern::Random;
use fixtures::{Scratch, args, needs_qemu, qemu, qemu_img, qemu_io};

/// Steps of each run.
const STEPS: u64 = 6;

#[test]
fn what_we_change_and_what_qemu_changes_reads_the_same() {
    needs_qemu!();
    let kinds = [
        "cluster_size=64k",
        "cluster_size=4k",
        "cluster_size=512,refcount_bits=8",
        "cluster_size=16k,extended_l2=on",
        "compat=0.10,cluster_size=4k",
    ];
    for (seed, options) in (1..).zip(kinds) {
        // Version 2 cannot hide what a longer base has.
        run(options, seed % 2 == 0 && !options.contains("compat=0.10"), seed);
    }
}

fn run(options: &str, with_base: bool, seed: u64) {
    let scratch = Scratch::new();
    let (ours, theirs) = (scratch.path("ours.qcow2"), scratch.path("theirs.qcow2"));
    let base = scratch.file("base.raw", &fixtures::pattern::noise(seed, 1_500_000));
    let backing = format!(",backing_file={},backing_fmt=raw", base.display());
    let all = if with_base { format!("{options}{backing}") } else { options.to_owned() };
    qemu::create(&ours, &all, "1M");
    fs::copy(&ours, &theirs).unwrap();
    let mut random = Random::new(seed * 7 + u64::from(with_base));
    let (mut names, mut size): (Vec<String>, u64) = (Vec::new(), 1 << 20);
    let mut history = Vec::new();
    for step in 0..STEPS {
        let at = random.below(size / 512) * 512;
        let len = (random.below(200) + 1) * 512;
        let write = format!("write -P {} {at} {}", step + 1, len.min(size - at));
        for image in [&ours, &theirs] {
            qemu_io("qcow2", image, &[&write]);
        }
        let name = format!("s{step}");
        let chosen = names.get(random.below(names.len().max(1) as u64) as usize).cloned();
        let change = match (random.below(5), chosen) {
            (0, Some(name)) => vec!["snapshot".to_owned(), "-a".into(), name],
            (1, Some(name)) => {
                names.retain(|other| *other != name);
                vec!["snapshot".into(), "-d".into(), name]
            }
            // Version 2 keeps its size while it has snapshots.
            (2 | 3, _) if names.is_empty() || !options.contains("compat=0.10") => {
                size = (random.below(6000) + 1) * 512;
                vec!["resize".into(), "--shrink".into(), "-q".into(), size.to_string()]
            }
            _ => {
                names.push(name.clone());
                vec!["snapshot".into(), "-c".into(), name]
            }
        };
        history.push(format!("{write}; {}", change.join(" ")));
        let what = format!("{all}, seed {seed}: {history:#?}");
        for (image, by_us) in [(&ours, true), (&theirs, false)] {
            let mut arguments: Vec<std::ffi::OsString> =
                change.iter().map(std::ffi::OsString::from).collect();
            // The image comes before a size, and last otherwise.
            let place = arguments.len() - usize::from(change[0] == "resize");
            arguments.insert(place, image.into());
            if by_us {
                qcowtool(arguments).ok();
            } else {
                qemu_img(&arguments);
            }
        }
        if change[1] == "-a" {
            size = qemu::info(&theirs)["virtual-size"].as_u64().unwrap();
        }
        same(&ours, &theirs, &names, &what);
    }
}

fn same(ours: &Path, theirs: &Path, names: &[String], what: &str) {
    qemu::assert_clean(ours);
    qcowtool(args!["check", "-q", ours]).ok();
    assert!(qemu::raw_of("qcow2", ours) == qemu::raw_of("qcow2", theirs), "{what}");
    for name in names {
        let (ours, theirs) = (snapshot_like_qemu(ours, name), snapshot_like_qemu(theirs, name));
        assert!(ours == theirs, "{what}: snapshot {name}");
    }
}
