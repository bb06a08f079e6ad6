//! Prepares storage for libvirt migrations of guests with local disks.
//!
//! So far this crate holds one thing, the part of the job that needs no libvirt: the
//! [`target`] of a full copy, made of exactly the right size and proven before anybody relies on
//! it. Planning and driving migrations come next.
//!
//! Uses only the public API of the [`qcow`] crate.

pub mod target;
