//! Whether an edited XML is what it should be: found out from both texts, not from what the edit did.

use roxmltree::{Document, Node};

use super::tree::{disks, is, read, target};
use super::{Change, DiskEdit, Form, XmlDisk, parse};
use crate::facts::{NamedLayer, Source, XmlChain};
use crate::{Error, Result};

pub(super) fn check(before: &str, after: &str, edits: &[DiskEdit], form: Form) -> Result<()> {
    let (old, new) = (read(before)?, read(after)?);
    let (old_domain, new_domain) = (parse::domain(&old)?, parse::domain(&new)?);
    let edit_of = |disk: &XmlDisk| {
        let skipped = form == Form::NextStart && disk.source == Source::None;
        edits.iter().find(|edit| edit.target == disk.target && !skipped)
    };
    let edited: Vec<&str> = (old_domain.disks.iter())
        .filter(|disk| edit_of(disk).is_some())
        .map(|disk| disk.target.as_str())
        .collect();
    same(old.root(), new.root(), &edited)?;
    for (was, is) in old_domain.disks.iter().zip(&new_domain.disks) {
        let Some(edit) = edit_of(was) else { continue };
        let nodes = (find(&old, &was.target), find(&new, &is.target));
        let (Some(old), Some(new)) = nodes else {
            return Err(wrong(&was.target));
        };
        disk(Pair { old, new, was, is }, &edit.change, form)?;
    }
    let missing =
        edits.iter().find(|edit| old_domain.disks.iter().all(|d| d.target != edit.target));
    match missing {
        Some(edit) if form == Form::Running => Err(wrong(&edit.target)),
        _ => Ok(()),
    }
}

fn wrong(what: &str) -> Error {
    Error::refused(format!("the edited XML is wrong at '{what}'; this is a fault of the program"))
}

fn find<'a, 'i>(document: &'a Document<'i>, name: &str) -> Option<Node<'a, 'i>> {
    disks(document).find(|disk| target(*disk) == Some(name))
}

fn name<'a>(node: Node<'a, '_>) -> &'a str {
    node.tag_name().name()
}

/// Whether two trees are equal, but for the disks of these targets. The depth of trees is bounded.
fn same(old: Node<'_, '_>, new: Node<'_, '_>, except: &[&str]) -> Result<()> {
    let equal = old.node_type() == new.node_type()
        && old.tag_name() == new.tag_name()
        && old.text() == new.text()
        && old.pi() == new.pi()
        && old.namespaces().eq(new.namespaces())
        && attributes(old, &[]) == attributes(new, &[]);
    if !equal {
        return Err(wrong(name(old)));
    }
    let mut news = new.children();
    for old in old.children() {
        let new = news.next().ok_or_else(|| wrong(name(old)))?;
        let disks = is_disk(old) && is_disk(new) && target(old) == target(new);
        if disks && target(old).is_some_and(|target| except.contains(&target)) {
            continue;
        }
        same(old, new, except)?;
    }
    news.next().map_or(Ok(()), |more| Err(wrong(name(more))))
}

/// Whether a node is a disk of the domain, and not one in an application's metadata.
fn is_disk(node: Node<'_, '_>) -> bool {
    let devices = node.parent().filter(|parent| is(*parent, "devices"));
    let domain = devices.and_then(|devices| devices.parent());
    is(node, "disk") && domain.is_some_and(|domain| domain == domain.document().root_element())
}

/// Attributes but for some, in an order of ours.
fn attributes<'a>(node: Node<'a, '_>, except: &[&str]) -> Vec<(Option<&'a str>, &'a str, &'a str)> {
    let mut all: Vec<_> = node
        .attributes()
        .filter(|a| a.namespace().is_some() || !except.contains(&a.name()))
        .map(|a| (a.namespace(), a.name(), a.value()))
        .collect();
    all.sort_unstable();
    all
}

