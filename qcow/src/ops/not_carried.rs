//! What of a source a new image does not get. One pure function decides it for `flatten` and
//! `create --like`; `docs/flatten.md` has the same as a table.

use std::collections::HashSet;

use serde::Serialize;

use super::bitmap::Carried;
use super::{Qcow2Options, TargetOptions};
use crate::format::{
    Compatible, CompressionType, CryptMethod, Extension, Header, Incompatible, Version,
};
use crate::image::Image;

/// What a QCOW2 image can have and another may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Property {
    /// Internal snapshots, with saved states of the machine.
    InternalSnapshots,
    /// Persistent bitmaps, of which incremental backups depend.
    Bitmaps,
    /// Header extensions that this crate does not know.
    UnknownExtensions,
    /// The guest's data is encrypted.
    Encryption,
    /// A backing file.
    BackingFile,
    /// The guest's data lies in an external data file.
    DataFile,
    /// The version of the format, as `compat`.
    Compat,
    /// The size of a cluster.
    ClusterSize,
    /// The width of refcounts.
    RefcountBits,
    /// Subclusters.
    ExtendedL2,
    /// Refcount updates may be postponed.
    LazyRefcounts,
    /// How compressed clusters are compressed.
    CompressionType,
}

/// A property of the source that the new image has not, or has differently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct NotCarried {
    /// Which.
    pub property: Property,
    /// What the source has, in words. Names in it are as they are in the image: whoever shows it
    /// escapes them.
    pub source: String,
}

impl NotCarried {
    /// Whether something is gone that cannot be had again from the new image, or that protected it;
    /// everything else is a choice of how bytes are stored.
    pub fn is_loss(&self) -> bool {
        matches!(
            self.property,
            Property::InternalSnapshots
                | Property::Bitmaps
                | Property::UnknownExtensions
                | Property::Encryption
        )
    }
}

/// What counts of a source, as values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SourceFacts {
    snapshots: Vec<String>,
    bitmaps: Vec<String>,
    /// Bitmaps that were to be carried over, and could not be.
    broken_bitmaps: Vec<String>,
    unknown_extensions: usize,
    encryption: Option<&'static str>,
    backing: Option<String>,
    data_file: Option<String>,
    stored: Option<Stored>,
}

/// How a QCOW2 image stores what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stored {
    version: Version,
    cluster_size: u64,
    refcount_bits: u32,
    extended_l2: bool,
    lazy_refcounts: bool,
    compression_type: CompressionType,
}

impl SourceFacts {
    /// Of the active layer; raw images have nothing that could be lost.
    pub(crate) fn of(image: Option<&Image>) -> Self {
        let Some(image) = image else { return Self::default() };
        let (area, header) = (image.area(), image.header());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let unknown = |extension: &&Extension| matches!(extension, Extension::Unknown { .. });
        Self {
            snapshots: image.snapshots().iter().map(|snapshot| text(&snapshot.name)).collect(),
            broken_bitmaps: Vec::new(),
            bitmaps: image.bitmaps().iter().map(|bitmap| text(&bitmap.name)).collect(),
            unknown_extensions: area.extensions.0.iter().filter(unknown).count(),
            encryption: match header.crypt_method {
                CryptMethod::None => None,
                CryptMethod::Aes => Some("AES"),
                CryptMethod::Luks => Some("LUKS"),
            },
            backing: area.backing_name.as_deref().map(text),
            data_file: header
                .incompatible
                .contains(Incompatible::DATA_FILE)
                .then(|| area.data_file_name().map(text).unwrap_or_default()),
            stored: Some(Stored::of(image, header)),
        }
    }
}

impl SourceFacts {
    /// Without the bitmaps that the new image gets.
    pub(crate) fn without(mut self, carried: &Carried) -> Self {
        let carried_or_broken: HashSet<String> = carried.names().collect();
        self.bitmaps.retain(|name| !carried_or_broken.contains(name));
        self.broken_bitmaps = carried.skipped().to_vec();
        self
    }

    /// Without a bitmap that is there for this copy.
    pub(crate) fn without_bitmap(mut self, name: &[u8]) -> Self {
        self.bitmaps.retain(|other| *other != String::from_utf8_lossy(name));
        self
    }
}

impl Stored {
    fn of(image: &Image, header: &Header) -> Self {
        Self {
            version: header.version,
            cluster_size: image.geometry().cluster_size(),
            refcount_bits: header.refcounts().bits(),
            extended_l2: image.geometry().extended_l2(),
            lazy_refcounts: header.compatible.contains(Compatible::LAZY_REFCOUNTS),
            compression_type: header.compression_type,
        }
    }
}

/// What an image with these options, which stands alone, does not get of the source. In the order of
/// [`Property`].
pub(crate) fn not_carried(source: &SourceFacts, target: &TargetOptions) -> Vec<NotCarried> {
    let mut found = Vec::new();
    let mut add = |property, source: String| found.push(NotCarried { property, source });
    if !source.snapshots.is_empty() {
        add(Property::InternalSnapshots, listed("internal snapshot", &source.snapshots));
    }
    if !source.bitmaps.is_empty() {
        add(Property::Bitmaps, listed("persistent bitmap", &source.bitmaps));
    }
    if !source.broken_bitmaps.is_empty() {
        let what = listed("broken persistent bitmap", &source.broken_bitmaps);
        add(Property::Bitmaps, what);
    }
    if source.unknown_extensions > 0 {
        let what = counted("unknown header extension", source.unknown_extensions);
        add(Property::UnknownExtensions, what);
    }
    if let Some(how) = source.encryption {
        add(Property::Encryption, format!("encryption ({how})"));
    }
    if let Some(name) = &source.backing {
        add(Property::BackingFile, format!("backing file '{name}'"));
    }
    let new = match target {
        TargetOptions::Qcow2(new) => Some(new),
        TargetOptions::Raw(_) => None,
    };
    if let Some(name) = &source.data_file
        && new.is_none_or(|new| new.data_file.is_none())
    {
        add(Property::DataFile, format!("data file '{name}'"));
    }
    // A raw image stores bytes and nothing else, as everybody knows who asks for one.
    if let (Some(old), Some(new)) = (&source.stored, new) {
        stored_otherwise(old, new, &mut add);
    }
    found
}

