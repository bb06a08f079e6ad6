//! What is read is what was written, by one thread and by many; QEMU agrees; and so does every state that a
//! crash can leave.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test that overflows fails, as it should"
)]

mod barriers;
mod crashes;
pub(super) mod damaged;
mod data_file;
mod faults;
pub(super) mod images;
mod in_flight;
mod lies;
mod operations;
mod queue;
mod steps;
mod takeover;
mod threads;
mod traps;
