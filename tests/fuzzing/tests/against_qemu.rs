//! Forged images, judged by `qemu-img`: what it opens and reads, and what its check counts.

#![allow(clippy::restriction, clippy::pedantic, reason = "tests assert by panicking")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng};

/// Images for a run when nothing is said; each costs two runs of `qemu-img`.
const IMAGES: usize = 60;

#[test]
fn every_difference_found_stays_mended() {
    fixtures::needs_qemu!();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../qcow/fuzz/found/differential");
    let mut count = 0;
    for file in std::fs::read_dir(dir).expect("a directory") {
        fuzzing::qemu::differential(
            &std::fs::read(file.expect("an entry").path()).expect("a file"),
        );
        count += 1;
    }
    assert!(count > 0);
}

#[test]
fn forged_images_are_read_and_checked_as_qemu_img_does() {
    fixtures::needs_qemu!();
    let images =
        std::env::var("FUZZ_IMAGES").map_or(IMAGES, |text| text.parse().expect("a number"));
    let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[9; 32]);
    let mut failed = Vec::new();
    for number in 0..images {
        let mut data = [0; 400];
        rng.fill_bytes(&mut data);
        if catch_unwind(AssertUnwindSafe(|| fuzzing::qemu::differential(&data))).is_err() {
            failed.push((number, data));
        }
    }
    let numbers: Vec<_> = failed.iter().map(|(number, _)| number).collect();
    assert!(failed.is_empty(), "{} of {images} differ: {numbers:?}", failed.len());
}
