//! The other Rust libraries that read QCOW2, beside ours: the whole disk from its first byte to its last,
//! and blocks of 4 KiB at random, through the CRC-32 of all, which must be the same for every reader. With `--writing`, as writers.

mod readers;
mod writing;

use std::collections::HashSet;
use std::error::Error;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use wait4::Wait4;

use crate::readers::Reader;
use crate::writing::writers::Writer;

/// Any failure: there is one way to deal with it, which is to say so and stop.
type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[derive(Debug, Parser)]
#[command(about = "Reads and writes disks with qcow, imago and qcow2-rs, in alternation")]
struct Cli {
    #[command(subcommand)]
    part: Option<Part>,
    /// Measure writing in place instead
    #[arg(long)]
    writing: bool,
    /// Where the disks are made; they take two and a half times --data, with --writing 3.5 GiB
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// Data on the disks, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    data: u64,
    /// Timed runs of each reader
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Blocks of 4 KiB in a pass of random reads
    #[arg(long, default_value_t = 100_000)]
    reads: u64,
    /// Write the report into this file, of which the part of what is not measured remains
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Read one disk and print its CRC-32
    #[command(hide = true)]
    Read { reader: Reader, path: PathBuf },
    /// Read blocks of one disk at random, and print their CRC-32 and the nanoseconds that it took
    #[command(hide = true)]
    Random { reader: Reader, path: PathBuf, reads: u64 },
    /// Carry out the requests of a row
    #[command(hide = true)]
    Write { writer: Writer, row: usize, path: PathBuf },
    /// Make the fragmented chain: the memory that this takes would count in the figures of all readers
    #[command(hide = true)]
    Chain { dir: PathBuf, bytes: u64 },
}

