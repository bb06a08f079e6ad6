//! Judges of what a command made or printed.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use serde_json::Value;

use crate::command::must;
use crate::failure::Result;

/// Judges a command by the file it made and the text it printed.
pub(crate) type Verify = Box<dyn Fn(Option<&Path>, &str) -> Result<()>>;

/// The file made is a qcow2 image without an error or a leak.
pub(crate) fn sound() -> Verify {
    Box::new(|made, _| {
        check(made.ok_or("no file to look at")?)?;
        Ok(())
    })
}

/// The file made is a sound qcow2 image, and every cluster of its disk is allocated.
pub(crate) fn all_allocated() -> Verify {
    Box::new(|made, _| {
        let made = made.ok_or("no file to look at")?;
        let found: Value = serde_json::from_str(&check(made)?)?;
        if found["allocated-clusters"] == found["total-clusters"] {
            return Ok(());
        }
        Err(format!("not all clusters are allocated: {found}").into())
    })
}

/// The file made shows a guest the same disk as `source`, and is sound if it is a qcow2 image.
pub(crate) fn equal(source: PathBuf) -> Verify {
    Box::new(move |made, _| {
        let path = made.ok_or("no file to look at")?;
        // Without this, a longer tail of zeros would pass.
        let (made, asked) = (facts(path)?, facts(&source)?);
        if made["virtual-size"] != asked["virtual-size"] {
            return Err(format!("the disk's size is {}", made["virtual-size"]).into());
        }
        must(Command::new("qemu-img").args(["compare", "-q"]).args([&source, path]))?;
        if made["format"] == "qcow2" {
            check(path)?;
        }
        Ok(())
    })
}

/// The file made is the same byte for byte.
pub(crate) fn same_bytes(source: PathBuf) -> Verify {
    Box::new(move |made, _| match crate::copy::same(&source, made.ok_or("no file to look at")?)? {
        true => Ok(()),
        false => Err("the copy is not the same".into()),
    })
}

/// Anything will do: for what is only beside the others.
pub(crate) fn nothing() -> Verify {
    Box::new(|_, _| Ok(()))
}

/// The JSON printed says the same as `qemu-img info` does.
pub(crate) fn same_facts(image: &Path) -> [Verify; 2] {
    let verify = |image: PathBuf| -> Verify {
        Box::new(move |_, printed| {
            let (ours, theirs): (Value, Value) = (serde_json::from_str(printed)?, facts(&image)?);
            if ours != theirs {
                return Err(format!("{ours} is not what qemu-img says: {theirs}").into());
            }
            Ok(())
        })
    };
    [verify(image.to_owned()), verify(image.to_owned())]
}

/// Both print the same JSON, but for the findings that only qcowtool has.
pub(crate) fn same_json() -> [Verify; 2] {
    agree(|printed| {
        let mut value: Value = serde_json::from_str(printed)?;
        if let Some(object) = value.as_object_mut() {
            object.retain(|key, _| !key.starts_with("findings"));
        }
        Ok(value)
    })
}

/// Both print the same.
pub(crate) fn same_text() -> [Verify; 2] {
    agree(|printed| Ok(printed.trim().into()))
}

/// Both print the same digest, and then the name of what they read.
pub(crate) fn same_digest() -> [Verify; 2] {
    agree(|printed| Ok(printed.split_whitespace().next().unwrap_or_default().into()))
}

/// For two contenders: what `read` makes of the second's output is what it made of the first's.
fn agree(read: fn(&str) -> Result<Value>) -> [Verify; 2] {
    let first = Rc::new(RefCell::new(None));
    let said = Rc::clone(&first);
    [
        Box::new(move |_, printed| {
            *said.borrow_mut() = Some(read(printed)?);
            Ok(())
        }),
        Box::new(move |_, printed| {
            let (ours, theirs) = (first.borrow(), read(printed)?);
            if ours.as_ref() == Some(&theirs) {
                return Ok(());
            }
            Err(format!("{theirs} is not what qcowtool says: {ours:?}").into())
        }),
    ]
}

/// What `qemu-img check` counts in an image that it finds sound.
fn check(image: &Path) -> Result<String> {
    must(Command::new("qemu-img").args(["check", "-f", "qcow2", "--output", "json"]).arg(image))
}

fn facts(image: &Path) -> Result<Value> {
    let printed = must(Command::new("qemu-img").args(["info", "--output", "json"]).arg(image))?;
    Ok(serde_json::from_str(&printed)?)
}
