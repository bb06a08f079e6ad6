//! qcowtool's benchmarks on large disks: whole commands beside `qemu-img`'s on the same disks, in
//! alternation, with medians, CPU time, peak memory and system calls. What a command wrote is verified,
//! so that nobody wins by being wrong. How to run it and how to read its figures: `benches/README.md`.
//!
//! ```text
//! scenarios (disks and cases as values) -> measure (runs them) -> report, chart (values to text)
//! ```

mod chart;
mod command;
mod contender;
mod copy;
mod count;
mod disks;
mod failure;
mod findings;
mod machine;
mod measure;
mod mount;
mod report;
mod scenarios;
mod setting;
mod verify;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::{Args, Parser, Subcommand};

use crate::count::Counter;
use crate::failure::Result;
use crate::findings::Findings;
use crate::machine::Machine;
use crate::measure::Effort;
use crate::scenarios::{Made, SCENARIOS, Scenario};
use crate::setting::{Setting, Sizes};

#[derive(Debug, Parser)]
#[command(about = "Runs qcowtool beside qemu-img on large disks: medians, ratios, CPU, memory")]
struct Cli {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    options: Options,
    /// What `cargo bench` adds to every command line
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

/// Parts of the suite that run as processes of their own, because what a process has held in memory
/// would count in the figures of the commands it starts.
#[derive(Debug, Subcommand)]
enum Part {
    /// Make a fragmented chain
    #[command(hide = true)]
    Chain { dir: PathBuf, depth: usize, bytes: u64 },
    /// Make a raw disk without a hole
    #[command(hide = true)]
    Dense { path: PathBuf, bytes: u64 },
    /// Copy a file's data with plain positioned reads and writes
    #[command(hide = true)]
    Copy { from: PathBuf, to: PathBuf },
}

#[derive(Debug, Args)]
struct Options {
    /// The qcowtool to measure [default: the one built beside this program]
    #[arg(long, value_name = "PATH")]
    qcowtool: Option<PathBuf>,
    /// Where the disks are made and written; /dev/shm measures the programs, a disk the disk
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// Seconds that the timed runs of one case may take, at least three runs of each command
    #[arg(long, value_name = "N", default_value_t = 20)]
    seconds: u64,
    /// Data in the big chains, in MiB; the other disks are in proportion
    #[arg(long, value_name = "MIB", default_value_t = 2560)]
    data: u64,
    /// A first look in at most two minutes: a tenth of the data. The stated goals are not judged by it
    #[arg(long)]
    quick: bool,
    /// Run only these scenarios
    #[arg(long, value_name = "NAME,...", value_delimiter = ',',
          value_parser = clap::builder::PossibleValuesParser::new(SCENARIOS.iter().map(|s| s.name)))]
    only: Vec<String>,
    /// Write the report (README.md), the charts (SVG) and every run (figures.json) into this directory
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
}

/// The program: reads its arguments, runs, prints.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.part {
        Some(Part::Chain { dir, depth, bytes }) => disks::write_chain(&dir, depth, bytes),
        Some(Part::Dense { path, bytes }) => disks::write_dense(&path, bytes),
        Some(Part::Copy { from, to }) => copy::copy(&from, &to),
        None => mount::in_own_namespace().and_then(|()| run(&cli.options)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("suite: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let start = Instant::now();
    let qcowtool = qcowtool(options.qcowtool.as_deref())?;
    let (sizes, effort) = if options.quick {
        (Sizes::quick(), Effort::quick())
    } else {
        (Sizes::of(options.data << 20), Effort::of(options.seconds))
    };
    let counter = Counter::find();
    let mut findings = Findings {
        machine: Machine::look(&qcowtool, &options.dir)?,
        remarks: vec![counter.remark().to_owned()],
        results: Vec::new(),
    };
    let all = tempfile::Builder::new().prefix("qcowtool-suite.").tempdir_in(&options.dir)?;
    for scenario in &SCENARIOS {
        if options.only.is_empty() || options.only.iter().any(|name| name == scenario.name) {
            let setting =
                Setting { qcowtool: qcowtool.clone(), dir: all.path().join(scenario.name), sizes };
            measured(scenario, &setting, effort, counter, &mut findings)?;
            eprintln!("  ({} s since the start)", start.elapsed().as_secs());
        }
    }
    if options.quick {
        findings.remarks.push("A quick run: too short to judge goals by.".to_owned());
    }
    print!("{}", report::markdown(&findings, &[]));
    if let Some(dir) = &options.report {
        write(dir, &findings)?;
    }
    Ok(())
}

fn write(dir: &Path, findings: &Findings) -> Result<()> {
    fs::create_dir_all(dir)?;
    let charts = chart::all(&findings.results)?;
    for chart in &charts {
        fs::write(dir.join(chart.file), &chart.svg)?;
    }
    fs::write(dir.join("README.md"), report::markdown(findings, &charts))?;
    let figures = serde_json::to_string_pretty(&report::json(findings))?;
    fs::write(dir.join("figures.json"), figures + "\n")?;
    eprintln!("wrote README.md, figures.json and {} charts to {}", charts.len(), dir.display());
    Ok(())
}

/// Makes a scenario's disks, measures its cases and removes the disks: the next ones need the room.
fn measured(
    scenario: &Scenario,
    setting: &Setting,
    effort: Effort,
    counter: Counter,
    findings: &mut Findings,
) -> Result<()> {
    eprintln!("{}: making the disks ...", scenario.name);
    fs::create_dir(&setting.dir)?;
    match (scenario.make)(setting)? {
        Made::Skipped(why) => {
            eprintln!("SKIPPED: {}: {why}", scenario.name);
            findings.remarks.push(format!("SKIPPED: {}: {why}.", scenario.name));
        }
        Made::Cases { cases, remark, mount } => {
            for case in cases {
                eprintln!("  {} ...", case.name);
                findings.results.push(measure::case(case, effort, counter)?);
            }
            findings.remarks.extend(remark);
            drop(mount);
        }
    }
    Ok(fs::remove_dir_all(&setting.dir)?)
}

/// The program to measure: the one named, or the one built beside this program. `cargo bench` keeps its
/// programs one directory further down.
fn qcowtool(named: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = named {
        return Ok(std::path::absolute(path)?);
    }
    let here = std::env::current_exe()?;
    let places = here.ancestors().skip(1).take(2).map(|dir| dir.join("qcowtool"));
    places.into_iter().find(|path| path.is_file()).ok_or_else(|| {
        "no qcowtool beside this program: 'cargo build --release -p qcowtool' makes it, --qcowtool names one".into()
    })
}
