//! What operations that go through whole disks share: the pipeline that cuts disks into items, the
//! workers and the order of their results, copy offload, and the digest that costs nearly nothing.

#[cfg(test)]
mod crashes;
pub(in crate::ops) mod crc;
pub(in crate::ops) mod differences;
pub(in crate::ops) mod in_kernel;
mod item;
pub(in crate::ops) mod offload;
pub(in crate::ops) mod overwrite;
pub(in crate::ops) mod pieces;
pub(in crate::ops) mod pipeline;
pub(in crate::ops) mod rate;
pub(in crate::ops) mod salvage;
pub(in crate::ops) mod sequencer;
pub(in crate::ops) mod snapshots;
pub(in crate::ops) mod sparse;
pub(in crate::ops) mod transfer;
pub(in crate::ops) mod writes;
