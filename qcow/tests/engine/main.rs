//! The engine's public API: properties of the format, and what is done in parallel.

#![allow(clippy::restriction, clippy::pedantic, reason = "tests assert by panicking")]

mod advice;
mod chains;
mod examples;
mod format_properties;
mod threads;
mod walk;
