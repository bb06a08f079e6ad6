//! The `qcowtool` command line.
fn main() {}
