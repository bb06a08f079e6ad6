//! Raw disks: holes where there are zeros.

use std::path::PathBuf;

use super::scan::{Scanned, scan};
use super::{Files, SparsifyOptions, SparsifyOutcome, space};
use crate::chain::{Chain, Format};
use crate::io::OpenedAs;
use crate::ops::digest::crc32_of_start;
use crate::{CancelToken, Error, Observer, Result};

pub(super) fn sparsify(
    files: &Files,
    options: &SparsifyOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<SparsifyOutcome> {
    let storage = &files.image.storage;
    if storage.as_file().is_some_and(|file| file.kind() == OpenedAs::BlockDevice) {
        return Err(Error::unsupported(
            "a block device has no space to give back to a file system",
        ));
    }
    let (len, allocated_before) = (storage.len(), files.allocated());
    let open = || {
        let builder = Chain::builder().force_share(true);
        builder.layer("", std::sync::Arc::clone(storage), Format::Raw).open()
    };
    let chain = open()?;
    let size = chain.virtual_size();
    let Scanned { places, zero_bytes, crc32, .. } =
        scan(&chain, options.threads, observer, cancel)?;
    let mut verified = false;
    if let Some(target) = &files.image.target {
        space::punch_zeros(&**target, &places, cancel)?;
        target.sync().map_err(|error| Error::io("could not sync", error))?;
        if !options.no_verify {
            if crc32_of_start(&open()?, size, options.threads, cancel)? != crc32 {
                let lost = std::io::Error::other("the digests differ");
                return Err(Error::io("the disk does not read as before", lost));
            }
            verified = true;
        }
    }
    Ok(SparsifyOutcome {
        filename: PathBuf::new(),
        format: Format::Raw,
        virtual_size: size,
        dry_run: options.dry_run,
        zero_bytes,
        freed: 0,
        moved: 0,
        file_size_before: len,
        file_size: storage.len(),
        allocated_before,
        allocated: (!options.dry_run).then(|| files.allocated()),
        crc32,
        snapshots_verified: 0,
        verified,
        repaired: None,
    })
}
