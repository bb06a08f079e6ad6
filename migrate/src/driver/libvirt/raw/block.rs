//! Jobs on one disk of a running guest. None of these calls is in `virt`.

use std::ffi::{CString, c_ulong};

use virt::domain::Domain;
use virt_sys as sys;

use super::{Outcome, Parameters, checked};

/// Starts a pull of all layers below the active one. `bandwidth` is in bytes a second, 0 for no limit.
pub(crate) fn block_pull(domain: &Domain, target: &str, bandwidth: u64) -> Outcome<()> {
    let target = CString::new(target)?;
    let flags = sys::VIR_DOMAIN_BLOCK_PULL_BANDWIDTH_BYTES;
    let bandwidth = c_ulong::try_from(bandwidth).unwrap_or(c_ulong::MAX);
    // SAFETY: valid object and C string.
    let result =
        unsafe { sys::virDomainBlockPull(domain.as_ptr(), target.as_ptr(), bandwidth, flags) };
    checked(result).map(drop)
}

/// Starts a copy of the whole disk into the image that `xml`, a `<disk>`, describes and that exists.
pub(crate) fn block_copy(
    domain: &Domain,
    target: &str,
    xml: &str,
    parameters: &Parameters,
    shallow: bool,
) -> Outcome<()> {
    let (target, xml) = (CString::new(target)?, CString::new(xml)?);
    // A copy does not outlive the process, which libvirt wants to be told for guests that are defined.
    let shallow = if shallow { sys::VIR_DOMAIN_BLOCK_COPY_SHALLOW } else { 0 };
    let flags =
        sys::VIR_DOMAIN_BLOCK_COPY_REUSE_EXT | sys::VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB | shallow;
    // SAFETY: valid object, C strings and list of parameters of that length, which libvirt only reads.
    let result = unsafe {
        sys::virDomainBlockCopy(
            domain.as_ptr(),
            target.as_ptr(),
            xml.as_ptr(),
            parameters.list,
            parameters.count,
            flags,
        )
    };
    checked(result).map(drop)
}

/// Ends the job on the disk, and waits until it has ended: by using the copy from now on, or by giving it up.
pub(crate) fn end_block_job(domain: &Domain, target: &str, pivot: bool) -> Outcome<()> {
    let target = CString::new(target)?;
    let flags = if pivot { sys::VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT } else { 0 };
    // SAFETY: valid object and C string.
    checked(unsafe { sys::virDomainBlockJobAbort(domain.as_ptr(), target.as_ptr(), flags) })
        .map(drop)
}
