//! The files of a host through libvirt's storage API: what can be done where nothing of ours runs.
//!
//! libvirt sees a directory as a storage pool. Where none covers a directory, one is made for as long as it is
//! needed, and where one is defined but not active, it is started and stopped again. A pool is a list in memory:
//! it is refreshed before every look.
//!
//! What cannot be known this way, and is therefore not claimed:
//!
//! - which object a file is: there is no inode, only a length and two times;
//! - whether a name is a symbolic link: libvirt follows them and does not tell;
//! - who has a file open, but for guests of this libvirt;
//! - when bytes reach stable storage: libvirt does not promise that for uploads.

mod chain;
mod directory;
mod proof;
mod transfer;
mod volume;

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use qcow::chain::Format;
use qcow::io::{FileStorage, Storage};
use qcow::{CancelToken, Observer};
use virt::storage_pool::StoragePool;
use virt::storage_vol::StorageVol;

use self::chain::{Head, Volume};
use self::proof::Proof;
use self::volume::{VolumeFacts, split};
use super::{Mode, Store, StoreLayer, Wanted};
use crate::driver::libvirt::raw::Failure;
use crate::driver::libvirt::{Connection, Use, is, patiently, unless};
use crate::driver::libvirt_errors::code;
use crate::facts::{Content, DirectoryRights, Identity, ObjectFacts};
use crate::{Error, Result};

/// Kinds of pools whose volumes are files in a directory.
const OF_FILES: [&str; 3] = ["dir", "fs", "netfs"];

/// libvirt's words for a pool that is gone.
const NO_POOL: &str = "Storage pool not found";

/// The files of a host as its libvirt shows them.
#[derive(Debug)]
pub struct LibvirtStore {
    connection: Arc<Connection>,
    /// Names of the pools that are active because of us.
    pools: Mutex<Vec<String>>,
    /// What tells the files that this store made, or that a journal says an earlier one made.
    made: Mutex<HashMap<PathBuf, Proof>>,
}

/// A volume that is there.
struct Found {
    volume: StorageVol,
    facts: VolumeFacts,
}

impl LibvirtStore {
    /// The files of the host of `connection`.
    pub fn new(connection: Arc<Connection>) -> Self {
        Self { connection, pools: Mutex::default(), made: Mutex::default() }
    }

    /// The pool that covers `directory`, freshly refreshed; `None` if there is no such directory.
    fn pool(&self, directory: &str) -> Result<Option<StoragePool>> {
        let Some(pool) = self.find_pool(directory)? else { return Ok(None) };
        self.connection.refresh(&pool)?;
        Ok(Some(pool))
    }

    fn find_pool(&self, directory: &str) -> Result<Option<StoragePool>> {
        let connect = self.connection.connect()?;
        let active =
            unless(code::NO_STORAGE_POOL, connect.lookup_storage_pool_by_target_path(directory));
        if let Some(pool) = self.connection.say(active)? {
            return Ok(Some(pool));
        }
        if Path::new(directory).starts_with("/dev") {
            return Err(self.wrong(format!(
                "{directory}: devices can be reached through libvirt only where a pool covers them"
            )));
        }
        for pool in self.connection.say(connect.list_all_storage_pools(0))? {
            let (_, place) = volume::pool_place(&self.connection.say(pool.xml_desc(0))?)?;
            let covers = place.is_some_and(|place| Path::new(&place) == Path::new(directory));
            if covers && !self.connection.say(pool.is_active())? {
                match pool.create(0) {
                    Ok(()) => self.ours(&pool)?,
                    // Another process was faster.
                    Err(_) if matches!(pool.is_active(), Ok(true)) => {}
                    Err(failure) => return self.connection.say(Err(failure)),
                }
                return Ok(Some(pool));
            }
        }
        let name = format!("qcowtool-{:016x}", random());
        match connect.create_storage_pool_xml(&volume::new_pool(&name, directory), 0) {
            Ok(pool) => {
                self.ours(&pool)?;
                Ok(Some(pool))
            }
            Err(failure) if failure.message().contains("No such file or directory") => Ok(None),
            // Another process was faster.
            Err(failure) if failure.message().contains("source conflict with pool") => {
                self.connection.say(connect.lookup_storage_pool_by_target_path(directory)).map(Some)
            }
            Err(failure) => self.connection.say(Err(failure)),
        }
    }

    fn ours(&self, pool: &StoragePool) -> Result<()> {
        let name = self.connection.say(pool.name())?;
        self.pools.lock().unwrap_or_else(PoisonError::into_inner).push(name);
        Ok(())
    }

    fn existing_pool(&self, directory: &str) -> Result<StoragePool> {
        self.pool(directory)?.ok_or_else(|| {
            self.wrong(format!("there is no directory {directory}")).hint("create it first")
        })
    }

