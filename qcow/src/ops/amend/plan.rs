//! What is to be different, validated against the image and against each other.

use std::os::unix::ffi::OsStrExt;

use super::zeros::expand_zeros;
use super::{AmendChange, AmendOptions};
use crate::format::{
    Autoclear, Compatible, CompressionType, Extension, Extensions, Header, HeaderArea, HeaderPatch,
    Incompatible, MAX_BACKING_NAME, RefcountWidth, Snapshot, Version,
};
use crate::image::Image;
use crate::image::edit::Edit;
use crate::image::first_cluster::editable;
use crate::{CancelToken, Error, Result};

/// Longest name of a data file in bytes: what QEMU takes for other names.
const MAX_DATA_FILE_NAME: usize = MAX_BACKING_NAME as usize;
/// Version 2 has no field for a longer VM state.
const V2_VM_STATE: u64 = u32::MAX as u64;

/// The image as it is to be.
#[derive(Debug)]
pub(super) struct Plan {
    area: HeaderArea,
    width: RefcountWidth,
    changes: Vec<AmendChange>,
    from: Version,
    drop_bitmaps: bool,
}

/// What carrying it out came to.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) changes: Vec<AmendChange>,
    pub(super) bitmaps_dropped: u64,
    pub(super) zeros_written: u64,
}

impl Plan {
    pub(super) fn new(image: &Image, options: &AmendOptions) -> Result<Self> {
        let header = image.header();
        let area = editable(&**image.storage())?;
        let mut plan = Self {
            area,
            width: header.refcounts(),
            changes: Vec::new(),
            from: header.version,
            drop_bitmaps: options.drop_bitmaps,
        };
        let version = options.version.unwrap_or(header.version);
        plan.set_version(image, version)?;
        plan.set_width(options.refcount_bits, version)?;
        plan.set_lazy_refcounts(header, options.lazy_refcounts, version)?;
        plan.set_data_file(options)?;
        Ok(plan)
    }

    fn note(&mut self, option: &'static str, from: impl ToString, to: impl ToString) {
        let (from, to) = (from.to_string(), to.to_string());
        if from != to {
            self.changes.push(AmendChange { option, from, to });
        }
    }

    fn set_version(&mut self, image: &Image, version: Version) -> Result<()> {
        self.note("compat", compat(self.from), compat(version));
        let header = &mut self.area.header;
        match (self.from, version) {
            (Version::V2, Version::V3) => {
                let new = Header::new(Version::V3, header.geometry(), header.size);
                header.version = Version::V3;
                header.header_length = new.header_length;
                header.unknown_tail = new.unknown_tail;
                let has_names =
                    |extension: &Extension| matches!(extension, Extension::FeatureNames(_));
                if header.geometry().cluster_size() > 4096
                    && !self.area.extensions.0.iter().any(has_names)
                {
                    self.area.extensions.0.push(Extensions::standard_feature_names());
                    // They are only for people: where there is no room for them, there are none.
                    if self.area.to_bytes().is_err() {
                        self.area.extensions.0.pop();
                    }
                }
            }
            (Version::V3, Version::V2) => self.become_v2(image)?,
            _ => {}
        }
        Ok(())
    }

    fn become_v2(&mut self, image: &Image) -> Result<()> {
        let header = &mut self.area.header;
        let cannot = |what: String| {
            Error::unsupported(format!("version 2 has no {what}, and the image has"))
                .structure("header")
        };
        if header.incompatible.contains(Incompatible::DATA_FILE) {
            return Err(cannot("external data files".into()));
        }
        if header.incompatible.contains(Incompatible::EXTENDED_L2) {
            return Err(cannot("subclusters".into()));
        }
        // Whether there are clusters that are compressed with it is seen later.
        header.compression_type = CompressionType::Zlib;
        header.incompatible.remove(Incompatible::COMPRESSION_TYPE);
        if !header.incompatible.is_empty() {
            let bits = header.incompatible.bits();
            return Err(cannot(format!("incompatible features {bits:#x}")));
        }
        for snapshot in image.snapshots() {
            let other_size = snapshot.disk_size.is_some_and(|size| size != image.header().size);
            if other_size || snapshot.vm_state_size > V2_VM_STATE {
                let what = if other_size { "of another size" } else { "with 4 GiB of VM state" };
                return Err(cannot(format!("snapshots {what}"))
                    .structure("snapshot table")
                    .hint("delete the snapshot first"));
            }
        }
        if !image.bitmaps().is_empty() && !self.drop_bitmaps {
            return Err(cannot("persistent bitmaps".into())
                .hint("remove the bitmaps first, or allow that they are dropped"));
        }
        header.version = Version::V2;
        header.compatible = Compatible::empty();
        header.autoclear = Autoclear::empty();
        header.unknown_tail = Vec::new();
        header.header_length = Header::new(Version::V2, header.geometry(), 0).header_length;
        self.area.extensions.0.retain(|extension| {
            !matches!(extension, Extension::FeatureNames(_) | Extension::Bitmaps(_))
        });
        Ok(())
    }

