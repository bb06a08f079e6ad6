//! The LUKS header inside an encrypted image: who may unlock it and how, never the data.
//!
//! Specification: "LUKS On-Disk Format", version 1.2.3, section 2.3.1.

use super::SECTOR;
use super::bytes::Reader;
use crate::{Error, Result};

const STRUCTURE: &str = "LUKS header";
const MAGIC: &[u8] = b"LUKS\xba\xbe";
/// What an active key slot is marked with.
const ACTIVE: u32 = 0x00ac_71f3;

/// A LUKS version 1 header. Offsets are in bytes, from the header's start.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LuksHeader {
    /// Cipher, for example `aes`.
    pub cipher: String,
    /// Mode and generator of initial vectors, for example `xts-plain64`.
    pub mode: String,
    /// Hash, for example `sha256`.
    pub hash: String,
    /// Where the encrypted data would start.
    pub payload_offset: u64,
    /// Length of the master key in bytes.
    pub key_bytes: u32,
    /// Rounds for the master key's digest.
    pub digest_iterations: u32,
    /// Identifier of the container.
    pub uuid: String,
    /// The eight places for keys.
    pub slots: Vec<LuksSlot>,
}

/// One place for a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LuksSlot {
    /// Whether a passphrase is set.
    pub active: bool,
    /// Rounds for the passphrase.
    pub iterations: u32,
    /// Where the key material lies.
    pub key_offset: u64,
    /// Stripes that the key material is split into.
    pub stripes: u32,
}

impl LuksHeader {
    /// Length of the header in bytes.
    pub const BYTES: usize = 592;

    /// The header at the start of `bytes`.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) if it is not one, or is cut short;
    /// [`Unsupported`](crate::ErrorKind::Unsupported) for other versions.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut fields = Reader::new(bytes, 0, STRUCTURE);
        if fields.take(MAGIC.len())? != MAGIC {
            return Err(Error::corrupt("found no LUKS header").structure(STRUCTURE));
        }
        let version = fields.u16()?;
        if version != 1 {
            return Err(Error::unsupported(format!("LUKS version is {version}, expected 1"))
                .structure(STRUCTURE));
        }
        let cipher = text(fields.take(32)?);
        let mode = text(fields.take(32)?);
        let hash = text(fields.take(32)?);
        let payload_offset = u64::from(fields.u32()?).saturating_mul(SECTOR);
        let key_bytes = fields.u32()?;
        fields.take(20)?; // digest of the master key
        fields.take(32)?; // its salt
        let digest_iterations = fields.u32()?;
        let uuid = text(fields.take(40)?);
        let slots = (0..8).map(|_| LuksSlot::parse(&mut fields)).collect::<Result<_>>()?;
        Ok(Self { cipher, mode, hash, payload_offset, key_bytes, digest_iterations, uuid, slots })
    }

    /// The cipher with its key length, as QEMU names it: `aes-256`.
    pub fn cipher_name(&self) -> String {
        // XTS has two keys of the cipher's length.
        let keys = if self.mode.starts_with("xts-") { 2 } else { 1 };
        let bits = u64::from(self.key_bytes).saturating_mul(8).checked_div(keys);
        format!("{}-{}", self.cipher, bits.unwrap_or_default())
    }

    /// Cipher mode, generator of initial vectors, and its hash if it has one:
    /// `xts-plain64` is `("xts", "plain64", None)`.
    pub fn mode_parts(&self) -> (&str, &str, Option<&str>) {
        let (mode, generator) = self.mode.split_once('-').unwrap_or((&self.mode, "plain"));
        match generator.split_once(':') {
            Some((generator, hash)) => (mode, generator, Some(hash)),
            None => (mode, generator, None),
        }
    }
}

impl LuksSlot {
    fn parse(fields: &mut Reader<'_>) -> Result<Self> {
        let active = fields.u32()? == ACTIVE;
        let iterations = fields.u32()?;
        fields.take(32)?; // salt
        let key_offset = u64::from(fields.u32()?).saturating_mul(SECTOR);
        Ok(Self { active, iterations, key_offset, stripes: fields.u32()? })
    }
}

/// Text up to the first NUL.
fn text(bytes: &[u8]) -> String {
    let bytes = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_come_apart_as_qemu_names_them() {
        let mut bytes = vec![0; LuksHeader::BYTES];
        bytes[..8].copy_from_slice(b"LUKS\xba\xbe\0\x01");
        bytes[8..11].copy_from_slice(b"aes");
        bytes[40..56].copy_from_slice(b"cbc-essiv:sha256");
        bytes[108..112].copy_from_slice(&32u32.to_be_bytes());
        let header = LuksHeader::parse(&bytes).unwrap();
        assert_eq!(header.cipher_name(), "aes-256");
        assert_eq!(header.mode_parts(), ("cbc", "essiv", Some("sha256")));
    }

    #[test]
    fn cut_short_or_something_else_is_refused() {
        assert!(LuksHeader::parse(&[0; LuksHeader::BYTES]).is_err());
        assert!(LuksHeader::parse(b"LUKS\xba\xbe\0\x01").is_err());
    }
}
