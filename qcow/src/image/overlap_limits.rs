//! Proves that an image uses each of its clusters once, so that work on its data is bounded by its
//! length: one L2 table behind every L1 entry, or one compressed cluster behind every guest cluster,
//! makes a file of some kilobytes stand for petabytes.

use byteorder::{BigEndian, ByteOrder};

use super::{Image, Run, RunKind, TableWindow, Tables};
use crate::format::{HostOffset, L1Entry};
use crate::{Error, Remedy, Result};

/// L1 entries read at a time.
const PIECE: u64 = 8192;
/// Compressed guest bytes for each byte of the file. Deflate cannot do better; zstd can, but a cluster
/// that is so small is nearly always one of zeros, for which nothing is stored.
const MOST_COMPRESSION: u64 = 1032;
/// A compressed cluster ends somewhere in its last sector, where the next one may begin.
const SHARED: u64 = 511;
/// The least that a compressed cluster takes: an L2 entry, and a stream of six bytes.
const LEAST: u64 = 8 + 6;

impl Image {
    /// Clusters that the image's file has room for.
    pub(crate) fn host_clusters(&self) -> u64 {
        self.storage().len().div_ceil(self.geometry().cluster_size().max(1))
    }

    /// Checks that no two L1 entries name one L2 table, that no two guest clusters share a host cluster,
    /// that all of them lie in the file, and that the compressed clusters together take no more bytes than it
    /// has. Metadata does not count but for L2 tables. Where data lives in a data file, each cluster has its
    /// own place there by definition.
    pub(crate) fn check_overlap_limits(&self) -> Result<()> {
        let mut used = Used::new(self)?;
        used.l2_tables()?;
        used.clusters()
    }
}

struct Used<'a> {
    image: &'a Image,
    /// One bit for each host cluster.
    bits: Vec<u64>,
    clusters: u64,
    cluster_size: u64,
    /// The guest cluster and the host cluster where the last run of data ended: with subclusters a
    /// cluster may have several.
    last: Option<(u64, u64)>,
    /// The bytes that the compressed clusters must have taken, at the least.
    compressed: u64,
}

impl<'a> Used<'a> {
    fn new(image: &'a Image) -> Result<Self> {
        let clusters = image.host_clusters();
        let words = usize::try_from(clusters.div_ceil(64)).unwrap_or(usize::MAX);
        let mut bits = Vec::new();
        bits.try_reserve_exact(words)
            .map_err(|_| Error::limit(format!("no memory for {words} words of cluster use")))?;
        bits.resize(words, 0);
        let cluster_size = image.geometry().cluster_size().max(1);
        Ok(Self { image, bits, clusters, cluster_size, last: None, compressed: 0 })
    }

    fn l2_tables(&mut self) -> Result<()> {
        let entries = self.image.l1_entries_in_file();
        let mut first = 0u64;
        while first < entries {
            let count = entries.saturating_sub(first).min(PIECE);
            let mut bytes = vec![0; usize::try_from(count.saturating_mul(8)).unwrap_or_default()];
            super::tables::read_l1(self.image, Tables::Direct, first, &mut bytes)?;
            for (index, entry) in (first..).zip(bytes.chunks_exact(8)) {
                let entry = L1Entry(BigEndian::read_u64(entry));
                // Unaligned entries are rejected when they are read.
                if !entry.is_empty() && self.image.geometry().is_aligned(entry.offset().0) {
                    let cluster = self.cluster(entry.offset());
                    self.mark(cluster, 1)
                        .map_err(|error| error.structure("L1 table").index(index))?;
                }
            }
            first = first.saturating_add(count);
        }
        Ok(())
    }

    fn clusters(&mut self) -> Result<()> {
        let (image, size) = (self.image, self.image.virtual_size());
        let coverage = image.geometry().l2_coverage();
        let mut at = 0;
        let mut runs = Vec::new();
        while let Some(start) = image.next_mapped(at)?.filter(|start| *start < size) {
            let end = start.saturating_add(coverage).min(size);
            runs.clear();
            TableWindow::load(image, Tables::Direct, start, end)?
                .runs(start, end, &mut runs, None)?;
            for run in &runs {
                self.run(*run)
                    .map_err(|error| error.structure("L2 table").guest_offset(run.guest))?;
            }
            at = end;
        }
        Ok(())
    }

    fn run(&mut self, run: Run) -> Result<()> {
        match run.kind {
            RunKind::Data(host) if !self.image.has_data_file() => self.data(run, host),
            RunKind::Compressed(span) => {
                let stored =
                    span.len.saturating_sub(SHARED).max(run.len / MOST_COMPRESSION).max(LEAST);
                self.compressed = self.compressed.saturating_add(stored);
                let file = self.image.storage().len();
                if self.compressed > file {
                    return Err(unbounded(format!(
                        "the compressed clusters would take {} bytes up to here, at {MOST_COMPRESSION} to 1 at \
                         best, but the file has {file}",
                        self.compressed
                    )));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn cluster(&self, host: HostOffset) -> u64 {
        host.0.checked_div(self.cluster_size).unwrap_or_default()
    }

    fn data(&mut self, run: Run, host: HostOffset) -> Result<()> {
        let cluster = |offset: u64| offset.checked_div(self.cluster_size).unwrap_or_default();
        let last = run.len.saturating_sub(1);
        let (from, to) = (cluster(host.0), cluster(host.0.saturating_add(last)));
        let begun = self.last == Some((cluster(run.guest), from));
        self.last = Some((cluster(run.guest.saturating_add(last)), to));
        let from = if begun { from.saturating_add(1) } else { from };
        self.mark(from, to.saturating_add(1).saturating_sub(from))
    }

    /// Notes the use of `count` host clusters from number `first` on.
    fn mark(&mut self, first: u64, count: u64) -> Result<()> {
        for cluster in first..first.saturating_add(count) {
            let at = HostOffset(cluster.saturating_mul(self.cluster_size));
            let word = usize::try_from(cluster >> 6).unwrap_or(usize::MAX);
            let bit = 1u64 << (cluster & 63);
            let Some(word) = self.bits.get_mut(word).filter(|_| cluster < self.clusters) else {
                return Err(unbounded("it is past the end of the file".into()).host_offset(at));
            };
            if *word & bit != 0 {
                let message = "its host cluster is in use by another entry".into();
                return Err(unbounded(message).host_offset(at));
            }
            *word |= bit;
        }
        Ok(())
    }
}

fn unbounded(message: String) -> Error {
    Error::limit(format!("{message}; an untrusted image must use each cluster once"))
        .hint(Remedy::Check)
}
