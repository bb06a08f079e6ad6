//! Cuts tokens into blocks and writes each in the form that takes the fewest bits.

use super::bits::Bits;
use super::huffman::{
    DISTANCE_BASE, DISTANCE_SYMBOLS, DISTANCES, END, LENGTH_BASE, LITERALS, codes, distance_symbol,
    length_symbol, lengths,
};
use super::token::{Counts, FIRSTS, Token, Tokens};

/// The longest code of a symbol, and of a length in a block's header.
const LONGEST: u8 = 15;
const LONGEST_META: u8 = 7;
/// A stored block has at most this many bytes.
const MOST_STORED: usize = 0xffff;
/// The order in which a header gives the lengths of the codes for lengths.
const META_ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// Writes the tokens that stand for `input`; `last` ends the stream.
pub(super) fn write(input: &[u8], tokens: &Tokens, last: bool, bits: &mut Bits<'_>) {
    let (mut rest, mut bytes) = (tokens.all(), input);
    let mut chunks = tokens.chunks().iter().peekable();
    while let Some(first) = chunks.next() {
        let (mut counts, mut count, mut len) = (first.counts.clone(), first.tokens, first.bytes);
        // A chunk joins the block before it unless two blocks are estimated to be shorter.
        let mut cost = estimate(&counts);
        while let Some(next) = chunks.peek() {
            let mut both = counts.clone();
            both.add(&next.counts);
            let joined = estimate(&both);
            if joined > cost + estimate(&next.counts) {
                break;
            }
            (counts, cost) = (both, joined);
            count += next.tokens;
            len += next.bytes;
            chunks.next();
        }
        let (block, after) = rest.split_at(count);
        let (raw, bytes_after) = bytes.split_at(len);
        write_block(raw, block, counts, last && chunks.peek().is_none(), bits);
        (rest, bytes) = (after, bytes_after);
    }
}

fn write_block(raw: &[u8], tokens: &[Token], mut counts: Counts, last: bool, bits: &mut Bits<'_>) {
    counts.literals[END] = 1;
    let own = Lengths {
        literals: lengths(&counts.literals, LONGEST),
        distances: lengths(&counts.distances, LONGEST),
    };
    let header = Header::new(&own);
    let own_cost = header.cost + own.cost(&counts);
    let fixed_cost = FIXED.cost(&counts);
    let stored_cost = stored_cost(raw.len(), bits);
    let last = u64::from(last);
    if stored_cost <= own_cost.min(fixed_cost) {
        bits.reserve(stored_cost + 3);
        return write_stored(raw, last, bits);
    }
    bits.reserve(own_cost.min(fixed_cost) + 3);
    if fixed_cost <= own_cost {
        bits.put(last | 1 << 1, 3);
        FIXED.write(tokens, bits);
    } else {
        bits.put(last | 2 << 1, 3);
        header.write(bits);
        own.write(tokens, bits);
    }
}

/// The bits of `len` stored bytes, without the three that every block starts with.
fn stored_cost(len: usize, bits: &Bits<'_>) -> u64 {
    let pieces = len.div_ceil(MOST_STORED).max(1) as u64;
    len as u64 * 8 + u64::from(bits.to_align(3)) + 32 + (pieces - 1) * 40
}

fn write_stored(raw: &[u8], last: u64, bits: &mut Bits<'_>) {
    let mut pieces = raw.chunks(MOST_STORED).peekable();
    while let Some(piece) = pieces.next() {
        bits.put(if pieces.peek().is_none() { last } else { 0 }, 3);
        bits.align();
        let len = piece.len() as u64;
        bits.put(len | (len ^ 0xffff) << 16, 32);
        bits.append(piece);
    }
}

/// The lengths of a block's two codes.
struct Lengths {
    literals: [u8; LITERALS],
    distances: [u8; DISTANCES],
}

/// The codes that need no header.
const FIXED: Lengths = {
    let mut literals = [8; LITERALS];
    let mut symbol = 144;
    while symbol < 280 {
        literals[symbol] = if symbol < 256 { 9 } else { 7 };
        symbol += 1;
    }
    Lengths { literals, distances: [5; DISTANCES] }
};

