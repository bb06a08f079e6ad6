//! The tables.

use super::measure::{Contender, Figures};
use super::rows::Row;

/// What is said before them.
pub(crate) fn head() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let qemu = fixtures::qemu_img(&["--version"]);
    let qemu = qemu.lines().next().unwrap_or_default().to_owned();
    format!(
        "# Writing in place\n\nRequests of 4 KiB to a disk of 512 MiB, where the row says nothing else, in memory (tmpfs), where a \
         sync costs next to nothing. {cores} cores; {qemu}, at depth 32; raw is `pread` and `pwrite` on a file. Medians of three \
         rounds in alternation. The machine does other work too: processor time for a request, syncs and bytes are the figures \
         to compare; requests per second and latencies are those of that hour. Written by `make bench-writing`.\n"
    )
}

/// What is said after them.
pub(crate) const TAIL: &str = include_str!("goals.md");

/// One row of the design as a table.
pub(crate) fn row(row: &Row, found: &[(Contender, Option<Figures>)]) -> String {
    let mut text = format!(
        "\n## {}\n\n| by | µs of processor | per second | p50, p99, p99.9 in µs | syncs | written | peak memory |\n|---|--:|--:|---|--:|--:|--:|\n",
        row.name
    );
    for (contender, figures) in found {
        let by = match contender {
            Contender::Raw(1) => "raw, one thread".to_owned(),
            Contender::Ours(1) => "qcow, one thread".to_owned(),
            Contender::Raw(threads) => format!("raw, {threads} threads"),
            Contender::Ours(threads) => format!("qcow, {threads} threads"),
            Contender::Qemu => "qemu-img bench".to_owned(),
        };
        let Some(figures) = figures else {
            text.push_str(&format!("| {by} | cannot mix requests | | | | | |\n"));
            continue;
        };
        let latencies = figures
            .latencies
            .map_or_else(|| "not told".to_owned(), |[a, b, c]| format!("{a:.1}, {b:.1}, {c:.1}"));
        let syncs = figures.syncs.map_or_else(String::new, |syncs| syncs.to_string());
        text.push_str(&format!(
            "| {by} | {:.2} | {:.0} | {latencies} | {syncs} | {:.2} MB | {:.0} MiB |\n",
            figures.processor,
            figures.per_second,
            figures.written as f64 / 1e6,
            figures.memory as f64 / 1048576.0
        ));
    }
    text
}
