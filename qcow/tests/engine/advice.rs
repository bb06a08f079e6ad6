//! What the library advises its callers: each advice that no command of a program can provoke is followed here, and helps.

use std::path::Path;
use std::sync::Arc;

use fixtures::{Scratch, args, needs_qemu, qemu, qemu_img, qemu_io};
use qcow::chain::{Chain, Format, OpenOptions, WorkingDirectory, resolve_name};
use qcow::extent::Extent;
use qcow::format::GuestOffset;
use qcow::image::Image;
use qcow::io::{FileStorage, Storage, WritableFile};
use qcow::ops::flatten::{FlattenOptions, flatten};
use qcow::{CancelToken, Error, Remedy, Silent};

#[track_caller]
fn advises<T: std::fmt::Debug>(result: Result<T, Error>, words: &str) {
    let error = result.unwrap_err();
    let remedy = error.what_next().map(ToString::to_string).unwrap_or_default();
    assert!(remedy.starts_with(words), "{error}");
}

fn open(path: &Path) -> Chain {
    Chain::open(path, &OpenOptions::default()).unwrap()
}

fn copy(chain: &Chain, to: &Path, options: &FlattenOptions) -> Result<(), Error> {
    flatten(chain, to, options, &Silent, &CancelToken::new()).map(drop)
}

/// `base` and `top` on it, with 64 KiB of data each.
fn pair(scratch: &Scratch) -> Chain {
    qemu::create(scratch.path("base"), "", "1M");
    qemu_io("qcow2", scratch.path("base"), &["write -P 1 0 64k"]);
    qemu::overlay(scratch.path("top"), "base", "qcow2", "", "");
    qemu_io("qcow2", scratch.path("top"), &["write -P 2 512k 64k"]);
    open(&scratch.path("top"))
}

#[test]
fn options_that_need_others() {
    needs_qemu!();
    let scratch = Scratch::new();
    let chain = pair(&scratch);
    let mut options = FlattenOptions::default().compression_level(3);
    let error = copy(&chain, &scratch.path("n1"), &options).unwrap_err();
    assert_eq!(error.what_next(), Some(&Remedy::Compress));
    options.compress = true;
    copy(&chain, &scratch.path("n1"), &options).unwrap();

    let mut options = FlattenOptions::default().salvage(true).digest(true);
    advises(copy(&chain, &scratch.path("n2"), &options), "take it of the new image");
    options.digest = false;
    copy(&chain, &scratch.path("n2"), &options).unwrap();
    let digest = FlattenOptions::default().digest(true);
    copy(&open(&scratch.path("n2")), &scratch.path("n3"), &digest).unwrap();

    advises("vmdk".parse::<Format>(), "the formats are qcow2 and raw");
    assert!("qcow2".parse::<Format>().is_ok() && "raw".parse::<Format>().is_ok());
}

#[test]
fn layers_and_extents_of_a_chain() {
    needs_qemu!();
    let scratch = Scratch::new();
    let chain = pair(&scratch);
    let storage = |name: &str| -> Arc<dyn Storage> {
        Arc::new(FileStorage::from_file(std::fs::File::open(scratch.path(name)).unwrap()).unwrap())
    };
    let top = || Chain::builder().layer("top", storage("top"), Format::Qcow2);
    advises(top().open(), "add its layer, or ask for a partial chain");
    top().layer("base", storage("base"), Format::Qcow2).open().unwrap();
    top().partial(true).open().unwrap();

    let extents: Vec<Extent> = chain.extents().collect::<Result<_, _>>().unwrap();
    let first = extents.first().unwrap();
    let mut buffer = vec![0; first.len as usize];
    let other = open(&scratch.path("top"));
    advises(other.reader().read_extent(first, &mut buffer), "read it with a reader of the chain");
    chain.reader().read_extent(first, &mut buffer).unwrap();
    buffer.push(0);
    advises(chain.reader().read_extent(first, &mut buffer), "give a buffer of the extent's length");
    buffer.pop();
    chain.reader().read_extent(first, &mut buffer).unwrap();
    assert_eq!(buffer, vec![1; first.len as usize]);
    chain.reader().read_at(&mut buffer, GuestOffset(0)).unwrap();
}

#[test]
fn names_and_descriptors() {
    let unknown = WorkingDirectory::Unknown;
    let at = |name: &str| resolve_name(Path::new(name), Path::new("/images/top"), &unknown);
    advises(at("file:base"), "record an absolute name in the image, or a plain relative one");
    assert_eq!(at("file:/images/base").unwrap(), Path::new("/images/base"));
    assert_eq!(at("base").unwrap(), Path::new("/images/base"));

    let file = tempfile::NamedTempFile::new().unwrap();
    let only_to_read = std::fs::File::open(file.path()).unwrap();
    advises(WritableFile::from_file(only_to_read), "open it with O_RDWR and without O_APPEND");
    WritableFile::from_file(file.reopen().unwrap()).unwrap();
}

#[test]
fn a_bitmap_that_was_not_stored_cleanly_is_removed_after_a_full_backup() {
    needs_qemu!();
    let scratch = Scratch::new();
    drop(pair(&scratch));
    let path = scratch.path("top");
    qemu_img(&args!["bitmap", "--add", path, "b0"]);
    let of = |path: &Path| {
        let file = std::fs::File::open(path).unwrap();
        Image::open(Arc::new(FileStorage::from_file(file).unwrap())).unwrap()
    };
    // The flag IN_USE, bit 0 of the flags at byte 12 of the directory's first entry.
    let mut bytes = std::fs::read(&path).unwrap();
    let name = bytes.windows(2).position(|two| two == b"b0").unwrap();
    bytes[name - 24 + 15] |= 1;
    std::fs::write(&path, bytes).unwrap();
    let image = of(&path);
    let dirty = image.bitmap(b"b0").unwrap().dirty_ranges().map(drop);
    advises(dirty, "make a full backup, and remove the bitmap");
    drop(image);
    copy(&open(&path), &scratch.path("backup"), &FlattenOptions::default()).unwrap();
    qemu_img(&args!["bitmap", "--remove", path, "b0"]);
    qemu_img(&args!["bitmap", "--add", path, "b1"]);
    assert!(of(&path).bitmap(b"b1").unwrap().dirty_ranges().is_ok());
}

/// An image with zstd clusters in a build without zstd: its metadata is read, its clusters are refused with the way out.
#[cfg(not(feature = "zstd"))]
#[test]
fn without_the_feature_zstd_such_clusters_are_refused_and_all_else_is_read() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/images/zstd.qcow2");
    let chain = open(&path);
    assert_eq!(chain.virtual_size(), 32_768);
    let mut buffer = vec![0; 32_768];
    let read = chain.reader().read_at(&mut buffer, GuestOffset(0));
    assert_eq!(read.as_ref().unwrap_err().kind(), qcow::ErrorKind::Unsupported);
    advises(read, "build it with the feature `zstd`");
}
