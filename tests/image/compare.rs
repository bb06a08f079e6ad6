//! `compare`: the verdicts, lines and exit codes of qemu-img, and every difference where it names one.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use common::{qcowtool, small};
use fixtures::chains::{self, Scribble};
use fixtures::{Scratch, args, needs_qemu, pattern, qemu, qemu_img, qemu_io};

/// Asserts that both print the same and end with the same code, which is returned.
#[track_caller]
fn like_qemu(words: Vec<OsString>) -> i32 {
    let words = [args!["compare"], words].concat();
    let ours = qcowtool(words.clone());
    let theirs = Command::new("qemu-img").args(&words).output().unwrap();
    assert_eq!(ours.stdout(), String::from_utf8_lossy(&theirs.stdout), "{words:?}");
    assert_eq!(ours.code(), theirs.status.code(), "{words:?}: {}", ours.stderr());
    ours.code().unwrap()
}

/// A raw file with noise in it.
fn raw(scratch: &Scratch, name: &str, size: u64, pieces: &[(u64, &[u8])]) -> std::path::PathBuf {
    let path = scratch.path(name);
    pattern::write_raw(&path, size, pieces);
    path
}

fn differences(options: Vec<OsString>) -> Vec<(u64, u64)> {
    let run = qcowtool([args!["compare", "--all", "--output", "json"], options].concat());
    let outcome: serde_json::Value = serde_json::from_str(&run.stdout()).unwrap();
    assert_eq!(run.code() == Some(0), outcome["identical"] == true, "{outcome}");
    let list = outcome["differences"].as_array().unwrap().iter();
    list.map(|range| (range["start"].as_u64().unwrap(), range["length"].as_u64().unwrap()))
        .collect()
}

#[test]
fn a_chain_is_identical_to_its_copies_of_every_format() {
    needs_qemu!();
    let scratch = Scratch::new();
    let chain = chains::template_with_overlays(scratch.dir(), 3);
    for (format, options) in [("raw", ""), ("qcow2", ""), ("qcow2", "-c"), ("qcow2", "-S0")] {
        let copy = scratch.path(format!("copy{options}.{format}"));
        let options = options.split_whitespace().map(OsString::from).collect();
        qemu_img(&[args!["convert", "-O", format], options, args![chain.top(), copy]].concat());
        assert_eq!(like_qemu(args!["-f", "qcow2", "-F", format, chain.top(), copy]), 0);
        assert_eq!(like_qemu(args!["-f", format, "-F", "qcow2", copy, chain.top()]), 0);
    }
}

#[test]
fn one_changed_byte_is_found_wherever_it_is() {
    needs_qemu!();
    let scratch = Scratch::new();
    let chain = chains::template_with_overlays(scratch.dir(), 2);
    let copy = scratch.path("copy.raw");
    qemu_img(&args!["convert", "-O", "raw", chain.top(), copy]);
    let content = fs::read(&copy).unwrap();
    let mut random = pattern::Random::new(7);
    for _ in 0..12 {
        let at = random.below(content.len() as u64);
        let mut changed = content.clone();
        changed[at as usize] ^= 0x10;
        fs::write(&copy, &changed).unwrap();
        assert_eq!(like_qemu(args!["-f", "qcow2", "-F", "raw", chain.top(), copy]), 1);
        assert_eq!(like_qemu(args!["-q", "-f", "raw", "-F", "qcow2", copy, chain.top()]), 1);
        let run = qcowtool(args!["compare", "--output", "json", "-F", "raw", chain.top(), copy]);
        let outcome: serde_json::Value = serde_json::from_str(&run.stdout()).unwrap();
        assert_eq!(outcome["first-difference"]["offset"], at, "{outcome}");
        assert_eq!(outcome["first-difference"]["kind"], "content", "{outcome}");
        assert_eq!(differences(args!["-F", "raw", chain.top(), copy]), [(at & !511, 512)]);
    }
}

#[test]
fn all_lists_what_differs_and_nothing_else_for_any_number_of_threads() {
    let scratch = Scratch::new();
    let noise = pattern::noise(3, 9 << 20);
    let one = scratch.file("one", &noise);
    let mut changed = noise.clone();
    for at in [0, 511, 1 << 20, (2 << 20) - 1, 2 << 20, (9 << 20) - 1] {
        changed[at] ^= 1;
    }
    changed[4_000_000..4_400_000].fill(0);
    let other = scratch.file("other", &changed);
    let expected: Vec<_> = {
        let sectors = noise.chunks(512).zip(changed.chunks(512)).enumerate();
        let different = sectors.filter(|(_, (a, b))| a != b).map(|(i, _)| i as u64 * 512);
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for at in different {
            match ranges.last_mut() {
                Some(last) if last.0 + last.1 == at => last.1 += 512,
                _ => ranges.push((at, 512)),
            }
        }
        ranges
    };
    for threads in ["1", "2", "7"] {
        assert_eq!(differences(args!["--threads", threads, one, other]), expected);
    }
}

