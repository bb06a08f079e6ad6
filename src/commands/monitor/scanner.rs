//! Looks, shows what was found, and waits until there is a reason to look again.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use migrate::audit::{Known, Options, Report, Scan, Survey, report, within};
use qcow::io::{OutputFile, Replace};
use qcow::{CancelToken, Error};

use super::annotator::Waker;
use super::board::{Board, Cause, Shown};
use super::pace::Pace;
use super::page;
use super::watching::{Bell, Waited, Watching, directories};
use crate::commands::audit::{hosts, look, prometheus};
use crate::output::{eprint_line, to_json};
use crate::picture::{self, Graph};
use crate::remedies::reworded;

/// Who may read the textfile: its collector is another user.
const READABLE: u32 = 0o644;

/// What is looked at, and where it is shown.
#[derive(Debug)]
pub(super) struct Scanner {
    pub(super) paths: Vec<PathBuf>,
    pub(super) uris: Vec<String>,
    pub(super) options: Options,
    pub(super) interval: Duration,
    pub(super) textfile: Option<PathBuf>,
    /// Pages and pictures are made only if HTTP is served.
    pub(super) serves: bool,
    pub(super) board: Arc<Board>,
    pub(super) bell: Arc<Bell>,
    pub(super) cancel: CancelToken,
    /// Is told after each scan, if guests are to be annotated.
    pub(super) annotator: Option<Waker>,
}

impl Scanner {
    /// Looks once.
    ///
    /// # Errors
    /// If nothing could be looked at, or the textfile could not be written.
    pub(super) fn once(&self) -> migrate::Result<()> {
        let start = Instant::now();
        let survey = self.look(None)?;
        if let Some(first) = survey.unseen.iter().find(|unseen| unseen.asked)
            && survey.images.is_empty()
            && survey.domains.is_empty()
            && survey.directories == 0
        {
            let error = Error::usage(format!("nothing could be looked at: {}", first.why));
            return Err(error.file(&first.path).into());
        }
        self.show(survey, Cause::Interval, start)?;
        self.write_textfile()?;
        Ok(())
    }

    /// Looks until it is told to stop.
    ///
    /// # Errors
    /// If it is not possible to wait. Whatever goes wrong with a scan is said, and the next one is made.
    pub(super) fn run(&self) -> std::io::Result<()> {
        let mut pace = Pace::new(self.interval);
        let mut watching = Watching::new(self.textfile.as_deref());
        let mut known = Known::default();
        let mut said = String::new();
        let mut cause = Cause::Interval;
        loop {
            let start = Instant::now();
            let mut unseen_before = false;
            let began = SystemTime::now();
            // What no event tells of, such as a write by another host, is found by the interval.
            match self.look(Some(&known).filter(|_| cause == Cause::Event)) {
                Ok(survey) => {
                    known = Known::of(&survey, nanoseconds(began));
                    // Before the events that came meanwhile are read: none may be lost.
                    unseen_before = watching.watch(&directories(&survey));
                    let asked = survey.unseen.iter().find(|unseen| unseen.asked);
                    let problem = asked.map(|u| format!("{}: {}", u.path.display(), u.why));
                    self.complain_once(&mut said, problem.unwrap_or_default());
                    let mut figures = self.board.figures();
                    (figures.watched, figures.unwatched) = (watching.len(), watching.left_out);
                    drop(figures);
                    if let Err(error) = self.show(survey, cause, start) {
                        self.failed(&mut said, &error.to_string());
                    }
                }
                Err(_) if self.cancel.check().is_err() => return Ok(()),
                Err(error) => self.failed(&mut said, &error.to_string()),
            }
            if let Some(annotator) = &self.annotator {
                annotator.wake();
            }
            if let Err(error) = self.write_textfile() {
                let mut figures = self.board.figures();
                figures.textfile_failures = figures.textfile_failures.saturating_add(1);
                drop(figures);
                self.complain_once(&mut said, error.to_string());
            }
            pace.scanned(start, Instant::now());
            if unseen_before {
                pace.event(Instant::now());
            }
            cause = loop {
                let Some((due, by_event)) = pace.due() else { break Cause::Interval };
                match watching.wait(due, &self.bell)? {
                    Waited::Event => pace.event(Instant::now()),
                    Waited::Time if by_event => break Cause::Event,
                    Waited::Time => break Cause::Interval,
                    Waited::Bell => return Ok(()),
                }
            };
        }
    }

    fn look(&self, known: Option<&Known>) -> migrate::Result<Survey> {
        let scan = Scan::new(&self.cancel);
        let scan = if let Some(known) = known { scan.knowing(known) } else { scan };
        look(scan, &self.paths, hosts(&self.uris), None, None, &self.cancel)
    }

    fn failed(&self, said: &mut String, why: &str) {
        let mut figures = self.board.figures();
        figures.failures = figures.failures.saturating_add(1);
        figures.complete = false;
        drop(figures);
        self.complain_once(said, why.to_owned());
    }

    /// Says what is wrong when it begins to be wrong, not with every scan.
    fn complain_once(&self, said: &mut String, problem: String) {
        if !problem.is_empty() && *said != problem {
            eprint_line(format_args!("qcowtool: {problem}"));
        }
        *said = problem;
    }

    /// Makes everything that a client may request.
    fn show(&self, survey: Survey, cause: Cause, start: Instant) -> qcow::Result<()> {
        let complete = survey.unseen.iter().all(|unseen| !unseen.asked);
        let survey = within(survey);
        let report = reworded(report(&survey, &self.options), "monitor");
        let now = SystemTime::now();
        let shown = self.forms(&survey, &report, now)?;
        self.board.show(shown);
        let mut figures = self.board.figures();
        figures.complete = complete;
        figures.last = Some(now);
        figures.duration = start.elapsed();
        let count = figures.scans.entry(cause).or_default();
        *count = count.saturating_add(1);
        Ok(())
    }

    fn forms(&self, survey: &Survey, report: &Report, now: SystemTime) -> qcow::Result<Shown> {
        let metrics = prometheus::metrics(report);
        if !self.serves {
            return Ok(Shown {
                metrics,
                json: Arc::default(),
                page: Arc::default(),
                graph: Arc::default(),
            });
        }
        let json = to_json(report)
            .map_err(|error| Error::io("could not write the report as JSON", error.into()))?;
        let graph = picture::draw(picture::Kind::Svg, &Graph::new(survey, report))?;
        Ok(Shown {
            metrics,
            json: json.into_bytes().into(),
            page: page::page(report, now).into_bytes().into(),
            graph: graph.into(),
        })
    }

    fn write_textfile(&self) -> qcow::Result<()> {
        let Some(path) = self.textfile.as_deref() else { return Ok(()) };
        write(path, self.board.metrics().as_bytes())
    }
}

/// Since 1970.
fn nanoseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(0)
}

/// Replaces a file by another that is whole.
fn write(path: &Path, bytes: &[u8]) -> qcow::Result<()> {
    let output = OutputFile::create(path, Replace::InUse)?;
    output.write_at(bytes, 0)?;
    std::fs::set_permissions(output.temporary_path(), PermissionsExt::from_mode(READABLE))
        .map_err(|error| Error::io("could not let others read it", error).file(path))?;
    output.publish().map(drop)
}
