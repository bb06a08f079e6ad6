//! What is wrong, or worth knowing, in a graph of images. Pure.

mod chains;
mod images;
mod named;
mod users;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::graph::Graph;
use super::value::{Holder, Image, Key, Survey, lossy};
use crate::setters::setters;
use crate::{Remedy, Reword};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// A guest has lost data or will not start, or is about to.
    Error,
    /// It may be wrong, or goes wrong with the next careless step.
    Warning,
    /// Good to know.
    Info,
}

impl Severity {
    /// A stable word for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
        }
    }
}

/// The kinds of findings, each with a word that stays.
macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident $word:literal;)*) => {
        /// What is wrong. The words are stable.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[non_exhaustive]
        pub enum Code {
            $($(#[$doc])* #[serde(rename = $word)] $variant,)*
        }

        impl Code {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its word.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }
        }
    };
}

codes! {
    /// A backing file is missing.
    BaseMissing "base-missing";
    /// A backing file exists and cannot be used.
    BaseUnusable "base-unusable";
    /// The file of the base was made after the overlay.
    BaseReplaced "base-replaced";
    /// The base was changed after its overlay was made.
    BaseModified "base-modified";
    /// A manifest proves that a base's content is another.
    BaseDifferent "base-different";
    /// Under another of its names the image has another backing file, or none.
    BaseByName "base-by-name";
    /// A backing file is no local file, so it was not examined.
    BaseNotFollowed "base-not-followed";
    /// A recorded format is not what the file is.
    FormatWrong "format-wrong";
    /// The base's format is not recorded.
    FormatUnrecorded "format-unrecorded";
    /// A running process holds open what has no name any more.
    DeletedOpen "deleted-open";
    /// Nothing uses it.
    BaseUnused "base-unused";
    /// The chain has too many images.
    ChainDeep "chain-deep";
    /// Backing files form a loop.
    Loop "loop";
    /// libvirt names a domain's chain in the XML for another host, where a backing file may be missing.
    ChainNamed "chain-named";
    /// A domain's XML and the headers tell different chains.
    ChainsDisagree "chains-disagree";
    /// The mode of a backing file allows writing.
    BaseWritable "base-writable";
    /// A domain writes to a backing file of others.
    BaseWritten "base-written";
    /// Two domains write to one image.
    TwoWriters "two-writers";
    /// A domain's disk is not there.
    DiskMissing "disk-missing";
    /// A process has the image open for writing.
    Locked "locked";
    /// The image is marked as corrupt.
    Corrupt "corrupt";
    /// The image was not closed properly.
    Dirty "dirty";
    /// The file ends before what its refcounts count as used.
    Truncated "truncated";
    /// The header cannot be understood.
    HeaderBroken "header-broken";
    /// It could not be looked at.
    Unreadable "unreadable";
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is.
    pub code: Code,
    /// The other host that it is on; absent for this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The image, or the directory that could not be read.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// What was found, in words. Names in it are as they are: a program that shows it escapes them.
    pub what: String,
    /// What can be done about it.
    pub way_out: Remedy,
}

impl Reword for Finding {
    fn reword(&mut self, words: &dyn Fn(&Remedy) -> Option<String>) {
        self.way_out.reword(words);
    }
}

/// What is taken for worth reporting.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Options {
    /// Chains of more images than this are reported.
    pub deep: usize,
}

setters!(Options { deep: usize } into {});

impl Default for Options {
    fn default() -> Self {
        Self { deep: 16 }
    }
}