impl Lengths {
    /// The bits of all that is counted, the bits that follow a symbol included.
    fn cost(&self, counts: &Counts) -> u64 {
        let literals = self.literals.iter().zip(&counts.literals);
        let distances = self.distances.iter().zip(&counts.distances);
        let codes: u64 =
            literals.chain(distances).map(|(&length, &n)| u64::from(length) * u64::from(n)).sum();
        let lengths = LENGTH_BASE.iter().zip(&counts.literals[END + 1..]);
        let distances = DISTANCE_BASE.iter().zip(&counts.distances);
        let extra: u64 =
            lengths.chain(distances).map(|(base, &n)| u64::from(base.1) * u64::from(n)).sum();
        codes + extra
    }

    fn write(&self, tokens: &[Token], bits: &mut Bits<'_>) {
        let firsts = self.firsts();
        let distances = self.distances();
        bits.put_all(tokens.iter().map(|token| {
            let first = firsts[token.first()];
            let count = first >> 24;
            let second = &distances[distance_symbol(token.distance())];
            let rest = (token.distance() as u64 - u64::from(second.base)) << second.length;
            let value = u64::from(first & 0xff_ffff) | (u64::from(second.code) | rest) << count;
            (value, count + u32::from(second.bits))
        }));
        bits.put(u64::from(codes(&self.literals)[END]), u32::from(self.literals[END]));
    }

    /// Code and extra bits of the first part of each token, and from bit 24 on how many they are.
    fn firsts(&self) -> [u32; FIRSTS] {
        let codes = codes(&self.literals);
        std::array::from_fn(|first| {
            let Some(length) = first.checked_sub(256) else {
                return u32::from(codes[first]) | u32::from(self.literals[first]) << 24;
            };
            let symbol = length_symbol(length + 3);
            let (base, extra) = LENGTH_BASE[symbol - END - 1];
            let own = self.literals[symbol];
            let rest = (length + 3) as u32 - u32::from(base);
            (u32::from(codes[symbol]) | rest << own) | u32::from(own + extra) << 24
        })
    }

    fn distances(&self) -> [Distance; DISTANCE_SYMBOLS] {
        let codes = codes(&self.distances);
        std::array::from_fn(|symbol| {
            let Some(&(base, extra)) = DISTANCE_BASE.get(symbol) else {
                return Distance::default();
            };
            let length = self.distances[symbol];
            Distance { code: codes[symbol], length, base, bits: length + extra }
        })
    }
}

/// How a symbol of distances is written; that of literals, with no bits at all.
#[derive(Clone, Copy, Default)]
struct Distance {
    code: u16,
    length: u8,
    base: u16,
    /// Code and extra bits.
    bits: u8,
}

/// How a block describes its codes.
struct Header {
    literals: usize,
    distances: usize,
    /// Symbols of the code for lengths, each with the value of its extra bits.
    symbols: Vec<(u8, u8)>,
    meta: [u8; 19],
    /// How many lengths of that code are given.
    given: usize,
    /// Bits that all this takes.
    cost: u64,
}

impl Header {
    fn new(own: &Lengths) -> Self {
        let used = |lengths: &[u8]| lengths.iter().rposition(|&length| length > 0);
        let literals = used(&own.literals).map_or(0, |last| last + 1).max(257);
        let distances = used(&own.distances).map_or(0, |last| last + 1).max(1);
        let mut all = [0; LITERALS + DISTANCES];
        all[..literals].copy_from_slice(&own.literals[..literals]);
        all[literals..literals + distances].copy_from_slice(&own.distances[..distances]);
        let symbols = run_lengths(&all[..literals + distances]);
        let mut counts = [0; 19];
        symbols.iter().for_each(|&(symbol, _)| counts[usize::from(symbol)] += 1);
        let meta = lengths(&counts, LONGEST_META);
        let given =
            META_ORDER.iter().rposition(|&symbol| meta[symbol] > 0).map_or(0, |n| n + 1).max(4);
        let codes: u64 =
            counts.iter().zip(&meta).map(|(&n, &len)| u64::from(n) * u64::from(len)).sum();
        let extra: u64 = symbols.iter().map(|&(symbol, _)| u64::from(extra_bits(symbol))).sum();
        let cost = 14 + given as u64 * 3 + codes + extra;
        Self { literals, distances, symbols, meta, given, cost }
    }

