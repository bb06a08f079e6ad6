//! Hosts and their processors.

use std::ffi::{CString, c_char};
use std::ptr;

use virt::connect::Connect;
use virt_sys as sys;

use super::{Outcome, checked};
use crate::facts::Cpu;

/// `virCPUCompareResult` without its errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CpuCompared {
    Incompatible,
    Identical,
    Superset,
}

/// Compares a processor with the host's, or with what its hypervisor offers; an incompatible one may be an error that
/// says why. `virt` lacks the latter, and of the former it makes a failed call without an error.
pub(crate) fn compare_cpu(connect: &Connect, cpu: &Cpu<'_>) -> Outcome<CpuCompared> {
    let fail = sys::VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE;
    let result = match cpu {
        Cpu::OfHost(xml) => {
            let xml = CString::new(*xml)?;
            // SAFETY: valid object and C string.
            unsafe { sys::virConnectCompareCPU(connect.as_ptr(), xml.as_ptr(), fail) }
        }
        Cpu::OfGuest { xml, arch, machine, virtualization } => {
            let xml = CString::new(*xml)?;
            let words = [arch, machine, virtualization].map(|word| CString::new(*word));
            let [arch, machine, virtualization] = words;
            let (arch, machine, virtualization) = (arch?, machine?, virtualization?);
            // An empty word leaves the choice to libvirt.
            let word = |text: &CString| -> *const c_char {
                if text.is_empty() { ptr::null() } else { text.as_ptr() }
            };
            // SAFETY: valid object and C strings; null is allowed for what is not known.
            unsafe {
                sys::virConnectCompareHypervisorCPU(
                    connect.as_ptr(),
                    ptr::null(),
                    word(&arch),
                    word(&machine),
                    word(&virtualization),
                    xml.as_ptr(),
                    fail,
                )
            }
        }
    };
    Ok(match checked(result)? {
        sys::VIR_CPU_COMPARE_IDENTICAL => CpuCompared::Identical,
        sys::VIR_CPU_COMPARE_SUPERSET => CpuCompared::Superset,
        _ => CpuCompared::Incompatible,
    })
}
