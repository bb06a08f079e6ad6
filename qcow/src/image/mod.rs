//! One open QCOW2 image: its header, its snapshots, and where each guest range lives.

mod bitmaps;
#[cfg(feature = "ops")]
pub(crate) mod bits;
mod cache;
mod dirty;
#[cfg(feature = "ops")]
pub(crate) mod edit;
mod fault;
#[cfg(feature = "ops")]
pub(crate) mod first_cluster;
mod overlap_limits;
mod past_end;
mod preallocation;
mod refcounts;
mod snapshots;
mod tables;
#[cfg(feature = "ops")]
pub(crate) mod update;
pub(crate) mod write;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::exact::to_usize;
use crate::format::{
    BitmapEntry, CryptMethod, EntryRules, Geometry, Header, HeaderArea, HostOffset, Incompatible,
    LuksHeader, Snapshot, field,
};
use crate::io::{Storage, read_padded};
use crate::{Error, ErrorKind, Remedy, Result};

pub use bitmaps::BitmapInfo;
pub(crate) use cache::{TableCache, Tables};
pub use dirty::{Bitmap, DirtyRanges};
pub(crate) use fault::{Fault, Faults, is_damage, tolerate};
pub(crate) use refcounts::{RefcountBlock, Refcounts};
pub(crate) use snapshots::{Overlong, read_cut as read_cut_snapshots};
pub(crate) use tables::{Run, RunKind, TableWindow, check_identity, push_run};

/// Bytes that [`Header::peek`] needs.
const PEEK: usize = 24;
/// So much of the first cluster is read before it is known whether more of it is used: rarely, and it has up to
/// 2 MiB.
const FIRST_PAGE: usize = 4096;

/// QEMU cannot read beyond this offset of a file.
pub(crate) const MAX_FILE_OFFSET: u64 = (1 << 63) - (1 << 30);

/// An L1 table: that of the active image or of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct L1Table {
    pub(crate) offset: HostOffset,
    pub(crate) entries: u64,
}

/// What an image is opened for. It decides what keeps the image from being opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To be read: accepts what QEMU accepts for reading.
    Read,
    /// To be checked or repaired: accepts what `qemu-img check` accepts. A refcount table of zero
    /// clusters is for the check to report (trap 24); the encryption header is not looked at.
    Check,
}

/// An open QCOW2 image. Opening reads the header, the snapshot table and the bitmap directory;
/// the mapping tables are read when they are needed, in slices, so that memory does not grow
/// with the disk.
#[derive(Debug)]
pub struct Image {
    storage: Arc<dyn Storage>,
    area: HeaderArea,
    snapshots: Vec<Snapshot>,
    snapshot_table_len: u64,
    bitmaps: Vec<BitmapInfo>,
    luks: Option<LuksHeader>,
    l1: L1Table,
    /// Something that was looked up is past the end of the file.
    passes_end: AtomicBool,
}

impl Image {
    /// Opens the image in `storage`, accepting what QEMU accepts for reading.
    ///
    /// Nothing else is opened: neither backing nor data file.
    ///
    /// # Errors
    /// [`WrongFormat`](crate::ErrorKind::WrongFormat), [`Corrupt`](crate::ErrorKind::Corrupt) or
    /// [`Unsupported`](crate::ErrorKind::Unsupported), naming the structure and the offset.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use qcow::{image::Image, io::MemoryStorage};
    /// let error = Image::open(Arc::new(MemoryStorage::new(vec![0; 512]))).unwrap_err();
    /// assert_eq!(error.kind(), qcow::ErrorKind::WrongFormat);
    /// ```
    pub fn open(storage: Arc<dyn Storage>) -> Result<Self> {
        Self::open_for(storage, Purpose::Read)
    }

    /// As [`open`](Self::open), accepting what QEMU accepts for this purpose.
    pub(crate) fn open_for(storage: Arc<dyn Storage>, purpose: Purpose) -> Result<Self> {
        let area = read_header_area(&*storage, purpose)?;
        let header = &area.header;
        let l1 = L1Table { offset: header.l1_table_offset, entries: u64::from(header.l1_entries) };
        refuse_past_any_file("L1 table", l1.offset, l1.entries.saturating_mul(8))?;
        if purpose == Purpose::Check {
            area.has_data_file()?;
            refuse_past_any_file("refcount table", header.refcount_table_offset, 0)?;
        }
        let (snapshots, snapshot_table_len) = snapshots::read(&*storage, header)?;
        let bitmaps = bitmaps::read(&*storage, &area)?;
        let luks = area.extensions.crypto_header().filter(|_| purpose == Purpose::Read);
        let luks = luks.map(|(offset, _)| read_luks(&*storage, offset)).transpose()?;
        let passes_end = AtomicBool::new(false);
        Ok(Self { storage, area, snapshots, snapshot_table_len, bitmaps, luks, l1, passes_end })
    }

