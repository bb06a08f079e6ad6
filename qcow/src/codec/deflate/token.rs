//! What the search found: literals and matches, with their statistics.

use super::SECTION;
use super::huffman::{DISTANCE_SYMBOLS, DISTANCES, LITERALS, distance_symbol, length_symbol};

/// A literal byte, or a match of `length` bytes at `distance`. Both have the same two parts, so that who counts
/// or writes them need not ask which it is: that cannot be foreseen, and costs more than all the rest.
#[derive(Clone, Copy)]
pub(super) struct Token(u32);

/// How many values the first part has: 256 literals and as many lengths.
pub(super) const FIRSTS: usize = 512;

impl Token {
    /// A literal byte, or 256 and above it the length less 3.
    #[inline]
    pub(super) fn first(self) -> usize {
        self.0 as usize % FIRSTS
    }

    /// The distance; 0 for a literal.
    #[inline]
    pub(super) fn distance(self) -> usize {
        (self.0 >> 16) as usize
    }
}

/// How often each symbol occurs.
#[derive(Clone)]
pub(super) struct Counts {
    pub(super) literals: [u32; LITERALS],
    pub(super) distances: [u32; DISTANCES],
}

impl Counts {
    pub(super) const NONE: Self = Self { literals: [0; LITERALS], distances: [0; DISTANCES] };

    pub(super) fn add(&mut self, other: &Self) {
        for (sum, count) in self.literals.iter_mut().zip(&other.literals) {
            *sum += count;
        }
        for (sum, count) in self.distances.iter_mut().zip(&other.distances) {
            *sum += count;
        }
    }
}

/// A stretch of tokens whose statistics are kept together.
pub(super) struct Chunk {
    pub(super) counts: Counts,
    pub(super) tokens: usize,
    /// Bytes of input that they stand for.
    pub(super) bytes: usize,
}

/// The tokens of a section, in chunks.
pub(super) struct Tokens {
    /// As many as a section can have; the first `count` are tokens.
    all: Box<[Token; SECTION]>,
    count: usize,
    chunks: Vec<Chunk>,
    /// Tokens in chunks.
    ended: usize,
    /// How often each first part, and each symbol of a distance, came since the last chunk.
    firsts: [u32; FIRSTS],
    distances: [u32; DISTANCE_SYMBOLS],
}

impl Tokens {
    pub(super) fn new() -> Self {
        let all = Box::new([Token(0); SECTION]);
        let (firsts, distances) = ([0; FIRSTS], [0; DISTANCE_SYMBOLS]);
        Self { all, count: 0, chunks: Vec::new(), ended: 0, firsts, distances }
    }

    pub(super) fn clear(&mut self) {
        self.chunks.clear();
        (self.count, self.ended) = (0, 0);
    }

    #[inline]
    pub(super) fn literal(&mut self, byte: u8) {
        self.push(Token(u32::from(byte)));
    }

    #[inline]
    pub(super) fn matching(&mut self, length: usize, distance: usize) {
        self.distances[distance_symbol(distance)] += 1;
        self.push(Token((length - 3 + 256) as u32 | (distance as u32) << 16));
    }

    #[inline]
    fn push(&mut self, token: Token) {
        let first = &mut self.firsts[token.first()];
        *first = first.wrapping_add(1);
        // No section has more tokens than bytes.
        self.all[self.count % SECTION] = token;
        self.count = self.count.wrapping_add(1);
    }

    /// What came since the last chunk stands for `bytes` of input and becomes a chunk.
    pub(super) fn end_chunk(&mut self, bytes: usize) {
        let mut counts = Counts::NONE;
        let (literals, lengths) = self.firsts.split_at(256);
        counts.literals[..256].copy_from_slice(literals);
        for (length, count) in (3..).zip(lengths) {
            counts.literals[length_symbol(length)] += count;
        }
        counts.distances.copy_from_slice(&self.distances[..DISTANCES]);
        self.firsts.fill(0);
        self.distances.fill(0);
        self.chunks.push(Chunk { counts, tokens: self.count - self.ended, bytes });
        self.ended = self.count;
    }

    pub(super) fn all(&self) -> &[Token] {
        &self.all[..self.count]
    }

    pub(super) fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }
}
