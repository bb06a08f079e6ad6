//! A [`Store`](crate::store::Store) over a stream of bytes: the far end of it is the same program on the
//! other host, which looks, creates and digests there, so that only what must travel does.
//!
//! One asks, the other answers, one thing at a time. Each side says its name and version first. Then
//! there are frames: a byte for the kind, four for the length (big-endian), and that many bytes:
//! either a message in JSON or a piece of a file, its offset (eight bytes) first. Holes do not travel.
//!
//! Neither side trusts the other with its memory or its files: every length is bounded before it is
//! taken, and the near end writes nothing that the far end names.

pub(crate) mod message;
mod serve;
pub(crate) mod wire;

pub use message::PROTOCOL;
pub use serve::{serve, serve_standard_streams};
