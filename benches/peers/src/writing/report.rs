//! The section of the report.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use super::rows::Row;
use super::{Figures, Found, ROUNDS};
use crate::{Result, version};

/// What the section begins with; the other part of the report is before it.
pub(crate) const HEADING: &str = "## Writing in place";

/// What is said before the tables.
pub(crate) fn head(dir: &Path) -> Result<String> {
    let cores = std::thread::available_parallelism()?;
    let system = Command::new("stat").args(["-f", "-c", "%T"]).arg(dir).output()?.stdout;
    let date = Command::new("date").args(["-u", "+%Y-%m-%d"]).output()?.stdout;
    let qemu = fixtures::qemu_img(&["--version"]);
    Ok(format!(
        "{HEADING}\n\n\
         Requests of 4 KiB to a disk of 512 MiB with clusters of 64 KiB, one after the other, by one thread in a process of its own, \
         which opens the image, flushes and syncs at the end: qcow (this project), imago {} in its two builds, qcow2-rs {}. Beside \
         them, as a bound, `pwrite` on a raw file of the same content, and {} at depth 32, which uses more threads. Processor time \
         is that of the whole process, its start included, divided by its requests. Files on {}, {cores} cores, median of {ROUNDS} runs in alternation, {}. The \
         machine does other work too: processor time is the figure to compare; seconds are those of that hour. Written by \
         `make bench-peers PEERS='--writing'`.\n\n\
         After every run `qemu-img check` must find no errors, and `qemu-img compare` what was written and nothing else changed, in the \
         backing file and the snapshot too. A writer for which that is not so once gets no figures. Leaked clusters are lost room, \
         and no errors. What a crash in between leaves is not judged here.\n",
        version("imago"),
        version("qcow2-rs"),
        qemu.lines().next().unwrap_or_default().replacen("qemu-img", "`qemu-img bench`,", 1),
        String::from_utf8_lossy(&system).trim(),
        String::from_utf8_lossy(&date).trim(),
    ))
}

/// A row of the design as a table.
pub(crate) fn row(row: &Row, found: &Found) -> String {
    let mut text = format!(
        "\n### {}\n\n{} requests.\n\n\
         | by | µs of processor for a request | seconds | peak memory | leaked clusters |\n|---|--:|--:|--:|--:|\n",
        row.name, row.count,
    );
    for (writer, runs) in found {
        let name = writer.name();
        let _ = match runs {
            Ok(runs) => {
                let processor = median(runs, |run| run.processor.as_secs_f64());
                let micros = processor * 1e6 / row.count as f64;
                let seconds = median(runs, |run| run.time.as_secs_f64());
                let memory = most(runs, |run| run.memory) >> 20;
                let leaked = most(runs, |run| run.leaked);
                writeln!(text, "| {name} | {micros:.2} | {seconds:.2} | {memory} MiB | {leaked} |")
            }
            Err(why) => writeln!(text, "| {name} | wrong: {} | | | |", why.replace('|', "/")),
        };
    }
    text
}

fn median(runs: &[Figures], of: fn(&Figures) -> f64) -> f64 {
    let mut values: Vec<f64> = runs.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn most(runs: &[Figures], of: fn(&Figures) -> u64) -> u64 {
    runs.iter().map(of).max().unwrap_or_default()
}
