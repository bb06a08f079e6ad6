//! `checksum --algorithm`, manifests, and what they prove.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{qcowtool, small};
use fixtures::chains;
use fixtures::{Scratch, args, needs_qemu, pattern, qemu, qemu_img};

const LEAF: u64 = 4 << 20;

fn digest(algorithm: &str, options: &[&str], image: &Path) -> String {
    let options: Vec<OsString> = options.iter().map(Into::into).collect();
    let fixed = args!["checksum", "--output", "json", "--algorithm", algorithm];
    let outcome = qcowtool([fixed, options, args![image]].concat()).json();
    outcome[algorithm].as_str().unwrap_or_else(|| panic!("{outcome}")).to_owned()
}

#[test]
fn sha256_is_that_of_the_raw_disk() {
    needs_qemu!();
    let scratch = Scratch::new();
    let chain = chains::template_with_overlays(scratch.dir(), 2);
    let raw = scratch.file("raw", &qemu::raw_of("qcow2", chain.top()));
    let sum = Command::new("sha256sum").arg(raw).output().unwrap();
    let expected = String::from_utf8(sum.stdout).unwrap()[..64].to_owned();
    for threads in ["1", "3"] {
        assert_eq!(digest("sha256", &["--threads", threads], chain.top()), expected);
    }
}

#[test]
fn the_tree_hash_depends_on_content_alone() {
    needs_qemu!();
    let scratch = Scratch::new();
    let noise = pattern::mixed(5, 5 << 20);
    let raw = scratch.path("disk.raw");
    pattern::write_raw(
        &raw,
        30 << 20,
        &[(0, &[1]), (7_000_000, &noise), (29 << 20, &noise[..512])],
    );
    let expected = digest("blake3-tree", &["--threads", "1"], &raw);
    for (name, options) in [
        ("plain", ""),
        ("small", "-o cluster_size=512"),
        ("large", "-o cluster_size=2M"),
        ("packed", "-c"),
        ("subclusters", "-o extended_l2=on"),
        ("written", "-S 0"),
    ] {
        let copy = scratch.path(name);
        let options = options.split_whitespace().map(OsString::from).collect();
        let fixed = args!["convert", "-f", "raw", "-O", "qcow2"];
        qemu_img(&[fixed, options, args![raw, copy]].concat());
        assert_eq!(digest("blake3-tree", &[], &copy), expected, "{name}");
    }
    let overlay = scratch.path("overlay.qcow2");
    qemu::overlay(&overlay, "plain", "qcow2", "", "");
    assert_eq!(digest("blake3-tree", &["--threads", "7"], &overlay), expected);
    let longer = scratch.path("longer.qcow2");
    qemu::overlay(&longer, "plain", "qcow2", "", "31M");
    assert_ne!(digest("blake3-tree", &[], &longer), expected, "the length counts");
}

#[test]
fn an_empty_disk_of_64_tib_has_the_documented_hash() {
    let scratch = Scratch::new();
    let image = scratch.path("disk.qcow2");
    qcowtool(args!["create", "-q", "-f", "qcow2", image, "64T"]).ok();
    let root = digest("blake3-tree", &[], &image);
    let document = include_str!("../../docs/tree-hash.md");
    assert!(document.contains(&format!("zeros (64 TiB) | `{root}` |")), "{root}");
}

#[test]
fn a_manifest_tells_which_ranges_differ() {
    needs_qemu!();
    let scratch = Scratch::new();
    let disk = pattern::noise(1, 22 << 20);
    let image = scratch.file("disk", &disk);
    let manifest = scratch.path("disk.manifest");
    let root = qcowtool(args!["checksum", "--manifest", manifest, image]).ok();
    assert_eq!(root, format!("{}  {}\n", digest("blake3-tree", &[], &image), image.display()));
    let same = qcowtool(args!["checksum", "--verify", manifest, "--output", "json", image]).json();
    assert_eq!((&same["identical"], &same["differences"]), (&true.into(), &serde_json::json!([])));

    let mut changed = disk.clone();
    changed[LEAF as usize] ^= 1;
    changed[3 * LEAF as usize - 1] ^= 1;
    *changed.last_mut().unwrap() ^= 1;
    let other = scratch.file("other", &changed);
    let run = qcowtool(args!["checksum", "--verify", manifest, other]);
    let lines = "Content mismatch at offset 4194304, 8388608 bytes!\n\
                 Content mismatch at offset 20971520, 2097152 bytes!\n";
    assert_eq!((run.stdout(), run.code()), (lines.to_owned(), Some(1)));
    assert_eq!(run.stderr(), "");

    let shorter = scratch.file("shorter", &disk[..21 << 20]);
    let run = qcowtool(args!["checksum", "--verify", manifest, "--output", "json", shorter]);
    assert_eq!(run.code(), Some(1));
    let outcome: serde_json::Value = serde_json::from_str(&run.stdout()).unwrap();
    assert_eq!(outcome["differences"][0]["start"], 20 << 20, "{outcome}");
}

