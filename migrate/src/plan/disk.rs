//! One disk with all that judging it takes, and what can be decided about it.

use std::path::{Path, PathBuf};

use super::base_copies::BaseCopyNames;
use super::policy::{Policy, Style};
use super::value::{BasePlan, Mode, Row};
use super::{directories, domain_rules};
use crate::Remedy;
use crate::facts::{ChainFacts, DiskFacts, Facts, LayerFacts, Source, TargetFacts};

/// What is done to a disk.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It is not moved, and neither is anything else.
    Refuse { message: String, way_out: Remedy },
    /// Nothing is done.
    Skip { why: String },
    /// The drive is emptied.
    Eject { why: String },
    /// The read-only medium is copied.
    CopyMedium { why: String, from: PathBuf, to: PathBuf },
    /// The migration, or we, fill an image.
    Copy(Copy),
}

/// How an image at the destination is filled.
#[derive(Debug, Default)]
pub(super) struct Copy {
    /// The row, where one judge stands for several.
    pub(super) row: Option<Row>,
    /// The row in words.
    pub(super) why: String,
    /// The backing file of the new image; `None` for none.
    pub(super) base: Option<BasePlan>,
    /// Why only a copy of the whole disk is right.
    pub(super) whole: Option<String>,
    /// An overlay was wanted, and this is why it cannot be.
    pub(super) not_thin: Option<String>,
    /// What is there already is filled.
    pub(super) adopt: bool,
}

/// A disk with all that judging it takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Disk<'a> {
    pub(super) facts: &'a Facts,
    pub(super) disk: &'a DiskFacts,
    pub(super) policy: &'a Policy,
    /// Why no disk of the guest may be an overlay, once that turned out.
    pub(super) alone_because: Option<&'a str>,
    /// Names for base copies.
    pub(super) base_copies: &'a BaseCopyNames,
}

impl<'a> Disk<'a> {
    pub(super) fn style(&self) -> Style {
        self.policy.style
    }

    pub(super) fn mode(&self) -> Mode {
        domain_rules::mode(self.facts.domain.state)
    }

    pub(super) fn live(&self) -> bool {
        self.mode() == Mode::Live
    }

    pub(super) fn chain(&self) -> Option<&'a ChainFacts> {
        self.disk.chain.as_ref()
    }

    pub(super) fn layers(&self) -> &'a [LayerFacts] {
        self.chain().map_or(&[], |chain| &chain.layers)
    }

    pub(super) fn top(&self) -> Option<&'a LayerFacts> {
        self.layers().first()
    }

    /// The layers below the active one, the uppermost first.
    pub(super) fn below(&self) -> &'a [LayerFacts] {
        self.layers().get(1..).unwrap_or_default()
    }

    pub(super) fn destination(&self) -> Option<&'a TargetFacts> {
        self.disk.destination.as_ref()
    }

    /// Why nothing can be made at its place, and the way out.
    pub(super) fn obstacle(&self) -> Option<(String, Remedy)> {
        let place = self.destination()?;
        directories::obstacle(self.facts, self.policy, &place.path, place.unusable.as_ref())
    }

    /// The guest's size of the disk: what the hypervisor reports, or else the header; in whole sectors,
    /// because the hypervisor knows no others.
    pub(super) fn size(&self) -> u64 {
        let header = self.top().map_or(0, |top| top.virtual_size);
        let size = match self.disk.live_capacity {
            Some(capacity) if self.live() => capacity,
            _ => header,
        };
        qcow::format::whole_sectors(size)
    }
}

/// The path of a source that has one.
pub(super) fn source_path(source: &Source) -> Option<&Path> {
    match source {
        Source::File { path } | Source::Block { path } => Some(path),
        Source::Volume { path, .. } => path.as_deref(),
        Source::None | Source::Network { .. } | Source::Other { .. } => None,
    }
}

/// The name of the first layer that is gone but for the hypervisor, which holds it open.
pub(super) fn gone(disk: &Disk<'_>) -> Option<String> {
    let chain = disk.chain()?;
    if let Some(layer) = chain.layers.iter().find(|layer| layer.deleted) {
        return Some(layer.path.display().to_string());
    }
    chain.missing.as_ref().map(|missing| missing.path.display().to_string())
}

/// Where the XML's chain departs from the headers', in words.
pub(super) fn chain_difference(disk: &Disk<'_>) -> Option<String> {
    let named = &disk.disk.live_chain;
    let layers = disk.layers();
    for (named, layer) in named.layers.iter().zip(layers) {
        if named.path != layer.path {
            return Some(format!(
                "'{}' in the XML is '{}' in a header",
                named.path.display(),
                layer.path.display()
            ));
        }
        if named.format.as_deref().is_some_and(|format| format != layer.format.as_str()) {
            return Some(format!("they give '{}' different formats", layer.path.display()));
        }
    }
    let longer = named.layers.len() > layers.len();
    let shorter = named.terminated && named.layers.len() < layers.len();
    (longer || shorter).then(|| {
        format!("{} layers in the XML, {} in the headers", named.layers.len(), layers.len())
    })
}

/// The first layer that has an external data file.
pub(super) fn data_file_of<'a>(disk: &Disk<'a>) -> Option<(&'a LayerFacts, &'a str)> {
    disk.layers()
        .iter()
        .find_map(|layer| Some((layer, layer.qcow2.as_ref()?.data_file.as_deref()?)))
}
