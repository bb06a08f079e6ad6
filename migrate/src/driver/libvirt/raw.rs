//! libvirt's C API as far as it is used, as safe functions: the one place with `unsafe`.
//!
//! Objects free themselves, strings and lists are copied, and every failure is what libvirt said. Nothing
//! here decides anything.
//!
//! Written on the bare bindings, because the `virt` crate above them panics where an object cannot be
//! freed, takes a failed `virDomainGetState` for an unknown state, reads the statistics of an idle
//! domain through a null pointer, and lacks half of what is needed.

#![allow(unsafe_code, reason = "this module is the wrapper around the C library")]

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use virt_sys as sys;

use super::events::Signal;

/// What libvirt said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// `virErrorNumber`.
    pub(crate) code: i32,
    /// `virErrorDomain`.
    pub(crate) domain: i32,
    /// Its sentence.
    pub(crate) message: String,
}

impl Failure {
    /// The last error of this thread.
    fn last() -> Self {
        // SAFETY: the pointer is null or to this thread's error, which lives until the next call.
        let error = unsafe { sys::virGetLastError().as_ref() };
        error.map_or_else(
            || Self { code: 0, domain: 0, message: "libvirt failed and did not say why".into() },
            |error| Self {
                code: error.code,
                domain: error.domain,
                // SAFETY: null or a C string that lives as long as the error.
                message: unsafe { borrowed(error.message) }.unwrap_or_default(),
            },
        )
    }

    fn nul(what: &str) -> Self {
        let message = format!("'{}' holds a NUL byte", what.escape_default());
        Self { code: sys::VIR_ERR_INVALID_ARG as i32, domain: 0, message }
    }
}

pub(crate) type Outcome<T> = std::result::Result<T, Failure>;

