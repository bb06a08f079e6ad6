//! Entries of a map as `qemu-img map` prints them.

use std::io::{self, Write};

use qcow::ops::map::MapEntry;

/// One entry as an object, on a line.
pub(crate) fn write_object(out: &mut impl Write, before: &str, entry: &MapEntry) -> io::Result<()> {
    let MapEntry { start, length, depth, present, zero, data, compressed, .. } = entry;
    write!(
        out,
        "{before}{{ \"start\": {start}, \"length\": {length}, \"depth\": {depth}, \
         \"present\": {present}, \"zero\": {zero}, \"data\": {data}, \"compressed\": {compressed}"
    )?;
    if let Some(offset) = entry.offset {
        write!(out, ", \"offset\": {offset}")?;
    }
    out.write_all(b"}")
}

/// `0x1f`, and plain `0`, as C prints it.
pub(crate) fn hexadecimal(number: u64) -> String {
    if number == 0 { "0".to_owned() } else { format!("{number:#x}") }
}
