//! Replacing pieces of a text that was parsed: all ranges are those of the original.

use std::ops::Range;

use roxmltree::Node;

use crate::{Error, Result};

/// Pieces of a text and what comes in their place.
#[derive(Debug)]
pub(super) struct Splices<'a> {
    text: &'a str,
    pieces: Vec<(Range<usize>, String)>,
}

impl<'a> Splices<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, pieces: Vec::new() }
    }

    fn slice(&self, range: Range<usize>) -> &'a str {
        self.text.get(range).unwrap_or_default()
    }

    pub(super) fn replace(&mut self, node: Node<'_, '_>, xml: String) {
        self.pieces.push((node.range(), xml));
    }

    pub(super) fn insert_before(&mut self, node: Node<'_, '_>, xml: &str) {
        let at = node.range().start;
        self.pieces.push((at..at, format!("{xml}{}", self.indent(node))));
    }

    pub(super) fn insert_after(&mut self, node: Node<'_, '_>, xml: &str) {
        let at = node.range().end;
        self.pieces.push((at..at, format!("{}{xml}", self.indent(node))));
    }

    /// The line break and blanks before a node; nothing if it does not begin a line.
    pub(super) fn indent(&self, node: Node<'_, '_>) -> &'a str {
        let before = self.slice(0..node.range().start);
        let blanks = before.trim_end_matches([' ', '\t']).len();
        if !before.get(..blanks).unwrap_or_default().ends_with('\n') {
            return "";
        }
        before.get(blanks.saturating_sub(1)..).unwrap_or_default()
    }

    /// Removes an element and the blanks before it.
    pub(super) fn drop_element(&mut self, node: Node<'_, '_>) {
        let blanks = node
            .prev_sibling()
            .filter(Node::is_text)
            .map(|text| text.range().start)
            .filter(|start| self.slice(*start..node.range().start).trim().is_empty());
        let start = blanks.unwrap_or(node.range().start);
        self.pieces.push((start..node.range().end, String::new()));
    }

    /// Gives an element of libvirt's an attribute, as the first one if it had none of this name.
    pub(super) fn set_attribute(
        &mut self,
        node: Node<'_, '_>,
        name: &str,
        value: &str,
    ) -> Result<()> {
        let value = quoted(value)?;
        if let Some(old) = find(node, name) {
            self.pieces.push((old, format!("{name}={value}")));
        } else {
            // libvirt's elements have no prefix: `<`, then the name.
            let at =
                node.range().start.saturating_add(1).saturating_add(node.tag_name().name().len());
            self.pieces.push((at..at, format!(" {name}={value}")));
        }
        Ok(())
    }

    /// Removes an attribute and the blanks before it.
    pub(super) fn drop_attribute(&mut self, node: Node<'_, '_>, name: &str) {
        if let Some(range) = find(node, name) {
            let start = self.slice(0..range.start).trim_end().len();
            self.pieces.push((start..range.end, String::new()));
        }
    }

    /// Puts XML in front of the content of an element of libvirt's.
    pub(super) fn insert_into(&mut self, node: Node<'_, '_>, xml: &str) {
        if let Some(first) = node.first_child() {
            let at = first.range().start;
            self.pieces.push((at..at, xml.to_owned()));
            return;
        }
        let name = node.tag_name().name();
        let range = node.range();
        let tag = self.slice(range.clone());
        let tail = if tag.ends_with("/>") {
            range.end.saturating_sub(2)
        } else {
            range.start.saturating_add(tag.rfind("</").unwrap_or(tag.len()))
        };
        let xml = format!("{}{xml}{}</{name}>", close(tag), self.indent(node));
        self.pieces.push((tail..range.end, xml));
    }

    /// The text with all pieces replaced.
    ///
    /// # Errors
    /// [`Refused`](crate::ErrorKind::Refused) if two of them overlap.
    pub(super) fn apply(mut self) -> Result<String> {
        self.pieces.sort_by_key(|(range, _)| (range.start, range.end));
        let mut out = String::with_capacity(self.text.len());
        let mut done = 0;
        for (range, new) in &self.pieces {
            let kept = self.text.get(done..range.start);
            out.push_str(kept.ok_or_else(|| Error::refused("two edits of the XML overlap"))?);
            out.push_str(new);
            done = range.end;
        }
        out.push_str(self.slice(done..self.text.len()));
        Ok(out)
    }
}

/// What ends the start tag of an element without content.
fn close(tag: &str) -> &'static str {
    if tag.ends_with("/>") { ">" } else { "" }
}

fn find(node: Node<'_, '_>, name: &str) -> Option<Range<usize>> {
    let found = node.attributes().find(|a| a.namespace().is_none() && a.name() == name)?;
    Some(found.range())
}

/// A value as an attribute has it, quotes included.
///
/// # Errors
/// [`Usage`](crate::ErrorKind::Usage) if it has a character that XML cannot write.
pub(crate) fn quoted(value: &str) -> Result<String> {
    let mut out = String::from("'");
    for c in value.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&apos;"),
            '"' => out.push_str("&quot;"),
            '\t' => out.push_str("&#9;"),
            '\n' => out.push_str("&#10;"),
            '\r' => out.push_str("&#13;"),
            '\0'..='\x1f' | '\u{fffe}' | '\u{ffff}' => {
                return Err(Error::usage(format!("XML cannot hold the name '{value}'")));
            }
            _ => out.push(c),
        }
    }
    out.push('\'');
    Ok(out)
}
