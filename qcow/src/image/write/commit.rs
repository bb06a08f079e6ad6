//! Commits a group: what was written becomes durable, and so does the mapping that leads there.

use std::sync::PoisonError;
use std::sync::atomic::Ordering::SeqCst;

use super::counts::FrozenCounts;
use super::slices::FrozenMap;
use super::{Put, Writer, put};
use crate::Result;
use crate::exact::Exact;

/// What commits know of each other. Its lock is held for the whole of a commit.
#[derive(Debug, Default)]
pub(super) struct Commits {
    /// The number of changes that had ended when the last commit began.
    durable: u64,
    /// Writing this failed: it goes first the next time.
    pending: Option<Frozen>,
    barriers: u64,
}

/// A group that has ended: what of it goes to the disk.
#[derive(Debug)]
struct Frozen {
    counts: FrozenCounts,
    map: FrozenMap,
}

impl Writer {
    /// Makes durable what was written before it was called.
    ///
    /// Flushes that wait for each other become one. If writing fails, what was to be written is kept, and
    /// the next flush tries again; a failed barrier is final.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io), [`NoSpace`](crate::ErrorKind::NoSpace).
    pub(crate) fn flush(&self) -> Result<()> {
        let wanted = self.changes.load(SeqCst);
        let mut commits = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
        self.healthy()?;
        // Another flush began after what this one is to make durable had ended.
        if commits.durable >= wanted && commits.pending.is_none() {
            return Ok(());
        }
        self.commit(&mut commits)
    }

    /// As [`flush`](Self::flush), lowers the refcounts of all that was dropped, and stores the bitmaps.
    pub(crate) fn close(&self) -> Result<()> {
        self.flush()?;
        self.commit_all()?;
        if self.has_bitmaps() && !self.unprepared.load(SeqCst) {
            self.store_bitmaps()?;
        }
        Ok(())
    }

    /// Commits until nothing is left to be written, when no request is in flight.
    pub(super) fn commit_all(&self) -> Result<()> {
        let mut commits = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
        // What the last group dropped settles in the next.
        for _ in 0..2 {
            self.settle()?;
            if !self.is_clean() {
                self.commit(&mut commits)?;
            }
        }
        Ok(())
    }

    /// Barriers so far.
    pub(crate) fn barriers(&self) -> u64 {
        self.commits.lock().unwrap_or_else(PoisonError::into_inner).barriers
    }

    fn is_clean(&self) -> bool {
        let map = self.map();
        map.is_clean() && self.space().counts.is_clean()
    }

    fn commit(&self, commits: &mut Commits) -> Result<()> {
        if let Some(pending) = commits.pending.take() {
            self.carry_out(pending, commits)?;
        }
        self.settle()?;
        let changes = self.changes.load(SeqCst);
        let frozen = self.freeze()?;
        self.carry_out(frozen, commits)?;
        commits.durable = changes;
        Ok(())
    }

    /// Ends the group.
    fn freeze(&self) -> Result<Frozen> {
        let mut map = self.map_mut();
        let mut space = self.space();
        let counts = space.counts.freeze()?;
        let mut map = map.freeze()?;
        map.drops.extend(space.left_by_table());
        Ok(Frozen { counts, map })
    }

    fn carry_out(&self, frozen: Frozen, commits: &mut Commits) -> Result<()> {
        match self.write_phases(&frozen, commits) {
            Ok(()) => {
                self.map_mut().committed(frozen.map.group);
                self.space().dropped(frozen.map.drops);
                Ok(())
            }
            Err(error) => {
                commits.pending = Some(frozen);
                Err(error)
            }
        }
    }

    fn write_phases(&self, frozen: &Frozen, commits: &mut Commits) -> Result<()> {
        let Frozen { counts, map } = frozen;
        if !counts.unnamed.is_empty() {
            self.puts(&counts.unnamed)?;
            self.sync(commits)?;
        }
        self.puts(&counts.changed)?;
        self.puts(&map.tables)?;
        if let Some(data) = &self.data {
            commits.barriers = commits.barriers.plus(1)?;
            self.barrier(&**data)?;
        }
        let metadata_only =
            self.data.is_some() && counts.changed.is_empty() && map.tables.is_empty();
        if !metadata_only {
            self.sync(commits)?;
        }
        if !map.entries.is_empty() {
            self.puts(&map.entries)?;
            self.sync(commits)?;
        }
        Ok(())
    }

    fn sync(&self, commits: &mut Commits) -> Result<()> {
        commits.barriers = commits.barriers.plus(1)?;
        self.barrier(&*self.storage)
    }

    fn puts(&self, puts: &[Put]) -> Result<()> {
        puts.iter().try_for_each(|Put { offset, bytes }| put(&*self.storage, bytes, *offset))
    }

    /// Lowers the refcounts of clusters that nothing leads to any more.
    fn settle(&self) -> Result<()> {
        loop {
            let settled = self.space().settled(&self.gate);
            let Some(clusters) = settled else { return Ok(()) };
            for cluster in clusters {
                self.forget_decoded(cluster);
                if self.with_space(|space| space.counts.get(cluster))? == 1 {
                    // It is about to be free. Before it can be given out again:
                    self.metadata.write().unwrap_or_else(PoisonError::into_inner).remove(&cluster);
                    if self.punch {
                        // That its space is not given back hurts nothing.
                        let size = self.geometry().cluster_size();
                        let _ = self.storage.discard(cluster.times(size)?, size);
                    }
                }
                self.with_space(|space| space.lower(cluster))?;
            }
        }
    }
}
