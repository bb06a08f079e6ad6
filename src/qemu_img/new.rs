//! The options of new images: what may be asked for, how it is shown, and what it means to the engine.

use std::ffi::OsStr;
use std::path::PathBuf;

use qcow::chain::Format;
use qcow::format::{CompressionType, Version};
use qcow::ops::{Preallocation, Qcow2Options, RawOptions, TargetOptions};

use super::list::{Item, doubled, switch};
use super::number;
use super::say::Stop;

/// What a value looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Size,
    Number,
    Switch,
}

/// One option, with the value that is shown where none was given.
#[derive(Debug)]
struct Spec {
    name: &'static str,
    kind: Kind,
    default: Option<&'static str>,
    help: &'static str,
}

const fn spec(
    name: &'static str,
    kind: Kind,
    default: Option<&'static str>,
    help: &'static str,
) -> Spec {
    Spec { name, kind, default, help }
}

const SIZE: Spec = spec("size", Kind::Size, None, "Virtual size of the disk");
const NOCOW: Spec =
    spec("nocow", Kind::Switch, None, "No copy on write by the file system (accepted, not done)");
const HINT: Spec = spec(
    "extent_size_hint",
    Kind::Size,
    None,
    "Extent size for the file system (accepted, not done)",
);
const PREALLOCATION: Spec = spec(
    "preallocation",
    Kind::Text,
    None,
    "What gets its space at once: off, metadata (qcow2), falloc, full",
);

/// In the order in which `create` shows them.
const QCOW2: &[Spec] = &[
    spec("encryption", Kind::Switch, None, "Encrypt with AES, as of old (not available)"),
    spec("encrypt.format", Kind::Text, None, "Encrypt the data: luks or aes (not available)"),
    spec("encrypt.key-secret", Kind::Text, None, "Identifier of the secret that has the key"),
    spec("encrypt.cipher-alg", Kind::Text, None, "Cipher"),
    spec("encrypt.cipher-mode", Kind::Text, None, "Cipher mode"),
    spec("encrypt.ivgen-alg", Kind::Text, None, "Generator of initial vectors"),
    spec("encrypt.ivgen-hash-alg", Kind::Text, None, "The generator's hash"),
    spec("encrypt.hash-alg", Kind::Text, None, "Hash of the passphrase"),
    spec("encrypt.iter-time", Kind::Number, None, "Milliseconds to spend on the passphrase"),
    spec("cluster_size", Kind::Size, Some("65536"), "Cluster size, 512 to 2M"),
    spec("extended_l2", Kind::Switch, Some("off"), "32 subclusters in each cluster"),
    PREALLOCATION,
    spec("compression_type", Kind::Text, Some("zlib"), "How clusters are compressed: zlib or zstd"),
    SIZE,
    spec("compat", Kind::Text, None, "Version: 0.10 or v2, 1.1 or v3"),
    spec("backing_file", Kind::Text, None, "Backing file"),
    spec("backing_fmt", Kind::Text, None, "Format of the backing file"),
    spec("data_file", Kind::Text, None, "External data file"),
    spec("data_file_raw", Kind::Switch, None, "The data file alone is a raw image of the disk"),
    spec("lazy_refcounts", Kind::Switch, Some("off"), "Refcounts are updated late"),
    spec("refcount_bits", Kind::Number, Some("16"), "Width of a refcount in bits"),
    NOCOW,
    HINT,
];

const RAW: &[Spec] = &[SIZE, PREALLOCATION, NOCOW, HINT];

fn specs(format: Format) -> &'static [Spec] {
    match format {
        Format::Qcow2 => QCOW2,
        _ => RAW,
    }
}

/// What was asked for, by name.
#[derive(Debug)]
pub(super) struct NewImage {
    pub(super) format: Format,
    given: Vec<(&'static Spec, String)>,
}

impl NewImage {
    /// Reads options; of one that is given twice, the later counts.
    ///
    /// # Errors
    /// For options that the format does not have, and values of another kind.
    pub(super) fn parse(format: Format, items: &[Item]) -> Result<Self, Stop> {
        let mut new = Self { format, given: Vec::new() };
        items.iter().try_for_each(|item| new.add(item))?;
        Ok(new)
    }

