//! SIGINT, SIGTERM and SIGHUP ask a long operation to stop; a second signal, some time later, does not ask.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use migrate::evacuate::Stops;
use qcow::{CancelToken, Error, ErrorKind, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;
use signal_hook::iterator::Signals;

use crate::failure::Failure;
use crate::output::eprint_line;

/// What comes within this time of the first signal is the first once more: `timeout` sends its own twice, to the
/// process and to its group, and people press Ctrl-C twice.
const SAME_SIGNAL: Duration = Duration::from_millis(500);

/// Makes a write past the limit for files (`ulimit -f`) an error like any other: without this a signal would end
/// the process, and what was half made would stay.
pub(crate) fn survive_file_limit() {
    // If that cannot be, it is as it was.
    let _ = flag::register(SIGXFSZ, Arc::default());
}

/// What the handlers set. Without a thread, so that a command can still give up rights that the
/// kernel takes from one thread only (`sandbox`). Started by long operations.
#[derive(Debug)]
pub(crate) struct Watch {
    cancel: CancelToken,
    caught: Arc<AtomicUsize>,
}

impl Watch {
    /// Sets up the handlers.
    ///
    /// # Errors
    /// `Io` if that fails.
    pub(crate) fn start() -> Result<Self> {
        let watch = Self { cancel: CancelToken::new(), caught: Arc::default() };
        let first = Arc::new(FirstSignal::new());
        signals().iter().try_for_each(|signal| watch.listen(*signal, &first)).map_err(failed)?;
        Ok(watch)
    }

    /// As [`start`](Self::start); the first signal is told, too, by a thread, for those that wait and cannot
    /// look at a token.
    ///
    /// # Errors
    /// `Io` if the handlers or the thread cannot be set up.
    #[cfg_attr(not(feature = "monitor"), expect(dead_code, reason = "for the monitor"))]
    pub(crate) fn start_telling(tell: impl Fn() + Send + 'static) -> Result<Self> {
        let watch = Self::start()?;
        let mut signals = Signals::new(signals()).map_err(failed)?;
        let listen = move || signals.forever().for_each(|_| tell());
        thread::Builder::new().name("signals".to_owned()).spawn(listen).map_err(failed)?;
        Ok(watch)
    }

    /// Something that can be read as soon as a signal has come, for those that wait by `poll`. There is no thread,
    /// see [`Watch`].
    ///
    /// # Errors
    /// `Io` if it cannot be set up.
    pub(crate) fn readable(&self) -> Result<UnixStream> {
        let (told, tell) = UnixStream::pair().map_err(failed)?;
        for signal in signals() {
            let tell = tell.try_clone().map_err(failed)?;
            signal_hook::low_level::pipe::register(signal, tell).map_err(failed)?;
        }
        Ok(told)
    }

    /// The first signal of any kind sets the token, and is kept; some time after it, any ends the process.
    #[expect(unsafe_code, reason = "the safe handlers of the crate cannot look at the clock")]
    fn listen(&self, signal: i32, first: &Arc<FirstSignal>) -> io::Result<()> {
        let (first, caught, cancel) =
            (Arc::clone(first), Arc::clone(&self.caught), self.cancel.flag());
        let number = usize::try_from(signal).unwrap_or_default();
        let act = move || match first.turn() {
            Turn::First => {
                caught.store(number, Ordering::SeqCst);
                cancel.store(true, Ordering::SeqCst);
            }
            Turn::FirstOnceMore => {}
            Turn::Later => signal_hook::low_level::exit(signal.saturating_add(128)),
        };
        // SAFETY: a handler may only do what is safe in one. This one reads the monotonic clock (clock_gettime), reads
        // and sets atomic numbers, and calls _exit, all of which are; it allocates, locks and panics nowhere.
        unsafe { signal_hook::low_level::register(signal, act) }.map(drop)
    }

    /// The signal that came.
    fn caught(&self) -> i32 {
        i32::try_from(self.caught.load(Ordering::SeqCst)).unwrap_or_default()
    }

    /// The token that the first signal sets.
    pub(crate) fn token(&self) -> &CancelToken {
        &self.cancel
    }

    /// Tells an operation that stopped because of a signal from one that failed. One that was
    /// done before it saw the signal stays done.
    pub(crate) fn settle<T>(&self, result: Result<T>) -> Result<T, Failure> {
        result.map_err(|error| match self.caught() {
            signal if signal != 0 && error.kind() == ErrorKind::Interrupted => {
                Failure::Stopped { signal, error }
            }
            _ => Failure::Error(error),
        })
    }

    /// As [`settle`](Self::settle), for migrations.
    pub(crate) fn settle_migration<T>(&self, result: migrate::Result<T>) -> Result<T, Failure> {
        result.map_err(|error| match self.caught() {
            signal if signal != 0 && error.kind() == migrate::ErrorKind::Interrupted => {
                // With what could not be rolled back, if there is any.
                let error = Error::new(ErrorKind::Interrupted, error.to_string());
                Failure::Stopped { signal, error }
            }
            _ => Failure::Migration(error),
        })
    }
}

/// When the first signal came.
#[derive(Debug)]
struct FirstSignal {
    start: Instant,
    /// Milliseconds after `start`; [`FirstSignal::NONE`] before there is one.
    came: AtomicU64,
}

/// What a signal is to the one that came first.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    First,
    FirstOnceMore,
    Later,
}

