//! The destination's XML.

use std::path::Path;

use qcow::chain::Format;
use roxmltree::{Document, Node};

use super::splice::{Splices, quoted};
use super::tree::{child, children, disks, is, read, target};
use super::{Change, DiskEdit, Form, XmlDisk, check, parse};
use crate::facts::{Device, NamedLayer, Source};
use crate::{Error, Result};

/// Attributes of `<source>` that say where the content was, or number it in the running hypervisor.
const OLD_PLACE: [&str; 7] = ["file", "dev", "pool", "volume", "mode", "fdgroup", "index"];

/// What the old image's place needed below `<source>`.
const OLD_NEEDS: [&str; 5] = ["slices", "dataStore", "reservations", "auth", "privateData"];

/// What a disk has only while it runs.
const PASSING: [&str; 2] = ["mirror", "privateData"];

/// The edited XML, checked.
pub(super) fn edit(xml: &str, edits: &[DiskEdit], form: Form) -> Result<String> {
    let document = read(xml)?;
    let domain = parse::domain(&document)?;
    let mut splices = Splices::new(xml);
    for (done, edit) in edits.iter().enumerate() {
        if edits.iter().take(done).any(|other| other.target == edit.target) {
            return Err(Error::usage(format!("two edits of disk {}", edit.target)));
        }
        let known = domain.disks.iter().find(|disk| disk.target == edit.target);
        let node = find(&document, &edit.target);
        let (Some(disk), Some(node)) = (known, node) else {
            if form == Form::NextStart {
                continue;
            }
            return Err(Error::usage(format!("the domain's XML has no disk {}", edit.target)));
        };
        if disk.source == Source::None && form == Form::NextStart {
            continue;
        }
        Editor { splices: &mut splices, disk, node, form }.change(&edit.change)?;
    }
    let edited = splices.apply()?;
    check::check(xml, &edited, edits, form)?;
    Ok(edited)
}

fn find<'a, 'i>(document: &'a Document<'i>, name: &str) -> Option<Node<'a, 'i>> {
    disks(document).find(|disk| target(*disk) == Some(name))
}

/// One disk that is being edited.
struct Editor<'s, 't, 'a, 'i> {
    splices: &'s mut Splices<'t>,
    disk: &'s XmlDisk,
    node: Node<'a, 'i>,
    form: Form,
}

