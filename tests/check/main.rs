//! `check` and its repair, with qemu-img as the judge.

#![allow(clippy::restriction, clippy::pedantic, reason = "tests assert by panicking")]

mod check;
mod check_common;
mod check_damage;
mod check_mapping;
mod check_structures;
mod damage;
mod repair;
