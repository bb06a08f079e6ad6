//! `qemu-img amend`.

use std::ffi::OsString;

use qcow::chain::Format;
use qcow::format::Version;
use qcow::ops::amend::{AmendOptions, amend};
use qcow::ops::info::{FormatSpecific, Qcow2Info};
use qcow::ops::resize::{NewSize, ResizeOptions, resize};
use qcow::{CancelToken, Error, ErrorKind, Observer, Silent};

use crate::qemu_img::getopt::{Key, Opt, flag, value};
use crate::qemu_img::list::{self, Item, switch};
use crate::qemu_img::new::{self, NewImage};
use crate::qemu_img::open::{self, Opening};
use crate::qemu_img::progress::Progress;
use crate::qemu_img::say::{Stop, print};
use crate::qemu_img::writing::{self, Target};
use crate::qemu_img::{arguments, objects, words};
use crate::sandbox::Plan;
use crate::session::changing;

const OPTIONS: &[Opt] = &[
    value(Key::Format, b'f', "format"),
    value(Key::Options, b'o', "options"),
    value(Key::Cache, b't', "cache"),
    flag(Key::Progress, b'p', "progress"),
    flag(Key::Quiet, b'q', "quiet"),
    flag(Key::Force, 0, "force"),
    flag(Key::ImageOpts, 0, "image-opts"),
];

/// Options that only a new image can have.
const CREATION_ONLY: [&str; 6] = [
    "cluster_size",
    "extended_l2",
    "preallocation",
    "compression_type",
    "encryption",
    "encrypt.format",
];

/// Changes the options of an image.
pub(in crate::qemu_img) fn run(words: &[OsString]) -> Result<(), Stop> {
    let given = arguments(OPTIONS, words)?;
    let items = list::items(given.all(Key::Options))?;
    if items.is_empty() {
        return Err(Stop::usage("Must specify options (-o)"));
    }
    let opening = Opening::of(&given)?;
    if list::wants_help(&items) && given.text(Key::Format).as_deref() == Some("qcow2") {
        return print(new::amend_help());
    }
    let operand = given.only_operand("Expecting one image file name", false)?;
    objects::check(&given)?;
    open::target_cache(&given)?;
    let source = opening.source(operand)?;
    let format = open::driver(&given, Key::Format, &source.shown)?;
    let open = opening.options(format);
    let plan = changing(Plan::new().chain(&source.path, &open), &source.path, &open);
    open::enter(plan.opened_again())?;
    let target = writing::prepare(&source, &opening, format)?;
    let Some(FormatSpecific::Qcow2(now)) = &target.info.format_specific else {
        return Err(Stop::error("Format driver 'raw' does not support option amendment"));
    };
    if list::wants_help(&items) {
        return print(new::amend_help());
    }
    let options = wanted(&items, &target, now)?.format(Format::Qcow2);
    let size = NewImage::parse(Format::Qcow2, &items)?.size("size");
    let size = size.filter(|size| *size != target.info.virtual_size);
    if size.is_some_and(|size| !size.is_multiple_of(512)) {
        return Err(Stop::error("The new size must be a multiple of 512"));
    }
    // The version goes down last, with the size that the disk then has.
    let downgrade = (size.is_some()
        && options.version == Some(Version::V2)
        && now.compat != "0.10")
        .then(|| {
            let mut first = options.clone();
            first.version = None;
            first
        });
    let progress = Progress::start(given.has(Key::Progress) && !given.has(Key::Quiet), 1);
    let change = |options: &AmendOptions, observer: &dyn Observer| {
        amend(&source.to_change(), options, observer, &CancelToken::new()).map(drop)
    };
    let resized = |size: u64| {
        let open = opening.options(Some(Format::Qcow2));
        let options = ResizeOptions::default().open(open).shrink(true);
        let size = NewSize::Exactly(size);
        resize(&source.to_change(), size, &options, &Silent, &CancelToken::new()).map(drop)
    };
    let done = match (&downgrade, size) {
        (Some(first), Some(size)) => change(first, &Silent)
            .and_then(|()| resized(size))
            .and_then(|()| change(&options, &progress)),
        _ => change(&options, &progress),
    };
    progress.finish_again(done.is_ok());
    progress.end_line();
    let done = done.and_then(|()| match size {
        Some(size) if downgrade.is_none() => resized(size),
        _ => Ok(()),
    });
    match done {
        Ok(()) => Ok(()),
        Err(error) => Err(writing::not_opened(&source, &error).unwrap_or_else(|| refused(&error))),
    }
}

