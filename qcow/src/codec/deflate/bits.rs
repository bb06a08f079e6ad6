//! The stream's bits, least significant first.

/// Appends bits to a vector.
pub(super) struct Bits<'a> {
    output: &'a mut Vec<u8>,
    /// Bytes of `output` that are written; the rest is room.
    written: usize,
    /// Bits that do not fill a byte yet, or have not been moved out yet.
    held: u64,
    count: u32,
}

impl<'a> Bits<'a> {
    pub(super) fn new(output: &'a mut Vec<u8>) -> Self {
        output.clear();
        Self { output, written: 0, held: 0, count: 0 }
    }

    /// Makes room for `bits` more bits, for which [`put`](Self::put) is then called.
    pub(super) fn reserve(&mut self, bits: u64) {
        self.output.resize(self.written + (bits / 8) as usize + 16, 0);
    }

    /// Appends the lowest `count` bits, at most 56, of `value`, which has no others set.
    pub(super) fn put(&mut self, value: u64, count: u32) {
        self.put_all(std::iter::once((value, count)));
    }

    /// Appends values with so many bits each, as [`put`](Self::put) does.
    #[inline]
    pub(super) fn put_all(&mut self, values: impl Iterator<Item = (u64, u32)>) {
        // The compiler keeps these in registers.
        let (mut held, mut count, mut written) = (self.held, self.count, self.written);
        let output = self.output.as_mut_slice();
        for (value, bits) in values {
            held |= value.wrapping_shl(count);
            count = count.wrapping_add(bits);
            let rest = output.get_mut(written..);
            if let Some(place) = rest.and_then(|rest| rest.first_chunk_mut::<8>()) {
                *place = held.to_le_bytes();
            }
            let whole = count / 8;
            written = written.wrapping_add(whole as usize);
            held = held.wrapping_shr(whole.wrapping_mul(8));
            count %= 8;
        }
        (self.held, self.count, self.written) = (held, count, written);
    }

    /// Fills the current byte with zeros.
    pub(super) fn align(&mut self) {
        if self.count > 0 {
            self.put(0, 8 - self.count);
        }
    }

    /// Appends whole bytes; the stream must be aligned.
    pub(super) fn append(&mut self, bytes: &[u8]) {
        self.output[self.written..self.written + bytes.len()].copy_from_slice(bytes);
        self.written += bytes.len();
    }

    /// Bits that the current byte lacks.
    pub(super) fn to_align(&self, after: u32) -> u32 {
        (8 - (self.count + after) % 8) % 8
    }

    /// Whole bytes so far.
    pub(super) fn bytes(&self) -> usize {
        self.written
    }

    /// Ends the stream and returns its length in bytes.
    pub(super) fn finish(mut self) -> usize {
        self.align();
        self.output.truncate(self.written);
        self.written
    }
}
