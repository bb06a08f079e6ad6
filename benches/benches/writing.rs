//! 4 KiB reads and writes in place: processor time per request, beside `qemu-img bench` and plain
//! `pread`/`pwrite` on a raw file of the same length.
//!
//! `cargo bench -p benches --bench writing -- --dir /dev/shm`. Every contender is a process of its own, so
//! that all are measured alike; the requests go to the same offsets. The time includes opening, a flush at
//! the end, and closing.

use std::error::Error;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fixtures::{args, qemu, qemu_img};
use qcow::chain::{Format, OpenOptions};
use qcow::disk::{Disk, WriteOptions};
use wait4::Wait4;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const SIZE: u64 = 512 << 20;
const ROUNDS: usize = 3;

/// A kind of request on a kind of image.
struct Row {
    name: &'static str,
    write: bool,
    count: u64,
    step: u64,
    options: &'static str,
    backing: bool,
    /// What is in the image before.
    before: &'static str,
    snapshot: bool,
}

/// Steps over 4 clusters and a page: each request meets another cluster.
const NEW: u64 = (256 << 10) + 4096;
/// Jumps about in clusters that are met again and again.
const ANYWHERE: u64 = 4099 * 4096;

const EMPTY: Row = Row {
    name: "empty",
    write: true,
    count: 2000,
    step: NEW,
    options: "",
    backing: false,
    before: "",
    snapshot: false,
};

const ROWS: [Row; 6] = [
    Row {
        name: "read, allocated",
        write: false,
        count: 100_000,
        step: ANYWHERE,
        before: "write 0 512M",
        ..EMPTY
    },
    Row {
        name: "write, allocated",
        count: 100_000,
        step: ANYWHERE,
        before: "write 0 512M",
        ..EMPTY
    },
    Row { name: "write, empty image", ..EMPTY },
    Row { name: "write, over a backing file", backing: true, ..EMPTY },
    Row {
        name: "the same, 32 subclusters in 128 KiB",
        backing: true,
        options: "cluster_size=128k,extended_l2=on",
        ..EMPTY
    },
    Row { name: "write, over a snapshot", before: "write 0 512M", snapshot: true, ..EMPTY },
];

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().collect();
    if let Some(at) = words.iter().position(|word| word == "--contender") {
        return contender(&words[at + 1..]);
    }
    let dir = words.iter().position(|word| word == "--dir").and_then(|at| words.get(at + 1));
    let dir = tempfile::tempdir_in(dir.map_or_else(std::env::temp_dir, PathBuf::from))?;
    println!(
        "Processor time per request of 4 KiB, in microseconds; medians of {ROUNDS}, one after the other."
    );
    println!(
        "{:38} {:>8} {:>8} {:>8} {:>10} {:>10}",
        "", "raw", "qcow", "qemu-img", "qcow/raw", "qcow/qemu"
    );
    for row in ROWS {
        let mut times = [const { Vec::new() }; 3];
        for _ in 0..ROUNDS {
            for (contender, times) in times.iter_mut().enumerate() {
                times.push(measure(&row, contender, dir.path())?);
            }
        }
        let [raw, ours, theirs] = times.map(|mut times| {
            times.sort_by(f64::total_cmp);
            times[ROUNDS / 2]
        });
        println!(
            "{:38} {raw:8.2} {ours:8.2} {theirs:8.2} {:10.2} {:10.2}",
            row.name,
            ours / raw,
            ours / theirs
        );
    }
    Ok(())
}

/// Processor time per request.
fn measure(row: &Row, contender: usize, dir: &Path) -> Result<f64> {
    let (image, base) = (dir.join("image"), dir.join("base"));
    let made = prepare(row, contender == 0, &image, &base);
    let (count, step) = (row.count.to_string(), row.step.to_string());
    let mut command = match contender {
        2 => {
            let mut command = Command::new("qemu-img");
            command.args(["bench", "-f", "qcow2", "-t", "writeback", "-s", "4096", "-d", "32"]);
            command.args(["-c", &count, "-S", &step]);
            command.args(row.write.then_some("-w"));
            command.args(row.write.then(|| format!("--flush-interval={count}")));
            command
        }
        _ => {
            let mut command = Command::new(std::env::current_exe()?);
            let format = if contender == 0 { "raw" } else { "qcow2" };
            let write = if row.write { "write" } else { "read" };
            command.args(["--contender", format, write, &count, &step]);
            command
        }
    };
    let child = command.arg(&image).stdout(Stdio::null()).spawn()?;
    let usage = child.wait4()?;
    if !usage.status.success() {
        return Err(format!("{command:?}: {}", usage.status).into());
    }
    made?;
    let time = usage.rusage.utime + usage.rusage.stime;
    Ok(time.as_secs_f64() * 1e6 / row.count as f64)
}

fn prepare(row: &Row, raw: bool, image: &Path, base: &Path) -> Result<()> {
    for file in [image, base] {
        if file.exists() {
            fs::remove_file(file)?;
        }
    }
    if raw {
        let file = File::create(image)?;
        if !row.before.is_empty() {
            let piece = vec![0xcd; 1 << 20];
            for at in (0..SIZE).step_by(1 << 20) {
                file.write_all_at(&piece, at)?;
            }
        }
        file.set_len(SIZE)?;
        return Ok(());
    }
    let mut options = row.options.to_owned();
    if row.backing {
        fs::write(base, vec![0xb5; usize::try_from(SIZE)?])?;
        let separator = if options.is_empty() { "" } else { "," };
        options = format!("{options}{separator}backing_file={},backing_fmt=raw", base.display());
    }
    qemu::create(image, &options, &SIZE.to_string());
    if !row.before.is_empty() {
        qemu::qemu_io("qcow2", image, &[row.before]);
    }
    if row.snapshot {
        qemu_img(&args!["snapshot", "-c", "one", image]);
    }
    Ok(())
}

/// Carries out the requests: FORMAT read|write COUNT STEP IMAGE.
fn contender(words: &[String]) -> Result<()> {
    let [format, how, count, step, image] = words else { return Err("wrong arguments".into()) };
    let (write, count, step): (bool, u64, u64) = (how == "write", count.parse()?, step.parse()?);
    let offsets = (0..count).map(|number| number * step % SIZE / 4096 * 4096);
    let mut bytes = vec![0xa5; 4096];
    if format == "raw" {
        let file = File::options().read(true).write(true).open(image)?;
        for at in offsets {
            match write {
                true => file.write_all_at(&bytes, at)?,
                false => file.read_exact_at(&mut bytes, at)?,
            }
        }
        return Ok(file.sync_data()?);
    }
    let open = OpenOptions::default().format(Format::Qcow2);
    let disk = Disk::open(Path::new(image), &open, WriteOptions::new())?;
    for at in offsets {
        match write {
            true => disk.write_at(&bytes, at)?,
            false => disk.read_at(&mut bytes, at)?,
        }
    }
    disk.close()?;
    Ok(())
}
