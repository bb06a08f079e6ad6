//! Checks an image, shows what a repair would do, and does it if told to.
//! `cargo run --example check_repair -- disk.qcow2 --repair`

use std::path::Path;

use qcow::ops::check::{CheckOptions, CheckOutcome, RepairOptions, Scope, check, repair};
use qcow::{CancelToken, Silent};

fn main() -> qcow::Result<()> {
    let image = std::env::args_os().nth(1).unwrap_or_default();
    let write = std::env::args().nth(2).is_some_and(|argument| argument == "--repair");
    run(Path::new(&image), write).map(drop)
}

/// Returns the state of the image in the end.
pub(crate) fn run(image: &Path, write: bool) -> qcow::Result<CheckOutcome> {
    let (options, cancel) = (CheckOptions::default(), CancelToken::new());
    let found = check(image, &options, &Silent, &cancel)?;
    println!("{} corruptions, {} leaked clusters", found.corruptions, found.leaks);
    if found.corruptions == 0 && found.leaks == 0 {
        return Ok(found);
    }
    let options = RepairOptions::new(Scope::All).dry_run(!write).check(options);
    let repaired = repair(image, &options, &Silent, &cancel)?;
    for step in &repaired.steps {
        println!("{} {:#x}: {}", step.structure.as_str(), step.host_offset, step.action.as_str());
    }
    Ok(repaired.check)
}
