//! Hosts and their processors.

use std::ffi::{CString, c_char, c_int};
use std::ptr;

use virt::connect::Connect;
use virt_sys as sys;

use super::{Outcome, borrowed, checked};
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

/// A host's memory, in KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    free: u64,
    buffers: u64,
    cached: u64,
    /// As the kernel estimates it; 0 where libvirt does not tell.
    available: u64,
}

impl Memory {
    /// What nothing uses, or only caches files.
    pub(crate) fn available(&self) -> u64 {
        match self.available {
            0 => self.free.saturating_add(self.buffers).saturating_add(self.cached),
            known => known,
        }
    }
}

/// A host's memory. `virt` has only what is free, and what caches files is not that.
pub(crate) fn memory(connect: &Connect) -> Outcome<Memory> {
    let all_cells: c_int = sys::VIR_NODE_MEMORY_STATS_ALL_CELLS;
    let mut count: c_int = 0;
    // SAFETY: valid object; without a list libvirt only says how long one has to be.
    checked(unsafe {
        sys::virNodeGetMemoryStats(connect.as_ptr(), all_cells, ptr::null_mut(), &raw mut count, 0)
    })?;
    let length = usize::try_from(count).unwrap_or_default();
    let empty = sys::virNodeMemoryStats { field: [0; 80], value: 0 };
    let mut stats = vec![empty; length];
    // SAFETY: valid object, and a list of `count` elements.
    checked(unsafe {
        let list = stats.as_mut_ptr();
        sys::virNodeGetMemoryStats(connect.as_ptr(), all_cells, list, &raw mut count, 0)
    })?;
    let mut memory = Memory::default();
    for stat in stats.iter().take(usize::try_from(count).unwrap_or_default()) {
        // SAFETY: libvirt ends the name within its field.
        let name = unsafe { borrowed(stat.field.as_ptr()) }.unwrap_or_default();
        let value = stat.value;
        match name.as_str() {
            "free" => memory.free = value,
            "buffers" => memory.buffers = value,
            "cached" => memory.cached = value,
            "available" => memory.available = value,
            _ => {}
        }
    }
    Ok(memory)
}
