//! What depends on one image, and whether it may be deleted. Pure, but that names of what is not there are
//! compared by their directories.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::graph::Graph;
use super::report::HolderReport;
use super::scan::canonical;
use super::value::{Image, Key, Presence, Survey, lossy};

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Nothing depends on it, and everything was looked at.
    Free,
    /// Something does.
    InUse,
    /// Nothing was found, but not everything could be looked at.
    Undetermined,
}

/// What depends on an image.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Dependents {
    /// The image, by the name that it was asked for.
    #[serde(serialize_with = "lossy")]
    pub template: PathBuf,
    /// The answer.
    pub verdict: Verdict,
    /// Images that depend on it, directly or not, the nearest first.
    pub images: Vec<Dependent>,
    /// Domains that name it, or one of these.
    pub domains: Vec<DependentDomain>,
    /// Processes that have it open.
    pub holders: Vec<HolderReport>,
    /// What could not be looked at.
    pub undetermined: Vec<Undetermined>,
}

/// An image that depends on another.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Dependent {
    /// The other host that it is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Its path.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// 1 if it stands directly on it.
    pub steps: usize,
}

/// A domain that needs the image.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct DependentDomain {
    /// The other host that it is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Its name.
    pub name: String,
    /// It has a process.
    pub runs: bool,
    /// The disk's name in the guest.
    pub disk: String,
}

/// Something that may depend on the image, or not.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Undetermined {
    /// The other host that it is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Its path.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// Why it is not known.
    pub why: String,
}

/// What depends on the image of this name, or on what once was there. On other hosts it is looked for by
/// all its names, because nothing else tells files apart there.
pub fn dependents(survey: &Survey, template: &Path) -> Dependents {
    let graph = Graph::new(survey);
    let roots = roots(survey, template);
    let found = graph.dependents(&roots);
    let involved: HashSet<&Key> = roots
        .iter()
        .chain(found.iter().map(|(at, _)| at))
        .filter_map(|at| graph.image(*at))
        .map(|image| &image.key)
        .collect();
    let images: Vec<_> = found
        .iter()
        .filter_map(|(at, steps)| {
            let image = graph.image(*at)?;
            let host = image.key.host().map(str::to_owned);
            Some(Dependent { host, path: image.path().to_path_buf(), steps: *steps })
        })
        .collect();
    let mut domains = Vec::new();
    for domain in &survey.domains {
        for disk in &domain.disks {
            if disk.layers.iter().any(|layer| involved.contains(&layer.key)) {
                domains.push(DependentDomain {
                    host: domain.host.clone(),
                    name: domain.name.clone(),
                    runs: domain.runs,
                    disk: disk.target.clone(),
                });
            }
        }
    }
    domains.sort();
    domains.dedup();
    let is_root: HashSet<&Key> =
        roots.iter().filter_map(|at| graph.image(*at)).map(|image| &image.key).collect();
    let holders: Vec<_> = survey
        .holders
        .iter()
        .filter(|holder| is_root.contains(&holder.key))
        .map(HolderReport::from)
        .collect();
    let mut undetermined = unknown(survey, &is_root);
    // An unknown name may be a typing error.
    let known = roots
        .iter()
        .filter_map(|at| graph.image(*at))
        .any(|image| image.presence != Presence::Missing);
    if images.is_empty() && domains.is_empty() && holders.is_empty() && !known {
        undetermined.push(Undetermined {
            host: None,
            path: template.to_path_buf(),
            why: "no file has this name, and no examined header names it".into(),
        });
    }
    let verdict = if !images.is_empty() || !domains.is_empty() || !holders.is_empty() {
        Verdict::InUse
    } else if undetermined.is_empty() {
        Verdict::Free
    } else {
        Verdict::Undetermined
    };
    Dependents { template: template.to_path_buf(), verdict, images, domains, holders, undetermined }
}

/// The numbers of the images that the name means.
fn roots(survey: &Survey, template: &Path) -> Vec<usize> {
    let mut names = HashSet::from([template.to_path_buf(), canonical(template)]);
    let has = |image: &Image, names: &HashSet<PathBuf>| {
        image.names.iter().any(|name| names.contains(&name.path))
    };
    let here = |image: &&Image| image.key.host().is_none();
    // What is not there has no identity, but the directory that it was in has.
    let place = |name: &Path| {
        let directory = name.parent().and_then(|directory| directory.metadata().ok())?;
        Some((directory.dev(), directory.ino(), name.file_name()?.to_owned()))
    };
    let asked = place(&canonical(template)).filter(|_| !template.exists());
    let missing = survey.images.iter().filter(|image| image.presence == Presence::Missing);
    let same = missing.filter(|image| {
        let of_name =
            image.path().file_name() == asked.as_ref().map(|(_, _, name)| name.as_os_str());
        of_name && image.key.host().is_none() && place(image.path()) == asked
    });
    names.extend(same.map(|image| image.path().to_path_buf()));
    let own: Vec<_> =
        survey.images.iter().filter(here).filter(|image| has(image, &names)).collect();
    names.extend(own.iter().flat_map(|image| &image.names).map(|name| name.path.clone()));
    let numbered = survey.images.iter().enumerate();
    numbered.filter(|(_, image)| has(image, &names)).map(|(at, _)| at).collect()
}

/// What could depend on the image without being known.
fn unknown(survey: &Survey, roots: &HashSet<&Key>) -> Vec<Undetermined> {
    let mut unknown: Vec<_> = survey
        .unseen
        .iter()
        .map(|unseen| Undetermined {
            host: unseen.host.clone(),
            path: unseen.path.clone(),
            why: unseen.why.clone(),
        })
        .collect();
    for image in &survey.images {
        let root = roots.contains(&image.key);
        let mut add = |why: String| {
            let host = image.key.host().map(str::to_owned);
            unknown.push(Undetermined { host, path: image.path().to_path_buf(), why });
        };
        // The image's own backing file does not matter, but which object it is.
        if root && let Presence::Unusable { why, .. } = &image.presence {
            add(why.clone());
        }
        if root {
            continue;
        }
        if let Some((why, _)) = &image.problem {
            add(format!("its header could not be read: {why}"));
        }
        if let Presence::Unusable { why, sure: false } = &image.presence {
            add(why.clone());
        }
        for (name, why) in &image.not_followed {
            // Storage on a network is no file of this machine; whatever else it is may be one.
            if name.as_os_str().as_encoded_bytes().starts_with(b"json:") {
                add(format!("its backing file was not understood: {why}"));
            }
        }
    }
    unknown.sort();
    unknown.dedup();
    unknown
}
