//! A deflate encoder (RFC 1951) for clusters, with the 4 KiB window that QEMU's decoder asks for.
//!
//! Libraries either cannot limit their window (libdeflate) or, where they can, take about 1.4 times as
//! long for a larger result (zlib-rs at level 6), because they were made for streams. This one has the
//! whole cluster before it. It finds matches with chains that fit the first-level cache, cuts what it
//! found into blocks where the statistics change, and gives each block the cheapest of deflate's three
//! forms.
//!
//! The output depends on the input and the level alone: not on what was encoded before.

// The encoder's own numbers (indices, lengths, codes, sums of counts) are bounded by the size of
// its fixed tables and of the input, and no byte of the input is ever used as an offset. Checked
// arithmetic at each step of the inner loops would double their cost; what a release still checks took
// a tenth of it there, so they say `wrapping`.
#![expect(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::little_endian_bytes,
    reason = "bounded by construction, and deflate's bits are in little-endian order"
)]

mod bits;
mod block;
mod huffman;
mod matches;
mod token;

use bits::Bits;
use matches::{Finder, Search};
use token::Tokens;

/// How far back matches reach: what a decoder with 12 window bits remembers.
const WINDOW: usize = 1 << 12;

/// Input is looked at in sections of this many bytes, which bounds memory.
const SECTION: usize = 64 << 10;

/// Encodes clusters, one after the other.
pub(super) struct Deflate {
    search: Search,
    finder: Finder,
    tokens: Tokens,
}

impl Deflate {
    /// An encoder; `level` is 1, the fastest, to 9, the smallest output.
    pub(super) fn new(level: u32) -> Self {
        let search = Search::of_level(level);
        Self { search, finder: Finder::new(), tokens: Tokens::new() }
    }

    /// Writes `input` as one deflate stream to `output`, whose old contents are dropped.
    ///
    /// Gives up, and returns false, as soon as the stream gets as long as the input.
    pub(super) fn run(&mut self, input: &[u8], output: &mut Vec<u8>) -> bool {
        let mut bits = Bits::new(output);
        self.finder.begin();
        let mut sections = input.chunks(SECTION).peekable();
        while let Some(section) = sections.next() {
            self.tokens.clear();
            self.finder.parse(section, &self.search, &mut self.tokens);
            block::write(section, &self.tokens, sections.peek().is_none(), &mut bits);
            if bits.bytes() >= input.len() {
                return false;
            }
        }
        bits.finish() < input.len()
    }
}

impl std::fmt::Debug for Deflate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Deflate")
    }
}
