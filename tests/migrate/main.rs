//! What prepares and repairs guests' storage, with directories in place of hosts: audit, preflight, prepare, rescue.

#![allow(clippy::restriction, clippy::pedantic, reason = "tests assert by panicking")]

mod audit;
mod directories;
mod evacuate;
mod hook;
mod kits;
mod preflight;
mod rescue;
mod ways_out;
