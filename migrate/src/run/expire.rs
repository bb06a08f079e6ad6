//! Removing what was kept of guests that moved away, once it was kept long enough.

use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};

use super::JOURNALS;
use crate::Result;
use crate::journal::{Ended, Journal, Record, Side, Transaction};
use crate::store::{LocalStore, Store};

/// A file that was kept, and what became of it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Expired {
    /// The transaction that kept it.
    pub transaction: String,
    /// The file; the journals' directory if the transaction's journal cannot be read.
    pub path: PathBuf,
    /// It is gone; otherwise why it is not.
    pub removed: Result<()>,
}

/// Removes every file that a migration on this host kept for a number of days, if that time has passed by
/// `now` and it is still the file that was kept. `state` is the directory of journals and locks.
///
/// # Errors
/// [`Environment`](crate::ErrorKind::Environment) if the journals cannot be read or written.
pub fn expire(state: &Path, now: Timestamp) -> Result<Vec<Expired>> {
    let journals = state.join(JOURNALS);
    let mut all = Vec::new();
    for listed in Journal::list(&journals)? {
        match listed.transaction {
            Ok(transaction) if is_due(&transaction, now) => {}
            Ok(_) => continue,
            // What it keeps may be due.
            Err(error) => {
                let (transaction, path) = (listed.id, journals.clone());
                all.push(Expired { transaction, path, removed: Err(error) });
                continue;
            }
        }
        let mut journal = Journal::open(&journals, &listed.id)?;
        let root = journal.transaction().route.as_ref().map(|route| route.source_root.clone());
        let store = LocalStore::new(root.as_deref().unwrap_or(Path::new("/")))?;
        for kept in journal.transaction().renamed.clone() {
            // Gone already is as good.
            let removed = store.remove(&kept.to, &kept.identity).map(drop);
            if removed.is_ok() {
                journal.write(Record::Removed { host: Side::Source, path: kept.to.clone() })?;
            }
            all.push(Expired { transaction: listed.id.clone(), path: kept.to, removed });
        }
    }
    Ok(all)
}

fn is_due(transaction: &Transaction, now: Timestamp) -> bool {
    let kept = SignedDuration::from_hours(
        i64::from(transaction.plan.policy.retain_days).saturating_mul(24),
    );
    let ended = transaction.ended.as_deref().and_then(|time| time.parse::<Timestamp>().ok());
    transaction.closed == Some(Ended::Done)
        && !transaction.renamed.is_empty()
        && ended.is_some_and(|ended| now.duration_since(ended) >= kept)
}
