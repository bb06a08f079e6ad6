//! Finds what occurred before, within the window.

use super::token::Tokens;
use super::{SECTION, WINDOW};

/// Statistics are kept for chunks of about this many bytes.
const CHUNK: usize = 8 << 10;

const LONGEST: usize = 258;
/// Matches of three bytes cost more than three literals if they are farther away than this.
const FAR_FOR_THREE: usize = 1 << 10;

/// After so many bytes of which none began a match, as in what is compressed already, a byte is passed over between two
/// that are looked for; after twice as many, two, and so on to [`MOST_PASSED`].
const PATIENCE: usize = 64;
const MOST_PASSED: usize = 16;

/// A section, the window before it, and what a look past the end may touch. Places are taken modulo
/// a power of two, so that the compiler knows that they are inside.
const PLACES: usize = 1 << 17;
const _: () = assert!(WINDOW + SECTION + 2 * LONGEST < PLACES);
type Text = [u8; PLACES + 8];

const HASH_BITS: u32 = 13;
const SHORT_HASH_BITS: u32 = 11;

/// How hard to search.
pub(super) struct Search {
    /// Candidates that are looked at for each match.
    depth: u32,
    /// A match of this length is good enough.
    nice: usize,
    /// Whether to look for a longer match one byte later before taking one.
    lazy: bool,
}

impl Search {
    pub(super) fn of_level(level: u32) -> Self {
        let (depth, nice, lazy) = match level {
            0..=1 => (1, 16, false),
            2 => (2, 16, false),
            3 => (2, 32, false),
            4 => (3, 24, false),
            5 => (3, 32, false),
            6 => (4, 32, false),
            7 => (16, 64, true),
            8 => (64, 128, true),
            _ => (1024, LONGEST, true),
        };
        Self { depth, nice, lazy }
    }
}

/// Where byte sequences were last seen.
///
/// Positions are kept modulo 2^16. That an old one looks like a near one does no harm: what counts
/// is that the bytes there are the same.
pub(super) struct Finder {
    /// The section, from [`WINDOW`] on, and before it the end of the last one.
    text: Box<Text>,
    /// How many bytes before the section are of the same input.
    history: usize,
    /// The last position of each hash of four bytes,
    heads: Box<[u16; 1 << HASH_BITS]>,
    /// and for each position the one before it with the same hash.
    previous: Box<[u16; WINDOW]>,
    /// The last position of each hash of three bytes.
    short_heads: Box<[u16; 1 << SHORT_HASH_BITS]>,
}

/// Earlier positions with the same hashes.
#[derive(Clone, Copy)]
struct Candidates {
    four: u16,
    three: u16,
}

impl Finder {
    pub(super) fn new() -> Self {
        Self {
            text: Box::new([0; PLACES + 8]),
            history: 0,
            heads: Box::new([0; 1 << HASH_BITS]),
            previous: Box::new([0; WINDOW]),
            short_heads: Box::new([0; 1 << SHORT_HASH_BITS]),
        }
    }

    /// Forgets the last input.
    pub(super) fn begin(&mut self) {
        self.history = 0;
        self.heads.fill(0);
        self.previous.fill(0);
        self.short_heads.fill(0);
    }

    /// Turns the next section of the input, at most [`SECTION`] bytes, into tokens. All sections but
    /// the last must be whole.
    pub(super) fn parse(&mut self, section: &[u8], search: &Search, tokens: &mut Tokens) {
        let end = WINDOW + section.len();
        self.text[WINDOW..end].copy_from_slice(section);
        // Looks past the end must not find what an earlier input left there.
        self.text[end..end + 8].fill(0);
        let mut at = WINDOW;
        while at < end {
            // A match may reach out of its chunk, but not past the end.
            let chunk = end.min(at + CHUNK);
            let start = at;
            at = if search.lazy {
                self.parse_lazily(at, chunk, end, search, tokens)
            } else {
                self.parse_greedily(at, chunk, end, search, tokens)
            };
            tokens.end_chunk(at - start);
        }
        self.text.copy_within(SECTION..WINDOW + SECTION, 0);
        self.history = WINDOW;
    }

    fn parse_greedily(
        &mut self,
        mut at: usize,
        chunk: usize,
        end: usize,
        search: &Search,
        tokens: &mut Tokens,
    ) -> usize {
        let mut found_nothing = 0;
        while at < chunk {
            let here = word(&self.text, at);
            let candidates = self.insert(here, at);
            let most = (end - at).min(LONGEST);
            let (length, distance) = self.longest(at, here, most, 3, candidates, search);
            if distance == 0 {
                tokens.literal(here as u8);
                at += 1;
                found_nothing += 1;
                let passed = (found_nothing / PATIENCE).min(MOST_PASSED).min(chunk - at);
                for byte in &self.text[at..at + passed] {
                    tokens.literal(*byte);
                }
                at += passed;
            } else {
                found_nothing = 0;
                tokens.matching(length, distance);
                self.pass(at + 1, at + length);
                at += length;
            }
        }
        at
    }

