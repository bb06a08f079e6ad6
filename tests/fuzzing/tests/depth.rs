//! Forged images get past the header, and have everything in them.

#![allow(clippy::restriction, clippy::pedantic, reason = "tests assert by panicking")]

use std::collections::BTreeSet;

use fuzzing::forge;
use fuzzing::reference::{Image, Unit, read};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng};

#[test]
fn forged_images_open_and_have_every_kind_of_cluster() {
    let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[5; 32]);
    let (mut opened, mut damaged, mut broken, mut kinds) = (0, 0, 0, BTreeSet::new());
    for _ in 0..300 {
        let mut data = [0; 400];
        rng.fill_bytes(&mut data);
        let forged = forge::image(&data);
        damaged += u32::from(forged.damaged);
        let Ok(image) = Image::open(&forged.bytes) else {
            assert!(forged.damaged, "a sound image opens");
            continue;
        };
        opened += 1;
        kinds.insert(if image.rules.extended { "extended" } else { "plain" });
        kinds.insert(if image.backing_name.is_some() { "overlay" } else { "alone" });
        kinds.insert(if forged.snapshots.is_empty() { "none" } else { "snapshots" });
        let unit = image.rules.unit();
        for at in (0..image.size.div_ceil(unit).min(2000)).map(|number| number * unit) {
            match image.unit_at(at) {
                Ok(Unit::Below) => kinds.insert("below"),
                Ok(Unit::Zero) => kinds.insert("zero"),
                Ok(Unit::Data(_)) => kinds.insert("data"),
                Ok(Unit::Compressed { .. }) => kinds.insert("compressed"),
                Err(_) => {
                    broken += 1;
                    continue;
                }
            };
        }
    }
    println!("{opened} of 300 open, {damaged} are damaged, {broken} units cannot be read");
    assert!(opened >= 150 && (150..=290).contains(&damaged) && broken > 0);
    assert_eq!(kinds.len(), 10, "{kinds:?}");
}

#[test]
fn the_reference_reads_an_image_of_qemu_img_as_qemu_img_does() {
    fixtures::needs_qemu!();
    let scratch = fixtures::Scratch::new();
    let raw = scratch.file("raw", &fuzzing::place::base());
    for options in ["compat=0.10", "cluster_size=512", "extended_l2=on", "compression_type=zstd"] {
        for compress in [&[][..], &["-c"]] {
            let image = scratch.path("image");
            let mut args = fixtures::args!["convert", "-O", "qcow2", "-o", options];
            args.extend(compress.iter().map(fixtures::argument));
            args.extend(fixtures::args![raw, image]);
            fixtures::qemu_img(&args);
            let file = std::fs::read(&image).unwrap();
            let layer = fuzzing::reference::Layer::Qcow2(Image::open(&file).unwrap(), None);
            let size = layer.size();
            let mut content = read(&[layer], 0, size).unwrap();
            content.truncate(fuzzing::place::base().len());
            fixtures::assert_bytes!(content, fuzzing::place::base(), "{options} {compress:?}");
        }
    }
}
