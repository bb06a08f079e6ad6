//! `audit --picture`: who stands on whom, drawn.

use std::fs;
use std::path::Path;

use fixtures::{Holder, Scratch, args, needs_qemu, qemu};

use super::pair;
use common::qcowtool;

/// The texts of the picture of a directory.
fn drawn(directory: &Path) -> Vec<String> {
    let out = Scratch::new();
    let picture = out.path("graph.svg");
    let run = qcowtool(args!["audit", "--picture", picture, directory]);
    assert!(matches!(run.code(), Some(0 | 2)), "{}", run.stderr());
    let svg = fs::read_to_string(&picture).unwrap();
    let texts = svg.split("<text").skip(1).map(|text| {
        let text = text.split_once('>').unwrap().1;
        text.split("</text>").next().unwrap().trim().to_owned()
    });
    texts.collect()
}

fn has(texts: &[String], text: &str) -> bool {
    texts.iter().any(|drawn| drawn == text)
}

#[test]
fn bases_overlays_and_what_is_wrong_with_them_are_named() {
    needs_qemu!();
    let scratch = Scratch::new();
    pair(&scratch);
    qemu::overlay(scratch.path("second.qcow2"), "base.qcow2", "qcow2", "", "");
    qemu::create(scratch.path("alone.qcow2"), "", "1M");
    let directory = scratch.dir().file_name().unwrap().to_str().unwrap().to_owned();
    let base = format!("{directory}/base.qcow2");
    let texts = drawn(scratch.dir());
    for text in [&base, "overlay.qcow2", "second.qcow2", &format!("{directory}/alone.qcow2")] {
        assert!(has(&texts, text), "{text}: {texts:?}");
    }
    assert!(texts.iter().any(|text| text.contains("2 users, saves")), "{texts:?}");
    let _holder = Holder::new(&["-r"], &scratch.path("overlay.qcow2"));
    fs::remove_file(scratch.path("base.qcow2")).unwrap();
    let texts = drawn(scratch.dir());
    // The one that is missed, and the one that is still open.
    assert_eq!(texts.iter().filter(|text| **text == base).count(), 2, "{texts:?}");
    assert!(has(&texts, "is not there, 2 users"), "{texts:?}");
    assert!(texts.iter().any(|text| text.starts_with("deleted, held open:")), "{texts:?}");
    assert_eq!(texts.iter().filter(|text| *text == "base-missing").count(), 2, "{texts:?}");
    assert_eq!(texts.iter().filter(|text| *text == "deleted-open").count(), 1, "{texts:?}");
}

#[test]
fn thousands_are_counted_and_what_is_wrong_is_drawn() {
    needs_qemu!();
    let scratch = Scratch::new();
    common::ten_thousand(scratch.dir());
    fs::remove_file(scratch.path("pool6/group55/base.qcow2")).unwrap();
    let texts = drawn(scratch.dir());
    assert!(texts.len() < 400, "{}", texts.len());
    assert!(
        has(&texts, "group55/base.qcow2") && has(&texts, "is not there, 99 users"),
        "{texts:?}"
    );
    let first = texts.iter().position(|text| text.ends_with("/base.qcow2")).unwrap();
    assert_eq!(texts[first], "group55/base.qcow2", "what is wrong goes first");
    // Every image is a box, or is counted in one, or in the last line.
    let boxes = texts.iter().filter(|text| text.ends_with(".qcow2")).count();
    let counted = |ending: &str| -> usize {
        let numbers =
            texts.iter().filter_map(|text| text.split_once(ending)?.0.parse::<usize>().ok());
        numbers.sum()
    };
    assert_eq!(boxes + counted(" more images"), 10_000, "{texts:?}");
}

#[test]
fn circles_and_long_chains_are_drawn_to_an_end() {
    needs_qemu!();
    let scratch = Scratch::new();
    let chain = fixtures::chains::deep(scratch.dir(), 40);
    let texts = drawn(scratch.dir());
    assert!(has(&texts, "layer5.qcow2") && has(&texts, "34 more images"), "{texts:?}");
    qemu::qemu_img(&args!["rebase", "-u", "-b", "layer2.qcow2", "-F", "qcow2", chain.template()]);
    let texts = drawn(scratch.dir());
    assert!(texts.iter().any(|text| text.starts_with("loop")), "{texts:?}");
}

#[test]
fn the_picture_is_svg_or_png_by_name_and_replaces_nothing_unasked() {
    needs_qemu!();
    let scratch = Scratch::new();
    let images = scratch.subdir("images");
    qemu::create(images.join("<b>&\u{202e}.qcow2"), "", "1M");
    let png = scratch.path("graph.png");
    let draw = |name: &Path, more: &[&str]| {
        let more = more.iter().map(std::ffi::OsString::from).collect();
        qcowtool([args!["audit", "--picture", name, images], more].concat())
    };
    draw(&png, &[]).ok();
    assert!(fs::read(&png).unwrap().starts_with(b"\x89PNG\r\n"));
    draw(&png, &[]).refused_naming(&["exists already", "--force"]);
    draw(&png, &["--force"]).ok();
    draw(&scratch.path("graph.jpg"), &[]).refused_naming(&[".svg or .png"]);
    let texts = drawn(&images);
    assert!(texts.iter().any(|text| text.contains("images/&lt;b&gt;&amp;")), "{texts:?}");
    assert!(!texts.concat().contains('\u{202e}'));
}
