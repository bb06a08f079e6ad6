//! What a program does about an error, by its kind and its remedy. Needs no cargo feature.
//! `cargo run --example errors -- disk.qcow2`

use std::path::Path;

use qcow::chain::{Chain, FilePolicy, OpenOptions, Policy};
use qcow::{ErrorKind, Remedy};

fn main() {
    for image in std::env::args_os().skip(1) {
        println!("{}", run(Path::new(&image)));
    }
}

/// Returns what to do.
pub(crate) fn run(image: &Path) -> &'static str {
    let deny = Policy::default().backing(FilePolicy::Deny);
    let error = match Chain::open(image, &OpenOptions::default().policy(deny)) {
        Ok(_) => return "use it",
        Err(error) => error,
    };
    eprintln!("{error}"); // one line: the file, the structure, the offset, and what is wrong
    match (error.kind(), error.what_next()) {
        (ErrorKind::InUse, _) => "try again later",
        (ErrorKind::NotFound, _) => "look for the file",
        (ErrorKind::Denied, Some(Remedy::AllowDirectory)) => "ask for the directory",
        (ErrorKind::Denied, _) => "do not open it",
        (ErrorKind::Corrupt, _) => "restore it from a backup",
        (ErrorKind::Encrypted | ErrorKind::Unsupported | ErrorKind::WrongFormat, _) => "convert it",
        _ => "ask a person",
    }
}
