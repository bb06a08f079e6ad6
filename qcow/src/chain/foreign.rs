//! Recognises what is not a disk's own bytes: images of other formats, compressed downloads and
//! archives. Without a stated format none of them is taken for a raw disk.
//!
//! Pure but for [`Foreign::find`], which reads the start and the end of one storage.

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::{Chain, Format, Layer};
use crate::io::{Storage, read_padded};
use crate::{Error, ErrorKind, Remedy, Result};

/// As many bytes of the start are looked at: a tar header.
const START: usize = 512;
/// As many bytes of the end are looked at: trailers have 511 or 512 bytes, and QEMU looks for a
/// DMG's anywhere in the last two sectors.
pub(crate) const END: usize = 1024;

/// What a file or a stream is, if it is not a disk's own bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Foreign(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// An image: its name, and how QEMU calls its driver.
    Image(&'static str, &'static str),
    /// Compressed data: by which program.
    Compressed(&'static str),
    /// An archive: its name.
    Archive(&'static str),
}

const QCOW2: Kind = Kind::Image("QCOW2", "qcow2");
const VMDK: Kind = Kind::Image("VMDK", "vmdk");
const VHD: Kind = Kind::Image("VHD", "vpc");
const DMG: Kind = Kind::Image("DMG", "dmg");

/// Offset, magic, what it means.
const MAGICS: &[(usize, &[u8], Kind)] = &[
    (0, b"QFI\xfb\0\0\0\x01", Kind::Image("QCOW version 1", "qcow")),
    (0, b"QFI\xfb", QCOW2),
    (0, b"KDMV", VMDK),
    (0, b"COWD", VMDK),
    (0x40, b"\x7f\x10\xda\xbe", Kind::Image("VDI", "vdi")),
    (0, b"vhdxfile", Kind::Image("VHDX", "vhdx")),
    (0, b"conectix", VHD),
    (0, b"QED\0", Kind::Image("QED", "qed")),
    (0, b"WithoutFreeSpace", Kind::Image("Parallels", "parallels")),
    (0, b"WithouFreSpacExt", Kind::Image("Parallels", "parallels")),
    (0, b"LUKS\xba\xbe", Kind::Image("LUKS", "luks")),
    (0, b"Bochs Virtual HD Image", Kind::Image("Bochs", "bochs")),
    (0, b"#!/bin/sh\n#V2.0 Format\n", Kind::Image("cloop", "cloop")),
    (0, b"\x1f\x8b\x08", Kind::Compressed("gzip")),
    (0, b"\xfd7zXZ\0", Kind::Compressed("xz")),
    (0, b"\x28\xb5\x2f\xfd", Kind::Compressed("zstd")),
    (0, b"\x04\x22\x4d\x18", Kind::Compressed("lz4")),
    (0, b"LZIP\x01", Kind::Compressed("lzip")),
    (0, b"\x89LZO\0\r\n\x1a\n", Kind::Compressed("lzop")),
    (0, b"PK\x03\x04", Kind::Archive("zip")),
    (0, b"7z\xbc\xaf\x27\x1c", Kind::Archive("7z")),
];

impl Foreign {
    /// What these first bytes of a file or stream are; 512 of them tell all.
    ///
    /// ```
    /// use qcow::chain::Foreign;
    /// let found = Foreign::at_start(b"KDMV\x01\0\0\0").unwrap();
    /// assert_eq!(found.to_string(), "a VMDK image");
    /// assert!(Foreign::at_start(&[0; 512]).is_none());
    /// ```
    pub fn at_start(start: &[u8]) -> Option<Self> {
        let magic = MAGICS
            .iter()
            .find(|(at, magic, _)| start.get(*at..).is_some_and(|bytes| bytes.starts_with(magic)))
            .map(|(_, _, kind)| *kind);
        let bzip2 = || is_bzip2(start).then_some(Kind::Compressed("bzip2"));
        let tar = || is_tar(start).then_some(Kind::Archive("tar"));
        let vmdk = || is_vmdk_descriptor(start).then_some(VMDK);
        magic.or_else(bzip2).or_else(tar).or_else(vmdk).map(Self)
    }

    /// What these last bytes of a file or stream are: the formats that QEMU knows and that begin
    /// with the disk's own bytes, or with anything.
    pub fn at_end(end: &[u8]) -> Option<Self> {
        // A VHD footer of 512 bytes, or of 511 as an old writer left it.
        let footer = |len: usize| end.len().checked_sub(len).and_then(|at| end.get(at..));
        if [512, 511].into_iter().filter_map(footer).any(|bytes| bytes.starts_with(b"conectix")) {
            return Some(Self(VHD));
        }
        // Magic, version 4, length 512, all big-endian.
        let trailer = b"koly\0\0\0\x04\0\0\x02\0";
        let near = end.get(end.len().saturating_sub(END)..).unwrap_or(end);
        near.windows(trailer.len()).any(|bytes| bytes == trailer).then_some(Self(DMG))
    }

    /// What `storage` holds, by its start and its end.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io).
    pub fn find(storage: &dyn Storage) -> Result<Option<Self>> {
        let mut start = [0; START];
        read_padded(storage, &mut start, 0)?;
        if let Some(found) = Self::at_start(&start) {
            return Ok(Some(found));
        }
        let mut end = [0; END];
        let len = storage.len().min(END as u64);
        let end = end.get_mut(..usize::try_from(len).unwrap_or(END)).unwrap_or_default();
        read_padded(storage, end, storage.len().saturating_sub(len))?;
        Ok(Self::at_end(end))
    }

    /// QEMU takes any file of this name for a DMG, and refuses it if it is none.
    pub(super) fn by_name(path: &Path) -> Option<Self> {
        let name = path.as_os_str().as_bytes();
        name.ends_with(b".dmg").then_some(Self(DMG))
    }

    pub(super) fn is_qcow2(self) -> bool {
        self.0 == QCOW2
    }

    /// Why a file is refused whose format was not stated.
    pub(super) fn refused(self) -> Error {
        let message = format!("this is {self}; only qcow2 and raw are supported");
        Error::new(ErrorKind::WrongFormat, message).hint(match self.0 {
            Kind::Image("LUKS", driver) => Remedy::Decrypt(driver),
            Kind::Image(_, driver) => Remedy::ConvertFrom(driver),
            Kind::Compressed(program) => Remedy::Decompress(program),
            Kind::Archive(name) => Remedy::Unpack(name),
        })
    }

    /// Why a stream is refused that was not stated to be raw, or whose sender is not trusted.
    pub(crate) fn refused_as_stream(self) -> Error {
        let message = format!("the stream is {self}, not a raw disk");
        Error::new(ErrorKind::WrongFormat, message).hint(match self.0 {
            Kind::Image(..) | Kind::Archive(_) => Remedy::SaveStream,
            Kind::Compressed(program) => Remedy::DecompressStream(program),
        })
    }
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Kind::Image(name, _) => write!(f, "a {name} image"),
            Kind::Compressed(name) => write!(f, "{name}-compressed data"),
            Kind::Archive("tar") => f.write_str("a tar (OVA) archive"),
            Kind::Archive(name) => write!(f, "a {name} archive"),
        }
    }
}

