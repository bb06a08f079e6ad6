//! Domains, their jobs and their migration.

use std::ffi::{CStr, c_char, c_int};
use std::ptr;

use virt_sys as sys;

use super::{Domain, Failure, Outcome, borrowed, c_string, checked, list, owned};

impl Domain {
    pub(crate) fn name(&self) -> Outcome<String> {
        // SAFETY: the object is valid; the string is the object's.
        unsafe { borrowed(sys::virDomainGetName(self.as_ptr())) }.ok_or_else(Failure::last)
    }

    pub(crate) fn uuid(&self) -> Outcome<String> {
        let mut text: [c_char; sys::VIR_UUID_STRING_BUFLEN as usize] =
            [0; sys::VIR_UUID_STRING_BUFLEN as usize];
        // SAFETY: the buffer has the length that is asked for.
        checked(unsafe { sys::virDomainGetUUIDString(self.as_ptr(), text.as_mut_ptr()) })?;
        // SAFETY: libvirt wrote a C string.
        unsafe { borrowed(text.as_ptr()) }.ok_or_else(Failure::last)
    }

    /// `virDomainState`.
    pub(crate) fn state(&self) -> Outcome<u32> {
        let mut state = 0;
        // SAFETY: the object is valid; a reason may be null.
        let result =
            unsafe { sys::virDomainGetState(self.as_ptr(), &raw mut state, ptr::null_mut(), 0) };
        checked(result)?;
        Ok(state.unsigned_abs())
    }

    pub(crate) fn is_persistent(&self) -> Outcome<bool> {
        // SAFETY: the object is valid.
        checked(unsafe { sys::virDomainIsPersistent(self.as_ptr()) }).map(|is| is == 1)
    }

    pub(crate) fn xml(&self, flags: u32) -> Outcome<String> {
        // SAFETY: the object is valid; the string is ours.
        unsafe { owned(sys::virDomainGetXMLDesc(self.as_ptr(), flags)) }
    }

    /// The disk's capacity in bytes.
    pub(crate) fn capacity(&self, target: &str) -> Outcome<u64> {
        let target = c_string(target)?;
        let mut info = sys::virDomainBlockInfo { capacity: 0, allocation: 0, physical: 0 };
        // SAFETY: valid object, C string and structure.
        let result =
            unsafe { sys::virDomainGetBlockInfo(self.as_ptr(), target.as_ptr(), &raw mut info, 0) };
        checked(result)?;
        Ok(info.capacity)
    }

    /// `virDomainBlockJobType` of the job on the disk, how far it is, and how far it goes.
    pub(crate) fn block_job(&self, target: &str) -> Outcome<Option<(i32, u64, u64)>> {
        let target = c_string(target)?;
        let mut info = sys::virDomainBlockJobInfo { type_: 0, bandwidth: 0, cur: 0, end: 0 };
        // SAFETY: valid object, C string and structure.
        let result = unsafe {
            sys::virDomainGetBlockJobInfo(self.as_ptr(), target.as_ptr(), &raw mut info, 0)
        };
        Ok((checked(result)? > 0).then_some((info.type_, info.cur, info.end)))
    }

    /// `virDomainJobType` and its numbers by their names. No numbers for an idle domain.
    pub(crate) fn job_stats(&self) -> Outcome<(u32, Numbers)> {
        let mut kind = 0;
        let mut params = ptr::null_mut();
        let mut count = 0;
        // SAFETY: the object is valid, and all results have a place.
        let result = unsafe {
            sys::virDomainGetJobStats(
                self.as_ptr(),
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

    pub(crate) fn abort_job(&self) -> Outcome<()> {
        // SAFETY: the object is valid.
        checked(unsafe { sys::virDomainAbortJob(self.as_ptr()) }).map(drop)
    }

    pub(crate) fn suspend(&self) -> Outcome<()> {
        // SAFETY: as above.
        checked(unsafe { sys::virDomainSuspend(self.as_ptr()) }).map(drop)
    }

    pub(crate) fn resume(&self) -> Outcome<()> {
        // SAFETY: as above.
        checked(unsafe { sys::virDomainResume(self.as_ptr()) }).map(drop)
    }

    pub(crate) fn create(&self) -> Outcome<()> {
        // SAFETY: as above.
        checked(unsafe { sys::virDomainCreate(self.as_ptr()) }).map(drop)
    }

    pub(crate) fn destroy(&self) -> Outcome<()> {
        // SAFETY: as above.
        checked(unsafe { sys::virDomainDestroy(self.as_ptr()) }).map(drop)
    }

    pub(crate) fn undefine(&self, flags: u32) -> Outcome<()> {
        // SAFETY: as above.
        checked(unsafe { sys::virDomainUndefineFlags(self.as_ptr(), flags) }).map(drop)
    }

    pub(crate) fn snapshots(&self) -> Outcome<Vec<String>> {
        list(
            // SAFETY: valid object; libvirt writes the array's address.
            |array| unsafe { sys::virDomainListAllSnapshots(self.as_ptr(), array, 0) },
            |snapshot| {
                // SAFETY: the snapshot is ours; its name is copied before it is freed.
                unsafe {
                    let name = borrowed(sys::virDomainSnapshotGetName(snapshot));
                    sys::virDomainSnapshotFree(snapshot);
                    name
                }
            },
        )
    }

    pub(crate) fn checkpoints(&self) -> Outcome<Vec<String>> {
        list(
            // SAFETY: as above.
            |array| unsafe { sys::virDomainListAllCheckpoints(self.as_ptr(), array, 0) },
            |checkpoint| {
                // SAFETY: as above.
                unsafe {
                    let name = borrowed(sys::virDomainCheckpointGetName(checkpoint));
                    sys::virDomainCheckpointFree(checkpoint);
                    name
                }
            },
        )
    }

    /// Blocks until the migration is over.
    pub(crate) fn migrate(&self, to: &str, parameters: &Parameters, flags: u32) -> Outcome<()> {
        let to = c_string(to)?;
        // SAFETY: valid object, C string and list of parameters of that length, which libvirt only reads.
        let result = unsafe {
            sys::virDomainMigrateToURI3(
                self.as_ptr(),
                to.as_ptr(),
                parameters.list,
                parameters.count.unsigned_abs(),
                flags,
            )
        };
        checked(result).map(drop)
    }
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
    list: sys::virTypedParameterPtr,
    count: c_int,
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
        let value = c_string(value)?;
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
