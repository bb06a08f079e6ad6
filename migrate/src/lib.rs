//! Migrates guests with local disks between libvirt hosts, and never corrupts one.
//!
//! Data flows one way: what is so on both hosts ([`facts`]) and what the operator wants become a
//! [`plan`], a value that can be printed and kept; carrying it out prepares targets through a
//! [`store`], under a journal, and moves the guest through a [`driver`]. The part of the job that
//! needs no libvirt at all is the [`target`] of a full copy.
//!
//! A disk that must stand alone where it is is flattened while its guest runs ([`live`]).
//!
//! Uses only the public API of the [`qcow`] crate.

pub mod agent;
pub mod audit;
pub mod domain;
pub mod driver;
mod error;
pub mod facts;
pub mod journal;
pub mod live;
pub mod plan;
pub mod preflight;
pub mod prepare;
pub mod probe;
mod process;
pub mod rescue;
pub mod run;
pub mod store;
pub mod target;

pub use error::{Error, ErrorKind, Result};

/// The programs in the README compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
