//! Faults and crashes: whatever call fails, wherever the process or the machine stops, a target is whole,
//! old or absent, and a repaired image has leaks at worst.

// The tracer changes registers, which each processor has of its own.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::restriction, clippy::pedantic, reason = "tests assert by panicking")]

mod cases;
mod crashes;
mod cuts;
mod devices;
mod errnos;
mod inject;
mod kills;
mod limits;
mod migrations;
mod place;
mod repairs;
mod rescues;
mod signals;
mod stories;
mod tracer;
