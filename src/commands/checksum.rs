//! `qcowtool checksum`: prints a digest of what a guest would read, or proves an earlier one.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use qcow::chain::{Chain, OpenOptions};
use qcow::extent::{LeftOut, Truncation};
use qcow::ops::checksum::{ChecksumOptions, checksum};
use qcow::ops::digest::{Manifest, TreeHash, sha256, tree_hash};
use qcow::{CancelToken, Error, ErrorKind};
use serde::Serialize;

use crate::args::{
    OutputArgs, PartArgs, SandboxArgs, SourceArgs, Voice, WorkArgs, exit_codes, replace,
};
use crate::failure::Failure;
use crate::left_out::warn_left_out;
use crate::losses::warn_truncated;
use crate::output::{OutputFormat, print, print_json, say, shown, warn};
use crate::progress::Progress;
use crate::remedies;
use crate::sandbox::Plan;
use crate::signals::Watch;

/// The disk is not what the manifest says.
const DIFFERENT: u8 = 1;
/// The largest disk of an untrusted image that is hashed by SHA-256 unasked: zeros cost as much as data.
const MOST_HASHED: u64 = 4 << 30;

/// Arguments of `checksum`.
#[derive(Debug, Args)]
#[command(after_help = concat!(
    "The digest is of the raw disk, whatever the format, the chain or the holes. crc32 is zlib's,
and the same as of `qemu-img convert -O raw PATH OUT`; sha256 reads every byte in order, zeros too,
and so takes images that are not trusted only to 4 GiB unless --max-virtual-size says more;
blake3-tree is fast, strong, and knows where two disks differ (docs/tree-hash.md).

A manifest keeps the tree hash of each 4 MiB, and which files were read. --verify ends with 1 if
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
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    voice: Voice,
    #[command(flatten)]
    sandbox: SandboxArgs,
    #[command(flatten)]
    work: WorkArgs,

    /// Which digest [default: crc32; blake3-tree where a manifest is given]
    #[arg(long, value_enum, value_name = "ALGORITHM")]
    algorithm: Option<Algorithm>,

    /// Also write the digest of each 4 MiB, and which files were read, to FILE
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,

    /// Tell where the disk differs from what the manifest in FILE says
    #[arg(long, value_name = "FILE", conflicts_with_all = ["manifest", "cached"])]
    verify: Option<PathBuf>,

    /// Believe the manifest in FILE if nothing was changed since, instead of reading the disk
    #[arg(long, value_name = "FILE", conflicts_with = "manifest")]
    cached: Option<PathBuf>,

    /// Replace the manifest if it exists, atomically
    #[arg(long, requires = "manifest")]
    force: bool,

    /// As --force, also if the file is in use or an image needs it
    #[arg(long, requires = "manifest")]
    force_in_use: bool,

    /// Read this internal snapshot instead of the current state: id, else name; or snapshot.id=ID, snapshot.name=NAME, or both
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
    #[serde(skip_serializing_if = "Option::is_none")]
    crc32: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blake3_tree: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
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
        let watch = Watch::start()?;
        let threads = self.work.threads();
        let progress = Progress::new(self.work.progress(&self.voice));
        let mut open = self.source.open_options(self.snapshot.as_deref());
        if algorithm == Algorithm::Sha256 && self.source.trust.is_unbounded() {
            open.limits.max_virtual_size = MOST_HASHED;
        }
        let sandbox = self.sandbox.enter(self.plan(&open))?;
        let known = self.verify.as_deref().map(Manifest::read).transpose()?;
        self.voice.opening(&self.path, open.format);
        let chain = self.part.open(&self.path, &open)?;
        self.voice.opened(&chain);
        let cached = self.cached(&chain)?;
        sandbox.all_is_open()?;
        let digest = match cached {
            Some(tree) => Digest::Tree(tree),
            None => {
                let result = self.compute(algorithm, &chain, threads, &progress, watch.token());
                progress.finish(result.is_ok());
                watch.settle(result)?
            }
        };
        let lacks = Lacks {
            left_out: warn_left_out(&chain, self.output.output)?,
            truncated: chain.truncations()?,
        };
        warn_truncated(&lacks.truncated);
        match (known, digest) {
            (Some(known), Digest::Tree(tree)) => self.print_verdict(&known.tree, &tree, lacks),
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
                if !self.voice.quiet {
                    say(format_args!("reading the disk: {}", remedies::line(&error, "checksum")));
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
        progress: &Progress,
        cancel: &CancelToken,
    ) -> qcow::Result<Digest> {
        if let Some(path) = &self.manifest {
            let snapshot = self.snapshot.as_deref();
            let manifest = Manifest::take(chain, snapshot, threads, progress, cancel)?;
            warn(&manifest.write(path, replace(self.force, self.force_in_use))?);
            return Ok(Digest::Tree(manifest.tree));
        }
        Ok(match algorithm {
            Algorithm::Crc32 => {
                let options = ChecksumOptions { threads };
                Digest::Crc32(checksum(chain, &options, progress, cancel)?.crc32)
            }
            Algorithm::Sha256 => Digest::Sha256(sha256(chain, threads, progress, cancel)?),
            Algorithm::Blake3Tree => Digest::Tree(tree_hash(chain, threads, progress, cancel)?),
        })
    }

    fn print_digest(&self, chain: &Chain, digest: Digest, lacks: Lacks) -> Result<(), Failure> {
        if self.output.output == OutputFormat::Human {
            let text = match &digest {
                Digest::Crc32(text) | Digest::Sha256(text) => text.clone(),
                Digest::Tree(tree) => tree.root.to_string(),
            };
            return print(format_args!("{text}  {}\n", shown(&self.path)));
        }
        let filename = self.path.to_string_lossy();
        let mut outcome = Outcome::new(&filename, chain.virtual_size(), lacks);
        match digest {
            Digest::Crc32(text) => outcome.crc32 = Some(text),
            Digest::Sha256(text) => outcome.sha256 = Some(text),
            Digest::Tree(tree) => outcome.blake3_tree = Some(tree.root.to_string()),
        }
        print_json(&outcome)
    }

    /// Says where the disk differs from the manifest.
    fn print_verdict(
        &self,
        known: &TreeHash,
        tree: &TreeHash,
        lacks: Lacks,
    ) -> Result<(), Failure> {
        let identical = known.root == tree.root;
        let differences = known.differences(tree).into_iter();
        if self.output.output == OutputFormat::Json {
            let filename = self.path.to_string_lossy();
            let mut outcome = Outcome::new(&filename, tree.virtual_size, lacks);
            outcome.blake3_tree = Some(tree.root.to_string());
            outcome.identical = Some(identical);
            outcome.differences =
                Some(differences.map(|(start, length)| Range { start, length }).collect());
            print_json(&outcome)?;
        } else if !self.voice.quiet {
            let mut text = String::new();
            for (start, length) in differences {
                text.push_str(&format!("Content mismatch at offset {start}, {length} bytes!\n"));
            }
            if identical {
                text.push_str("The disk is identical to what the manifest says.\n");
            }
            print(text)?;
        }
        if identical { Ok(()) } else { Err(Failure::Verdict(DIFFERENT)) }
    }
}

/// What was computed.
enum Digest {
    Crc32(String),
    Sha256(String),
    Tree(TreeHash),
}

impl<'a> Outcome<'a> {
    fn new(filename: &'a str, virtual_size: u64, lacks: Lacks) -> Self {
        Self { filename, virtual_size, lacks, ..Self::default() }
    }
}
