//! What a run does to hosts, written down before and after each step, so that a later process, after a
//! crash knows what exists that we made.
//!
//! A journal is one file per transaction: one JSON object a line, each on stable storage before the
//! step that follows it. Its name is the transaction's: the time, and some random digits. One
//! lock per domain keeps two runs on one guest apart.

mod lock;
mod record;
mod roll_back;
mod transaction;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::rand::GetRandomFlags;

use crate::fs::{failed, make_directories, sync_path};
use crate::plan::Plan;
use crate::store::holders::soon;
use crate::{Error, Result};

pub use lock::DomainLock;
pub use record::{Ended, Entry, Outcome, Record, Side, VERSION};
pub use roll_back::{Left, RolledBack, roll_back};
pub use transaction::{Made, Renamed, Transaction};

/// The default directory of journals.
pub const DIRECTORY: &str = "/var/lib/qcowtool/transactions";

/// No journal is longer than this: it is read whole.
const LONGEST: u64 = 256 << 20;
const SUFFIX: &str = ".journal";

/// The journal of one transaction, open for writing. No other process can open it meanwhile.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
    transaction: Transaction,
    /// A record could not be written: nothing may follow it.
    broken: bool,
}

/// A journal in a directory.
#[derive(Debug)]
pub struct Listed {
    /// The transaction's name.
    pub id: String,
    /// What it says, or why it cannot be read.
    pub transaction: Result<Transaction>,
}

impl Journal {
    /// Begins a transaction that carries out `plan`.
    ///
    /// # Errors
    /// [`Environment`](crate::ErrorKind::Environment) if it cannot be written.
    pub fn create(directory: &Path, plan: &Plan) -> Result<Self> {
        make_directory(directory)?;
        let id = new_id()?;
        let path = file_of(directory, &id);
        // It gets its name when its first record is whole: there is no journal that cannot be read.
        let (file, unnamed) = tempfile::Builder::new()
            .prefix(".journal-")
            .append(true)
            .tempfile_in(directory)
            .map_err(|error| failed("could not create", &path, error))?
            .into_parts();
        lock(&file, &path)?;
        let opened = Record::Opened { version: VERSION, id, plan: Box::new(plan.clone()) };
        let entry = Entry::now(opened);
        let transaction = Transaction::begun_by(&entry)
            .ok_or_else(|| Error::environment("a journal begins with its plan"))?;
        let mut journal = Self { file, path, transaction, broken: false };
        journal.append(&entry)?;
        unnamed
            .persist_noclobber(&journal.path)
            .map_err(|error| failed("could not create", &journal.path, error.error))?;
        sync_path(directory).inspect_err(|_| drop(fs::remove_file(&journal.path)))?;
        Ok(journal)
    }

    /// Opens the journal of the transaction `id`, to go on with it. A last line that was not
    /// written to its end is cut off: what it was about had not begun.
    ///
    /// # Errors
    /// [`Environment`](crate::ErrorKind::Environment) if it cannot be read or is damaged,
    /// [`Refused`](crate::ErrorKind::Refused) if another process has it open,
    /// [`Usage`](crate::ErrorKind::Usage) if `id` is none.
    pub fn open(directory: &Path, id: &str) -> Result<Self> {
        check_id(id)?;
        let path = file_of(directory, id);
        let mut file = OpenOptions::new()
            .append(true)
            .read(true)
            .open(&path)
            .map_err(|error| failed("could not open", &path, error))?;
        lock(&file, &path)?;
        let (transaction, good) = read(&mut file, &path)?;
        file.set_len(good)
            .and_then(|()| file.sync_all())
            .map_err(|error| failed("could not cut off the last line of", &path, error))?;
        Ok(Self { file, path, transaction, broken: false })
    }

    /// What the journal of the transaction `id` says. Nothing is locked or changed.
    ///
    /// # Errors
    /// As [`open`](Self::open), but others may have it open.
    pub fn peek(directory: &Path, id: &str) -> Result<Transaction> {
        check_id(id)?;
        let path = file_of(directory, id);
        let file = File::open(&path);
        let mut file = file.map_err(|error| failed("could not open", &path, error))?;
        Ok(read(&mut file, &path)?.0)
    }

