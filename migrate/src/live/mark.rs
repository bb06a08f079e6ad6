//! What a run leaves on stable storage while it is at it, so that a later one can go on.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::cover::Cover;
use super::value::LivePlan;
use crate::facts::Identity;
use crate::{Error, Result};

/// The version of what is written here.
const VERSION: u32 = 1;

/// No mark is longer: it has a figure for every 32 MiB of the disk.
const LONGEST: u64 = 64 << 20;

/// A run that is being carried out, or was cut off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Mark {
    version: u32,
    /// What is being done.
    pub plan: LivePlan,
    /// How much of the disk its layers held.
    pub cover: Cover,
    /// The new image, once it was made.
    pub made: Option<Identity>,
    /// The guest is being stopped for a moment, and must be let go on.
    pub stopped: bool,
}

impl Mark {
    /// Of a run that begins.
    pub fn new(plan: LivePlan, cover: Cover) -> Self {
        Self { version: VERSION, plan, cover, made: None, stopped: false }
    }

    /// The run on this disk of this guest that was cut off, if one was.
    ///
    /// # Errors
    /// [`Environment`](crate::ErrorKind::Environment) if there is a mark that cannot be read.
    pub fn read(state: &Path, uuid: &str, disk: &str) -> Result<Option<Self>> {
        let path = name(state, uuid, disk)?;
        match fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("could not read", &path, &error)),
            Ok(metadata) if metadata.len() > LONGEST => return Err(damaged(&path, "is too long")),
            Ok(_) => {}
        }
        let bytes = fs::read(&path).map_err(|error| failed("could not read", &path, &error))?;
        let mark: Self =
            serde_json::from_slice(&bytes).map_err(|error| damaged(&path, &error.to_string()))?;
        if mark.version != VERSION || mark.plan.uuid != uuid || mark.plan.disk != disk {
            return Err(damaged(&path, "is of another version or of another disk"));
        }
        Ok(Some(mark))
    }

    /// Writes it, in place of an earlier one. When this returns, it is on stable storage.
    ///
    /// # Errors
    /// [`Environment`](crate::ErrorKind::Environment).
    pub(super) fn write(&self, state: &Path) -> Result<()> {
        let path = name(state, &self.plan.uuid, &self.plan.disk)?;
        let wrong = |error: &std::io::Error| failed("could not write", &path, error);
        let directory = state.join(DIRECTORY);
        fs::create_dir_all(&directory).map_err(|error| wrong(&error))?;
        let text = serde_json::to_vec(self).map_err(|error| {
            Error::environment(format!("could not put a mark into words: {error}"))
        })?;
        let mut file =
            tempfile::NamedTempFile::new_in(&directory).map_err(|error| wrong(&error))?;
        file.write_all(&text)
            .and_then(|()| file.as_file().sync_all())
            .map_err(|error| wrong(&error))?;
        file.persist(&path).map_err(|error| wrong(&error.error))?;
        synced(&directory).map_err(|error| wrong(&error))
    }

    /// Takes it away: the run has ended.
    ///
    /// # Errors
    /// [`Environment`](crate::ErrorKind::Environment).
    pub(super) fn remove(&self, state: &Path) -> Result<()> {
        let path = name(state, &self.plan.uuid, &self.plan.disk)?;
        let removed = match fs::remove_file(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        };
        removed
            .and_then(|()| synced(&state.join(DIRECTORY)))
            .map_err(|error| failed("could not remove", &path, &error))
    }
}

/// Where marks are, below the directory of journals and locks.
const DIRECTORY: &str = "live";

fn name(state: &Path, uuid: &str, disk: &str) -> Result<PathBuf> {
    let plain = |text: &str| {
        !text.is_empty()
            && text.len() <= 64
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    if !plain(uuid) || !plain(disk) {
        return Err(Error::usage(format!("'{disk}' of '{uuid}' is not the name of a disk")));
    }
    Ok(state.join(DIRECTORY).join(format!("{uuid}.{disk}.json")))
}

fn synced(directory: &Path) -> std::io::Result<()> {
    File::open(directory)?.sync_all()
}

fn failed(what: &str, path: &Path, error: &std::io::Error) -> Error {
    Error::environment(format!("{what} '{}': {error}", path.display()))
}

fn damaged(path: &Path, how: &str) -> Error {
    Error::environment(format!("'{}', the mark of an earlier run, {how}", path.display()))
        .hint("look whether a job runs on that disk (virsh blockjob), then remove the mark")
}
