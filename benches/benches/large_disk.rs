//! The program `suite` under the name that `cargo bench` looks for.

use std::process::ExitCode;

fn main() -> ExitCode {
    benches::main()
}
