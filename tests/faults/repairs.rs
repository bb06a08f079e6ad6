//! What an image may look like whose repair did not come to its end.

use std::fs;
use std::path::Path;
use std::process::Command;

use fixtures::{Scratch, args, qemu};

use super::cases::Case;
use super::place::Place;
use common::qcowtool;

/// Asks qemu-img whether the image has nothing worse than it had and leaks, whether it reads as before, and
/// us whether another repair makes it clean.
pub(crate) fn at_worst_leaks(place: &Place, case: &Case, left: &Path) -> Result<(), String> {
    let before = place.source(case.changes.expect("an image that is repaired"));
    let bytes = fs::read(left).unwrap();
    if fs::read(&before).unwrap() == bytes || place.well.lock().unwrap().contains(&bytes) {
        return Ok(());
    }
    // What is done to it here is done to a copy, where there is room.
    let scratch = Scratch::new();
    let image = &scratch.path("image");
    fs::copy(left, image).unwrap();
    let was = errors(&before);
    if let Some(error) = errors(image).into_iter().find(|error| !was.contains(error)) {
        return Err(format!("qemu-img finds what was not there before: {error}"));
    }
    let content = || qemu::raw_of("qcow2", image);
    let wanted = qemu::raw_of("qcow2", &before);
    if content() != wanted {
        return Err("the disk reads as another one".to_owned());
    }
    let again = qcowtool(args!["check", "-r", "all", image]);
    if !again.succeeded() || content() != wanted {
        return Err(format!("another repair does not mend it: {}", again.stderr()));
    }
    qemu::assert_clean(image);
    place.well.lock().unwrap().insert(bytes);
    Ok(())
}

/// What `qemu-img check` calls an error. A copied flag that is not set though it could be is none: it costs a
/// copy (docs/repair.md).
fn errors(image: &Path) -> Vec<String> {
    let output =
        Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(image).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    let harmless = |line: &str| line.contains("OFLAG_COPIED") && line.contains("refcount=1");
    let errors = text.lines().filter(|line| line.starts_with("ERROR") && !harmless(line));
    errors.map(str::to_owned).collect()
}
