//! `qcowtool` with libvirt. `qcowtool` itself starts it for the commands that need it.

use std::process::ExitCode;

use qcowtool::Connected;

fn main() -> ExitCode {
    qcowtool::run(Some(Connected::with_access))
}
