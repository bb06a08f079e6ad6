//! `check`: memory grows with the clusters in use by a few bits for each, measured in the whole program.

use std::path::{Path, PathBuf};

use common::{peak, qcowtool};
use fixtures::{Scratch, args, needs_qemu, qemu};

const GIB: u64 = 1 << 30;
/// Host clusters for each GiB of disk, all of them in use.
const CLUSTERS: u64 = GIB >> 16;
/// What the allocator and the threads' timing may add.
const SLACK: u64 = 3 << 19; // 1.5 MiB

/// An image of so many GiB in clusters of 64 KiB, all of them allocated and none of them written.
fn preallocated(scratch: &Scratch, gib: u64) -> PathBuf {
    let path = scratch.path("image.qcow2");
    let size = format!("{gib}G");
    qcowtool(args!["create", "-f", "qcow2", "-o", "preallocation=metadata", path, size]).ok();
    path
}

/// Asserts that memory grows by no more than `bits` for each cluster.
#[track_caller]
fn grows_by(bits: u64, (small, large): (u64, u64), peak: impl Fn(u64) -> u64) {
    let (first, second) = (peak(small), peak(large));
    let most = (large - small) * CLUSTERS * bits / 8 + SLACK;
    assert!(
        second < first + most,
        "{first} bytes for {small} GiB, {second} for {large} GiB: more than {most} between them"
    );
}

#[test]
fn a_check_takes_six_bits_for_each_cluster() {
    grows_by(6, (1, 256), |gib| {
        let scratch = Scratch::new();
        let image = preallocated(&scratch, gib);
        peak(args!["check", "--threads", "2", image])
    });
}

#[test]
fn holes_cost_nothing() {
    // The file is 8 TiB long, 2^27 clusters, of which few are in use.
    let scratch = Scratch::new();
    let image = preallocated(&scratch, 1);
    let small = peak(args!["check", "--threads", "2", image]);
    let file = std::fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.set_len(8 << 40).unwrap();
    let large = peak(args!["check", "--threads", "2", image]);
    assert!(large < small + SLACK, "{small} bytes, with holes {large}");
}

#[test]
fn a_repair_that_writes_all_refcounts_anew_takes_ten() {
    needs_qemu!();
    grows_by(10, (1, 32), |gib| {
        let scratch = Scratch::new();
        let image = preallocated(&scratch, gib);
        lose_refcounts(&image);
        let peak = peak(args!["check", "--threads", "2", "-r", "all", image]);
        qemu::assert_clean(&image);
        peak
    });
}

/// Forgets the refcount table.
fn lose_refcounts(image: &Path) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().read(true).write(true).open(image).unwrap();
    let mut offset = [0; 8];
    file.read_exact_at(&mut offset, 48).unwrap();
    file.write_all_at(&[0; 512], u64::from_be_bytes(offset)).unwrap();
}
