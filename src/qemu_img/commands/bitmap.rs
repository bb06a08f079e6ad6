//! `qemu-img bitmap`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use qcow::chain::{Chain, Format};
use qcow::ops::bitmap::{BitmapAction, BitmapOptions, change_bitmap};
use qcow::ops::info::{FormatSpecific, ImageInfo};
use qcow::{CancelToken, Error, Silent};

use crate::qemu_img::getopt::{Key, Opt, flag, value};
use crate::qemu_img::open::{self, Opening};
use crate::qemu_img::say::Stop;
use crate::qemu_img::{arguments, names, number, objects, words, writing};
use crate::sandbox::Plan;

const OPTIONS: &[Opt] = &[
    flag(Key::Add, 0, "add"),
    flag(Key::Remove, 0, "remove"),
    flag(Key::Clear, 0, "clear"),
    flag(Key::Enable, 0, "enable"),
    flag(Key::Disable, 0, "disable"),
    value(Key::Merge, 0, "merge"),
    value(Key::SourceFile, b'b', "source-file"),
    value(Key::SecondFormat, b'F', "source-format"),
    value(Key::Format, b'f', "format"),
    value(Key::Granularity, b'g', "granularity"),
    flag(Key::ImageOpts, 0, "image-opts"),
];

/// Changes a bitmap: the actions in the order given, until one fails.
pub(in crate::qemu_img) fn run(words: &[OsString]) -> Result<(), Stop> {
    let given = arguments(OPTIONS, words)?;
    let granularity = match given.last(Key::Granularity) {
        None => None,
        Some(text) => Some(number::within("granularity", text, 1, i64::MAX.unsigned_abs())?),
    };
    let is_action = |key: Key| {
        use Key::{Add, Clear, Disable, Enable, Merge, Remove};
        matches!(key, Add | Remove | Clear | Enable | Disable | Merge)
    };
    let actions: Vec<_> = given.in_order().filter(|(key, _)| is_action(*key)).collect();
    let [operand, name] = given.operands.as_slice() else {
        return Err(Stop::usage("Expecting filename and bitmap name"));
    };
    if actions.is_empty() {
        return Err(Stop::usage(
            "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge",
        ));
    }
    if granularity.is_some() && !given.has(Key::Add) {
        return Err(Stop::error("granularity only supported with --add"));
    }
    if given.has(Key::SecondFormat) && !given.has(Key::SourceFile) {
        return Err(Stop::error("-F only supported with -b"));
    }
    if given.has(Key::SourceFile) && !given.has(Key::Merge) {
        return Err(Stop::error("Merge bitmap source file only supported with --merge"));
    }
    objects::check(&given)?;
    let opening = Opening::of(&given)?;
    let source = opening.source(operand)?;
    let format = open::driver(&given, Key::Format, &source.shown)?;
    let plan = Plan::new().image(&source.path).changing(&source.path).opened_again();
    let plan = match given.last(Key::SourceFile) {
        Some(other) => plan.image(other.as_ref()),
        None => plan,
    };
    open::enter(plan)?;
    let target = writing::prepare(&source, &opening, format)?;
    let merged = match given.last(Key::SourceFile) {
        Some(other) => {
            let other = names::source(other, false)?;
            let format = open::driver(&given, Key::SecondFormat, &other.shown)?;
            let chain = Chain::open_alone(&other.path, &Opening::default().options(format));
            let opened = |error| words::not_opened(&other.shown, &other.file(), &error);
            Some(chain.map_err(opened)?)
        }
        None => None,
    };
    let shown = name.to_string_lossy();
    for (key, value) in actions {
        let action = action(key, value, granularity, merged.as_ref());
        let word = action.as_str();
        let failed = |why: Why| {
            let stop =
                Stop::error(format!("Operation {word} on bitmap {shown} failed: {}", why.text));
            match why.hint {
                Some(hint) => stop.hint(hint),
                None => stop,
            }
        };
        if target.format == Format::Raw {
            return Err(failed(match key {
                Key::Add => {
                    "Can't store persistent bitmaps to #block0: Operation not supported".into()
                }
                _ => format!("Dirty bitmap '{shown}' not found").into(),
            }));
        }
        let options = BitmapOptions::default().format(target.format);
        let done = change_bitmap(
            &source.file(),
            name.as_bytes(),
            std::slice::from_ref(&action),
            &options,
            &Silent,
            &CancelToken::new(),
        );
        if let Err(error) = done {
            let sizes = (target.info.virtual_size, merged.as_ref().map(Chain::virtual_size));
            return Err(writing::not_opened(&source, &error)
                .unwrap_or_else(|| failed(why(&error, &target.info, &shown, &action, sizes))));
        }
    }
    Ok(())
}

fn action(
    key: Key,
    value: &OsStr,
    granularity: Option<u64>,
    merged: Option<&Chain>,
) -> BitmapAction {
    match key {
        Key::Add => BitmapAction::Add { granularity },
        Key::Remove => BitmapAction::Remove,
        Key::Clear => BitmapAction::Clear,
        Key::Enable => BitmapAction::Enable,
        Key::Disable => BitmapAction::Disable,
        _ => BitmapAction::Merge { bitmap: value.as_bytes().to_vec(), from: merged.cloned() },
    }
}

/// Why an action failed, in QEMU's words.
struct Why {
    text: String,
    hint: Option<String>,
}

impl<T: Into<String>> From<T> for Why {
    fn from(text: T) -> Self {
        Self { text: text.into(), hint: None }
    }
}

fn why(
    error: &Error,
    info: &ImageInfo,
    name: &str,
    action: &BitmapAction,
    sizes: (u64, Option<u64>),
) -> Why {
    use qcow::ErrorKind;
    let bitmaps = match &info.format_specific {
        Some(FormatSpecific::Qcow2(qcow2)) => qcow2.bitmaps.as_slice(),
        _ => &[],
    };
    let other = match action {
        BitmapAction::Merge { bitmap, .. } => String::from_utf8_lossy(bitmap).into_owned(),
        _ => name.to_owned(),
    };
    let message = error.message();
    match error.kind() {
        ErrorKind::Exists => format!("Bitmap already exists: {name}").into(),
        ErrorKind::Corrupt => {
            let bad = if message.contains(&format!("'{name}'")) { name } else { &other };
            Why {
                text: format!("Bitmap '{bad}' is inconsistent and cannot be used"),
                hint: Some("Try block-dirty-bitmap-remove to delete this bitmap from disk".into()),
            }
        }
        ErrorKind::Usage if message.contains("has no bitmap named") => {
            let here = bitmaps.iter().any(|bitmap| bitmap.name == name);
            let missing = if here { &other } else { name };
            format!("Dirty bitmap '{missing}' not found").into()
        }
        ErrorKind::Usage if message.contains("granularity") => {
            "Granularity must be power of 2 and at least 512".into()
        }
        ErrorKind::Usage if name.is_empty() => "Bitmap name cannot be empty".into(),
        ErrorKind::Usage if message.contains("different sizes") => {
            let (destination, source) = (sizes.0, sizes.1.unwrap_or_default());
            format!(
                "Bitmaps are of different sizes (destination size is {destination}, source size is {source}) and can't be merged"
            )
            .into()
        }
        ErrorKind::Unsupported if message.contains("version 2") => format!(
            "Can't make bitmap '{name}' persistent in '#block0': Cannot store dirty bitmaps in qcow2 v2 files"
        )
        .into(),
        _ => message.into(),
    }
}
