//! `qcowtool`: everything but libvirt, whose library and its sixty others would make every command
//! start three times slower.

use std::process::ExitCode;

fn main() -> ExitCode {
    qcowtool::run(None)
}
