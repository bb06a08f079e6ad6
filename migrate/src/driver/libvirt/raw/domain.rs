//! Domains, their jobs and their migration.

use std::ffi::{CStr, CString, c_int};
use std::ptr;

use virt::domain::Domain;
use virt_sys as sys;

use super::{Outcome, borrowed, checked};

/// `virDomainState`, and its reason. `virt` takes a failed call for a state that it does not know.
pub(crate) fn state(domain: &Domain) -> Outcome<(u32, u32)> {
    let (mut state, mut reason) = (0, 0);
    // SAFETY: the object and both numbers are valid.
    let result =
        unsafe { sys::virDomainGetState(domain.as_ptr(), &raw mut state, &raw mut reason, 0) };
    checked(result)?;
    Ok((state.unsigned_abs(), reason.unsigned_abs()))
}

/// The disk's capacity in bytes. `virt` reads it also where the call failed and wrote nothing.
pub(crate) fn capacity(domain: &Domain, target: &str) -> Outcome<u64> {
    let target = CString::new(target)?;
    let mut info = sys::virDomainBlockInfo { capacity: 0, allocation: 0, physical: 0 };
    // SAFETY: valid object, C string and structure.
    let result =
        unsafe { sys::virDomainGetBlockInfo(domain.as_ptr(), target.as_ptr(), &raw mut info, 0) };
    checked(result)?;
    Ok(info.capacity)
}

/// `virDomainBlockJobType` of the job on the disk, how far it is, and how far it goes. Not in `virt`.
pub(crate) fn block_job(domain: &Domain, target: &str) -> Outcome<Option<(i32, u64, u64)>> {
    let target = CString::new(target)?;
    let mut info = sys::virDomainBlockJobInfo { type_: 0, bandwidth: 0, cur: 0, end: 0 };
    // SAFETY: valid object, C string and structure.
    let result = unsafe {
        sys::virDomainGetBlockJobInfo(domain.as_ptr(), target.as_ptr(), &raw mut info, 0)
    };
    Ok((checked(result)? > 0).then_some((info.type_, info.cur, info.end)))
}

/// `virDomainJobType` and its numbers by their names. No numbers for an idle domain, where `virt` reads a list
/// through a null pointer.
pub(crate) fn job_stats(domain: &Domain) -> Outcome<(u32, Numbers)> {
    let mut kind = 0;
    let mut params = ptr::null_mut();
    let mut count = 0;
    // SAFETY: the object is valid, and all results have a place.
    let result = unsafe {
        sys::virDomainGetJobStats(
            domain.as_ptr(),
            &raw mut kind,
            &raw mut params,
            &raw mut count,
            0,
        )
    };
    checked(result)?;
    // SAFETY: libvirt's list, or null with a count of 0.
    let numbers = unsafe { Numbers::copy(params, count) };
    // SAFETY: the list is ours; null is fine.
    unsafe { sys::virTypedParamsFree(params, count) };
    Ok((kind.unsigned_abs(), numbers))
}

/// Not in `virt`.
pub(crate) fn abort_job(domain: &Domain) -> Outcome<()> {
    // SAFETY: the object is valid.
    checked(unsafe { sys::virDomainAbortJob(domain.as_ptr()) }).map(drop)
}

/// The checkpoints' names. Not in `virt`.
pub(crate) fn checkpoints(domain: &Domain) -> Outcome<Vec<String>> {
    let mut array: *mut sys::virDomainCheckpointPtr = ptr::null_mut();
    // SAFETY: valid object; libvirt writes the array's address.
    let result = unsafe { sys::virDomainListAllCheckpoints(domain.as_ptr(), &raw mut array, 0) };
    let count = usize::try_from(checked(result)?).unwrap_or(0);
    if array.is_null() {
        return Ok(Vec::new());
    }
    // SAFETY: libvirt made an array of this length, whose checkpoints are ours.
    let all = unsafe { std::slice::from_raw_parts(array, count) };
    let name = |checkpoint: &sys::virDomainCheckpointPtr| {
        // SAFETY: the name is copied before its checkpoint is freed.
        unsafe {
            let name = borrowed(sys::virDomainCheckpointGetName(*checkpoint));
            sys::virDomainCheckpointFree(*checkpoint);
            name
        }
    };
    let names = all.iter().filter_map(name).collect();
    // SAFETY: it came from malloc, and its elements have been freed.
    unsafe { libc::free(array.cast()) };
    Ok(names)
}