#[test]
fn trap_135_a_longer_tail_must_read_as_zeros() {
    needs_qemu!();
    let scratch = Scratch::new();
    let piece = pattern::noise(1, 70_000);
    let short = raw(&scratch, "short", 1 << 20, &[(5000, &piece)]);
    let long = raw(&scratch, "long", 3 << 20, &[(5000, &piece)]);
    let tail = raw(&scratch, "tail", 3 << 20, &[(5000, &piece), (2_500_001, b"x")]);
    let other = raw(&scratch, "other", 3 << 20, &[(5001, &piece), (2_500_001, b"x")]);
    for (second, code) in [(&long, 0), (&tail, 1), (&other, 1)] {
        assert_eq!(like_qemu(args!["-f", "raw", "-F", "raw", short, second]), code);
        assert_eq!(like_qemu(args!["-f", "raw", "-F", "raw", second, short]), code);
        assert_eq!(like_qemu(args!["-s", "-f", "raw", "-F", "raw", short, second]), 1);
    }
    let zeros = scratch.path("zeros.qcow2");
    qemu::create(&zeros, "", "3M");
    qemu_io("qcow2", &zeros, &["write -P 0 2M 64k"]);
    let empty = scratch.path("empty.qcow2");
    qemu::create(&empty, "", "1M");
    assert_eq!(like_qemu(args![empty, zeros]), 0);
}

#[test]
fn strict_looks_at_allocation_zeros_and_compression() {
    needs_qemu!();
    let scratch = Scratch::new();
    let chain = chains::template_with_overlays(scratch.dir(), 1);
    let (plain, again) = (scratch.path("plain.qcow2"), scratch.path("again.qcow2"));
    let packed = scratch.path("packed.qcow2");
    for copy in [&plain, &again] {
        qemu_img(&args!["convert", "-O", "qcow2", chain.top(), copy]);
    }
    qemu_img(&args!["convert", "-c", "-O", "qcow2", chain.top(), packed]);
    assert_eq!(like_qemu(args!["-s", plain, again]), 0);
    assert_eq!(like_qemu(args!["-s", plain, packed]), 1);
    assert_eq!(like_qemu(args!["-s", packed, chain.top()]), 1);
    let overlay = scratch.path("over.qcow2");
    qemu::overlay(&overlay, "plain.qcow2", "qcow2", "", "");
    assert_eq!(like_qemu(args!["-s", plain, overlay]), 0, "depth does not matter");
}

#[test]
fn trap_134_strict_names_the_real_first_difference() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (empty, data) = (scratch.path("empty.qcow2"), scratch.path("data.qcow2"));
    qemu::create(&empty, "", "1M");
    qemu::create(&data, "", "1M");
    qemu_io("qcow2", &data, &["write -P 0 128k 64k"]);
    let run = qcowtool(args!["compare", "-s", empty, data]);
    assert_eq!(run.stdout(), "Strict mode: Offset 131072 block status mismatch!\n");
    assert_eq!(run.code(), Some(1));
    // A difference in content before it comes first.
    let other = scratch.path("other.qcow2");
    qemu::create(&other, "", "1M");
    qemu_io("qcow2", &data, &["write -P 1 0 4k"]);
    qemu_io("qcow2", &other, &["write -P 1 0 2k", "write -P 2 2k 512"]);
    let run = qcowtool(args!["compare", "-s", data, other]);
    assert_eq!(run.stdout(), "Content mismatch at offset 2048!\n");
}

#[test]
fn what_both_take_from_one_place_is_not_read() {
    needs_qemu!();
    let scratch = Scratch::new();
    let base = scratch.path("base.qcow2");
    qemu::create(&base, "", "4M");
    let noise = scratch.file("noise", &pattern::mixed(1, 64 << 10)).display().to_string();
    let compressed = format!("write -c -s {noise} 2M 64k");
    qemu_io("qcow2", &base, &["write -P 1 0 1M", &compressed]);
    let overlays = ["one.qcow2", "other.qcow2"].map(|name| scratch.path(name));
    for overlay in &overlays {
        qemu::overlay(overlay, "base.qcow2", "qcow2", "cluster_size=4k", "");
        qemu_io("qcow2", overlay, &["write -P 2 8k 4k"]);
    }
    let [one, other] = &overlays;
    let outcome = qcowtool(args!["compare", "--output", "json", one, other]).json();
    assert_eq!(outcome["shared-bytes"], (1 << 20) - 4096 + 65536, "{outcome}");
    assert_eq!(like_qemu(args![one, other]), 0);
}

