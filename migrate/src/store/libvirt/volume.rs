//! Volumes as libvirt's XML tells of them, and asks for them. Pure.

use std::path::Path;

use qcow::chain::Format;

use crate::driver::libvirt::xml::{child, document, text};
use crate::facts::{DirectoryRights, Identity, ImageFacts};
use crate::store::Mode;
use crate::{Error, Result};

/// A volume as its XML tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct VolumeFacts {
    pub(super) block_device: bool,
    pub(super) identity: Identity,
    /// As libvirt guessed it from the first bytes.
    pub(super) image: Option<ImageFacts>,
}

/// `None` for what is neither a file nor a device.
pub(super) fn parse(xml: &str) -> Result<Option<VolumeFacts>> {
    let document = document(xml, "a volume")?;
    let volume = document.root_element();
    let block_device = match volume.attribute("type") {
        Some("file") => false,
        Some("block") => true,
        _ => return Ok(None),
    };
    let number = |name: &str| text(volume, &[name]).and_then(|text| text.parse::<u64>().ok());
    let target = |path: &[&str]| {
        child(volume, "target").and_then(|target| text(target, path).and_then(nanoseconds))
    };
    let format = child(volume, "target")
        .and_then(|target| child(target, "format"))
        .and_then(|format| format.attribute("type"));
    let missing =
        |what: &str| Error::environment(format!("libvirt does not report a volume's {what}"));
    let capacity = number("capacity").ok_or_else(|| missing("capacity"))?;
    let identity = Identity {
        device: None,
        inode: None,
        links: None,
        size: number("physical").ok_or_else(|| missing("length"))?,
        mtime_ns: target(&["timestamps", "mtime"]).ok_or_else(|| missing("time of change"))?,
        ctime_ns: target(&["timestamps", "ctime"]).ok_or_else(|| missing("time of change"))?,
    };
    let format = match format {
        Some("qcow2") => Some(Format::Qcow2),
        // libvirt's word for a raw image that holds a file system of CDs.
        Some("raw" | "iso") => Some(Format::Raw),
        _ => None,
    };
    let image =
        format.map(|format| ImageFacts { format, virtual_size: disk_size(format, capacity) });
    Ok(Some(VolumeFacts { block_device, identity, image }))
}

/// The last sector of a raw file may be cut off.
fn disk_size(format: Format, capacity: u64) -> u64 {
    match format {
        Format::Raw => qcow::format::whole_sectors(capacity),
        _ => capacity,
    }
}

/// `1341933637.273190990` in nanoseconds.
fn nanoseconds(text: &str) -> Option<i64> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = fraction.get(..9).unwrap_or(fraction);
    let missing = u32::try_from(9_usize.checked_sub(digits.len())?).ok()?;
    let fraction = digits.parse::<i64>().ok()?.checked_mul(10_i64.checked_pow(missing)?)?;
    seconds.parse::<i64>().ok()?.checked_mul(1_000_000_000)?.checked_add(fraction)
}

/// The XML of a new raw volume of `length` bytes, none of them allocated.
pub(super) fn new_volume(name: &str, length: u64, mode: Mode) -> String {
    let mode = match mode {
        Mode::Private => "0600",
        Mode::ReadOnly => "0444",
    };
    format!(
        "<volume><name>{}</name><capacity unit='bytes'>{length}</capacity><allocation unit='bytes'>0\
         </allocation><target><format type='raw'/><permissions><mode>{mode}</mode></permissions></target>\
         </volume>",
        escaped(name)
    )
}

/// The XML of a pool over a directory.
pub(super) fn new_pool(name: &str, directory: &str) -> String {
    format!(
        "<pool type='dir'><name>{}</name><target><path>{}</path></target></pool>",
        escaped(name),
        escaped(directory)
    )
}

/// The XML of a pool over a directory that is made with these rights.
pub(super) fn pool_with_rights(
    name: &str,
    directory: &str,
    rights: Option<&DirectoryRights>,
) -> String {
    let permissions = rights.map_or_else(String::new, |rights| {
        format!(
            "<permissions><mode>{:04o}</mode><owner>{}</owner><group>{}</group></permissions>",
            rights.mode, rights.owner, rights.group
        )
    });
    new_pool(name, directory).replace("</target>", &format!("{permissions}</target>"))
}

