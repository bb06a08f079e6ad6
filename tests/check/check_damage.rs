//! `check`: random damage to metadata, judged by us and by `qemu-img check`.

use crate::check_common::{Places, built, everything, judged_alike, to};
use fixtures::patch::{OFFSET_MASK, field};
use fixtures::pattern::Random;
use fixtures::{Patch, Scratch, args, needs_qemu, qemu_img, qemu_io};

/// Places of metadata: where a flipped bit changes what the image says.
fn metadata(image: &Patch) -> Vec<(usize, usize)> {
    let l1 = to(image.u64(field::L1_OFFSET));
    let entries = image.u32(field::L1_SIZE) as usize;
    let mut places = vec![(24, 88), (l1, 8 * entries), (image.reftable(), 24)];
    let tables = (0..entries).map(|index| to(image.u64(l1 + 8 * index) & OFFSET_MASK));
    places.extend(tables.filter(|&table| table != 0).map(|table| (table, 256)));
    places.push((image.refblock(), 128));
    if image.u32(field::SNAPSHOTS) > 0 {
        let table = image.snapshot_table();
        places.extend([(table, 144), (to(image.u64(table)), 8)]);
    }
    places
}

/// Flips single bits of metadata, and asserts that both judge each damaged image alike.
fn flipped(name: &str, image: &[u8], seed: u64) {
    let scratch = Scratch::new();
    let path = scratch.file("image.qcow2", image);
    let places = metadata(&Patch::open(&path));
    let mut random = Random::new(seed);
    for _ in 0..60 {
        let mut patch = Patch::open(&path);
        patch.bytes = image.to_vec();
        let (start, len) = places[random.below(places.len() as u64) as usize];
        let at = (start + random.below(len as u64) as usize).min(patch.bytes.len() - 1);
        let bit = random.below(8);
        patch.bytes[at] ^= 1 << bit;
        // Without a key, QEMU does not check what says that it is encrypted.
        if at == field::CRYPT + 3 && bit == 0 {
            continue;
        }
        patch.save();
        judged_alike(&path, &format!("{name}: bit {bit} of byte {at:#x}"));
    }
}

#[test]
fn single_bits_of_an_image_with_everything_in_it() {
    needs_qemu!();
    flipped("everything", everything(), 1);
}

#[test]
fn single_bits_of_version_2_and_of_other_widths() {
    needs_qemu!();
    for (seed, options) in [
        (2, "compat=0.10"),
        (3, "refcount_bits=1"),
        (4, "refcount_bits=4"),
        (5, "refcount_bits=64"),
    ] {
        let image = built(&format!("cluster_size=4k,{options}"), |image| {
            qemu_io("qcow2", image, &["write 0 32k", "write 100k 8k"]);
            if seed != 3 {
                qemu_img(&args!["snapshot", "-c", "one", image]);
            }
        });
        flipped(options, &image, seed);
    }
}

#[test]
fn single_bits_of_extended_l2_entries() {
    needs_qemu!();
    let image = built("cluster_size=16k,extended_l2=on", |image| {
        qemu_io(
            "qcow2",
            image,
            &["write 0 3k", "write 20k 40k", "write -z 70k 8k", "write -c 96k 16k"],
        );
    });
    flipped("extended L2", &image, 6);
}

#[test]
fn single_bits_of_small_clusters() {
    needs_qemu!();
    let image = built("cluster_size=512", |image| {
        qemu_io("qcow2", image, &["write 0 20k", "write 99k 9k"])
    });
    flipped("small clusters", &image, 7);
}
