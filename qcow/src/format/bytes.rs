//! Big-endian fields: the one place that turns bytes into integers and back.

use byteorder::{BigEndian, ByteOrder};

use crate::{Error, Result};

/// Walks through a structure's fields in order. Each read checks the length that is left.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    structure: &'static str,
}

impl<'a> Reader<'a> {
    /// Reads `bytes` from `at` on; errors name `structure`.
    pub(super) fn new(bytes: &'a [u8], at: usize, structure: &'static str) -> Self {
        Self { bytes, at, structure }
    }

    /// Where the next field starts.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// The next `len` bytes.
    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let end = self.at.saturating_add(len);
        let Some(field) = self.bytes.get(self.at..end) else {
            return Err(Error::corrupt(format!(
                "truncated: a field ends at byte {end} of the structure, found {} bytes",
                self.bytes.len()
            ))
            .structure(self.structure));
        };
        self.at = end;
        Ok(field)
    }

    pub(super) fn u8(&mut self) -> Result<u8> {
        Ok(self.take(1)?.first().copied().unwrap_or_default())
    }

    pub(super) fn u16(&mut self) -> Result<u16> {
        self.take(2).map(BigEndian::read_u16)
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        self.take(4).map(BigEndian::read_u32)
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        self.take(8).map(BigEndian::read_u64)
    }
}

/// Appends fields in order.
pub(super) trait Put {
    fn put_u16(&mut self, value: u16);
    fn put_u32(&mut self, value: u32);
    fn put_u64(&mut self, value: u64);
    /// Appends zeros up to a multiple of eight bytes.
    fn pad_to_8(&mut self);
}

impl Put for Vec<u8> {
    fn put_u16(&mut self, value: u16) {
        let mut field = [0; 2];
        BigEndian::write_u16(&mut field, value);
        self.extend_from_slice(&field);
    }

    fn put_u32(&mut self, value: u32) {
        let mut field = [0; 4];
        BigEndian::write_u32(&mut field, value);
        self.extend_from_slice(&field);
    }

    fn put_u64(&mut self, value: u64) {
        let mut field = [0; 8];
        BigEndian::write_u64(&mut field, value);
        self.extend_from_slice(&field);
    }

    fn pad_to_8(&mut self) {
        self.resize(self.len().next_multiple_of(8), 0);
    }
}

/// The integer in a field of 1, 2, 4 or 8 bytes; `None` for any other length.
pub(super) fn read_uint(field: &[u8]) -> Option<u64> {
    match field.len() {
        1 => field.first().copied().map(u64::from),
        2 => Some(BigEndian::read_u16(field).into()),
        4 => Some(BigEndian::read_u32(field).into()),
        8 => Some(BigEndian::read_u64(field)),
        _ => None,
    }
}

/// Fills a field of 1 to 8 bytes with the low bytes of `value`.
pub(super) fn write_uint(field: &mut [u8], value: u64) {
    let mut bytes = [0; 8];
    BigEndian::write_u64(&mut bytes, value);
    let skip = bytes.len().saturating_sub(field.len());
    for (to, from) in field.iter_mut().zip(bytes.iter().skip(skip)) {
        *to = *from;
    }
}

/// A C string's bytes: what is before the first NUL, if there is one.
pub(super) fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// `len` as the 32-bit length field of `what`.
pub(super) fn len_u32(len: usize, what: &str) -> Result<u32> {
    u32::try_from(len)
        .map_err(|_| Error::limit(format!("{what} is {len} bytes long, expected at most 2^32 - 1")))
}

/// `len` as the 16-bit length field of `what`.
pub(super) fn len_u16(len: usize, what: &str) -> Result<u16> {
    u16::try_from(len)
        .map_err(|_| Error::limit(format!("{what} is {len} bytes long, expected at most 65535")))
}
