//! What is read from libvirt's small documents. Pure.

use std::path::PathBuf;

use roxmltree::{Document, Node};

use crate::{Error, Result};

pub(crate) fn document<'a>(xml: &'a str, what: &str) -> Result<Document<'a>> {
    Document::parse(xml)
        .map_err(|error| Error::environment(format!("libvirt's XML of {what} is not XML: {error}")))
}

/// The first child of this name.
pub(crate) fn child<'a, 'd>(node: Node<'a, 'd>, name: &str) -> Option<Node<'a, 'd>> {
    node.children().find(|child| child.has_tag_name(name))
}

/// The text at the end of a path of names.
pub(crate) fn text<'a>(root: Node<'a, '_>, path: &[&str]) -> Option<&'a str> {
    let node = path.iter().try_fold(root, |node, name| child(node, name))?;
    node.text().map(str::trim).filter(|text| !text.is_empty())
}

/// The host's UUID in its capabilities.
pub(crate) fn host_uuid(capabilities: &str) -> Result<Option<String>> {
    let document = document(capabilities, "a host's capabilities")?;
    Ok(text(document.root_element(), &["host", "uuid"]).map(str::to_owned))
}

/// All files and devices that a domain's disks name, layers below and targets of running copies
/// included, each with whether the domain writes to it.
pub(crate) fn disk_files(domain: &str) -> Result<Vec<(PathBuf, bool)>> {
    let document = document(domain, "a domain")?;
    let disks = document.descendants().filter(|node| {
        node.has_tag_name("disk")
            && node.parent().is_some_and(|parent| parent.has_tag_name("devices"))
    });
    let mut files = Vec::new();
    for disk in disks {
        let readonly = child(disk, "readonly").is_some();
        for source in disk.descendants().filter(|node| node.has_tag_name("source")) {
            let path = source.attribute("file").or_else(|| source.attribute("dev"));
            // The disk's own source, and what it is copied to. Layers below are not written to, but
            // while they are committed into: `<mirror>` names those.
            let writes = source.parent().is_some_and(|parent| !parent.has_tag_name("backingStore"));
            files.extend(path.map(|path| (PathBuf::from(path), writes && !readonly)));
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uuid_of_a_host() {
        let capabilities = "<capabilities>\n  <host>\n    <uuid>a0a0a0a0-0001-4000-8000-00000000000a</uuid>\
                            <cpu/></host></capabilities>";
        let uuid = host_uuid(capabilities).unwrap();
        assert_eq!(uuid.as_deref(), Some("a0a0a0a0-0001-4000-8000-00000000000a"));
        assert_eq!(host_uuid("<capabilities><host/></capabilities>").unwrap(), None);
        assert!(host_uuid("<capabilities>").is_err());
    }

    #[test]
    fn files_of_a_domain_with_a_chain_a_mirror_and_a_medium() {
        let domain = "<domain><devices>
            <disk type='file' device='disk'>
              <source file='/v/top.qcow2' index='1'/>
              <backingStore type='file'><format type='qcow2'/><source file='/v/tpl.qcow2'/><backingStore/></backingStore>
              <mirror type='file' job='copy'><format type='qcow2'/><source file='/v/copy.qcow2'/></mirror>
              <target dev='vda' bus='virtio'/>
            </disk>
            <disk type='block' device='disk'><source dev='/dev/vg/data'/><target dev='vdb'/></disk>
            <disk type='file' device='cdrom'><source file='/v/cd.iso'/><target dev='sda'/><readonly/></disk>
            <disk type='network' device='disk'><source protocol='rbd' name='p/i'/><target dev='vdc'/></disk>
            <interface type='direct'><source dev='eth0' mode='bridge'/></interface>
          </devices></domain>";
        let files = disk_files(domain).unwrap();
        let expected = [
            ("/v/top.qcow2", true),
            ("/v/tpl.qcow2", false),
            ("/v/copy.qcow2", true),
            ("/dev/vg/data", true),
            ("/v/cd.iso", false),
        ];
        let expected: Vec<_> =
            expected.iter().map(|(path, writes)| (PathBuf::from(path), *writes)).collect();
        assert_eq!(files, expected);
    }
}
