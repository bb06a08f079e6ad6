//! The figures as people read them, and as programs do.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use crate::disks::Disks;
use crate::machine::Machine;
use crate::measure::{Goal, Measured};

/// Most memory that any qcowtool command may take, in bytes.
const MOST_MEMORY: u64 = 128 << 20;

/// The report as Markdown.
pub(crate) fn markdown(
    machine: &Machine,
    disks: &Disks,
    runs: usize,
    results: &[Measured],
) -> String {
    let Machine { processor, cores, kernel, load, file_system, qcowtool, qemu } = machine;
    let mut text = format!(
        "{qcowtool} beside {qemu}\n\n\
         {processor}, {cores} cores, Linux {kernel}, load {load} before the start, files on {file_system}. Chain with {} MiB of \
         data. Medians of {runs} runs in alternation ({} for those of milliseconds), warm cache, \
         each result verified. A ratio below 1 means that qcowtool is faster.\n\n\
         | what | how | time | CPU time | peak memory | qcowtool's part | goal |\n\
         |---|---|--:|--:|--:|--:|---|\n",
        disks.data >> 20,
        runs * 10,
    );
    for result in results {
        for index in 0..result.case.contenders.len() {
            text += &row(result, index);
        }
    }
    let peak = results.iter().map(|result| result.peak(0)).max().unwrap_or(0);
    let verdict = verdict(peak < MOST_MEMORY);
    let (peak, most) = (mib(peak), mib(MOST_MEMORY));
    let _ =
        writeln!(text, "| all of the above | qcowtool | | | {peak} | | below {most}: {verdict} |");
    text
}

fn row(result: &Measured, index: usize) -> String {
    let first = index == 0;
    let what = if first { result.case.name.as_str() } else { "" };
    let ratio = if first { String::new() } else { part(result.ratio(index)) };
    let goal = match (first, result.case.goal, result.met()) {
        (true, Some(Goal::Ratio(most)), Some(met)) => {
            let other = &result.case.contenders[1].name;
            format!("at most {most} of {other}: {}", verdict(met))
        }
        (true, Some(Goal::Time(most)), Some(met)) => {
            format!("below {}: {}", time(most), verdict(met))
        }
        _ => String::new(),
    };
    let mut cpu: Vec<_> = result.runs[index].iter().map(|run| run.cpu).collect();
    cpu.sort();
    format!(
        "| {what} | {} | {} | {} | {} | {ratio} | {goal} |\n",
        result.case.contenders[index].name,
        time(result.wall(index)),
        time(cpu[cpu.len() / 2]),
        mib(result.peak(index)),
    )
}

/// The report with every run, times in seconds, memory in bytes.
pub(crate) fn json(machine: &Machine, results: &[Measured]) -> Value {
    let cases = results.iter().map(|result| {
        let ways = result.case.contenders.iter().zip(&result.runs).map(|(contender, runs)| {
            let runs = runs.iter().map(|run| {
                json!({
                    "wall": run.wall.as_secs_f64(),
                    "cpu": run.cpu.as_secs_f64(),
                    "peak-memory": run.peak,
                })
            });
            json!({ "name": contender.name, "runs": runs.collect::<Vec<_>>() })
        });
        json!({
            "name": result.case.name,
            "goal-met": result.met(),
            "contenders": ways.collect::<Vec<_>>(),
        })
    });
    json!({
        "machine": {
            "processor": machine.processor,
            "cores": machine.cores,
            "kernel": machine.kernel,
            "load-before": machine.load,
            "file-system": machine.file_system,
        },
        "versions": { "qcowtool": machine.qcowtool, "qemu-img": machine.qemu },
        "cases": cases.collect::<Vec<_>>(),
    })
}

fn verdict(met: bool) -> &'static str {
    if met { "PASS" } else { "FAIL" }
}

/// Two digits that say something.
fn part(ratio: f64) -> String {
    if ratio < 0.1 { format!("{ratio:.4}") } else { format!("{ratio:.2}") }
}

fn time(time: Duration) -> String {
    match time.as_secs_f64() {
        seconds if seconds < 1.0 => format!("{:.1} ms", seconds * 1e3),
        seconds => format!("{seconds:.2} s"),
    }
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64)
}
