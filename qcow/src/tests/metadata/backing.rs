//! The backing file's name.

use fixtures::args;

use super::*;
use crate::chain::Format;
use crate::format::{Extension, HeaderArea};
use crate::image::{Purpose, read_header_area};
use crate::ops::backing::{BackingFile, ChangeBackingOptions, change_backing, store_backing};
use crate::ops::create::{Backing, CreateOptions, create};
use crate::{ErrorKind, Result};

fn area(storage: Arc<dyn Storage>) -> HeaderArea {
    let mut area = read_header_area(&*storage, Purpose::Read).unwrap();
    area.header.backing_name_offset = 0;
    // What is only there while places are exchanged.
    area.extensions.0.retain(|extension| {
        !matches!(extension, Extension::Unknown { magic, .. } if *magic == crate::format::SPANNING_EXTENSION)
    });
    area
}

#[test]
fn a_crash_leaves_the_old_name_or_the_new_one_and_all_other_extensions_stay() {
    fixtures::needs_qemu!();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let long = "n".repeat(1000);
    for (options, bitmap) in [
        ("cluster_size=64k", true),
        ("cluster_size=4k,data_file=DATA", false),
        ("cluster_size=512", true),
        ("compat=0.10", false),
    ] {
        let options = options.replace("DATA", dir.join("data").to_str().unwrap());
        let mut image = made(dir, &options, "1M", &["write -P 1 0 64k"]);
        if bitmap {
            let path = dir.join("image.qcow2");
            qemu::qemu_img(&args!["bitmap", "--add", path, "b0"]);
            image = std::fs::read(&path).unwrap();
        }
        // An extension that nobody knows, in the place of the end marker.
        if !options.contains("512") {
            let mut patch = area(Arc::new(MemoryStorage::new(image.clone())));
            let data = b"for another program".to_vec();
            patch.extensions.0.push(Extension::Unknown { magic: 0x0a0b_0c0d, data });
            let bytes = patch.to_bytes().unwrap();
            image[..bytes.len()].copy_from_slice(&bytes);
        }
        let kept = |image: &[u8]| {
            let mut kept = area(Arc::new(MemoryStorage::new(image.to_vec()))).extensions.0;
            kept.retain(|extension| !matches!(extension, Extension::BackingFormat(_)));
            kept
        };
        let others = kept(&image);
        let names = [("base.raw", "raw"), (&long, "qcow2"), ("b", "vmdk"), ("", "")];
        for (name, format) in names {
            let what = format!("{options}: {name}");
            let backing = (!name.is_empty()).then(|| BackingFile::new(name, format));
            let change = |storage| store_backing(storage, backing.as_ref());
            if name.len() > 400 && options.contains("512") {
                let error = change(Arc::new(MemoryStorage::new(image.clone()))).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
                continue;
            }
            image = old_or_new(&what, &image, dir, change, area);
            assert_eq!(kept(&image), others, "{what}");
            let info = by_qemu(&image, dir, &what);
            let shown = info["backing-filename"].as_str();
            assert_eq!(shown, Some(name).filter(|name| !name.is_empty()), "{what}");
            let shown = info["backing-filename-format"].as_str();
            assert_eq!(shown, Some(format).filter(|name| !name.is_empty()), "{what}");
        }
    }
}

#[test]
fn what_would_be_its_own_backing_file_or_is_not_there_is_refused_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (base, middle, top) = (dir.join("base"), dir.join("middle"), dir.join("top"));
    let on = |name: &str| CreateOptions::default().backing(Backing::new(name, Format::Qcow2));
    create(&base, &CreateOptions::default().size(1 << 20)).unwrap();
    create(&middle, &on("base")).unwrap();
    create(&top, &on("middle")).unwrap();
    let link = dir.join("link");
    std::os::unix::fs::symlink(&top, &link).unwrap();
    let bytes = || [&base, &middle, &top].map(|path| std::fs::read(path).unwrap());
    let before = bytes();
    let change = |image: &Path, name: &str, format: &str, unchecked: bool| -> Result<()> {
        let options = ChangeBackingOptions::default().unchecked(unchecked);
        let backing = BackingFile::new(name, format);
        when_free(|| change_backing(image, Some(&backing), &options)).map(drop)
    };
    for unchecked in [false, true] {
        for (image, name) in [(&base, "top"), (&base, "middle"), (&base, "base"), (&top, "link")] {
            let error = change(image, name, "qcow2", unchecked).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
            assert!(error.to_string().contains("of its own"), "{error}");
        }
        for (name, format) in [("", "raw"), ("base", ""), ("base", "a format of 16 b")] {
            let error = change(&top, name, format, unchecked).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
        }
    }
    let error = change(&top, "gone", "qcow2", false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    let error = change(&top, "nbd://host/disk", "raw", false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(change(&top, "base", "vmdk", false).is_err());
    assert!(bytes() == before);

    // A plan writes nothing.
    let options = ChangeBackingOptions::default().dry_run(true);
    let backing = BackingFile::new("base", "qcow2");
    let outcome = when_free(|| change_backing(&top, Some(&backing), &options)).unwrap();
    assert_eq!(outcome.old_backing.as_deref(), Some("middle"));
    assert_eq!(outcome.new_backing.as_deref(), Some("base"));
    assert!(bytes() == before);

    // What is asked for is done.
    for (name, format) in [("gone", "qcow2"), ("nbd://host/disk", "raw"), ("base", "qcow2")] {
        change(&top, name, format, true).unwrap();
        let area = area(Arc::new(crate::io::FileStorage::open(&top).unwrap()));
        assert_eq!(area.backing_name.as_deref(), Some(name.as_bytes()));
        assert_eq!(area.backing_format(), Some(format.as_bytes()));
    }
}

#[test]
fn an_image_that_is_in_use_or_marked_corrupt_keeps_its_name() {
    fixtures::needs_qemu!();
    let scratch = fixtures::Scratch::new();
    let path = scratch.path("image.qcow2");
    qemu::create(&path, "", "1M");
    let holder = fixtures::Holder::new(&["-f", "qcow2"], &path);
    let error = change_backing(&path, None, &ChangeBackingOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
    drop(holder);
    let mut patch = fixtures::Patch::open(&path);
    patch.or_u64(72, 2).save();
    let error = when_free(|| change_backing(&path, None, &ChangeBackingOptions::default()));
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}
