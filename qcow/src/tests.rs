//! Tests that need the whole crate.

mod editing;
mod metadata;
mod repairs;
mod writing;
