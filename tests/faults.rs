//! Faults and crashes: whatever call fails, wherever the process or the machine stops, a target is whole,
//! old or absent, and a repaired image has leaks at worst.

// The tracer changes registers, which each processor has of its own.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::restriction, clippy::pedantic, reason = "tests assert by panicking")]

mod common;

#[path = "faults/cases.rs"]
mod cases;
#[path = "faults/crashes.rs"]
mod crashes;
#[path = "faults/cuts.rs"]
mod cuts;
#[path = "faults/devices.rs"]
mod devices;
#[path = "faults/errnos.rs"]
mod errnos;
#[path = "faults/inject.rs"]
mod inject;
#[path = "faults/kills.rs"]
mod kills;
#[path = "faults/limits.rs"]
mod limits;
#[path = "faults/migrations.rs"]
mod migrations;
#[path = "faults/place.rs"]
mod place;
#[path = "faults/repairs.rs"]
mod repairs;
#[path = "faults/rescues.rs"]
mod rescues;
#[path = "faults/stories.rs"]
mod stories;
#[path = "faults/tracer.rs"]
mod tracer;
