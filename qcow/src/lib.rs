//! A native QCOW2 engine: no QEMU process, no QEMU code.

pub mod chain;
pub mod codec;
pub mod extent;
pub mod format;
pub mod image;
pub mod io;
pub mod ops;

mod error;
mod layout;
mod progress;

pub use error::{Error, ErrorKind, Place, Printable, Result};
pub use progress::{CancelToken, Observer, Silent};
