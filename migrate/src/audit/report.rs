//! A survey as a value to print: images, findings and space. Pure. Sizes are in bytes.

use std::collections::HashMap;
use std::path::PathBuf;

use serde::Serialize;

use super::findings::{Code, Finding, Options, Severity, findings};
use super::graph::Graph;
use super::value::{Content, Holder, Image, Key, Need, Presence, Survey, lossy};
use crate::{Remedy, Reword};

/// All that an audit says.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    /// Figures.
    pub summary: Summary,
    /// What is wrong or worth knowing, the worst first.
    pub findings: Vec<Finding>,
    /// Backing files, by path.
    pub bases: Vec<Base>,
    /// The images, by path.
    pub images: Vec<ImageReport>,
}

impl Reword for Report {
    fn reword(&mut self, words: &dyn Fn(&Remedy) -> Option<String>) {
        self.findings.reword(words);
    }
}

/// The audit in figures.
#[derive(Debug, Clone, Copy, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Summary {
    /// Images that were found.
    pub images: u64,
    /// Those of them that have a backing file.
    pub overlays: u64,
    /// Those that are backing files.
    pub bases: u64,
    /// Domains of all hosts that were asked.
    pub domains: u64,
    /// Directories that were read.
    pub directories: u64,
    /// Files that were looked at and are no images.
    pub other_files: u64,
    /// Images of the deepest chain.
    pub deepest: u64,
    /// Allocated for all images.
    pub allocated: u64,
    /// What bases save: see [`Base::shared`].
    pub shared: u64,
    /// Findings of severity error.
    pub errors: u64,
    /// Of severity warning.
    pub warnings: u64,
    /// Of severity info.
    pub infos: u64,
}

/// A backing file.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Base {
    /// The other host that it is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Its path.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// Images that stand directly on it.
    pub overlays: u64,
    /// Active layers that depend on it.
    pub users: u64,
    /// Allocated for it.
    pub allocated: u64,
    /// What it saves: its allocated bytes, once for each user but one.
    pub shared: u64,
}

/// An image.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageReport {
    /// The other host that it is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The name that it is called by.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// Its other names that were met.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub other_names: Vec<String>,
    /// `here`, `deleted`, `missing`, `unusable` or `elsewhere`.
    pub presence: &'static str,
    /// `qcow2`, `vmdk` or `raw` by the first bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<&'static str>,
    /// Size of its disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_size: Option<u64>,
    /// Allocated for it.
    pub allocated: u64,
    /// Its backing file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bases: Vec<String>,
    /// Its external data file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_file: Option<String>,
    /// The files that a VMDK descriptor has its data in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub extents: Vec<String>,
    /// Images of its chain, itself included; absent if the chain has no end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<usize>,
    /// Additional bytes that it would take, at most, if it were flattened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flattening: Option<u64>,
    /// The domains whose disk it is.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<String>,
    /// The processes that have it open.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub holders: Vec<HolderReport>,
    /// What others say that they do with it, by QEMU's locks: `read`, `write`, `resize`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub locks: Vec<&'static str>,
}

/// A process that has an image open.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct HolderReport {
    /// Its number.
    pub process: u32,
    /// Its program, and the guest.
    pub program: String,
    /// It may write.
    pub writes: bool,
}

/// Makes the report of a survey.
pub fn report(survey: &Survey, options: &Options) -> Report {
    let graph = Graph::new(survey);
    let findings = findings(survey, &graph, options);
    let (depths, tops) = (graph.depths(), graph.tops());
    let chain_bytes = graph.chain_bytes();
    let mut domains: HashMap<&Key, Vec<String>> = HashMap::new();
    for domain in &survey.domains {
        for disk in &domain.disks {
            if let Some(top) = disk.layers.first() {
                let names = domains.entry(&top.key).or_default();
                if !names.contains(&domain.name) {
                    names.push(domain.name.clone());
                }
            }
        }
    }
    let mut holders: HashMap<&Key, Vec<&Holder>> = HashMap::new();
    for holder in &survey.holders {
        holders.entry(&holder.key).or_default().push(holder);
    }
    let mut images = Vec::new();
    let mut bases = Vec::new();
    for (at, image) in survey.images.iter().enumerate() {
        let overlays = graph.above(at).len() as u64;
        if overlays > 0 {
            let users = tops.get(at).copied().unwrap_or(0);
            let allocated = image.status.allocated;
            bases.push(Base {
                host: image.key.host().map(str::to_owned),
                path: image.path().to_path_buf(),
                overlays,
                users,
                allocated,
                shared: allocated.saturating_mul(users.saturating_sub(1)),
            });
        }
        images.push(ImageReport {
            domains: domains.remove(&image.key).unwrap_or_default(),
            holders: holders
                .get(&image.key)
                .into_iter()
                .flatten()
                .copied()
                .map(Into::into)
                .collect(),
            depth: depths.get(at).copied().filter(|depth| *depth > 0),
            flattening: flattening(image, chain_bytes.get(at).copied().unwrap_or(0)),
            ..of_image(image)
        });
    }
    let deepest = depths.iter().max().copied().unwrap_or(0) as u64;
    let summary = summary(survey, &images, &bases, &findings, deepest);
    Report { summary, findings, bases, images }
}

