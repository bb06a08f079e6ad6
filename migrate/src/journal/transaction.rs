//! What the records of a journal say together.

use std::path::{Path, PathBuf};

use super::record::{Ended, Entry, Outcome, Record, Side, VERSION};
use crate::facts::Route;
use crate::facts::{Facts, Identity};
use crate::plan::Plan;

/// The state of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Transaction {
    /// Its name.
    pub id: String,
    /// When it began.
    pub begun: String,
    /// What it carries out.
    pub plan: Plan,
    /// What the plan was made of; `None` if the run was cut off before that was on record.
    pub facts: Option<Facts>,
    /// How both hosts are reached.
    pub route: Option<Route>,
    /// The phase that was begun last.
    pub phase: Option<(u8, String)>,
    /// The number of the last phase that was ever begun; a run that is taken up again goes back.
    pub furthest: u8,
    /// What was made or was going to be made, and is not known to be gone; in that order.
    pub objects: Vec<Made>,
    /// Storage pools that were made.
    pub pools: Vec<(Side, String)>,
    /// libvirt was asked to migrate.
    pub migrate_called: bool,
    /// How that ended.
    pub outcome: Option<Outcome>,
    /// Files of the source that were given other names.
    pub renamed: Vec<Renamed>,
    /// How the transaction ended; `None` if it has not.
    pub closed: Option<Ended>,
    /// When it ended.
    pub ended: Option<String>,
}

/// Something that a transaction made or was going to make.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Made {
    /// On which host.
    pub host: Side,
    /// Where.
    pub path: PathBuf,
    /// Under which name it was made first.
    pub temporary: Option<PathBuf>,
    /// What tells it from another file by its content, where its identity alone does not.
    pub proof: Option<String>,
    /// It is a directory, and is there under its first name or its own.
    pub directory: bool,
    /// What was made; `None` if it is not known whether it was.
    pub identity: Option<Identity>,
}

/// A file of the source that was given another name.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Renamed {
    /// Its name before.
    pub from: PathBuf,
    /// Its name now.
    pub to: PathBuf,
    /// Which file it is.
    pub identity: Identity,
}

impl Transaction {
    /// From the first entry of a journal; `None` if that is no first entry, or of another version.
    pub(super) fn begun_by(entry: &Entry) -> Option<Self> {
        let Record::Opened { version: VERSION, id, plan } = &entry.record else { return None };
        Some(Self {
            id: id.clone(),
            begun: entry.time.clone(),
            plan: (**plan).clone(),
            facts: None,
            route: None,
            phase: None,
            furthest: 0,
            objects: Vec::new(),
            pools: Vec::new(),
            migrate_called: false,
            outcome: None,
            renamed: Vec::new(),
            closed: None,
            ended: None,
        })
    }

    pub(super) fn apply(&mut self, entry: &Entry) {
        match entry.record.clone() {
            Record::Opened { .. } => {}
            Record::Begun { facts, route } => {
                self.facts = Some(*facts);
                self.route = Some(*route);
            }
            Record::Phase { number, name } => {
                self.furthest = self.furthest.max(number);
                self.phase = Some((number, name));
            }
            Record::Intended { host, path, temporary, proof, directory } => {
                self.forget(host, &path);
                let identity = None;
                self.objects.push(Made { host, path, temporary, proof, directory, identity });
            }
            Record::Made { host, path, identity } => {
                let identity = Some(identity);
                let made = match self.forget(host, &path) {
                    Some(intended) => Made { identity, ..intended },
                    None => {
                        let (temporary, proof, directory) = (None, None, false);
                        Made { host, path, temporary, proof, directory, identity }
                    }
                };
                self.objects.push(made);
            }
            Record::PoolMade { host, name } => self.pools.push((host, name)),
            Record::MigrateCalled => {
                self.migrate_called = true;
                self.outcome = None;
            }
            Record::Outcome { guest } => self.outcome = Some(guest),
            Record::Renamed { from, to, identity } => {
                self.renamed.push(Renamed { from, to, identity });
            }
            Record::Removed { host, path } => {
                self.renamed.retain(|kept| host != Side::Source || kept.to != path);
                drop(self.forget(host, &path));
            }
            Record::Closed { result } => {
                self.closed = Some(result);
                self.ended = Some(entry.time.clone());
            }
        }
    }

    fn forget(&mut self, host: Side, path: &Path) -> Option<Made> {
        let at = self.objects.iter().position(|made| made.host == host && made.path == path)?;
        Some(self.objects.remove(at))
    }
}