impl<'a, 'i: 'a> Editor<'_, '_, 'a, 'i> {
    fn change(mut self, change: &Change) -> Result<()> {
        match change {
            Change::Move { path, block, format, below, slice } => {
                let place = Place { path, block: *block, slice: *slice };
                self.relocate(&place, *format, below)
            }
            Change::Medium { path } => self.medium(path),
            Change::Chain { below } => self.below(below),
            Change::Eject => self.eject(),
        }
    }

    fn refuse(&self, why: &str) -> Error {
        Error::refused(format!("disk {} {why}", self.disk.target))
    }

    fn relocate(&mut self, place: &Place<'_>, format: Format, below: &[NamedLayer]) -> Result<()> {
        if self.disk.device == Device::Lun {
            return Err(self.refuse("is passed through to the guest, and can only be where it is"));
        }
        if self.encrypted() {
            return Err(self.refuse("is encrypted, and would not be at its new place"));
        }
        if format == Format::Raw && !below.is_empty() {
            let message = format!("disk {} cannot have a backing file as raw", self.disk.target);
            return Err(Error::usage(message));
        }
        let source = self.movable_source()?;
        self.drop_all(self.node, &PASSING);
        self.set_place(source, place, &OLD_NEEDS)?;
        self.driver(source, format)?;
        self.chain(source, below)
    }

    fn medium(&mut self, path: &Path) -> Result<()> {
        let removable = matches!(self.disk.device, Device::Cdrom | Device::Floppy);
        if !self.disk.readonly && !removable {
            return Err(Error::usage(format!(
                "disk {} is not read-only, so it is no medium",
                self.disk.target
            )));
        }
        let source = self.movable_source()?;
        let layered = self
            .node
            .descendants()
            .any(|node| is(node, "dataStore") || (is(node, "backingStore") && node.has_children()));
        if layered {
            return Err(self.refuse("is a medium that needs other images beside its own"));
        }
        self.drop_all(self.node, &PASSING);
        let place = Place { path, block: parse::is_device(path), slice: None };
        self.set_place(source, &place, &["privateData"])
    }

    fn below(&mut self, below: &[NamedLayer]) -> Result<()> {
        if let Some(special) = &self.disk.special {
            return Err(self.refuse(&format!("has <{special}>, which another chain may lack")));
        }
        let source = self.movable_source()?;
        self.chain(source, below)
    }

    fn eject(&mut self) -> Result<()> {
        if !matches!(self.disk.device, Device::Cdrom | Device::Floppy) {
            return Err(Error::usage(format!("disk {} has no drive to empty", self.disk.target)));
        }
        self.drop_all(self.node, &PASSING);
        self.drop_all(self.node, &["source", "backingStore", "auth", "encryption"]);
        // Of no other kind can a drive be empty; libvirt makes it this one as well.
        self.splices.set_attribute(self.node, "type", "file")
    }

    /// An `<encryption>` of the disk or of a layer below.
    fn encrypted(&self) -> bool {
        self.node.descendants().any(|node| is(node, "encryption"))
    }

    fn movable_source(&self) -> Result<Node<'a, 'i>> {
        match self.disk.source {
            Source::File { .. } | Source::Block { .. } | Source::Volume { .. } => {
                child(self.node, "source").ok_or_else(|| self.refuse("has no source"))
            }
            Source::None => Err(Error::usage(format!("disk {} is empty", self.disk.target))),
            Source::Network { .. } | Source::Other { .. } => {
                Err(self.refuse("is not on a file, a device or a volume, so it cannot be moved"))
            }
        }
    }

    fn drop_all(&mut self, below: Node<'a, 'i>, names: &[&'static str]) {
        for name in names {
            for node in children(below, name) {
                self.splices.drop_element(node);
            }
        }
    }

    fn set_place(
        &mut self,
        source: Node<'a, 'i>,
        place: &Place<'_>,
        drop: &[&'static str],
    ) -> Result<()> {
        self.splices.set_attribute(
            self.node,
            "type",
            if place.block { "block" } else { "file" },
        )?;
        let name = if place.block { "dev" } else { "file" };
        let path = absolute(place.path)?;
        for old in OLD_PLACE.into_iter().filter(|old| *old != name) {
            self.splices.drop_attribute(source, old);
        }
        self.splices.set_attribute(source, name, path)?;
        self.drop_all(source, drop);
        if matches!(self.disk.source, Source::Volume { .. }) {
            // What a pool of network storage needed.
            self.drop_all(self.node, &["auth"]);
        }
        if let Some(size) = place.slice {
            if size == 0 {
                return Err(Error::usage("a slice of a disk cannot be empty"));
            }
            let inner = deeper(self.splices.indent(source));
            let slice = format!("<slice type='storage' offset='0' size='{size}'/>");
            let slices = format!("{inner}<slices>{}{slice}{inner}</slices>", deeper(&inner));
            self.splices.insert_into(source, &slices);
        }
        Ok(())
    }

    fn driver(&mut self, source: Node<'a, 'i>, format: Format) -> Result<()> {
        let Some(driver) = child(self.node, "driver") else {
            let xml = format!("<driver name='qemu' type='{}'/>", format.as_str());
            self.splices.insert_before(source, &xml);
            return Ok(());
        };
        self.splices.set_attribute(driver, "type", format.as_str())?;
        if format == Format::Raw {
            // libvirt refuses both for anything but QCOW2.
            self.splices.drop_attribute(driver, "discard_no_unref");
            self.drop_all(driver, &["metadata_cache"]);
        }
        Ok(())
    }

    fn chain(&mut self, source: Node<'a, 'i>, below: &[NamedLayer]) -> Result<()> {
        let old = child(self.node, "backingStore");
        if old.is_none() && self.form == Form::NextStart {
            return Ok(());
        }
        let indent = self.splices.indent(old.unwrap_or(source)).to_owned();
        let chain = chain(below, &indent)?;
        match old {
            Some(old) => self.splices.replace(old, chain),
            None => self.splices.insert_after(source, &chain),
        }
        Ok(())
    }
}

/// Where a disk goes.
struct Place<'p> {
    path: &'p Path,
    block: bool,
    slice: Option<u64>,
}

/// A path as XML can hold it.
fn absolute(path: &Path) -> Result<&str> {
    let wrong = |what: &str| Error::usage(format!("the path '{}' is not {what}", path.display()));
    if !path.is_absolute() {
        return Err(wrong("absolute"));
    }
    path.to_str().ok_or_else(|| wrong("UTF-8, as XML must be"))
}

fn deeper(indent: &str) -> String {
    if indent.is_empty() { String::new() } else { format!("{indent}  ") }
}

/// `<backingStore>` for the layers below a disk's own, with its end.
fn chain(below: &[NamedLayer], indent: &str) -> Result<String> {
    let mut xml = String::new();
    let mut indents = vec![indent.to_owned()];
    for NamedLayer { path, format } in below {
        let Some(format) = format else {
            let message = format!("the layer '{}' has no format", path.display());
            return Err(Error::usage(message));
        };
        let (kind, name) = if parse::is_device(path) { ("block", "dev") } else { ("file", "file") };
        let inner = deeper(indents.last().map_or("", String::as_str));
        let path = quoted(absolute(path)?)?;
        xml.push_str(&format!(
            "<backingStore type='{kind}'>{inner}<format type={}/>{inner}<source {name}={path}/>{inner}",
            quoted(format)?
        ));
        indents.push(inner);
    }
    indents.pop();
    xml.push_str("<backingStore/>");
    for indent in indents.iter().rev() {
        xml.push_str(&format!("{indent}</backingStore>"));
    }
    Ok(xml)
}