impl FirstSignal {
    const NONE: u64 = u64::MAX;

    fn new() -> Self {
        Self { start: Instant::now(), came: AtomicU64::new(Self::NONE) }
    }

    /// What a signal is that comes now.
    fn turn(&self) -> Turn {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(Self::NONE);
        let order = Ordering::SeqCst;
        match self.came.compare_exchange(Self::NONE, now, order, order) {
            Ok(_) => Turn::First,
            Err(first) if Duration::from_millis(now.saturating_sub(first)) <= SAME_SIGNAL => {
                Turn::FirstOnceMore
            }
            Err(_) => Turn::Later,
        }
    }
}

/// For work that has many parts: the first signal lets the parts under way go on to their ends, the second stops those
/// too, and the third ends the process.
#[derive(Debug)]
pub(crate) struct StopsByTurns {
    stops: Stops,
    caught: Arc<AtomicUsize>,
}

impl StopsByTurns {
    /// Sets up the handlers; `first` is said when the first signal comes.
    ///
    /// # Errors
    /// `Io` if that fails.
    pub(crate) fn start(first: &'static str) -> Result<Self> {
        let this = Self { stops: Stops::default(), caught: Arc::default() };
        let mut signals = Signals::new(signals()).map_err(failed)?;
        let (stops, caught) = (this.stops.clone(), Arc::clone(&this.caught));
        let listen = move || {
            let mut last: Option<Instant> = None;
            for signal in signals.forever() {
                if last.is_some_and(|last| last.elapsed() <= SAME_SIGNAL) {
                    continue;
                }
                last = Some(Instant::now());
                caught.store(usize::try_from(signal).unwrap_or_default(), Ordering::SeqCst);
                if !stops.drain.is_cancelled() {
                    stops.drain.cancel();
                    eprint_line(first);
                } else if !stops.cancel.is_cancelled() {
                    stops.cancel.cancel();
                } else {
                    signal_hook::low_level::exit(signal.saturating_add(128));
                }
            }
        };
        thread::Builder::new().name("signals".to_owned()).spawn(listen).map_err(failed)?;
        Ok(this)
    }

    /// What the first and the second signal set.
    pub(crate) fn tokens(&self) -> &Stops {
        &self.stops
    }

    /// The exit code after a signal: 128 and its number; that of a failure if there was none.
    pub(crate) fn code(&self) -> u8 {
        match self.caught.load(Ordering::SeqCst) {
            0 => 6,
            signal => u8::try_from(signal.saturating_add(128)).unwrap_or(6),
        }
    }

    /// Tells what stopped because of a signal from what failed.
    pub(crate) fn settle<T>(&self, result: migrate::Result<T>) -> Result<T, Failure> {
        Watch { cancel: self.stops.cancel.clone(), caught: Arc::clone(&self.caught) }
            .settle_migration(result)
    }
}

/// SIGINT and SIGTERM, and SIGHUP unless this process ignores it.
fn signals() -> Vec<i32> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let hangup = (!ignores(&status, SIGHUP)).then_some(SIGHUP);
    [SIGINT, SIGTERM].into_iter().chain(hangup).collect()
}

fn failed(error: io::Error) -> Error {
    Error::io("could not watch for signals", error)
}

/// Whether a process with this `/proc/PID/status` ignores a signal, as `nohup` makes it ignore
/// SIGHUP: to listen for it would undo that. What cannot be told is left alone.
fn ignores(status: &str, signal: i32) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_none_or(|mask| mask >> signal.saturating_sub(1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_nohup_ignores_stays_ignored() {
        let status = |mask| format!("Name:\tx\nSigBlk:\t0000000000000000\nSigIgn:\t{mask}\n");
        assert!(ignores(&status("0000000000000001"), SIGHUP));
        assert!(!ignores(&status("0000000000001000"), SIGHUP));
        assert!(ignores("", SIGHUP));
    }

    fn watch_that_heard(signal: i32) -> Watch {
        let caught = Arc::new(AtomicUsize::new(signal.try_into().unwrap()));
        Watch { cancel: CancelToken::new(), caught }
    }

    #[test]
    fn a_signal_is_another_one_only_some_time_after_the_first() {
        let start = Instant::now().checked_sub(SAME_SIGNAL * 3).unwrap();
        let first = FirstSignal { start, came: AtomicU64::new(FirstSignal::NONE) };
        assert_eq!([first.turn(), first.turn()], [Turn::First, Turn::FirstOnceMore]);
        first.came.store(0, Ordering::SeqCst);
        assert_eq!(first.turn(), Turn::Later);
    }

    #[test]
    fn an_interrupted_operation_is_put_down_to_the_signal() {
        let settled = watch_that_heard(SIGTERM).settle::<()>(Err(Error::interrupted()));
        assert!(matches!(settled, Err(Failure::Stopped { signal: SIGTERM, .. })));
    }

    #[test]
    fn a_failure_stays_a_failure_even_if_a_signal_came() {
        let settled = watch_that_heard(SIGTERM).settle::<()>(Err(Error::corrupt("x")));
        assert!(matches!(settled, Err(Failure::Error(_))));
    }

    #[test]
    fn what_was_done_before_the_signal_stays_done() {
        assert!(matches!(watch_that_heard(SIGINT).settle(Ok(7)), Ok(7)));
    }
}