impl Chain {
    /// Layers that are read as raw, as was stated or recorded, although their bytes are something
    /// else's: their depths, and what they look like. Costs two small reads for each raw layer.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io), naming the file.
    pub fn raw_lookalikes(&self) -> Result<Vec<(usize, Foreign)>> {
        let mut found = Vec::new();
        for (depth, layer) in self.layers().iter().enumerate() {
            found.extend(layer.raw_lookalike()?.map(|looks| (depth, looks)));
        }
        Ok(found)
    }
}

impl Layer {
    /// What the layer's bytes are although it is read as raw, if they are anything.
    pub(crate) fn raw_lookalike(&self) -> Result<Option<Foreign>> {
        match self.format() {
            Format::Raw => {
                let looks = Foreign::find(self.storage().as_ref());
                looks.map_err(|error| error.file(self.path()))
            }
            Format::Qcow2 => Ok(None),
        }
    }
}

/// `BZh`, the block size as a digit, and the magic of a block or, for nothing, of the end.
fn is_bzip2(start: &[u8]) -> bool {
    let Some((header, block)) = start.split_at_checked(4) else { return false };
    header.starts_with(b"BZh")
        && header.last().is_some_and(|digit| (b'1'..=b'9').contains(digit))
        && (block.starts_with(b"1AY&SY") || block.starts_with(b"\x17\x72\x45\x38\x50\x90"))
}

