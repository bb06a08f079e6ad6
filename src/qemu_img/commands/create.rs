//! `qemu-img create`.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use qcow::chain::{BackingFormats, Chain, Format, OpenOptions, resolve_name};
use qcow::io::Replace;
use qcow::ops::create::{Backing, CreateOptions, create};

use crate::commands::outputs;
use crate::qemu_img::getopt::{Key, Opt, flag, value};
use crate::qemu_img::new::{self, NewImage};
use crate::qemu_img::say::{Stop, print};
use crate::qemu_img::{arguments, list, names, number, objects, open, words};
use crate::sandbox::Plan;

const OPTIONS: &[Opt] = &[
    flag(Key::Quiet, b'q', "quiet"),
    value(Key::Format, b'f', "format"),
    value(Key::Options, b'o', "options"),
    value(Key::Backing, b'b', "backing"),
    value(Key::BackingFormat, b'F', "backing-format"),
    value(Key::BackingFormat, b'B', ""),
    flag(Key::BackingUnsafe, b'u', "backing-unsafe"),
];

/// Makes an empty image.
pub(in crate::qemu_img) fn run(words: &[OsString]) -> Result<(), Stop> {
    let given = arguments(OPTIONS, words)?;
    let items = list::items(given.all(Key::Options))?;
    let format = given.text(Key::Format).unwrap_or_else(|| "raw".to_owned());
    if list::wants_help(&items) {
        return print(new::help(new::format(&format)?, !given.operands.is_empty()));
    }
    let (name, size) = match given.operands.as_slice() {
        [] => return Err(Stop::usage("Expecting image file name")),
        [name] => (name, None),
        [name, size] => (name, Some(number::size("image size", size)?)),
        [_, size, more, ..] => {
            number::size("image size", size)?;
            return Err(Stop::usage(format!("Unexpected argument: {}", more.to_string_lossy())));
        }
    };
    objects::check(&given)?;
    let request = Request {
        name,
        size,
        backing: given.text(Key::Backing),
        backing_format: given.text(Key::BackingFormat),
        unchecked: given.has(Key::BackingUnsafe),
        quiet: given.has(Key::Quiet),
    };
    let shown = name.to_string_lossy();
    request.make(&format, &items).map_err(|stop| stop.prepend(format_args!("{shown}: ")))
}

/// What the command line asks for.
struct Request<'a> {
    name: &'a OsStr,
    size: Option<u64>,
    backing: Option<String>,
    backing_format: Option<String>,
    unchecked: bool,
    quiet: bool,
}

/// The backing file, as it was found.
struct Found {
    format: Format,
    size: u64,
}