/// A copy of a C string.
///
/// # Safety
/// `text` is null or a valid C string.
unsafe fn borrowed(text: *const c_char) -> Option<String> {
    // SAFETY: as promised by the caller.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

/// A C string that was allocated for us.
///
/// # Safety
/// `text` is null or a valid C string from `malloc`, and nobody else frees it.
unsafe fn owned(text: *mut c_char) -> Outcome<String> {
    // SAFETY: as promised by the caller.
    let copy = unsafe { borrowed(text) };
    // SAFETY: as promised by the caller; null is fine.
    unsafe { libc::free(text.cast()) };
    copy.ok_or_else(Failure::last)
}

fn c_string(text: &str) -> Outcome<CString> {
    CString::new(text).map_err(|_| Failure::nul(text))
}

/// What the functions return that say -1 when they fail.
fn checked(result: c_int) -> Outcome<c_int> {
    if result < 0 { Err(Failure::last()) } else { Ok(result) }
}

/// An object of libvirt's that is freed when it is dropped.
macro_rules! object {
    ($(#[$doc:meta])* $name:ident, $raw:ty, $free:path) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub(crate) struct $name(NonNull<$raw>);

        // SAFETY: libvirt's objects may be used and freed by any thread; errors are kept per thread.
        unsafe impl Send for $name {}

        impl $name {
            fn own(pointer: *mut $raw) -> Outcome<Self> {
                NonNull::new(pointer).map(Self).ok_or_else(Failure::last)
            }

            fn as_ptr(&self) -> *mut $raw {
                self.0.as_ptr()
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: the reference is ours, and this is its end.
                unsafe { $free(self.as_ptr()) };
            }
        }
    };
}

object!(
    /// A connection.
    Connect, sys::_virConnect, sys::virConnectClose
);
object!(
    /// A domain.
    Domain, sys::_virDomain, sys::virDomainFree
);
object!(
    /// A storage pool.
    Pool, sys::_virStoragePool, sys::virStoragePoolFree
);
object!(
    /// A volume of a pool.
    Volume, sys::_virStorageVol, sys::virStorageVolFree
);
object!(
    /// A stream of bytes from or to a volume. Not to be used by two threads at once.
    Stream, sys::_virStream, sys::virStreamFree
);

// SAFETY: libvirt locks its connections, domains, pools and volumes itself. Streams are not shared.
unsafe impl Sync for Connect {}
// SAFETY: as for `Connect`.
unsafe impl Sync for Domain {}
// SAFETY: as for `Connect`.
unsafe impl Sync for Pool {}
// SAFETY: as for `Connect`.
unsafe impl Sync for Volume {}

impl Clone for Connect {
    fn clone(&self) -> Self {
        // SAFETY: the pointer is valid; this fails only if it were not.
        unsafe { sys::virConnectRef(self.as_ptr()) };
        Self(self.0)
    }
}

/// Copies a list that libvirt made: `fill` puts its address into the pointer that it is given and returns
/// its length.
fn list<T, U>(
    fill: impl FnOnce(*mut *mut T) -> c_int,
    mut take: impl FnMut(T) -> Option<U>,
) -> Outcome<Vec<U>>
where
    T: Copy,
{
    let mut array: *mut T = ptr::null_mut();
    let count = usize::try_from(checked(fill(&raw mut array))?).unwrap_or(0);
    if array.is_null() {
        return Ok(Vec::new());
    }
    // SAFETY: libvirt made an array of so many elements, which is ours.
    let items = unsafe { std::slice::from_raw_parts(array, count) };
    let taken = items.iter().filter_map(|item| take(*item)).collect();
    // SAFETY: it came from malloc, and its elements have been taken.
    unsafe { libc::free(array.cast()) };
    Ok(taken)
}

extern "C" fn say_nothing(_: *mut c_void, _: sys::virErrorPtr) {}

/// Gets libvirt ready: once in a process, before anything else. From then on it prints nothing itself.
pub(crate) fn initialize() -> Outcome<()> {
    // SAFETY: documented calls without preconditions; the callback is a plain function.
    unsafe {
        checked(sys::virInitialize())?;
        sys::virSetErrorFunc(ptr::null_mut(), Some(say_nothing));
        checked(sys::virEventRegisterDefaultImpl())?;
    }
    Ok(())
}

/// Handles events once; blocks until there are some.
pub(crate) fn run_events() -> Outcome<()> {
    // SAFETY: `initialize` has registered the loop; only one thread runs it.
    checked(unsafe { sys::virEventRunDefaultImpl() }).map(drop)
}

impl Connect {
    pub(crate) fn open(uri: &str) -> Outcome<Self> {
        let uri = c_string(uri)?;
        // SAFETY: a valid C string.
        Self::own(unsafe { sys::virConnectOpen(uri.as_ptr()) })
    }

    pub(crate) fn is_alive(&self) -> bool {
        // SAFETY: the object is valid.
        unsafe { sys::virConnectIsAlive(self.as_ptr()) == 1 }
    }

    /// Not every way of connection has it.
    pub(crate) fn keep_alive(&self, seconds: i32, count: u32) -> Outcome<()> {
        // SAFETY: the object is valid.
        checked(unsafe { sys::virConnectSetKeepAlive(self.as_ptr(), seconds, count) }).map(drop)
    }

    pub(crate) fn hostname(&self) -> Outcome<String> {
        // SAFETY: the object is valid; the string is ours.
        unsafe { owned(sys::virConnectGetHostname(self.as_ptr())) }
    }

    pub(crate) fn capabilities(&self) -> Outcome<String> {
        // SAFETY: as above.
        unsafe { owned(sys::virConnectGetCapabilities(self.as_ptr())) }
    }

    /// libvirt's version at the far end, in its way to write one as a number.
    pub(crate) fn libvirt_version(&self) -> Outcome<u64> {
        let mut version = 0;
        // SAFETY: the object is valid, and the number is written to a number.
        checked(unsafe { sys::virConnectGetLibVersion(self.as_ptr(), &raw mut version) })?;
        Ok(version)
    }

    /// The hypervisor's version; 0 if it is not known.
    pub(crate) fn hypervisor_version(&self) -> Outcome<u64> {
        let mut version = 0;
        // SAFETY: as above.
        checked(unsafe { sys::virConnectGetVersion(self.as_ptr(), &raw mut version) })?;
        Ok(version)
    }

    pub(crate) fn domain_by_uuid(&self, uuid: &str) -> Outcome<Domain> {
        let uuid = c_string(uuid)?;
        // SAFETY: valid object and C string.
        Domain::own(unsafe { sys::virDomainLookupByUUIDString(self.as_ptr(), uuid.as_ptr()) })
    }

    pub(crate) fn domain_by_name(&self, name: &str) -> Outcome<Domain> {
        let name = c_string(name)?;
        // SAFETY: as above.
        Domain::own(unsafe { sys::virDomainLookupByName(self.as_ptr(), name.as_ptr()) })
    }

    /// All domains, running or not.
    pub(crate) fn domains(&self) -> Outcome<Vec<Domain>> {
        list(
            // SAFETY: valid object; libvirt writes the array's address.
            |array| unsafe { sys::virConnectListAllDomains(self.as_ptr(), array, 0) },
            |domain| Domain::own(domain).ok(),
        )
    }

    pub(crate) fn define(&self, xml: &str) -> Outcome<Domain> {
        let xml = c_string(xml)?;
        // SAFETY: valid object and C string.
        Domain::own(unsafe { sys::virDomainDefineXMLFlags(self.as_ptr(), xml.as_ptr(), 0) })
    }

    /// All pools, active or not.
    pub(crate) fn pools(&self) -> Outcome<Vec<Pool>> {
        list(
            // SAFETY: valid object; libvirt writes the array's address.
            |array| unsafe { sys::virConnectListAllStoragePools(self.as_ptr(), array, 0) },
            |pool| Pool::own(pool).ok(),
        )
    }

    pub(crate) fn pool_by_name(&self, name: &str) -> Outcome<Pool> {
        let name = c_string(name)?;
        // SAFETY: valid object and C string.
        Pool::own(unsafe { sys::virStoragePoolLookupByName(self.as_ptr(), name.as_ptr()) })
    }

    /// The active pool whose directory this is.
    pub(crate) fn pool_by_target_path(&self, path: &str) -> Outcome<Pool> {
        let path = c_string(path)?;
        // SAFETY: as above.
        Pool::own(unsafe { sys::virStoragePoolLookupByTargetPath(self.as_ptr(), path.as_ptr()) })
    }

    /// Makes a pool that is gone when it is stopped.
    pub(crate) fn create_pool(&self, xml: &str) -> Outcome<Pool> {
        let xml = c_string(xml)?;
        // SAFETY: as above.
        Pool::own(unsafe { sys::virStoragePoolCreateXML(self.as_ptr(), xml.as_ptr(), 0) })
    }

    pub(crate) fn stream(&self) -> Outcome<Stream> {
        // SAFETY: the object is valid. No flags: calls block.
        Stream::own(unsafe { sys::virStreamNew(self.as_ptr(), 0) })
    }
}

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

impl Pool {
    pub(crate) fn name(&self) -> Outcome<String> {
        // SAFETY: the object is valid; the string is the object's.
        unsafe { borrowed(sys::virStoragePoolGetName(self.as_ptr())) }.ok_or_else(Failure::last)
    }

    pub(crate) fn xml(&self) -> Outcome<String> {
        // SAFETY: the object is valid; the string is ours.
        unsafe { owned(sys::virStoragePoolGetXMLDesc(self.as_ptr(), 0)) }
    }

    pub(crate) fn is_active(&self) -> Outcome<bool> {
        // SAFETY: the object is valid.
        checked(unsafe { sys::virStoragePoolIsActive(self.as_ptr()) }).map(|is| is == 1)
    }

    pub(crate) fn start(&self) -> Outcome<()> {
        // SAFETY: as above.
        checked(unsafe { sys::virStoragePoolCreate(self.as_ptr(), 0) }).map(drop)
    }

    /// Stops it. Its files stay.
    pub(crate) fn stop(&self) -> Outcome<()> {
        // SAFETY: as above.
        checked(unsafe { sys::virStoragePoolDestroy(self.as_ptr()) }).map(drop)
    }

    pub(crate) fn refresh(&self) -> Outcome<()> {
        // SAFETY: as above.
        checked(unsafe { sys::virStoragePoolRefresh(self.as_ptr(), 0) }).map(drop)
    }

    /// Free bytes.
    pub(crate) fn available(&self) -> Outcome<u64> {
        let mut info =
            sys::virStoragePoolInfo { state: 0, capacity: 0, allocation: 0, available: 0 };
        // SAFETY: valid object and structure.
        checked(unsafe { sys::virStoragePoolGetInfo(self.as_ptr(), &raw mut info) })?;
        Ok(info.available)
    }

    pub(crate) fn volume(&self, name: &str) -> Outcome<Volume> {
        let name = c_string(name)?;
        // SAFETY: valid object and C string.
        Volume::own(unsafe { sys::virStorageVolLookupByName(self.as_ptr(), name.as_ptr()) })
    }

    pub(crate) fn volumes(&self) -> Outcome<Vec<Volume>> {
        list(
            // SAFETY: valid object; libvirt writes the array's address.
            |array| unsafe { sys::virStoragePoolListAllVolumes(self.as_ptr(), array, 0) },
            |volume| Volume::own(volume).ok(),
        )
    }

    pub(crate) fn create_volume(&self, xml: &str) -> Outcome<Volume> {
        let xml = c_string(xml)?;
        // SAFETY: valid object and C string.
        Volume::own(unsafe { sys::virStorageVolCreateXML(self.as_ptr(), xml.as_ptr(), 0) })
    }
}

impl Volume {
    pub(crate) fn path(&self) -> Outcome<String> {
        // SAFETY: the object is valid; the string is ours.
        unsafe { owned(sys::virStorageVolGetPath(self.as_ptr())) }
    }

    pub(crate) fn xml(&self) -> Outcome<String> {
        // SAFETY: as above.
        unsafe { owned(sys::virStorageVolGetXMLDesc(self.as_ptr(), 0)) }
    }

    pub(crate) fn delete(&self) -> Outcome<()> {
        // SAFETY: the object is valid.
        checked(unsafe { sys::virStorageVolDelete(self.as_ptr(), 0) }).map(drop)
    }

    /// Lets `stream` write `length` bytes from the start.
    pub(crate) fn upload(&self, stream: &Stream, length: u64, sparse: bool) -> Outcome<()> {
        let flags = if sparse { sys::VIR_STORAGE_VOL_UPLOAD_SPARSE_STREAM } else { 0 };
        // SAFETY: both objects are valid.
        let result =
            unsafe { sys::virStorageVolUpload(self.as_ptr(), stream.as_ptr(), 0, length, flags) };
        checked(result).map(drop)
    }

    /// Lets `stream` read `length` bytes from the start; all of them if it is 0.
    pub(crate) fn download(&self, stream: &Stream, length: u64, sparse: bool) -> Outcome<()> {
        let flags = if sparse { sys::VIR_STORAGE_VOL_DOWNLOAD_SPARSE_STREAM } else { 0 };
        // SAFETY: both objects are valid.
        let result =
            unsafe { sys::virStorageVolDownload(self.as_ptr(), stream.as_ptr(), 0, length, flags) };
        checked(result).map(drop)
    }
}

/// What came out of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    /// So many bytes of data.
    Data(usize),
    /// So many bytes of nothing.
    Hole(u64),
    /// The end.
    End,
}

impl Stream {
    /// Sends all of `data`.
    pub(crate) fn send(&self, mut data: &[u8]) -> Outcome<()> {
        while !data.is_empty() {
            // SAFETY: the bytes are there and are only read.
            let sent = checked(unsafe {
                sys::virStreamSend(self.as_ptr(), data.as_ptr().cast(), data.len())
            })?;
            data = usize::try_from(sent).ok().and_then(|sent| data.get(sent..)).unwrap_or(&[]);
        }
        Ok(())
    }

    /// Leaves `length` bytes out, in a stream that was started for that.
    pub(crate) fn send_hole(&self, length: u64) -> Outcome<()> {
        let length = i64::try_from(length).unwrap_or(i64::MAX);
        // SAFETY: the object is valid.
        checked(unsafe { sys::virStreamSendHole(self.as_ptr(), length, 0) }).map(drop)
    }

    /// Receives into `buffer`, from a stream that was started with or without holes.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> Outcome<Received> {
        /// What libvirt returns where a hole begins.
        const AT_HOLE: c_int = -3;
        let flags: c_uint = sys::VIR_STREAM_RECV_STOP_AT_HOLE;
        // SAFETY: as many bytes are writable.
        let result = unsafe {
            sys::virStreamRecvFlags(self.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len(), flags)
        };
        if result == AT_HOLE {
            let mut length = 0;
            // SAFETY: the number is written to a number.
            checked(unsafe { sys::virStreamRecvHole(self.as_ptr(), &raw mut length, 0) })?;
            return Ok(Received::Hole(length.unsigned_abs()));
        }
        match usize::try_from(checked(result)?) {
            Ok(0) | Err(_) => Ok(Received::End),
            Ok(count) => Ok(Received::Data(count)),
        }
    }

    /// Ends it, and says whether all that was sent arrived.
    pub(crate) fn finish(&self) -> Outcome<()> {
        // SAFETY: the object is valid.
        checked(unsafe { sys::virStreamFinish(self.as_ptr()) }).map(drop)
    }

    /// Breaks it off.
    pub(crate) fn abort(&self) {
        // SAFETY: as above. That it was over already is no matter.
        unsafe { sys::virStreamAbort(self.as_ptr()) };
    }
}

