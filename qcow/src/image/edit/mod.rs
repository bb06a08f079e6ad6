//! Changes of a whole image in place that one header sector switches: snapshots, another size, an emptied
//! image.
//!
//! All that an image consists of (disk size, L1 table, refcount table, snapshot table, feature bits) is named
//! within the first 104 bytes, so within one sector. An [`Edit`] makes the new state beside the old one:
//!
//! 1. Tables that change get new places, in clusters that are free in the *old* image; nothing that
//!    the old image uses is written to. The refcounts of the new state go to new blocks (those that
//!    change) under a new refcount table.
//! 2. Barrier. Now both states are durable, and the header names the old one.
//! 3. The header's sector is written, and with it everything is switched at once.
//! 4. Barrier. Only then is the space that the old state had alone given back, and the file cut.
//!
//! A crash before the sector leaves the old image, behind it the new one; neither has leaks, because each
//! counts exactly what it uses. That takes two barriers, and free space for the tables that change.
//!
//! | step | with |
//! |---|---|
//! | open | [`Edit::open`], on a storage that is locked and an image whose refcounts were checked |
//! | space | [`allocate`](Edit::allocate), then [`write`](Edit::write) or [`write_pieces`](Edit::write_pieces) there |
//! | refcounts | [`raise`](Edit::raise), [`lower`](Edit::lower); for all that an L1 table leads to [`raise_all`](Edit::raise_all), [`lower_all`](Edit::lower_all) |
//! | flags | [`with_true_flags`](Edit::with_true_flags), when all refcounts are what they will be |
//! | all refcounts | [`set_width`](Edit::set_width) |
//! | fewer refcount blocks | [`trim_counts`](Edit::trim_counts) |
//! | a shorter file | [`survey`](Edit::survey), then [`vacate`](Edit::vacate) |
//! | header | [`set_header`](Edit::set_header), [`set_l1`](Edit::set_l1), [`replace_l1`](Edit::replace_l1); what is not a table's place, also extensions: [`set_area`](Edit::set_area) |
//! | after it | [`then`](Edit::then), for what lies in other sectors |
//! | end | [`finish`](Edit::finish), which gives a [`Change`]: look at its [`result`](Change::result), then [`apply`](Change::apply) it, or drop it and nothing was written |
//!
//! Memory: twice the refcount blocks in use (64 MiB for a file of 1 TiB with 64 KiB clusters), the L1 tables
//! that are changed, and what is written with `write`; L2 tables are copied one at a time.

mod area;
mod bitmaps;
mod change;
mod compact;
mod counts;
mod flags;
mod references;
mod release;
mod remap;
mod rewrite;
mod runs;
mod snapshots;
mod width;

use std::ops::Range;
use std::sync::Arc;

use crate::exact::{Exact, to_usize};
use crate::format::{
    Autoclear, EntryRules, Geometry, HeaderArea, HeaderPatch, HostOffset, Incompatible,
    MAX_L1_BYTES, RefcountWidth, SECTOR, Version, decode_table, encode_table,
};
use crate::io::{Storage, Zeroes, read_padded};
use crate::{Error, Remedy, Result};

use super::update::{Pieces, Staged};
use super::write::counts::{Counts, Got, Need};
use super::write::space::Space;
use super::{Image, Refcounts};

pub(crate) use change::Change;
pub(crate) use references::has_data;
pub(crate) use remap::Remap;

/// A new state of an image that is being made; see the module.
#[derive(Debug)]
pub(crate) struct Edit {
    image: Image,
    space: Space,
    staged: Staged,
    /// The header's sector as it will be.
    sector: Vec<u8>,
    /// The rest of the first cluster, if that changes too.
    area: Option<HeaderArea>,
    /// Refcount blocks that count nothing are given up, and the end of their table with them.
    trims_counts: bool,
    /// Refcounts get this width.
    width: Option<RefcountWidth>,
    /// Ranges that are zeroed before anything is written.
    zeroed: Vec<(HostOffset, u64, Zeroes)>,
    /// What is written after the switch, each of these durable before the next.
    later: Vec<Vec<HeaderPatch>>,
}

