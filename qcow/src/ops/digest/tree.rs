//! The tree hash itself; `docs/tree-hash.md` defines it.

use std::fmt;
use std::sync::LazyLock;

use blake3::Hasher;
use blake3::hazmat::{
    ChainingValue, ContextKey, HasherExt, Mode, hash_derive_key_context, merge_subtrees_root,
};

use crate::codec::is_zero;
use crate::{Error, Result};

/// Length of a leaf in bytes.
pub const LEAF: u64 = 4 << 20;
/// Leaves are hashed in halves, each a subtree of BLAKE3's own tree: that is how work comes.
const HALF: u64 = LEAF / 2;
/// Version of the definition, part of what is hashed.
pub(super) const VERSION: u32 = 1;

const LEAF_CONTEXT: &str = "qcowtool tree hash 1 leaf";
const NODE_CONTEXT: &str = "qcowtool tree hash 1 node";
const ROOT_CONTEXT: &str = "qcowtool tree hash 1 root";

static LEAF_KEY: LazyLock<ContextKey> = LazyLock::new(|| hash_derive_key_context(LEAF_CONTEXT));
static NODE_KEY: LazyLock<ContextKey> = LazyLock::new(|| hash_derive_key_context(NODE_CONTEXT));
static ROOT_KEY: LazyLock<ContextKey> = LazyLock::new(|| hash_derive_key_context(ROOT_CONTEXT));
/// The two halves of the leaf of zeros.
static ZERO_HALVES: LazyLock<(Half, Half)> = LazyLock::new(|| {
    let zeros = crate::io::zeros(HALF);
    (subtree(zeros, 0), subtree(zeros, HALF))
});
static ZERO_LEAF: LazyLock<Hash> = LazyLock::new(|| leaf(&ZERO_HALVES.0, &ZERO_HALVES.1));

/// 32 bytes, shown as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hash(pub [u8; 32]);

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Hash {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::corrupt("a digest is not 64 hex digits");
        let hash = blake3::Hash::from_hex(text).map_err(|_| wrong())?;
        Ok(Self(*hash.as_bytes()))
    }
}

/// A leaf that is not all zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    /// Its number; it covers [`LEAF`] bytes from `index * LEAF` on.
    pub index: u64,
    /// Its digest.
    pub hash: Hash,
}

/// The tree hash of a disk, and what it is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TreeHash {
    /// Length of the disk in bytes.
    pub virtual_size: u64,
    /// The digest of the whole disk.
    pub root: Hash,
    /// The leaves that are not all zeros, ascending: 40 bytes for each 4 MiB of data.
    pub leaves: Vec<Leaf>,
}

impl TreeHash {
    /// Puts the tree together again from its leaves, which are ascending and within the disk.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) if they are not.
    pub fn from_leaves(virtual_size: u64, leaves: &[Leaf]) -> Result<Self> {
        let count = virtual_size.div_ceil(LEAF);
        let mut builder = Builder::new();
        for leaf in leaves {
            let next = builder.count;
            if leaf.index < next || leaf.index >= count {
                return Err(Error::corrupt("a leaf is out of order or past the end of the disk"));
            }
            builder.push_zeros(leaf.index.saturating_sub(next));
            builder.push(leaf.hash);
        }
        builder.push_zeros(count.saturating_sub(builder.count));
        Ok(builder.finish(virtual_size))
    }

    /// The ranges of the disk, start and length in bytes, in whose leaves `self` and `other`
    /// differ; what only one of them has is different too.
    pub fn differences(&self, other: &Self) -> Vec<(u64, u64)> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        let longest = self.virtual_size.max(other.virtual_size);
        let mut add = |start: u64, end: u64| {
            let end = end.min(longest);
            match ranges.last_mut() {
                _ if end <= start => {}
                Some(last) if last.0.saturating_add(last.1) >= start => {
                    last.1 = last.1.max(end.saturating_sub(last.0));
                }
                _ => ranges.push((start, end.saturating_sub(start))),
            }
        };
        let (mut ours, mut theirs) =
            (self.leaves.iter().peekable(), other.leaves.iter().peekable());
        loop {
            let index = match (ours.peek(), theirs.peek()) {
                (None, None) => break,
                (Some(one), Some(two)) => one.index.min(two.index),
                (Some(only), None) | (None, Some(only)) => only.index,
            };
            let one = ours.next_if(|leaf| leaf.index == index);
            let two = theirs.next_if(|leaf| leaf.index == index);
            if one != two {
                let start = index.saturating_mul(LEAF);
                add(start, start.saturating_add(LEAF));
            }
        }
        // Beyond the shorter disk nothing is the same, zeros included. Leaves there are covered.
        let shorter = self.virtual_size.min(other.virtual_size);
        if shorter < longest {
            ranges.retain(|(start, _)| *start < shorter);
            if let Some(last) = ranges.last_mut()
                && last.0.saturating_add(last.1) >= shorter
            {
                last.1 = longest.saturating_sub(last.0);
            } else {
                ranges.push((shorter, longest.saturating_sub(shorter)));
            }
        }
        ranges
    }
}

/// The value of half a leaf.
pub(super) type Half = ChainingValue;

/// Hashes half a leaf, of which `bytes` may be a first part, followed by zeros. `guest` says
/// which half it is. `None` if it is all zeros.
pub(super) fn hash_half(guest: u64, bytes: &[u8]) -> Option<Half> {
    if is_zero(bytes) {
        return None;
    }
    let half = usize::try_from(HALF).unwrap_or_default();
    let offset = guest & HALF;
    if bytes.len() < half {
        let mut padded = bytes.to_vec();
        padded.resize(half, 0);
        return Some(subtree(&padded, offset));
    }
    Some(subtree(bytes, offset))
}

