//! Holds an image's metadata against itself: every reference against every refcount.
//!
//! The counts are those of `qemu-img check` for the same file; the findings say where each thing
//! is, and include some that QEMU is silent about. Backing and data files are not opened.
//!
//! Each L2 table and refcount block is read once or twice, in parallel. Memory is about six bits
//! for each host cluster in use, 36 more in stretches where clusters have more than 15 references,
//! and a few dozen bytes for each L2 table.

mod bitmaps;
mod clusters;
mod counters;
mod laid_over;
mod refcounts;
mod references;
mod repair;
mod report;
mod stored;
mod tables;
pub(crate) mod takeover;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use crate::chain::{Format, Policy, open_file};
use crate::format::{EntryRules, Geometry};
use crate::image::{Image, Purpose};
use crate::io::{Access, Storage};
use crate::setters::setters;
use crate::threads;
use crate::{CancelToken, Error, Observer, Remedy, Result, Silent};

use clusters::Figures;
use references::{ReferenceCounts, whole};
use report::{FindingKind, Report, Spot};
use stored::Stored;
use tables::L2Table;

pub use repair::{Action, RepairOptions, RepairOutcome, Scope, Step};
pub(crate) use repair::{cluster_size, make_plan, make_plan_asked_for};
pub use report::{Finding, FindingKind as Kind, Numbers, Severity, Structure};
pub use takeover::Repaired;

/// How to check.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CheckOptions {
    /// Format of the image; `None` looks at its first bytes.
    pub format: Option<Format>,
    /// Check an image that another process may be changing: what is found may be wrong.
    pub force_share: bool,
    /// Worker threads; 0 means one per core, at most 16. The outcome does not depend on it.
    pub threads: usize,
    /// Most findings to list; all are counted.
    pub max_findings: usize,
    /// Whether the image's format must be stated, and what else holds for the file itself. No other
    /// file is opened.
    pub policy: Policy,
}

setters!(CheckOptions {
    force_share: bool,
    threads: usize,
    max_findings: usize,
    policy: Policy,
} into {
    format: Option<Format>,
});

impl Default for CheckOptions {
    fn default() -> Self {
        Self {
            format: None,
            force_share: false,
            threads: 0,
            max_findings: 1000,
            policy: Policy::default(),
        }
    }
}

/// What was found. Serialises to the object that `qemu-img check --output json` prints, with
/// `findings` added. Offsets are in bytes.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct CheckOutcome {
    /// Where the last cluster in use ends.
    #[serde(skip_serializing_if = "is_zero")]
    pub image_end_offset: u64,
    /// Clusters of the guest's disk.
    #[serde(skip_serializing_if = "is_zero")]
    pub total_clusters: u64,
    /// What makes the image corrupt.
    #[serde(skip_serializing_if = "is_zero")]
    pub corruptions: u64,
    /// What could not be checked.
    pub check_errors: u64,
    /// Clusters that are taken and not used.
    #[serde(skip_serializing_if = "is_zero")]
    pub leaks: u64,
    /// Clusters of the guest's disk that are allocated in this image.
    #[serde(skip_serializing_if = "is_zero")]
    pub allocated_clusters: u64,
    /// The name under which the image was opened.
    #[serde(serialize_with = "crate::chain::path_text")]
    pub filename: PathBuf,
    /// Allocated clusters that do not follow the one before.
    #[serde(skip_serializing_if = "is_zero")]
    pub fragmented_clusters: u64,
    /// Its format.
    pub format: Format,
    /// Allocated clusters that are compressed.
    #[serde(skip_serializing_if = "is_zero")]
    pub compressed_clusters: u64,
    /// The first findings, in the order of the structures.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    /// Findings beyond those.
    #[serde(skip_serializing_if = "is_zero")]
    pub findings_left_out: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