    /// The journals in a directory, the oldest first. Nothing is locked or changed. No directory is
    /// no journals.
    ///
    /// # Errors
    /// [`Environment`](crate::ErrorKind::Environment) if the directory cannot be read.
    pub fn list(directory: &Path) -> Result<Vec<Listed>> {
        let entries = match directory.read_dir() {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("could not read", directory, error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| failed("could not read", directory, error))?;
            let name = entry.file_name();
            let Some(id) = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)) else {
                continue;
            };
            if check_id(id).is_ok() {
                let transaction = Self::peek(directory, id);
                found.push(Listed { id: id.to_owned(), transaction });
            }
        }
        found.sort_by(|one, two| one.id.cmp(&two.id));
        Ok(found)
    }

    /// Writes a record. When this returns, it is on stable storage.
    ///
    /// # Errors
    /// [`Environment`](crate::ErrorKind::Environment). Nothing can be written after that, because
    /// it is not known how much of the record was written: stop, and open the journal again.
    pub fn write(&mut self, record: Record) -> Result<()> {
        let entry = Entry::now(record);
        self.append(&entry)?;
        self.transaction.apply(&entry);
        Ok(())
    }

    fn append(&mut self, entry: &Entry) -> Result<()> {
        if self.broken {
            return Err(Error::environment(format!(
                "{}: an earlier record could not be written",
                self.path.display()
            )));
        }
        self.broken = true;
        let mut line = serde_json::to_vec(entry)
            .map_err(|error| Error::io("could not put a record into words", error))?;
        line.push(b'\n');
        self.file
            .write_all(&line)
            .and_then(|()| self.file.sync_data())
            .map_err(|error| failed("could not write", &self.path, error))?;
        self.broken = false;
        Ok(())
    }

    /// What all records together say.
    pub fn transaction(&self) -> &Transaction {
        &self.transaction
    }

    /// The journal's file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// All records, and the length of the part of the file that holds them.
fn read(file: &mut File, path: &Path) -> Result<(Transaction, u64)> {
    let mut bytes = Vec::new();
    let read = file.take(LONGEST.saturating_add(1)).read_to_end(&mut bytes);
    read.map_err(|error| failed("could not read", path, error))?;
    if bytes.len() as u64 > LONGEST {
        return Err(damaged(path, "it is too long"));
    }
    let mut transaction: Option<Transaction> = None;
    let mut good = 0u64;
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n').enumerate().peekable();
    while let Some((number, line)) = lines.next() {
        let entry = line.strip_suffix(b"\n").and_then(|line| serde_json::from_slice(line).ok());
        let Some(entry): Option<Entry> = entry else {
            // Only what never was whole is torn: without its end, or with pages that were not written.
            let torn = !line.ends_with(b"\n") || line.contains(&0);
            if lines.peek().is_some() || !torn {
                return Err(damaged(path, &format!("record {number} cannot be read")));
            }
            break;
        };
        match &mut transaction {
            Some(transaction) => transaction.apply(&entry),
            None => {
                let begun = Transaction::begun_by(&entry)
                    .ok_or_else(|| damaged(path, "it does not begin with a plan that is known"))?;
                transaction = Some(begun);
            }
        }
        good = good.saturating_add(line.len() as u64);
    }
    let transaction = transaction.ok_or_else(|| {
        damaged(path, "not even its first record is whole").hint("nothing was begun; remove it")
    })?;
    Ok((transaction, good))
}

/// The time to the millisecond, and 32 random bits.
pub(crate) fn new_id() -> Result<String> {
    let mut random = [0; 4];
    rustix::rand::getrandom(&mut random, GetRandomFlags::empty())
        .map_err(|error| Error::io("no random numbers", error))?;
    let random = u32::from_be_bytes(random);
    let time = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S-%3f");
    Ok(format!("{time}-{random:08x}"))
}

/// It becomes a file name.
pub(crate) fn check_id(id: &str) -> Result<()> {
    let good = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f' | b'-');
    if !id.is_empty() && id.len() <= 64 && id.bytes().all(good) {
        return Ok(());
    }
    Err(Error::usage(format!("'{id}' is not the name of a transaction")))
}

fn file_of(directory: &Path, id: &str) -> PathBuf {
    directory.join(format!("{id}{SUFFIX}"))
}

/// Makes a directory of this host's own, and those that it is in, on stable storage. No other user can look into
/// what is made.
///
/// # Errors
/// [`Environment`](crate::ErrorKind::Environment).
pub fn make_directory(directory: &Path) -> Result<()> {
    make_directories(directory, 0o700)
}

fn lock(file: &File, path: &Path) -> Result<()> {
    if is_locked_now(file, path)? {
        return Ok(());
    }
    Err(Error::refused(format!("{}: another run has this journal open", path.display())))
}

/// Whether the lock could be taken; `false` if another run has it. A file system without locks is an
/// error: two runs would not see each other.
pub(crate) fn is_locked_now(file: &File, path: &Path) -> Result<bool> {
    let locked = soon(|| match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::AGAIN | Errno::INTR) => None,
        result => Some(result),
    });
    match locked {
        None => Ok(false),
        Some(result) => {
            result.map(|()| true).map_err(|error| failed("could not lock", path, error))
        }
    }
}

fn damaged(path: &Path, how: &str) -> Error {
    Error::environment(format!("the journal '{}' is damaged: {how}", path.display()))
}