/// `ustar` and a header checksum that is right: a boot sector may have those letters there.
fn is_tar(start: &[u8]) -> bool {
    let (Some(header), Some(field)) = (start.get(..512), start.get(148..156)) else { return false };
    if header.get(257..262) != Some(b"ustar") {
        return false;
    }
    let digits = field.iter().skip_while(|byte| **byte == b' ');
    let digits = digits.take_while(|byte| (b'0'..=b'7').contains(*byte));
    let recorded = digits.fold(0u32, |sum, digit| {
        sum.wrapping_mul(8).wrapping_add(u32::from(digit.wrapping_sub(b'0')))
    });
    let sum = header.iter().enumerate().fold(0u32, |sum, (at, byte)| {
        let byte = if (148..156).contains(&at) { b' ' } else { *byte };
        sum.wrapping_add(u32::from(byte))
    });
    sum == recorded
}

/// The text file of a VMDK: comments and empty lines, then the version. QEMU looks for the same.
fn is_vmdk_descriptor(start: &[u8]) -> bool {
    if start.starts_with(b"# Disk DescriptorFile") {
        return true;
    }
    let lines = start.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let mut lines = lines.skip_while(|line| line.is_empty() || line.starts_with(b"#"));
    matches!(lines.next(), Some(b"version=1" | b"version=2" | b"version=3"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::MemoryStorage;

    fn found(bytes: &[u8]) -> Option<String> {
        Foreign::find(&MemoryStorage::new(bytes.to_vec())).unwrap().map(|found| found.to_string())
    }

    /// A header as `tar` writes it, with a right checksum.
    fn tar() -> Vec<u8> {
        let mut header = vec![0; 512];
        header[..8].copy_from_slice(b"disk.ovf");
        header[257..262].copy_from_slice(b"ustar");
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        header
    }

    #[test]
    fn compressed_data_and_archives_are_recognised() {
        for (start, name) in [
            (&b"\x1f\x8b\x08\0rest"[..], "gzip-compressed data"),
            (b"\xfd7zXZ\0rest", "xz-compressed data"),
            (b"\x28\xb5\x2f\xfdrest", "zstd-compressed data"),
            (b"BZh91AY&SYrest", "bzip2-compressed data"),
            (b"\x04\x22\x4d\x18rest", "lz4-compressed data"),
            (b"PK\x03\x04rest", "a zip archive"),
        ] {
            assert_eq!(found(start).as_deref(), Some(name));
        }
        assert_eq!(found(&tar()).as_deref(), Some("a tar (OVA) archive"));
    }

    #[test]
    fn a_boot_sector_that_resembles_an_archive_is_a_disk() {
        let mut sector = tar();
        sector[3] = b'x';
        sector[510..].copy_from_slice(b"\x55\xaa");
        assert_eq!(found(&sector), None);
        assert_eq!(found(b"BZh9 is how this file system begins"), None);
        assert_eq!(found(b"version=4\n"), None);
        assert_eq!(found(b""), None);
    }

    #[test]
    fn a_vmdk_descriptor_may_begin_with_comments() {
        for text in ["# Disk DescriptorFile\nversion=1\n", "# made by x\n  \r\nversion=3\r\n"] {
            assert_eq!(found(text.as_bytes()).as_deref(), Some("a VMDK image"));
        }
    }

    #[test]
    fn a_vhd_footer_counts_only_where_the_file_ends() {
        for (len, is_vhd) in [(512, true), (511, true), (513, false), (1024, false)] {
            let mut disk = vec![0; 4096];
            disk.extend(b"conectix");
            disk.resize(4096 + len, 0);
            let expected = is_vhd.then_some("a VHD image");
            assert_eq!(found(&disk).as_deref(), expected, "{len}");
        }
    }

    #[test]
    fn a_dmg_is_known_by_its_trailer_on_no_sector_boundary() {
        let mut disk = vec![7; 5000];
        disk.extend(b"koly\0\0\0\x04\0\0\x02\0");
        disk.resize(5512, 0);
        assert_eq!(found(&disk).as_deref(), Some("a DMG image"));
    }
}