fn stored_otherwise(old: &Stored, new: &Qcow2Options, add: &mut impl FnMut(Property, String)) {
    if old.version != new.version {
        let compat = if old.version == Version::V2 { "0.10" } else { "1.1" };
        add(Property::Compat, format!("compat={compat}"));
    }
    if old.cluster_size != new.cluster_size {
        add(Property::ClusterSize, format!("cluster_size={}", old.cluster_size));
    }
    if old.refcount_bits != new.refcount_bits {
        add(Property::RefcountBits, format!("refcount_bits={}", old.refcount_bits));
    }
    let on = |on: bool| if on { "on" } else { "off" };
    if old.extended_l2 != new.extended_l2 {
        add(Property::ExtendedL2, format!("extended_l2={}", on(old.extended_l2)));
    }
    if old.lazy_refcounts != new.lazy_refcounts {
        add(Property::LazyRefcounts, format!("lazy_refcounts={}", on(old.lazy_refcounts)));
    }
    if old.compression_type != new.compression_type {
        let kind = old.compression_type.as_str();
        add(Property::CompressionType, format!("compression_type={kind}"));
    }
}

/// `2 internal snapshots ('a', 'b')`, with three names at most.
fn listed(what: &str, names: &[String]) -> String {
    let shown: Vec<_> = names.iter().take(3).map(|name| format!("'{name}'")).collect();
    let more = names.len().saturating_sub(shown.len());
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{} ({}{more})", counted(what, names.len()), shown.join(", "))
}

fn counted(what: &str, count: usize) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// What is lost with a copy whose other properties are those of what it is copied into.
pub(crate) fn losses(source: &SourceFacts) -> Vec<NotCarried> {
    let mut found = not_carried(source, &TargetOptions::default());
    found.retain(NotCarried::is_loss);
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::RawOptions;

    fn stored() -> Stored {
        let like = Qcow2Options::default();
        Stored {
            version: like.version,
            cluster_size: like.cluster_size,
            refcount_bits: like.refcount_bits,
            extended_l2: like.extended_l2,
            lazy_refcounts: like.lazy_refcounts,
            compression_type: like.compression_type,
        }
    }

    fn names(source: &SourceFacts, target: &TargetOptions) -> Vec<String> {
        not_carried(source, target).into_iter().map(|found| found.source).collect()
    }

    #[test]
    fn an_image_like_the_new_one_loses_nothing() {
        let source = SourceFacts { stored: Some(stored()), ..Default::default() };
        assert_eq!(not_carried(&source, &TargetOptions::default()), []);
        assert_eq!(not_carried(&SourceFacts::default(), &TargetOptions::default()), []);
    }

    #[test]
    fn each_property_that_differs_is_named() {
        let source = SourceFacts {
            snapshots: ["a", "b", "c", "d", "e"].map(str::to_owned).into(),
            bitmaps: vec!["backup".into()],
            broken_bitmaps: vec!["old".into()],
            unknown_extensions: 2,
            encryption: Some("LUKS"),
            backing: Some("base.qcow2".into()),
            data_file: Some("data.raw".into()),
            stored: Some(Stored {
                version: Version::V2,
                cluster_size: 4096,
                refcount_bits: 1,
                extended_l2: true,
                lazy_refcounts: true,
                compression_type: CompressionType::Zstd,
            }),
        };
        let content = [
            "5 internal snapshots ('a', 'b', 'c' and 2 more)",
            "1 persistent bitmap ('backup')",
            "1 broken persistent bitmap ('old')",
            "2 unknown header extensions",
            "encryption (LUKS)",
            "backing file 'base.qcow2'",
            "data file 'data.raw'",
        ];
        let format = [
            "compat=0.10",
            "cluster_size=4096",
            "refcount_bits=1",
            "extended_l2=on",
            "lazy_refcounts=on",
            "compression_type=zstd",
        ];
        let all = [content.as_slice(), &format].concat();
        assert_eq!(names(&source, &TargetOptions::default()), all);
        assert_eq!(names(&source, &TargetOptions::Raw(RawOptions::default())), content);
        let losses = not_carried(&source, &TargetOptions::default());
        let losses: Vec<_> = losses.iter().filter(|found| found.is_loss()).collect();
        assert_eq!(losses.len(), 5);
    }

    #[test]
    fn a_data_file_for_a_data_file_is_no_difference() {
        let data_file = Some("data".into());
        let target = TargetOptions::Qcow2(Qcow2Options { data_file, ..Default::default() });
        let source = SourceFacts {
            data_file: Some("old".into()),
            stored: Some(stored()),
            ..Default::default()
        };
        assert_eq!(not_carried(&source, &target), []);
    }
}
