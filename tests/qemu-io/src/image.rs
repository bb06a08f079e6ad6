//! The image that is open: as a disk that is written to, or as a chain that is read.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use qcow::chain::{BackingFormats, Chain, Format, OpenOptions};
use qcow::disk::{Disk, RangeKind, WriteOptions};
use qcow::format::GuestOffset;
use qcow::io::Zeroes;
use qcow::ops::create::{Backing, CreateOptions, create};
use qcow::ops::map::{MapOptions, map};
use qcowtool::shared;
use tempfile::TempDir;

/// Which image, and how it is opened.
#[derive(Debug, Clone, Default)]
pub(crate) struct Spec {
    /// Its name; empty if none was given.
    pub(crate) name: String,
    /// The name is a list of options.
    pub(crate) image_opts: bool,
    /// The options of `open -o`.
    pub(crate) options: Vec<(String, String)>,
    pub(crate) format: Option<Format>,
    pub(crate) read_only: bool,
    /// What is written goes to an image of its own, which ends with the session.
    pub(crate) snapshot: bool,
    /// What is read from below is written to the image.
    pub(crate) copy_on_read: bool,
    pub(crate) force_share: bool,
}

/// Options that say which image it is, and not how it is opened.
const NAMING: [&str; 5] = ["driver", "filename", "offset", "size", "backing"];

impl Spec {
    /// Whether there is a name.
    pub(crate) fn is_named(&self) -> bool {
        !self.name.is_empty()
    }

    /// The name that the library takes. `blkdebug::` in front of a file is QEMU's filter that injects faults, without any
    /// fault: no more than the file.
    fn path(&self) -> Result<PathBuf, String> {
        let name = self.name.strip_prefix("blkdebug::").unwrap_or(&self.name);
        let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
        let mut list: Vec<String> = Vec::new();
        for (key, value) in &self.options {
            if NAMING.contains(&last(key).as_str()) {
                list.push(format!("{key}={}", value.replace(',', ",,")));
            }
        }
        if list.is_empty() {
            return shared::image_name(OsStr::new(name), self.image_opts);
        }
        if self.is_named() {
            list.push(format!("file.filename={}", name.replace(',', ",,")));
        }
        shared::image_name(OsStr::new(&list.join(",")), true)
    }

    /// The file that the name means.
    ///
    /// # Errors
    /// The lines to print.
    pub(crate) fn file(&self) -> Result<PathBuf, String> {
        self.path().map(|path| shared::file_of(&path))
    }

    fn open_options(&self, format: Option<Format>) -> OpenOptions {
        OpenOptions::default()
            .format(format)
            .backing_formats(BackingFormats::new().probed(true))
            .force_share(self.force_share)
    }
}

/// An open image.
#[derive(Debug)]
pub(crate) struct Image {
    opened: Opened,
    /// Where on the disk the bytes begin that requests are for.
    start: u64,
    /// Where an image of its own is, while it is needed.
    _temporary: Option<TempDir>,
}

#[derive(Debug)]
enum Opened {
    Disk(Disk),
    Chain(Chain),
}

impl Image {
    /// Opens it.
    ///
    /// # Errors
    /// The lines to print.
    pub(crate) fn open(spec: &Spec) -> Result<Self, String> {
        let place = if spec.is_named() {
            format!("can't open device {}", spec.name)
        } else {
            "can't open".to_owned()
        };
        Self::try_open(spec).map_err(|why| format!("{place}: {why}"))
    }

    fn try_open(spec: &Spec) -> Result<Self, String> {
        let path = spec.path()?;
        let file = shared::file_of(&path);
        let refused = |error: &qcow::Error, writing| shared::not_opened(error, &file, writing);
        if spec.read_only || spec.snapshot {
            let chain = Chain::open(&path, &spec.open_options(spec.format));
            let chain = chain.map_err(|error| refused(&error, false))?;
            if spec.snapshot {
                return over(&path, &chain).map_err(|error| error.to_string());
            }
            return Ok(Self { opened: Opened::Chain(chain), start: 0, _temporary: None });
        }
        let format = match spec.format {
            Some(format) => Some(format),
            None => probe(&path, spec).map_err(|error| refused(&error, false))?,
        };
        let disk = Disk::open(&path, &spec.open_options(format), as_qemu());
        let disk = disk.map_err(|error| refused(&error, true))?;
        shared::check_tuning(&spec.options, disk.cluster_size())?;
        Ok(Self { opened: Opened::Disk(disk), start: 0, _temporary: None })
    }

    /// Whether it can be written to.
    pub(crate) fn is_writable(&self) -> bool {
        matches!(self.opened, Opened::Disk(_))
    }

    /// The disk, if it can be written to.
    pub(crate) fn disk(&self) -> qcow::Result<&Disk> {
        match &self.opened {
            Opened::Disk(disk) => Ok(disk),
            Opened::Chain(_) => Err(qcow::Error::usage("the image is open for reading only")),
        }
    }

