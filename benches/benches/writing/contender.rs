//! The requests, carried out by a process of their own.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Barrier, Mutex};
use std::time::Instant;

use qcow::chain::{Format, OpenOptions};
use qcow::disk::{Disk, WriteOptions};
use qcow::io::Zeroes;

use super::Result;
use super::rows::{How, ROWS, Row};

enum Target {
    Raw(File),
    Disk(Disk),
}

impl Target {
    fn open(format: &str, image: &Path, row: &Row) -> Result<Self> {
        if format == "raw" {
            return Ok(Self::Raw(File::options().read(true).write(true).open(image)?));
        }
        let mut options = WriteOptions::new();
        if row.cache > 0 {
            options = options.table_cache(row.cache);
        }
        let open = OpenOptions::default().format(Format::Qcow2);
        Ok(Self::Disk(Disk::open(image, &open, options)?))
    }

    fn read(&self, buf: &mut [u8], at: u64) -> Result<()> {
        match self {
            Self::Raw(file) => file.read_exact_at(buf, at)?,
            Self::Disk(disk) => disk.read_at(buf, at)?,
        }
        Ok(())
    }

    fn write(&self, buf: &[u8], at: u64) -> Result<()> {
        match self {
            Self::Raw(file) => file.write_all_at(buf, at)?,
            Self::Disk(disk) => disk.write_at(buf, at)?,
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        match self {
            Self::Raw(file) => file.sync_data()?,
            Self::Disk(disk) => disk.flush()?,
        }
        Ok(())
    }

    fn discard(&self, at: u64, len: u64) -> Result<()> {
        match self {
            Self::Raw(_) => {}
            Self::Disk(disk) => disk.discard(at, len)?,
        }
        Ok(())
    }
}

/// FORMAT ROW THREADS IMAGE, where the row is its number; `operation NAME IMAGE`, or `many IMAGE...`. Prints seconds and, in microseconds,
/// half of the latencies, 99 % and all but one in a thousand.
pub(crate) fn run(words: &[String]) -> Result<()> {
    if let [first, rest @ ..] = words
        && first == "many"
    {
        return many(rest);
    }
    if let [first, name, image] = words
        && first == "operation"
    {
        return operation(name, Path::new(image));
    }
    let [format, row, threads, image] = words else { return Err("wrong arguments".into()) };
    let row = &ROWS[row.parse::<usize>()?];
    let threads: usize = threads.parse()?;
    let target = Target::open(format, Path::new(image), row)?;
    let (next, barrier) = (AtomicU64::new(0), Barrier::new(threads + 1));
    let all = Mutex::new(Vec::new());
    let failed = Mutex::new(None);
    let seconds = std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut times = Vec::new();
                barrier.wait();
                if let Err(error) = requests(&target, row, &next, &mut times) {
                    *failed.lock().unwrap() = Some(error.to_string());
                }
                all.lock().unwrap().append(&mut times);
                barrier.wait();
            });
        }
        barrier.wait();
        let start = Instant::now();
        barrier.wait();
        target.flush().map(|()| start.elapsed().as_secs_f64())
    })?;
    if let Some(error) = failed.into_inner()? {
        return Err(error.into());
    }
    if let Target::Disk(disk) = target {
        disk.close()?;
    }
    let mut times = all.into_inner()?;
    times.sort_unstable();
    let at = |part: f64| f64::from(times[(times.len() as f64 * part) as usize]) / 1e3;
    println!("{seconds} {} {} {}", at(0.5), at(0.99), at(0.999));
    Ok(())
}

fn requests(target: &Target, row: &Row, next: &AtomicU64, times: &mut Vec<u32>) -> Result<()> {
    let mut bytes = vec![0xa5; 1 << 20];
    loop {
        let number = next.fetch_add(1, Relaxed);
        if number >= row.count {
            return Ok(());
        }
        let mut len = row.len;
        let mut how = row.how;
        if how == How::Mixed {
            len = 4096 << (number % 5);
            how = if number % 10 < 7 { How::Read } else { How::Write };
        }
        let at = number * row.step % (row.size - len) / 4096 * 4096;
        let buf = &mut bytes[..len as usize];
        let start = Instant::now();
        match how {
            How::Read => target.read(buf, at)?,
            _ if row.how == How::Mixed && number % 20 == 19 => {
                target.discard(at & !65535, 65536)?
            }
            _ => target.write(buf, at)?,
        }
        if row.flush > 0 && number % row.flush == row.flush - 1 {
            target.flush()?;
        }
        times.push(u32::try_from(start.elapsed().as_nanos()).unwrap_or(u32::MAX));
    }
}

/// One operation on a whole image.
fn operation(name: &str, image: &Path) -> Result<()> {
    use qcow::ops::bitmap::{BitmapAction, BitmapOptions, change_bitmap};
    use qcow::ops::resize::{NewSize, ResizeOptions, resize};
    use qcow::ops::snapshot::{SnapshotOptions, apply, create, delete};
    use qcow::{CancelToken, Silent};

    let (snapshot, cancel) = (SnapshotOptions::default(), CancelToken::new());
    match name {
        "snapshot create" => create(image, "two", &snapshot, &Silent, &cancel).map(drop)?,
        "snapshot apply" => apply(image, "one", &snapshot, &Silent, &cancel).map(drop)?,
        "snapshot delete" => delete(image, "one", &snapshot, &Silent, &cancel).map(drop)?,
        "bitmap add" => {
            let (add, options) =
                ([BitmapAction::Add { granularity: None }], BitmapOptions::default());
            change_bitmap(image, b"b", &add, &options, &Silent, &cancel)?;
        }
        _ => {
            let (size, options) = (NewSize::Exactly(128 << 30), ResizeOptions::default());
            resize(image, size, &options, &Silent, &cancel)?;
        }
    }
    Ok(())
}

/// Many disks at once, each with a thread that writes where clusters are to be allocated.
fn many(images: &[String]) -> Result<()> {
    let open = OpenOptions::default().format(Format::Qcow2);
    let disks = images.iter().map(|image| Disk::open(Path::new(image), &open, WriteOptions::new()));
    let disks = disks.collect::<qcow::Result<Vec<_>>>()?;
    std::thread::scope(|scope| {
        for disk in &disks {
            scope.spawn(move || {
                let bytes = [7; 4096];
                for number in 0..disk.size() / (64 << 10) {
                    if disk.write_at(&bytes, number * (64 << 10)).is_err() {
                        return;
                    }
                }
                let _ = disk.write_zeroes(0, 1 << 20, Zeroes::Unmap);
            });
        }
    });
    for disk in disks {
        disk.close()?;
    }
    Ok(())
}
