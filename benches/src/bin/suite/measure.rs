//! Runs commands and takes their time and memory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use wait4::{ResUse, Wait4};

use crate::Result;

/// Several ways to do the same work. The first is qcowtool's.
pub(crate) struct Case {
    /// What is done.
    pub(crate) name: String,
    /// Whether a run takes milliseconds and can be repeated more often.
    pub(crate) short: bool,
    /// The ways to do it.
    pub(crate) contenders: Vec<Contender>,
    /// What this project promises of the first.
    pub(crate) goal: Option<Goal>,
}

/// One way to do a case's work.
pub(crate) struct Contender {
    /// How it is called in the report.
    pub(crate) name: String,
    /// The program and its arguments.
    pub(crate) command: Vec<PathBuf>,
    /// The file it makes, removed after each run.
    pub(crate) target: Option<PathBuf>,
    /// Looks at what it made or printed, once, after the clock has stopped.
    pub(crate) verify: Verify,
}

/// Judges a command by the file it made and the text it printed.
pub(crate) type Verify = Box<dyn Fn(Option<&Path>, &str) -> Result<()>>;

/// A promise about the first contender of a case.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    /// Its time is at most this part of the second contender's.
    Ratio(f64),
    /// Its time is below this.
    Time(Duration),
}

/// A case with its figures.
pub(crate) struct Measured {
    pub(crate) case: Case,
    /// The runs of each contender, in the case's order.
    pub(crate) runs: Vec<Vec<Run>>,
}

/// Figures of one run of one command.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
    /// Most memory resident at a time, in bytes. Counts pages of mapped files too.
    pub(crate) peak: u64,
}

impl Measured {
    /// Median time of a contender.
    pub(crate) fn wall(&self, contender: usize) -> Duration {
        let mut walls: Vec<_> = self.runs[contender].iter().map(|run| run.wall).collect();
        walls.sort();
        walls[walls.len() / 2]
    }

    /// The most memory that any run of a contender took, in bytes.
    pub(crate) fn peak(&self, contender: usize) -> u64 {
        self.runs[contender].iter().map(|run| run.peak).max().unwrap_or(0)
    }

    /// The first contender's time as a part of another's.
    pub(crate) fn ratio(&self, other: usize) -> f64 {
        self.wall(0).as_secs_f64() / self.wall(other).as_secs_f64()
    }

    /// Whether the goal is met, if there is one.
    pub(crate) fn met(&self) -> Option<bool> {
        self.case.goal.map(|goal| match goal {
            Goal::Ratio(most) => self.ratio(1) <= most,
            Goal::Time(most) => self.wall(0) < most,
        })
    }
}

/// Runs all contenders of a case in alternation; the first round warms up, is verified, and counts
/// for nothing.
pub(crate) fn case(case: Case, runs: usize) -> Result<Measured> {
    for contender in &case.contenders {
        let output = must(&mut contender.command())?;
        (contender.verify)(contender.target.as_deref(), &output)
            .map_err(|error| format!("{}, {}: {error}", case.name, contender.name))?;
        contender.clear()?;
    }
    let rounds = if case.short { runs * 10 } else { runs };
    let mut measured = vec![Vec::with_capacity(rounds); case.contenders.len()];
    for round in 0..rounds {
        let mut order: Vec<_> = (0..case.contenders.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for index in order {
            measured[index].push(timed(&mut case.contenders[index].command())?);
            case.contenders[index].clear()?;
        }
    }
    Ok(Measured { case, runs: measured })
}

impl Contender {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]);
        command
    }

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

/// Runs a command untimed and returns what it printed; a failure carries its complaint.
pub(crate) fn must(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{}: {error}", shown(command)))?;
    if !output.status.success() {
        let (out, err) = (&output.stdout, &output.stderr);
        let said = [out, err].map(|text| String::from_utf8_lossy(text).trim().to_owned()).concat();
        return Err(format!("{}: {}: {said}", shown(command), output.status).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A command as one would type it.
fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
