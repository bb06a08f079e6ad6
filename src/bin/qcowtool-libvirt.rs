//! `qcowtool` with libvirt. `qcowtool` itself starts it for the commands that need it.

use std::process::ExitCode;

fn main() -> ExitCode {
    qcowtool::run(None)
}