/// Keeps a [`Signal`] told of what happens to domains and to the connection.
#[derive(Debug)]
pub(crate) struct Subscription {
    connect: Connect,
    events: Vec<c_int>,
    closing: bool,
}

impl Subscription {
    /// What cannot be subscribed to on this connection is left out: whoever waits also looks by itself.
    pub(crate) fn new(connect: &Connect, signal: &Arc<Signal>) -> Self {
        // SAFETY: libvirt calls it with the arguments of the event that it is registered for below.
        let job_completed = unsafe {
            std::mem::transmute::<
                sys::virConnectDomainEventJobCompletedCallback,
                sys::virConnectDomainEventGenericCallback,
            >(Some(on_job_completed))
        };
        // SAFETY: as above.
        let lifecycle = unsafe {
            std::mem::transmute::<
                sys::virConnectDomainEventCallback,
                sys::virConnectDomainEventGenericCallback,
            >(Some(on_lifecycle))
        };
        let register = |event: sys::virDomainEventID, callback| {
            let opaque = lend(signal);
            let event = c_int::try_from(event).ok()?;
            // SAFETY: the callback fits the event; what is lent lives until libvirt calls `forget`.
            let id = unsafe {
                sys::virConnectDomainEventRegisterAny(
                    connect.as_ptr(),
                    ptr::null_mut(),
                    event,
                    callback,
                    opaque,
                    Some(forget),
                )
            };
            if id < 0 {
                // SAFETY: it was not registered, so nobody else will.
                unsafe { forget(opaque) };
            }
            (id >= 0).then_some(id)
        };
        let events = [
            register(sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle),
            register(sys::VIR_DOMAIN_EVENT_ID_JOB_COMPLETED, job_completed),
        ];
        let opaque = lend(signal);
        // SAFETY: as above.
        let closing = unsafe {
            sys::virConnectRegisterCloseCallback(
                connect.as_ptr(),
                Some(on_close),
                opaque,
                Some(forget),
            )
        } == 0;
        if !closing {
            // SAFETY: as above.
            unsafe { forget(opaque) };
        }
        Self { connect: connect.clone(), events: events.into_iter().flatten().collect(), closing }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        for id in &self.events {
            // SAFETY: the connection is valid, and this is an id of its.
            unsafe { sys::virConnectDomainEventDeregisterAny(self.connect.as_ptr(), *id) };
        }
        if self.closing {
            // SAFETY: as above.
            unsafe {
                sys::virConnectUnregisterCloseCallback(self.connect.as_ptr(), Some(on_close));
            };
        }
    }
}

