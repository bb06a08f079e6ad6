//! The figures as people read them, and as programs do.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use crate::chart::Chart;
use crate::contender::Kind;
use crate::findings::Findings;
use crate::machine::Machine;
use crate::measure::{Goal, Measured};

/// Most memory that any qcowtool command may take, in bytes.
const MOST_MEMORY: u64 = 128 << 20;

/// The report as Markdown, which shows the charts.
pub(crate) fn markdown(findings: &Findings, charts: &[Chart]) -> String {
    let mut text = format!("# Large disks\n\n{}\n", machine(&findings.machine));
    for remark in &findings.remarks {
        let _ = writeln!(text, "- {remark}");
    }
    for Chart { file, title, .. } in charts {
        let _ = write!(text, "\n![{title}]({file})\n");
    }
    text += "\n| what | how | time | CPU time | peak memory | system calls | result | qcowtool is so many times as fast | goals |\n\
             |---|---|--:|--:|--:|--:|--:|--:|---|\n";
    for result in &findings.results {
        for index in 0..result.case.contenders.len() {
            text += &row(result, index);
        }
    }
    let peak = findings.results.iter().map(|result| result.peak(0)).max().unwrap_or(0);
    let (verdict, peak, most) = (verdict(peak < MOST_MEMORY), mib(peak), mib(MOST_MEMORY));
    let _ = writeln!(
        text,
        "| all of the above | qcowtool | | | {peak} | | | | below {most}: {verdict} |"
    );
    text
}

fn machine(machine: &Machine) -> String {
    let Machine { date, processor, cores, memory, kernel, load, file_system, qcowtool, qemu } =
        machine;
    format!(
        "{qcowtool} and {qemu}, {date}. {processor}, {cores} cores, {} GiB of memory, Linux {kernel}, load {load} before the \
         start, files on {file_system}.\n\n\
         Written by `make bench`; [how it is measured](../../benches/README.md). Medians of whole commands, run \
         alternately with a warm cache. CPU time is that of all threads, in user mode and in the kernel. Each result was verified.\n",
        memory >> 30,
    )
}

fn row(result: &Measured, index: usize) -> String {
    let (contender, first) = (&result.case.contenders[index], index == 0);
    let (what, speed) = if first {
        (result.case.name.as_str(), String::new())
    } else {
        ("", digits(result.speed(index)))
    };
    let goals: Vec<_> = match first {
        true => result.case.goals.iter().map(|goal| judged(result, *goal)).collect(),
        false => Vec::new(),
    };
    let facts = result.firsts[index];
    format!(
        "| {what} | {} | {} | {} | {} | {} | {} | {speed} | {} |\n",
        contender.name,
        time(result.median(index, |run| run.wall)),
        time(result.median(index, |run| run.cpu)),
        mib(result.peak(index)),
        facts.calls.map_or_else(String::new, |calls| calls.to_string()),
        facts.size.map_or_else(String::new, mib),
        goals.join("; "),
    )
}

/// A goal in words, with the figure and the verdict.
fn judged(result: &Measured, goal: Goal) -> String {
    let words = match goal {
        Goal::Faster(than, least) => format!("at least {least} times {}", other(than)),
        Goal::AtMost(index, most) => {
            format!("at most {most} times the time of {}", result.case.contenders[index].name)
        }
        Goal::Size(than, most) => format!("at most {most} times the size of {}", other(than)),
        Goal::Below(most) => format!("below {}", time(most)),
        Goal::Room(most) => format!("takes less room than {}", mib(most)),
    };
    let Some((figure, met)) = result.judge(goal) else {
        return format!("{words}: not measured");
    };
    let figure = match goal {
        Goal::Below(_) => String::new(),
        Goal::Room(_) => format!(" ({})", mib(figure as u64)),
        Goal::Faster(..) => format!(" ({})", digits(figure)),
        Goal::AtMost(..) | Goal::Size(..) => format!(" ({figure:.3})"),
    };
    format!("{words}{figure}: {}", verdict(met))
}

fn other(kind: Kind) -> &'static str {
    match kind {
        Kind::Copy => "the plain copy",
        Kind::Best => "qemu-img at its best",
        Kind::Qcowtool | Kind::Default | Kind::Aside => "the other",
    }
}

/// The report with every run, times in seconds, memory in bytes.
pub(crate) fn json(findings: &Findings) -> Value {
    let cases = findings.results.iter().map(|result| {
        let ways = (0..).zip(&result.case.contenders).map(|(index, contender): (usize, _)| {
            let runs = result.runs[index].iter().map(|run| {
                json!({
                    "wall": run.wall.as_secs_f64(),
                    "cpu": run.cpu.as_secs_f64(),
                    "peak-memory": run.peak,
                })
            });
            json!({
                "name": contender.name,
                "result-size": result.firsts[index].size,
                "room-taken": result.firsts[index].room,
                "system-calls": result.firsts[index].calls,
                "runs": runs.collect::<Vec<_>>(),
            })
        });
        let goals = result.case.goals.iter().map(|goal| judged(result, *goal));
        json!({
            "name": result.case.name,
            "goals": goals.collect::<Vec<_>>(),
            "contenders": ways.collect::<Vec<_>>(),
        })
    });
    let machine = &findings.machine;
    json!({
        "machine": {
            "date": machine.date,
            "processor": machine.processor,
            "cores": machine.cores,
            "memory": machine.memory,
            "kernel": machine.kernel,
            "load-before": machine.load,
            "file-system": machine.file_system,
        },
        "versions": { "qcowtool": machine.qcowtool, "qemu-img": machine.qemu },
        "remarks": findings.remarks,
        "cases": cases.collect::<Vec<_>>(),
    })
}

fn verdict(met: bool) -> &'static str {
    if met { "PASS" } else { "FAIL" }
}

/// As many digits as say something.
fn digits(ratio: f64) -> String {
    if ratio < 10.0 { format!("{ratio:.2}") } else { format!("{ratio:.0}") }
}

fn time(time: Duration) -> String {
    match time.as_secs_f64() {
        seconds if seconds < 1.0 => format!("{:.1} ms", seconds * 1e3),
        seconds => format!("{seconds:.2} s"),
    }
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
