//! Exports: disks under the names that clients ask for.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::backend::Backend;
use crate::context::Context;
use crate::link::Link;
use crate::stats::ExportStats;
use crate::wire::{MAX_PAYLOAD, TransmissionFlags, cut};

/// A disk under a name.
#[derive(Debug)]
pub struct Export {
    name: String,
    description: String,
    size: u64,
    backend: Box<dyn Backend>,
    contexts: Vec<Context>,
    multi: bool,
    stats: Arc<ExportStats>,
    pub(crate) links: Mutex<Vec<Weak<Link>>>,
}

impl Export {
    /// The disk of `backend` under `name`, with the context `base:allocation`. Its size is asked for now, and stays.
    pub fn new(name: impl Into<String>, backend: Box<dyn Backend>) -> Self {
        Self {
            name: name.into(),
            description: String::new(),
            size: backend.size(),
            backend,
            contexts: vec![Context::Allocation],
            multi: true,
            stats: Arc::default(),
            links: Mutex::default(),
        }
    }

    /// With a text for people; cut to 4,096 bytes.
    #[must_use]
    pub fn description(self, text: impl Into<String>) -> Self {
        let text: String = text.into();
        Self { description: cut(&text).to_owned(), ..self }
    }

    /// With one more metadata context.
    #[must_use]
    pub fn context(mut self, context: Context) -> Self {
        self.contexts.push(context);
        self
    }

    /// Whether several connections of one client are offered: on unless the server takes one only.
    #[must_use]
    pub fn multi_conn(self, multi: bool) -> Self {
        Self { multi, ..self }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Size of the disk in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What its clients have asked for so far.
    pub fn stats(&self) -> &Arc<ExportStats> {
        &self.stats
    }

    /// Times that its disk was made durable, see [`Backend::syncs`].
    pub fn syncs(&self) -> u64 {
        self.backend.syncs()
    }

    /// Whether writing is refused.
    pub fn is_read_only(&self) -> bool {
        !self.backend.can_write()
    }

    pub(crate) fn text(&self) -> &str {
        &self.description
    }

    pub(crate) fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    pub(crate) fn contexts(&self) -> &[Context] {
        &self.contexts
    }

    /// The least, the best and the largest size of requests.
    pub(crate) fn block_sizes(&self) -> (u32, u32, u32) {
        (1, self.backend.preferred(), MAX_PAYLOAD)
    }

    /// What it can do, for a client that understands structured replies or does not.
    pub(crate) fn flags(&self, structured: bool) -> TransmissionFlags {
        let mut flags = TransmissionFlags::HAS_FLAGS
            | TransmissionFlags::SEND_FLUSH
            | TransmissionFlags::SEND_FUA
            | TransmissionFlags::SEND_CACHE;
        flags.set(TransmissionFlags::SEND_DF, structured);
        flags.set(TransmissionFlags::CAN_MULTI_CONN, self.multi);
        flags |= if self.is_read_only() {
            TransmissionFlags::READ_ONLY
        } else {
            TransmissionFlags::SEND_TRIM
                | TransmissionFlags::SEND_WRITE_ZEROES
                | TransmissionFlags::SEND_FAST_ZERO
        };
        flags
    }

    pub(crate) fn into_backend(self) -> Box<dyn Backend> {
        self.backend
    }

    /// The connections that use it now.
    pub(crate) fn links(&self) -> Vec<Arc<Link>> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|link| link.strong_count() > 0);
        links.iter().filter_map(Weak::upgrade).collect()
    }
}

/// The export that a client means: by its name, or the only one by no name at all.
pub(crate) fn find(exports: &[Export], name: &[u8]) -> Option<usize> {
    let named = exports.iter().position(|export| export.name.as_bytes() == name);
    named.or((name.is_empty() && exports.len() == 1).then_some(0))
}
