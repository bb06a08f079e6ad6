//! What the fuzz targets of `qcow/fuzz` do, and the test that replays what they found.
//!
//! | module | what it gives |
//! |---|---|
//! | [`mod@reference`] | a slow, plain reader of QCOW2 images: the judge of what the engine reads |
//! | [`forge`] | images out of arbitrary bytes, mostly valid, then damaged |
//! | [`format`](mod@format) | targets for single structures |
//! | [`images`] | targets for whole images: read, check, repair, flatten |
//! | [`qemu`] | whole images, judged by `qemu-img` |
//! | [`migration`] | targets for domain XML and plans |
//! | [`mod@sparsify`] | the target for giving back space |
//! | [`writes`](mod@writes) | the target for sequences of writes to an image |
//! | [`network`] | targets for both sides of the network block device protocol |
//!
//! Each target is a function of bytes that panics when something is wrong.

pub mod forge;
pub mod format;
pub mod images;
pub mod migration;
pub mod network;
pub mod place;
pub mod qemu;
pub mod reference;
pub mod sparsify;
pub mod writes;

/// A target: takes any bytes, panics when something is wrong.
pub type Target = fn(&[u8]);

/// All targets by name, but the one that needs `qemu-img`.
pub const TARGETS: [(&str, Target); 17] = [
    ("header", format::header),
    ("entries", format::entries),
    ("compressed", format::compressed),
    ("snapshots", format::snapshots),
    ("bitmaps", format::bitmaps),
    ("luks", format::luks),
    ("names", format::names),
    ("read", images::read),
    ("check", images::check),
    ("repair", images::repair),
    ("flatten", images::flatten),
    ("sparsify", sparsify::sparsify),
    ("writes", writes::writes),
    ("domain", migration::domain),
    ("plan", migration::plan),
    ("nbd_server", network::nbd_server),
    ("nbd_client", network::nbd_client),
];