    fn add(&mut self, item: &Item) -> Result<(), Stop> {
        let find = |name: &str| specs(self.format).iter().find(|spec| spec.name == name);
        let off = || find(item.key.strip_prefix("no")?).filter(|_| item.value.is_none());
        let unknown = || Stop::error(format!("Invalid parameter '{}'", item.key));
        let (spec, text) = match (find(&item.key), off()) {
            (Some(spec), _) => (spec, item.text()),
            (None, Some(spec)) => (spec, "off".to_owned()),
            (None, None) => return Err(unknown()),
        };
        self.set_checked(spec, text)
    }

    fn set_checked(&mut self, spec: &'static Spec, text: String) -> Result<(), Stop> {
        match spec.kind {
            Kind::Text => {}
            Kind::Switch => drop(switch(spec.name, &text)?),
            Kind::Size => drop(number::parameter(spec.name, &text)?),
            Kind::Number => drop(plain_number(spec.name, &text)?),
        }
        self.given.retain(|(other, _)| other.name != spec.name);
        self.given.push((spec, text));
        Ok(())
    }

    /// Gives an option that was stated another way. `false` if the format has none of this name.
    pub(super) fn set(&mut self, name: &str, text: impl Into<String>) -> bool {
        match specs(self.format).iter().find(|spec| spec.name == name) {
            Some(spec) => self.set_checked(spec, text.into()).is_ok(),
            None => false,
        }
    }

    /// Takes an option back.
    pub(super) fn unset(&mut self, name: &str) {
        self.given.retain(|(spec, _)| spec.name != name);
    }

    /// The text of an option, if it was given.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.given.iter().find(|(spec, _)| spec.name == name).map(|(_, text)| text.as_str())
    }

    /// A size that was given.
    pub(super) fn size(&self, name: &str) -> Option<u64> {
        number::parameter(name, self.get(name)?).ok()
    }

