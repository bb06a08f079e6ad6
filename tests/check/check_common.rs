//! What the tests of `check` and of repair share: images with everything in them, and both verdicts.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use fixtures::patch::{COPIED, OFFSET_MASK, field};
use fixtures::{Patch, Scratch, args, qemu, qemu_img, qemu_io};
use serde_json::Value;

use common::qcowtool;

/// Exit code and JSON of a check; no JSON where it gave up.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Verdict {
    pub(crate) code: Option<i32>,
    pub(crate) outcome: Option<Value>,
    pub(crate) findings: Vec<Value>,
}

impl Verdict {
    fn new(code: Option<i32>, stdout: &[u8]) -> Self {
        let mut outcome: Option<Value> = serde_json::from_slice(stdout).ok();
        let findings = outcome.as_mut().and_then(Value::as_object_mut).and_then(|object| {
            object.remove("findings-left-out");
            object.remove("findings")
        });
        let findings = findings.and_then(|f| f.as_array().cloned()).unwrap_or_default();
        Self { code, outcome, findings }
    }

    /// A counter; 0 where it is left out.
    pub(crate) fn count(&self, key: &str) -> u64 {
        self.outcome.as_ref().and_then(|outcome| outcome[key].as_u64()).unwrap_or(0)
    }

    /// Whether something of this kind was found.
    pub(crate) fn found(&self, kind: &str) -> bool {
        self.findings.iter().any(|finding| finding["kind"] == kind)
    }
}

/// What `qemu-img check` says.
pub(crate) fn theirs(image: &Path) -> Verdict {
    let mut command = Command::new("qemu-img");
    command.args(["check", "-f", "qcow2", "--output", "json"]).arg(image);
    let output = command.output().expect("qemu-img runs");
    Verdict::new(output.status.code(), &output.stdout)
}

/// What we say.
pub(crate) fn ours(image: &Path) -> Verdict {
    let run = qcowtool(args!["check", "-f", "qcow2", "--output", "json", image]);
    Verdict::new(run.code(), run.stdout().as_bytes())
}

/// Asserts that both say the same; returns ours.
#[track_caller]
pub(crate) fn judged_alike(image: &Path, what: &str) -> Verdict {
    let (ours, theirs) = (ours(image), theirs(image));
    assert_eq!(ours.outcome, theirs.outcome, "{what}: counts (ours, qemu-img's)");
    assert_eq!(ours.code, theirs.code, "{what}: exit code (ours, qemu-img's)");
    ours
}

/// The bytes of an image of 128 KiB in 4 KiB clusters with data, preallocated zeros, compressed
/// clusters, two snapshots and two bitmaps.
pub(crate) fn everything() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| {
        built("cluster_size=4k", |image| {
            let first = ["write -P 1 0 32k", "write -z 40k 8k", "write -c -P 2 64k 12k"];
            qemu_io(
                "qcow2",
                image,
                &[&first[..], &["write -P 3 100k 4k", "write -z 100k 4k"]].concat(),
            );
            qemu_img(&args!["snapshot", "-c", "one", image]);
            qemu_io("qcow2", image, &["write -P 4 8k 8k", "write -c -P 5 80k 4k"]);
            qemu_img(&args!["snapshot", "-c", "two", image]);
            qemu_img(&args!["bitmap", "--add", image, "b0"]);
            qemu_img(&args!["bitmap", "--add", "-g", "512", image, "b1"]);
            qemu_io("qcow2", image, &["write -P 6 20k 4k", "write -P 7 116k 4k"]);
        })
    })
}

/// The bytes of an image that qemu-img made with `options` and `fill` filled; 128 KiB of disk.
pub(crate) fn built(options: &str, fill: impl FnOnce(&Path)) -> Vec<u8> {
    let scratch = Scratch::new();
    let image = scratch.path("image.qcow2");
    qemu::create(&image, options, "128k");
    fill(&image);
    std::fs::read(&image).expect("the image is readable")
}

