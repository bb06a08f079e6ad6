//! The options that a new image can have.

use qcow::chain::Format;
use qcow::{Error, Result};

/// An option of a new image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    /// `cluster_size`
    ClusterSize,
    /// `extended_l2`
    ExtendedL2,
    /// `preallocation`
    Preallocation,
    /// `compression_type`
    CompressionType,
    /// `size`
    Size,
    /// `compat`
    Compat,
    /// `backing_file`
    BackingFile,
    /// `backing_fmt`
    BackingFormat,
    /// `data_file`
    DataFile,
    /// `data_file_raw`
    DataFileRaw,
    /// `lazy_refcounts`
    LazyRefcounts,
    /// `refcount_bits`
    RefcountBits,
    /// `nocow`
    Nocow,
    /// `extent_size_hint`
    ExtentSizeHint,
}

/// What a value looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Any text.
    Text,
    /// A size with an optional suffix.
    Size,
    /// A whole number.
    Number,
    /// On or off.
    Switch,
}

/// One option: its name, what it takes, and what it does.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Spec {
    /// Which one.
    pub(crate) key: Key,
    /// The name in an option string.
    pub(crate) name: &'static str,
    /// What its value looks like.
    pub(crate) kind: Kind,
    help: &'static str,
}

/// What the new image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// An empty image: every option.
    Create,
    /// A copy of what another image holds: its size is given, and it stands alone.
    Flatten,
    /// An image that is there.
    Amend,
}

const fn spec(key: Key, name: &'static str, kind: Kind, help: &'static str) -> Spec {
    Spec { key, name, kind, help }
}

const PREALLOCATION: Spec = spec(
    Key::Preallocation,
    "preallocation",
    Kind::Text,
    "Preallocation mode: off, metadata (qcow2 only), falloc or full",
);
const SIZE: Spec = spec(Key::Size, "size", Kind::Size, "Virtual size");
const NOCOW: Spec = spec(Key::Nocow, "nocow", Kind::Switch, "Only off is supported");
const EXTENT_SIZE_HINT: Spec =
    spec(Key::ExtentSizeHint, "extent_size_hint", Kind::Size, "Only 0 is supported");

/// The options of a format, in the order in which `qemu-img` shows them when it creates an image.
const QCOW2: &[Spec] = &[
    spec(Key::ClusterSize, "cluster_size", Kind::Size, "Cluster size, 512 to 2M"),
    spec(Key::ExtendedL2, "extended_l2", Kind::Switch, "32 subclusters in each cluster"),
    PREALLOCATION,
    spec(Key::CompressionType, "compression_type", Kind::Text, "Compression type: zlib or zstd"),
    SIZE,
    spec(Key::Compat, "compat", Kind::Text, "Version: 0.10 or v2, 1.1 or v3"),
    spec(Key::BackingFile, "backing_file", Kind::Text, "Backing file; as -b"),
    spec(Key::BackingFormat, "backing_fmt", Kind::Text, "Its format, qcow2 or raw; as -F"),
    spec(Key::DataFile, "data_file", Kind::Text, "External data file"),
    spec(
        Key::DataFileRaw,
        "data_file_raw",
        Kind::Switch,
        "Keep the external data file valid as a raw image",
    ),
    spec(
        Key::LazyRefcounts,
        "lazy_refcounts",
        Kind::Switch,
        "Postpone refcount updates (lazy refcounts)",
    ),
    spec(Key::RefcountBits, "refcount_bits", Kind::Number, "Refcount width: 1 to 64 bits"),
    NOCOW,
    EXTENT_SIZE_HINT,
];

const RAW: &[Spec] = &[SIZE, NOCOW, PREALLOCATION, EXTENT_SIZE_HINT];

/// The options of `format`, in the order in which they are shown.
pub(crate) fn specs(format: Format) -> &'static [Spec] {
    match format {
        Format::Qcow2 => QCOW2,
        Format::Raw => RAW,
        // None of another can be made.
        _ => &[],
    }
}

/// Finds an option by its name.
///
/// # Errors
/// Says why the option cannot be had, or which one may be meant.
pub(crate) fn find(format: Format, purpose: Purpose, name: &str) -> Result<&'static Spec> {
    if name == "encryption" || name.starts_with("encrypt.") {
        return Err(Error::unsupported(format!(
            "option '{name}': encrypted images are not written"
        ))
        .hint("encrypt inside the guest, or the file system that holds the image"));
    }
    let spec = specs(format)
        .iter()
        .find(|spec| spec.name == name)
        .ok_or_else(|| unknown(format, purpose, name))?;
    match (purpose, spec.key) {
        (Purpose::Flatten, Key::Size) => {
            Err(Error::usage("option 'size': a flattened image has the size of its source"))
        }
        (Purpose::Flatten, Key::BackingFile | Key::BackingFormat) => {
            Err(Error::usage(format!("option '{name}': a flattened image has no backing file")))
        }
        (Purpose::Amend, key) if !can_be_amended(key) => {
            let error = Error::usage(format!("option '{name}': only a new image can have another"));
            Err(match key {
                Key::BackingFile | Key::BackingFormat => {
                    Error::usage(format!("option '{name}': the backing file is not amended"))
                }
                _ => error.hint("`qcowtool flatten -o OPTIONS` writes a new image"),
            })
        }
        _ => Ok(spec),
    }
}