/// A pool's kind and directory.
pub(super) fn pool_place(xml: &str) -> Result<(String, Option<String>)> {
    let document = document(xml, "a pool")?;
    let pool = document.root_element();
    let kind = pool.attribute("type").unwrap_or_default().to_owned();
    Ok((kind, text(pool, &["target", "path"]).map(str::to_owned)))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// A path that XML and libvirt can carry, as its directory and its name.
pub(super) fn split(path: &Path) -> Result<(&str, &str)> {
    let parts = path
        .to_str()
        .filter(|text| !text.chars().any(char::is_control))
        .and_then(|_| Some((path.parent()?.to_str()?, path.file_name()?.to_str()?)));
    parts.filter(|_| path.is_absolute()).ok_or_else(|| {
        Error::usage(format!(
            "'{}' is not an absolute path of a file that libvirt can name",
            path.display()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEMPLATE: &str = "<volume type='file'>
  <name>tpl.qcow2</name>
  <key>/var/lib/libvirt/images/tpl.qcow2</key>
  <capacity unit='bytes'>67108864</capacity>
  <allocation unit='bytes'>43323392</allocation>
  <physical unit='bytes'>43384832</physical>
  <target>
    <path>/var/lib/libvirt/images/tpl.qcow2</path>
    <format type='qcow2'/>
    <permissions><mode>0644</mode><owner>0</owner><group>0</group></permissions>
    <timestamps>
      <atime>1795369220.196551121</atime>
      <mtime>1795369220.049654089</mtime>
      <ctime>1795369221</ctime>
      <btime>0</btime>
    </timestamps>
    <compat>1.1</compat>
    <clusterSize unit='B'>65536</clusterSize>
    <features/>
  </target>
</volume>";

    #[test]
    fn a_qcow2_volume() {
        let facts = parse(TEMPLATE).unwrap().unwrap();
        assert!(!facts.block_device);
        assert_eq!(facts.identity.size, 43_384_832);
        assert_eq!(facts.identity.mtime_ns, 1_795_369_220_049_654_089);
        assert_eq!(facts.identity.ctime_ns, 1_795_369_221_000_000_000);
        let image = facts.image.unwrap();
        assert_eq!((image.format, image.virtual_size), (Format::Qcow2, 67_108_864));
    }

    #[test]
    fn a_raw_volume_ends_with_a_whole_sector() {
        let raw = TEMPLATE.replace("'qcow2'", "'raw'").replace("67108864", "1000001");
        let image = parse(&raw).unwrap().unwrap().image.unwrap();
        assert_eq!((image.format, image.virtual_size), (Format::Raw, 1_000_448));
    }

    #[test]
    fn formats_that_we_cannot_read_are_told_as_such() {
        let vmdk = TEMPLATE.replace("'qcow2'", "'vmdk'");
        assert_eq!(parse(&vmdk).unwrap().unwrap().image, None);
    }

    #[test]
    fn a_directory_is_neither_a_file_nor_a_device() {
        let directory = TEMPLATE.replace("type='file'", "type='dir'").replace("physical", "other");
        assert_eq!(parse(&directory).unwrap(), None);
        let device = TEMPLATE.replace("type='file'", "type='block'");
        assert!(parse(&device).unwrap().unwrap().block_device);
    }

    #[test]
    fn a_volume_without_a_length_or_time_is_not_guessed() {
        assert!(parse(&TEMPLATE.replace("physical", "other")).is_err());
        assert!(parse(&TEMPLATE.replace("mtime", "other")).is_err());
    }

    #[test]
    fn times_with_short_fractions() {
        assert_eq!(nanoseconds("5"), Some(5_000_000_000));
        assert_eq!(nanoseconds("5.5"), Some(5_500_000_000));
        assert_eq!(nanoseconds("5.000000001"), Some(5_000_000_001));
        assert_eq!(nanoseconds("yesterday"), None);
    }

    #[test]
    fn names_are_escaped() {
        let xml = new_volume("a<b>&c", 10, Mode::ReadOnly);
        let document = roxmltree::Document::parse(&xml).unwrap();
        assert_eq!(text(document.root_element(), &["name"]), Some("a<b>&c"));
        assert!(xml.contains("0444"));
    }

    #[test]
    fn paths_that_cannot_be_named_are_refused() {
        use std::os::unix::ffi::OsStrExt;
        assert_eq!(split(Path::new("/v/x.qcow2")).unwrap(), ("/v", "x.qcow2"));
        for path in ["x.qcow2", "/", "/v/a\nb"] {
            assert!(split(Path::new(path)).is_err(), "{path}");
        }
        assert!(split(Path::new(std::ffi::OsStr::from_bytes(b"/v/\xff"))).is_err());
    }
}