/// What is in an element: a text without its blanks, or another node.
enum Content<'a, 'i> {
    Text(String),
    Node(Node<'a, 'i>),
}

/// What is in an element but for blanks and some of its elements. What was one text on both sides of
/// such an element, or becomes one, is one.
fn content<'a, 'i: 'a>(node: Node<'a, 'i>, except: &[&str]) -> Vec<Content<'a, 'i>> {
    let mut all: Vec<Content<'_, '_>> = Vec::new();
    for child in node.children().filter(|child| !except.iter().any(|name| is(*child, name))) {
        if !child.is_text() {
            all.push(Content::Node(child));
            continue;
        }
        let text: String = child.text().unwrap_or_default().split_whitespace().collect();
        match all.last_mut() {
            Some(Content::Text(last)) => last.push_str(&text),
            _ if text.is_empty() => {}
            _ => all.push(Content::Text(text)),
        }
    }
    all
}

/// Whether two elements are equal but for what was there and went, and what is there and came.
fn same_but(
    (old, went): (Node<'_, '_>, &Differing<'_>),
    (new, came): (Node<'_, '_>, &Differing<'_>),
) -> Result<()> {
    let (olds, news) = (content(old, went.elements), content(new, came.elements));
    let equal = attributes(old, went.attributes) == attributes(new, came.attributes);
    if !equal || olds.len() != news.len() {
        return Err(wrong(name(old)));
    }
    olds.into_iter().zip(news).try_for_each(|pair| match pair {
        (Content::Node(old), Content::Node(new)) => same(old, new, &[]),
        (Content::Text(old), Content::Text(new)) if old == new => Ok(()),
        _ => Err(wrong(name(old))),
    })
}

/// Names in which two elements may differ.
struct Differing<'d> {
    attributes: &'d [&'d str],
    elements: &'d [&'d str],
}

/// A disk before and after.
struct Pair<'a, 'i, 'b, 'j> {
    old: Node<'a, 'i>,
    new: Node<'b, 'j>,
    was: &'a XmlDisk,
    is: &'b XmlDisk,
}

impl<'a, 'i: 'a, 'b, 'j: 'b> Pair<'a, 'i, 'b, 'j> {
    /// The one element of this name in both; `None` if there is none in the old one.
    fn one(&self, name: &str) -> Result<(Option<Node<'a, 'i>>, Node<'b, 'j>)> {
        let mut news = self.new.children().filter(|child| is(*child, name));
        match (news.next(), news.next()) {
            (Some(new), None) => Ok((self.old.children().find(|child| is(*child, name)), new)),
            _ => Err(wrong(name)),
        }
    }
}

fn disk(pair: Pair<'_, '_, '_, '_>, change: &Change, form: Form) -> Result<()> {
    // What makes it special is compared below, element by element.
    let found = XmlDisk { special: pair.was.special.clone(), ..pair.is.clone() };
    if found != expected(pair.was, pair.old, change, form) {
        return Err(wrong(&pair.was.target));
    }
    let (went, came): (&[&str], &[&str]) = match change {
        Change::Move { .. } => (
            &["source", "driver", "backingStore", "mirror", "privateData"],
            &["source", "driver", "backingStore"],
        ),
        Change::Medium { .. } => (&["source", "mirror", "privateData"], &["source"]),
        Change::Chain { .. } => (&["backingStore"], &["backingStore"]),
        Change::Eject => {
            (&["source", "backingStore", "auth", "encryption", "mirror", "privateData"], &[])
        }
    };
    let mut went = went.to_vec();
    if matches!(pair.was.source, Source::Volume { .. }) {
        went.push("auth");
    }
    same_but(
        (pair.old, &Differing { attributes: &["type"], elements: &went }),
        (pair.new, &Differing { attributes: &["type"], elements: came }),
    )?;
    match change {
        Change::Move { slice, format, .. } => {
            source(&pair, *slice, &["slices", "dataStore", "reservations", "auth", "privateData"])?;
            driver(&pair, *format == qcow::chain::Format::Raw)
        }
        Change::Medium { .. } => source(&pair, None, &["privateData"]),
        Change::Chain { .. } | Change::Eject => Ok(()),
    }
}

