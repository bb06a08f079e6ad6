//! Tests that need the whole crate.

mod metadata;
mod writing;
