//! The files that a guest has or needs besides its disks, and what is at their paths at the destination.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use qcow::chain::Format;

use super::{Disks, PinnedFiles, Probing};
use crate::Result;
use crate::domain::{XmlFiles, files};
use crate::facts::{
    Content, DomainFacts, DomainState, FileFacts, FilePlace, FileRole, LayerFacts, ObjectFacts,
    XmlChain,
};
use crate::store::Wanted;

/// The state of a TPM is a handful of files.
const MOST_STATES: usize = 64;

impl Disks<'_> {
    /// All of them. What libvirt itself carries with a running guest is not read.
    pub(super) fn guest_files(
        &self,
        domain: &DomainFacts,
        pinned: &PinnedFiles,
    ) -> Result<Vec<FileFacts>> {
        let XmlFiles { files, tpm_state } = files(&domain.live_xml)?;
        let runs = domain.state != DomainState::ShutOff;
        // Where the NVRAM exists, it is not made anew.
        let wanted = |role: FileRole| runs || role != FileRole::NvramTemplate;
        let mut found = Vec::new();
        for (role, path) in files.into_iter().filter(|(role, _)| wanted(*role)) {
            self.probing.cancel.check()?;
            found.push(self.guest_file(role, path, runs, pinned)?);
        }
        if let Some(directory) = tpm_state.filter(|_| !runs) {
            match self.states(&directory) {
                Ok(paths) => {
                    for path in paths {
                        found.push(self.guest_file(FileRole::TpmState, path, runs, pinned)?);
                    }
                }
                Err(why) => found.push(FileFacts {
                    role: FileRole::TpmState,
                    path: directory,
                    file: None,
                    unreadable: Some(why),
                    destination: FilePlace::default(),
                }),
            }
        }
        Ok(found)
    }

    /// The files of a TPM's state; none if it has no state yet.
    fn states(&self, directory: &Path) -> Result<Vec<PathBuf>, String> {
        let entries = match fs::read_dir(self.files.real(directory)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|error| error.to_string())?,
        };
        let mut paths = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| error.to_string())?;
            let kind = entry.file_type().map_err(|error| error.to_string())?;
            // The lock belongs to the process, not to the state.
            if kind.is_dir() || entry.file_name() == ".lock" {
                continue;
            }
            if paths.len() >= MOST_STATES {
                return Err(format!("it has more than {MOST_STATES} files"));
            }
            paths.push(directory.join(entry.file_name()));
        }
        paths.sort();
        Ok(paths)
    }

    fn guest_file(
        &self,
        role: FileRole,
        path: PathBuf,
        runs: bool,
        pinned: &PinnedFiles,
    ) -> Result<FileFacts> {
        let (file, unreadable) = match fs::metadata(self.files.real(&path)) {
            Err(error) if error.kind() == ErrorKind::NotFound => (None, None),
            Err(error) => (None, Some(error.to_string())),
            Ok(_) => {
                let chain = self.files.chain(&path, Some("raw"), &XmlChain::default());
                (chain.layers.into_iter().next(), chain.missing.map(|missing| missing.why))
            }
        };
        // QEMU writes to it, and libvirt brings it along.
        let compared = file.as_ref().filter(|_| !(runs && role.is_state()));
        let destination = self.file_place(&path, compared, pinned)?;
        Ok(FileFacts { role, path, file, unreadable, destination })
    }

    fn file_place(
        &self,
        path: &Path,
        file: Option<&LayerFacts>,
        pinned: &PinnedFiles,
    ) -> Result<FilePlace> {
        let store = self.hosts.store;
        let mut place = FilePlace::default();
        match store.look(path) {
            Ok(Some(object)) => {
                place.content = Some(self.same_file(path, file, &object, pinned)?);
                place.object = Some(object);
            }
            Ok(None) => {
                let directory = path.parent().unwrap_or(Path::new("/"));
                match self.room(directory, directory) {
                    Ok(bytes) => place.available = Some(bytes),
                    Err(why) => place.unusable = Some(why),
                }
            }
            // Such as a symbolic link, which many packages of firmware have.
            Err(error) => {
                place.content = Some(Content::Unknown { why: error.message().to_owned() });
            }
        }
        Ok(place)
    }

    /// Whether the object at `path` at the destination has the bytes of `file`, all of them and no more.
    fn same_file(
        &self,
        path: &Path,
        file: Option<&LayerFacts>,
        object: &ObjectFacts,
        pinned: &PinnedFiles,
    ) -> Result<Content> {
        let Some(file) = file else {
            return Ok(Content::Unknown { why: "there is nothing to compare it with".into() });
        };
        // A digest is that of whole sectors.
        if object.block_device || object.identity.size != file.identity.size {
            return Ok(Content::Different);
        }
        let digest = self.digest(std::slice::from_ref(file), pinned)?;
        let bytes = File::open(pinned.place(file)).ok();
        let wanted = Wanted { digest: &digest, file: bytes.as_ref() };
        let Probing { observer, cancel, .. } = self.probing;
        self.hosts.store.same_content(path, Format::Raw, &wanted, *observer, cancel)
    }
}
