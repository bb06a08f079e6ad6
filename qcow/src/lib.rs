//! A native QCOW2 engine: reads every image that QEMU can make, creates correctly sized ones,
//! flattens backing chains in parallel, and proves content by digest. No QEMU process, no QEMU
//! code, no system library.
//!
//! # What it is for
//!
//! A virtual machine's disk is often a chain: an overlay on an overlay on a template. When the
//! template disappears from whoever keeps the catalogue, the overlay is an orphan, and the guest
//! cannot be moved. This crate makes one standalone image out of the chain:
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let (template, overlay) = (dir.path().join("template.qcow2"), dir.path().join("vm.qcow2"));
//! # let standalone = dir.path().join("standalone.qcow2");
//! use qcow::chain::{Chain, Format, OpenOptions};
//! use qcow::ops::digest::{DigestOptions, digest};
//! use qcow::ops::create::{Backing, CreateOptions, create};
//! use qcow::ops::flatten::{FlattenOptions, flatten};
//! use qcow::{CancelToken, Silent};
//!
//! // A template of 10 GiB and an overlay on it.
//! create(&template, &CreateOptions::default().size(10 << 30))?;
//! let backing = Backing::new("template.qcow2", Format::Qcow2); // as the header will have it
//! create(&overlay, &CreateOptions::default().backing(backing))?;
//!
//! // The chain, opened read-only: two layers.
//! let chain = Chain::open(&overlay, &OpenOptions::default())?;
//! assert_eq!(chain.layers().len(), 2);
//!
//! // One image out of it, and the proof that it holds the same.
//! let cancel = CancelToken::new();
//! let options = FlattenOptions::default().digest(true);
//! let outcome = flatten(&chain, &standalone, &options, &Silent, &cancel)?;
//! let result = Chain::open(&standalone, &OpenOptions::default())?;
//! let proof = digest(&result, &DigestOptions::default(), &Silent, &cancel)?;
//! assert_eq!(outcome.crc32, Some(proof.digest.to_string()));
//! # Ok(())
//! # }
//! ```
//!
//! # The rooms
//!
//! | module | holds |
//! |---|---|
//! | [`format`](mod@format) | the bytes on disk: every structure of versions 2 and 3, in and out; no I/O |
//! | [`io`] | where bytes live: files, memory, outputs that appear complete or not at all |
//! | [`codec`] | zlib and zstd clusters, zero detection |
//! | [`image`] | one open image: header, snapshots, bitmaps, mapping |
//! | [`chain`] | backing chains: names, formats, policy, limits, loops |
//! | [`extent`] | what every guest range is, and a reader of the guest's bytes |
//! | [`disk`] | a disk that is read and written by many threads at once |
//! | [`ops`] | one operation each, with `Options` and `Outcome`: create, flatten, info, check and repair, map, measure, compare, digest; snapshots, bitmaps, amending, and the backing file's name in place |
//!
//! # Cargo features
//!
//! All are on by default. A program that only reads guest data and extents takes none of them
//! (`default-features = false`): it builds no C, no procedural macro and no thread pool, 17 packages in place of 57.
//!
//! | feature | adds | brings |
//! |---|---|---|
//! | `ops` | the module `ops`, and `io::OutputFile` | rayon, tempfile, memmap2, crc32fast, `serde` |
//! | `digest` | in `ops::digest`: tree hashes, SHA-256, manifests | blake3, sha2, `ops` |
//! | `zstd` | clusters compressed with zstd; without it, reading or writing one is an [`Unsupported`](ErrorKind::Unsupported) error | libzstd, which is C |
//! | `serde` | `Serialize` for error kinds, places, formats and what else is printed | serde's derive |
//! | `sim` | `io::sim`, for tests of code that writes; not on by default | |
//!
//! # Trust
//!
//! Every image is taken for hostile. Arithmetic on what comes from a file is checked, tables are
//! bounded before memory is taken, chains are walked without recursion, and nothing panics on bad
//! input. Which files an image may have opened is the caller's [`chain::Policy`]; a backing
//! file's format is never guessed. Inputs are opened read-only, but for what is to change an image in
//! place; outputs are built under a temporary name, synced, and renamed.
//!
//! Errors have a category ([`ErrorKind`]), a place ([`Place`]: file, structure, offset), the cause
//! ([`source`](std::error::Error::source)), and often what to do next ([`Remedy`]), as values and in
//! one line of text.
//!
//! # Threads and memory
//!
//! Operations use as many threads as they are told, one per core by default, and their output
//! does not depend on it. Memory is a few MiB per thread for a disk of any size, plus at most
//! 64 MiB for the L1 table of an image being written (8 bytes for each 512 MiB of disk at the
//! default cluster size: 128 KiB for 8 TiB).

// What only operations use: not worth an attribute on each function and import.
#![cfg_attr(not(feature = "ops"), allow(dead_code, unused_imports))]

pub mod chain;
#[cfg(feature = "ops")]
mod check;
pub mod codec;
pub mod disk;
pub mod extent;
pub mod format;
pub mod image;
pub mod io;
#[cfg(feature = "ops")]
pub mod ops;

mod error;
mod exact;
#[cfg(feature = "ops")]
mod layout;
mod progress;
mod remedy;
mod setters;
mod sync;
#[cfg(test)]
#[cfg(feature = "ops")]
mod tests;
#[cfg(feature = "ops")]
mod threads;

pub use error::{Error, ErrorKind, Escaped, Place, Result};
pub use progress::{CancelToken, Observer, Silent};
pub use remedy::{LimitName, Remedy};

/// The programs in the README compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