    fn find(&self, path: &Path) -> Result<Option<Found>> {
        let (directory, name) = split(path)?;
        let Some(pool) = self.pool(directory)? else { return Ok(None) };
        let found = pool.lookup_storage_vol_by_name(name).and_then(|volume| {
            let xml = volume.xml_desc(0)?;
            Ok((volume, xml))
        });
        let Some((volume, xml)) = self.connection.say(unless(code::NO_STORAGE_VOL, found))? else {
            return Ok(None);
        };
        let facts = volume::parse(&xml).map_err(|error| error.on(&self.connection.hostname()))?;
        let facts = facts.ok_or_else(|| {
            self.wrong(format!("{} is neither a file nor a device", path.display()))
        })?;
        Ok(Some(Found { volume, facts }))
    }

    /// A file or device that must be there.
    fn existing(&self, path: &Path) -> Result<Found> {
        self.find(path)?.ok_or_else(|| self.wrong(format!("{} does not exist", path.display())))
    }

    /// Asks again if the pool was stopped meanwhile: it may have been another run's, which has ended.
    fn steadily<T>(&self, ask: impl Fn() -> Result<T>) -> Result<T> {
        const TIMES: u32 = 3;
        for _ in 0..TIMES {
            match ask() {
                Err(error) if error.message().contains(NO_POOL) => {}
                outcome => return outcome,
            }
        }
        ask()
    }

    fn wrong(&self, message: String) -> Error {
        Error::environment(message).on(&self.connection.hostname())
    }

    fn refused(&self, message: String) -> Error {
        Error::refused(message).on(&self.connection.hostname())
    }

    /// A file's bytes begin with what the header of an image says.
    fn head(&self, found: &Found) -> Result<Option<Head>> {
        let read = |length| transfer::head(&self.connection, &found.volume, length);
        Head::read(read).map_err(|error| error.on(&self.connection.hostname()))
    }

    fn known(&self) -> MutexGuard<'_, HashMap<PathBuf, Proof>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn delete(&self, path: &Path, found: &Found) -> Result<()> {
        self.connection.say(unless(code::NO_STORAGE_VOL, patiently(|| found.volume.delete(0))))?;
        self.known().remove(path);
        Ok(())
    }

    /// Removes what could not be finished, and says so in `error` if that fails too.
    fn give_up(&self, path: &Path, error: Error) -> Error {
        let removed = self.steadily(|| {
            let (directory, name) = split(path)?;
            let Some(pool) = self.find_pool(directory)? else { return Ok(()) };
            let delete = || pool.lookup_storage_vol_by_name(name)?.delete(0);
            self.connection.say(unless(code::NO_STORAGE_VOL, patiently(delete))).map(drop)
        });
        match removed {
            Ok(()) => error,
            Err(second) => Error::new(error.kind(), error.message())
                .on(&self.connection.hostname())
                .hint(format!("{} is left over: {}", path.display(), second.message())),
        }
    }
}

/// The guest that writes to `path`, in words.
fn writer(uses: &[Use], path: &Path) -> Option<String> {
    let used = uses.iter().find(|used| used.runs && used.writes && used.path == path)?;
    Some(format!("the guest '{}' writes to it", used.domain))
}

/// A file, or anything else, has the name: libvirt's list says so, or a look at the file system, or at
/// last the call that makes files.
fn is_there(failure: &Failure) -> bool {
    is(failure, code::STORAGE_VOL_EXIST)
        || ["already exists", "File exists"].iter().any(|words| failure.message().contains(words))
}

fn storage(file: &File) -> Result<FileStorage> {
    file.try_clone()
        .map_err(|error| Error::io("could not duplicate a descriptor", error))
        .and_then(|file| Ok(FileStorage::from_file(file)?))
}

/// Differs from that of every other process and time.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

impl Drop for LibvirtStore {
    fn drop(&mut self) {
        let pools = std::mem::take(&mut *self.pools.lock().unwrap_or_else(PoisonError::into_inner));
        let Ok(connect) = self.connection.connect() else { return };
        for name in pools {
            // Another program may have removed it; a pool that cannot be stopped does no harm.
            let _ = connect
                .lookup_storage_pool_by_name(&name)
                .and_then(|pool| patiently(|| pool.destroy()));
        }
    }
}

impl Store for LibvirtStore {
    fn describe(&self) -> String {
        format!("{}, through libvirt's storage API", self.connection.hostname())
    }

    /// A symbolic link cannot be told from the file that it leads to.
    fn look(&self, path: &Path) -> Result<Option<ObjectFacts>> {
        let Some(found) = self.steadily(|| self.find(path))? else { return Ok(None) };
        Ok(Some(ObjectFacts {
            identity: found.facts.identity,
            block_device: found.facts.block_device,
            image: found.facts.image,
            in_use: writer(&self.connection.uses()?, path),
        }))
    }

