//! The command line: what is printed, refused, limited and interrupted; the sandbox; the monitor.

#![allow(clippy::restriction, clippy::pedantic, reason = "tests assert by panicking")]

mod advice;
mod cves;
mod documents;
mod errors;
mod info;
mod interrupt;
mod locks;
mod monitor;
mod remedies;
mod sandbox;
mod untrusted;
