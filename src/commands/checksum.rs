//! `qcowtool checksum`: prints a digest of what a guest would read, or proves an earlier one.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use qcow::chain::{Chain, OpenOptions};
use qcow::extent::{LeftOut, Truncation};
use qcow::ops::digest::{self, Digest, DigestOptions, Manifest, TreeHash, digest};
use qcow::{CancelToken, Error, ErrorKind, Observer};
use serde::Serialize;

use crate::args::{Common, PartArgs, SourceArgs, WorkArgs, exit_codes, replace};
use crate::failure::Failure;
use crate::left_out::warn_left_out;
use crate::losses::warn_truncated;
use crate::output::{OutputFormat, eprint_line, print, print_json, shown, warn};
use crate::remedies;
use crate::sandbox::Plan;
use crate::session::{Operation, Session};

/// The disk is not what the manifest says.
const DIFFERENT: u8 = 1;
/// The largest disk of an untrusted image that is hashed by SHA-256 unasked: zeros cost as much as data.
const MOST_HASHED: u64 = 4 << 30;

/// Arguments of `checksum`.
#[derive(Debug, Args)]
#[command(after_help = concat!(
    "The digest is of the guest-visible content, independent of format, backing chain and holes. crc32 is zlib's, \
and that of the output of `qemu-img convert -O raw PATH OUT`; sha256 reads every byte in order, zeros too, \
so with --untrusted the disk is limited to 4 GiB unless --max-virtual-size allows more; \
blake3-tree is fast, cryptographically strong, and shows where two disks differ (docs/tree-hash.md).

A manifest records the tree hash of each 4 MiB and the files that were read. --verify exits with 1 if \
the disk differs from it.

Examples:
  qcowtool checksum vm.qcow2
  qcowtool checksum --output json --snapshot before-upgrade vm.qcow2
  qcowtool checksum -f raw /dev/vg0/vm
  qcowtool checksum --algorithm blake3-tree --manifest vm.manifest vm.qcow2
  qcowtool checksum --verify vm.manifest copy.qcow2

", exit_codes!()))]
pub(crate) struct Checksum {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    work: WorkArgs,

    /// Digest algorithm [default: crc32; with a manifest: blake3-tree]
    #[arg(long, value_enum, value_name = "ALGORITHM")]
    algorithm: Option<Algorithm>,

    /// Also write the digest of each 4 MiB and the list of files read to FILE
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,

    /// Compare the disk with the manifest FILE and list the differing ranges
    #[arg(long, value_name = "FILE", conflicts_with_all = ["manifest", "cached"])]
    verify: Option<PathBuf>,

    /// Use the digest in the manifest FILE, instead of reading the disk, if no file has changed since
    #[arg(long, value_name = "FILE", conflicts_with = "manifest")]
    cached: Option<PathBuf>,

    /// Replace the manifest if it exists, atomically
    #[arg(long, requires = "manifest")]
    force: bool,

    /// As --force, also if the file is in use or an image depends on it
    #[arg(long, requires = "manifest")]
    force_in_use: bool,

    /// Read this internal snapshot instead of the current state: an ID or name, or snapshot.id=ID,snapshot.name=NAME
    #[arg(short = 'l', long, value_name = "SNAPSHOT")]
    snapshot: Option<String>,

    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    part: PartArgs,

    /// The image
    #[arg(value_name = "PATH")]
    path: PathBuf,
}

/// What is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Algorithm {
    Crc32,
    Blake3Tree,
    Sha256,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Outcome<'a> {
    filename: &'a str,
    virtual_size: u64,
    #[serde(flatten)]
    digest: Option<Digest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identical: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    differences: Option<Vec<Range>>,
    #[serde(flatten)]
    lacks: Lacks,
}

/// What was not read.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Lacks {
    #[serde(skip_serializing_if = "Option::is_none")]
    left_out: Option<LeftOut>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    truncated: Vec<Truncation>,
}

#[derive(Debug, Serialize)]
struct Range {
    start: u64,
    length: u64,
}

