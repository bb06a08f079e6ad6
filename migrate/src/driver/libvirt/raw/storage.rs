//! Pools, volumes, and the streams that carry their bytes.

use std::ffi::{c_int, c_uint};

use virt_sys as sys;

use super::{Failure, Outcome, Pool, Stream, Volume, borrowed, c_string, checked, list, owned};

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
