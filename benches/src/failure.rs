//! How anything fails.

use std::error::Error;

/// Any failure: the suite has one way to deal with it, which is to say so and stop.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;