pub(crate) fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Checks the image at `path`. Nothing is written.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("disk.qcow2");
/// use qcow::ops::check::{CheckOptions, check};
/// use qcow::ops::create::{CreateOptions, create};
/// use qcow::{CancelToken, Silent};
///
/// create(&path, &CreateOptions::default().size(1 << 30))?;
/// let outcome = check(&path, &CheckOptions::default(), &Silent, &CancelToken::new())?;
/// assert_eq!((outcome.corruptions, outcome.leaks), (0, 0));
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// Where the check cannot be done at all: [`Io`](crate::ErrorKind::Io); whatever stops QEMU from
/// opening the image; [`Unsupported`](crate::ErrorKind::Unsupported) for raw images, which have
/// nothing to check; [`Interrupted`](crate::ErrorKind::Interrupted).
pub fn check(
    path: &Path,
    options: &CheckOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<CheckOutcome> {
    let (storage, format) = open_file(path, options.format, &options.policy)?;
    if format != Format::Qcow2 {
        return Err(Error::unsupported(format!("{format} images have nothing to check")).file(path));
    }
    let outcome = check_storage(Arc::new(storage), options, observer, cancel);
    let outcome = outcome.map_err(|error| error.file(path))?;
    Ok(CheckOutcome { filename: path.to_path_buf(), ..outcome })
}

/// As [`check`], for a QCOW2 image wherever its bytes live. If that is in a file, it is locked against
/// writers meanwhile, unless [`force_share`](CheckOptions::force_share) is set.
///
/// ```
/// use std::sync::Arc;
/// use qcow::io::MemoryStorage;
/// use qcow::ops::check::{CheckOptions, check_storage};
/// use qcow::{CancelToken, ErrorKind, Silent};
///
/// let storage = Arc::new(MemoryStorage::new(vec![0; 65536]));
/// let checked = check_storage(storage, &CheckOptions::default(), &Silent, &CancelToken::new());
/// assert_eq!(checked.unwrap_err().kind(), ErrorKind::WrongFormat);
/// ```
///
/// # Errors
/// As [`check`]; without the name of a file, since there may be none.
pub fn check_storage(
    storage: Arc<dyn Storage>,
    options: &CheckOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<CheckOutcome> {
    in_pool(options.threads, || {
        if let (false, Some(file)) = (options.force_share, storage.as_file()) {
            file.lock(Access::READ, Access::WRITE | Access::RESIZE).map_err(how_to_share)?;
        }
        let outcome = check_image(Arc::clone(&storage), options, observer, cancel)?;
        if !options.force_share {
            storage.check_unchanged()?;
        }
        Ok(outcome)
    })?
}

fn how_to_share(error: Error) -> Error {
    error.hint(Remedy::ShareRead)
}

/// Runs `work` with as many threads as asked for.
pub(crate) fn in_pool<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> Result<T> {
    Ok(threads::pool(threads::count(threads))?.install(work))
}

/// Checks an image with the threads of the caller's pool.
pub(crate) fn check_image(
    storage: Arc<dyn Storage>,
    options: &CheckOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<CheckOutcome> {
    let image = Image::open_for(storage, Purpose::Check)?;
    let report = Report::new(options.max_findings);
    let checker = Checker::new(&image, &report, cancel)?;
    let found = checker.run(observer)?;
    Ok(checker.outcome(&found))
}

/// The results of a check besides the findings in its report.
#[derive(Debug)]
struct CheckState {
    /// All L2 tables, each once.
    tables: Vec<L2Table>,
    figures: Figures,
    /// The highest cluster that is in use.
    highest: u64,
}

/// One image being checked. Its parts are in the modules below: L1 tables in `tables`, L2 tables
/// in `clusters`, refcounts in `refcounts`, bitmaps in `bitmaps`.
#[derive(Debug)]
struct Checker<'a> {
    image: &'a Image,
    geometry: Geometry,
    rules: EntryRules,
    stored: Stored,
    references: ReferenceCounts<'a>,
    report: &'a Report,
    cancel: &'a CancelToken,
}

impl<'a> Checker<'a> {
    fn new(image: &'a Image, report: &'a Report, cancel: &'a CancelToken) -> Result<Self> {
        let geometry = image.geometry();
        let references = ReferenceCounts::new(geometry, image.storage().len(), report)?;
        let stored = Stored::read(image, references.clusters(), cancel)?;
        Ok(Self { image, geometry, rules: image.rules(), stored, references, report, cancel })
    }

    /// Counts everything that refers to clusters, then compares.
    fn run(&self, observer: &dyn Observer) -> Result<CheckState> {
        let tables = self.mapping()?;
        self.refcount_table()?;
        self.claim_refcount_blocks();
        self.claim(&tables)?;
        let figures = self.l2_tables(&tables, observer)?;
        self.bitmaps()?;
        self.count_refcount_blocks()?;
        let highest = self.compare()?;
        Ok(CheckState { tables, figures, highest })
    }

    /// Counts everything but the refcount structures, and compares nothing.
    fn run_without_refcounts(&self) -> Result<CheckState> {
        let tables = self.mapping()?;
        self.claim(&tables)?;
        let figures = self.l2_tables(&tables, &Silent)?;
        self.bitmaps()?;
        Ok(CheckState { tables, figures, highest: 0 })
    }

    /// Counts what leads to the L2 tables, and lists them.
    fn mapping(&self) -> Result<Vec<L2Table>> {
        self.header()?;
        self.snapshot_table()?;
        let mut tables = self.active_l1()?;
        self.snapshot_l1s(&mut tables)?;
        Ok(tables)
    }

    /// Takes note of where L2 tables and bitmaps lie, before any data is counted, so that data in
    /// metadata is seen.
    fn claim(&self, tables: &[L2Table]) -> Result<()> {
        self.claim_bitmaps()?;
        for table in tables {
            let spot = whole(Structure::L2Table, table.offset);
            self.references.claim(table.offset, self.geometry.cluster_size(), spot);
        }
        Ok(())
    }

    fn outcome(&self, found: &CheckState) -> CheckOutcome {
        let (findings, findings_left_out) = self.report.findings();
        let end = found.highest.saturating_add(1);
        CheckOutcome {
            image_end_offset: self.references.offset_of(end),
            total_clusters: self.geometry.clusters_for(self.image.header().virtual_size()),
            corruptions: self.report.corruptions(),
            check_errors: self.report.check_errors(),
            leaks: self.report.leaks(),
            allocated_clusters: found.figures.allocated,
            filename: PathBuf::new(),
            fragmented_clusters: found.figures.fragmented,
            format: Format::Qcow2,
            compressed_clusters: found.figures.compressed,
            findings,
            findings_left_out,
        }
    }

    /// Counts the header's cluster and the encryption header.
    fn header(&self) -> Result<()> {
        let cluster_size = self.geometry.cluster_size();
        let header = whole(Structure::Header, 0);
        self.references.count(0, cluster_size, 1, header)?;
        self.references.claim(0, cluster_size, header);
        if let Some((offset, len)) = self.image.area().extensions.crypto_header() {
            let spot = whole(Structure::EncryptionHeader, offset.0);
            self.references.count(offset.0, len, 1, spot)?;
            self.references.claim(offset.0, len, spot);
        }
        Ok(())
    }

    /// Counts the snapshot table and looks at its entries.
    fn snapshot_table(&self) -> Result<()> {
        let header = self.image.header();
        let (offset, len) = (header.snapshots_offset.0, self.image.snapshot_table_len());
        let spot = whole(Structure::SnapshotTable, offset);
        self.references.count(offset, len, 1, spot)?;
        self.references.claim(offset, len, spot);
        for (index, snapshot) in (0u64..).zip(self.image.snapshots()) {
            if snapshot.is_incomplete(header.version) {
                let spot = Spot { index: Some(index), ..Spot::new(Structure::SnapshotTable) };
                self.report.corruption(FindingKind::Snapshot, 1, spot, || {
                    "the entry lacks the disk size that version 3 asks for".into()
                });
            }
        }
        if self.rules.data_file && !self.image.snapshots().is_empty() {
            self.report.corruption(FindingKind::Snapshot, 1, spot, || {
                "an image with an external data file cannot have snapshots".into()
            });
        }
        Ok(())
    }
}
