//! The tree against a plain recursive one made with nothing but BLAKE3's `derive_key`, and against
//! the vectors of `docs/tree-hash.md`.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "small numbers that the tests choose"
)]

use super::*;

fn top(leaves: &[[u8; 32]]) -> [u8; 32] {
    match leaves {
        [only] => *only,
        _ => {
            let left = leaves.len().next_power_of_two() / 2;
            let (left, right) = leaves.split_at(left);
            blake3::derive_key(NODE_CONTEXT, &[top(left), top(right)].concat())
        }
    }
}

/// The root as the document defines it.
fn plain(content: &[u8]) -> Hash {
    let mut input = [&1u32.to_be_bytes()[..], &(content.len() as u64).to_be_bytes()].concat();
    let leaves: Vec<_> = content
        .chunks(LEAF as usize)
        .map(|leaf| {
            let mut leaf = leaf.to_vec();
            leaf.resize(LEAF as usize, 0);
            blake3::derive_key(LEAF_CONTEXT, &leaf)
        })
        .collect();
    if !leaves.is_empty() {
        input.extend(top(&leaves));
    }
    Hash(blake3::derive_key(ROOT_CONTEXT, &input))
}

/// The root by halves, as the pipeline delivers them; zeros in one go where `fold` says so.
fn by_halves(content: &[u8], fold: bool) -> TreeHash {
    let mut builder = Builder::new();
    let mut zeros = 0;
    for (index, half) in content.chunks(HALF as usize).enumerate() {
        match hash_half(index as u64 * HALF, half) {
            None if fold => zeros += half.len() as u64,
            None => builder.add_zeros(half.len() as u64),
            Some(value) => {
                builder.add_zeros(std::mem::take(&mut zeros));
                builder.add_half(value);
            }
        }
    }
    builder.add_zeros(zeros);
    builder.finish(content.len() as u64)
}

/// Content of this many halves, of which those with a bit in `data` are not zero.
fn content(halves: usize, data: u32, cut: usize) -> Vec<u8> {
    let mut bytes = vec![0; halves * HALF as usize];
    for half in (0..halves).filter(|half| data >> half & 1 == 1) {
        let at = half * HALF as usize;
        bytes[at..at + 100].fill(half as u8 + 1);
    }
    bytes.truncate(bytes.len() - cut);
    bytes
}

#[test]
fn the_tree_is_the_documented_one_for_every_count_of_leaves() {
    let shapes = [(1, 1, 512), (1, 0, 1024), (2, 2, 0), (3, 0b101, 0), (4, 0b1000, 0)];
    let more = [(6, 0b10_0100, 512), (7, 0, 0), (9, 0b1_0000_0000, 0), (14, 0b11, 1 << 20)];
    for (halves, data, cut) in shapes.into_iter().chain(more) {
        let content = content(halves, data, cut);
        let expected = plain(&content);
        for fold in [false, true] {
            let tree = by_halves(&content, fold);
            assert_eq!(tree.root, expected, "{halves} halves, data {data:b}, less {cut}");
            assert_eq!(TreeHash::from_leaves(tree.virtual_size, &tree.leaves).unwrap(), tree);
        }
    }
    assert_eq!(by_halves(&[], true).root, plain(&[]));
}

#[test]
fn long_runs_of_zeros_fold_to_the_same_tree_wherever_they_start() {
    let marked = |index: u64| Leaf { index, hash: Hash([7; 32]) };
    for (count, at) in [(1000u64, 0), (1000, 1), (1000, 511), (1000, 999), (37, 20)] {
        let mut leaves = vec![ZERO_LEAF.0; count as usize];
        leaves[at as usize] = [7; 32];
        let size = count * LEAF;
        let input = [&1u32.to_be_bytes()[..], &size.to_be_bytes(), &top(&leaves)].concat();
        let expected = Hash(blake3::derive_key(ROOT_CONTEXT, &input));
        assert_eq!(TreeHash::from_leaves(size, &[marked(at)]).unwrap().root, expected);
    }
    let largest = TreeHash::from_leaves(u64::MAX, &[]).unwrap();
    assert!(largest.leaves.is_empty());
}

#[test]
fn leaves_out_of_order_or_past_the_end_are_refused() {
    let leaf = |index| Leaf { index, hash: Hash([1; 32]) };
    for leaves in [vec![leaf(1), leaf(1)], vec![leaf(2), leaf(1)], vec![leaf(3)]] {
        assert!(TreeHash::from_leaves(3 * LEAF, &leaves).is_err());
    }
}

#[test]
fn differences_are_ranges_of_leaves_cut_at_the_end_of_the_longer_disk() {
    let leaf = |index, fill| Leaf { index, hash: Hash([fill; 32]) };
    let tree = |size, leaves: &[Leaf]| TreeHash::from_leaves(size, leaves).unwrap();
    let size = 5 * LEAF + 512;
    let one = tree(size, &[leaf(0, 1), leaf(1, 1), leaf(3, 1), leaf(5, 1)]);
    assert_eq!(one.differences(&one), []);
    let other = tree(size, &[leaf(0, 1), leaf(2, 1), leaf(3, 1), leaf(5, 2)]);
    assert_eq!(one.differences(&other), [(LEAF, 2 * LEAF), (5 * LEAF, 512)]);
    let shorter = tree(3 * LEAF - 512, &[leaf(0, 1), leaf(1, 1)]);
    assert_eq!(one.differences(&shorter), [(3 * LEAF - 512, 2 * LEAF + 1024)]);
    let other = tree(3 * LEAF - 512, &[leaf(0, 1), leaf(1, 1), leaf(2, 1)]);
    assert_eq!(one.differences(&other), [(2 * LEAF, 3 * LEAF + 512)]);
    assert_eq!(other.differences(&one), one.differences(&other));
}

#[test]
fn the_vectors_of_the_document() {
    let document = include_str!("../../../../../docs/tree-hash.md");
    let pattern = |len: usize| (0..len).map(|i| (i % 251) as u8).collect::<Vec<_>>();
    for (name, content) in [
        ("no bytes", vec![]),
        ("512 zeros", vec![0; 512]),
        ("4194304 zeros", vec![0; 4 << 20]),
        ("512 bytes of the pattern", pattern(512)),
        ("4194304 bytes of the pattern", pattern(4 << 20)),
        ("5000000 bytes of the pattern", pattern(5_000_000)),
        ("14680064 bytes of the pattern", pattern(14 << 20)),
    ] {
        let root = by_halves(&content, true).root;
        assert_eq!(root, plain(&content), "{name}");
        let row = format!("| {name} | `{root}` |");
        assert!(document.contains(&row), "the document lacks: {row}");
    }
    let zeros = TreeHash::from_leaves(64 << 40, &[]).unwrap().root;
    let row = format!("| {} zeros (64 TiB) | `{zeros}` |", 64u64 << 40);
    assert!(document.contains(&row), "the document lacks: {row}");
    assert!(document.contains(&format!("`{}`", *ZERO_LEAF)), "the zero leaf is {}", *ZERO_LEAF);
}