    /// The same image, seen as the internal snapshot with this id, or else this name, left it.
    /// The virtual size stays the current one, as in QEMU (traps 84, 87).
    ///
    /// # Errors
    /// As [`find_snapshot`](Self::find_snapshot).
    pub fn at_snapshot(self, wanted: &str) -> Result<Self> {
        let snapshot = self.find_snapshot(wanted)?.clone();
        self.at(&snapshot)
    }

    /// The same, of the snapshot with this place in the table: an id may be anything, and need not be the only one.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) if there are not so many.
    #[cfg(feature = "ops")]
    pub(crate) fn at_snapshot_index(self, index: usize) -> Result<Self> {
        let missing = || Error::new(ErrorKind::NotFound, "there are not so many snapshots");
        let snapshot = self.snapshots.get(index).ok_or_else(missing)?.clone();
        self.at(&snapshot)
    }

    fn at(mut self, snapshot: &Snapshot) -> Result<Self> {
        snapshot.check_l1(self.geometry())?;
        self.l1 =
            L1Table { offset: snapshot.l1_table_offset, entries: u64::from(snapshot.l1_entries) };
        Ok(self)
    }

    /// The internal snapshot with this id, or else this name. `snapshot.id=ID`, `snapshot.name=NAME`
    /// and both with a comma between them ask for just that, as `qemu-img convert -l` has it; a comma in
    /// an id or name is doubled there.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) if there is none, [`Usage`](crate::ErrorKind::Usage) if
    /// what is asked for is not understood.
    pub fn find_snapshot(&self, wanted: &str) -> Result<&Snapshot> {
        let wanted = snapshots::Wanted::parse(wanted)?;
        wanted.find(&self.snapshots).ok_or_else(|| {
            let message = format!("no internal snapshot has the {wanted}");
            Error::new(ErrorKind::NotFound, message).hint(Remedy::ListSnapshots)
        })
    }

    /// As [`find_snapshot`](Self::find_snapshot), where exactly one must have the id or the name.
    ///
    /// # Errors
    /// As there, and [`Usage`](crate::ErrorKind::Usage) if several have, with all of them.
    #[cfg(feature = "ops")]
    pub(crate) fn find_only_snapshot(&self, wanted: &str) -> Result<usize> {
        self.find_snapshot(wanted)?;
        let wanted = snapshots::Wanted::parse(wanted)?;
        wanted.find_only(&self.snapshots)
    }

    /// Header, extensions and backing name, as they are in the first cluster.
    pub fn area(&self) -> &HeaderArea {
        &self.area
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.area.header
    }

    /// Cluster size and entry width.
    pub fn geometry(&self) -> Geometry {
        self.area.header.geometry()
    }

    /// Size of the guest's disk in bytes, a multiple of 512.
    pub fn virtual_size(&self) -> u64 {
        self.area.header.virtual_size()
    }

    /// The internal snapshots, in the table's order.
    pub fn snapshots(&self) -> &[Snapshot] {
        &self.snapshots
    }

    /// Length of the snapshot table in bytes, without padding at its end.
    pub(crate) fn snapshot_table_len(&self) -> u64 {
        self.snapshot_table_len
    }

    /// The persistent bitmaps, in the directory's order.
    pub fn bitmaps(&self) -> &[BitmapInfo] {
        &self.bitmaps
    }

    /// The entries of the bitmap directory, read anew.
    #[cfg(feature = "ops")]
    pub(crate) fn bitmap_entries(&self) -> Result<Vec<BitmapEntry>> {
        bitmaps::entries(&*self.storage, &self.area)
    }

    /// Whether guest data lives in an external data file.
    pub fn has_data_file(&self) -> bool {
        self.area.header.incompatible.contains(Incompatible::DATA_FILE)
    }

