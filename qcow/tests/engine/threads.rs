//! Everything that the engine does in parallel, on a disk of many work items: four workers give what one gives.
//!
//! `make tsan` runs this under ThreadSanitizer: all in one process, without qemu-img.

use std::fs;
use std::path::{Path, PathBuf};

use fixtures::{Scratch, pattern};
use qcow::chain::{Chain, Format, OpenOptions};
use qcow::format::CompressionType;
use qcow::ops::check::{CheckOptions, RepairOptions, Scope, check, repair};
use qcow::ops::compare::{CompareOptions, compare};
use qcow::ops::digest::{Algorithm, DigestOptions, digest};
use qcow::ops::flatten::{FlattenOptions, flatten};
use qcow::ops::measure::exact;
use qcow::ops::{Qcow2Options, RawOptions, TargetOptions};
use qcow::{CancelToken, Observer, Silent};

const MIB: usize = 1 << 20;

fn open(path: &Path, format: Format) -> Chain {
    Chain::open(path, &OpenOptions::default().format(format)).unwrap()
}

/// A disk of 24 MiB, a dozen work items: noise, what compresses, and holes.
fn disk(scratch: &Scratch, name: &str) -> PathBuf {
    let path = scratch.path(name);
    let (mixed, noise) = (pattern::mixed(1, 9 * MIB), pattern::noise(2, 3 * MIB));
    pattern::write_raw(
        &path,
        24 << 20,
        &[(1 << 20, &mixed), (13 << 20, &noise), (23 << 20, b"end")],
    );
    path
}

fn qcow2(compression_type: CompressionType) -> TargetOptions {
    TargetOptions::Qcow2(Qcow2Options::default().compression_type(compression_type))
}

/// `image` with wrong refcounts here and there, and entries of L2 tables that mean other clusters.
fn damaged(mut image: Vec<u8>) -> Vec<u8> {
    let u64_at = |at: usize| u64::from_be_bytes(image[at..at + 8].try_into().unwrap());
    let first = |at| (u64_at(u64_at(at) as usize) & 0x00ff_ffff_ffff_fe00) as usize;
    let (l2, block) = (first(40), first(48));
    image[block..block + 200].iter_mut().skip(1).step_by(22).for_each(|count| *count ^= 2);
    image[l2..l2 + 1600].iter_mut().skip(5).step_by(240).for_each(|offset| *offset ^= 4);
    image
}

/// The ways to write an image: target, and whether it is compressed.
fn ways() -> [(TargetOptions, bool); 4] {
    [
        (TargetOptions::Raw(RawOptions::default()), false),
        (qcow2(CompressionType::Zlib), false),
        (qcow2(CompressionType::Zlib), true),
        (qcow2(CompressionType::Zstd), true),
    ]
}

#[test]
fn four_workers_write_what_one_writes() {
    let scratch = Scratch::new();
    let source = disk(&scratch, "source");
    for (target, compress) in ways() {
        let files: Vec<_> = [1, 4]
            .map(|threads| {
                let target = target.clone();
                let options = FlattenOptions::default()
                    .target(target)
                    .compress(compress)
                    .threads(threads)
                    .digest(true);
                let chain = open(&source, Format::Raw);
                let path = scratch.path(format!("flat-{threads}"));
                let outcome =
                    flatten(&chain, &path, &options, &Silent, &CancelToken::new()).unwrap();
                let measured = exact(&chain, &options, &Silent, &CancelToken::new()).unwrap();
                assert_eq!(measured.required, outcome.file_length);
                let file = fs::read(&path).unwrap();
                fs::remove_file(path).unwrap();
                (outcome.crc32, file)
            })
            .into();
        assert!(files[0] == files[1], "{target:?} {compress}");
    }
}

#[test]
fn four_workers_find_what_one_finds() {
    let scratch = Scratch::new();
    let (source, image) = (disk(&scratch, "source"), scratch.path("image"));
    let token = CancelToken::new();
    let options = FlattenOptions::default().target(qcow2(CompressionType::Zlib)).compress(true);
    flatten(&open(&source, Format::Raw), &image, &options, &Silent, &token).unwrap();
    let damaged = scratch.file("damaged", &damaged(fs::read(&image).unwrap()));
    let found = [1, 4].map(|threads| {
        let (raw, qcow2) = (open(&source, Format::Raw), open(&image, Format::Qcow2));
        let digests =
            [Algorithm::Crc32, Algorithm::Blake3Tree, Algorithm::Sha256].map(|algorithm| {
                let options = DigestOptions::default().algorithm(algorithm).threads(threads);
                digest(&qcow2, &options, &Silent, &token).unwrap()
            });
        let options = CompareOptions::default().threads(threads).all(true);
        let mut none = |start, len| panic!("{len} bytes at {start} differ");
        assert!(compare(&raw, &qcow2, &options, &mut none, &Silent, &token).unwrap().identical);
        let check_options = CheckOptions::default().format(Format::Qcow2).threads(threads);
        let sound = check(&image, &check_options, &Silent, &token).unwrap();
        assert_eq!((sound.corruptions, sound.leaks, sound.check_errors), (0, 0, 0));
        let broken = check(&damaged, &check_options, &Silent, &token).unwrap();
        assert!(broken.corruptions + broken.leaks > 0);
        let plan = RepairOptions::new(Scope::All).dry_run(true).check(check_options);
        let plan = repair(&damaged, &plan, &Silent, &token).unwrap();
        let json = |outcome| serde_json::to_string(&outcome).unwrap();
        (digests, json(sound), json(broken), format!("{:?}", plan.steps))
    });
    assert_eq!(found[0], found[1]);
}

/// Cancels when some of the work is done, from the thread that says so.
struct Impatient(CancelToken);

impl Observer for Impatient {
    fn progress(&self, done: u64, _total: u64) {
        if done > 6 << 20 {
            self.0.cancel();
        }
    }
}

#[test]
fn four_workers_go_home_when_the_work_is_cancelled() {
    let scratch = Scratch::new();
    let source = disk(&scratch, "source");
    let token = CancelToken::new();
    let options = FlattenOptions::default().threads(4);
    let flat = scratch.path("flat");
    let observer = Impatient(token.clone());
    let error =
        flatten(&open(&source, Format::Raw), &flat, &options, &observer, &token).unwrap_err();
    assert_eq!(error.kind(), qcow::ErrorKind::Interrupted);
    assert_eq!(scratch.names(), ["source"]);
}
