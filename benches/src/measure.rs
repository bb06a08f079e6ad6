//! Runs commands and takes their time and memory.

use std::fs;
use std::io;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use wait4::{ResUse, Wait4};

use crate::command::{must, shown};
use crate::contender::{Contender, Kind};
use crate::count::Counter;
use crate::failure::Result;

/// Several ways to do the same work. The first is qcowtool's.
pub(crate) struct Case {
    /// What is done.
    pub(crate) name: String,
    /// Bytes of guest data that are moved, if that is what the case is about.
    pub(crate) moved: Option<u64>,
    /// The ways to do it.
    pub(crate) contenders: Vec<Contender>,
    /// What this project promises of the first.
    pub(crate) goals: Vec<Goal>,
}

/// A promise about the first contender of a case, beside one of the others or alone.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    /// At least so many times as fast as another.
    Faster(Kind, f64),
    /// Its time is at most so many times that of the contender with this index.
    AtMost(usize, f64),
    /// What it writes is at most so many times as long as another's.
    Size(Kind, f64),
    /// Its time is below this.
    Below(Duration),
    /// It takes less room than this, in bytes.
    Room(u64),
}

/// How often to run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    /// Time for the rounds of one case, as far as `least` and `most` allow.
    budget: Duration,
    least: usize,
    most: usize,
}

/// A case with its figures, in the order of its contenders.
pub(crate) struct Measured {
    pub(crate) case: Case,
    /// What the untimed run of each showed.
    pub(crate) firsts: Vec<First>,
    /// The timed runs of each.
    pub(crate) runs: Vec<Vec<Run>>,
}

/// What is found out without a clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct First {
    /// Length of the file made, in bytes.
    pub(crate) size: Option<u64>,
    /// Bytes by which the file system's free room shrank, where a goal asks for it.
    pub(crate) room: Option<u64>,
    /// System calls.
    pub(crate) calls: Option<u64>,
}

/// Figures of one run of one command.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    pub(crate) wall: Duration,
    /// In user mode and in the kernel, all threads.
    pub(crate) cpu: Duration,
    /// Most memory resident at a time, in bytes. Counts pages of mapped files too.
    pub(crate) peak: u64,
}

impl Effort {
    /// So many seconds for each case.
    pub(crate) fn of(seconds: u64) -> Self {
        Self { budget: Duration::from_secs(seconds), least: 3, most: 50 }
    }

    /// As little as tells anything.
    pub(crate) fn quick() -> Self {
        Self { budget: Duration::from_secs(1), least: 1, most: 15 }
    }

    /// Rounds of commands that take so long together.
    fn rounds(self, once: Duration) -> usize {
        let fit = self.budget.as_secs_f64() / once.as_secs_f64().max(1e-6);
        (fit as usize).clamp(self.least, self.most)
    }
}

impl Measured {
    /// Median of a figure of a contender's runs.
    pub(crate) fn median<T: Ord + Copy>(&self, contender: usize, figure: fn(&Run) -> T) -> T {
        let mut figures: Vec<_> = self.runs[contender].iter().map(figure).collect();
        figures.sort();
        figures[figures.len() / 2]
    }

    /// Median time of a contender, in seconds.
    pub(crate) fn seconds(&self, contender: usize) -> f64 {
        self.median(contender, |run| run.wall).as_secs_f64()
    }

    /// The most memory that any run of a contender took, in bytes.
    pub(crate) fn peak(&self, contender: usize) -> u64 {
        self.runs[contender].iter().map(|run| run.peak).max().unwrap_or(0)
    }

    /// How many times as fast as another the first contender is.
    pub(crate) fn speed(&self, other: usize) -> f64 {
        self.seconds(other) / self.seconds(0)
    }

    /// The contender of a kind, if the case has one.
    pub(crate) fn find(&self, kind: Kind) -> Option<usize> {
        self.case.contenders.iter().position(|contender| contender.kind == kind)
    }

    /// The figure that a goal is about, and whether it is met; nothing if it could not be taken.
    pub(crate) fn judge(&self, goal: Goal) -> Option<(f64, bool)> {
        let size = |index: usize| Some(self.firsts[index].size? as f64);
        Some(match goal {
            Goal::Faster(than, least) => {
                let speed = self.speed(self.find(than)?);
                (speed, speed >= least)
            }
            Goal::AtMost(than, most) => {
                let times = 1.0 / self.speed(than);
                (times, times <= most)
            }
            Goal::Size(than, most) => {
                let times = size(0)? / size(self.find(than)?)?;
                (times, times <= most)
            }
            Goal::Below(most) => (self.seconds(0), self.seconds(0) < most.as_secs_f64()),
            Goal::Room(most) => {
                let room = self.firsts[0].room?;
                (room as f64, room < most)
            }
        })
    }
}

