//! The fuzz targets, run by ordinary tests: on the corpus, on everything that was ever found, on the images
//! kept in git, and on inputs drawn from a fixed seed.
//!
//! With `FUZZ_SECONDS` set, each target is run for that long, on inputs that nobody has seen before; the
//! smallest input that fails is printed, to be kept in `qcow/fuzz/found`. With `FUZZ_CORPUS` set, what lies in
//! that directory is replayed beside the corpus: what a run of cargo-fuzz collected.

#![allow(clippy::restriction, clippy::pedantic, reason = "tests assert by panicking")]

use std::cell::Cell;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use fuzzing::{TARGETS, Target};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Inputs for each target when nothing is said.
const INPUTS: u32 = 400;
const LONGEST: usize = 600;

fn kept(what: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../qcow/fuzz").join(what)
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    let mut files: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files
}

fn replay(target: Target, file: &Path) {
    let data = fs::read(file).expect("a file");
    if catch_unwind(AssertUnwindSafe(|| target(&data))).is_err() {
        panic!("{} fails", file.display());
    }
}

fn replay_all(dir: &Path) -> usize {
    let mut count = 0;
    for (name, target) in TARGETS {
        for file in files(&dir.join(name)) {
            replay(target, &file);
            count += 1;
        }
    }
    count
}

#[test]
fn every_found_case_stays_mended() {
    replay_all(&kept("found"));
}

#[test]
fn the_corpus_passes() {
    assert!(replay_all(&kept("corpus")) > 0, "the corpus is in git");
    if let Some(dir) = std::env::var_os("FUZZ_CORPUS") {
        println!("{} more inputs", replay_all(Path::new(&dir)));
    }
}

#[test]
fn the_images_kept_in_git_pass() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/images");
    let images = files(&dir);
    assert!(images.len() > 40);
    for (name, target) in TARGETS {
        if ["header", "read", "check", "repair", "flatten", "sparsify"].contains(&name) {
            images.iter().for_each(|image| replay(target, image));
        }
    }
}

/// Draws inputs and runs the target on them; the smallest that fails is reported.
fn generated(name: &str) {
    let target = TARGETS.iter().find(|(known, _)| *known == name).expect("a target").1;
    let seconds = std::env::var("FUZZ_SECONDS").ok();
    let time = seconds.map(|text| Duration::from_secs(text.parse().expect("FUZZ_SECONDS")));
    let (begin, count) = (Instant::now(), Cell::new(0));
    let seed = match time {
        None => [7; 32],
        Some(_) => seed(),
    };
    let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    // A batch for each look at the clock.
    let cases = if time.is_some() { 40 } else { INPUTS };
    loop {
        let config =
            Config { cases, failure_persistence: None, max_shrink_iters: 500, ..Config::default() };
        let next = TestRng::from_seed(RngAlgorithm::ChaCha, &rng.random_seed());
        let result =
            TestRunner::new_with_rng(config, next).run(&vec(any::<u8>(), 0..LONGEST), |data| {
                count.set(count.get() + 1);
                target(&data);
                Ok(())
            });
        if let Err(error) = result {
            panic!("{name}: {error}");
        }
        if time.is_none_or(|time| begin.elapsed() >= time) {
            break;
        }
    }
    println!("{name}: {} inputs", count.get());
}

/// What `FUZZ_SEED` says, so that a run can be made again; else another one each time.
fn seed() -> [u8; 32] {
    let text = std::env::var("FUZZ_SEED").unwrap_or_else(|_| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock");
        now.as_nanos().to_string()
    });
    println!("FUZZ_SEED={text}");
    let mut seed = [0; 32];
    seed.iter_mut().zip(text.bytes()).for_each(|(to, byte)| *to = byte);
    seed
}

trait Seeds {
    fn random_seed(&mut self) -> [u8; 32];
}

impl Seeds for TestRng {
    fn random_seed(&mut self) -> [u8; 32] {
        let mut seed = [0; 32];
        self.fill_bytes(&mut seed);
        seed
    }
}

macro_rules! generated {
    ($($test:ident: $name:literal,)*) => { $(#[test] fn $test() { generated($name); })* };
}

generated! {
    generated_headers: "header",
    generated_entries: "entries",
    generated_compressed_clusters: "compressed",
    generated_snapshot_tables: "snapshots",
    generated_bitmap_directories: "bitmaps",
    generated_luks_headers: "luks",
    generated_names: "names",
    generated_images_read_as_the_reference_has_them: "read",
    generated_images_are_checked_alike_by_any_number_of_threads: "check",
    generated_images_are_repaired_without_loss: "repair",
    generated_images_are_flattened_whole: "flatten",
    generated_images_give_space_back_without_loss: "sparsify",
    generated_images_hold_what_is_written_to_them: "writes",
    generated_domains: "domain",
    generated_plans: "plan",
    generated_nbd_clients: "nbd_server",
    generated_nbd_servers: "nbd_client",
}
