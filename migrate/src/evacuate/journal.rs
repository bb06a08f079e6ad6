//! What an evacuation has done, written down before and after each guest, so that it can be taken up again.
//!
//! One JSON object a line, on stable storage before what follows it. What happens to one guest is in that guest's own
//! [journal](crate::journal); here is only who began and who ended.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::look::Limits;
use super::report::Outcome;
use super::value::{Assignment, EvacuationPlan};
use crate::facts::Route;
use crate::fs::{failed, sync_path};
use crate::journal::{check_id, is_locked_now, make_directory, new_id};
use crate::plan::Policy;
use crate::{Error, Result};

/// Where evacuations are, below the state directory.
const DIRECTORY: &str = "evacuations";
const SUFFIX: &str = ".journal";

/// Version of the records.
const VERSION: u32 = 1;

/// No journal is longer than this: it is read whole.
const LONGEST: u64 = 256 << 20;

/// What was asked for, so that an evacuation can be taken up again by its name alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Orders {
    /// Names or UUIDs of the guests that shall go.
    pub guests: Vec<String>,
    /// The destinations, and what is wanted of guests that go there.
    pub ways: Vec<(Route, Policy)>,
    /// So many guests at a time.
    pub at_once: usize,
    /// Bytes a second for all together.
    pub bandwidth: Option<u64>,
    /// How far destinations may be filled.
    pub limits: Limits,
    /// The program that is run before each guest.
    pub before: Option<PathBuf>,
    /// The program that is run after each guest.
    pub after: Option<PathBuf>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
enum Record {
    Opened { version: u32, id: String, orders: Box<Orders> },
    Planned { plan: Box<EvacuationPlan> },
    Started { uuid: String },
    Ended { outcome: Box<Outcome> },
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    time: String,
    record: Record,
}

/// The journal of one evacuation, open for writing; no other process has one of the same state directory open.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    path: PathBuf,
    pub(super) said: Said,
    _lock: File,
}

/// What all records together say.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) id: String,
    pub(super) orders: Orders,
    /// The last plan.
    pub(super) plan: Option<EvacuationPlan>,
    /// Where each guest was to go the last time.
    pub(super) assignments: BTreeMap<String, Assignment>,
    /// Guests that began and did not end.
    pub(super) under_way: BTreeSet<String>,
    /// When each guest began the last time.
    pub(super) begun: BTreeMap<String, String>,
    /// How guests ended; of each the last.
    pub(super) outcomes: Vec<Outcome>,
}

