//! Events, of domains and of the connection, which `virt` cannot subscribe to.

use std::ffi::{c_char, c_int, c_void};
use std::ptr;
use std::sync::Arc;

use virt::connect::Connect;
use virt_sys as sys;

use crate::driver::libvirt::events::Signal;

/// Keeps a [`Signal`] told of what happens to domains and to the connection.
#[derive(Debug)]
pub(crate) struct Subscription {
    connect: Connect,
    events: Vec<c_int>,
    closing: bool,
}

impl Subscription {
    /// What cannot be subscribed to on this connection is left out: the waiting caller also polls.
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
        // SAFETY: as above.
        let block_job = unsafe {
            std::mem::transmute::<
                sys::virConnectDomainEventBlockJobCallback,
                sys::virConnectDomainEventGenericCallback,
            >(Some(on_block_job))
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
                // SAFETY: it was not registered, so libvirt will not.
                unsafe { forget(opaque) };
            }
            (id >= 0).then_some(id)
        };
        let events = [
            register(sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle),
            register(sys::VIR_DOMAIN_EVENT_ID_JOB_COMPLETED, job_completed),
            register(sys::VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2, block_job),
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

unsafe extern "C" fn on_block_job(
    _: sys::virConnectPtr,
    _: sys::virDomainPtr,
    _: *const c_char,
    _: c_int,
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
