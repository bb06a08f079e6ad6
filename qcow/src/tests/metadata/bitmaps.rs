//! Bitmaps.

use std::ops::Range;

use fixtures::args;

use super::*;
use crate::chain::{Chain, Format};
use crate::image::Image;
use crate::ops::bitmap::{BitmapAction, BitmapOptions, change_bitmap_in};
use crate::{ErrorKind, Result};

/// One bitmap: name, granularity, whether it records, dirty ranges; none if it is not to be believed.
type Seen = (String, u64, bool, Option<Vec<Range<u64>>>);

fn seen(storage: Arc<dyn Storage>) -> Vec<Seen> {
    let image = Image::open(storage).unwrap();
    let ranges = |name: &[u8]| {
        let dirty = image.bitmap(name).unwrap().dirty_ranges().ok()?;
        let range = |range: crate::Result<Range<crate::format::GuestOffset>>| {
            let range = range.unwrap();
            range.start.0..range.end.0
        };
        Some(dirty.map(range).collect())
    };
    let see = |info: &crate::image::BitmapInfo| {
        let name = String::from_utf8(info.name.clone()).unwrap();
        (name, info.granularity, info.auto, ranges(&info.name))
    };
    image.bitmaps().iter().map(see).collect()
}

fn change(storage: Arc<dyn WriteStorage>, name: &str, actions: &[BitmapAction]) -> Result<()> {
    let options = BitmapOptions::default().threads(1);
    let name = name.as_bytes();
    change_bitmap_in(storage, name, actions, &options, &Silent, &CancelToken::new()).map(drop)
}

fn add(granularity: u64) -> BitmapAction {
    BitmapAction::Add { granularity: Some(granularity) }
}

fn merge(name: &str, from: Option<Chain>) -> BitmapAction {
    BitmapAction::Merge { bitmap: name.as_bytes().to_vec(), from }
}

/// An image, a bitmap, what is to be done with it, and the refusal.
type Row<'a> = (&'a [u8], &'a str, &'a [BitmapAction], ErrorKind, &'a str);

/// A bitmap of this name with what qemu-io wrote as dirty, in an image of its own.
fn other(dir: &Path, size: &str, granularity: &str, commands: &[&str]) -> Chain {
    let path = dir.join("other.qcow2");
    let _ = std::fs::remove_file(&path);
    qemu::create(&path, "", size);
    qemu::qemu_img(&args!["bitmap", "--add", "-g", granularity, path, "there"]);
    qemu::qemu_io("qcow2", &path, commands);
    let bytes = std::fs::read(&path).unwrap();
    let storage = Arc::new(MemoryStorage::new(bytes));
    Chain::builder().layer("other", storage, Format::Qcow2).open().unwrap()
}

#[test]
fn a_crash_leaves_the_old_bitmaps_or_the_new_ones() {
    fixtures::needs_qemu!();
    use BitmapAction::{Clear, Disable, Enable, Remove};
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for options in [
        "cluster_size=16k",
        "cluster_size=512,refcount_bits=64",
        "cluster_size=4k,refcount_bits=1",
        "cluster_size=4k,extended_l2=off,data_file=DATA",
    ] {
        let options = options.replace("DATA", dir.join("data").to_str().unwrap());
        let mut image = made(dir, &options, "5000k", &["write -P 1 0 32k"]);
        let from = other(dir, "5000k", "8k", &["write 1M 100k", "write 4997k 3k"]);
        let steps: [(&str, &[BitmapAction]); 11] = [
            ("a", &[add(4096)]),
            ("b", &[add(512), Disable, merge("there", Some(from.clone()))]),
            ("c", &[BitmapAction::Add { granularity: None }]),
            ("a", &[Disable, merge("b", None), Enable]),
            ("a", &[merge("there", Some(from.clone())), merge("a", None)]),
            ("c", &[merge("b", None), Disable]),
            ("b", &[Clear]),
            ("c", &[Remove, add(1 << 20)]),
            ("b", &[Remove]),
            ("a", &[Remove]),
            ("c", &[Remove]),
        ];
        for (number, (name, actions)) in steps.into_iter().enumerate() {
            let what = format!("{options}: step {number}");
            image = old_or_new(&what, &image, dir, |storage| change(storage, name, actions), seen);
            let now = seen(Arc::new(MemoryStorage::new(image.clone())));
            let shown = by_qemu(&image, dir, &what);
            let shown = shown["format-specific"]["data"]["bitmaps"].as_array().cloned();
            assert_eq!(shown.unwrap_or_default().len(), now.len(), "{what}");
            let dirty = |name: &str| {
                let found = now.iter().find(|seen| seen.0 == name).unwrap();
                found.3.clone().unwrap()
            };
            match number {
                1 | 3 => assert_eq!(dirty("b"), [1048576..1155072, 5111808..5120000], "{what}"),
                5 => assert_eq!(dirty("c").last().unwrap().end, 5120000, "{what}"),
                6 => assert_eq!(dirty("b"), [], "{what}"),
                _ => {}
            }
            if number == 4 {
                assert_eq!(dirty("a"), dirty("b"));
            }
        }
    }
}

