//! The standalone target of a full copy (`VIR_MIGRATE_NON_SHARED_DISK`): an empty image without a
//! chain, whose virtual size equals the source's to the byte.
//!
//! libvirt creates no such file unless a storage pool happens to cover its directory, and ends
//! with "Path not accessible"; and QEMU refuses a target of any other size, late and in the middle
//! of the migration. The size comes from the source image itself, never from a catalogue: the
//! catalogue is what has forgotten the template.

use std::path::{Path, PathBuf};

use qcow::chain::{Chain, Format, OpenOptions};
use qcow::extent::ExtentKind;
use qcow::format::GuestOffset;
use qcow::format::Incompatible;
use qcow::ops::NotCarried;
use qcow::ops::create::{CreateOptions, CreateOutcome, create, like};
use qcow::{Error, Result};
use serde::Serialize;

/// What is to be made for which source. A value: making it changes nothing.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The image whose guest will move.
    pub source: PathBuf,
    /// How its target is to be created.
    pub create: CreateOptions,
    /// What the source has and the target will not.
    pub not_carried_over: Vec<NotCarried>,
}

/// What was checked on the finished target, read back from the file itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Proof {
    /// The virtual size in bytes, equal to the source's.
    pub virtual_size: u64,
    /// Nothing is allocated, nothing is marked as zero, and there is no backing file: every byte
    /// reads as zero and every byte will come from the copy.
    pub empty: bool,
}

/// Plans the target for `source`: same virtual size and geometry, no chain. Only the source's
/// own header is read, so it makes no difference whether its base is still there.
///
/// # Errors
/// As [`Chain::open`], but nothing below the source is opened.
pub fn plan(source: &Path, open: &OpenOptions) -> Result<Plan> {
    let like = like(source, open)?;
    let (create, not_carried_over) = (like.create, like.not_carried_over);
    Ok(Plan { source: source.to_path_buf(), create, not_carried_over })
}

/// Makes the planned target at `path` and proves it.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let overlay = dir.path().join("overlay.qcow2");
/// # let target = dir.path().join("target.qcow2");
/// use qcow::chain::OpenOptions;
/// use qcow::ops::create::{CreateOptions, create};
///
/// create(&overlay, &CreateOptions::default().size(10_000_000))?;
/// let plan = migrate::target::plan(&overlay, &OpenOptions::default())?;
/// let (_, proof) = migrate::target::prepare(&plan, &target)?;
/// assert_eq!(proof.virtual_size, 10_000_384);
/// assert!(proof.empty);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// What creating raises; what [`prove`] finds.
pub fn prepare(plan: &Plan, path: &Path) -> Result<(CreateOutcome, Proof)> {
    let mut outcome = create(path, &plan.create)?;
    outcome.not_carried_over.clone_from(&plan.not_carried_over);
    let proof = prove(path, plan)?;
    Ok((outcome, proof))
}

/// Reads the target at `path` back and checks that a full copy of the planned source can go there:
/// the size is equal to the byte, it has no backing file, and it is empty.
///
/// # Errors
/// [`Corrupt`](qcow::ErrorKind::Corrupt) naming the first thing that is not as it must be, or
/// what opening the target raises.
pub fn prove(path: &Path, plan: &Plan) -> Result<Proof> {
    let format = match plan.create.target {
        qcow::ops::TargetOptions::Raw(_) => Format::Raw,
        _ => Format::Qcow2,
    };
    // `like` and `create` speak of whole sectors only.
    let virtual_size = plan.create.size.unwrap_or_default();
    check(path, &Expected { format, virtual_size, base: None })
        .map_err(|error| error.file(path))?;
    Ok(Proof { virtual_size, empty: true })
}

/// What a new image must be before anything is copied into it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected<'a> {
    pub(crate) format: Format,
    /// Exactly the size of its disk.
    pub(crate) virtual_size: u64,
    /// Name and format of its backing file, as its header must record them.
    pub(crate) base: Option<(&'a Path, &'a str)>,
}

