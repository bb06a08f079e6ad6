//! ROW IMAGE: carries out the requests of a row, given by its number, with imago built without async. Its two builds exclude each
//! other, so that this one is a program of its own.

// The measuring program needs all of it.
#[allow(dead_code)]
#[path = "../../src/writing/rows.rs"]
mod rows;

use std::error::Error;

use imago::file::File;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate};

use crate::rows::{BLOCK, PATTERN, ROWS, stamp};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().collect();
    let [_, row, image] = &words[..] else { return Err("ROW and IMAGE are wanted".into()) };
    let row = ROWS.get(row.parse::<usize>()?).ok_or("no such row")?;
    let opened = Qcow2::<File>::builder_path(image).write(true);
    let disk = FormatAccess::new(opened.open(PermissiveImplicitOpenGate::default())?);
    let mut buffer = vec![PATTERN; BLOCK];
    for at in row.places() {
        stamp(&mut buffer, at);
        disk.write(&buffer[..], at)?;
    }
    disk.flush()?;
    Ok(disk.sync()?)
}