impl Edit {
    /// Begins a change of the image in `storage`, which nobody else writes to meanwhile, and which grows if
    /// `grows`. Nothing is written to it before [`Change::apply`].
    ///
    /// The refcounts are believed: a cluster whose refcount is wrongly zero would be written to. So check the
    /// image first (in this crate `ops::edit` does).
    ///
    /// # Errors
    /// As [`Image::open`]; [`Corrupt`](crate::ErrorKind::Corrupt) if the image is marked corrupt or dirty.
    pub(crate) fn open(storage: Arc<dyn Storage>, grows: bool) -> Result<Self> {
        let image = Image::open(Arc::clone(&storage))?;
        check_closed(&image)?;
        let (header, geometry) = (image.header(), image.geometry());
        let table = Refcounts::read(&image)?.table().to_vec();
        let place = header.refcount_table_offset;
        let mut counts = Counts::new(geometry, header.refcounts(), table, place)?;
        counts.keep_before();
        let clusters = geometry.clusters_for(storage.len());
        let fixed_end = (!grows).then(|| storage.len() >> geometry.cluster_bits());
        let space = Space::new(counts, geometry, clusters, fixed_end);
        let mut sector = vec![0; to_usize(SECTOR)];
        read_padded(&*storage, &mut sector, 0)?;
        Ok(Self {
            image,
            space,
            staged: Staged::new(storage),
            sector,
            area: None,
            trims_counts: false,
            width: None,
            zeroed: Vec::new(),
            later: Vec::new(),
        })
    }

    /// The image as it was when the change began.
    pub(crate) fn image(&self) -> &Image {
        &self.image
    }

    /// Cluster size and entry width.
    pub(crate) fn geometry(&self) -> Geometry {
        self.image.geometry()
    }

    fn rules(&self) -> EntryRules {
        self.image.rules()
    }

    /// Allocates `bytes`, rounded up to whole clusters, in a row. What is there until something is written is not known.
    ///
    /// # Errors
    /// [`NoSpace`](crate::ErrorKind::NoSpace) if the file cannot grow,
    /// [`Limit`](crate::ErrorKind::Limit) if the format cannot say more.
    pub(crate) fn allocate(&mut self, bytes: u64) -> Result<HostOffset> {
        self.allocate_from(bytes, 0)
    }

    /// As [`allocate`](Self::allocate), in no cluster below `from`.
    pub(crate) fn allocate_from(&mut self, bytes: u64, from: u64) -> Result<HostOffset> {
        let clusters = self.geometry().clusters_for(bytes).max(1);
        let found = self.with_space(|space| space.allocate_exactly(clusters, from))?;
        self.free_left_tables()?;
        self.host(found.start)
    }

    /// Has `bytes` written to space that was allocated by this change.
    pub(crate) fn write(&mut self, host: HostOffset, bytes: Vec<u8>) -> Result<()> {
        self.staged.write(host.0, bytes)
    }

    /// As [`write`](Self::write), for bytes that are made when they are needed.
    pub(crate) fn write_pieces(&mut self, pieces: Arc<dyn Pieces>) -> Result<()> {
        self.staged.write_pieces(pieces)
    }

    /// Allocates space for `bytes`, padded with zeros to whole clusters, and has them written there.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate).
    pub(crate) fn write_new(&mut self, mut bytes: Vec<u8>) -> Result<HostOffset> {
        let host = self.allocate(bytes.len() as u64)?;
        let clusters = self.geometry().clusters_for(bytes.len() as u64).max(1);
        bytes.resize(to_usize(clusters.times(self.geometry().cluster_size())?), 0);
        self.write(host, bytes)?;
        Ok(host)
    }

    /// The clusters that `len` bytes at `host` touch.
    pub(crate) fn clusters(&self, host: HostOffset, len: u64) -> Result<Range<u64>> {
        let bits = self.geometry().cluster_bits();
        let first = host.0 >> bits;
        let end = self.geometry().clusters_for(host.0.plus(len)?);
        Ok(first..if len == 0 { first } else { end })
    }

    /// Counts one more reference to each of these clusters, which have one already.
    ///
    /// # Errors
    /// [`Limit`](crate::ErrorKind::Limit) if the width of the refcounts does not allow it; the error
    /// names the cluster.
    #[allow(dead_code, reason = "operations that share single clusters")]
    pub(crate) fn raise(&mut self, clusters: Range<u64>) -> Result<()> {
        self.shift(clusters, 1, true)
    }