impl Journal {
    /// Begins an evacuation.
    pub(super) fn create(state: &Path, orders: &Orders) -> Result<Self> {
        let lock = lock(state)?;
        let id = new_id()?;
        let directory = state.join(DIRECTORY);
        let path = directory.join(format!("{id}{SUFFIX}"));
        let mut options = OpenOptions::new();
        let file = options.append(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(|error| failed("could not create", &path, error))?;
        sync_path(&directory)?;
        let mut journal = Self { file, path, said: Said::default(), _lock: lock };
        let orders = Box::new(orders.clone());
        journal.write(Record::Opened { version: VERSION, id, orders })?;
        Ok(journal)
    }

    /// Takes the evacuation `id` up again; the last one, if that is `None`.
    pub(super) fn open(state: &Path, id: Option<&str>) -> Result<Self> {
        let lock = lock(state)?;
        let id = match id {
            Some(id) => id.to_owned(),
            None => last(state)?,
        };
        check_id(&id)?;
        let path = state.join(DIRECTORY).join(format!("{id}{SUFFIX}"));
        let file = OpenOptions::new().append(true).read(true).open(&path);
        let mut file = file.map_err(|error| failed("could not open", &path, error))?;
        let (said, good) = read(&mut file, &path)?;
        // What was about to be written had not begun.
        let cut = file.set_len(good).and_then(|()| file.sync_all());
        cut.map_err(|error| failed("could not cut off the last line of", &path, error))?;
        Ok(Self { file, path, said, _lock: lock })
    }

    fn write(&mut self, record: Record) -> Result<()> {
        let entry = Entry { time: jiff::Timestamp::now().to_string(), record };
        let mut line = serde_json::to_vec(&entry)
            .map_err(|error| Error::io("could not serialise the journal record", error))?;
        line.push(b'\n');
        let written = self.file.write_all(&line).and_then(|()| self.file.sync_data());
        written.map_err(|error| failed("could not write", &self.path, error))?;
        self.said.apply(entry);
        Ok(())
    }

    pub(super) fn planned(&mut self, plan: &EvacuationPlan) -> Result<()> {
        self.write(Record::Planned { plan: Box::new(plan.clone()) })
    }

    pub(super) fn started(&mut self, uuid: &str) -> Result<()> {
        self.write(Record::Started { uuid: uuid.to_owned() })
    }

    pub(super) fn ended(&mut self, outcome: &Outcome) -> Result<()> {
        self.write(Record::Ended { outcome: Box::new(outcome.clone()) })
    }
}

impl Said {
    fn apply(&mut self, entry: Entry) {
        match entry.record {
            Record::Opened { id, orders, .. } => (self.id, self.orders) = (id, *orders),
            Record::Planned { plan } => {
                let all = plan.guests.iter().map(|guest| (guest.uuid.clone(), guest.clone()));
                self.assignments.extend(all);
                self.plan = Some(*plan);
            }
            Record::Started { uuid } => {
                self.outcomes.retain(|outcome| outcome.uuid != uuid);
                self.begun.insert(uuid.clone(), entry.time);
                self.under_way.insert(uuid);
            }
            Record::Ended { outcome } => {
                self.under_way.remove(&outcome.uuid);
                self.outcomes.retain(|known| known.uuid != outcome.uuid);
                self.outcomes.push(*outcome);
            }
        }
    }
}

/// One evacuation at a time: two would give the same room to two guests.
fn lock(state: &Path) -> Result<File> {
    let directory = state.join(DIRECTORY);
    make_directory(&directory)?;
    let path = directory.join("lock");
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.map_err(|error| failed("could not open", &path, error))?;
    match is_locked_now(&file, &path)? {
        true => Ok(file),
        false => Err(Error::refused("another evacuation of this host is under way")
            .hint("wait until it has ended, or stop it with Ctrl-C")),
    }
}

/// The name of the evacuation that began last.
fn last(state: &Path) -> Result<String> {
    let directory = state.join(DIRECTORY);
    let entries = directory.read_dir();
    let entries = entries.map_err(|error| failed("could not read", &directory, error))?;
    let id = |entry: std::fs::DirEntry| {
        let name = entry.file_name();
        let id = name.to_str()?.strip_suffix(SUFFIX)?;
        check_id(id).ok().map(|()| id.to_owned())
    };
    // They begin with the time.
    let last = entries.flatten().filter_map(id).max();
    last.ok_or_else(|| Error::usage("there is no evacuation that could be taken up again"))
}

fn read(file: &mut File, path: &Path) -> Result<(Said, u64)> {
    let damaged = |how: String| {
        Error::environment(format!("the journal '{}' is damaged: {how}", path.display()))
    };
    let mut bytes = Vec::new();
    let read = file.take(LONGEST.saturating_add(1)).read_to_end(&mut bytes);
    read.map_err(|error| failed("could not read", path, error))?;
    if bytes.len() as u64 > LONGEST {
        return Err(damaged("it is too long".into()));
    }
    let (mut said, mut good) = (Said::default(), 0_u64);
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n').enumerate().peekable();
    while let Some((number, line)) = lines.next() {
        let entry = line.strip_suffix(b"\n").and_then(|line| serde_json::from_slice(line).ok());
        let Some(entry): Option<Entry> = entry else {
            // Only what never was whole is torn: without its end, or with pages that were not written.
            let torn = !line.ends_with(b"\n") || line.contains(&0);
            if lines.peek().is_some() || !torn {
                return Err(damaged(format!("record {number} cannot be read")));
            }
            break;
        };
        let first = matches!(&entry.record, Record::Opened { version: VERSION, .. });
        if first != (number == 0) {
            return Err(damaged("it does not begin with orders that are known".into()));
        }
        said.apply(entry);
        good = good.saturating_add(line.len() as u64);
    }
    match good {
        0 => Err(damaged("not even its first record is whole".into())
            .hint("nothing was begun; remove it")),
        _ => Ok((said, good)),
    }
}
