//! Hosts: their files through every kind of store, journals of what was made there, and libvirt.

#![allow(clippy::restriction, clippy::pedantic, reason = "tests assert by panicking")]

#[cfg(feature = "libvirt")]
mod annotate;
mod audit_remote;
#[path = "../../examples/plan.rs"]
#[allow(dead_code)]
mod example;
mod examples;
mod hook;
mod journal_crash;
#[cfg(feature = "libvirt")]
mod libvirt_hosts;
#[cfg(feature = "libvirt")]
mod libvirt_test_driver;
mod memory;
mod store_common;
mod store_directories;
mod store_local;
mod store_protocol;
mod store_remote;