    /// A number that was given.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        plain_number(name, self.get(name)?).ok()
    }

    /// Whether an option whose name begins so was given.
    pub(super) fn given_any(&self, prefix: &str) -> bool {
        self.given.iter().any(|(spec, _)| spec.name.starts_with(prefix))
    }

    fn is_on(&self, name: &str) -> bool {
        self.get(name).is_some_and(|text| switch(name, text) == Ok(true))
    }

    /// The line that says what is made.
    pub(super) fn formatting_line(&self, file: &OsStr) -> String {
        let mut line =
            format!("Formatting '{}', fmt={}", super::say::shown(file), self.format.as_str());
        for spec in specs(self.format) {
            let given = self.get(spec.name);
            let Some(text) = given.or(spec.default) else { continue };
            let text = match (spec.kind, given) {
                (Kind::Text, _) => doubled(text),
                (Kind::Size, Some(_)) => {
                    number::parameter(spec.name, text).unwrap_or_default().to_string()
                }
                (Kind::Number, Some(_)) => {
                    plain_number(spec.name, text).unwrap_or_default().to_string()
                }
                _ => text.to_owned(),
            };
            line.push_str(&format!(" {}={text}", spec.name));
        }
        line
    }

    /// What the engine is to make. The caller has settled the size and the backing file.
    ///
    /// # Errors
    /// For options that do not go together, before anything is made.
    pub(super) fn target(&self) -> Result<TargetOptions, Stop> {
        match self.format {
            Format::Qcow2 => self.qcow2().map(TargetOptions::Qcow2),
            _ => self.raw().map(TargetOptions::Raw),
        }
    }

    fn raw(&self) -> Result<RawOptions, Stop> {
        let preallocation = self.preallocation()?;
        if preallocation == Preallocation::Metadata {
            return Err(Stop::error("Unsupported preallocation mode: metadata"));
        }
        Ok(RawOptions::default().preallocation(preallocation).first_block(true))
    }

    fn preallocation(&self) -> Result<Preallocation, Stop> {
        use Preallocation::{Falloc, Full, Metadata, Off};
        let Some(word) = self.get("preallocation") else { return Ok(Off) };
        [Off, Metadata, Falloc, Full]
            .into_iter()
            .find(|known| known.as_str() == word)
            .ok_or_else(|| not_accepted("preallocation", word))
    }

    fn qcow2(&self) -> Result<Qcow2Options, Stop> {
        let version = match self.get("compat").unwrap_or("1.1") {
            "0.10" | "v2" => Version::V2,
            "1.1" | "v3" => Version::V3,
            word => return Err(not_accepted("version", word)),
        };
        let preallocation = self.preallocation()?;
        let compression = match self.get("compression_type").unwrap_or("zlib") {
            "zlib" => CompressionType::Zlib,
            "zstd" => CompressionType::Zstd,
            word => return Err(not_accepted("compression-type", word)),
        };
        let bits = self.get("refcount_bits").map_or(Ok(16), |text| plain_number("", text))?;
        let options = Qcow2Options::default()
            .cluster_size(self.size("cluster_size").unwrap_or(65536))
            .version(version)
            .refcount_bits(u32::try_from(bits).unwrap_or(u32::MAX))
            .extended_l2(self.is_on("extended_l2"))
            .lazy_refcounts(self.is_on("lazy_refcounts"))
            .preallocation(preallocation)
            .compression_type(compression)
            .data_file(self.get("data_file").map(PathBuf::from))
            .data_file_raw(self.is_on("data_file_raw"));
        self.check(&options)?;
        Ok(options)
    }

    fn check(&self, options: &Qcow2Options) -> Result<(), Stop> {
        let refuse = |text: &str| Err(Stop::error(text));
        let old = options.version == Version::V2;
        let backed = self.get("backing_file").is_some();
        let cluster_size = options.cluster_size;
        if self.is_on("encryption")
            || self.given.iter().any(|(spec, _)| spec.name.starts_with("encrypt."))
        {
            return refuse("Encrypted images cannot be created: this program has no cipher");
        }
        if !cluster_size.is_power_of_two() || !(512..=2 << 20).contains(&cluster_size) {
            return refuse("Cluster size must be a power of two between 512 and 2048k");
        }
        if backed && options.preallocation != Preallocation::Off && !options.extended_l2 {
            return refuse(
                "Backing file and preallocation can only be used at the same time if extended_l2 is enabled",
            );
        }
        if options.extended_l2 {
            if cluster_size < 16384 {
                return refuse(
                    "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes",
                );
            }
            if old {
                return refuse(
                    "Extended L2 entries are only supported with compatibility level 1.1 and above (use version=v3 or greater)",
                );
            }
        }
        if old && options.lazy_refcounts {
            return refuse(
                "Lazy refcounts only supported with compatibility level 1.1 and above (use version=v3 or greater)",
            );
        }
        if !options.refcount_bits.is_power_of_two() || options.refcount_bits > 64 {
            return refuse("Refcount width must be a power of two and may not exceed 64 bits");
        }
        if old && options.refcount_bits != 16 {
            return refuse(
                "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)",
            );
        }
        if options.data_file_raw && options.data_file.is_none() {
            return refuse("data-file-raw requires data-file");
        }
        if options.data_file_raw && backed {
            return refuse("Backing file and data-file-raw cannot be used at the same time");
        }
        if old && options.data_file.is_some() {
            return refuse(
                "External data files are only supported with compatibility level 1.1 and above (use version=v3 or greater)",
            );
        }
        if old && options.compression_type != CompressionType::Zlib {
            return refuse(
                "Non-zlib compression type is only supported with compatibility level 1.1 and above (use version=v3 or greater)",
            );
        }
        Ok(())
    }
}

fn not_accepted(name: &str, word: &str) -> Stop {
    Stop::error(format!("Parameter '{name}' does not accept value '{word}'"))
}

