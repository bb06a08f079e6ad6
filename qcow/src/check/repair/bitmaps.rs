//! Drops persistent bitmaps.

use super::plan::{Action, Plan, Step};
use crate::Result;
use crate::check::{Finding, FindingKind, Severity, Structure};
use crate::format::{Autoclear, HeaderPatch, field};
use crate::io::{Storage, read_padded};

/// Plans to clear the bit that vouches for the bitmaps; says whether it is set. The image need not
/// open: QEMU too refuses one whose bitmap directory is broken.
pub(super) fn drop_all(storage: &dyn Storage, plan: &mut Plan) -> Result<bool> {
    let (mut version, mut bits) = ([0; 4], [0; 8]);
    read_padded(storage, &mut version, field::VERSION)?;
    read_padded(storage, &mut bits, field::AUTOCLEAR)?;
    let bits = u64::from_be_bytes(bits);
    let cleared = bits & !Autoclear::BITMAPS.bits();
    if u32::from_be_bytes(version) < 3 || cleared == bits {
        return Ok(false);
    }
    plan.step(Step {
        action: Action::DropBitmaps,
        structure: Structure::Header,
        index: 0,
        host_offset: field::AUTOCLEAR,
        from: bits,
        to: cleared,
    });
    plan.changes.patch(HeaderPatch::autoclear(cleared))?;
    plan.changes.barrier();
    Ok(true)
}

/// What is said of bitmaps that kept the image from being opened.
pub(super) fn unreadable() -> Finding {
    Finding {
        structure: Structure::BitmapDirectory,
        host_offset: None,
        index: None,
        kind: FindingKind::Bitmap,
        severity: Severity::Corruption,
        guest_offset: None,
        numbers: None,
        message: "the bitmaps cannot be read, and QEMU does not open such an image".into(),
    }
}
