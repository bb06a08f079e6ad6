//! libvirt's C API as far as it is used, as safe functions: this module is the one place with `unsafe`.
//!
//! Objects free themselves, strings and lists are copied, and every failure is what libvirt said. Nothing
//! here decides anything.
//!
//! Written on the bare bindings, because the `virt` crate above them panics where an object cannot be
//! freed, takes a failed `virDomainGetState` for an unknown state, reads the statistics of an idle
//! domain through a null pointer, and lacks half of what is needed.

#![allow(unsafe_code, reason = "this module is the wrapper around the C library")]

mod domain;
mod storage;
mod subscription;

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{self, NonNull};

use virt_sys as sys;

pub(crate) use self::domain::{Numbers, Parameters};
pub(crate) use self::storage::Received;
pub(crate) use self::subscription::Subscription;

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
