//! What a run leaves on stable storage while it is at it, so that a later one can go on.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::allocation::AllocationSummary;
use super::value::LivePlan;
use crate::facts::Identity;
use crate::fs::{failed, make_directories, sync_path};
use crate::{Error, Result};

/// The version of what is written here.
const VERSION: u32 = 1;

/// No mark is longer: it has a figure for every 32 MiB of the disk.
const LONGEST: u64 = 64 << 20;

/// A run that is being carried out, or was cut off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ResumeRecord {
    version: u32,
    /// What is being done.
    pub plan: LivePlan,
    /// How much of the disk its layers held.
    #[serde(rename = "cover")]
    pub allocation: AllocationSummary,
    /// The new image, once it was made.
    pub made: Option<Identity>,
    /// The guest is being stopped for a moment, and must be let go on.
    pub stopped: bool,
}

impl ResumeRecord {
    /// Of a run that begins.
    pub fn new(plan: LivePlan, allocation: AllocationSummary) -> Self {
        Self { version: VERSION, plan, allocation, made: None, stopped: false }
    }

    /// The run on this disk of this guest that was cut off, if one was.
    ///
    /// # Errors
    /// [`Environment`](crate::ErrorKind::Environment) if there is a mark that cannot be read.
    pub fn read(state: &Path, uuid: &str, disk: &str) -> Result<Option<Self>> {
        let path = name(state, uuid, disk)?;
        match fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("could not read", &path, error)),
            Ok(metadata) if metadata.len() > LONGEST => return Err(damaged(&path, "is too long")),
            Ok(_) => {}
        }
        let bytes = fs::read(&path).map_err(|error| failed("could not read", &path, error))?;
        let record: Self =
            serde_json::from_slice(&bytes).map_err(|error| damaged(&path, &error.to_string()))?;
        if record.version != VERSION || record.plan.uuid != uuid || record.plan.disk != disk {
            return Err(damaged(&path, "is of another version or of another disk"));
        }
        Ok(Some(record))
    }

    /// Writes it, in place of an earlier one. When this returns, it is on stable storage.
    ///
    /// # Errors
    /// [`Environment`](crate::ErrorKind::Environment).
    pub(super) fn write(&self, state: &Path) -> Result<()> {
        let path = name(state, &self.plan.uuid, &self.plan.disk)?;
        let wrong = |error: std::io::Error| failed("could not write", &path, error);
        let directory = state.join(DIRECTORY);
        make_directories(&directory, 0o700)?;
        let text = serde_json::to_vec(self)
            .map_err(|error| Error::io("could not put a mark into words", error))?;
        let mut file = tempfile::NamedTempFile::new_in(&directory).map_err(wrong)?;
        file.write_all(&text).and_then(|()| file.as_file().sync_all()).map_err(wrong)?;
        file.persist(&path).map_err(|error| wrong(error.error))?;
        sync_path(&directory)
    }

    /// Takes it away: the run has ended.
    ///
    /// # Errors
    /// [`Environment`](crate::ErrorKind::Environment).
    pub(super) fn remove(&self, state: &Path) -> Result<()> {
        let path = name(state, &self.plan.uuid, &self.plan.disk)?;
        match fs::remove_file(&path) {
            Ok(()) => sync_path(&state.join(DIRECTORY)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed("could not remove", &path, error)),
        }
    }
}

/// Where marks are, below the directory of journals and locks.
const DIRECTORY: &str = "live";

fn name(state: &Path, uuid: &str, disk: &str) -> Result<PathBuf> {
    let uuid = Uuid::try_parse(uuid)
        .map_err(|error| Error::usage(format!("'{uuid}' is not a UUID: {error}")))?;
    let plain = !disk.is_empty()
        && disk.len() <= 64
        && disk.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    if !plain {
        return Err(Error::usage(format!("'{disk}' is not the name of a disk")));
    }
    Ok(state.join(DIRECTORY).join(format!("{}.{disk}.json", uuid.hyphenated())))
}

fn damaged(path: &Path, how: &str) -> Error {
    Error::environment(format!("'{}', the mark of an earlier run, {how}", path.display()))
        .hint("look whether a job runs on that disk (virsh blockjob), then remove the mark")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::Method;
    use qcow::chain::Format;

    const UUID: &str = "6f1a9b52-6f2b-4a6e-9a53-0d8a6d0a7c11";

    fn record() -> ResumeRecord {
        let plan = LivePlan {
            domain: "web".into(),
            uuid: UUID.into(),
            disk: "vda".into(),
            method: Method::Pull,
            image: "/v/web.qcow2".into(),
            becomes: "/v/web.qcow2".into(),
            format: Format::Qcow2,
            keeps_below: false,
            compare: false,
            virtual_size: 1 << 30,
            below: Vec::new(),
            copied_bytes: 0,
            grows_bytes: 0,
            length_bytes: 0,
            available_bytes: None,
            bandwidth: None,
            timeout: None,
            tables_compared: true,
            running: true,
            notes: Vec::new(),
        };
        ResumeRecord::new(plan, AllocationSummary::empty(1 << 30))
    }

    #[test]
    fn a_mark_is_read_as_it_was_written_until_it_is_removed() {
        let state = tempfile::tempdir().unwrap();
        let read = || ResumeRecord::read(state.path(), UUID, "vda").unwrap();
        assert_eq!(read(), None);
        let mut record = record();
        record.write(state.path()).unwrap();
        record.stopped = true;
        record.write(state.path()).unwrap();
        assert_eq!(read().as_ref(), Some(&record));
        assert_eq!(ResumeRecord::read(state.path(), UUID, "vdb").unwrap(), None);
        record.remove(state.path()).unwrap();
        record.remove(state.path()).unwrap();
        assert_eq!(read(), None);
    }

    #[test]
    fn a_mark_that_cannot_be_read_is_not_taken_for_none() {
        let state = tempfile::tempdir().unwrap();
        record().write(state.path()).unwrap();
        let path = name(state.path(), UUID, "vda").unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let other = text.replace("\"vda\"", "\"vdb\"");
        for wrong in [&text[..text.len() / 2], "{}", &other] {
            fs::write(&path, wrong).unwrap();
            ResumeRecord::read(state.path(), UUID, "vda").unwrap_err();
        }
    }

    #[test]
    fn names_of_disks_lead_nowhere_else() {
        let state = tempfile::tempdir().unwrap();
        for disk in ["../vda", "", "a/b", "a.b"] {
            ResumeRecord::read(state.path(), UUID, disk).unwrap_err();
        }
    }
}
