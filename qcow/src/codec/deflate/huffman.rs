//! Deflate's symbols, and canonical codes of limited length for them.

use super::WINDOW;

/// Literal bytes, the end of the block, and lengths; the last two take part in the fixed code only.
pub(super) const LITERALS: usize = 288;
pub(super) const DISTANCES: usize = 30;
pub(super) const END: usize = 256;

/// Base value and extra bits of each length symbol, from 257 on.
pub(super) const LENGTH_BASE: [(u16, u8); 29] = {
    let mut table = series::<29>(3, 8, 4);
    table[28] = (258, 0);
    table
};

/// Base value and extra bits of each distance symbol.
pub(super) const DISTANCE_BASE: [(u16, u8); DISTANCES] = series::<DISTANCES>(1, 4, 2);

/// The first `plain` symbols stand for one value each; from then on each `group` of symbols has one
/// more extra bit.
const fn series<const N: usize>(first: u16, plain: usize, group: usize) -> [(u16, u8); N] {
    let mut table = [(0, 0); N];
    let (mut base, mut symbol) = (first, 0);
    while symbol < N {
        let extra = if symbol < plain { 0 } else { (symbol - plain) / group + 1 };
        table[symbol] = (base, extra as u8);
        base = base.wrapping_add(1 << extra);
        symbol += 1;
    }
    table
}

/// The symbol, less 257, of each length less 3.
const LENGTH_SYMBOL: [u8; 256] = {
    let mut table = [0; 256];
    let (mut symbol, mut length) = (0, 0);
    while length < 256 {
        while symbol < 28 && LENGTH_BASE[symbol + 1].0 as usize <= length + 3 {
            symbol += 1;
        }
        table[length] = symbol as u8;
        length += 1;
    }
    table
};

/// The symbol of a match's length, 3 to 258.
#[inline]
pub(super) fn length_symbol(length: usize) -> usize {
    257 + usize::from(LENGTH_SYMBOL[(length - 3) & 0xff])
}

/// Stands for the distance of a literal, which has none.
pub(super) const NO_DISTANCE: usize = 31;
/// Distance symbols, and what makes their number a power of two.
pub(super) const DISTANCE_SYMBOLS: usize = 32;

/// The symbol of each distance that the window allows; 0 has none.
static DISTANCE_SYMBOL: [u8; 2 * WINDOW] = {
    let mut table = [NO_DISTANCE as u8; 2 * WINDOW];
    let (mut symbol, mut distance) = (0, 1);
    while distance < table.len() {
        while symbol + 1 < DISTANCES && DISTANCE_BASE[symbol + 1].0 as usize <= distance {
            symbol += 1;
        }
        table[distance] = symbol as u8;
        distance += 1;
    }
    table
};

/// The symbol of a distance, up to [`WINDOW`]; [`NO_DISTANCE`] for 0.
#[inline]
pub(super) fn distance_symbol(distance: usize) -> usize {
    usize::from(DISTANCE_SYMBOL[distance % DISTANCE_SYMBOL.len()]) % DISTANCE_SYMBOLS
}

/// The lengths of an optimal code for symbols that occur this often, none longer than `longest`.
///
/// Decoders want at least two codes where there are any: a lone symbol gets company.
pub(super) fn lengths<const N: usize>(counts: &[u32; N], longest: u8) -> [u8; N] {
    let mut lengths = [0; N];
    let mut order = [(0u32, 0u16); N];
    let mut used = 0;
    for (symbol, &count) in counts.iter().enumerate() {
        if count > 0 {
            order[used] = (count, symbol as u16);
            used += 1;
        }
    }
    let order = &mut order[..used];
    match *order {
        [] => return lengths,
        [(_, only)] => {
            lengths[usize::from(only)] = 1;
            lengths[usize::from(only == 0)] = 1;
            return lengths;
        }
        _ => order.sort_unstable(),
    }
    let depths = limited(depth_counts::<N>(order), usize::from(longest));
    // The rarest get the longest codes.
    let mut symbols = order.iter();
    for length in (1..=usize::from(longest)).rev() {
        for (_, symbol) in symbols.by_ref().take(depths[length] as usize) {
            lengths[usize::from(*symbol)] = length as u8;
        }
    }
    lengths
}

/// How many leaves Huffman's tree for `order`, from rare to frequent, has at each depth; those
/// deeper than 31 count as 31.
fn depth_counts<const N: usize>(order: &[(u32, u16)]) -> [u32; 32] {
    // Leaves and inner nodes are both queues in ascending order; the two lightest become one.
    let mut weights = [0u32; N];
    let mut parents = [0u16; N];
    let mut leaf_parents = [0u16; N];
    let (mut leaf, mut inner) = (0, 0);
    let nodes = order.len() - 1;
    for node in 0..nodes {
        for _ in 0..2 {
            let lighter = order
                .get(leaf)
                .is_some_and(|(weight, _)| inner >= node || *weight <= weights[inner]);
            if lighter {
                weights[node] += order[leaf].0;
                leaf_parents[leaf] = node as u16;
                leaf += 1;
            } else {
                weights[node] += weights[inner];
                parents[inner] = node as u16;
                inner += 1;
            }
        }
    }
    // From the root, the last node, down.
    let mut depths = [0u8; N];
    for node in (0..nodes - 1).rev() {
        depths[node] = (depths[usize::from(parents[node])] + 1).min(30);
    }
    let mut counts = [0; 32];
    for &parent in &leaf_parents[..order.len()] {
        counts[usize::from(depths[usize::from(parent)]) + 1] += 1;
    }
    counts
}

/// Moves leaves up until none is deeper than `longest`.
fn limited(mut counts: [u32; 32], longest: usize) -> [u32; 32] {
    for depth in (longest + 1..32).rev() {
        counts[longest] += std::mem::take(&mut counts[depth]);
    }
    // What the codes take of the code space, in units of the longest code.
    let space = 1u32 << longest;
    let mut taken: u32 = (1..=longest).map(|depth| counts[depth] << (longest - depth)).sum();
    while taken > space {
        // A leaf above the deepest goes one down and takes one of the deepest beside it.
        let depth = (1..longest).rev().find(|&depth| counts[depth] > 0).unwrap_or(1);
        counts[depth] -= 1;
        counts[depth + 1] += 2;
        counts[longest] -= 1;
        taken -= 1;
    }
    counts
}

/// The codes of these lengths, bits in the order in which they are written.
pub(super) fn codes<const N: usize>(lengths: &[u8; N]) -> [u16; N] {
    let mut next = [0u16; 17];
    for &length in lengths {
        next[usize::from(length & 15) + 1] += u16::from(length > 0);
    }
    for length in 1..16 {
        // `next[length]` counts the codes one shorter.
        next[length] = (next[length] + next[length - 1]) << 1;
    }
    let mut codes = [0; N];
    for (code, &length) in codes.iter_mut().zip(lengths) {
        if length > 0 {
            let place = &mut next[usize::from(length & 15)];
            *code = place.reverse_bits() >> (16 - length);
            *place += 1;
        }
    }
    codes
}