    fn set_width(&mut self, bits: Option<u32>, version: Version) -> Result<()> {
        let old = self.width.bits();
        let bits = bits.unwrap_or(old);
        if !(bits.is_power_of_two() && bits <= 64) {
            return Err(Error::usage(format!(
                "refcounts of {bits} bits, expected a power of two from 1 to 64"
            )));
        }
        let order = bits.trailing_zeros();
        if version == Version::V2 && bits != 16 {
            return Err(Error::usage(format!(
                "version 2 has refcounts of 16 bits, and these would have {bits}"
            ))
            .hint("ask for version 3, or for 16 bits"));
        }
        self.note("refcount_bits", old, bits);
        self.width = RefcountWidth::new(order)?;
        self.area.header.refcount_order = order;
        Ok(())
    }

    fn set_lazy_refcounts(
        &mut self,
        header: &Header,
        lazy: Option<bool>,
        version: Version,
    ) -> Result<()> {
        let lazy_now = header.compatible.contains(Compatible::LAZY_REFCOUNTS);
        let lazy = lazy.unwrap_or(lazy_now && version == Version::V3);
        if lazy && version == Version::V2 {
            return Err(Error::usage("version 2 has no lazy refcounts").hint("ask for version 3"));
        }
        self.note("lazy_refcounts", on_off(lazy_now), on_off(lazy));
        self.area.header.compatible.set(Compatible::LAZY_REFCOUNTS, lazy);
        Ok(())
    }

    fn set_data_file(&mut self, options: &AmendOptions) -> Result<()> {
        let has_one = self.area.header.incompatible.contains(Incompatible::DATA_FILE);
        if let Some(name) = &options.data_file {
            if !has_one {
                return Err(Error::usage("the image has no external data file"));
            }
            let name = name.as_os_str().as_bytes();
            let empty = name.is_empty() && !options.unchecked;
            if empty || name.contains(&0) || name.len() > MAX_DATA_FILE_NAME {
                return Err(Error::usage(format!(
                    "a data file's name has 1 to {MAX_DATA_FILE_NAME} bytes"
                )));
            }
            self.name_data_file(name);
        }
        let raw = self.area.header.autoclear.contains(Autoclear::DATA_FILE_RAW);
        match options.data_file_raw {
            Some(true) if !raw => {
                let message = "a data file that is not kept as a raw image cannot become one";
                return Err(Error::usage(message));
            }
            Some(false) => {
                self.note("data_file_raw", on_off(raw), "off");
                self.area.header.autoclear.remove(Autoclear::DATA_FILE_RAW);
            }
            _ => {}
        }
        Ok(())
    }

    fn name_data_file(&mut self, name: &[u8]) {
        let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
        let old = self.area.data_file_name().map(text).unwrap_or_default();
        self.note("data_file", old, text(name));
        let is_name = |extension: &Extension| matches!(extension, Extension::DataFile(_));
        let extensions = &mut self.area.extensions.0;
        if name.is_empty() {
            extensions.retain(|extension| !is_name(extension));
            return;
        }
        let new = Extension::DataFile(name.to_vec());
        match extensions.iter_mut().rfind(|extension| is_name(extension)) {
            Some(extension) => *extension = new,
            None => extensions.push(new),
        }
    }

    pub(super) fn carry_out(self, edit: &mut Edit, cancel: &CancelToken) -> Result<Made> {
        let mut made = Made { changes: self.changes, bitmaps_dropped: 0, zeros_written: 0 };
        if made.changes.is_empty() {
            return Ok(made);
        }
        let mut snapshots = edit.image().snapshots().to_vec();
        match (self.from, self.area.header.version) {
            (Version::V3, Version::V2) => {
                made.bitmaps_dropped = edit.drop_bitmaps()?;
                made.zeros_written = expand_zeros(edit, &mut snapshots, cancel)?;
            }
            (Version::V2, Version::V3) => {
                let size = edit.image().header().size;
                for snapshot in &mut snapshots {
                    snapshot.disk_size.get_or_insert(size);
                }
            }
            _ => {}
        }
        if snapshots != edit.image().snapshots() {
            replace_snapshots(edit, &snapshots)?;
        }
        if self.width.bits() != edit.image().header().refcounts().bits() {
            edit.set_width(self.width);
        }
        edit.set_area(self.area);
        Ok(made)
    }
}

/// Writes the snapshot table anew, with as many entries.
fn replace_snapshots(edit: &mut Edit, snapshots: &[Snapshot]) -> Result<()> {
    let mut bytes = Vec::new();
    for snapshot in snapshots {
        bytes.extend(snapshot.to_bytes()?);
    }
    let old = edit.image().header().snapshots_offset;
    let clusters = edit.clusters(old, edit.image().snapshot_table_len())?;
    edit.lower(clusters)?;
    let count = u32::try_from(snapshots.len())
        .map_err(|_| Error::internal("more snapshots than there can be"))?;
    let host = edit.write_new(bytes)?;
    edit.set_header(&HeaderPatch::snapshots(host, count))
}

fn compat(version: Version) -> &'static str {
    match version {
        Version::V2 => "0.10",
        Version::V3 => "1.1",
    }
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}
