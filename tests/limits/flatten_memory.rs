//! `flatten`: memory is a few MiB for each thread, whatever the size of the disk, measured in the whole
//! program.

use std::path::{Path, PathBuf};

use common::peak;
use fixtures::{Scratch, args, needs_qemu, pattern, qemu_img};

const MIB: u64 = 1 << 20;
/// What docs and documentation of the library state for each thread.
const PER_THREAD: u64 = 4 * MIB;
/// What the allocator and the threads' timing may add, stacks included.
const SLACK: u64 = 3 * MIB;

/// A raw image with `mib` MiB, all of it data that can be compressed a little.
fn raw(scratch: &Scratch, mib: u64) -> PathBuf {
    let (path, piece) = (scratch.path("disk.raw"), pattern::mixed(1, MIB as usize));
    let pieces: Vec<_> = (0..mib).map(|index| (index * MIB, &*piece)).collect();
    pattern::write_raw(&path, mib * MIB, &pieces);
    path
}

/// Peaks for a small disk on one thread, a large one on one thread, and the large one on nine.
fn peaks(sizes: (u64, u64), options: &[&str], compressed: bool) -> (u64, u64, u64) {
    let of = |mib: u64, threads: &str| {
        let scratch = Scratch::new();
        let (mut source, flat) = (raw(&scratch, mib), scratch.path("flat"));
        if compressed {
            let image = scratch.path("compressed.qcow2");
            qemu_img(&args!["convert", "-c", "-f", "raw", "-O", "qcow2", source, image]);
            source = image;
        }
        run(&source, &flat, options, threads)
    };
    (of(sizes.0, "1"), of(sizes.1, "1"), of(sizes.1, "9"))
}

fn run(source: &Path, flat: &Path, options: &[&str], threads: &str) -> u64 {
    let options = options.iter().map(Into::into).collect();
    peak([args!["flatten", "-q", "--threads", threads], options, args![source, flat]].concat())
}

#[track_caller]
fn bounded((small, large, nine): (u64, u64, u64)) {
    assert!(large < small + SLACK, "{small} bytes for a small disk, {large} for a large one");
    let most = large + 8 * PER_THREAD + SLACK;
    assert!(nine < most, "{large} bytes on one thread, {nine} on nine: more than {most}");
}

#[test]
fn memory_does_not_grow_with_the_disk() {
    bounded(peaks((32, 256), &["-f", "raw"], false));
}

#[test]
fn nor_with_what_is_compressed() {
    for kind in ["zlib", "zstd"] {
        let option = format!("compression_type={kind}");
        bounded(peaks((16, 48), &["-f", "raw", "-c", "-o", &option], false));
    }
}

#[test]
fn nor_with_what_was_compressed() {
    needs_qemu!();
    bounded(peaks((16, 64), &["-O", "raw"], true));
}