fn plain_number(name: &str, text: &str) -> Result<u64, Stop> {
    let digits = text.trim_ascii_start();
    let digits = digits.strip_prefix('+').unwrap_or(digits);
    let number = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        // One below zero counts from the other end, as C has it.
        None => digits.parse().ok().or_else(|| digits.parse::<i64>().ok().map(i64::cast_unsigned)),
    };
    number.ok_or_else(|| Stop::error(format!("Parameter '{name}' expects a number")))
}

/// What `-o help` prints of a new image; `named` if there is a file name, whose file system has options
/// too.
pub(super) fn help(format: Format, named: bool) -> String {
    let protocol = |spec: &Spec| matches!(spec.name, "nocow" | "extent_size_hint");
    let mut listed: Vec<_> = specs(format)
        .iter()
        .filter(|spec| named || !protocol(spec))
        .filter(|spec| named || format != Format::Raw || spec.name == "size")
        .collect();
    listed.sort_by_key(|spec| spec.name);
    let mut text = if named {
        "Supported options:\n".to_owned()
    } else {
        format!("Supported {format} options:\n")
    };
    for spec in listed {
        text.push_str(&help_line(spec));
    }
    if !named {
        text.push_str(
            "\nThe protocol level may support further options.\nSpecify the target filename to include those options.\n",
        );
    }
    text
}

fn help_line(spec: &Spec) -> String {
    let value = match spec.kind {
        Kind::Text => "<str>",
        Kind::Size => "<size>",
        Kind::Number => "<num>",
        Kind::Switch => "<bool (on/off)>",
    };
    format!("  {:<22} - {}\n", format!("{}={value}", spec.name), spec.help)
}

/// What `amend -o help` prints.
pub(super) fn amend_help() -> String {
    const NAMES: [&str; 6] =
        ["compat", "data_file", "data_file_raw", "lazy_refcounts", "refcount_bits", "size"];
    let listed = NAMES.iter().filter_map(|name| QCOW2.iter().find(|spec| spec.name == *name));
    let lines: String = listed.map(help_line).collect();
    format!("Amend options for 'qcow2':\n{lines}")
}

/// The format of a new image.
///
/// # Errors
/// For a name that is not known.
pub(super) fn format(name: &str) -> Result<Format, Stop> {
    name.parse().map_err(|_| Stop::error(format!("Unknown file format '{name}'")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu_img::list;

    fn new(format: Format, list: &str) -> Result<NewImage, Stop> {
        NewImage::parse(format, &list::split(list.as_bytes()))
    }

    #[test]
    fn the_formatting_line_shows_defaults_and_words_as_they_were_given() {
        let mut made =
            new(Format::Qcow2, "lazy_refcounts=true,cluster_size=4k,backing_file=a,,b").unwrap();
        assert!(made.set("size", "1048576"));
        assert_eq!(
            made.formatting_line(OsStr::new("f")),
            "Formatting 'f', fmt=qcow2 cluster_size=4096 extended_l2=off compression_type=zlib size=1048576 \
             backing_file=a,,b lazy_refcounts=true refcount_bits=16"
        );
    }

    #[test]
    fn a_key_alone_is_on_and_no_in_front_is_off() {
        let target = |list| new(Format::Qcow2, list).unwrap().qcow2().unwrap();
        assert!(target("lazy_refcounts").lazy_refcounts);
        assert!(!target("lazy_refcounts,nolazy_refcounts").lazy_refcounts);
    }

    #[test]
    fn what_does_not_go_together_is_refused_in_qemu_imgs_words() {
        let said =
            |list| new(Format::Qcow2, list).and_then(|new| new.target()).unwrap_err().lines();
        assert_eq!(said("foo=1"), ["Invalid parameter 'foo'"]);
        assert_eq!(said("lazy_refcounts=ON"), ["Parameter 'lazy_refcounts' expects 'on' or 'off'"]);
        assert_eq!(said("compat=9"), ["Parameter 'version' does not accept value '9'"]);
        assert_eq!(said("data_file_raw"), ["data-file-raw requires data-file"]);
        let size = said("cluster_size=x").remove(0);
        assert_eq!(size, "Parameter 'cluster_size' expects a non-negative number below 2^64");
    }
}
