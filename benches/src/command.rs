//! Commands that the suite runs untimed: to make disks, and to ask programs about themselves.

use std::process::{Command, Stdio};

use crate::failure::Result;

/// Runs a command untimed and returns what it printed; a failure carries its complaint.
pub(crate) fn must(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{}: {error}", shown(command)))?;
    if !output.status.success() {
        let (out, err) = (&output.stdout, &output.stderr);
        let said = [out, err].map(|text| String::from_utf8_lossy(text).trim().to_owned()).concat();
        return Err(format!("{}: {}: {said}", shown(command), output.status).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A command as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
