//! Migrates guests with local disks between libvirt hosts, and never corrupts one.
//!
//! Data flows one way: what is so on both hosts ([`facts`]) and what the operator wants become a
//! [`plan`], a value that can be printed and kept; carrying it out prepares targets through a
//! [`store`], under a journal, and moves the guest through a [`driver`]. The part of the job that
//! needs no libvirt at all is the [`target`] of a full copy.
//!
//! A disk that must lose its backing file where it is is flattened while its guest runs ([`live`]).
//!
//! From a plan to a run, here between two directories that stand for hosts; with the feature `libvirt`,
//! [`Route::connect`](facts::Route) reaches real ones:
//!
//! ```
//! use migrate::facts::Route;
//! use migrate::plan::{Policy, plan};
//! use migrate::probe::{Probing, probe};
//! use migrate::run::{RunContext, Report, Run};
//! use migrate::{CancelToken, Silent};
//!
//! fn go(route: &Route, state: &std::path::Path, report: &dyn Report) -> migrate::Result<()> {
//!     let connections = route.connect_by(|uri| Err(migrate::Error::usage(format!("no way to {uri}"))))?;
//!     let (policy, cancel) = (Policy::default(), CancelToken::new());
//!     let probing = Probing::new(&policy, &Silent, &cancel);
//!     let probed = probe(&connections.hosts(), &route.domain, &probing)?;
//!     let plan = match plan(&probed.facts, &policy) {
//!         Ok(plan) => plan,
//!         Err(refusals) => {
//!             let why: String = refusals.iter().map(ToString::to_string).collect();
//!             return Err(migrate::Error::refused(why));
//!         }
//!     };
//!     print!("{plan}");
//!     migrate::journal::make_directory(state)?;
//!     let context = RunContext {
//!         hosts: connections.hosts(),
//!         facts: &probed.facts,
//!         pinned: &probed.pinned,
//!         route,
//!         state,
//!         report,
//!         cancel: &cancel,
//!     };
//!     let finished = Run::begin(&plan, &context)?.migrate()?;
//!     println!("{} is at {}", finished.domain, finished.to);
//!     Ok(())
//! }
//! ```
//!
//! A run that was cut off is found and ended by [`run::CutOff`]. With the feature `model`, `memory` has two hosts
//! in memory, so that programs can test the whole way of a live migration without libvirt.
//!
//! Uses only the public API of the [`qcow`] crate.

pub mod agent;
pub mod annotate;
pub mod audit;
pub mod domain;
pub mod driver;
mod error;
pub mod evacuate;
pub mod facts;
mod fs;
pub mod hook;
pub mod host;
pub mod hosts;
pub mod journal;
pub mod live;
#[cfg(feature = "model")]
pub mod memory;
pub mod plan;
pub mod preflight;
pub mod prepare;
pub mod probe;
mod process;
mod remedy;
pub mod rescue;
pub mod run;
mod setters;
pub mod store;
pub mod target;

pub use error::{Error, ErrorKind, Result};
pub use remedy::{Remedy, Reword};
// What appears in signatures here.
pub use qcow::chain::Format;
pub use qcow::{CancelToken, Observer, Silent};

/// The programs in the README compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
