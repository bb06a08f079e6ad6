//! Runs a contender in a process of its own, and takes its figures.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use fixtures::{args, qemu, qemu_img};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use wait4::Wait4;

use super::Result;
use super::rows::{Before, How, ROWS, Row, SIZE};

const ROUNDS: usize = 3;

/// Whose requests they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contender {
    Raw(usize),
    Ours(usize),
    Qemu,
}

pub(crate) const CONTENDERS: [Contender; 5] =
    [Contender::Raw(1), Contender::Ours(1), Contender::Qemu, Contender::Raw(2), Contender::Ours(2)];

/// Figures of a contender: medians, one round after the other.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Figures {
    /// Processor time for each request, in microseconds.
    pub(crate) processor: f64,
    pub(crate) per_second: f64,
    /// Half of the requests, 99 % and 99.9 % took no longer, in microseconds.
    pub(crate) latencies: Option<[f64; 3]>,
    pub(crate) syncs: Option<u64>,
    pub(crate) written: u64,
    /// Bytes.
    pub(crate) memory: u64,
}

/// The figures of each contender on one row; none of what it cannot do.
pub(crate) fn row(row: &Row, dir: &Path) -> Result<Vec<(Contender, Option<Figures>)>> {
    clean(dir)?;
    let mut all: Vec<_> = CONTENDERS.iter().map(|contender| (*contender, Vec::new())).collect();
    for _ in 0..ROUNDS {
        for (contender, rounds) in &mut all {
            if !(row.how == How::Mixed && *contender == Contender::Qemu) {
                rounds.push(once(row, *contender, dir, false)?);
            }
        }
    }
    let median = |rounds: &[Figures], of: fn(&Figures) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let mut found = Vec::new();
    for (contender, rounds) in all {
        let Some(last) = rounds.last() else {
            found.push((contender, None));
            continue;
        };
        let at = |index: usize| {
            let mut values: Vec<f64> =
                rounds.iter().filter_map(|round| Some(round.latencies?[index])).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let counted = once(row, contender, dir, true)?;
        let figures = Figures {
            processor: median(&rounds, |round| round.processor),
            per_second: median(&rounds, |round| round.per_second),
            latencies: last.latencies.map(|_| [at(0), at(1), at(2)]),
            syncs: counted.syncs,
            ..*last
        };
        found.push((contender, Some(figures)));
    }
    Ok(found)
}

/// One run; with `count` only its syncs.
fn once(row: &Row, contender: Contender, dir: &Path, count: bool) -> Result<Figures> {
    let trace = dir.join("trace");
    let image = prepare(row, matches!(contender, Contender::Raw(_)), dir)?;
    let mut words = vec![];
    match contender {
        Contender::Qemu => {
            let depth = if row.flush > 0 { row.flush.min(32) } else { 32 };
            let flush = if row.flush > 0 { row.flush } else { row.count };
            words.extend(args!["qemu-img", "bench", "-t", "writeback"]);
            words.extend(args!["-s", row.len.to_string(), "-d", depth.to_string()]);
            words.extend(args!["-c", row.count.to_string(), "-S", row.step.to_string()]);
            if row.how == How::Write {
                words.extend(args!["-w", format!("--flush-interval={flush}")]);
            }
            if row.cache > 0 {
                let (cache, image) = (row.cache, image.display());
                let options = format!(
                    "driver=qcow2,file.filename={image},l2-cache-size={cache},cache-size={}",
                    cache + (256 << 10)
                );
                words.extend(args!["--image-opts", options]);
            } else {
                words.extend(args!["-f", "qcow2", image]);
            }
        }
        Contender::Raw(threads) | Contender::Ours(threads) => {
            let format = if contender == Contender::Raw(threads) { "raw" } else { "qcow2" };
            let number = ROWS.iter().position(|other| other.name == row.name).unwrap_or_default();
            words.extend(args![std::env::current_exe()?, "--contender", format]);
            words.extend(args![number.to_string(), threads.to_string(), image]);
        }
    }
    if count {
        let strace =
            args!["strace", "-f", "--seccomp-bpf", "-o", trace, "-e", "trace=fsync,fdatasync"];
        words.splice(0..0, strace);
    }
    let ran = run(&words)?;
    let mut figures = Figures {
        processor: ran.processor * 1e6 / row.count as f64,
        per_second: row.count as f64 / ran.seconds,
        latencies: None,
        syncs: None,
        written: ran.written,
        memory: ran.memory,
    };
    if count {
        let lines = fs::read_to_string(trace)?;
        let sync = |line: &&str| line.contains("sync(") && !line.contains("resumed");
        figures.syncs = Some(lines.lines().filter(sync).count() as u64);
        return Ok(figures);
    }
    let said: Vec<f64> = ran.said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    if let ([seconds, half, most, nearly], false) = (&said[..], contender == Contender::Qemu) {
        figures.per_second = row.count as f64 / seconds;
        figures.latencies = Some([*half, *most, *nearly]);
    } else if let Some(at) = ran.said.find("completed in ") {
        let seconds = ran.said[at + 13..].split_whitespace().next().unwrap_or_default();
        figures.per_second = row.count as f64 / seconds.parse::<f64>()?;
    }
    Ok(figures)
}

/// What a process took.
pub(crate) struct Ran {
    pub(crate) seconds: f64,
    pub(crate) processor: f64,
    pub(crate) written: u64,
    pub(crate) memory: u64,
    pub(crate) said: String,
}

pub(crate) fn run(words: &[std::ffi::OsString]) -> Result<Ran> {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn()?;
    let mut said = String::new();
    child.stdout.take().ok_or("no output")?.read_to_string(&mut said)?;
    // It has ended, and is not forgotten yet.
    let id = child.id();
    let pid = Pid::from_raw(id.try_into()?).ok_or("no process")?;
    waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)?;
    let seconds = start.elapsed().as_secs_f64();
    let io = fs::read_to_string(format!("/proc/{id}/io")).unwrap_or_default();
    let written = io.lines().find_map(|line| line.strip_prefix("wchar: ")?.parse().ok());
    let usage = child.wait4()?;
    if !usage.status.success() {
        return Err(format!("{command:?}: {}", usage.status).into());
    }
    let time = usage.rusage.utime + usage.rusage.stime;
    Ok(Ran {
        seconds,
        processor: time.as_secs_f64(),
        written: written.unwrap_or_default(),
        memory: usage.rusage.maxrss,
        said,
    })
}

