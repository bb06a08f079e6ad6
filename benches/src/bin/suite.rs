//! Runs qcowtool beside `qemu-img`; `cargo bench --bench large_disk` is the same.

use std::process::ExitCode;

fn main() -> ExitCode {
    benches::main()
}
