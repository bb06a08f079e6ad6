//! Reading and writing in place: processor time, requests per second, latencies, syncs, bytes written and peak memory of
//! each request, beside `qemu-img bench` and plain `pread`/`pwrite` on a raw file of the same length.
//!
//! `cargo bench -p benches --bench writing -- --dir /dev/shm [--only NAME] [--report docs/performance/writing.md]`. Every
//! contender is a process of its own, so that all are measured alike; the requests go to the same offsets. Processor time
//! includes opening, a flush at the end, and closing. Syncs are counted by `strace` in a run of their own.

mod contender;
mod measure;
mod operations;
mod report;
mod rows;

use std::error::Error;
use std::path::PathBuf;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().collect();
    let after = |name: &str| {
        let at = words.iter().position(|word| word == name)?;
        words.get(at + 1).cloned()
    };
    if let Some(at) = words.iter().position(|word| word == "--contender") {
        return contender::run(&words[at + 1..]);
    }
    let dir = after("--dir").map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(dir)?;
    let only = after("--only");
    let wanted = |name: &str| only.as_ref().is_none_or(|only| name.starts_with(only.as_str()));
    let mut text = report::head();
    for row in rows::ROWS.iter().filter(|row| wanted(row.name)) {
        text.push_str(&print(report::row(row, &measure::row(row, dir.path())?)));
    }
    if wanted("E13") {
        text.push_str(&print(operations::table(dir.path())?));
    }
    if wanted("E15") {
        text.push_str(&print(operations::many(dir.path())?));
    }
    text.push_str(report::TAIL);
    if let Some(path) = after("--report") {
        std::fs::write(path, text)?;
    }
    Ok(())
}

fn print(text: String) -> String {
    print!("{text}");
    text
}
