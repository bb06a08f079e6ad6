//! The bytes on disk: every structure of QCOW2 versions 2 and 3, read and written.
//!
//! Pure: slices in, values out, and back. No I/O, no allocation beyond what a structure holds.
//! Every parser takes hostile bytes: it returns a value or an error, never panics, and checks
//! each count against its limit ([`MAX_L1_BYTES`] and friends) before it reserves memory.
//!
//! | structure | types |
//! |---|---|
//! | first cluster | [`HeaderArea`], [`Header`], [`Extensions`] |
//! | cluster mapping | [`L1Entry`], [`L2Entry`], [`RawL2Entry`], [`CompressedSpan`], [`EntryRules`] |
//! | refcounts | [`RefcountTableEntry`], [`RefcountWidth`] |
//! | snapshot table | [`Snapshot`] |
//! | bitmap directory | [`BitmapEntry`], [`BitmapTableEntry`] |
//! | indices and offsets | [`Geometry`], [`GuestOffset`], [`HostOffset`] |

mod area;
mod bitmap;
mod bytes;
mod compressed;
mod entry;
mod extension;
mod features;
mod geometry;
mod header;
mod kinds;
mod limits;
mod luks;
mod preamble;
mod raw_entry;
mod refcount;
mod snapshot;
mod table;

pub use area::*;
pub use bitmap::*;
pub use compressed::*;
pub use entry::*;
pub use extension::*;
pub use features::*;
pub use geometry::*;
pub use header::Header;
pub(crate) use header::{HeaderPatch, field};
pub use kinds::*;
pub use limits::*;
pub use luks::*;
pub use raw_entry::RawL2Entry;
pub use refcount::*;
pub use snapshot::*;
pub use table::*;
