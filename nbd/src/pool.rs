//! Threads that all connections share, for requests that may take long.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crate::budget::lock;

type Job = Box<dyn FnOnce() + Send>;

/// Threads are started when they are needed.
#[derive(Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
    most: usize,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    idle: usize,
    closed: bool,
}

impl Pool {
    /// At most `most` threads.
    pub(crate) fn new(most: usize) -> Self {
        Self { shared: Arc::default(), most, threads: Mutex::default() }
    }

    /// Runs `job` on one of the threads, soon; here, if there can be none.
    pub(crate) fn run(&self, job: Job) {
        let idle = {
            let mut state = lock(&self.shared.state);
            state.jobs.push_back(job);
            state.jobs.len() <= state.idle
        };
        if !idle && !self.grow() {
            let job = lock(&self.shared.state).jobs.pop_back();
            if let Some(job) = job {
                job();
            }
            return;
        }
        self.shared.work.notify_one();
    }

    /// One more thread, if there may be. Whether there is any.
    fn grow(&self) -> bool {
        let mut threads = lock(&self.threads);
        if threads.len() < self.most {
            let shared = Arc::clone(&self.shared);
            let started = thread::Builder::new().name("nbd-io".to_owned());
            threads.extend(started.spawn(move || work(&shared)));
        }
        !threads.is_empty()
    }
}

fn work(shared: &Shared) {
    let mut state = lock(&shared.state);
    loop {
        if let Some(job) = state.jobs.pop_front() {
            drop(state);
            // A request that panics loses its reply, not the thread.
            let _ = catch_unwind(AssertUnwindSafe(job));
            state = lock(&shared.state);
        } else if state.closed {
            return;
        } else {
            state.idle = state.idle.saturating_add(1);
            state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle = state.idle.saturating_sub(1);
        }
    }
}

impl Pool {
    /// Waits until all jobs are done, with what they hold, and ends the threads. Not to be called by one of them.
    pub(crate) fn finish(&self) {
        self.close();
        for thread in lock(&self.threads).drain(..) {
            let _ = thread.join();
        }
    }

    fn close(&self) {
        lock(&self.shared.state).closed = true;
        self.shared.work.notify_all();
    }
}

impl Drop for Pool {
    /// A thread of the pool may be the last that holds it: nobody is waited for.
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    #[test]
    fn all_jobs_are_done_when_it_is_finished_and_a_panic_loses_one_only() {
        let done = Arc::new(AtomicUsize::new(0));
        let pool = Pool::new(2);
        for number in 0..100 {
            let done = Arc::clone(&done);
            pool.run(Box::new(move || {
                assert!(number % 50 != 7, "a request that panics");
                done.fetch_add(1, SeqCst);
            }));
        }
        pool.finish();
        assert_eq!(done.load(SeqCst), 98);
    }
}