    /// Counts one reference less to each of these clusters. Without any left they are free in the new state, and
    /// so not written to by this change.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) if one has none.
    pub(crate) fn lower(&mut self, clusters: Range<u64>) -> Result<()> {
        self.shift(clusters, 1, false)
    }

    /// Counts this many more, or else fewer, references to each of these clusters.
    ///
    /// # Errors
    /// As [`raise`](Self::raise) and [`lower`](Self::lower).
    pub(crate) fn shift(
        &mut self,
        mut clusters: Range<u64>,
        times: u64,
        raise: bool,
    ) -> Result<()> {
        while !clusters.is_empty() {
            let now = clusters.clone();
            clusters = self.with_space(|space| space.shift(now.clone(), times, raise))?;
        }
        Ok(())
    }

    /// The cluster's refcount in the new state, as far as it is made.
    pub(crate) fn refcount(&mut self, cluster: u64) -> Result<u64> {
        self.with_space(|space| space.counts.get(cluster))
    }

    /// Changes the header, within its first sector.
    ///
    /// # Errors
    /// [`Internal`](crate::ErrorKind::Internal) if that is not where the change is.
    pub(crate) fn set_header(&mut self, patch: &HeaderPatch) -> Result<()> {
        let start = to_usize(patch.offset);
        let field = self.sector.get_mut(start..start.plus(patch.bytes.len())?);
        let field = field.ok_or_else(|| Error::internal("a header field past the first sector"))?;
        field.copy_from_slice(&patch.bytes);
        Ok(())
    }

    /// Has `len` bytes at `host`, in space that was allocated by this change, read as zeros, with their space reserved
    /// or not. Where the file did not reach before, they do so already.
    pub(crate) fn zero(&mut self, host: HostOffset, len: u64, how: Zeroes) -> Result<()> {
        self.staged.reaches(host.0.plus(len)?);
        self.zeroed.push((host, len, how));
        Ok(())
    }

    /// Has these changes written after the switch, durable before what is given with the next call. They
    /// are not part of the one step: a crash may leave those of earlier calls alone.
    #[allow(dead_code, reason = "operations on what lies outside the first cluster")]
    pub(crate) fn then(&mut self, writes: Vec<HeaderPatch>) {
        self.later.push(writes);
    }

    /// Reads a table of 64-bit entries of the old image.
    ///
    /// # Errors
    /// [`Limit`](crate::ErrorKind::Limit) if it is longer than an L1 table can be.
    pub(crate) fn read_table(&self, host: HostOffset, entries: u64) -> Result<Vec<u64>> {
        let bytes = entries.times(8)?;
        if bytes > MAX_L1_BYTES {
            return Err(Error::limit(format!("an L1 table of {entries} entries")));
        }
        let mut table = vec![0; to_usize(bytes)];
        read_padded(&**self.image.storage(), &mut table, host.0)
            .map_err(|error| error.structure("L1 table"))?;
        Ok(decode_table(&table))
    }

    /// The entries of the active L1 table of the old image.
    ///
    /// # Errors
    /// As [`read_table`](Self::read_table).
    pub(crate) fn active_l1(&self) -> Result<Vec<u64>> {
        let header = self.image.header();
        self.read_table(header.l1_table_offset, header.l1_entries.into())
    }

    /// Gives the image another active L1 table, in new space. The old one's own space is not touched; what it
    /// leads to is not either.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate).
    pub(crate) fn set_l1(&mut self, entries: &[u64]) -> Result<()> {
        let count = u32::try_from(entries.len())
            .map_err(|_| Error::internal("an L1 table of more than 2^32 entries"))?;
        let host = match entries {
            // A disk of no bytes.
            [] => HostOffset(0),
            entries => self.write_new(encode_table(entries))?,
        };
        self.set_header(&HeaderPatch::l1_table(host, count))
    }

    /// As [`set_l1`](Self::set_l1), and frees the old table's own space; if the entries are those of the old one,
    /// does nothing.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate).
    pub(crate) fn replace_l1(&mut self, entries: &[u64]) -> Result<()> {
        if self.active_l1()? == entries {
            return Ok(());
        }
        self.set_l1(entries)?;
        let header = self.image.header();
        let len = u64::from(header.l1_entries).times(8)?;
        let old = self.clusters(header.l1_table_offset, len)?;
        self.lower(old)
    }

