//! Commands that move data between images, beside the same commands of `qemu-img`: time from start to end, which
//! includes that what was written is durable.
//!
//! `cargo bench -p benches --bench moving -- --qcowtool target/release/qcowtool --dir DIR [--size MIB]`. Both
//! programs work on copies of the same images, in alternation; what they made is compared by `qemu-img compare` once.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use fixtures::{args, qemu, qemu_img};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const ROUNDS: usize = 5;

/// A command on `top`, or from it to `new`.
struct Row {
    name: &'static str,
    ours: &'static [&'static str],
    theirs: &'static [&'static str],
    /// What the guest reads afterwards is looked at in this file.
    result: &'static str,
}

const ROWS: [Row; 7] = [
    Row {
        name: "commit into a base full of data",
        ours: &["commit", "-q", "top"],
        theirs: &["commit", "-q", "top"],
        result: "top",
    },
    Row {
        name: "the same, not read back",
        ours: &["commit", "-q", "--no-verify", "top"],
        theirs: &["commit", "-q", "top"],
        result: "top",
    },
    Row {
        name: "rebase, half differs",
        ours: &["rebase", "-q", "-b", "half", "-F", "qcow2", "top"],
        theirs: &["rebase", "-q", "-b", "half", "-F", "qcow2", "top"],
        result: "top",
    },
    Row {
        name: "rebase, all is equal",
        ours: &["rebase", "-q", "-b", "same", "-F", "qcow2", "top"],
        theirs: &["rebase", "-q", "-b", "same", "-F", "qcow2", "top"],
        result: "top",
    },
    Row {
        name: "rebase to no backing file",
        ours: &["rebase", "-q", "-b", "", "top"],
        theirs: &["rebase", "-q", "-b", "", "top"],
        result: "top",
    },
    Row {
        name: "convert to qcow2",
        ours: &["convert", "-q", "-O", "qcow2", "top", "new"],
        theirs: &["convert", "-W", "-m", "16", "-t", "writeback", "-O", "qcow2", "top", "new"],
        result: "new",
    },
    Row {
        name: "convert into an existing qcow2",
        ours: &["convert", "-q", "-n", "-O", "qcow2", "top", "existing"],
        theirs: &[
            "convert",
            "-n",
            "-W",
            "-m",
            "16",
            "-t",
            "writeback",
            "-O",
            "qcow2",
            "top",
            "existing",
        ],
        result: "existing",
    },
];

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().collect();
    let option = |name: &str| {
        let at = words.iter().position(|word| word == name);
        at.and_then(|at| words.get(at + 1)).map(PathBuf::from)
    };
    let Some(qcowtool) = option("--qcowtool") else {
        println!("moving: no --qcowtool given, nothing is measured");
        return Ok(());
    };
    let qcowtool = fs::canonicalize(qcowtool)?;
    let mib = option("--size").map_or(Ok(1024), |size| size.to_string_lossy().parse::<u64>())?;
    let dir = tempfile::tempdir_in(option("--dir").unwrap_or_else(std::env::temp_dir))?;
    let models = dir.path().join("models");
    fs::create_dir(&models)?;
    make(&models, mib)?;
    println!("Seconds for an overlay with {mib} MiB of data; medians of {ROUNDS}.");
    println!("{:36} {:>8} {:>9} {:>7}", "", "qcowtool", "qemu-img", "ratio");
    for row in &ROWS {
        let mut times = [const { Vec::new() }; 2];
        for round in 0..ROUNDS {
            for turn in 0..2 {
                let whose = (round + turn) % 2;
                let work = dir.path().join("work");
                let (program, words) = match whose {
                    0 => (qcowtool.as_path(), row.ours),
                    _ => (Path::new("qemu-img"), row.theirs),
                };
                times[whose].push(timed(program, words, &models, &work, round == 0, row.result)?);
                fs::remove_dir_all(&work)?;
            }
        }
        let [ours, theirs] = times.map(|mut times| {
            times.sort_by(f64::total_cmp);
            times[ROUNDS / 2]
        });
        println!("{:36} {ours:8.2} {theirs:9.2} {:7.2}", row.name, theirs / ours);
    }
    Ok(())
}

/// A base, an overlay of which half of the clusters are its own, and other bases.
fn make(dir: &Path, mib: u64) -> Result<()> {
    let size = format!("{}M", mib * 2);
    let write = |name: &str, from: u64, to: u64, pattern: u8, step: u64| {
        let writes: Vec<_> = (from..to)
            .step_by(usize::try_from(step).unwrap_or(1))
            .map(|at| format!("write -P {} {at}M 1M", u64::from(pattern) + at % 7))
            .collect();
        qemu::qemu_io("qcow2", dir.join(name), &writes);
    };
    for name in ["base", "half", "same", "existing"] {
        qemu::create(dir.join(name), "", &size);
        write(name, 0, mib * 2, 1, 1);
    }
    write("half", 0, mib * 2, 101, 2);
    qemu::overlay(dir.join("top"), "base", "qcow2", "", "");
    // Every other MiB, not where `half` differs.
    write("top", 1, mib * 2, 51, 2);
    Ok(())
}

/// Seconds of one run on copies of the images, all of which are on the disk before.
fn timed(
    program: &Path,
    words: &[&str],
    models: &Path,
    work: &Path,
    verified: bool,
    result: &str,
) -> Result<f64> {
    fs::create_dir(work)?;
    for entry in fs::read_dir(models)? {
        let from = entry?.path();
        let name = from.file_name().ok_or("no name")?;
        // What is only read need not be copied.
        let written = ["base", "top", "existing"].iter().any(|written| name == *written);
        match written && (name != "existing" || words.contains(&"existing")) {
            true => drop(fs::copy(&from, work.join(name))?),
            false => std::os::unix::fs::symlink(&from, work.join(name))?,
        }
    }
    rustix::fs::sync();
    let mut command = Command::new(program);
    command.args(words).current_dir(work).stdin(Stdio::null()).stdout(Stdio::null());
    let begun = Instant::now();
    let status = command.status()?;
    let seconds = begun.elapsed().as_secs_f64();
    if !status.success() {
        return Err(format!("{command:?}: {status}").into());
    }
    if verified {
        qemu_img(&args!["compare", "-q", models.join("top"), work.join(result)]);
        qemu_img(&args!["check", "-q", work.join(result)]);
    }
    Ok(seconds)
}
