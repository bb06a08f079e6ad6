//! libvirt's hook on the destination of a migration with local disks: what `qcowtool hook` decides and does.
//!
//! libvirt calls the hook with the guest's XML before it looks at the targets (`migrate begin`), once QEMU waits for
//! the first block (`started begin`), and when QEMU is gone (`stopped end`, `release end`). At the first call the hook
//! creates missing targets and ends chains to files that are not there; at the second it refuses an incremental copy
//! that would leave garbage; at the last it removes what it created for a migration that failed.
//!
//! Decisions are pure: [`begin::decide`] and [`gate::judge`] turn values into values, by the rules of
//! [`plan`](crate::plan). [`Hook`] finds the facts out and carries the decisions out.

pub mod annotation;
pub mod begin;
pub mod config;
mod facts;
pub mod gate;
pub mod install;
pub mod peers;
mod record;
mod run;
pub mod status;

pub use config::Config;
pub use run::{AskSource, Call, Hook, Paths};