    /// Replaces the active L1 table by an empty one, and drops all that the old one led to: the disk reads as
    /// what is below it. Snapshots stay what they are; bitmaps are the caller's business.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate) and [`lower`](Self::lower).
    #[allow(dead_code, reason = "committing an overlay")]
    pub(crate) fn empty(&mut self) -> Result<()> {
        let old = self.active_l1()?;
        self.lower_all(&old)?;
        let entries = self.geometry().l1_entries_for(self.image.virtual_size());
        self.replace_l1(&vec![0; to_usize(entries)])
    }

    /// Asks about space, and reads the refcount blocks that the answer needs.
    fn with_space<T>(&mut self, mut ask: impl FnMut(&mut Space) -> Got<T>) -> Result<T> {
        loop {
            let (index, host) = match ask(&mut self.space) {
                Ok(answer) => return Ok(answer),
                Err(Need::Failed(error)) => return Err(error),
                Err(Need::Block(index, host)) => (index, host),
            };
            let mut bytes = vec![0; to_usize(self.geometry().cluster_size())];
            read_padded(&**self.image.storage(), &mut bytes, host.0)
                .map_err(|error| error.structure("refcount block"))?;
            self.space.counts.loaded(index, host, bytes);
        }
    }

    /// Frees the places that the refcount table has left.
    fn free_left_tables(&mut self) -> Result<()> {
        for cluster in self.space.left_by_table() {
            self.with_space(|space| space.lower(cluster))?;
        }
        Ok(())
    }

    fn host(&self, cluster: u64) -> Result<HostOffset> {
        cluster.times(self.geometry().cluster_size()).map(HostOffset)
    }

    /// Ends the making: gives refcounts their new places, and has the header name it all.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate).
    pub(crate) fn finish(mut self) -> Result<Change> {
        self.clear_unknown_autoclear()?;
        match self.width {
            Some(width) => self.write_counts_anew(width)?,
            None => self.move_counts()?,
        }
        let (old_end, new_end) = (self.image.storage().len(), self.end()?);
        let freed = self.space.counts.freed()?;
        if self.width.is_none() {
            for put in self.space.counts.freeze()?.unnamed {
                self.staged.write(put.offset, put.bytes)?;
            }
        }
        match self.area.take() {
            Some(area) => self.stage_area(area)?,
            None => {
                let mut old = vec![0; to_usize(SECTOR)];
                read_padded(&**self.image.storage(), &mut old, 0)?;
                self.staged.barrier();
                self.staged.replace(0, &old, &self.sector)?;
            }
        }
        for writes in self.later {
            self.staged.barrier();
            writes.into_iter().try_for_each(|patch| self.staged.patch(patch))?;
        }
        let geometry = self.image.geometry();
        Change::new(self.staged, self.zeroed, geometry, &freed, old_end, new_end)
    }

    /// Autoclear bits that this crate does not know say something that it does not keep true.
    fn clear_unknown_autoclear(&mut self) -> Result<()> {
        let header = self.image.header();
        let known = header.autoclear & Autoclear::all();
        if header.version == Version::V2 || known == header.autoclear {
            return Ok(());
        }
        let patch = HeaderPatch::autoclear(known.bits());
        let start = to_usize(patch.offset);
        let now = self.sector.get(start..start.plus(patch.bytes.len())?);
        // Somebody may have set others on purpose.
        if now == Some(&header.autoclear.bits().to_be_bytes()[..]) {
            self.set_header(&patch)?;
        }
        Ok(())
    }

    /// Where the last cluster in use of the new state ends.
    fn end(&mut self) -> Result<u64> {
        let end = self.with_space(|space| space.counts.end())?;
        Ok(self.host(end)?.0)
    }
}

/// Checks that the image was closed properly, and that nobody found it corrupt.
fn check_closed(image: &Image) -> Result<()> {
    let bits = image.header().incompatible;
    if bits.contains(Incompatible::CORRUPT) {
        return Err(Error::corrupt("the image is marked corrupt").hint(Remedy::Repair));
    }
    if bits.contains(Incompatible::DIRTY) {
        let message = "the image was not closed properly, and its refcounts may be wrong";
        return Err(Error::corrupt(message).hint(Remedy::Repair));
    }
    Ok(())
}
