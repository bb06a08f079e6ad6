//! A native QCOW2 engine: no QEMU process, no QEMU code.

pub mod chain;
pub mod format;
pub mod ops;

mod error;
mod progress;

pub use error::{Error, ErrorKind, Place, Printable, Result};
pub use progress::{CancelToken, Observer, Silent};