    fn write(&self, bits: &mut Bits<'_>) {
        bits.put(self.literals as u64 - 257, 5);
        bits.put(self.distances as u64 - 1, 5);
        bits.put(self.given as u64 - 4, 4);
        for &symbol in &META_ORDER[..self.given] {
            bits.put(u64::from(self.meta[symbol]), 3);
        }
        let codes = codes(&self.meta);
        for &(symbol, extra) in &self.symbols {
            let length = u32::from(self.meta[usize::from(symbol)]);
            let value = u64::from(codes[usize::from(symbol)]) | u64::from(extra) << length;
            bits.put(value, length + extra_bits(symbol));
        }
    }
}

fn extra_bits(symbol: u8) -> u32 {
    match symbol {
        16 => 2,
        17 => 3,
        18 => 7,
        _ => 0,
    }
}

/// Lengths as symbols 0 to 15, and runs: 16 repeats the one before 3 to 6 times, 17 stands for 3 to
/// 10 zeros, 18 for 11 to 138.
fn run_lengths(all: &[u8]) -> Vec<(u8, u8)> {
    let mut symbols = Vec::with_capacity(all.len());
    for run in all.chunk_by(|one, next| one == next) {
        let (value, mut left) = (run[0], run.len());
        if value == 0 {
            while left >= 3 {
                let count = left.min(138);
                symbols.push(if count > 10 {
                    (18, (count - 11) as u8)
                } else {
                    (17, (count - 3) as u8)
                });
                left -= count;
            }
        } else if left >= 4 {
            symbols.push((value, 0));
            left -= 1;
            while left >= 3 {
                let count = left.min(6);
                symbols.push((16, (count - 3) as u8));
                left -= count;
            }
        }
        symbols.extend(std::iter::repeat_n((value, 0), left));
    }
    symbols
}

/// About how many bits a block of these tokens takes, in units of 2^-[`FRACTION`] bits. Extra bits are
/// left out: they are the same however blocks are cut.
fn estimate(counts: &Counts) -> u64 {
    const BLOCK: u64 = 60;
    const SYMBOL: u64 = 3;
    let entropy = |counts: &[u32]| {
        let (mut total, mut used, mut sum) = (0u32, 0, 0);
        for &count in counts.iter().filter(|&&count| count > 0) {
            total += count;
            used += 1;
            sum += u64::from(count) * log2(count);
        }
        (u64::from(total) * log2(total)).saturating_sub(sum) + ((used * SYMBOL) << FRACTION)
    };
    (BLOCK << FRACTION) + entropy(&counts.literals) + entropy(&counts.distances)
}

const FRACTION: u32 = 8;
const LOG_BITS: u32 = 9;

/// The binary logarithm of `value`, in units of 2^-[`FRACTION`]; 0 for 0.
fn log2(value: u32) -> u64 {
    let Some(whole) = value.checked_ilog2() else { return 0 };
    let mantissa = (value << (31 - whole) << 1) >> (32 - LOG_BITS);
    u64::from(whole << FRACTION) + u64::from(LOG_FRACTION[mantissa as usize])
}

/// The logarithms of 1 to 2, by repeated squaring.
const LOG_FRACTION: [u16; 1 << LOG_BITS] = {
    let mut table = [0; 1 << LOG_BITS];
    let mut index = 0;
    while index < table.len() {
        // 1.x with 30 bits after the point.
        let mut x = (1u64 << 30) + ((index as u64) << (30 - LOG_BITS));
        let (mut log, mut bit) = (0, 0);
        while bit < FRACTION {
            x = (x * x) >> 30;
            log <<= 1;
            if x >= 2 << 30 {
                x >>= 1;
                log |= 1;
            }
            bit += 1;
        }
        table[index] = log;
        index += 1;
    }
    table
};
