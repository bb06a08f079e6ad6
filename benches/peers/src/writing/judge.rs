//! Whether a writer did what it was asked for, as qemu-img sees it.

use std::path::Path;
use std::process::{Command, Output};

use fixtures::{args, qemu};

use super::images::{Images, SNAPSHOT};
use super::writers::Writer;
use crate::Result;

/// What was found in an image after a run.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// What must not be; figures of a writer with any are not shown.
    pub(crate) wrong: Vec<String>,
    /// Clusters that nothing uses: lost room, but no harm to data.
    pub(crate) leaked: u64,
}

/// Judges an image that the writer has written.
pub(crate) fn judge(writer: Writer, images: &Images, image: &Path) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    if writer != Writer::Raw {
        check(image, &mut verdict)?;
    }
    let mut same = |what: &str, wanted: &Path, format: &str, found: &Path| -> Result<()> {
        let words = args!["compare", "-f", "raw", "-F", format, wanted, found];
        let output = qemu_img(&words)?;
        match output.status.code() {
            Some(0) => {}
            Some(1) => verdict.wrong.push(format!("{what}: {}", first_line(&output.stdout))),
            _ => verdict.wrong.push(format!("{what}: {}", first_line(&output.stderr))),
        }
        Ok(())
    };
    same("the disk", images.wanted(writer), writer.format(), image)?;
    if writer == Writer::Raw {
        return Ok(verdict);
    }
    if let Some(backing) = &images.backing {
        same("the backing file", &images.before, "qcow2", backing)?;
    }
    if images.has_snapshot {
        let id = format!("snapshot.name={SNAPSHOT}");
        let to = &images.snapshot;
        match qemu::try_qemu_img(&args!["convert", "-l", id, "-f", "qcow2", "-O", "raw", image, to])
        {
            Ok(_) => same("the snapshot", &images.before, "raw", to)?,
            Err(error) => verdict.wrong.push(format!("the snapshot: {error}")),
        }
    }
    Ok(verdict)
}

/// `qemu-img check`, whose exit status says whether it found errors or leaks.
fn check(image: &Path, verdict: &mut Verdict) -> Result<()> {
    let output = qemu_img(&args!["check", "--output=json", "-f", "qcow2", image])?;
    if !matches!(output.status.code(), Some(0 | 2 | 3)) {
        verdict.wrong.push(format!("`qemu-img check`: {}", first_line(&output.stderr)));
        return Ok(());
    }
    let found: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let number = |name: &str| found[name].as_u64().unwrap_or(0);
    verdict.leaked = number("leaks");
    let errors = number("corruptions") + number("check-errors");
    if errors > 0 || output.status.code() == Some(2) {
        let leaked = verdict.leaked;
        let found = format!("`qemu-img check` finds {errors} errors, {leaked} leaked clusters");
        verdict.wrong.push(found);
    }
    Ok(())
}

fn qemu_img(words: &[std::ffi::OsString]) -> Result<Output> {
    Ok(Command::new("qemu-img").args(words).output()?)
}

fn first_line(said: &[u8]) -> String {
    String::from_utf8_lossy(said).lines().next().unwrap_or_default().to_owned()
}
