//! What libvirt tells of storage pools and of the volumes in them.

use std::path::PathBuf;

use super::raw::Outcome;
use super::xml::{child, document, text};
use super::{Connection, code, unless};
use crate::Result;
use crate::facts::{NamedLayer, PoolFacts, VolumeFacts};

/// All pools. One that goes away meanwhile is left out.
pub(super) fn pools(connection: &Connection) -> Result<Vec<PoolFacts>> {
    let mut found = Vec::new();
    for pool in connection.say(connection.connect()?.list_all_storage_pools(0))? {
        let told = || -> Outcome<_> { Ok((pool.name()?, pool.xml_desc(0)?, pool.is_active()?)) };
        let told = connection.say(unless(code::NO_STORAGE_POOL, told()))?;
        let Some((name, xml, active)) = told else { continue };
        let document = document(&xml, "a pool")?;
        let root = document.root_element();
        found.push(PoolFacts {
            name,
            kind: root.attribute("type").unwrap_or_default().to_owned(),
            path: text(root, &["target", "path"]).map(PathBuf::from),
            active,
        });
    }
    Ok(found)
}

/// The volumes of an active pool, as libvirt knows them. One that goes away meanwhile is left out.
pub(super) fn volumes(connection: &Connection, pool: &str) -> Result<Vec<VolumeFacts>> {
    let pool = connection.say(connection.connect()?.lookup_storage_pool_by_name(pool))?;
    let mut found = Vec::new();
    for volume in connection.say(pool.list_all_volumes(0))? {
        if let Some(xml) = connection.say(unless(code::NO_STORAGE_VOL, volume.xml_desc(0)))? {
            found.extend(parse(&xml)?);
        }
    }
    Ok(found)
}

/// `None` for what is neither a file nor a device.
fn parse(xml: &str) -> Result<Option<VolumeFacts>> {
    let document = document(xml, "a volume")?;
    let volume = document.root_element();
    if !matches!(volume.attribute("type"), None | Some("file" | "block")) {
        return Ok(None);
    }
    let number = |name: &str| text(volume, &[name]).and_then(|text| text.parse().ok()).unwrap_or(0);
    let layer = |name: &str| {
        let node = child(volume, name)?;
        let format = child(node, "format").and_then(|format| format.attribute("type"));
        let path = PathBuf::from(text(node, &["path"])?);
        Some(NamedLayer { path, format: format.map(str::to_owned) })
    };
    Ok(layer("target").map(|own| VolumeFacts {
        own,
        backing: layer("backingStore"),
        capacity: number("capacity"),
        allocation: number("allocation"),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_tells_what_it_stands_on() {
        let xml = "<volume type='file'><name>top</name><capacity unit='bytes'>1048576</capacity>
            <allocation unit='bytes'>4096</allocation>
            <target><path>/v/top</path><format type='qcow2'/></target>
            <backingStore><path>/v/base</path><format type='raw'/></backingStore></volume>";
        let volume = parse(xml).unwrap().unwrap();
        let layer = |path: &str, format: &str| NamedLayer {
            path: path.into(),
            format: Some(format.into()),
        };
        assert_eq!(volume.own, layer("/v/top", "qcow2"));
        assert_eq!(volume.backing, Some(layer("/v/base", "raw")));
        assert_eq!((volume.capacity, volume.allocation), (1_048_576, 4096));
        assert_eq!(
            parse("<volume type='dir'><target><path>/v</path></target></volume>").unwrap(),
            None
        );
    }
}