/// The image for one run. What a run does not change but for its bytes is made once for a row.
fn prepare(row: &Row, raw: bool, dir: &Path) -> Result<PathBuf> {
    let first = dir.join(if raw { "first.raw" } else { "first.qcow2" });
    if !first.exists() {
        make(row, raw, &first, &dir.join("base"))?;
    }
    if matches!(row.before, Before::Data | Before::Tables) || raw && row.before != Before::Nothing {
        return Ok(first);
    }
    let image = dir.join("image");
    if raw {
        File::create(&image)?.set_len(row.size)?;
    } else {
        fs::copy(first, &image)?;
    }
    Ok(image)
}

/// Removes what other rows have left.
fn clean(dir: &Path) -> Result<()> {
    for name in ["first.raw", "first.qcow2", "image", "base"] {
        let file = dir.join(name);
        if file.exists() {
            fs::remove_file(file)?;
        }
    }
    Ok(())
}

fn make(row: &Row, raw: bool, image: &Path, base: &Path) -> Result<()> {
    let fill = |path: &Path, byte: u8| {
        let file = File::create(path)?;
        let piece = vec![byte; 1 << 20];
        (0..SIZE).step_by(1 << 20).try_for_each(|at| file.write_all_at(&piece, at))
    };
    if raw {
        if matches!(row.before, Before::Nothing | Before::Tables) {
            File::create(image)?.set_len(row.size)?;
            return Ok(());
        }
        return Ok(fill(image, 0xcd)?);
    }
    let mut options = row.options.to_owned();
    let mut add = |option: &str| {
        let separator = if options.is_empty() { "" } else { "," };
        options = format!("{options}{separator}{option}");
    };
    if row.backing {
        fill(base, 0xb5)?;
        add(&format!("backing_file={},backing_fmt=raw", base.display()));
    }
    match row.before {
        Before::Compressed => {
            fill(base, 0xcd)?;
            qemu_img(&args!["convert", "-c", "-f", "raw", "-O", "qcow2", base, image]);
            return Ok(());
        }
        Before::Tables => add("preallocation=metadata"),
        _ => {}
    }
    qemu::create(image, &options, &row.size.to_string());
    if matches!(row.before, Before::Data | Before::Snapshot) {
        qemu::qemu_io("qcow2", image, &["write 0 512M"]);
    }
    if row.before == Before::Snapshot {
        qemu_img(&args!["snapshot", "-c", "one", image]);
    }
    Ok(())
}
