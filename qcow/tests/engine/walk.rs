//! `chain::walk`: layers from whatever the caller opens.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use qcow::chain::{BackingFormats, Format, FormatSource, Open, OpenOptions, walk};
use qcow::io::MemoryStorage;
use qcow::ops::create::{Backing, CreateOptions, create};
use qcow::{Error, Result};

/// Files in memory, read by others than the file system.
struct Pool(HashMap<PathBuf, Vec<u8>>);

impl Open for &Pool {
    type File = MemoryStorage;

    fn open(&self, path: &Path, _depth: usize) -> Result<MemoryStorage> {
        let bytes = self.0.get(path).cloned();
        let gone = || Error::io("not in the pool", std::io::ErrorKind::NotFound.into());
        bytes.map(MemoryStorage::new).ok_or_else(gone)
    }
}

/// The header of an overlay on `name`.
fn overlay(name: &str, format: Format) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("overlay");
    let open = OpenOptions::default();
    let backing = Some(Backing::new(name, format).unchecked(true).open(open));
    let options = CreateOptions::default().backing(backing).size(1 << 20);
    create(&path, &options).unwrap();
    std::fs::read(&path).unwrap()
}

fn pool(files: &[(&str, Vec<u8>)]) -> Pool {
    Pool(files.iter().map(|(name, bytes)| (name.into(), bytes.clone())).collect())
}

#[test]
fn layers_come_from_whatever_the_caller_opens_and_what_is_above_a_fault_is_told() {
    let pool = pool(&[
        ("/pool/top", overlay("middle", Format::Qcow2)),
        ("/pool/middle", overlay("base", Format::Raw)),
    ]);
    let options = OpenOptions::default();
    let mut walk = walk(&pool, Path::new("/pool/top"), &options);
    let names: Vec<_> = walk.by_ref().take(2).map(|layer| layer.unwrap().path).collect();
    assert_eq!(names, [Path::new("/pool/top"), Path::new("/pool/middle")]);
    let broken = walk.next().unwrap().unwrap_err();
    assert!(broken.is_gone());
    assert_eq!((broken.depth, broken.format), (2, Some(Format::Raw)));
    assert_eq!(broken.path, Path::new("/pool/base"));
    assert_eq!(broken.by.as_deref(), Some(Path::new("/pool/middle")));
    assert!(walk.next().is_none());
}

#[test]
fn trap_101_a_raw_backing_file_that_looks_like_an_image_ends_the_chain() {
    let pool = pool(&[
        ("top", overlay("trick", Format::Raw)),
        ("trick", overlay("/etc/passwd", Format::Raw)),
    ]);
    let options = OpenOptions::default();
    let formats: Vec<_> = walk(&pool, Path::new("top"), &options)
        .map(|layer| layer.map(|layer| (layer.format, layer.format_source)).unwrap())
        .collect();
    let expected = [(Format::Qcow2, FormatSource::Probed), (Format::Raw, FormatSource::Recorded)];
    assert_eq!(formats, expected);
}

#[test]
fn a_chain_that_comes_back_ends_also_without_identities() {
    let pool = pool(&[("a", overlay("b", Format::Qcow2)), ("b", overlay("a", Format::Qcow2))]);
    let options = OpenOptions::default().backing_formats(BackingFormats::new());
    let last = walk(&pool, Path::new("a"), &options).last().unwrap().unwrap_err();
    assert!(last.error.message().contains("comes back"), "{}", last.error);
}