impl Request<'_> {
    fn make(&self, format: &str, items: &[list::Item]) -> Result<(), Stop> {
        let format = new::format(format)?;
        let path = names::target(self.name)?;
        let mut image = self.image(format, items)?;
        let backing_format = self.backing_format(&image)?;
        let backing = image.get("backing_file").map(PathBuf::from);
        let mut size = image.size("size");
        if let Some(backing) = &backing {
            let found = self.open_backing(&path, backing, backing_format)?;
            if backing_format.is_none() {
                let stop = Stop::error("Backing file specified without backing format");
                return Err(match found {
                    Some(found) => stop.hint(format!("Detected format of {}.", found.format)),
                    None => stop,
                });
            }
            size = size.or(found.map(|found| found.size));
        }
        let Some(size) = size else {
            return Err(Stop::error("Image creation needs a size parameter"));
        };
        image.set("size", size.to_string());
        if !self.quiet {
            print(format_args!("{}\n", image.formatting_line(self.name)))?;
        }
        let target = image.target()?;
        let backing = backing.zip(backing_format);
        let options = CreateOptions::default()
            .size(size)
            .target(target)
            .backing(backing.map(|(name, format)| Backing::new(name, format).unchecked(true)))
            .replace(Replace::Overwrite);
        open::enter(overwriting(outputs(&path, &options.target), &path))?;
        let made = create(&path, &options).map_err(|error| not_made(&path, format, &error))?;
        open::warn(&made.warnings);
        Ok(())
    }

    /// All options, wherever they were given.
    fn image(&self, format: Format, items: &[list::Item]) -> Result<NewImage, Stop> {
        let mut image = NewImage::parse(format, items)?;
        match (image.get("size"), self.size) {
            (Some(_), Some(_)) => {
                return Err(Stop::error("The image size must be specified only once"));
            }
            (None, Some(size)) => drop(image.set("size", size.to_string())),
            _ => {}
        }
        if let Some(backing) = &self.backing
            && !image.set("backing_file", backing)
        {
            return Err(Stop::error(format!(
                "Backing file not supported for file format '{format}'"
            )));
        }
        if let Some(backing) = &self.backing_format
            && !image.set("backing_fmt", backing)
        {
            return Err(Stop::error(format!(
                "Backing file format not supported for file format '{format}'"
            )));
        }
        let backing = image.get("backing_file");
        if backing == Some("") {
            return Err(Stop::error("Expected backing file name, got empty string"));
        }
        if backing.is_some_and(|backing| OsStr::new(backing) == self.name) {
            return Err(Stop::error(
                "Error: Trying to create an image with the same filename as the backing file",
            ));
        }
        if backing.is_none() && image.get("backing_fmt").is_some() {
            return Err(Stop::error("Backing format cannot be used without backing file"));
        }
        Ok(image)
    }

    fn backing_format(&self, image: &NewImage) -> Result<Option<Format>, Stop> {
        let Some(name) = image.get("backing_fmt") else { return Ok(None) };
        name.parse()
            .map(Some)
            .map_err(|_| Stop::error(format!("Unknown backing file format '{name}'")))
    }

    /// Opens the whole chain below, so that it is known to be usable.
    fn open_backing(
        &self,
        path: &Path,
        backing: &Path,
        format: Option<Format>,
    ) -> Result<Option<Found>, Stop> {
        if self.unchecked {
            return Ok(None);
        }
        let options = OpenOptions::default()
            .format(format)
            .backing_formats(BackingFormats::new().probed(true))
            .force_share(true);
        let opened = resolve_name(backing, path, &options.working_directory)
            .and_then(|full| Chain::open(&full, &options).map(|chain| (full, chain)));
        let (full, chain) = opened.map_err(|error| {
            let top = error.place().file.clone().unwrap_or_default();
            Stop::error(words::reason(&error, &top)).hint("Could not open backing image.")
        })?;
        let found = chain.layers().first().map_or(Format::Raw, |layer| layer.format());
        let below = std::fs::canonicalize(&full).ok();
        if below.is_some() && below == std::fs::canonicalize(path).ok() {
            return Err(Stop::error(r#"Failed to get "write" lock"#)
                .hint(format!("Is another process using the image [{}]?", path.display())));
        }
        Ok(Some(Found { format: found, size: chain.virtual_size() }))
    }
}

/// Why the image could not be made.
pub(super) fn not_made(path: &Path, format: Format, error: &qcow::Error) -> Stop {
    use qcow::ErrorKind;
    let file = error.place().file.as_deref().unwrap_or(path).to_string_lossy().into_owned();
    match error.kind() {
        ErrorKind::InUse => Stop::error(r#"Failed to get "write" lock"#)
            .hint(format!("Is another process using the image [{file}]?")),
        ErrorKind::Limit => Stop::error(format!(
            "The image size is too large for file format '{format}' (try using a larger cluster size)"
        )),
        _ => match error.io_source() {
            Some(_) if error.message().starts_with("could not open") => {
                Stop::error(format!("Could not create '{file}': {}", words::plain(error)))
            }
            _ => Stop::error(words::plain(error)),
        },
    }
}

/// Adds to `plan` that the file at `path`, and what a link there leads to, is written to where it is.
pub(super) fn overwriting(plan: Plan, path: &Path) -> Plan {
    let plan = plan.changing(path);
    match std::fs::read_link(path) {
        // What it leads to may not be there yet.
        Ok(target) => plan
            .making(&path.parent().map_or_else(|| target.clone(), |parent| parent.join(&target))),
        Err(_) => plan,
    }
}
