//! The program in the place of `qemu-img`: beside the real one, with the command lines that other programs build.

#![allow(clippy::restriction, clippy::pedantic, reason = "tests assert by panicking")]

mod arguments;
mod beside;
mod bitmaps;
mod clients;
mod copies;
mod data_files;
mod differential;
mod invocations;
mod on_purpose;
mod sparse;
mod zeros;
