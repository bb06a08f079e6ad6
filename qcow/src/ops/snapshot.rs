//! Internal snapshots: takes them, applies them, deletes them.
//!
//! Each is one switch of the header's sector, with two barriers, and is not seen half done: a crash leaves the image
//! as it was or as it is to be, without leaks. The work grows with the tables of the image, not with its data:
//! the active image gets copies of the L2 tables whose copied flags change.
//!
//! Images with an external data file have no internal snapshots: its bytes lie at fixed places.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::bitmap::mark_all;
use super::edit::{Changed, Opened, change};
use crate::chain::Format;
use crate::check::Repaired;
use crate::exact::{Exact, to_usize};
use crate::format::{HeaderPatch, MAX_SNAPSHOTS, Snapshot};
use crate::image::edit::Edit;
use crate::setters::setters;
use crate::{CancelToken, Error, ErrorKind, Observer, Remedy, Result};

/// Longest name that QEMU keeps whole, in bytes.
const MAX_NAME: usize = 255;

/// What becomes of persistent bitmaps when a snapshot is applied: the disk changes without a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum BitmapRule {
    /// An image with bitmaps is refused.
    #[default]
    Refuse,
    /// Bitmaps that record writes have as dirty, too, what the two states have in different clusters: the next backup
    /// copies that, and is right. What was written and is the same may be among it.
    Mark,
    /// The bitmaps are removed: the next backup is a full one.
    Drop,
}

/// How to take, apply or delete a snapshot.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct SnapshotOptions {
    /// Format of the image; `None` looks at its first bytes.
    pub format: Option<Format>,
    /// Make the new state in memory and check it, and write nothing.
    pub dry_run: bool,
    /// Worker threads of the check; 0 means one per core, at most 16.
    pub threads: usize,
    /// Take a snapshot although another has the same name.
    pub duplicate: bool,
    /// When applying one: what becomes of bitmaps.
    pub bitmaps: BitmapRule,
    /// When applying one: the active image gets the state of the machine too, if the snapshot has one. Otherwise it
    /// stays with the snapshot.
    pub vm_state: bool,
}

setters!(SnapshotOptions {
    dry_run: bool,
    threads: usize,
    duplicate: bool,
    bitmaps: BitmapRule,
    vm_state: bool,
} into {
    format: Option<Format>,
});

/// What was, or would be, done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct SnapshotOutcome {
    /// The snapshot's id.
    pub id: String,
    /// Its name. What is not UTF-8 is replaced.
    pub name: String,
    /// Whether this is only a plan.
    pub dry_run: bool,
    /// Size of the guest's disk in bytes, before and after.
    pub size_before: u64,
    /// The same afterwards.
    pub size: u64,
    /// Bytes of data that nothing else refers to and that are gone: what only the active image had if a snapshot is
    /// applied, what only the snapshot had if it is deleted.
    pub data_lost: u64,
    /// Persistent bitmaps that are gone.
    pub bitmaps_dropped: u64,
    /// Persistent bitmaps that have what has changed as dirty.
    pub bitmaps_marked: u64,
    /// Bytes of the file that became free, tables included.
    pub bytes_freed: u64,
    /// Length of the file afterwards.
    pub file_size: u64,
    /// What was, or would be, repaired before, because the image had not been closed properly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repaired: Option<Repaired>,
}

/// What an operation says of itself.
#[derive(Debug, Default)]
struct Made {
    id: Vec<u8>,
    name: Vec<u8>,
    size: u64,
    lost_clusters: u64,
    bitmaps_dropped: u64,
    bitmaps_marked: u64,
}

/// Takes a snapshot of the active image, under `name`.
///
/// Its id is the largest number among the ids, plus one. It has no VM state: what the active image has of one,
/// from a snapshot that was applied, goes with this snapshot.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("vm.qcow2");
/// use qcow::ops::create::{CreateOptions, create};
/// use qcow::ops::snapshot::{self, SnapshotOptions};
/// use qcow::{CancelToken, Silent};
///
/// create(&path, &CreateOptions::default().size(1 << 30))?;
/// let (options, cancel) = (SnapshotOptions::default(), CancelToken::new());
/// let taken = snapshot::create(&path, "before the upgrade", &options, &Silent, &cancel)?;
/// assert_eq!(taken.id, "1");
/// snapshot::apply(&path, "before the upgrade", &options, &Silent, &cancel)?;
/// snapshot::delete(&path, "snapshot.id=1", &options, &Silent, &cancel)?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`InUse`](ErrorKind::InUse) if another process uses the image; [`Exists`](ErrorKind::Exists) if a snapshot
/// has the name; [`Limit`](ErrorKind::Limit) if there are too many, if the name is too long, or if a refcount would
/// not fit; [`Unsupported`](ErrorKind::Unsupported) for raw images and images with a data file;
/// [`Corrupt`](ErrorKind::Corrupt) if the image is to be repaired first. Nothing is written then.
pub fn create(
    path: &Path,
    name: &str,
    options: &SnapshotOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<SnapshotOutcome> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let date = (u32::try_from(now.as_secs()).unwrap_or(u32::MAX), now.subsec_nanos());
    run(path, Task::Create { name, date }, options, observer, cancel)
}

