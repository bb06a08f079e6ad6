//! What the threads of one connection share.

mod flight;
mod out;
mod stream;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::budget::Own;
use crate::transport::Transport;

use flight::Flight;
pub(crate) use flight::Slot;
pub(crate) use out::{Out, Part, Reply};
use stream::Stream;

/// Requests that take longer than this, on average, are given to other threads.
const QUICK: u64 = 60_000;
/// One request counts as this long at most: a single one that waited for a processor says nothing.
const LONGEST: u64 = 200_000;
/// A longer request may take as much longer.
const UNIT: u64 = 64 << 10;

/// The shared part of a connection.
#[derive(Debug)]
pub(crate) struct Link {
    stream: Arc<Stream>,
    out: Arc<Out>,
    own: Arc<Own>,
    flight: Arc<Flight>,
    /// Nobody wants replies any more: what has not begun is not to begin.
    gone: AtomicBool,
    /// No more requests are to be taken.
    stopping: AtomicBool,
    /// Nanoseconds that a short request takes, on average.
    pace: AtomicU64,
}

impl Link {
    /// A connection before its first byte.
    pub(crate) fn new(transport: Arc<dyn Transport>) -> Self {
        let stream = Arc::new(Stream::new(transport));
        Self {
            out: Arc::new(Out::new(Arc::clone(&stream))),
            stream,
            own: Arc::default(),
            flight: Arc::default(),
            gone: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            pace: AtomicU64::new(0),
        }
    }

    pub(crate) fn transport(&self) -> &dyn Transport {
        self.stream.transport()
    }

    /// From now on everything goes through what `encrypt` makes of the stream.
    #[cfg(feature = "tls")]
    pub(crate) fn encrypt<T: Transport + 'static>(
        &self,
        encrypt: impl FnOnce(Arc<dyn Transport>) -> std::io::Result<T>,
    ) -> std::io::Result<()> {
        self.stream.encrypt(encrypt)
    }

    pub(crate) fn out(&self) -> &Arc<Out> {
        &self.out
    }

    pub(crate) fn own(&self) -> &Arc<Own> {
        &self.own
    }

    /// Waits until another request may be in flight.
    pub(crate) fn slot(&self) -> Slot {
        self.flight.slot()
    }

    /// One more in flight, whatever the bound: the end of a reply whose pieces had their places.
    pub(crate) fn slot_beyond(&self) -> Slot {
        self.flight.slot_beyond()
    }

    /// Waits until nothing is in flight.
    pub(crate) fn wait_until_idle(&self) {
        self.flight.wait_until_idle();
    }

    /// Says that nothing of this connection will happen any more.
    pub(crate) fn finish(&self) {
        self.flight.finish();
    }

    /// Waits until nothing of this connection can happen any more, at most until `deadline`; whether that is so.
    pub(crate) fn wait_until_finished(&self, deadline: Instant) -> bool {
        self.flight.wait_until_finished(deadline)
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.flight.is_finished()
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(SeqCst)
    }

    /// The client is gone.
    pub(crate) fn lose(&self) {
        self.gone.store(true, SeqCst);
        self.out.fail();
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(SeqCst)
    }

    /// Takes no more requests.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, SeqCst);
        self.stream.stop_receiving();
    }

    /// Ends the stream now.
    pub(crate) fn cut(&self) {
        self.stream.cut();
    }

    /// Whether short requests are answered by the thread that takes them.
    pub(crate) fn is_quick(&self) -> bool {
        self.pace.load(SeqCst) < QUICK
    }

    /// A request of `len` bytes took so long. A lost update does no harm.
    pub(crate) fn took(&self, time: Duration, len: u64) {
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let time = time.checked_div(len.div_ceil(UNIT).max(1)).unwrap_or(time).min(LONGEST);
        let pace = self.pace.load(SeqCst);
        let pace = pace.saturating_sub(pace >> 3).saturating_add(time >> 3);
        self.pace.store(pace, SeqCst);
    }
}