/// Checks a new image: it has exactly the expected size (`SizesEqual` of the proofs in `docs/migration.md`), holds
/// nothing (`TargetEmpty`, and `ReadsAsZeros` where it has no backing file), and its header names exactly the expected backing file (`ChainsAgree`). The
/// backing file is not opened.
///
/// # Errors
/// [`Corrupt`](qcow::ErrorKind::Corrupt) naming the first thing that is not as it must be.
pub(crate) fn check(path: &Path, expected: &Expected<'_>) -> Result<()> {
    let open = OpenOptions::default().format(expected.format);
    let chain = Chain::open_alone(path, &open)?;
    let wrong = |message: String| Err(Error::corrupt(message));
    if chain.virtual_size() != expected.virtual_size {
        return wrong(format!(
            "the target's virtual size is {} bytes, the source's {}",
            chain.virtual_size(),
            expected.virtual_size
        ));
    }
    if let Some(image) = chain.layers().first().and_then(|layer| layer.image()) {
        let area = image.area();
        let named = area.backing_name.as_deref().map(String::from_utf8_lossy);
        let format = area.backing_format().map(String::from_utf8_lossy);
        let (path, wanted) = expected.base.unzip();
        if named != path.map(Path::to_string_lossy) || format.as_deref() != wanted {
            let none = || "nothing".into();
            return wrong(format!(
                "the target has the backing file '{}', recorded as '{}'",
                named.unwrap_or_else(none),
                format.unwrap_or_else(none)
            ));
        }
        let unclean = Incompatible::DIRTY | Incompatible::CORRUPT;
        if image.header().incompatible.intersects(unclean) {
            return wrong("the target is marked as dirty or corrupt".into());
        }
        if !image.snapshots().is_empty() || !image.bitmaps().is_empty() {
            return wrong("the target has snapshots or bitmaps".into());
        }
        if image.has_data_file() || image.is_encrypted() {
            return wrong("the target has a data file, or is encrypted".into());
        }
    }
    match first_allocated(&chain, expected.format)? {
        Some(guest) => wrong(format!("the target is not empty at guest offset {guest}")),
        None => Ok(()),
    }
}

/// Where an image that was opened alone holds something first; `None` if it is empty.
///
/// # Errors
/// What reading its tables raises.
pub(crate) fn first_allocated(chain: &Chain, format: Format) -> Result<Option<GuestOffset>> {
    for extent in chain.extents() {
        let extent = extent?;
        let untouched = match extent.kind {
            ExtentKind::Unallocated => true,
            // A hole of a raw file is all the emptiness that raw knows.
            ExtentKind::Zero { host: None } => format == Format::Raw,
            _ => false,
        };
        if !untouched {
            return Ok(Some(extent.guest));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use qcow::ops::TargetOptions;

    fn overlay(dir: &Path) -> (PathBuf, Plan) {
        let source = dir.join("source.qcow2");
        create(&source, &CreateOptions::default().size(3 << 20)).unwrap();
        let plan = plan(&source, &OpenOptions::default()).unwrap();
        (source, plan)
    }

    #[test]
    fn a_target_of_another_size_is_not_proven() {
        let dir = tempfile::tempdir().unwrap();
        let (_, plan) = overlay(dir.path());
        let target = dir.path().join("target.qcow2");
        create(&target, &CreateOptions::default().size((3 << 20) + 512)).unwrap();
        let error = prove(&target, &plan).unwrap_err();
        assert!(error.to_string().contains("3146240 bytes, the source's 3145728"), "{error}");
    }

    #[test]
    fn a_target_with_anything_allocated_is_not_proven() {
        let dir = tempfile::tempdir().unwrap();
        let (_, plan) = overlay(dir.path());
        let target = dir.path().join("target.qcow2");
        let mut options = CreateOptions::default().size(3 << 20);
        if let TargetOptions::Qcow2(qcow2) = &mut options.target {
            qcow2.preallocation = qcow::ops::Preallocation::Metadata;
        }
        create(&target, &options).unwrap();
        let error = prove(&target, &plan).unwrap_err();
        assert!(error.to_string().contains("not empty at guest offset 0x0"), "{error}");
    }

    #[test]
    fn the_base_need_not_be_there_to_plan() {
        let dir = tempfile::tempdir().unwrap();
        let (base, _) = overlay(dir.path());
        let top = dir.path().join("top.qcow2");
        let backing = qcow::ops::create::Backing::new("source.qcow2", qcow::chain::Format::Qcow2);
        create(&top, &CreateOptions::default().backing(backing)).unwrap();
        std::fs::remove_file(base).unwrap();
        let plan = plan(&top, &OpenOptions::default()).unwrap();
        assert_eq!(plan.create.size, Some(3 << 20));
        prepare(&plan, &dir.path().join("target.qcow2")).unwrap();
    }
}
