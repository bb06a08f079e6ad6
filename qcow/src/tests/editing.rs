//! Changes of a whole image by one switch of the header: what is read afterwards is right, QEMU agrees, and every
//! state that a crash can leave is the old image or the new one, without leaks.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test that overflows fails, as it should"
)]

mod faults;
pub(super) mod model;
mod resize;
mod schedules;
mod snapshots;
mod sparsify;
