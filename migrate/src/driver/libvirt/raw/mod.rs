//! What the `virt` crate lacks or does wrongly, as safe functions on its objects: this module is the one place
//! with `unsafe`. Each function says why it is here.
//!
//! Strings and lists are copied, and every failure is what libvirt said. Nothing here decides anything.
//!
//! `virt`'s objects panic when they cannot be freed. libvirt refuses that only for a pointer that is none of its
//! objects, so it does not happen to ours, also when their connection is broken.

#![allow(unsafe_code, reason = "this module is the wrapper around the C library")]

mod block;
mod domain;
mod host;
mod stream;
mod subscription;

use std::ffi::{CStr, c_char, c_int};

use virt::error::clear_error_callback;
use virt::event::{event_register_default_impl, event_run_default_impl};
use virt_sys as sys;

pub(crate) use virt::error::Error as Failure;

pub(crate) use self::block::{block_copy, block_pull, end_block_job};
pub(crate) use self::domain::{
    Numbers, Parameters, abort_job, block_job, capacity, checkpoints, job_stats, migrate, state,
};
pub(crate) use self::host::{CpuCompared, compare_cpu, memory};
pub(crate) use self::stream::{Received, receive, send_hole};
pub(crate) use self::subscription::Subscription;

/// What libvirt said, if it failed.
pub(crate) type Outcome<T> = std::result::Result<T, Failure>;

/// A copy of a C string.
///
/// # Safety
/// `text` is null or a valid C string.
unsafe fn borrowed(text: *const c_char) -> Option<String> {
    // SAFETY: as promised by the caller.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

/// What the functions return that say -1 when they fail.
fn checked(result: c_int) -> Outcome<c_int> {
    if result < 0 { Err(Failure::last_error()) } else { Ok(result) }
}

/// Gets libvirt ready: once in a process, before anything else. From then on it prints nothing itself.
pub(crate) fn initialize() -> Outcome<()> {
    // `virt` leaves this to the first connection, which is too late for what follows.
    // SAFETY: a documented call without preconditions.
    checked(unsafe { sys::virInitialize() })?;
    clear_error_callback();
    event_register_default_impl()
}

/// Handles events once; blocks until there are some. Only one thread may.
pub(crate) fn run_events() -> Outcome<()> {
    event_run_default_impl()
}
