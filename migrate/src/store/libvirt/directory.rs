//! Directories through libvirt: a pool over a directory can be built, which makes it, and deleted, which removes it if
//! it is empty. libvirt gives it owner and mode, but no label, and does not tell which directory is which.

use std::path::Path;

use super::{LibvirtStore, random, volume};
use crate::Result;
use crate::driver::libvirt::patiently;
use crate::facts::{DirectoryRights, Identity};

/// `VIR_STORAGE_POOL_BUILD_NEW` is 0: makes the directory, and those above it that are missing.
const BUILD: u32 = 0;

impl LibvirtStore {
    pub(super) fn make(&self, path: &Path, rights: &DirectoryRights) -> Result<Identity> {
        let text = self.name_of(path)?;
        // libvirt would change the rights of one that is there.
        if self.steadily(|| self.find_pool(text))?.is_some() {
            return Err(self.refused(format!("{text}: it exists already")));
        }
        self.with_pool(text, Some(rights), |pool| pool.build(BUILD))?;
        self.steadily(|| self.existing_pool(text)).map(drop)?;
        Ok(Identity::default())
    }

    /// Which one it is cannot be told; but nothing is lost with an empty one.
    pub(super) fn remove(&self, path: &Path) -> Result<bool> {
        let text = self.name_of(path)?;
        let Some(pool) = self.steadily(|| self.pool(text))? else { return Ok(false) };
        if self.connection.say(pool.num_of_volumes())? > 0 {
            return Err(self.refused(format!("{text}: the directory is not empty")));
        }
        let name = self.connection.say(pool.name())?;
        let mut ours = self.pools.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(at) = ours.iter().position(|known| *known == name) else {
            return Err(self.refused(format!("{text}: the pool '{name}' uses the directory")));
        };
        self.connection.say(patiently(|| pool.destroy()))?;
        ours.remove(at);
        drop(ours);
        match self.with_pool(text, None, |pool| pool.delete(0)) {
            Err(error) if error.message().contains("not empty") => {
                Err(self.refused(format!("{text}: the directory is not empty")))
            }
            outcome => outcome.map(|()| true),
        }
    }

    /// Does something with a pool that is defined for that.
    fn with_pool(
        &self,
        directory: &str,
        rights: Option<&DirectoryRights>,
        act: impl Fn(&virt::storage_pool::StoragePool) -> Result<(), virt::error::Error>,
    ) -> Result<()> {
        let name = format!("qcowtool-{:016x}", random());
        let xml = volume::pool_with_rights(&name, directory, rights);
        let connect = self.connection.connect()?;
        let pool = self.connection.say(connect.define_storage_pool_xml(&xml, 0))?;
        let done = self.connection.say(patiently(|| act(&pool)));
        let undefined = self.connection.say(patiently(|| pool.undefine()));
        done.and(undefined)
    }

    fn name_of<'a>(&self, path: &'a Path) -> Result<&'a str> {
        volume::split(path)?;
        Ok(path.to_str().unwrap_or_default())
    }
}
