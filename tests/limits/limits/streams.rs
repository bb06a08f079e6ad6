//! Compressed clusters that take a decoder as long as can be for their length.

/// A raw deflate stream of blocks that hold nothing, each behind a Huffman table that takes a decoder long to
/// set up, in no more than `most` bytes; then `size` zeros.
pub(crate) fn empty_blocks(most: usize, size: usize) -> Vec<u8> {
    let zeros = zlib(&vec![0; size]);
    let mut bits = Bits::default();
    while bits.bytes.len() + 32 + zeros.len() < most {
        bits.empty_block();
    }
    bits.align_with_empty_stored_block();
    bits.bytes.extend(zeros);
    bits.bytes
}

/// What a good encoder makes of `bytes`.
pub(crate) fn zlib(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let level = flate2::Compression::best();
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), level);
    encoder.write_all(bytes).expect("memory takes it");
    encoder.finish().expect("memory takes it")
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 19).expect("memory takes it")
}

/// The longest beginning of `content` whose stream has no more than `most` bytes, repeated to `size`.
pub(crate) fn filled(
    content: &[u8],
    most: usize,
    size: usize,
    compress: fn(&[u8]) -> Vec<u8>,
) -> Vec<u8> {
    let stream = |len: usize| {
        compress(&content.iter().copied().take(len).cycle().take(size).collect::<Vec<_>>())
    };
    let (mut fits, mut too_long) = (1, content.len() + 1);
    while fits + 1 < too_long {
        let len = fits.midpoint(too_long);
        if stream(len).len() <= most { fits = len } else { too_long = len }
    }
    stream(fits)
}

/// Bits in deflate's order.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    used: u32,
}

impl Bits {
    fn put(&mut self, value: u32, count: u32) {
        for bit in 0..count {
            if self.used == 0 {
                self.bytes.push(0);
            }
            *self.bytes.last_mut().unwrap() |= ((value >> bit & 1) as u8) << self.used;
            self.used = (self.used + 1) % 8;
        }
    }

    /// A code of `count` bits, which go the other way round.
    fn code(&mut self, code: u32, count: u32) {
        self.put(code.reverse_bits() >> (32 - count), count);
    }

    /// A block with a dynamic table and nothing in it: the sixteen literals 0 to 14 and the end have codes of 1 to
    /// 15 bits, so that the table has all levels.
    fn empty_block(&mut self) {
        self.put(0b100, 3);
        self.put(0, 5); // 257 literals and lengths
        self.put(0, 5); // one distance
        self.put(15, 4); // all 19 lengths of the code's code
        // The code's code: 18 and 1 to 15 with four bits each, as 0 to 15 in the order of the symbols.
        for symbol in [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15] {
            self.put(if symbol == 18 || (1..16).contains(&symbol) { 4 } else { 0 }, 3);
        }
        // Lengths 1 to 15 for the literals 0 to 14.
        (1..16).for_each(|length| self.code(length - 1, 4));
        // 241 zeros up to the end of the block, whose code has 15 bits too; a distance of one bit.
        for zeros in [138, 103] {
            self.code(15, 4);
            self.put(zeros - 11, 7);
        }
        self.code(14, 4);
        self.code(0, 4);
        self.code(0x7fff, 15);
    }

    fn align_with_empty_stored_block(&mut self) {
        self.put(0, 3);
        self.used = 0;
        self.bytes.extend([0, 0, 0xff, 0xff]);
    }
}