/// What is to change, after what cannot.
fn wanted(items: &[Item], target: &Target, now: &Qcow2Info) -> Result<AmendOptions, Stop> {
    for item in items {
        if CREATION_ONLY.contains(&item.key.as_str()) {
            return Err(Stop::error(format!("Invalid parameter '{}'", item.key))
                .hint("This option is only supported for image creation"));
        }
    }
    let image = NewImage::parse(Format::Qcow2, items)?;
    let backing = target.info.backing_filename.as_ref().map(|name| name.to_string_lossy());
    let other = image.get("backing_file").is_some_and(|name| backing.as_deref() != Some(name))
        || image
            .get("backing_fmt")
            .is_some_and(|name| target.info.backing_filename_format.as_deref() != Some(name));
    if other {
        return Err(Stop::error("Cannot amend the backing file")
            .hint("You can use 'qemu-img rebase' instead."));
    }
    if image.given_any("encrypt.") {
        return Err(Stop::error("Can't amend encryption options - encryption not present"));
    }
    let is_on = |name: &str| image.get(name).map(|text| switch(name, text)).transpose();
    let mut options = AmendOptions::default().drop_bitmaps(true).unchecked(true);
    let old = now.compat == "0.10";
    let version = match image.get("compat") {
        None => None,
        Some("0.10" | "v2") => Some(Version::V2),
        Some("1.1" | "v3") => Some(Version::V3),
        Some(word) => return Err(Stop::error(format!("Unknown compatibility level {word}"))),
    };
    let stays_old = version.map_or(old, |version| version == Version::V2);
    let bits = image.number("refcount_bits").unwrap_or(now.refcount_bits.into());
    if !bits.is_power_of_two() || bits > 64 {
        return Err(Stop::error(
            "Refcount width must be a power of two and may not exceed 64 bits",
        ));
    }
    if stays_old && bits != 16 {
        let kept = !old && bits == u64::from(now.refcount_bits);
        return Err(Stop::error(match kept {
            true => "compat=0.10 requires refcount_bits=16",
            false => {
                "Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)"
            }
        }));
    }
    let lazy = is_on("lazy_refcounts")?;
    if lazy == Some(true) && stays_old {
        return Err(Stop::error(
            "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)",
        ));
    }
    if stays_old && now.data_file_raw.is_some() {
        return Err(Stop::error("Cannot downgrade an image with a data file"));
    }
    if stays_old && now.extended_l2 == Some(true) {
        return Err(Stop::error("Cannot downgrade an image with incompatible features 0x10 set"));
    }
    if let Some(name) = image.get("data_file") {
        if now.data_file_raw.is_none() {
            return Err(Stop::error(
                "data-file can only be set for images that use an external data file",
            ));
        }
        options = options.data_file(Some(name.into()));
    }
    match is_on("data_file_raw")? {
        Some(true) if now.data_file_raw != Some(true) => {
            return Err(Stop::error("data-file-raw cannot be set on existing images"));
        }
        raw => options.data_file_raw = raw,
    }
    options.version = version;
    options.lazy_refcounts = lazy.filter(|_| !(stays_old && lazy == Some(false)));
    options.refcount_bits = u32::try_from(bits).ok();
    Ok(options)
}

/// Why the image stays as it is.
fn refused(error: &Error) -> Stop {
    let message = error.message();
    match (error.kind(), error.place().structure) {
        (ErrorKind::Unsupported, Some("snapshot table")) => {
            Stop::error("Internal snapshots prevent downgrade of image")
        }
        (_, _) if message.contains("snapshots of another size") => {
            Stop::error("Internal snapshots prevent downgrade of image")
        }
        (ErrorKind::Unsupported, _) if message.contains("zstd") => Stop::error(
            "Cannot downgrade an image with zstd compression type and existing compressed clusters and no way to convert them",
        ),
        (ErrorKind::Limit, _) if error.place().host_offset.is_some() => {
            let offset = error.place().host_offset.unwrap_or_default();
            let mut numbers =
                message.split(|c: char| !c.is_ascii_digit()).filter(|n| !n.is_empty());
            let (refcount, bits) = (numbers.next(), numbers.next());
            Stop::error(format!(
                "Cannot decrease refcount entry width to {} bits: Cluster at offset {offset:#x} has a refcount of {}",
                bits.unwrap_or_default(),
                refcount.unwrap_or_default()
            ))
        }
        _ => Stop::error(words::plain(error)),
    }
}