    /// Size of the disk in bytes.
    pub(crate) fn size(&self) -> u64 {
        match &self.opened {
            Opened::Disk(disk) => disk.size(),
            Opened::Chain(chain) => chain.virtual_size(),
        }
    }

    /// Whether `len` bytes from `at` on are on the disk.
    pub(crate) fn holds(&self, at: u64, len: u64) -> bool {
        let end = self.place(at).checked_add(len);
        end.is_some_and(|end| end <= self.size())
    }

    pub(crate) fn read(&self, buf: &mut [u8], at: u64) -> qcow::Result<()> {
        match &self.opened {
            Opened::Disk(disk) => disk.read_at(buf, self.place(at)),
            Opened::Chain(chain) => chain.read_at(buf, GuestOffset(self.place(at))),
        }
    }

    /// The image, whose requests are for what begins at `start`.
    pub(crate) fn from(self, start: u64) -> Self {
        Self { start, ..self }
    }

    /// Where on the disk the byte at `at` is.
    pub(crate) fn place(&self, at: u64) -> u64 {
        self.start.saturating_add(at)
    }

    /// Writes to the image what it reads from below, in whole clusters around the range.
    pub(crate) fn copy_up(&self, at: u64, len: u64) -> qcow::Result<()> {
        let disk = self.disk()?;
        let unit = disk.write_unit();
        let start = at / unit * unit;
        let end = (at + len).next_multiple_of(unit).min(disk.size());
        for range in disk.ranges(start, end - start)? {
            if range.kind == RangeKind::Backing {
                const STEP: u64 = 2 << 20;
                for at in (range.at..range.at + range.len).step_by(STEP as usize) {
                    let len = STEP.min(range.at + range.len - at);
                    let mut buf = vec![0; len as usize];
                    disk.read_at(&mut buf, at)?;
                    if buf.iter().all(|&byte| byte == 0) {
                        disk.write_zeroes(at, len, Zeroes::Unmap)?;
                    } else {
                        disk.write_at(&buf, at)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The parts of a range, each with its start, length, and whether this image has it. Of a raw image all is
    /// there.
    pub(crate) fn allocation(&self, at: u64, len: u64) -> qcow::Result<Vec<(u64, u64, bool)>> {
        let mut parts: Vec<(u64, u64, bool)> = Vec::new();
        let mut add = |start: u64, len: u64, there: bool| match parts.last_mut() {
            Some((_, before, same)) if *same == there => *before += len,
            _ => parts.push((start, len, there)),
        };
        match &self.opened {
            Opened::Disk(disk) => {
                let raw = disk.cluster_size().is_none();
                for range in disk.ranges(at, len)? {
                    add(range.at, range.len, raw || range.kind != RangeKind::Backing);
                }
            }
            Opened::Chain(chain) => {
                let raw = chain.layers().first().is_none_or(|layer| layer.format() == Format::Raw);
                for entry in map(chain, &MapOptions::default().start(at).max_length(Some(len))) {
                    let entry = entry?;
                    let there = raw || entry.depth == 0 && entry.present;
                    add(entry.start, entry.length, there);
                }
            }
        }
        Ok(parts)
    }

    /// Makes durable what was written.
    pub(crate) fn flush(&self) -> qcow::Result<()> {
        match &self.opened {
            Opened::Disk(disk) => disk.flush(),
            Opened::Chain(_) => Ok(()),
        }
    }

    /// Closes it properly.
    pub(crate) fn close(self) -> qcow::Result<()> {
        match self.opened {
            Opened::Disk(disk) => disk.close(),
            Opened::Chain(_) => Ok(()),
        }
    }
}

/// How QEMU writes.
fn as_qemu() -> WriteOptions {
    WriteOptions::new().explicit_zeroes(true)
}

/// The format that the first bytes tell.
fn probe(path: &Path, spec: &Spec) -> qcow::Result<Option<Format>> {
    let chain = Chain::open_alone(path, &spec.open_options(None).force_share(true))?;
    Ok(chain.layers().first().map(|layer| layer.format()))
}

/// An image of its own over `chain`.
fn over(path: &Path, chain: &Chain) -> qcow::Result<Image> {
    let failed = |error| qcow::Error::io("could not create", error);
    let temporary = tempfile::tempdir().map_err(failed)?;
    let name = temporary.path().join("overlay.qcow2");
    let format = chain.layers().first().map_or(Format::Raw, |layer| layer.format());
    let below = std::path::absolute(shared::file_of(path)).map_err(failed)?;
    let options = CreateOptions::default()
        .size(chain.virtual_size())
        .backing(Some(Backing::new(below, format)));
    create(&name, &options)?;
    let open = OpenOptions::default().format(Some(Format::Qcow2));
    let disk = Disk::open(&name, &open, as_qemu())?;
    Ok(Image { opened: Opened::Disk(disk), start: 0, _temporary: Some(temporary) })
}
