//! Which disks are served, and how they are opened.

use std::path::Path;

use nbd::{ChainBackend, Context, DiskBackend, Export};
use qcow::chain::OpenOptions;
use qcow::{CancelToken, Error};
use serde::Serialize;

use super::Serve;
use crate::args::PartArgs;
use crate::sandbox::Plan;
use crate::session::{Session, changing, open_disk};

/// What is to be served.
#[derive(Debug)]
pub(super) struct Exports<'a> {
    /// Paths and names.
    images: Vec<(&'a Path, String)>,
    open: OpenOptions,
    writable: bool,
    contexts: Vec<Context>,
}

/// What is printed about an export.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Shown {
    name: String,
    image: String,
    size: u64,
    read_only: bool,
    contexts: Vec<String>,
}

impl<'a> Exports<'a> {
    /// What the arguments ask for.
    pub(super) fn of(serve: &'a Serve) -> Result<Self, Error> {
        let writable = !(serve.read_only
            || serve.snapshot.is_some()
            || serve.source.force_share
            || serve.part.is_part());
        if writable && !serve.bitmap.is_empty() {
            return Err(Error::usage(
                "a bitmap of a disk that is written to would change while it is read",
            )
            .hint("add --read-only"));
        }
        let mut images: Vec<(&Path, String)> = Vec::new();
        for path in &serve.images {
            let name = match &serve.export {
                Some(_) if serve.images.len() > 1 => {
                    return Err(Error::usage("--export names one image, and several are given"));
                }
                Some(name) => name.clone(),
                None => path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
            };
            if images.iter().any(|(_, other)| *other == name) {
                let message = format!(
                    "two images are named '{name}', and clients need names to tell them apart"
                );
                return Err(Error::usage(message)
                    .file(path)
                    .hint("serve one by another process, with --export"));
            }
            images.push((path, name));
        }
        let depth = serve.depth.then_some(Context::Depth);
        let bitmaps = serve.bitmap.iter().map(|name| Context::DirtyBitmap(name.clone()));
        Ok(Self {
            images,
            open: serve.source.open_options(serve.snapshot.as_deref()),
            writable,
            contexts: depth.into_iter().chain(bitmaps).collect(),
        })
    }

    /// The same, until `cancel` is set: opening a disk for writing reads all its metadata.
    pub(super) fn until(self, cancel: &CancelToken) -> Self {
        Self { open: self.open.cancel(cancel.clone()), ..self }
    }

    /// What clients call them.
    pub(super) fn names(&self) -> Vec<&str> {
        self.images.iter().map(|(_, name)| name.as_str()).collect()
    }

    /// What has to be opened for it.
    pub(super) fn plan(&self) -> Plan {
        let mut plan = Plan::new();
        for (path, _) in &self.images {
            plan = plan.chain(path, &self.open);
            if self.writable {
                plan = changing(plan, path, &self.open);
            }
        }
        plan
    }

    /// Opens the images.
    pub(super) fn open(
        &self,
        session: &Session<'_>,
        part: &PartArgs,
    ) -> Result<Vec<(Export, Shown)>, Error> {
        self.images
            .iter()
            .map(|(path, name)| {
                let export = if self.writable {
                    let disk = open_disk(path, &self.open)?;
                    Export::new(name, Box::new(DiskBackend::new(disk)))
                } else {
                    let chain = session.open_chain(path, &self.open, part)?;
                    let backend = ChainBackend::new(chain);
                    for context in &self.contexts {
                        if let Context::DirtyBitmap(bitmap) = context {
                            backend.check_bitmap(bitmap).map_err(|error| error.file(path))?;
                        }
                    }
                    Export::new(name, Box::new(backend))
                };
                let export = self.contexts.iter().cloned().fold(export, Export::context);
                let contexts = std::iter::once(&Context::Allocation).chain(&self.contexts);
                let shown = Shown {
                    name: name.clone(),
                    image: path.to_string_lossy().into_owned(),
                    size: export.size(),
                    read_only: export.is_read_only(),
                    contexts: contexts.map(Context::to_string).collect(),
                };
                Ok((export, shown))
            })
            .collect()
    }
}
