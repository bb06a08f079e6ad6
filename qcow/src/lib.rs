//! A native QCOW2 engine: no QEMU process, no QEMU code.

pub mod codec;

#[allow(clippy::module_inception)]
pub mod format;

mod error;

pub use error::{Error, ErrorKind, Place, Printable, Result};
