//! Whole images, judged by `qemu-img`.
//!
//! Three differences are known and wanted. `qemu-img` guesses the format of a backing file that the header does
//! not record, and the engine refuses to ([`ErrorKind::Denied`]): there, contents are not compared. And
//! `qemu-img check` opens the files that an image stands on, while the engine's check looks at the image alone:
//! where one of them is missing, or a key is asked for, there is nothing to compare with. Where the table of a bitmap is broken that is
//! in use, and so not loaded, `qemu-img check` gives up, and the engine's says that it is corrupt.

use std::process::{Command, Output};

use qcow::chain::{Chain, Format, OpenOptions};
use qcow::ops::check::{CheckOptions, Finding, Severity, Structure, check};
use qcow::{CancelToken, ErrorKind, Silent};
use serde_json::{Map, Value};

use crate::forge;
use crate::images::{Beside, ELSEWHERE, MOST_BYTES, layers};
use crate::place::Place;
use crate::reference::{Image, Refusal};

/// `qemu-img` and the engine open the same images, check them to the same counts, and read the same bytes.
pub fn differential(data: &[u8]) {
    let image = forge::image(data);
    let judged = Image::open(&image.bytes);
    if judged.as_ref().is_ok_and(|image| image.size > MOST_BYTES) {
        return;
    }
    let place = Place::with(&image.bytes);
    let beside = Beside::default();
    let alone = layers(&image.bytes, &beside).is_err_and(|refusal| {
        ELSEWHERE.contains(&refusal) || refusal == Refusal("it is encrypted")
    });
    compare_check(&place, alone);
    compare_content(&place);
}

fn qemu_img(place: &Place, args: &[&str]) -> Output {
    Command::new("qemu-img").args(args).current_dir(place.dir()).output().expect("qemu-img runs")
}

fn counts(json: &[u8]) -> Map<String, Value> {
    let mut all: Map<String, Value> = serde_json::from_slice(json).expect("JSON");
    for ours in ["filename", "findings", "findings-left-out"] {
        all.remove(ours);
    }
    all
}

/// `alone`: an image that stands on files which are not there.
fn compare_check(place: &Place, alone: bool) {
    let theirs = qemu_img(place, &["check", "-f", "qcow2", "--output", "json", "top"]);
    let options = CheckOptions::default().format(Format::Qcow2).threads(1);
    let ours = check(&place.top(), &options, &Silent, &CancelToken::new());
    let said = String::from_utf8_lossy(&theirs.stderr);
    match ours {
        Ok(ours) if !theirs.stdout.is_empty() => {
            let ours = serde_json::to_vec(&ours).expect("JSON");
            assert_eq!(counts(&ours), counts(&theirs.stdout), "{said}");
        }
        Ok(_) if alone => {}
        Ok(ours) if ours.findings.iter().any(is_broken_bitmap) => {}
        Ok(ours) => panic!("qemu-img does not check what we do: {said}{ours:?}"),
        Err(error) => assert!(theirs.stdout.is_empty(), "qemu-img checks it: {error}"),
    }
}

fn is_broken_bitmap(finding: &Finding) -> bool {
    finding.structure == Structure::BitmapTable && finding.severity == Severity::Corruption
}

fn compare_content(place: &Place) {
    let theirs = qemu_img(place, &["convert", "-f", "qcow2", "-O", "raw", "top", "theirs"]);
    let said = String::from_utf8_lossy(&theirs.stderr);
    let options = OpenOptions::default().format(Format::Qcow2);
    let ours = Chain::open(&place.top(), &options).and_then(|chain| {
        let mut bytes = vec![0; chain.virtual_size() as usize];
        chain.reader().read_at(&mut bytes, qcow::format::GuestOffset(0)).map(|()| bytes)
    });
    match (ours, theirs.status.success()) {
        (Ok(ours), true) => {
            let theirs = std::fs::read(place.path("theirs")).expect("what qemu-img wrote");
            assert!(ours == theirs, "another content");
        }
        (Err(_), false) => {}
        (Err(error), true) if error.kind() == ErrorKind::Denied => {}
        (Ok(_), false) => panic!("qemu-img does not read it: {said}"),
        (Err(error), true) => panic!("qemu-img reads it: {error}"),
    }
}