/// Runs all contenders of a case in alternation; the first round warms up, is verified and counted, but
/// not timed.
pub(crate) fn case(case: Case, effort: Effort, counter: Counter) -> Result<Measured> {
    let mut firsts = Vec::with_capacity(case.contenders.len());
    let start = Instant::now();
    let mut verifying = Duration::ZERO;
    let takes_room = case.goals.iter().any(|goal| matches!(goal, Goal::Room(_)));
    for contender in &case.contenders {
        let (first, printed) = first(contender, counter, takes_room)
            .map_err(|error| format!("{}, {}: {error}", case.name, contender.name))?;
        let clock = Instant::now();
        (contender.verify)(contender.target.as_deref(), &printed)
            .map_err(|error| format!("{}, {}: {error}", case.name, contender.name))?;
        verifying += clock.elapsed();
        contender.clear()?;
        firsts.push(first);
    }
    let rounds = effort.rounds(start.elapsed().saturating_sub(verifying));
    let mut runs = vec![Vec::with_capacity(rounds); case.contenders.len()];
    for round in 0..rounds {
        let mut order: Vec<_> = (0..case.contenders.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for index in order {
            runs[index].push(timed(&mut case.contenders[index].command())?);
            case.contenders[index].clear()?;
        }
    }
    Ok(Measured { case, firsts, runs })
}

/// The untimed run: what can be counted, and what it printed.
fn first(contender: &Contender, counter: Counter, room: bool) -> Result<(First, String)> {
    let counts = tempfile::NamedTempFile::new()?;
    let free = || -> Result<Option<u64>> {
        let (true, Some(target)) = (room, &contender.target) else {
            return Ok(None);
        };
        let dir = target.parent().ok_or("a file in no directory")?;
        rustix::fs::syncfs(fs::File::open(dir)?)?;
        let facts = rustix::fs::statvfs(dir)?;
        Ok(Some(facts.f_bfree * facts.f_frsize))
    };
    let before = free()?;
    let printed = must(&mut counter.wrap(contender.command(), counts.path()))?;
    let size = contender.target.as_ref().map(fs::metadata).transpose()?.map(|facts| facts.len());
    let room = before.zip(free()?).map(|(before, after)| before.saturating_sub(after));
    Ok((First { size, room, calls: counter.read(counts.path())? }, printed))
}

impl Contender {
    /// Removes what a run made, so that the disks need no more room than they must.
    fn clear(&self) -> io::Result<()> {
        self.target.as_ref().map_or(Ok(()), fs::remove_file)
    }
}

/// Runs a command from start to end with its output thrown away.
fn timed(command: &mut Command) -> Result<Run> {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let start = Instant::now();
    let ResUse { status, rusage } = command.spawn()?.wait4()?;
    let wall = start.elapsed();
    if !status.success() {
        return Err(format!("{}: {status}", shown(command)).into());
    }
    Ok(Run { wall, cpu: rusage.utime + rusage.stime, peak: rusage.maxrss })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contender::line;
    use std::path::Path;

    fn way(kind: Kind, program: &str, words: &[&str], wrong: bool) -> Contender {
        Contender {
            kind,
            name: program.to_owned(),
            command: line(Path::new(program), words, &[]),
            target: None,
            verify: Box::new(move |_, _| if wrong { Err("wrong".into()) } else { Ok(()) }),
        }
    }

    fn race(wrong: bool) -> Result<Measured> {
        let contenders = vec![
            way(Kind::Qcowtool, "true", &[], wrong),
            way(Kind::Best, "sleep", &["0.2"], false),
        ];
        let goals = vec![Goal::Faster(Kind::Best, 1.0)];
        let raced = Case { name: "a race".to_owned(), moved: None, contenders, goals };
        case(raced, Effort::quick(), Counter::Nothing)
    }

    #[test]
    fn a_wrong_result_ends_the_suite_however_fast_it_came() {
        assert!(race(false).is_ok());
        let error = race(true).err().expect("refused");
        assert_eq!(error.to_string(), "a race, true: wrong");
    }

    #[test]
    fn goals_are_judged_by_the_contender_that_they_name() {
        let run = |wall| Run { wall: Duration::from_millis(wall), cpu: Duration::ZERO, peak: 0 };
        let first = |size| First { size: Some(size), room: None, calls: None };
        let measured = Measured {
            case: race(false).expect("a race").case,
            firsts: vec![first(103), first(100)],
            runs: vec![vec![run(10), run(30), run(20)], vec![run(90), run(50), run(60)]],
        };
        assert_eq!(measured.judge(Goal::Faster(Kind::Best, 3.0)), Some((3.0, true)));
        assert_eq!(measured.judge(Goal::Faster(Kind::Copy, 3.0)), None, "there is no copy");
        assert_eq!(measured.judge(Goal::AtMost(1, 0.3)), Some((1.0 / 3.0, false)));
        assert_eq!(measured.judge(Goal::Size(Kind::Best, 1.02)), Some((1.03, false)));
        assert!(matches!(measured.judge(Goal::Below(Duration::from_millis(21))), Some((_, true))));
    }
}
