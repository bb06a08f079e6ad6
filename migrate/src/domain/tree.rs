//! XML as a tree whose nodes know their place in the text, within bounds.

use roxmltree::{Document, Node, ParsingOptions};

use crate::{Error, Result};

/// libvirt sends no longer text.
const MAX_BYTES: usize = 4 << 20;

/// Nodes of a tree; domains of hundreds of devices have some thousands.
const MAX_NODES: u32 = 200_000;

/// Nested elements. The longest chain that libvirt follows needs 200.
const MAX_DEPTH: usize = 512;

/// Equals signs, which bound the attributes, and declared namespaces: the parser compares each with all
/// of the same element.
const MAX_EQUALS: usize = 50_000;
const MAX_NAMESPACES: usize = 256;

/// Reads XML.
///
/// # Errors
/// [`Usage`](crate::ErrorKind::Usage) if it is not well-formed, has a DTD or is too big.
pub(crate) fn read(xml: &str) -> Result<Document<'_>> {
    let too_big = || Error::usage("the XML is too big or too deep for a domain's");
    if xml.len() > MAX_BYTES
        || xml.bytes().filter(|byte| *byte == b'=').count() > MAX_EQUALS
        || xml.matches("xmlns").count() > MAX_NAMESPACES
    {
        return Err(too_big());
    }
    let options = ParsingOptions { nodes_limit: MAX_NODES, ..ParsingOptions::default() };
    let document = Document::parse_with_options(xml, options)
        .map_err(|error| Error::usage(format!("the XML cannot be read: {error}")))?;
    if document.descendants().any(|node| node.ancestors().nth(MAX_DEPTH).is_some()) {
        return Err(too_big());
    }
    Ok(document)
}

/// Whether a node is an element of this name and of no namespace, as all of libvirt's are.
pub(crate) fn is(node: Node<'_, '_>, name: &str) -> bool {
    node.is_element() && node.tag_name().namespace().is_none() && node.tag_name().name() == name
}

/// The elements of this name right below a node.
pub(crate) fn children<'a, 'i: 'a>(
    node: Node<'a, 'i>,
    name: &'static str,
) -> impl Iterator<Item = Node<'a, 'i>> {
    node.children().filter(move |child| is(*child, name))
}

/// The first of them, which is the one that libvirt takes.
pub(crate) fn child<'a, 'i: 'a>(node: Node<'a, 'i>, name: &'static str) -> Option<Node<'a, 'i>> {
    children(node, name).next()
}

/// The value of an attribute that is there and not empty.
pub(crate) fn attribute<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    let found = node.attributes().find(|a| a.namespace().is_none() && a.name() == name)?;
    Some(found.value()).filter(|value| !value.is_empty())
}

/// All text right below a node.
pub(crate) fn text(node: Node<'_, '_>) -> String {
    node.children().filter(Node::is_text).filter_map(|text| text.text()).collect()
}

/// The `<disk>` elements.
pub(super) fn disks<'a, 'i>(document: &'a Document<'i>) -> impl Iterator<Item = Node<'a, 'i>> {
    children(document.root_element(), "devices").flat_map(|devices| children(devices, "disk"))
}

/// The name in the guest of a `<disk>`.
pub(super) fn target<'a>(disk: Node<'a, '_>) -> Option<&'a str> {
    disk.children().find(|child| is(*child, "target")).and_then(|target| attribute(target, "dev"))
}
