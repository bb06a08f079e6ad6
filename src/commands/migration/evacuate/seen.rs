//! What was seen of an evacuation so far.

use std::collections::BTreeMap;
use std::io;
use std::time::Instant;

use migrate::driver::JobProgress;
use migrate::evacuate::{Assignment, Ending};

/// All that was seen so far.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) guests: BTreeMap<String, Guest>,
    /// Guests that had no place.
    pub(super) refused: usize,
    pub(super) transfer_bytes: u64,
    /// Seconds since 1970.
    pub(super) begun: u64,
    pub(super) over: u64,
    pub(super) written: Option<Instant>,
    /// Why the metrics could not be written.
    pub(super) failed: Option<io::Error>,
}

/// One guest.
#[derive(Default)]
pub(super) struct Guest {
    pub(super) to: String,
    pub(super) job: JobProgress,
    pub(super) under_way: bool,
    pub(super) ending: Option<Ending>,
    pub(super) said: Option<Instant>,
}

impl Seen {
    /// Guests that ended so.
    pub(super) fn ended(&self, ending: Ending) -> usize {
        let all = self.guests.values().filter(|it| !it.under_way);
        all.filter(|guest| guest.ending == Some(ending)).count()
    }

    pub(super) fn guest(&mut self, guest: &Assignment) -> &mut Guest {
        self.guests.entry(guest.name.clone()).or_default()
    }
}
