//! What to do about an error, as values: a program that links this crate words them for its own
//! users, and names its own options. What is printed here names no option and no program.

use std::borrow::Cow;
use std::fmt;

/// What to do about an [`Error`](struct@crate::Error). Its `Display` is a clause without a full
/// stop.
///
/// ```
/// use qcow::chain::{Chain, OpenOptions};
/// use qcow::{ErrorKind, Remedy};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let image = dir.path().join("vm.qcow2");
/// use qcow::ops::create::{CreateOptions, create};
/// let options = CreateOptions::default().size(1 << 30);
/// create(&image, &options)?;
/// let error = create(&image, &options).unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Exists);
/// match error.what_next() {
///     Some(Remedy::Replace) => {} // offer a button "Replace"
///     Some(other) => println!("{other}"),
///     None => {}
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Remedy {
    /// Choose another name, or allow that the file is replaced.
    Replace,
    /// Stop the guest, or read the image although another process may change it
    /// ([`OpenOptions::force_share`](crate::chain::OpenOptions::force_share)).
    ShareRead,
    /// Choose another file, or allow that the file is overwritten although it is in use
    /// ([`Replace::InUse`](crate::io::Replace::InUse)).
    ReplaceInUse,
    /// Allow that a base is changed which other images have for their backing file, too.
    ChangeShared,
    /// Leave the overlay as it is, instead of emptying it.
    KeepOverlay,
    /// Delete the internal snapshots, or allow that they read as something else.
    ChangeSnapshots,
    /// Write into the existing file, which no other can take the place of.
    WriteInto,
    /// Make a new file, because there is none to write into.
    NewFile,
    /// Stop the process that uses the image or the device, then try again.
    StopUser,
    /// Make sure that no other process changes the image, then try again.
    StopChanges,
    /// State the format of the image.
    StateFormat,
    /// State the format of each of these backing files
    /// ([`BackingFormats`](crate::chain::BackingFormats)).
    StateBackingFormat(Vec<String>),
    /// State the backing file's real format, or insist that it is raw although it begins like an image
    /// ([`BackingFormats::raw_despite_magic`](crate::chain::BackingFormats::raw_despite_magic)).
    InsistOnRaw(String),
    /// Allow the directory of the backing file or data file.
    AllowDirectory,
    /// Allow more.
    RaiseLimit(LimitName),
    /// Bring the backing file or data file back under the name that the image has for it.
    RestoreBacking,
    /// Copy the image, all of which can be read, to a new one.
    Flatten,
    /// Copy the lower images of the chain to one image.
    FlattenLower,
    /// Copy what can still be read to a new image.
    Salvage,
    /// Repair the image's metadata.
    Repair,
    /// Check the image's metadata.
    Check,
    /// Remove the snapshots that cannot be read.
    DropSnapshots,
    /// Make the disk smaller first within the guest, and then allow that what is behind the new end is lost
    /// ([`ResizeOptions::shrink`](crate::ops::resize::ResizeOptions::shrink)).
    Shrink,
    /// Remove the persistent bitmaps, or allow that they are removed.
    DropBitmaps,
    /// Allow that what changes becomes dirty in the persistent bitmaps, or that they are removed
    /// ([`BitmapRule`](crate::ops::snapshot::BitmapRule)).
    MarkBitmaps,
    /// Leave out the persistent bitmaps that were not stored cleanly, or remove them
    /// ([`CarryBitmaps::Sound`](crate::ops::bitmap::CarryBitmaps::Sound)).
    SkipBrokenBitmaps,
    /// Look which snapshots there are.
    ListSnapshots,
    /// Convert the image from the format that QEMU calls so to a supported one, or state that its bytes are
    /// a raw disk's.
    ConvertFrom(&'static str),
    /// Decompress the file first, with the program of this name, or state that its bytes are a raw
    /// disk's.
    Decompress(&'static str),
    /// Take the disk out of the archive of this kind (`tar`, `zip`, `7z`) first.
    Unpack(&'static str),
    /// Decompress the stream on the way, with the program of this name.
    DecompressStream(&'static str),
    /// Save the stream to a file first, and open that.
    SaveStream,
    /// Decrypt the image first, which is in the format that QEMU calls so: `qcow2` or `luks`.
    Decrypt(&'static str),
    /// Copy the image to a local file first.
    CopyToLocalFile,
    /// Give the size of the new image.
    GiveSize,
    /// Use another format for the new image, the one with this name.
    DestinationFormat(&'static str),
    /// Use larger clusters.
    LargerClusters,
    /// Ask for compression, too.
    Compress,
    /// Write to a file that has a name, not to a stream.
    NameFile,
    /// Allow that a block device is overwritten.
    OverwriteDevice,
    /// Do not ask for a block device.
    NotDevice,
    /// Do without direct I/O.
    BufferedIo,
    /// Check what sends the stream, and the length that was announced.
    CheckStream,
    /// Free some space, or choose another directory.
    FreeSpace,
    /// Make a new manifest.
    NewManifest,
    /// A bug in this program, to be reported.
    ReportBug,
    /// Other advice, in words that name no option and no program.
    Advice(Cow<'static, str>),
}

/// A limit that the caller can raise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum LimitName {
    /// [`Limits::max_depth`](crate::chain::Limits::max_depth).
    Depth,
    /// [`Limits::max_virtual_size`](crate::chain::Limits::max_virtual_size).
    VirtualSize,
    /// [`Limits::max_metadata`](crate::chain::Limits::max_metadata).
    Metadata,
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Replace => "choose another name, or allow that the file is replaced",
            Self::ShareRead => "stop the guest that uses it, then try again",
            Self::ReplaceInUse => {
                "stop what uses it, or choose another file"
            }
            Self::ChangeShared => "move what uses it away from it first, or allow that it is changed",
            Self::KeepOverlay => "leave the overlay as it is",
            Self::ChangeSnapshots => {
                "delete such snapshots first, or allow that they read as something else"
            }
            Self::WriteInto => "write into the existing file, as a raw image",
            Self::NewFile => "make a new file",
            Self::StopUser => "stop the process that uses it, then try again",
            Self::StopChanges => {
                "make sure that no other process changes the image, then try again"
            }
            Self::StateFormat => "state the format of the image: qcow2 or raw",
            Self::StateBackingFormat(names) => {
                let names = names.join("', '");
                return write!(f, "state the format of '{names}': qcow2 or raw");
            }
            Self::InsistOnRaw(name) => {
                return write!(
                    f,
                    "state the real format of '{name}', or insist that it is raw if the disk itself \
                     begins with these bytes"
                );
            }
            Self::AllowDirectory => "allow the directory in which the file is",
            Self::RaiseLimit(LimitName::Depth) => "allow a deeper chain",
            Self::RaiseLimit(LimitName::VirtualSize) => "allow a larger virtual size",
            Self::RaiseLimit(LimitName::Metadata) => "allow more bytes of tables",
            Self::RestoreBacking => {
                "the image cannot be read without it: restore the file under this name"
            }
            Self::Flatten => "copy the image to a new one",
            Self::FlattenLower => "copy the lower images of the chain to one image first",
            Self::Salvage => "copy what can still be read to a new image",
            Self::Repair => "repair the image's metadata first",
            Self::Check => "check the image's metadata for details",
            Self::DropSnapshots => "remove the snapshots that cannot be read",
            Self::Shrink => "make the guest's partitions and file systems smaller first, then allow it",
            Self::DropBitmaps => "remove the bitmaps, or allow that they are removed",
            Self::MarkBitmaps => "allow that the bitmaps get what changes as dirty, or that they are removed",
            Self::SkipBrokenBitmaps => "remove the bitmap, or allow that it is left out",
            Self::ListSnapshots => "look which snapshots the image has",
            Self::Decompress(_) => {
                "decompress it first, or state that it is raw if these are a disk's own bytes"
            }
            Self::Unpack(_) => {
                "take the disk out of it first, or state that it is raw if these are a disk's own \
                 bytes"
            }
            Self::DecompressStream(_) => {
                "decompress it on the way, or state that it is raw if these are a disk's own bytes"
            }
            Self::SaveStream => {
                "save it to a file first, or state that it is raw if these are a disk's own bytes"
            }
            Self::ConvertFrom(_) => {
                "convert it to a supported format, or state that it is raw if these are a disk's \
                 own bytes"
            }
            Self::Decrypt(_) => "decrypt it first",
            Self::CopyToLocalFile => "copy it to a local file first",
            Self::GiveSize => "give a size, or a backing file that exists",
            Self::DestinationFormat(name) => return write!(f, "make a {name} image"),
            Self::LargerClusters => "use larger clusters",
            Self::Compress => "ask for compression, too",
            Self::NameFile => "write to a file that has a name",
            Self::OverwriteDevice => "allow that the device is overwritten",
            Self::NotDevice => "do not ask for a block device",
            Self::BufferedIo => "do without direct I/O",
            Self::CheckStream => {
                "nothing was written: check what sends the stream, and the length that was announced"
            }
            Self::FreeSpace => "free some space or choose another directory",
            Self::NewManifest => "make a new manifest",
            Self::ReportBug => "this is a bug in this program: please report it",
            Self::Advice(words) => words,
        })
    }
}

impl From<&'static str> for Remedy {
    fn from(words: &'static str) -> Self {
        Self::Advice(words.into())
    }
}

impl From<String> for Remedy {
    fn from(words: String) -> Self {
        Self::Advice(words.into())
    }
}