#[test]
fn a_manifest_that_was_tampered_with_is_refused() {
    let scratch = Scratch::new();
    let image = scratch.file("disk", &pattern::noise(1, 6 << 20));
    let manifest = scratch.path("disk.manifest");
    qcowtool(args!["checksum", "--manifest", manifest, image]).ok();
    qcowtool(args!["checksum", "--manifest", manifest, image]).refused_naming(&["exists"]);
    qcowtool(args!["checksum", "--manifest", manifest, "--force", image]).ok();
    let text = fs::read_to_string(&manifest).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let digest = json["leaves"][1][1].as_str().unwrap().to_owned();
    json["leaves"][1][1] = format!("{}{}", &digest[1..], &digest[..1]).into();
    for (text, words) in [
        (json.to_string(), "the leaves give"),
        (text.replace("\"version\":1", "\"version\":2"), "version 2"),
        (text[..text.len() / 2].to_owned(), "not a manifest"),
        (String::new(), "not a manifest"),
    ] {
        fs::write(&manifest, text).unwrap();
        qcowtool(args!["checksum", "--verify", manifest, image]).refused_naming(&[words]);
    }
    for algorithm in ["crc32", "sha256"] {
        qcowtool(args!["checksum", "--algorithm", algorithm, "--verify", manifest, image])
            .refused_naming(&["tree"]);
    }
}

#[test]
fn a_cached_manifest_is_believed_only_while_nothing_has_changed() {
    needs_qemu!();
    let scratch = Scratch::new();
    let patch = small(&scratch, "");
    let overlay = scratch.path("overlay.qcow2");
    qemu::overlay(&overlay, "small.qcow2", "qcow2", "", "");
    let manifest = scratch.path("overlay.manifest");
    let root = digest("blake3-tree", &[], &overlay);
    let fresh = format!("{root}  {}\n", overlay.display());
    // What is printed, and why the disk was read after all.
    let cached = || {
        let run = qcowtool(args!["checksum", "--cached", manifest, overlay]);
        (run.ok(), run.stderr())
    };
    let take = || qcowtool(args!["checksum", "--manifest", manifest, "--force", overlay]).ok();

    take();
    assert!(cached().1.contains("too soon"), "{}", cached().1);
    std::thread::sleep(Duration::from_millis(1100));
    take();
    assert_eq!(cached(), (fresh.clone(), String::new()));

    // The figure does come from the manifest: one with other leaves says something else.
    let honest = fs::read(&manifest).unwrap();
    let forged = scratch.path("forged.manifest");
    let image = scratch.file("zeros", &[0; 64 << 10]);
    qcowtool(args!["checksum", "--manifest", forged, image]).ok();
    let mut json: serde_json::Value = serde_json::from_slice(&honest).unwrap();
    let zeros: serde_json::Value = serde_json::from_slice(&fs::read(&forged).unwrap()).unwrap();
    (json["root"], json["leaves"]) = (zeros["root"].clone(), zeros["leaves"].clone());
    fs::write(&manifest, json.to_string()).unwrap();
    assert_eq!(cached().0[..64], *zeros["root"].as_str().unwrap());
    fs::write(&manifest, &honest).unwrap();

    for mode in [0o660, 0o606] {
        fs::set_permissions(&manifest, fs::Permissions::from_mode(mode)).unwrap();
        assert!(cached().1.contains("others may write"), "{}", cached().1);
    }
    fs::set_permissions(&manifest, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(cached().1, "");
    let snapshot = qcowtool(args!["checksum", "--cached", manifest, patch.path]);
    assert!(snapshot.stderr().contains("another chain"), "{}", snapshot.stderr());

    // The base below is touched: same content, same times of content, but changed.
    let times = fs::metadata(&patch.path).unwrap().modified().unwrap();
    let mut bytes = fs::read(&patch.path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&patch.path, &bytes).unwrap();
    fs::File::options().write(true).open(&patch.path).unwrap().set_modified(times).unwrap();
    let (printed, why) = cached();
    assert!(why.contains("small.qcow2") && why.contains("changed since"), "{why}");
    assert_ne!(printed, fresh);
}