/// Whether it can be changed of an image that is there.
fn can_be_amended(key: Key) -> bool {
    matches!(
        key,
        Key::Compat | Key::DataFile | Key::DataFileRaw | Key::LazyRefcounts | Key::RefcountBits
    )
}

fn unknown(format: Format, purpose: Purpose, name: &str) -> Error {
    let error = Error::usage(format!("{format} images have no option '{name}'"));
    if format == Format::Raw && QCOW2.iter().any(|spec| spec.name == name) {
        return error.hint("it belongs to qcow2");
    }
    match nearest(format, purpose, name) {
        Some(near) => error.hint(format!("did you mean '{near}'? '-o help' lists them all")),
        None => error.hint("'-o help' lists them all"),
    }
}

/// The option whose name takes the fewest keystrokes to reach, if that is less than half of it.
fn nearest(format: Format, purpose: Purpose, name: &str) -> Option<&'static str> {
    offered(format, purpose)
        .map(|spec| (strsim::damerau_levenshtein(spec.name, name), spec.name))
        .min()
        .filter(|(distance, near)| distance.saturating_mul(2) < near.len())
        .map(|(_, near)| near)
}

fn offered(format: Format, purpose: Purpose) -> impl Iterator<Item = &'static Spec> {
    let belongs = move |spec: &&Spec| {
        let of_create = matches!(spec.key, Key::Size | Key::BackingFile | Key::BackingFormat);
        match purpose {
            Purpose::Create => true,
            Purpose::Flatten => !of_create,
            Purpose::Amend => can_be_amended(spec.key),
        }
    };
    specs(format).iter().filter(belongs)
}

/// What `-o help` prints.
pub(crate) fn help(format: Format, purpose: Purpose) -> String {
    let mut specs: Vec<_> = offered(format, purpose).collect();
    specs.sort_by_key(|spec| spec.name);
    let lines = specs.iter().map(|spec| {
        let value = match spec.kind {
            Kind::Text => "<str>",
            Kind::Size => "<size>",
            Kind::Number => "<num>",
            Kind::Switch => "<bool (on/off)>",
        };
        format!("  {:<22} - {}\n", format!("{}={value}", spec.name), spec.help)
    });
    format!("Supported {format} options:\n{}", lines.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(format: Format, purpose: Purpose, name: &str) -> String {
        find(format, purpose, name).unwrap_err().to_string()
    }

    #[test]
    fn an_unknown_option_is_named_with_the_nearest_one() {
        let text = refusal(Format::Qcow2, Purpose::Create, "cluster-size");
        assert!(text.contains("'cluster-size'") && text.contains("'cluster_size'"), "{text}");
        let text = refusal(Format::Qcow2, Purpose::Create, "nolazy_refcounts");
        assert!(text.contains("'lazy_refcounts'"), "{text}");
        let text = refusal(Format::Qcow2, Purpose::Create, "zzzz");
        assert!(!text.contains("did you mean"), "{text}");
    }

    #[test]
    fn raw_images_have_no_qcow2_options() {
        assert!(refusal(Format::Raw, Purpose::Create, "compat").contains("belongs to qcow2"));
    }

    #[test]
    fn encryption_is_refused_with_the_reason() {
        for name in ["encryption", "encrypt.format", "encrypt.key-secret"] {
            let error = find(Format::Qcow2, Purpose::Create, name).unwrap_err();
            assert_eq!(error.kind(), qcow::ErrorKind::Unsupported);
            assert!(error.to_string().contains("encrypted images are not written"), "{error}");
        }
    }

    #[test]
    fn a_flattened_image_takes_neither_size_nor_backing_file() {
        for name in ["size", "backing_file", "backing_fmt"] {
            assert!(find(Format::Qcow2, Purpose::Create, name).is_ok());
            assert!(find(Format::Qcow2, Purpose::Flatten, name).is_err());
            assert!(!help(Format::Qcow2, Purpose::Flatten).contains(&format!("  {name}=")));
        }
    }

    #[test]
    fn help_lists_every_option_of_the_format() {
        let text = help(Format::Qcow2, Purpose::Create);
        for spec in QCOW2 {
            assert!(text.contains(&format!("\n  {}=", spec.name)), "{}", spec.name);
        }
        assert!(!help(Format::Raw, Purpose::Create).contains("cluster_size"));
    }
}