    /// Whether guest data is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.area.header.crypt_method != CryptMethod::None
    }

    /// How the guest's data is encrypted, for LUKS.
    pub fn luks(&self) -> Option<&LuksHeader> {
        self.luks.as_ref()
    }

    /// Where the image's own bytes live.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// Bytes of the tables that the header claims: L1, refcount table, snapshots.
    pub(crate) fn table_bytes(&self) -> u64 {
        let header = self.header();
        let refcounts = u64::from(header.refcount_table_clusters)
            .saturating_mul(self.geometry().cluster_size());
        let snapshots = self.snapshots.iter().map(|snapshot| {
            let text = snapshot.id.len().saturating_add(snapshot.name.len()) as u64;
            u64::from(snapshot.l1_entries).saturating_mul(8).max(text)
        });
        let largest = snapshots.max().unwrap_or_default();
        let listed = (self.snapshots.len() as u64).saturating_mul(40);
        let l1 = self.l1.entries.saturating_mul(8).max(largest);
        l1.saturating_add(refcounts).saturating_add(listed)
    }

    pub(crate) fn l1(&self) -> L1Table {
        self.l1
    }

    pub(crate) fn rules(&self) -> EntryRules {
        EntryRules {
            geometry: self.geometry(),
            version: self.area.header.version,
            data_file: self.has_data_file(),
        }
    }
}

/// The header, and what follows it in the first cluster.
pub(crate) fn read_header_area(storage: &dyn Storage, purpose: Purpose) -> Result<HeaderArea> {
    let mut cluster = read_used(storage)?;
    if purpose == Purpose::Read {
        return HeaderArea::parse(&cluster);
    }
    let start = to_usize(field::REFCOUNT_TABLE_CLUSTERS);
    let field = cluster.get_mut(start..).and_then(|rest| rest.get_mut(..4)).unwrap_or_default();
    let clusters = field.first_chunk().copied().map_or(0, u32::from_be_bytes);
    if clusters == 0 && field.len() == 4 {
        field.copy_from_slice(&1u32.to_be_bytes());
    }
    let mut area = HeaderArea::parse(&cluster)?;
    area.header.refcount_table_clusters = clusters;
    Ok(area)
}

fn refuse_past_any_file(table: &'static str, offset: HostOffset, len: u64) -> Result<()> {
    if offset.0.saturating_add(len) <= MAX_FILE_OFFSET {
        return Ok(());
    }
    Err(Error::corrupt(format!("the {table} at {offset} is past any file")).structure("header"))
}

/// The first cluster, padded with zeros if the file is shorter.
fn read_first_cluster(storage: &dyn Storage) -> Result<Vec<u8>> {
    let mut prefix = [0; PEEK];
    read_padded(storage, &mut prefix, 0)?;
    let mut cluster = blank_cluster(&prefix)?;
    read_padded(storage, &mut cluster, 0)?;
    Ok(cluster)
}

/// The same, with zeros where nothing is that [`HeaderArea`] knows.
fn read_used(storage: &dyn Storage) -> Result<Vec<u8>> {
    let mut page = [0; FIRST_PAGE];
    read_padded(storage, &mut page, 0)?;
    let mut cluster = blank_cluster(&page)?;
    let known = cluster.len().min(page.len());
    match (page.get(..known), cluster.get_mut(..known)) {
        (Some(page), Some(start)) if HeaderArea::reach(page).is_some_and(|end| end <= known) => {
            start.copy_from_slice(page);
        }
        _ => read_padded(storage, &mut cluster, 0)?,
    }
    Ok(cluster)
}

/// Zeros, as many as the first cluster has bytes.
fn blank_cluster(first_bytes: &[u8]) -> Result<Vec<u8>> {
    let (_, cluster_bits) = Header::peek(first_bytes)?;
    let geometry = Geometry::new(cluster_bits, false)?;
    Ok(vec![0; usize::try_from(geometry.cluster_size()).unwrap_or(PEEK)])
}

fn read_luks(storage: &dyn Storage, offset: HostOffset) -> Result<LuksHeader> {
    let mut bytes = [0; LuksHeader::BYTES];
    read_padded(storage, &mut bytes, offset.0)?;
    LuksHeader::parse(&bytes).map_err(|error| error.host_offset(offset))
}

/// QEMU keeps ids and names as C strings: what follows a NUL does not count.
pub(crate) fn c_string(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default()
}
