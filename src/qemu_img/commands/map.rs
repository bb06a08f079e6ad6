//! `qemu-img map`.

use std::ffi::{OsStr, OsString};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;

use qcow::chain::Chain;
use qcow::ops::map::{MapEntry, MapOptions, map};

use crate::commands::map_lines::{hexadecimal, write_object};
use crate::qemu_img::getopt::{Key, Opt, flag, value};
use crate::qemu_img::list::{self, Item};
use crate::qemu_img::open::{self, Opening};
use crate::qemu_img::say::{Stop, shown, unprinted};
use crate::qemu_img::{arguments, json_wanted, number, objects, words};
use crate::sandbox::Plan;

const OPTIONS: &[Opt] = &[
    value(Key::Format, b'f', "format"),
    value(Key::Output, 0, "output"),
    value(Key::StartOffset, b's', "start-offset"),
    value(Key::MaxLength, b'l', "max-length"),
    flag(Key::ForceShare, b'U', "force-share"),
    flag(Key::ImageOpts, 0, "image-opts"),
];

/// Lists which layer provides which range.
pub(in crate::qemu_img) fn run(words: &[OsString]) -> Result<(), Stop> {
    let given = arguments(OPTIONS, words)?;
    let size = |key, what| given.last(key).map(|text| number::size(what, text)).transpose();
    let start = size(Key::StartOffset, "start offset")?.unwrap_or(0);
    let max_length = size(Key::MaxLength, "max length")?;
    let operand = given.only_operand("Expecting one image file name", true)?;
    let json = json_wanted(&given)?;
    objects::check(&given)?;
    let opening = Opening::of(&given)?;
    let source = opening.source(operand)?;
    let options = opening.options(open::driver(&given, Key::Format, &source.shown)?);
    let sandbox = open::enter(Plan::new().chain(&source.path, &options))?;
    let chain = open::chain(&source, &options)?;
    open::all_is_open(&sandbox)?;
    let direct = opening.image_opts && is_direct(operand);
    let entries = map(&chain, &MapOptions::default().start(start).max_length(max_length));
    let entries = whole_sectors(entries, direct);
    let mut out = BufWriter::new(io::stdout().lock());
    let listed =
        if json { list_json(&mut out, entries, start) } else { list(&mut out, entries, &chain) };
    out.flush().map_err(unprinted)?;
    listed
}

/// Whether an option list has the file read without the page cache.
fn is_direct(list: &OsStr) -> bool {
    let items = list::split(list.as_bytes());
    let last = items.iter().rev().find(|item| item.key == "cache.direct").map(Item::text);
    last.is_some_and(|text| list::switch("cache.direct", &text).is_ok_and(|on| on))
}

/// The entries; where whole sectors are read, data reaches to the end of the last one, also past the file's.
fn whole_sectors(
    entries: impl Iterator<Item = qcow::Result<MapEntry>>,
    direct: bool,
) -> impl Iterator<Item = qcow::Result<MapEntry>> {
    let mut entries = entries.peekable();
    std::iter::from_fn(move || {
        let mut entry = entries.next()?;
        if let (true, Ok(data), Some(Ok(next))) = (direct, &mut entry, entries.peek())
            && (data.data && !data.zero && !next.data)
            && next.start % 512 != 0
            && next.end() == next.start.next_multiple_of(512)
        {
            data.length = data.length.saturating_add(next.length);
            entries.next();
        }
        Some(entry)
    })
}

fn failed(error: &qcow::Error) -> Stop {
    Stop::error(format!("Failed to read image metadata: {}", words::plain(error)))
}

fn list_json(
    out: &mut impl Write,
    entries: impl Iterator<Item = qcow::Result<MapEntry>>,
    start: u64,
) -> Result<(), Stop> {
    let mut before = "[";
    for entry in entries {
        let entry = entry.map_err(|error| failed(&error))?;
        write_object(out, before, &entry).map_err(unprinted)?;
        before = ",\n";
    }
    if before == "[" {
        write!(
            out,
            "[{{ \"start\": {start}, \"length\": 0, \"depth\": 0, \"present\": false, \"zero\": false, \
             \"data\": false, \"compressed\": false}}"
        )
        .map_err(unprinted)?;
    }
    out.write_all(b"]\n").map_err(unprinted)
}

/// Lists data alone, and ends where its place cannot be given.
fn list(
    out: &mut impl Write,
    entries: impl Iterator<Item = qcow::Result<MapEntry>>,
    chain: &Chain,
) -> Result<(), Stop> {
    let names: Vec<_> =
        chain.layers().iter().map(|layer| shown(layer.data_path().as_os_str())).collect();
    writeln!(out, "{:<16}{:<16}{:<16}File", "Offset", "Length", "Mapped to").map_err(unprinted)?;
    for entry in entries {
        let MapEntry { start, length, depth, zero, data, offset, .. } =
            entry.map_err(|error| failed(&error))?;
        if !data || zero {
            continue;
        }
        let Some(offset) = offset else {
            return Err(Stop::error("File contains external, encrypted or compressed clusters."));
        };
        let name = names.get(depth).map_or("", String::as_str);
        let [start, length, offset] = [start, length, offset].map(hexadecimal);
        writeln!(out, "{start:<16}{length:<16}{offset:<16}{name}").map_err(unprinted)?;
    }
    Ok(())
}