/// A flattened image has what its chain has, and never more than its disk.
fn flattening(image: &Image, chain_bytes: u64) -> Option<u64> {
    let header = image.header.as_ref()?;
    let stands = image.links.iter().any(|link| link.need == Need::Backing);
    let whole = chain_bytes.min(header.virtual_size.max(image.status.allocated));
    (stands && chain_bytes > 0).then(|| whole.saturating_sub(image.status.allocated))
}

impl From<&Holder> for HolderReport {
    fn from(holder: &Holder) -> Self {
        Self { process: holder.process, program: holder.program.clone(), writes: holder.writes }
    }
}

fn of_image(image: &Image) -> ImageReport {
    let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
    let named = |need: Need| {
        let mut names: Vec<String> = Vec::new();
        for link in image.links.iter().filter(|link| link.need == need) {
            let name = text(&link.name);
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    };
    let mut bases = named(Need::Backing);
    bases.extend(named(Need::LoopDevice));
    bases.extend(image.not_followed.iter().map(|(name, _)| text(name)));
    ImageReport {
        host: image.key.host().map(str::to_owned),
        path: image.path().to_path_buf(),
        other_names: image.names.iter().skip(1).map(|name| text(&name.path)).collect(),
        presence: match image.presence {
            Presence::Here => "here",
            Presence::Deleted { .. } => "deleted",
            Presence::Missing => "missing",
            Presence::Unusable { .. } => "unusable",
            Presence::Elsewhere => "elsewhere",
        },
        format: match image.content {
            Content::Qcow2 => Some("qcow2"),
            Content::Vmdk => Some("vmdk"),
            Content::Raw => Some("raw"),
            Content::Other(_) | Content::Unknown => None,
        },
        virtual_size: image.header.as_ref().map(|header| header.virtual_size),
        allocated: image.status.allocated,
        bases,
        data_file: named(Need::Data).into_iter().next(),
        extents: named(Need::Extent),
        depth: None,
        flattening: None,
        domains: Vec::new(),
        holders: Vec::new(),
        locks: image.locks.clone(),
    }
}

fn summary(
    survey: &Survey,
    images: &[ImageReport],
    bases: &[Base],
    findings: &[Finding],
    deepest: u64,
) -> Summary {
    let count =
        |severity| findings.iter().filter(|finding| finding.severity == severity).count() as u64;
    let there = || images.iter().filter(|image| !matches!(image.presence, "missing" | "unusable"));
    let sum = |of: &mut dyn Iterator<Item = u64>| of.fold(0_u64, u64::saturating_add);
    Summary {
        images: there().count() as u64,
        overlays: there().filter(|image| !image.bases.is_empty()).count() as u64,
        bases: bases.len() as u64,
        domains: survey.domains.len() as u64,
        directories: survey.directories,
        other_files: survey.other_files,
        deepest,
        allocated: sum(&mut images.iter().map(|image| image.allocated)),
        shared: sum(&mut bases.iter().map(|base| base.shared)),
        errors: count(Severity::Error),
        warnings: count(Severity::Warning),
        infos: count(Severity::Info),
    }
}

impl Report {
    /// How many findings there are of a code and a severity.
    pub fn count(&self, code: Code, severity: Severity) -> usize {
        let of = |finding: &&Finding| finding.code == code && finding.severity == severity;
        self.findings.iter().filter(of).count()
    }
}