    fn parse_lazily(
        &mut self,
        mut at: usize,
        chunk: usize,
        end: usize,
        search: &Search,
        tokens: &mut Tokens,
    ) -> usize {
        // The match found at the byte before `at`, with its length.
        let mut waiting: Option<(usize, usize)> = None;
        while at < chunk {
            let here = word(&self.text, at);
            let candidates = self.insert(here, at);
            let most = (end - at).min(LONGEST);
            let known = waiting.map_or(2, |(length, _)| length);
            let (length, distance) = if known >= search.nice {
                (0, 0)
            } else {
                self.longest(at, here, most, known + 1, candidates, search)
            };
            match waiting.take() {
                Some((length, earlier)) if distance == 0 => {
                    tokens.matching(length, earlier);
                    self.pass(at + 1, at + length - 1);
                    at += length - 1;
                    continue;
                }
                Some(_) => tokens.literal(self.text[at - 1]),
                None if distance == 0 => tokens.literal(here as u8),
                None => {}
            }
            if distance > 0 {
                waiting = Some((length, distance));
            }
            at += 1;
        }
        if let Some((length, distance)) = waiting {
            tokens.matching(length, distance);
            self.pass(at, at + length - 1);
            at += length - 1;
        }
        at
    }

    /// Remembers that `word` is at `at`, and returns where its like was before.
    #[inline]
    fn insert(&mut self, word: u32, at: usize) -> Candidates {
        let hash = word.wrapping_mul(0x9e37_79b1) >> (32 - HASH_BITS);
        let short = (word << 8).wrapping_mul(0x9e37_79b1) >> (32 - SHORT_HASH_BITS);
        let four = std::mem::replace(&mut self.heads[hash as usize], at as u16);
        let three = std::mem::replace(&mut self.short_heads[short as usize], at as u16);
        self.previous[at % WINDOW] = four;
        Candidates { four, three }
    }

    /// Remembers the positions within a match.
    #[inline]
    fn pass(&mut self, from: usize, to: usize) {
        for at in from..to {
            self.insert(word(&self.text, at), at);
        }
    }

    /// The longest match at `at`, between `least` and `most` bytes, and its distance; the distance
    /// is 0 if there is none.
    #[inline]
    fn longest(
        &self,
        at: usize,
        here: u32,
        most: usize,
        least: usize,
        candidates: Candidates,
        search: &Search,
    ) -> (usize, usize) {
        let text = &*self.text;
        let reach = (at - WINDOW + self.history).min(WINDOW);
        let (mut best, mut best_distance) = (least - 1, 0);
        if most < least {
            return (0, 0);
        }
        let mut last = 0;
        let mut distance = back(at, candidates.four);
        let mut depth = search.depth;
        while distance > last && distance <= reach {
            let candidate = at.wrapping_sub(distance);
            if word(text, candidate) == here
                && text[candidate.wrapping_add(best) % PLACES]
                    == text[at.wrapping_add(best) % PLACES]
            {
                let (after, before) = (at.wrapping_add(4), candidate.wrapping_add(4));
                let length = common(text, after, before, most).wrapping_add(4).min(most);
                if length > best {
                    (best, best_distance) = (length, distance);
                    if length >= search.nice || length >= most {
                        break;
                    }
                }
            }
            depth = depth.wrapping_sub(1);
            if depth == 0 {
                break;
            }
            last = distance;
            distance = back(at, self.previous[candidate % WINDOW]);
        }
        if best == 2 {
            let distance = back(at, candidates.three);
            if distance > 0
                && distance <= reach.min(FAR_FOR_THREE)
                && (word(text, at.wrapping_sub(distance)) ^ here) << 8 == 0
            {
                return (3, distance);
            }
        }
        (best, best_distance)
    }
}

/// How far `position`, of which the lower bits are known, is behind `at`.
#[inline]
fn back(at: usize, position: u16) -> usize {
    usize::from((at as u16).wrapping_sub(position))
}

#[inline]
fn word(text: &Text, at: usize) -> u32 {
    let at = at % PLACES;
    text[at..at + 4].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

#[inline]
fn long_word(text: &Text, at: usize) -> u64 {
    let at = at % PLACES;
    text[at..at + 8].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// How many bytes at `one` are those at `other`; counts on a little after `most`.
#[inline]
fn common(text: &Text, one: usize, other: usize, most: usize) -> usize {
    let mut length = 0;
    while length < most {
        let (here, there) = (one.wrapping_add(length), other.wrapping_add(length));
        let different = long_word(text, here) ^ long_word(text, there);
        if different != 0 {
            return length.wrapping_add((different.trailing_zeros() / 8) as usize);
        }
        length = length.wrapping_add(8);
    }
    length
}