/// What the new XML must say about a disk.
fn expected(was: &XmlDisk, node: Node<'_, '_>, change: &Change, form: Form) -> XmlDisk {
    let place = |path: &std::path::Path, block| match block {
        true => Source::Block { path: path.to_path_buf() },
        false => Source::File { path: path.to_path_buf() },
    };
    let mut disk = XmlDisk { mirror: None, ..was.clone() };
    match change {
        Change::Move { path, block, format, below, .. } => {
            let format = Some(format.as_str().to_owned());
            disk.source = place(path, *block);
            disk.format.clone_from(&format);
            let terminated = form == Form::Running || parse::has_chain(node);
            let mut layers = vec![NamedLayer { path: path.clone(), format }];
            layers.extend(below.iter().filter(|_| terminated).cloned());
            disk.chain = XmlChain { layers, terminated };
        }
        Change::Medium { path } => {
            disk.source = place(path, parse::is_device(path));
            let layers = vec![NamedLayer { path: path.clone(), format: was.format.clone() }];
            disk.chain = XmlChain { layers, terminated: was.chain.terminated };
        }
        Change::Chain { below } => {
            let terminated = form == Form::Running || parse::has_chain(node);
            let below = below.iter().filter(|_| terminated).cloned();
            disk.chain.layers.truncate(1);
            disk.chain.layers.extend(below);
            disk.chain.terminated = terminated;
        }
        Change::Eject => {
            disk.source = Source::None;
            disk.chain = XmlChain::default();
        }
    }
    disk
}

fn source(pair: &Pair<'_, '_, '_, '_>, slice: Option<u64>, went: &[&str]) -> Result<()> {
    let (Some(old), new) = pair.one("source")? else {
        return Err(wrong("source"));
    };
    let place = if matches!(pair.is.source, Source::Block { .. }) { "dev" } else { "file" };
    let old_place = ["file", "dev", "pool", "volume", "mode", "fdgroup", "index"];
    let came: &[&str] = if slice.is_some() { &["slices"] } else { &[] };
    same_but(
        (old, &Differing { attributes: &old_place, elements: went }),
        (new, &Differing { attributes: &[place], elements: came }),
    )?;
    let slices: Vec<_> = new.children().filter(|child| is(*child, "slices")).collect();
    let Some(size) = slice else { return Ok(()) };
    let size = size.to_string();
    let inner: Vec<_> = slices.iter().flat_map(|slices| content(*slices, &[])).collect();
    let wanted = [(None, "offset", "0"), (None, "size", size.as_str()), (None, "type", "storage")];
    match (slices.as_slice(), inner.as_slice()) {
        ([slices], [Content::Node(slice)])
            if attributes(*slices, &[]).is_empty()
                && is(*slice, "slice")
                && attributes(*slice, &[]) == wanted
                && !slice.has_children() =>
        {
            Ok(())
        }
        _ => Err(wrong("slices")),
    }
}

fn driver(pair: &Pair<'_, '_, '_, '_>, raw: bool) -> Result<()> {
    let (old, new) = pair.one("driver")?;
    let Some(old) = old else {
        let named = attributes(new, &["type"]) == [(None, "name", "qemu")];
        return if named && !new.has_children() { Ok(()) } else { Err(wrong("driver")) };
    };
    let (attributes, elements): (&[&str], &[&str]) =
        if raw { (&["type", "discard_no_unref"], &["metadata_cache"]) } else { (&["type"], &[]) };
    same_but(
        (old, &Differing { attributes, elements }),
        (new, &Differing { attributes: &["type"], elements: &[] }),
    )
}
