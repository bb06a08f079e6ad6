//! `qemu-img map`.

use std::ffi::OsString;
use std::io::{self, BufWriter, Write};

use qcow::chain::Chain;
use qcow::ops::map::{MapEntry, MapOptions, map};

use crate::commands::map_lines::{hexadecimal, write_object};
use crate::qemu_img::getopt::{Key, Opt, flag, value};
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
    let entries = map(&chain, &MapOptions::default().start(start).max_length(max_length));
    let mut out = BufWriter::new(io::stdout().lock());
    let listed =
        if json { list_json(&mut out, entries, start) } else { list(&mut out, entries, &chain) };
    out.flush().map_err(unprinted)?;
    listed
}

type Entries<'a> = qcow::ops::map::Map<'a>;

fn failed(error: &qcow::Error) -> Stop {
    Stop::error(format!("Failed to read image metadata: {}", words::plain(error)))
}

fn list_json(out: &mut impl Write, entries: Entries<'_>, start: u64) -> Result<(), Stop> {
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
fn list(out: &mut impl Write, entries: Entries<'_>, chain: &Chain) -> Result<(), Stop> {
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
