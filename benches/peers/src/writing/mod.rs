//! The same libraries as writers, beside `pwrite` on a raw file and `qemu-img bench`: requests of 4 KiB, one after the other. After
//! every run qemu-img judges what was written; a writer that was wrong once gets no figures.

mod images;
mod judge;
mod report;
pub(crate) mod rows;
pub(crate) mod writers;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use wait4::Wait4;

use self::images::Images;
use self::judge::judge;
pub(crate) use self::report::HEADING;
use self::rows::{BLOCK, ROWS, Row};
use self::writers::Writer;
use crate::Result;

/// Runs of each writer on a row.
const ROUNDS: usize = 3;
/// A writer that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(600);

/// What a run took.
#[derive(Debug, Clone, Copy)]
struct Figures {
    /// Processor time of the process.
    processor: Duration,
    time: Duration,
    /// Bytes.
    memory: u64,
    /// Clusters that qemu-img found leaked.
    leaked: u64,
}

/// The runs of each writer, or what it did wrong.
type Found = Vec<(Writer, std::result::Result<Vec<Figures>, String>)>;

/// Measures all writers on all rows, with files in a directory; the section of the report.
pub(crate) fn run(dir: &Path) -> Result<String> {
    imago_sync()?;
    let mut text = report::head(dir)?;
    for row in &ROWS {
        eprintln!("{} ...", row.name);
        text.push_str(&report::row(row, &measured(row, dir)?));
    }
    Ok(text)
}

/// All writers on one row, taking turns.
fn measured(row: &Row, dir: &Path) -> Result<Found> {
    let images = Images::make(row, dir)?;
    let mut found = Writer::ALL.map(|writer| (writer, Ok(Vec::new())));
    for _ in 0..ROUNDS {
        for (writer, runs) in &mut found {
            let Ok(so_far) = runs else { continue };
            match once(row, *writer, &images)? {
                Ok(figures) => so_far.push(figures),
                Err(why) => *runs = Err(why),
            }
        }
    }
    Ok(found.into())
}

/// One run and its judgement; what was wrong, if anything.
fn once(
    row: &Row,
    writer: Writer,
    images: &Images,
) -> Result<std::result::Result<Figures, String>> {
    let image = images.fresh(writer)?;
    let mut command = command(row, writer, image)?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn()?;
    let mut said = Vec::new();
    child.stderr.take().ok_or("no standard error")?.read_to_end(&mut said)?;
    let used = child.wait4()?;
    let time = start.elapsed();
    if !used.status.success() {
        return Ok(Err(format!("{}: {}", used.status, complaint(&String::from_utf8_lossy(&said)))));
    }
    let verdict = judge(writer, images, image)?;
    if !verdict.wrong.is_empty() {
        return Ok(Err(verdict.wrong.join("; ")));
    }
    Ok(Ok(Figures {
        processor: used.rusage.utime + used.rusage.stime,
        time,
        memory: used.rusage.maxrss,
        leaked: verdict.leaked,
    }))
}

/// What carries out the requests.
fn command(row: &Row, writer: Writer, image: &Path) -> Result<Command> {
    let number = ROWS.iter().position(|other| other.name == row.name).unwrap_or_default();
    let number = number.to_string();
    let mut command = match writer {
        Writer::Qemu => Command::new("qemu-img"),
        Writer::ImagoSync => Command::new(imago_sync()?),
        _ => Command::new(std::env::current_exe()?),
    };
    match writer {
        Writer::Qemu => {
            let (count, step) = (row.count.to_string(), row.step.to_string());
            command.args(["bench", "-w", "-t", "writeback", "-f", "qcow2", "-d", "32"]);
            command.args(["-c", &count, "--flush-interval", &count, "-S", &step]);
            command.args(["-s", &BLOCK.to_string(), "--pattern", &rows::PATTERN.to_string()]);
        }
        Writer::ImagoSync => drop(command.arg(number)),
        _ => drop(command.args(["write", writer.word(), &number])),
    }
    command.arg(image);
    Ok(command)
}

/// The program of imago's other build, which is made beside this one.
fn imago_sync() -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name("imago-sync");
    match path.exists() {
        true => Ok(path),
        false => Err(
            "imago-sync is missing: `make bench-peers` builds it, `cargo build -p imago-sync` too"
                .into(),
        ),
    }
}

/// What a process said first, and the reason for a panic, which is on the line after.
fn complaint(said: &str) -> String {
    let mut lines = said.lines().filter(|line| !line.trim().is_empty());
    let first = lines.next().unwrap_or("it said nothing");
    match first.contains(" panicked at ") {
        true => format!("panic: {}", lines.next().unwrap_or("for no reason")),
        false => first.to_owned(),
    }
}

/// Carries out the requests of a row, given by its number.
pub(crate) fn write(writer: Writer, row: usize, image: &Path) -> Result<()> {
    std::thread::spawn(|| {
        std::thread::sleep(PATIENCE);
        eprintln!("peers: it did not end within {} s", PATIENCE.as_secs());
        std::process::exit(1);
    });
    writer.write(ROWS.get(row).ok_or("no such row")?, image)
}