impl Checksum {
    /// Reads the disk and prints its digest, or the verdict on it.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let algorithm = self.algorithm()?;
        let operation = Operation::start(&self.common, &self.work)?;
        let threads = self.work.threads();
        let mut open = self.source.open_options(self.snapshot.as_deref());
        if algorithm == Algorithm::Sha256 && self.source.trust.is_unbounded() {
            open.limits.max_virtual_size = MOST_HASHED;
        }
        let session = Session::start(&self.common, self.plan(&open))?;
        let known = self.verify.as_deref().map(Manifest::read).transpose()?;
        let chain = session.open_chain(&self.path, &open, &self.part)?;
        let cached = self.cached(&chain)?;
        session.all_is_open()?;
        let digest = match cached {
            Some(tree) => Digest::Blake3Tree(tree),
            None => operation.run(|observer, cancel| {
                self.compute(algorithm, &chain, threads, observer, cancel)
            })?,
        };
        let lacks = Lacks {
            left_out: warn_left_out(&chain, self.common.format())?,
            truncated: chain.truncations()?,
        };
        warn_truncated(&lacks.truncated);
        match (known, digest) {
            (Some(known), Digest::Blake3Tree(tree)) => self.print_verdict(&known.tree, tree, lacks),
            (_, digest) => self.print_digest(&chain, digest, lacks),
        }
    }

    /// The image, and what says or is to say what it holds.
    fn plan(&self, open: &OpenOptions) -> Plan {
        let mut plan = Plan::new().chain(&self.path, open);
        for path in [&self.verify, &self.cached].into_iter().flatten() {
            plan = plan.reading(path);
        }
        match &self.manifest {
            Some(path) => plan.making_late(path),
            None => plan,
        }
    }

    /// Manifests are of tree hashes.
    fn algorithm(&self) -> qcow::Result<Algorithm> {
        let manifest = self.manifest.is_some() || self.verify.is_some() || self.cached.is_some();
        match self.algorithm {
            None if manifest => Ok(Algorithm::Blake3Tree),
            Some(Algorithm::Crc32 | Algorithm::Sha256) if manifest => {
                Err(Error::usage("manifests are made of tree hashes only")
                    .hint("leave out --algorithm, or give blake3-tree"))
            }
            algorithm => Ok(algorithm.unwrap_or(Algorithm::Crc32)),
        }
    }

    /// The tree hash that a manifest has, if it is to be believed.
    fn cached(&self, chain: &Chain) -> qcow::Result<Option<TreeHash>> {
        let Some(path) = &self.cached else { return Ok(None) };
        match Manifest::read_trusted(path, chain, self.snapshot.as_deref()) {
            Ok(manifest) => Ok(Some(manifest.tree)),
            Err(error) if error.kind() == ErrorKind::Denied => {
                if !self.common.verbosity.quiet {
                    eprint_line(format_args!(
                        "reading the disk: {}",
                        remedies::line(&error, "checksum")
                    ));
                }
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn compute(
        &self,
        algorithm: Algorithm,
        chain: &Chain,
        threads: usize,
        observer: &dyn Observer,
        cancel: &CancelToken,
    ) -> qcow::Result<Digest> {
        if let Some(path) = &self.manifest {
            let snapshot = self.snapshot.as_deref();
            let manifest = Manifest::take(chain, snapshot, threads, observer, cancel)?;
            warn(&manifest.write(path, replace(self.force, self.force_in_use))?);
            return Ok(Digest::Blake3Tree(manifest.tree));
        }
        let algorithm = match algorithm {
            Algorithm::Crc32 => digest::Algorithm::Crc32,
            Algorithm::Sha256 => digest::Algorithm::Sha256,
            Algorithm::Blake3Tree => digest::Algorithm::Blake3Tree,
        };
        let options = DigestOptions::default().algorithm(algorithm).threads(threads);
        Ok(digest(chain, &options, observer, cancel)?.digest)
    }

    fn print_digest(&self, chain: &Chain, digest: Digest, lacks: Lacks) -> Result<(), Failure> {
        if self.common.format() == OutputFormat::Human {
            return print(format_args!("{digest}  {}\n", shown(&self.path)));
        }
        let filename = self.path.to_string_lossy();
        let outcome = Outcome::new(&filename, chain.virtual_size(), digest, lacks);
        print_json(&outcome)
    }

    /// Says where the disk differs from the manifest.
    fn print_verdict(&self, known: &TreeHash, tree: TreeHash, lacks: Lacks) -> Result<(), Failure> {
        let identical = known.root == tree.root;
        let differences = known.differences(&tree).into_iter();
        if self.common.format() == OutputFormat::Json {
            let filename = self.path.to_string_lossy();
            let size = tree.virtual_size;
            let mut outcome = Outcome::new(&filename, size, Digest::Blake3Tree(tree), lacks);
            outcome.identical = Some(identical);
            outcome.differences =
                Some(differences.map(|(start, length)| Range { start, length }).collect());
            print_json(&outcome)?;
        } else if !self.common.verbosity.quiet {
            let mut text = String::new();
            for (start, length) in differences {
                text.push_str(&format!("Content mismatch at offset {start}, {length} bytes!\n"));
            }
            if identical {
                text.push_str("The disk matches the manifest.\n");
            }
            print(text)?;
        }
        if identical { Ok(()) } else { Err(Failure::Verdict(DIFFERENT)) }
    }
}

impl<'a> Outcome<'a> {
    fn new(filename: &'a str, virtual_size: u64, digest: Digest, lacks: Lacks) -> Self {
        Self { filename, virtual_size, digest: Some(digest), lacks, ..Self::default() }
    }
}