    fn available(&self, directory: &Path) -> Result<u64> {
        let text = directory.to_str().unwrap_or_default();
        self.steadily(|| {
            let pool = self.existing_pool(text)?;
            let (kind, _) = volume::pool_place(&self.connection.say(pool.xml_desc(0))?)?;
            if !OF_FILES.contains(&kind.as_str()) {
                let message = format!("{text} is a pool of kind '{kind}', which holds no files");
                return Err(self.wrong(message));
            }
            Ok(self.connection.say(pool.info())?.available)
        })
    }

    fn filesystem(&self, directory: &Path) -> Result<String> {
        let text = directory.to_str().unwrap_or_default();
        self.steadily(|| {
            let info = self.connection.say(self.existing_pool(text)?.info())?;
            Ok(format!("of {} bytes", info.capacity))
        })
    }

    fn list(&self, directory: &Path, limit: usize) -> Result<Vec<PathBuf>> {
        self.steadily(|| {
            let pool = self.existing_pool(directory.to_str().unwrap_or_default())?;
            let mut paths = Vec::new();
            for volume in self.connection.say(pool.list_all_volumes(0))? {
                if paths.len() >= limit {
                    break;
                }
                let asked = volume.path().and_then(|path| Ok((path, volume.xml_desc(0)?)));
                // It may have gone meanwhile.
                let asked = self.connection.say(unless(code::NO_STORAGE_VOL, asked))?;
                let Some((path, xml)) = asked else { continue };
                if volume::parse(&xml).is_ok_and(|facts| facts.is_some()) {
                    paths.push(PathBuf::from(path));
                }
            }
            Ok(paths)
        })
    }

    /// Made under its name from the start: libvirt cannot rename.
    fn put(
        &self,
        path: &Path,
        content: &File,
        mode: Mode,
        observer: &dyn Observer,
        cancel: &CancelToken,
    ) -> Result<Identity> {
        let (directory, name) = split(path)?;
        let content = storage(content)?;
        cancel.check()?;
        self.available(Path::new(directory))?;
        let new = volume::new_volume(name, content.len(), mode);
        self.steadily(|| match StorageVol::create_xml(&self.existing_pool(directory)?, &new, 0) {
            Err(failure) if is_there(&failure) => Err(self
                .refused(format!("{} exists already", path.display()))
                .hint("nothing that exists is overwritten")),
            outcome => self.connection.say(outcome).map(drop),
        })?;
        let done = self.steadily(|| {
            let volume = self.existing(path)?.volume;
            transfer::upload(&self.connection, &volume, &content, observer, cancel)
        });
        let done = done.and_then(|()| {
            content.check_unchanged()?;
            let (found, head) = self.steadily(|| {
                let found = self.existing(path)?;
                let head = self.head(&found)?;
                Ok((found, head))
            })?;
            let size = found.facts.identity.size;
            let proof = Proof::of(&content)?;
            if size == content.len() && head == proof.head {
                return Ok((found.facts.identity, proof));
            }
            let (path, sent) = (path.display(), content.len());
            Err(self.wrong(format!("{path} has {size} bytes, not the {sent} that were sent")))
        });
        let (identity, proof) = done.map_err(|error| self.give_up(path, error))?;
        self.known().insert(path.to_path_buf(), proof);
        Ok(identity)
    }

    fn proof(&self, content: &File) -> Result<Option<String>> {
        let proof = Proof::of(&storage(content)?)?;
        serde_json::to_string(&proof)
            .map(Some)
            .map_err(|error| Error::io("could not serialise what proves a file", error))
    }

    fn trust(&self, path: &Path, proof: &str) {
        if let Ok(proof) = serde_json::from_str(proof) {
            self.known().entry(path.to_path_buf()).or_insert(proof);
        }
    }

    /// What was sent so far begins as the content does; before that the file is empty, or reads as zeros.
    fn discard(&self, path: &Path, proof: &str) -> Result<bool> {
        let Ok(proof) = serde_json::from_str::<Proof>(proof) else { return Ok(false) };
        let Some(found) = self.steadily(|| self.find(path))? else { return Ok(false) };
        let uses = self.connection.uses()?;
        if found.facts.block_device
            || found.facts.identity.size > proof.length
            || uses.iter().any(|used| used.path == path)
        {
            return Ok(false);
        }
        let ours = proof.begins(&transfer::head(&self.connection, &found.volume, proof::SECTOR)?);
        if ours {
            self.delete(path, &found)?;
        }
        Ok(ours)
    }

