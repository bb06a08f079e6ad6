//! Undoing what a transaction made: exactly that, and nothing else.

use std::path::{Path, PathBuf};

use super::record::{Ended, Outcome, Record, Side};
use super::transaction::Made;
use super::{Journal, Transaction};
use crate::store::Store;
use crate::{Error, ErrorKind, Result};

/// What was undone and what was not.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct RolledBack {
    /// What was removed, with its host.
    pub removed: Vec<(Side, PathBuf)>,
    /// What was left.
    pub left: Vec<Left>,
    /// Storage pools that the transaction made; the caller that made them removes them.
    pub pools: Vec<(Side, String)>,
}

impl RolledBack {
    /// Everything that could be done is done, and the journal is closed. Otherwise it stays open, and
    /// the roll-back can be tried again.
    pub fn is_complete(&self) -> bool {
        !self.left.iter().any(|left| left.again)
    }
}

/// Something that a roll-back did not remove.
#[derive(Debug)]
#[non_exhaustive]
pub struct Left {
    /// On which host.
    pub host: Side,
    /// Where.
    pub path: PathBuf,
    /// Why.
    pub why: String,
    /// It is ours and should go: worth another try when the reason has passed.
    pub again: bool,
}

/// Removes what the transaction made, the last first, and closes the journal.
///
/// What the journal says was made is removed if it is still the same object and not in use. Where
/// it only says that something was going to be made, the unfinished file is removed; something
/// that has the final name is left and named, unless its content proves that it is ours.
///
/// # Errors
/// [`Refused`](crate::ErrorKind::Refused) if the transaction has ended;
/// [`InDoubt`](crate::ErrorKind::InDoubt) if libvirt was asked to migrate and it is not on record that
/// the guest stayed at the source; [`Environment`](crate::ErrorKind::Environment) if the journal
/// cannot be written.
pub fn roll_back(
    journal: &mut Journal,
    source: &dyn Store,
    destination: &dyn Store,
) -> Result<RolledBack> {
    check(journal.transaction())?;
    let mut result =
        RolledBack { pools: journal.transaction().pools.clone(), ..Default::default() };
    let objects = journal.transaction().objects.clone();
    for object in objects.iter().rev() {
        let store = match object.host {
            Side::Source => source,
            Side::Destination => destination,
        };
        let left = result.left.len();
        if let Some(path) = undo(store, object, &mut result.left) {
            result.removed.push((object.host, path));
        }
        if result.left.len() == left {
            journal.write(Record::Removed { host: object.host, path: object.path.clone() })?;
        }
    }
    if result.is_complete() {
        journal.write(Record::Closed { result: Ended::RolledBack })?;
    }
    Ok(result)
}

/// Only a guest that stayed where it was needs none of what we made.
fn check(transaction: &Transaction) -> Result<()> {
    let id = &transaction.id;
    if transaction.closed.is_some() {
        return Err(Error::refused(format!("the transaction {id} has ended")));
    }
    if transaction.migrate_called && transaction.outcome != Some(Outcome::AtSource) {
        return Err(Error::new(
            ErrorKind::InDoubt,
            format!("it is not on record that the guest of {id} stayed at its source"),
        )
        .hint("find out where it runs first"));
    }
    if !transaction.renamed.is_empty() {
        return Err(Error::refused(format!("{id} has archived source files"))
            .hint("its guest has moved; move it back with a transaction of its own"));
    }
    Ok(())
}

/// The path that was removed, if any.
fn undo(store: &dyn Store, object: &Made, left: &mut Vec<Left>) -> Option<PathBuf> {
    let mut leave = |path: &Path, why: String, again: bool| {
        left.push(Left { host: object.host, path: path.to_path_buf(), why, again });
        None
    };
    let path = &object.path;
    if object.directory {
        return match remove_directory(store, object) {
            Ok(removed) => removed.then(|| path.clone()),
            // It is not empty or not ours, and stays so.
            Err(error) => leave(path, error.to_string(), error.kind() != ErrorKind::Refused),
        };
    }
    if let Some(identity) = &object.identity {
        if let Some(proof) = &object.proof {
            store.trust(path, proof);
        }
        return match store.remove(path, identity) {
            Ok(removed) => removed.then(|| path.clone()),
            Err(error) => {
                // Another object is not ours. One that is in use is, and so may be one that cannot be
                // seen now.
                let other = store.look(path).is_ok_and(|now| {
                    now.is_some_and(|now| {
                        (now.identity.device, now.identity.inode)
                            != (identity.device, identity.inode)
                    })
                });
                leave(path, error.to_string(), !other)
            }
        };
    }
    let unfinished = object.temporary.as_deref().and_then(|temporary| {
        match remove_unfinished(store, temporary, path) {
            Ok(removed) => removed.then(|| temporary.to_path_buf()),
            Err(error) => leave(temporary, error.to_string(), true),
        }
    });
    // Where there is no other name, it was made under its own.
    if let (None, Some(proof)) = (&object.temporary, &object.proof) {
        match store.discard(path, proof) {
            Ok(true) => return Some(path.clone()),
            Ok(false) => {}
            Err(error) => return leave(path, error.to_string(), true),
        }
    }
    match store.look(path) {
        Ok(None) => {}
        Ok(Some(_)) => {
            let why = "a file exists, but the journal does not say that this run created it";
            leave(path, why.to_owned(), false);
        }
        Err(error) => {
            leave(path, error.to_string(), true);
        }
    }
    unfinished
}

/// Removes a directory that was made and is empty, under whichever of its two names it is.
fn remove_directory(store: &dyn Store, object: &Made) -> Result<bool> {
    let Made { path, temporary, identity, .. } = object;
    let made = identity.unwrap_or_default();
    if let Some(temporary) = temporary
        && store.remove_directory(temporary, &made)?
    {
        return Ok(true);
    }
    if identity.is_some() {
        return store.remove_directory(path, &made);
    }
    if temporary.is_none() && store.is_directory(path)? {
        return Err(Error::refused(
            "a directory exists, but the journal does not say that this run created it",
        ));
    }
    Ok(false)
}

/// Removes what has the name that only unfinished files of ours have, and its own name if it was just
/// being given that.
fn remove_unfinished(store: &dyn Store, temporary: &Path, path: &Path) -> Result<bool> {
    let Some(found) = store.look(temporary)? else { return Ok(false) };
    let identity = found.identity;
    match identity.links {
        _ if found.block_device => {}
        Some(1) => return store.remove(temporary, &identity),
        Some(2) => {
            let named = store.look(path)?.map(|named| named.identity);
            if named == Some(identity) {
                store.remove(path, &identity)?;
                return store.remove(temporary, &identity);
            }
        }
        _ => {}
    }
    Err(Error::refused("it is not an unfinished file of ours"))
}