/// Gives libvirt a share of `signal`, until it calls [`forget`].
fn lend(signal: &Arc<Signal>) -> *mut c_void {
    Arc::into_raw(Arc::clone(signal)).cast_mut().cast()
}

/// # Safety
/// `opaque` is from [`lend`], and this is its only return.
unsafe extern "C" fn forget(opaque: *mut c_void) {
    // SAFETY: as promised by the caller.
    drop(unsafe { Arc::from_raw(opaque.cast_const().cast::<Signal>()) });
}

/// # Safety
/// `opaque` is from [`lend`] and not yet forgotten.
unsafe fn raise(opaque: *mut c_void) {
    // SAFETY: as promised by the caller.
    unsafe { &*opaque.cast_const().cast::<Signal>() }.raise();
}

unsafe extern "C" fn on_lifecycle(
    _: sys::virConnectPtr,
    _: sys::virDomainPtr,
    _: c_int,
    _: c_int,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: libvirt gives back what it was lent, and forgets it only after the last event.
    unsafe { raise(opaque) };
    0
}

unsafe extern "C" fn on_job_completed(
    _: sys::virConnectPtr,
    _: sys::virDomainPtr,
    _: sys::virTypedParameterPtr,
    _: c_int,
    opaque: *mut c_void,
) {
    // SAFETY: as above.
    unsafe { raise(opaque) };
}

unsafe extern "C" fn on_close(_: sys::virConnectPtr, _: c_int, opaque: *mut c_void) {
    // SAFETY: as above.
    unsafe { raise(opaque) };
}
