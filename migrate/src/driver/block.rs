//! Jobs of the hypervisor on one disk of a running guest.

use std::path::PathBuf;

use qcow::chain::Format;

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockJobKind {
    /// The active layer is filled with what the layers below hold.
    Pull,
    /// The disk is copied, and what the guest writes goes to both.
    Copy,
    /// Anything else.
    Other,
}

/// How far a job is. Bytes; both figures grow while the guest writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockProgress {
    /// What it does.
    pub kind: BlockJobKind,
    /// Done.
    pub done: u64,
    /// Of so much; a copy that is in step with the disk has done all.
    pub total: u64,
}

/// A copy of a disk into an image that is there already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockCopy {
    /// The image.
    pub to: PathBuf,
    /// Its format.
    pub format: Format,
    /// Bytes a second.
    pub bandwidth: Option<u64>,
    /// Only the active layer is copied: the image has the same backing file.
    pub shallow: bool,
}
