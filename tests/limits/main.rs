//! Memory of the whole program.
//!
//! A program of its own, and a small one: the kernel counts the memory of the process that starts a program as that
//! program's, so whatever measures here must not hold much itself.

#![allow(clippy::restriction, clippy::pedantic, reason = "tests assert by panicking")]

mod audit_memory;
mod check_memory;
mod flatten_memory;
mod limits;
