//! New images: made here, and proven from what the destination hands back.

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use qcow::chain::{Format, OpenOptions};
use qcow::format::{Extension, HeaderArea};
use qcow::io::Replace;
use qcow::ops::create::{Backing, CreateOptions, create};
use qcow::ops::{Qcow2Options, RawOptions, TargetOptions};

use crate::facts::NamedLayer;
use crate::plan::NewImage;
use crate::target::{self, Expected};
use crate::{Error, ErrorKind, Result};

/// No cluster is larger.
const LARGEST_CLUSTER: usize = 2 << 20;

/// Makes the planned image as a temporary file on this machine. It is empty; an overlay names its base
/// as the destination calls it.
pub(crate) fn make(image: &NewImage, base: Option<&NamedLayer>) -> Result<File> {
    let dir = tempfile::tempdir().map_err(io("could not make a temporary directory"))?;
    let path = dir.path().join("image");
    let backing = base.map(|base| -> Result<_> {
        let format = base.format.as_deref().unwrap_or_default().parse()?;
        // It is on another host.
        let unchecked = true;
        let open = OpenOptions::default();
        Ok(Backing::new(base.path.clone(), format).unchecked(unchecked).open(open))
    });
    let backing = backing.transpose()?;
    let size = Some(image.virtual_size);
    let target = options(image);
    create(
        &path,
        &CreateOptions::default()
            .size(size)
            .target(target)
            .backing(backing)
            .replace(Replace::Never),
    )?;
    File::open(&path).map_err(io("could not open the new image"))
}

/// The format of a planned image and its options.
pub(super) fn options(image: &NewImage) -> TargetOptions {
    match image.format {
        Format::Raw => TargetOptions::Raw(RawOptions::default()),
        // What is made is read back, and must have the planned format.
        _ => TargetOptions::Qcow2(
            Qcow2Options::default()
                .cluster_size(image.cluster_size.unwrap_or(65536))
                .extended_l2(image.extended_l2),
        ),
    }
}

/// Checks a file that was read back from the destination against what was planned (`SizesEqual`, `TargetEmpty`, `ReadsAsZeros`, `ChainsAgree`).
///
/// # Errors
/// [`Unverified`](ErrorKind::Unverified), naming the first thing that is not as it must be;
/// [`Environment`](ErrorKind::Environment) if the copy cannot be read here.
pub(crate) fn prove(copy: &Path, image: &NewImage, base: Option<&NamedLayer>) -> Result<()> {
    let expected = Expected {
        format: image.format,
        virtual_size: image.virtual_size,
        base: base.map(|base| (&*base.path, base.format.as_deref().unwrap_or_default())),
    };
    target::check(copy, &expected).map_err(|error| {
        let path = image.path.display();
        if error.io_source().is_some() {
            return Error::environment(format!("{path}: what was read back: {error}"));
        }
        Error::new(ErrorKind::Unverified, format!("{path}: {}", error.message()))
            .hint("something else writes to that place: choose another one")
    })
}

/// Gives the image in `file`, a copy that is ours, another base: `base`, which holds the same.
pub(super) fn stand_on(file: &File, base: &NamedLayer) -> Result<()> {
    let failed = io("could not change the copy's header");
    let mut first = vec![0; LARGEST_CLUSTER];
    let len = file.read_at(&mut first, 0).map_err(&failed)?;
    first.truncate(len);
    let cluster = HeaderArea::parse(&padded(&first))?.header.geometry().cluster_size();
    first.resize(usize::try_from(cluster).unwrap_or(LARGEST_CLUSTER), 0);
    let mut area = HeaderArea::parse(&first)?;
    area.backing_name = Some(base.path.as_os_str().as_bytes().to_vec());
    area.extensions.0.retain(|extension| !matches!(extension, Extension::BackingFormat(_)));
    let format = base.format.as_deref().unwrap_or_default().as_bytes().to_vec();
    area.extensions.0.insert(0, Extension::BackingFormat(format));
    let mut bytes = area.to_bytes()?;
    // What was there is gone, not hidden behind the end of what is there now.
    bytes.resize(first.len(), 0);
    file.write_all_at(&bytes, 0).map_err(failed)
}

/// The header alone may be shorter than any cluster.
fn padded(first: &[u8]) -> Vec<u8> {
    let mut padded = first.to_vec();
    padded.resize(LARGEST_CLUSTER, 0);
    padded
}

/// How an I/O error of this machine is told.
pub(super) fn io(what: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |error| Error::io(what, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::fd_path;

    fn image() -> NewImage {
        NewImage {
            path: "/there/vm.qcow2".into(),
            format: Format::Qcow2,
            virtual_size: 10 << 20,
            cluster_size: Some(65536),
            extended_l2: false,
        }
    }

    fn base(path: &str) -> NamedLayer {
        NamedLayer { path: path.into(), format: Some("qcow2".into()) }
    }

    #[test]
    fn what_is_made_is_proven() {
        for (format, below) in
            [(Format::Raw, None), (Format::Qcow2, None), (Format::Qcow2, Some(base("/b")))]
        {
            let image = NewImage { format, ..image() };
            let file = make(&image, below.as_ref()).unwrap();
            prove(&fd_path(&file), &image, below.as_ref()).unwrap();
        }
    }

    #[test]
    fn every_difference_from_the_plan_is_seen() {
        let file = make(&image(), Some(&base("/b"))).unwrap();
        let refused = |image: &NewImage, base: Option<NamedLayer>| {
            let error = prove(&fd_path(&file), image, base.as_ref()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unverified);
            error.to_string()
        };
        let larger = NewImage { virtual_size: (10 << 20) + 512, ..image() };
        assert!(refused(&larger, Some(base("/b"))).contains("10485760 bytes"));
        assert!(refused(&image(), None).contains("backing file"));
        assert!(refused(&image(), Some(base("/c"))).contains("backing file"));
        let raw = NamedLayer { format: Some("raw".into()), ..base("/b") };
        assert!(refused(&image(), Some(raw)).contains("backing file"));
    }

    #[test]
    fn content_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, vec![1; 4096]).unwrap();
        let raw =
            NewImage { format: Format::Raw, virtual_size: 4096, cluster_size: None, ..image() };
        let error = prove(&path, &raw, None).unwrap_err();
        assert!(error.to_string().contains("not empty at guest offset 0x0"), "{error}");
    }
}