#[test]
fn what_cannot_be_done_is_refused_as_a_whole_and_nothing_is_written() {
    fixtures::needs_qemu!();
    use BitmapAction::{Clear, Disable, Enable, Remove};
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let image = made(dir, "", "1M", &[]);
    let path = dir.join("image.qcow2");
    qemu::qemu_img(&args!["bitmap", "--add", path, "here"]);
    let (v3, v2) = (std::fs::read(&path).unwrap(), made(dir, "compat=0.10", "1M", &[]));
    let empty = made(dir, "", "0", &[]);
    let mut lost = fixtures::Patch::open({
        std::fs::write(&path, &v3).unwrap();
        &path
    });
    let directory = Image::open(Arc::new(MemoryStorage::new(v3.clone()))).unwrap();
    let directory = directory.area().bitmaps().unwrap().directory_offset.0;
    lost.set_u32(directory as usize + 12, 3).save();
    let lost = std::fs::read(&path).unwrap();
    let larger = other(dir, "2M", "64k", &[]);
    let long = "n".repeat(1024);
    let rows: [Row<'_>; 15] = [
        (&v3, "here", &[add(65536)], ErrorKind::Exists, "already has"),
        (&v3, "there", &[Clear], ErrorKind::Usage, "no bitmap named 'there'"),
        (&v3, "there", &[Remove], ErrorKind::Usage, "no bitmap named"),
        (&v3, "x", &[add(65536), Disable, Remove, Enable], ErrorKind::Usage, "no bitmap"),
        (&v3, "here", &[merge("there", None)], ErrorKind::Usage, "no bitmap named 'there'"),
        (&v3, "here", &[merge("there", Some(larger))], ErrorKind::Usage, "different sizes"),
        (&v3, "x", &[add(3000)], ErrorKind::Usage, "power of two"),
        (&v3, "x", &[add(256)], ErrorKind::Usage, "power of two"),
        (&v3, "x", &[add(1 << 32)], ErrorKind::Usage, "power of two"),
        (&v3, "", &[add(512)], ErrorKind::Usage, "1 to 1023 bytes"),
        (&v3, &long, &[add(512)], ErrorKind::Usage, "1 to 1023 bytes"),
        (&v2, "x", &[add(512)], ErrorKind::Unsupported, "version 2"),
        (&empty, "x", &[add(512)], ErrorKind::Usage, "no bytes"),
        (&lost, "here", &[Clear], ErrorKind::Corrupt, "not stored cleanly"),
        (&lost, "here", &[Enable], ErrorKind::Corrupt, "not stored cleanly"),
    ];
    for (image, name, actions, kind, words) in rows {
        let storage = Arc::new(SimStorage::new(image.to_vec()));
        let error = change(storage.clone(), name, actions).unwrap_err();
        assert_eq!(error.kind(), kind, "{name}, {actions:?}: {error}");
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(storage.calls(), 0, "{error}");
    }
    // It can be removed, and another one be added.
    let storage = Arc::new(SimStorage::new(lost));
    change(storage.clone(), "here", &[Remove, add(512)]).unwrap();
    assert_eq!(seen(storage), [("here".into(), 512, true, Some(vec![]))]);
    // A disk that is too large for so fine a granularity.
    let huge = made(dir, "", "8T", &[]);
    let error = change(Arc::new(SimStorage::new(huge)), "x", &[add(512)]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
    assert!(!image.is_empty());
}
