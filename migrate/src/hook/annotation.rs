//! What a guest's `<metadata>` says about its disks: exact sizes and digests of what is below the active layers.
//!
//! The element travels in the XML of a migration, so that the destination knows what the XML itself does not say. It
//! is as true as at the moment when it was written: one that is outdated must lead to a refusal, never to a copy that
//! is wrong without a word.

use roxmltree::Node;
use serde::{Deserialize, Serialize};

use crate::domain::tree;
use crate::{Error, Remedy, Result};

/// The namespace of the element.
pub const NAMESPACE: &str = "urn:qcowtool:disks:1";

/// The prefix that libvirt gives to the namespace.
pub const PREFIX: &str = "known";

/// Hexadecimal digits of a digest.
const DIGITS: usize = 64;

/// What is known about a guest's disks at the source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Annotation {
    /// The disks, each named once.
    pub disks: Vec<KnownDisk>,
}

/// What is known about one disk at the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct KnownDisk {
    /// The disk's name in the guest, such as `vda`.
    pub target: String,
    /// Its virtual size in bytes.
    pub virtual_size: u64,
    /// Cluster size of its active layer; `None` if that is raw, or it is not known.
    pub cluster_size: Option<u64>,
    /// Its active layer has subclusters.
    pub extended_l2: bool,
    /// What is below its active layer.
    pub below: Below,
}

/// What is below a disk's active layer at the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum Below {
    /// That is not known.
    Unknown,
    /// Nothing: the image has no backing file.
    Nothing,
    /// A disk of this tree hash.
    Disk {
        /// The digest, in hexadecimal digits (`docs/tree-hash.md`).
        digest: String,
        /// Its virtual size in bytes.
        virtual_size: u64,
    },
}

impl Annotation {
    /// What a domain's XML says; `None` if it says nothing.
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage) if the XML cannot be read, or the element is not as it is written here.
    pub fn in_domain(xml: &str) -> Result<Option<Self>> {
        let document = tree::read(xml)?;
        let metadata = tree::children(document.root_element(), "metadata");
        let mut found =
            metadata.flat_map(|node| node.children()).filter(|node| named(*node, "disks"));
        match (found.next(), found.next()) {
            (None, _) => Ok(None),
            (Some(node), None) => Self::read(node).map(Some),
            _ => Err(wrong("there are two of them")),
        }
    }

    fn read(node: Node<'_, '_>) -> Result<Self> {
        let mut disks: Vec<KnownDisk> = Vec::new();
        for node in node.children().filter(|child| named(*child, "disk")) {
            let disk = disk(node)?;
            if disks.iter().any(|other| other.target == disk.target) {
                return Err(wrong(&format!("disk {} is there twice", disk.target)));
            }
            disks.push(disk);
        }
        Ok(Self { disks })
    }

    /// What is known about the disk of this name.
    pub fn disk(&self, target: &str) -> Option<&KnownDisk> {
        self.disks.iter().find(|disk| disk.target == target)
    }

    /// The element, as libvirt takes it: without a prefix, which libvirt adds.
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage) if a disk's name cannot be written in XML.
    pub fn to_xml(&self) -> Result<String> {
        let mut xml = String::from("<disks>");
        for disk in &self.disks {
            let target = crate::domain::quoted(&disk.target)?;
            xml.push_str(&format!("<disk target={target} virtual-size='{}'", disk.virtual_size));
            if let Some(size) = disk.cluster_size {
                xml.push_str(&format!(" cluster-size='{size}'"));
            }
            if disk.extended_l2 {
                xml.push_str(" extended-l2='on'");
            }
            match &disk.below {
                Below::Unknown => {}
                Below::Nothing => xml.push_str(" base='none'"),
                Below::Disk { digest, virtual_size } => {
                    let digest = crate::domain::quoted(digest)?;
                    xml.push_str(&format!(" base-digest={digest} base-size='{virtual_size}'"));
                }
            }
            xml.push_str("/>");
        }
        xml.push_str("</disks>");
        Ok(xml)
    }
}

fn disk(node: Node<'_, '_>) -> Result<KnownDisk> {
    let get = |name: &'static str| tree::attribute(node, name);
    let target = get("target").ok_or_else(|| wrong("a disk has no target"))?.to_owned();
    let number = |name: &'static str| match get(name).map(str::parse::<u64>) {
        None => Ok(None),
        Some(Ok(number)) => Ok(Some(number)),
        Some(Err(_)) => Err(wrong(&format!("{name} of disk {target} is not a number"))),
    };
    let virtual_size = number("virtual-size")?
        .ok_or_else(|| wrong(&format!("disk {target} has no virtual-size")))?;
    let below = match (get("base"), get("base-digest"), number("base-size")?) {
        (None, None, None) => Below::Unknown,
        (Some("none"), None, None) => Below::Nothing,
        (None, Some(digest), Some(virtual_size)) if is_digest(digest) => {
            Below::Disk { digest: digest.to_owned(), virtual_size }
        }
        _ => return Err(wrong(&format!("the base of disk {target} is not understood"))),
    };
    let extended_l2 = get("extended-l2") == Some("on");
    let cluster_size = number("cluster-size")?;
    Ok(KnownDisk { target, virtual_size, cluster_size, extended_l2, below })
}

fn is_digest(text: &str) -> bool {
    text.len() == DIGITS && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn named(node: Node<'_, '_>, name: &str) -> bool {
    node.is_element()
        && node.tag_name().namespace() == Some(NAMESPACE)
        && node.tag_name().name() == name
}

fn wrong(what: &str) -> Error {
    Error::usage(format!("the guest's metadata ({NAMESPACE}) is not understood: {what}"))
        .hint(Remedy::AnnotateAgain)
}
