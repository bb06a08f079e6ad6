//! Streams with holes, of which `virt` knows nothing.

use std::ffi::{c_int, c_uint};

use virt::stream::Stream;
use virt_sys as sys;

use super::{Outcome, checked};

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

/// Leaves `length` bytes out, in a stream that was started for that.
pub(crate) fn send_hole(stream: &Stream, length: u64) -> Outcome<()> {
    let length = i64::try_from(length).unwrap_or(i64::MAX);
    // SAFETY: the object is valid.
    checked(unsafe { sys::virStreamSendHole(stream.as_ptr(), length, 0) }).map(drop)
}

/// Receives into `buffer`, from a stream that was started with or without holes.
pub(crate) fn receive(stream: &Stream, buffer: &mut [u8]) -> Outcome<Received> {
    /// What libvirt returns where a hole begins.
    const AT_HOLE: c_int = -3;
    let flags: c_uint = sys::VIR_STREAM_RECV_STOP_AT_HOLE;
    // SAFETY: as many bytes are writable.
    let result = unsafe {
        sys::virStreamRecvFlags(stream.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len(), flags)
    };
    if result == AT_HOLE {
        let mut length = 0;
        // SAFETY: the number is written to a number.
        checked(unsafe { sys::virStreamRecvHole(stream.as_ptr(), &raw mut length, 0) })?;
        return Ok(Received::Hole(length.unsigned_abs()));
    }
    match usize::try_from(checked(result)?) {
        Ok(0) | Err(_) => Ok(Received::End),
        Ok(count) => Ok(Received::Data(count)),
    }
}