/// A disk, and what readers did with it.
struct Row {
    disk: String,
    reader: Reader,
    /// Median time and most memory, or why there is none.
    figures: std::result::Result<(Duration, u64), String>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.part {
        Some(Part::Read { reader, path }) => {
            reader.read(path).map(|digest| println!("{digest:08x}"))
        }
        Some(Part::Random { reader, path, reads }) => reader
            .read_at_random(path, *reads)
            .map(|pass| println!("{:08x} {}", pass.digest, pass.time.as_nanos())),
        Some(Part::Write { writer, row, path }) => writing::write(*writer, *row, path),
        Some(Part::Chain { dir, bytes }) => {
            fixtures::big::big_chain(dir, 4, *bytes);
            Ok(())
        }
        None => run(&cli),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("qcowtool-peers.").tempdir_in(&cli.dir)?;
    eprintln!("making the disks in {} ...", dir.path().display());
    let text = if cli.writing { writing::run(dir.path())? } else { reading(cli, dir.path())? };
    print!("{text}");
    match &cli.report {
        Some(path) => save(path, &text, cli.writing),
        None => Ok(()),
    }
}

/// Writes one part of the report: that of the readers is before that of the writers.
fn save(path: &Path, text: &str, writing: bool) -> Result<()> {
    let old = if path.exists() { std::fs::read_to_string(path)? } else { String::new() };
    let (readers, writers) = old.split_at(old.find(writing::HEADING).unwrap_or(old.len()));
    let (readers, writers) = if writing { (readers, text) } else { (text, writers) };
    let parts = [readers.trim_end(), writers.trim_end()];
    let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    Ok(std::fs::write(path, parts.join("\n\n") + "\n")?)
}

/// Measures all readers on all disks; their part of the report.
fn reading(cli: &Cli, dir: &Path) -> Result<String> {
    let (mut rows, mut random) = (Vec::new(), Vec::new());
    for (disk, path) in disks(dir, cli.data << 20)? {
        eprintln!("{disk} ...");
        rows.extend(measured(&disk, &path, cli.runs)?);
        random.extend(measured_at_random(&disk, &path, cli)?);
    }
    report(&rows, &random, cli)
}

/// A fragmented chain, the same disk as one image, and the same compressed.
fn disks(dir: &Path, data: u64) -> Result<Vec<(String, PathBuf)>> {
    let mut maker = Command::new(std::env::current_exe()?);
    if !maker.arg("chain").arg(dir).arg(data.to_string()).status()?.success() {
        return Err("the chain could not be made".into());
    }
    let chain = dir.join("layer3.qcow2");
    let convert = |name: &str, words: &[&str]| -> Result<PathBuf> {
        let path = dir.join(name);
        let mut command = Command::new("qemu-img");
        command.args(["convert", "-W", "-m", "16", "-O", "qcow2"]).args(words);
        match command.arg(&chain).arg(&path).status()?.success() {
            true => Ok(path),
            false => Err(format!("qemu-img could not make {}", path.display()).into()),
        }
    };
    Ok(vec![
        ("one image".to_owned(), convert("one.qcow2", &[])?),
        ("4 fragmented layers".to_owned(), chain.clone()),
        ("zlib".to_owned(), convert("zlib.qcow2", &["-c"])?),
        ("zstd".to_owned(), convert("zstd.qcow2", &["-c", "-o", "compression_type=zstd"])?),
    ])
}

/// All readers on one disk, taking turns; the first round warms up and gives the digests.
fn measured(disk: &str, path: &Path, runs: usize) -> Result<Vec<Row>> {
    let failures = Reader::ALL.map(|reader| digest(reader, path));
    let digests: HashSet<_> = failures.iter().flatten().collect();
    if digests.len() > 1 {
        // Who is wrong is for the reader of this line to find out; no figures without an agreement.
        return Err(format!("{disk}: the readers do not agree: {failures:?}").into());
    }
    let mut times = Reader::ALL.map(|_| Vec::new());
    let mut peaks = Reader::ALL.map(|_| 0);
    for _ in 0..runs {
        for (index, reader) in Reader::ALL.into_iter().enumerate() {
            if failures[index].is_ok() {
                let (time, peak) = timed(reader, path)?;
                times[index].push(time);
                peaks[index] = peak.max(peaks[index]);
            }
        }
    }
    let rows =
        Reader::ALL.into_iter().zip(failures).enumerate().map(|(index, (reader, digest))| {
            times[index].sort();
            let figures = digest.map(|_| (times[index][runs / 2], peaks[index]));
            Row { disk: disk.to_owned(), reader, figures }
        });
    Ok(rows.collect())
}

/// Readers that can read anywhere, taking turns; the time of one pass over all blocks.
fn measured_at_random(disk: &str, path: &Path, cli: &Cli) -> Result<Vec<Row>> {
    let mut times = Reader::RANDOM.map(|_| Vec::new());
    let mut peaks = Reader::RANDOM.map(|_| 0);
    let mut failures = Reader::RANDOM.map(|_| None);
    let mut digests = HashSet::new();
    for _ in 0..cli.runs.max(1) {
        for (index, reader) in Reader::RANDOM.into_iter().enumerate() {
            if failures[index].is_some() {
                continue;
            }
            match random_pass(reader, path, cli.reads) {
                Ok((digest, time, peak)) => {
                    digests.insert(digest);
                    times[index].push(time);
                    peaks[index] = peak.max(peaks[index]);
                }
                Err(error) => failures[index] = Some(error.to_string()),
            }
        }
    }
    if digests.len() > 1 {
        return Err(format!("{disk}: the readers do not agree at random").into());
    }
    let rows = Reader::RANDOM.into_iter().zip(failures).enumerate();
    let rows = rows.map(|(index, (reader, failure))| {
        times[index].sort();
        let median = times[index].get(times[index].len() / 2).copied().unwrap_or_default();
        let figures = failure.map_or(Ok((median, peaks[index])), Err);
        Row { disk: disk.to_owned(), reader, figures }
    });
    Ok(rows.collect())
}

/// What a process of its own prints, and the most memory that it took.
fn random_pass(reader: Reader, path: &Path, reads: u64) -> Result<(String, Duration, u64)> {
    use std::io::Read;
    let mut command = command("random", reader, path)?;
    let mut child = command.arg(reads.to_string()).stdout(Stdio::piped()).spawn()?;
    let mut text = String::new();
    child.stdout.take().ok_or("no output")?.read_to_string(&mut text)?;
    let used = child.wait4()?;
    let (digest, time) = text.trim().split_once(' ').ok_or("it gave up")?;
    if !used.status.success() {
        return Err(format!("{}: {}", reader.word(), used.status).into());
    }
    Ok((digest.to_owned(), Duration::from_nanos(time.parse()?), used.rusage.maxrss))
}

fn command(part: &str, reader: Reader, path: &Path) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    // qcow2-rs looks for backing files where the process is.
    command.current_dir(path.parent().ok_or("a disk in no directory")?);
    command.args([part, reader.word()]).arg(path).stdin(Stdio::null());
    Ok(command)
}

