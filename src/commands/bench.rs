//! `qcowtool bench`: measures requests to an image.

use std::path::PathBuf;

use clap::Args;
use qcow::ops::bench::{BenchJob, BenchOptions};

use crate::args::{CacheArgs, Common, SourceArgs, exit_codes};
use crate::failure::Failure;
use crate::output::{OutputFormat, print, print_json};
use crate::progress::When;
use crate::sandbox::Plan;
use crate::session::{Operation, Session, changing};
use crate::size;

/// Arguments of `bench`.
#[derive(Debug, Args)]
#[command(after_help = concat!(
    "Requests are sent by as many threads as there are requests at once. They go on at the start of the disk where they \
reach its end; one that does not fit before the end fails. With -w the content of the disk is lost.

Examples:
  qcowtool bench vm.qcow2
  qcowtool bench -c 10000 -d 4 -s 64k -S 1M vm.qcow2
  qcowtool bench -w --pattern 0x55 --flush-interval 64 scratch.qcow2

", exit_codes!(
"  0    done
  1    refused, or a request failed")))]
pub(crate) struct Bench {
    #[command(flatten)]
    pub(crate) common: Common,

    /// Number of requests
    #[arg(short, long, value_name = "N", default_value_t = 75_000)]
    count: u64,

    /// Requests at once, each of its own thread, at most 256
    #[arg(short, long, value_name = "N", default_value_t = 64,
          value_parser = clap::value_parser!(u64).range(1..))]
    depth: u64,

    /// With -w: flush whenever so many requests have been sent, at least as many as go at once
    #[arg(long, value_name = "N", default_value_t = 0, requires = "write")]
    flush_interval: u64,

    /// Accepted for compatibility with qemu-img: requests go on during a flush
    #[arg(long)]
    _no_drain: bool,

    /// Accepted for compatibility with qemu-img; has no effect
    #[arg(short = 'i', long = "aio", value_name = "AIO", value_parser = ["threads", "native", "io_uring"])]
    _aio: Option<String>,

    /// Accepted for compatibility with qemu-img; has no effect
    #[arg(short = 'n', long = "native")]
    _native: bool,

    /// Where the first request starts
    #[arg(short, long, value_name = "SIZE", default_value = "0", value_parser = size::parse)]
    offset: u64,

    /// With -w: the byte to write
    #[arg(long, value_name = "BYTE", default_value = "0", value_parser = byte)]
    pattern: u8,

    /// Bytes of a request
    #[arg(short = 's', long = "buffer-size", value_name = "SIZE", default_value = "4k", value_parser = size::parse)]
    size: u64,

    /// Bytes from the start of a request to that of the next [default: the size of a request]
    #[arg(short = 'S', long = "step-size", value_name = "SIZE", value_parser = size::parse)]
    step: Option<u64>,

    /// Write; the content of the disk is lost
    #[arg(short, long, conflicts_with = "force_share")]
    write: bool,

    #[command(flatten)]
    _cache: CacheArgs,
    #[command(flatten)]
    source: SourceArgs,

    /// The image
    #[arg(value_name = "PATH")]
    path: PathBuf,
}

fn byte(text: &str) -> Result<u8, String> {
    let number = size::parse(text).map_err(|error| error.to_string())?;
    u8::try_from(number).map_err(|_| "a byte is 0 to 255".to_owned())
}

impl Bench {
    /// Sends the requests and prints how long they took.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let step = self.step.unwrap_or(self.size);
        let options = BenchOptions::default()
            .count(self.count)
            .depth(usize::try_from(self.depth).unwrap_or(usize::MAX))
            .size(self.size)
            .step(step)
            .offset(self.offset)
            .write(self.write.then_some(self.pattern))
            .flush_interval(self.flush_interval);
        let operation = Operation::showing(When::Never)?;
        let open = self.source.open_options(None);
        let mut plan = Plan::new().chain(&self.path, &open);
        if self.write {
            plan = changing(plan, &self.path, &open);
        }
        let session = Session::start(&self.common, plan)?;
        let text = self.common.format() == OutputFormat::Human;
        let outcome = operation.run(|_, cancel| {
            let job = BenchJob::begin(&self.path, &open, &options)?;
            session.all_is_open()?;
            if text {
                // What cannot be printed is found at the end.
                let _ = print(self.announced(step));
            }
            job.run(cancel)
        })?;
        match text {
            false => print_json(&outcome),
            true => print(format_args!("Run completed in {:.3} seconds.\n", outcome.seconds)),
        }
    }

    /// In the words of `qemu-img bench`.
    fn announced(&self, step: u64) -> String {
        let Self { count, size, depth, offset, flush_interval, .. } = self;
        let kind = if self.write { "write" } else { "read" };
        let mut text = format!(
            "Sending {count} {kind} requests, {size} bytes each, {depth} in parallel (starting at offset {offset}, step size {step})\n"
        );
        if *flush_interval > 0 {
            text.push_str(&format!("Sending flush every {flush_interval} requests\n"));
        }
        text
    }
}
