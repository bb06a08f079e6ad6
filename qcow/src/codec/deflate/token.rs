//! What the search found: literals and matches, with their statistics.

use super::SECTION;
use super::huffman::{DISTANCES, LITERALS, distance_symbol, length_symbol};

/// A literal byte, or a match of `length` bytes at `distance`.
#[derive(Clone, Copy)]
pub(super) struct Token(u32);

const MATCH: u32 = 1 << 31;

impl Token {
    pub(super) fn literal(byte: u8) -> Self {
        Self(u32::from(byte))
    }

    pub(super) fn matching(length: usize, distance: usize) -> Self {
        Self(MATCH | (length as u32) << 16 | distance as u32)
    }

    #[inline]
    pub(super) fn as_match(self) -> Option<(usize, usize)> {
        let Self(token) = self;
        (token & MATCH != 0).then_some(((token >> 16 & 0x1ff) as usize, (token & 0xffff) as usize))
    }

    #[inline]
    pub(super) fn as_literal(self) -> u8 {
        self.0 as u8
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
}

impl Tokens {
    pub(super) fn new() -> Self {
        let all = Box::new([Token(0); SECTION]);
        Self { all, count: 0, chunks: Vec::new(), ended: 0 }
    }

    pub(super) fn clear(&mut self) {
        self.chunks.clear();
        (self.count, self.ended) = (0, 0);
    }

    #[inline]
    pub(super) fn literal(&mut self, byte: u8) {
        self.push(Token::literal(byte));
    }

    #[inline]
    pub(super) fn matching(&mut self, length: usize, distance: usize) {
        self.push(Token::matching(length, distance));
    }

    #[inline]
    fn push(&mut self, token: Token) {
        // No section has more tokens than bytes.
        self.all[self.count % SECTION] = token;
        self.count += 1;
    }

    /// What came since the last chunk stands for `bytes` of input and becomes a chunk.
    pub(super) fn end_chunk(&mut self, bytes: usize) {
        let tokens = &self.all[self.ended..self.count];
        let mut counts = Counts::NONE;
        for token in tokens {
            match token.as_match() {
                None => counts.literals[usize::from(token.as_literal())] += 1,
                Some((length, distance)) => {
                    counts.literals[length_symbol(length)] += 1;
                    counts.distances[distance_symbol(distance)] += 1;
                }
            }
        }
        self.chunks.push(Chunk { counts, tokens: tokens.len(), bytes });
        self.ended = self.count;
    }

    pub(super) fn all(&self) -> &[Token] {
        &self.all[..self.count]
    }

    pub(super) fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }
}