/// Makes the active image what the snapshot is that has the id or name `wanted` (see
/// [`Image::find_snapshot`](crate::image::Image::find_snapshot) for `snapshot.id=` and `snapshot.name=`), the size
/// of the disk included. The snapshot stays. What only the active image had is gone.
///
/// # Errors
/// As [`create`]; [`NotFound`](ErrorKind::NotFound) if there is no such snapshot, [`Usage`](ErrorKind::Usage) if
/// there are several, or if the image has persistent bitmaps and [`BitmapRule::Refuse`] holds.
pub fn apply(
    path: &Path,
    wanted: &str,
    options: &SnapshotOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<SnapshotOutcome> {
    run(path, Task::Apply(wanted), options, observer, cancel)
}

/// Deletes the snapshot that has the id or name `wanted`, and gives back the space that only it used.
///
/// # Errors
/// As [`apply`].
pub fn delete(
    path: &Path,
    wanted: &str,
    options: &SnapshotOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<SnapshotOutcome> {
    run(path, Task::Delete(wanted), options, observer, cancel)
}

/// Which of the three.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Task<'a> {
    Create { name: &'a str, date: (u32, u32) },
    Apply(&'a str),
    Delete(&'a str),
}

fn run(
    path: &Path,
    task: Task<'_>,
    options: &SnapshotOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<SnapshotOutcome> {
    let opened = Opened::file(path, options.dry_run).map_err(|error| error.file(path))?;
    let qcow2 = opened.check_qcow2(path, options.format, "internal snapshots");
    let outcome = qcow2.and_then(|()| run_on(&opened, task, options, observer, cancel));
    outcome.map_err(|error| error.file(path))
}

/// Does it to the image in a storage.
pub(crate) fn run_on(
    opened: &Opened,
    task: Task<'_>,
    options: &SnapshotOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<SnapshotOutcome> {
    let (outcome, Changed { freed, file_len, repaired, .. }) =
        change(opened, options.threads, observer, cancel, |edit| {
            refuse_data_file(edit)?;
            let made = match task {
                Task::Create { name, date } => add(edit, name, date, options.duplicate),
                Task::Apply(wanted) => revert(edit, wanted, options),
                Task::Delete(wanted) => remove(edit, wanted),
            }?;
            Ok(SnapshotOutcome {
                id: String::from_utf8_lossy(&made.id).into_owned(),
                name: String::from_utf8_lossy(&made.name).into_owned(),
                dry_run: options.dry_run,
                size_before: edit.image().virtual_size(),
                size: made.size,
                data_lost: made.lost_clusters.times(edit.geometry().cluster_size())?,
                bitmaps_dropped: made.bitmaps_dropped,
                bitmaps_marked: made.bitmaps_marked,
                bytes_freed: 0,
                file_size: 0,
                repaired: None,
            })
        })?;
    Ok(SnapshotOutcome { bytes_freed: freed, file_size: file_len, repaired, ..outcome })
}

fn refuse_data_file(edit: &Edit) -> Result<()> {
    if !edit.image().has_data_file() {
        return Ok(());
    }
    Err(Error::unsupported("an image with an external data file cannot have internal snapshots")
        .hint(Remedy::Flatten))
}

fn add(edit: &mut Edit, name: &str, date: (u32, u32), duplicate: bool) -> Result<Made> {
    check_new_name(edit, name, duplicate)?;
    let image = edit.image();
    let (header, size) = (image.header(), image.virtual_size());
    let mut snapshots = image.snapshots().to_vec();
    let id = next_id(&snapshots).to_string().into_bytes();
    snapshots.push(Snapshot {
        l1_table_offset: header.l1_table_offset,
        l1_entries: header.l1_entries,
        id: id.clone(),
        name: name.as_bytes().to_vec(),
        date_sec: date.0,
        date_nsec: date.1,
        vm_clock_nsec: 0,
        vm_state_size: 0,
        disk_size: Some(size),
        icount: Some(0),
        unknown_extra: Vec::new(),
    });
    // The snapshot takes the L1 table itself, and all references with it.
    let mut l1 = edit.active_l1()?;
    edit.raise_all(&l1)?;
    let on_disk = to_usize(edit.geometry().l1_entries_for(size)).min(l1.len());
    let vm_state = l1.split_off(on_disk);
    edit.lower_all(&vm_state)?;
    let l1 = edit.with_true_flags(&l1)?;
    edit.set_l1(&l1)?;
    edit.set_snapshots(&snapshots)?;
    Ok(Made { id, name: name.into(), size, ..Made::default() })
}

fn check_new_name(edit: &Edit, name: &str, duplicate: bool) -> Result<()> {
    let snapshots = edit.image().snapshots();
    if snapshots.len() as u64 >= u64::from(MAX_SNAPSHOTS) {
        return Err(Error::limit(format!(
            "the image has {MAX_SNAPSHOTS} snapshots, and no more fit"
        )));
    }
    if name.len() > MAX_NAME {
        let len = name.len();
        return Err(Error::limit(format!("the name has {len} bytes, expected at most {MAX_NAME}")));
    }
    if name.is_empty() {
        return Err(Error::usage("a snapshot needs a name"));
    }
    if name.contains('\0') {
        return Err(Error::usage("a snapshot's name cannot have a NUL character"));
    }
    if !duplicate && snapshots.iter().any(|snapshot| snapshot.name == name.as_bytes()) {
        let message = format!("an internal snapshot has the name '{}'", crate::Escaped(name));
        return Err(Error::new(ErrorKind::Exists, message).hint("choose another name"));
    }
    Ok(())
}

/// The largest number that an id begins with, plus one, as QEMU has it.
fn next_id(snapshots: &[Snapshot]) -> u64 {
    let number = |snapshot: &Snapshot| {
        let digits = snapshot.id.iter().take_while(|byte| byte.is_ascii_digit()).take(19);
        digits.fold(0u64, |number, digit| {
            number.wrapping_mul(10).wrapping_add(u64::from(digit.wrapping_sub(b'0')))
        })
    };
    snapshots.iter().map(number).max().unwrap_or_default().wrapping_add(1)
}

fn revert(edit: &mut Edit, wanted: &str, options: &SnapshotOptions) -> Result<Made> {
    let snapshot = find(edit, wanted)?.1;
    let has_bitmaps = !edit.image().bitmaps().is_empty();
    if has_bitmaps && options.bitmaps == BitmapRule::Refuse {
        let message =
            "the image has persistent bitmaps, which would say too little of what has changed";
        return Err(Error::usage(message).hint(Remedy::MarkBitmaps));
    }
    let geometry = edit.geometry();
    let size = snapshot.disk_size.unwrap_or(edit.image().virtual_size());
    let entries = to_usize(geometry.new_l1_entries(size)?);
    let mut l1 = edit.read_table(snapshot.l1_table_offset, snapshot.l1_entries.into())?;
    if !options.vm_state || l1.len() < entries {
        // What lies behind the disk's entries is VM state.
        l1.resize(entries, 0);
    }
    let old = edit.active_l1()?;
    let (mut bitmaps_dropped, mut bitmaps_marked) = (0, 0);
    if has_bitmaps && options.bitmaps == BitmapRule::Drop {
        bitmaps_dropped = edit.drop_bitmaps()?;
    } else if has_bitmaps {
        let changed = edit.differences(&old, &l1)?;
        bitmaps_marked = mark_all(edit, &changed, size)?;
    }
    edit.lower_all(&old)?;
    edit.raise_all(&l1)?;
    let lost_clusters = edit.unreferenced(&old)?;
    let l1 = edit.with_true_flags(&l1)?;
    edit.replace_l1(&l1)?;
    edit.set_header(&HeaderPatch::size(size))?;
    let Snapshot { id, name, .. } = snapshot;
    Ok(Made { id, name, size, lost_clusters, bitmaps_dropped, bitmaps_marked })
}

fn remove(edit: &mut Edit, wanted: &str) -> Result<Made> {
    let (index, snapshot) = find(edit, wanted)?;
    let l1 = edit.read_table(snapshot.l1_table_offset, snapshot.l1_entries.into())?;
    edit.lower_all(&l1)?;
    let lost_clusters = edit.unreferenced(&l1)?;
    let own = edit.clusters(snapshot.l1_table_offset, u64::from(snapshot.l1_entries).times(8)?)?;
    edit.lower(own)?;
    let active = edit.active_l1()?;
    let active = edit.with_true_flags(&active)?;
    edit.replace_l1(&active)?;
    let mut snapshots = edit.image().snapshots().to_vec();
    snapshots.remove(index);
    edit.set_snapshots(&snapshots)?;
    let Snapshot { id, name, .. } = snapshot;
    let size = edit.image().virtual_size();
    Ok(Made { id, name, size, lost_clusters, ..Made::default() })
}

/// The one snapshot that is meant, and its index.
fn find(edit: &Edit, wanted: &str) -> Result<(usize, Snapshot)> {
    let index = edit.image().find_only_snapshot(wanted)?;
    let snapshot = edit.image().snapshots().get(index).cloned();
    let snapshot = snapshot.ok_or_else(|| Error::internal("a snapshot that is not there"))?;
    snapshot.check_l1(edit.geometry())?;
    Ok((index, snapshot))
}
