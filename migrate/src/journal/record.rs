//! The records of a journal.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::facts::Route;
use crate::facts::{Facts, Identity};
use crate::plan::Plan;

/// Version of the records.
pub const VERSION: u32 = 1;

/// A record and when it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Entry {
    /// The time, as in RFC 3339. For people.
    pub time: String,
    /// What is said.
    pub record: Record,
}

impl Entry {
    pub(super) fn now(record: Record) -> Self {
        Self { time: jiff::Timestamp::now().to_string(), record }
    }
}

/// One of the two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// The one that the guest comes from.
    Source,
    /// The one that it goes to.
    Destination,
}

/// What is said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case", tag = "is")]
pub enum Record {
    /// The first of all.
    Opened {
        /// [`VERSION`].
        version: u32,
        /// Name of the transaction.
        id: String,
        /// What it carries out.
        plan: Box<Plan>,
    },
    /// What the plan was made of, and how both hosts are reached.
    Begun {
        /// The facts.
        facts: Box<Facts>,
        /// The way to both hosts.
        route: Box<Route>,
    },
    /// A phase of the work begins.
    Phase {
        /// Its number.
        number: u8,
        /// Its name.
        name: String,
    },
    /// Something will now be made. Nothing is at that path.
    Intended {
        /// On which host.
        host: Side,
        /// Where.
        path: PathBuf,
        /// The name under which it is made first
        /// ([`Store::temporary`](crate::store::Store::temporary)).
        temporary: Option<PathBuf>,
        /// What tells it from another file by its content
        /// ([`Store::proof`](crate::store::Store::proof)).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        proof: Option<String>,
        /// It is a directory.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        directory: bool,
    },
    /// It is made; a directory perhaps still under its first name.
    Made {
        /// On which host.
        host: Side,
        /// Where.
        path: PathBuf,
        /// What was made there.
        identity: Identity,
    },
    /// A storage pool was made.
    PoolMade {
        /// On which host.
        host: Side,
        /// Its name.
        name: String,
    },
    /// libvirt is now asked to migrate.
    MigrateCalled,
    /// How that ended, by the state of both hosts.
    Outcome {
        /// Where the guest is.
        guest: Outcome,
    },
    /// A file of the source was given another name.
    Renamed {
        /// Its name before.
        from: PathBuf,
        /// Its name now.
        to: PathBuf,
        /// Which file it is.
        identity: Identity,
    },
    /// Something that was made is gone.
    Removed {
        /// On which host.
        host: Side,
        /// Where it was.
        path: PathBuf,
    },
    /// The last of all.
    Closed {
        /// How it ended.
        result: Ended,
    },
}

/// Where the guest is after a migration, by the state of both hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// On the source, and the destination has nothing of it.
    AtSource,
    /// On the destination.
    AtDestination,
    /// On neither.
    Lost,
    /// Unknown.
    InDoubt,
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    /// All that was planned is done.
    Done,
    /// The run was rolled back, or it is known that its files must stay.
    RolledBack,
}
