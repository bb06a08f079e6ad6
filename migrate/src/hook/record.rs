//! What the hook remembers of a guest from one call to the next: the files that it created. The only licence to remove
//! any.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::annotation::Annotation;
use crate::facts::Identity;
use crate::fs::{failed, make_directories};
use crate::{Error, Result};

const VERSION: u32 = 1;

/// No record is longer, in bytes.
const LONGEST: u64 = 4 << 20;

/// What is known of one migration to this host.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Record {
    version: u32,
    /// Files that the hook created for it.
    pub(super) made: Vec<Made>,
    /// QEMU was started to receive it.
    pub(super) started: bool,
    /// QEMU ended while it was still arriving: the guest has never run here.
    pub(super) failed: bool,
    /// What the source said about the disks.
    pub(super) told: Annotation,
}

/// A file that the hook created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Made {
    /// The configured directory that it is below.
    pub(super) root: PathBuf,
    /// Its path.
    pub(super) path: PathBuf,
    /// Which object it is.
    pub(super) identity: Identity,
}

impl Record {
    pub(super) fn new() -> Self {
        let (made, told) = (Vec::new(), Annotation::default());
        Self { version: VERSION, made, started: false, failed: false, told }
    }

    /// The record of the guest with this UUID, if there is one.
    pub(super) fn read(state: &Path, uuid: &str) -> Result<Option<Self>> {
        let path = place(state, uuid)?;
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("could not open", &path, error)),
        };
        let mut bytes = Vec::new();
        file.take(LONGEST)
            .read_to_end(&mut bytes)
            .map_err(|error| failed("could not read", &path, error))?;
        let record: Self = serde_json::from_slice(&bytes)
            .map_err(|error| Error::environment(format!("{}: {error}", path.display())))?;
        match record.version {
            VERSION => Ok(Some(record)),
            other => Err(Error::environment(format!("{}: version {other}", path.display()))),
        }
    }

    /// Writes it, in place of an earlier one.
    pub(super) fn write(&self, state: &Path, uuid: &str) -> Result<()> {
        let path = place(state, uuid)?;
        let wrong = |error: std::io::Error| failed("could not write", &path, error);
        make_directories(state, 0o700)?;
        let text = serde_json::to_vec(self)
            .map_err(|error| Error::io("could not serialise the hook's record", error))?;
        let mut file = tempfile::NamedTempFile::new_in(state).map_err(wrong)?;
        file.write_all(&text).and_then(|()| file.as_file().sync_all()).map_err(wrong)?;
        file.persist(&path).map_err(|error| wrong(error.error)).map(drop)
    }

    /// Removes the record of a guest; fine if there is none.
    pub(super) fn remove(state: &Path, uuid: &str) -> Result<()> {
        let path = place(state, uuid)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(failed("could not remove", &path, error))
            }
            _ => Ok(()),
        }
    }
}

/// The file of a guest's record.
fn place(state: &Path, uuid: &str) -> Result<PathBuf> {
    let uuid = Uuid::try_parse(uuid)
        .map_err(|error| Error::usage(format!("'{uuid}' is not a UUID: {error}")))?;
    Ok(state.join(format!("{}.json", uuid.hyphenated())))
}