/// What a reader makes of a disk, or its complaint.
fn digest(reader: Reader, path: &Path) -> std::result::Result<String, String> {
    let output = command("read", reader, path).and_then(|mut command| Ok(command.output()?));
    let output = output.map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{}: {}", output.status, said.trim().lines().next().unwrap_or_default()))
}

fn timed(reader: Reader, path: &Path) -> Result<(Duration, u64)> {
    let mut command = command("read", reader, path)?;
    command.stdout(Stdio::null());
    let start = Instant::now();
    let used = command.spawn()?.wait4()?;
    let time = start.elapsed();
    if !used.status.success() {
        return Err(format!("{}: {}", reader.word(), used.status).into());
    }
    Ok((time, used.rusage.maxrss))
}

fn report(rows: &[Row], random: &[Row], cli: &Cli) -> Result<String> {
    let cores = std::thread::available_parallelism()?;
    let date = Command::new("date").args(["-u", "+%Y-%m-%d"]).output()?.stdout;
    let mut text = format!(
        "# Readers and writers in Rust\n\n\
         The whole disk read from start to end in pieces of 2 MiB, and its CRC-32 computed, which was the same for all: qcow (this \
         project), imago {} and qcow2-rs {}. {cores} cores, {} MiB of data, median of {}, warm cache, {}. Written by \
         `make bench-peers`.\n\n\
         | disk | reader | time | data per second | peak memory |\n|---|---|--:|--:|--:|\n",
        version("imago"),
        version("qcow2-rs"),
        cli.data,
        cli.runs,
        String::from_utf8_lossy(&date).trim(),
    );
    for Row { disk, reader, figures } in rows {
        let name = reader.name();
        let _ = match figures {
            Ok((time, peak)) => {
                let seconds = time.as_secs_f64();
                let speed = (cli.data << 20) as f64 / 1e9 / seconds;
                let peak = peak >> 20;
                writeln!(text, "| {disk} | {name} | {seconds:.2} s | {speed:.2} GB | {peak} MiB |")
            }
            Err(why) => {
                writeln!(text, "| {disk} | {name} | cannot: {} | | |", why.replace('|', "/"))
            }
        };
    }
    let _ = write!(
        text,
        "\n## Blocks of 4 KiB at random\n\n\
         {} blocks anywhere on the disk, one after the other, by one thread; the second of two passes over the same blocks, \
         so that what a reader keeps of the tables is warm.\n\n\
         | disk | reader | time for a block | blocks per second | peak memory |\n|---|---|--:|--:|--:|\n",
        cli.reads,
    );
    for Row { disk, reader, figures } in random {
        let name = reader.name();
        let _ = match figures {
            Ok((time, peak)) => {
                let each = time.as_secs_f64() / cli.reads.max(1) as f64;
                let (micros, rate, peak) = (each * 1e6, 1.0 / each, peak >> 20);
                writeln!(text, "| {disk} | {name} | {micros:.1} µs | {rate:.0} | {peak} MiB |")
            }
            Err(why) => {
                writeln!(text, "| {disk} | {name} | cannot: {} | | |", why.replace('|', "/"))
            }
        };
    }
    Ok(text)
}

/// The version of a crate that this program was built with.
pub(crate) fn version(name: &str) -> &'static str {
    let lock = include_str!("../Cargo.lock");
    let entry = lock.split_once(&format!("name = \"{name}\"\nversion = \""));
    entry.and_then(|(_, rest)| rest.split('"').next()).unwrap_or("of unknown version")
}