/// Everything that is wrong, or worth knowing: the worst first, then by code and path.
pub fn findings(survey: &Survey, graph: &Graph<'_>, options: &Options) -> Vec<Finding> {
    let context = Context::new(survey, graph);
    let mut found = Vec::new();
    let depths = graph.depths();
    for (at, image) in graph.images().iter().enumerate() {
        let mut of_image = Report { found: &mut found, image };
        images::look(&context, at, &mut of_image);
        chains::look(&context, at, &mut of_image);
        users::look(&context, at, &mut of_image);
        let depth = depths.get(at).copied().unwrap_or(0);
        // Once for each chain: at its top.
        if depth > options.deep && graph.above(at).is_empty() {
            of_image.add(
                Severity::Warning,
                Code::ChainDeep,
                format!("its chain has {depth} images, more than {}", options.deep),
                Remedy::ShortenChain,
            );
        }
    }
    chains::circles(&context, &mut found);
    for domain in &survey.domains {
        users::domain(&context, domain, &mut found);
        named::domain(&context, domain, &mut found);
    }
    for unseen in &survey.unseen {
        found.push(Finding {
            severity: if unseen.asked { Severity::Error } else { Severity::Warning },
            code: Code::Unreadable,
            host: unseen.host.clone(),
            path: unseen.path.clone(),
            what: unseen.why.clone(),
            way_out: "run as a user who can read it; its content is not in this report".into(),
        });
    }
    found.sort();
    found.dedup();
    found
}

/// What all rules look things up in.
struct Context<'a> {
    survey: &'a Survey,
    graph: &'a Graph<'a>,
    /// By image: the domains and their disks whose own source it is.
    disks: HashMap<&'a Key, Vec<Used<'a>>>,
    /// Images that a domain names below one of its disks.
    named_below: HashSet<&'a Key>,
    holders: HashMap<&'a Key, Vec<&'a Holder>>,
    /// Images that were deleted and are held open, by the names they had.
    deleted: HashMap<&'a Path, Vec<&'a Image>>,
}

/// A domain's use of an image as its disk.
#[derive(Clone, Copy)]
struct Used<'a> {
    domain: &'a super::value::Domain,
    disk: &'a super::value::Disk,
}

impl<'a> Context<'a> {
    fn new(survey: &'a Survey, graph: &'a Graph<'a>) -> Self {
        let mut disks: HashMap<_, Vec<_>> = HashMap::new();
        let mut named_below = HashSet::new();
        for domain in &survey.domains {
            for disk in &domain.disks {
                if let Some(top) = disk.layers.first() {
                    disks.entry(&top.key).or_default().push(Used { domain, disk });
                }
                named_below.extend(disk.layers.iter().skip(1).map(|layer| &layer.key));
            }
        }
        let mut holders: HashMap<_, Vec<_>> = HashMap::new();
        for holder in &survey.holders {
            holders.entry(&holder.key).or_default().push(holder);
        }
        let mut deleted: HashMap<_, Vec<_>> = HashMap::new();
        for image in &survey.images {
            if matches!(image.presence, super::value::Presence::Deleted { .. }) {
                for name in &image.names {
                    deleted.entry(name.path.as_path()).or_default().push(image);
                }
            }
        }
        Self { survey, graph, disks, named_below, holders, deleted }
    }

    fn image(&self, key: &Key) -> Option<&'a Image> {
        self.graph.find(key).and_then(|at| self.graph.image(at))
    }

    fn disks(&self, key: &Key) -> &[Used<'a>] {
        self.disks.get(key).map_or(&[], Vec::as_slice)
    }

    /// Who has the image open, in words.
    fn held(&self, key: &Key) -> Option<String> {
        let holders = self.holders.get(key)?;
        let words: Vec<_> = holders
            .iter()
            .take(3)
            .map(|h| format!("process {} ({})", h.process, h.program))
            .collect();
        let more = holders.len().saturating_sub(words.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        Some(format!("{}{more}", words.join(", ")))
    }
}

/// Takes the findings about one image.
struct Report<'a> {
    found: &'a mut Vec<Finding>,
    image: &'a Image,
}

impl Report<'_> {
    fn add(
        &mut self,
        severity: Severity,
        code: Code,
        what: impl Into<String>,
        way_out: impl Into<Remedy>,
    ) {
        self.found.push(Finding {
            severity,
            code,
            host: self.image.key.host().map(str::to_owned),
            path: self.image.path().to_path_buf(),
            what: what.into(),
            way_out: way_out.into(),
        });
    }
}

/// The beginning of a clause about images that depend on another.
fn depending(images: usize) -> String {
    match images {
        1 => "1 image depends".to_owned(),
        images => format!("{images} images depend"),
    }
}

/// A name in a sentence.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display())
}