#[test]
fn failures_have_the_codes_of_their_steps() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut patch = small(&scratch, "");
    let good = scratch.path("good.qcow2");
    patch.save_as(&good);
    let gone = scratch.path("gone.qcow2");
    assert_eq!(qcowtool(args!["compare", good, gone]).code(), Some(2));
    assert_eq!(
        qcowtool(args!["compare", "-F", "qcow2", good, scratch.path("noise")]).code(),
        Some(2)
    );

    let entry = patch.l2_entry(0x4000);
    patch.set_l2_entry(0x4000, entry + 512).save();
    assert_eq!(like_qemu(args![good, patch.path]), 3);
    patch.set_l2_entry(0x4000, entry).set_compressed(0x4000, &[0xff; 400], 0).save();
    assert_eq!(qcowtool(args!["compare", good, patch.path]).code(), Some(4));
    // What differs before the damage is the answer.
    let mut changed = fixtures::Patch::open(&good);
    changed.set_l2_entry(0x1000, 0).save();
    assert_eq!(like_qemu(args![changed.path, patch.path]), 1);
}

/// Many compressed clusters are read at once.
#[test]
fn a_compressed_cluster_that_does_not_decode_hides_no_difference_before_it() {
    needs_qemu!();
    let scratch = Scratch::new();
    let compressed = |name: &str, byte: u8| {
        let (raw, image) = (scratch.path(format!("{name}.raw")), scratch.path(name));
        let mut content = b"a line that compresses\n".repeat(1 << 15);
        content[70_000] = byte;
        content.truncate(512 << 10);
        fs::write(&raw, content).unwrap();
        qemu_img(&args!["convert", "-c", "-O", "qcow2", raw, image]);
        image
    };
    let (good, other) = (compressed("good", 0), compressed("other", 1));
    let mut damaged = fixtures::Patch::open(&other);
    damaged.set_compressed(3 << 16, &[0xff; 400], 0).save();
    assert_eq!(like_qemu(args![good, other]), 1);
    let run = qcowtool(args!["compare", good, other, "--threads", "1"]);
    assert_eq!(
        (run.code(), run.stdout().contains("offset 69632")),
        (Some(1), true),
        "{}",
        run.stdout()
    );
    damaged = fixtures::Patch::open(&good);
    damaged.set_compressed(3 << 16, &[0xff; 400], 0).save();
    assert_eq!(qcowtool(args!["compare", good, compressed("third", 0)]).code(), Some(4));
}

#[test]
fn random_pairs_of_chains_get_the_verdict_of_qemu_img() {
    needs_qemu!();
    for seed in 0..6u64 {
        let scratch = Scratch::new();
        let base = scratch.path("base.qcow2");
        qemu::create(&base, "cluster_size=16k", "1M");
        let scribble =
            |seed, writes, disk, cluster| Scribble { seed, disk, cluster, writes, compress: true };
        scribble(seed, 12, 1 << 20, 16384).on(&base);
        let sides = [(64u64, seed * 2), (4, seed * 2 + seed % 3)].map(|(kib, seed)| {
            let image = scratch.path(format!("side{kib}.qcow2"));
            let size = ((1 << 20) + (seed % 2) * 65536).to_string();
            let options = format!("cluster_size={kib}k");
            qemu::overlay(&image, "base.qcow2", "qcow2", &options, &size);
            scribble(seed + 50, 4, 1 << 20, 65536).on(&image);
            image
        });
        let [one, other] = &sides;
        like_qemu(args![one, other]);
        like_qemu(args![other, one]);
        assert_eq!(differences(args![one, other]), by_bytes(one, other), "seed {seed}");
    }
}

/// Differing sectors by reading everything, the shorter side padded with zeros.
fn by_bytes(one: &Path, other: &Path) -> Vec<(u64, u64)> {
    let [mut a, mut b] = [one, other].map(|image| qemu::raw_of("qcow2", image));
    let longest = a.len().max(b.len());
    a.resize(longest, 0);
    b.resize(longest, 0);
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for (index, (a, b)) in a.chunks(512).zip(b.chunks(512)).enumerate() {
        let at = index as u64 * 512;
        match ranges.last_mut() {
            _ if a == b => {}
            Some(last) if last.0 + last.1 == at => last.1 += 512,
            _ => ranges.push((at, 512)),
        }
    }
    ranges
}
