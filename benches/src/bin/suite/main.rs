//! Runs qcowtool's commands beside `qemu-img`'s on the same disks, in alternation, and prints medians,
//! ratios and peak memory. What a command wrote is verified, so that nobody wins by being wrong.

mod cases;
mod copy;
mod disks;
mod machine;
mod measure;
mod report;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// Any failure: the suite has one way to deal with it, which is to say so and stop.
type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[derive(Debug, Parser)]
#[command(about = "Runs qcowtool beside qemu-img and prints medians, ratios and peak memory")]
struct Cli {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    options: Options,
}

/// Parts of the suite that run as processes of their own, because what a process has held in memory
/// would count in the figures of the commands it starts.
#[derive(Debug, Subcommand)]
enum Part {
    /// Make the big chain
    #[command(hide = true)]
    Chain { dir: PathBuf, depth: usize, bytes: u64 },
    /// Copy a file with plain positioned reads and writes
    #[command(hide = true)]
    Copy { from: PathBuf, to: PathBuf },
}

#[derive(Debug, Args)]
struct Options {
    /// The qcowtool to measure [default: the one beside this program]
    #[arg(long, value_name = "PATH")]
    qcowtool: Option<PathBuf>,
    /// Where the disks are made and written; /dev/shm measures the programs, a disk the disk
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// Timed runs of each command that moves data (short commands run ten times as often)
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Data in the big chain, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 2560)]
    data: u64,
    /// A quick look: 256 MiB of data, three runs. The stated goals are not judged by it
    #[arg(long)]
    quick: bool,
    /// Run only the cases whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Also write all figures, run by run, to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.part {
        Some(Part::Chain { dir, depth, bytes }) => disks::write_chain(&dir, depth, bytes),
        Some(Part::Copy { from, to }) => copy::copy(&from, &to),
        None => run(cli.options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("suite: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut options: Options) -> Result<()> {
    if options.quick {
        (options.data, options.runs) = (256, 3);
    }
    let qcowtool = match &options.qcowtool {
        Some(path) => std::path::absolute(path)?,
        None => std::env::current_exe()?.with_file_name("qcowtool"),
    };
    let machine = machine::Machine::look(&qcowtool, &options.dir)?;
    let dir = tempfile::Builder::new().prefix("qcowtool-suite.").tempdir_in(&options.dir)?;
    let metadata = if options.quick { "64G" } else { "1T" };
    let disks = disks::Disks::make(dir.path(), options.data << 20, metadata)?;

    let mut results = Vec::new();
    for case in cases::all(&qcowtool, &disks)? {
        if case.name.contains(&options.only) {
            eprintln!("{} ...", case.name);
            results.push(measure::case(case, options.runs)?);
        }
    }
    print!("{}", report::markdown(&machine, &disks, options.runs, &results));
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&report::json(&machine, &results))?;
        std::fs::write(path, text + "\n")?;
    }
    Ok(())
}