/// A copy of these bytes to be broken.
pub(crate) fn copy(scratch: &Scratch, bytes: &[u8]) -> Patch {
    Patch::open(scratch.file("image.qcow2", bytes))
}

/// Where things lie in an image with 16-bit refcounts and one refcount block.
pub(crate) trait Places {
    fn reftable(&self) -> usize;
    fn refblock(&self) -> usize;
    /// Where the refcount of a cluster lies.
    fn refcount_at(&self, cluster: usize) -> usize;
    /// The cluster that an entry names.
    fn cluster_of(&self, entry: u64) -> usize;
    /// The L2 table of the active image.
    fn l2(&self) -> usize;
    fn snapshot_table(&self) -> usize;
    /// The L1 table of the first snapshot, and the L2 table that it names.
    fn snapshot_l1(&self) -> usize;
    fn snapshot_l2(&self) -> usize;
    /// The first bitmap's directory entry.
    fn bitmap_directory(&self) -> usize;
    /// The first offset past the file's end that starts a cluster.
    fn end(&self) -> u64;
}

impl Places for Patch {
    fn reftable(&self) -> usize {
        to(self.u64(field::REFTABLE_OFFSET))
    }

    fn refblock(&self) -> usize {
        to(self.u64(self.reftable()))
    }

    fn refcount_at(&self, cluster: usize) -> usize {
        self.refblock() + 2 * cluster
    }

    fn cluster_of(&self, entry: u64) -> usize {
        to(entry & OFFSET_MASK) / self.cluster_size()
    }

    fn l2(&self) -> usize {
        to(self.u64(self.l1_entry_at(0)) & OFFSET_MASK)
    }

    fn snapshot_table(&self) -> usize {
        to(self.u64(field::SNAPSHOTS_OFFSET))
    }

    fn snapshot_l1(&self) -> usize {
        to(self.u64(self.snapshot_table()))
    }

    fn snapshot_l2(&self) -> usize {
        to(self.u64(self.snapshot_l1()) & OFFSET_MASK)
    }

    fn bitmap_directory(&self) -> usize {
        let magic = fixtures::patch::magic::BITMAPS.to_be_bytes();
        let at = self.bytes.windows(4).position(|bytes| bytes == magic).expect("the extension");
        to(self.u64(at + 24))
    }

    fn end(&self) -> u64 {
        self.bytes.len().next_multiple_of(self.cluster_size()) as u64
    }
}

/// Appends a cluster that has a refcount and no reference.
pub(crate) fn leak(image: &mut Patch) -> &mut Patch {
    let at = image.append(&[1]);
    image.set_u16(image.refcount_at(at / image.cluster_size()), 1)
}

/// An offset as an index.
pub(crate) fn to(offset: u64) -> usize {
    usize::try_from(offset).expect("an offset within the file")
}

/// An entry for an offset, with the copied flag.
pub(crate) fn copied(offset: u64) -> u64 {
    COPIED | offset
}

/// One row: what is broken, how, what qemu-img's exit code is, and what kind of finding names it.
pub(crate) type Row = (&'static str, fn(&mut Patch) -> &mut Patch, i32, &'static str);

/// Breaks copies of an image, and asserts that both give the same counts and the expected verdict.
#[track_caller]
pub(crate) fn all(image: &[u8], rows: &[Row]) {
    for (what, damage, code, kind) in rows {
        let scratch = Scratch::new();
        let mut patch = copy(&scratch, image);
        damage(&mut patch);
        patch.save();
        let verdict = judged_alike(&patch.path, what);
        assert_eq!(verdict.code, Some(*code), "{what}: exit code");
        if kind.is_empty() {
            assert!(verdict.findings.is_empty(), "{what}: {:?}", verdict.findings);
        } else {
            assert!(verdict.found(kind), "{what}: no {kind} in {:#?}", verdict.findings);
        }
    }
}
