//! Lines of shell that are refused with an advice, and lines that follow it.

use std::path::PathBuf;
use std::process::{Command, Output};

use common::binary;
use fixtures::{Scratch, qemu, qemu_io};

/// Runs a line of shell in the directory, in which `qcowtool` is the binary.
pub(super) fn shell(scratch: &Scratch, line: &str) -> Output {
    let mut bash = Command::new("bash");
    bash.arg("-c").arg(format!("set -o pipefail; qcowtool() {{ \"$QCOWTOOL\" \"$@\"; }}; {line}"));
    bash.env("QCOWTOOL", binary()).current_dir(scratch.dir());
    bash.output().expect("a shell")
}

/// What the line prints on standard error; it must be refused.
#[track_caller]
pub(super) fn refused(scratch: &Scratch, line: &str, advice: &str) -> String {
    let output = shell(scratch, line);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // Of `check`, 63 says that there is nothing to check; of `compare`, 2 that it could not compare.
    let refusals: &[i32] = match () {
        () if line.contains("qcowtool check ") => &[1, 63],
        () if line.contains("qcowtool compare ") => &[2],
        () => &[1],
    };
    let code = output.status.code().unwrap_or_default();
    assert!(refusals.contains(&code), "{line}: {code}: {said}");
    assert!(said.contains(advice), "{line}: {said}");
    said
}

/// Runs a line that must end with `code`.
#[track_caller]
pub(super) fn ends(scratch: &Scratch, line: &str, code: i32) {
    let output = shell(scratch, line);
    assert_eq!(output.status.code(), Some(code), "{line}: {output:?}");
}

#[track_caller]
pub(super) fn works(scratch: &Scratch, line: &str) {
    ends(scratch, line, 0);
}

/// The command between backquotes in what was said that begins with `start`, with names for what it leaves open.
#[track_caller]
pub(super) fn advised(said: &str, start: &str, names: &[(&str, &str)]) -> String {
    let command = said.split('`').skip(1).step_by(2).find(|command| command.starts_with(start));
    let command = command.unwrap_or_else(|| panic!("no `{start}`: {said}"));
    let named = |word: &str| {
        names.iter().fold(word.to_owned(), |word, (open, name)| word.replace(open, name))
    };
    command.split(' ').map(named).collect::<Vec<_>>().join(" ")
}

/// An image of 1 MiB with data.
pub(super) fn image(scratch: &Scratch, name: &str, options: &str) -> PathBuf {
    let path = scratch.path(name);
    qemu::create(&path, options, "1M");
    qemu_io("qcow2", &path, &["write -P 1 0 64k"]);
    path
}