/// Blocks until the migration is over. `virt` cannot say in which disks to look for zeros, loses the memory of
/// every string that it passes, and panics where one holds a NUL byte.
pub(crate) fn migrate(
    domain: &Domain,
    to: &str,
    parameters: &Parameters,
    flags: u32,
) -> Outcome<()> {
    let to = CString::new(to)?;
    // SAFETY: valid object, C string and list of parameters of that length, which libvirt only reads.
    let result = unsafe {
        sys::virDomainMigrateToURI3(
            domain.as_ptr(),
            to.as_ptr(),
            parameters.list,
            parameters.count.unsigned_abs(),
            flags,
        )
    };
    checked(result).map(drop)
}

/// Names with numbers, as libvirt's statistics come.
#[derive(Debug, Clone, Default)]
pub(crate) struct Numbers(Vec<(String, u64)>);

impl Numbers {
    /// # Safety
    /// `params` is null or a list of `count` parameters.
    unsafe fn copy(params: sys::virTypedParameterPtr, count: c_int) -> Self {
        if params.is_null() {
            return Self::default();
        }
        // SAFETY: as promised by the caller.
        let list =
            unsafe { std::slice::from_raw_parts(params, usize::try_from(count).unwrap_or(0)) };
        let number = |parameter: &sys::virTypedParameter| {
            let value = &parameter.value;
            // SAFETY: the type says which field of the union holds.
            let number = unsafe {
                match parameter.type_.unsigned_abs() {
                    sys::VIR_TYPED_PARAM_INT => u64::try_from(value.i).ok()?,
                    sys::VIR_TYPED_PARAM_UINT => u64::from(value.ui),
                    sys::VIR_TYPED_PARAM_LLONG => u64::try_from(value.l).ok()?,
                    sys::VIR_TYPED_PARAM_ULLONG => value.ul,
                    _ => return None,
                }
            };
            // SAFETY: libvirt's names end with a NUL within the field.
            Some((unsafe { borrowed(parameter.field.as_ptr()) }?, number))
        };
        Self(list.iter().filter_map(number).collect())
    }

    /// The number of this name; 0 if there is none.
    pub(crate) fn get(&self, name: &CStr) -> u64 {
        let found = self.0.iter().find(|(known, _)| known.as_bytes() == name.to_bytes());
        found.map_or(0, |(_, number)| *number)
    }
}

/// The parameters of a migration.
#[derive(Debug)]
pub(crate) struct Parameters {
    pub(super) list: sys::virTypedParameterPtr,
    pub(super) count: c_int,
    room: c_int,
}

// SAFETY: a list of its own memory, which is only read through a shared reference.
unsafe impl Sync for Parameters {}

impl Parameters {
    pub(crate) fn new() -> Self {
        Self { list: ptr::null_mut(), count: 0, room: 0 }
    }

    /// May be called more than once with one name, where a parameter has several values.
    pub(crate) fn text(&mut self, name: &CStr, value: &str) -> Outcome<()> {
        let value = CString::new(value)?;
        // SAFETY: the three belong together, and libvirt copies the strings.
        let result = unsafe {
            sys::virTypedParamsAddString(
                &raw mut self.list,
                &raw mut self.count,
                &raw mut self.room,
                name.as_ptr(),
                value.as_ptr(),
            )
        };
        checked(result).map(drop)
    }

    pub(crate) fn int(&mut self, name: &CStr, value: c_int) -> Outcome<()> {
        // SAFETY: as above.
        let result = unsafe {
            sys::virTypedParamsAddInt(
                &raw mut self.list,
                &raw mut self.count,
                &raw mut self.room,
                name.as_ptr(),
                value,
            )
        };
        checked(result).map(drop)
    }

    pub(crate) fn number(&mut self, name: &CStr, value: u64) -> Outcome<()> {
        // SAFETY: as above.
        let result = unsafe {
            sys::virTypedParamsAddULLong(
                &raw mut self.list,
                &raw mut self.count,
                &raw mut self.room,
                name.as_ptr(),
                value,
            )
        };
        checked(result).map(drop)
    }
}

impl Drop for Parameters {
    fn drop(&mut self) {
        // SAFETY: the list is ours; null is fine.
        unsafe { sys::virTypedParamsFree(self.list, self.count) };
    }
}