    fn fetch(&self, path: &Path, limit: u64) -> Result<File> {
        let found = self.steadily(|| self.existing(path))?;
        let size = found.facts.identity.size;
        if size > limit {
            return Err(self.refused(format!(
                "{}: {size} bytes are too many, the limit is {limit}",
                path.display()
            )));
        }
        let mut file = tempfile::tempfile()
            .map_err(|error| Error::io("could not make a temporary file", error))?;
        transfer::download(&self.connection, &found.volume, &mut file)?;
        Ok(file)
    }

    fn chain(&self, path: &Path, format: Option<Format>) -> Result<Vec<StoreLayer>> {
        let uses = self.connection.uses()?;
        chain::walk(path, format, |layer| {
            let found = self.steadily(|| self.existing(layer))?;
            let read = |length| transfer::head(&self.connection, &found.volume, length);
            let start = chain::start(read)?;
            Ok(Volume { identity: found.facts.identity, start, in_use: writer(&uses, layer) })
        })
        .map_err(|error| error.on(&self.connection.hostname()))
    }

    /// Compares bytes: disks cannot be hashed this way.
    fn same_content(
        &self,
        path: &Path,
        format: Format,
        wanted: &Wanted<'_>,
        observer: &dyn Observer,
        cancel: &CancelToken,
    ) -> Result<Content> {
        let unknown = |why: &str| Ok(Content::Unknown { why: why.to_owned() });
        let Some(file) = wanted.file else {
            return unknown(
                "only whole files can be compared through libvirt, and the content is not one file's",
            );
        };
        let found = self.steadily(|| self.existing(path))?;
        if let Some(writer) = writer(&self.connection.uses()?, path) {
            return unknown(&writer);
        }
        let file = storage(file)?;
        if format == Format::Qcow2 {
            match self.head(&found) {
                Ok(Some(head)) if head.backing.is_none() => {}
                Ok(_) => return unknown("it is not a QCOW2 image without a backing file"),
                Err(error) => return unknown(error.message()),
            }
        }
        let same = found.facts.identity.size == file.len()
            && transfer::same_bytes(&self.connection, &found.volume, &file, observer, cancel)?;
        let now = self.steadily(|| self.existing(path))?;
        if now.facts.identity != found.facts.identity {
            return unknown("it changed while it was being compared");
        }
        match (same, format) {
            (true, _) => Ok(Content::Equal { digest: wanted.digest.to_owned() }),
            (false, Format::Raw) => Ok(Content::Different),
            // The same disk can be laid out in many ways.
            (false, _) => {
                unknown("the files differ; whether the disks do cannot be told through libvirt")
            }
        }
    }

    fn is_directory(&self, path: &Path) -> Result<bool> {
        let text = path.to_str().unwrap_or_default();
        Ok(self.steadily(|| self.find_pool(text))?.is_some())
    }

    fn labels_directories(&self) -> bool {
        false
    }

    fn make_directory(&self, path: &Path, rights: &DirectoryRights) -> Result<Identity> {
        self.make(path, rights)
    }

    fn name_directory(&self, from: &Path, to: &Path, _: &Identity) -> Result<bool> {
        let (from, to) = (from.display(), to.display());
        Err(self.wrong(format!("libvirt cannot give {from} the name {to}")))
    }

    fn remove_directory(&self, path: &Path, _: &Identity) -> Result<bool> {
        LibvirtStore::remove(self, path)
    }

    /// Times are all there is to tell one object from another, and a copy changes them. What this store made, or a
    /// journal says was made, is also known by those fields of a QCOW2 header that no copy changes.
    fn remove(&self, path: &Path, made: &Identity) -> Result<bool> {
        let Some(found) = self.steadily(|| self.find(path))? else { return Ok(false) };
        let uses = self.connection.uses()?;
        if let Some(used) = uses.iter().find(|used| used.runs && used.path == path) {
            return Err(self.refused(format!(
                "{}: the guest '{}' has it open",
                path.display(),
                used.domain
            )));
        }
        let now = found.facts.identity;
        let untouched =
            (now.size, now.mtime_ns, now.ctime_ns) == (made.size, made.mtime_ns, made.ctime_ns);
        let known = || {
            let known = self.known().get(path).cloned();
            Ok::<_, Error>(match known {
                Some(Proof { head: Some(head), .. }) => self.head(&found)? == Some(head),
                // Nothing but its length tells a raw file: so no guest may have it for its disk.
                Some(Proof { length, head: None, .. }) => {
                    self.head(&found)?.is_none()
                        && now.size == length
                        && !uses.iter().any(|used| used.path == path)
                }
                None => false,
            })
        };
        if !untouched && !known()? {
            return Err(self
                .refused(format!(
                    "{}: it was changed since it was made, and may be another file by now",
                    path.display()
                ))
                .hint("look at it, and remove it by hand"));
        }
        self.delete(path, &found)?;
        Ok(true)
    }
}