/// The hash of one leaf, of which `bytes` may be a first part, followed by zeros.
pub(super) fn hash_leaf(bytes: &[u8]) -> Hash {
    let half = usize::try_from(HALF).unwrap_or_default();
    let (left, right) = bytes.split_at_checked(half).unwrap_or((bytes, &[]));
    leaf(
        &hash_half(0, left).unwrap_or(ZERO_HALVES.0),
        &hash_half(HALF, right).unwrap_or(ZERO_HALVES.1),
    )
}

fn subtree(half: &[u8], offset: u64) -> ChainingValue {
    let mut hasher = Hasher::new_from_context_key(&LEAF_KEY);
    hasher.set_input_offset(offset);
    hasher.update(half);
    hasher.finalize_non_root()
}

fn leaf(left: &Half, right: &Half) -> Hash {
    Hash(*merge_subtrees_root(left, right, Mode::DeriveKeyMaterial(&LEAF_KEY)).as_bytes())
}

fn node(left: Hash, right: Hash) -> Hash {
    let mut hasher = Hasher::new_from_context_key(&NODE_KEY);
    hasher.update(&left.0).update(&right.0);
    Hash(*hasher.finalize().as_bytes())
}

/// Puts the tree together from left to right. Complete subtrees of the same height become one, so
/// that at most 64 are open; a run of zeros adds a number of subtrees that grows with its
/// logarithm.
#[derive(Debug)]
pub(super) struct Builder {
    /// Leaves so far.
    count: u64,
    /// Complete subtrees, each with its height, which falls from left to right.
    open: Vec<(u32, Hash)>,
    /// Digests of complete subtrees of zeros, by height.
    zeros: Vec<Hash>,
    /// The first half of a leaf; the inner `None` stands for zeros.
    half: Option<Option<Half>>,
    leaves: Vec<Leaf>,
}

impl Builder {
    pub(super) fn new() -> Self {
        Self { count: 0, open: Vec::new(), zeros: vec![*ZERO_LEAF], half: None, leaves: Vec::new() }
    }

    /// Adds half a leaf that is not all zeros.
    pub(super) fn add_half(&mut self, half: Half) {
        match self.half.take() {
            None => self.half = Some(Some(half)),
            Some(first) => self.push(leaf(&first.unwrap_or(ZERO_HALVES.0), &half)),
        }
    }

    /// Adds `len` bytes of zeros, whole halves of leaves except at the end of the disk.
    pub(super) fn add_zeros(&mut self, len: u64) {
        let mut halves = len.div_ceil(HALF);
        if halves > 0
            && let Some(first) = self.half.take()
        {
            halves = halves.saturating_sub(1);
            match first {
                None => self.push_zeros(1),
                Some(first) => self.push(leaf(&first, &ZERO_HALVES.1)),
            }
        }
        self.push_zeros(halves >> 1);
        if halves & 1 == 1 {
            self.half = Some(None);
        }
    }

    /// Completes the tree of a disk of `virtual_size` bytes.
    pub(super) fn finish(mut self, virtual_size: u64) -> TreeHash {
        if self.half.is_some() {
            self.add_zeros(HALF);
        }
        let mut hasher = Hasher::new_from_context_key(&ROOT_KEY);
        hasher.update(&VERSION.to_be_bytes()).update(&virtual_size.to_be_bytes());
        let open = self.open.iter().rev().map(|(_, hash)| *hash);
        if let Some(top) = open.reduce(|right, left| node(left, right)) {
            hasher.update(&top.0);
        }
        let root = Hash(*hasher.finalize().as_bytes());
        TreeHash { virtual_size, root, leaves: self.leaves }
    }

    fn push(&mut self, hash: Hash) {
        if hash == *ZERO_LEAF {
            return self.push_zeros(1);
        }
        self.leaves.push(Leaf { index: self.count, hash });
        self.push_subtree(0, hash);
    }

    fn push_zeros(&mut self, leaves: u64) {
        let mut rest = leaves;
        while let Some(most) = rest.checked_ilog2() {
            // The largest complete subtree that may start here.
            let height = most.min(self.count.trailing_zeros());
            let hash = self.zeros_of(height);
            self.push_subtree(height, hash);
            rest = rest.saturating_sub(1u64.checked_shl(height).unwrap_or(u64::MAX));
        }
    }

    fn push_subtree(&mut self, height: u32, hash: Hash) {
        self.count = self.count.saturating_add(1u64.checked_shl(height).unwrap_or(u64::MAX));
        let (mut height, mut hash) = (height, hash);
        while let Some((_, left)) = self.open.pop_if(|(open, _)| *open == height) {
            hash = node(left, hash);
            height = height.saturating_add(1);
        }
        self.open.push((height, hash));
    }

    /// The digest of a complete subtree of zeros, made when first needed.
    fn zeros_of(&mut self, height: u32) -> Hash {
        let height = usize::try_from(height).unwrap_or_default();
        let mut last = self.zeros.last().copied().unwrap_or(*ZERO_LEAF);
        while self.zeros.len() <= height {
            last = node(last, last);
            self.zeros.push(last);
        }
        self.zeros.get(height).copied().unwrap_or(last)
    }
}

#[cfg(test)]
mod tests;
