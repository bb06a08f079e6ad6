//! Where everything in a new image goes.
//!
//! Space is handed out strictly in ascending order and never taken back, so a new image needs no
//! allocator and its metadata is generated exactly once:
//!
//! ```text
//! header | L1 table | data and L2 tables in guest order ... | refcount blocks | refcount table
//! ```
//!
//! An empty image has QEMU's order instead: header, refcount table, first refcount block, L1 table, and L2 tables in
//! front of what they map. Data that is cloned lies in the order of the source instead. An L2 table follows the data it
//! maps; a refcount block follows the stretch of the file that it counts, once that stretch is
//! complete. What is placed where depends only on the order of the calls, never on time or threads.
//! Memory is one L2 table, the L1 table and the refcount blocks still open.

mod new_image;
mod placer;
mod refcounts;

pub(crate) use new_image::NewImage;
pub(crate) use placer::{Finished, Placer, Sink};
