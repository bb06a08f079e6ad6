//! What a server does, as metrics for Prometheus. `docs/serve.md` lists them.

use std::fmt::{Display, Write};

use nbd::wire::Command;
use nbd::{Export, LATENCY_BOUNDS};
use qcow::Escaped;

/// Requests as the label `command` has them.
const COMMANDS: [(&str, Command); 7] = [
    ("read", Command::Read),
    ("write", Command::Write),
    ("flush", Command::Flush),
    ("trim", Command::Trim),
    ("cache", Command::Cache),
    ("write_zeroes", Command::WriteZeroes),
    ("block_status", Command::BlockStatus),
];

/// The metrics in text format 0.0.4.
pub(super) fn metrics(exports: &[Export]) -> String {
    let mut text = String::new();
    let mut of_export = |name: &str, kind: &str, help: &str, value: &dyn Fn(&Export) -> u64| {
        head(&mut text, name, kind, help);
        for export in exports {
            line(&mut text, name, &[("export", &label(export))], &value(export));
        }
    };
    of_export("size_bytes", "gauge", "Size of the disk.", &Export::size);
    of_export("connections", "gauge", "Clients that have the export now.", &|export| {
        export.stats().connections()
    });
    of_export("connections_total", "counter", "Clients that have had the export.", &|export| {
        export.stats().served()
    });
    of_export("syncs_total", "counter", "Times that the disk was made durable.", &Export::syncs);

    head(&mut text, "request_failures_total", "counter", "Requests that failed or were refused.");
    of_command(&mut text, exports, |text, labels, count| {
        line(text, "request_failures_total", labels, &count.errors);
    });
    head(&mut text, "request_bytes_total", "counter", "Bytes of disk that requests were about.");
    of_command(&mut text, exports, |text, labels, count| {
        line(text, "request_bytes_total", labels, &count.bytes);
    });
    let name = "request_duration_seconds";
    head(&mut text, name, "histogram", "From when a request was there until it was done.");
    of_command(&mut text, exports, |text, labels, count| {
        let mut sum: u64 = 0;
        let bounds = LATENCY_BOUNDS.iter().map(|bound| bound.as_secs_f64().to_string());
        for (bound, count) in bounds.chain(["+Inf".to_owned()]).zip(count.latency) {
            sum = sum.saturating_add(count);
            let labels = [labels, &[("le", &bound)]].concat();
            line(text, "request_duration_seconds_bucket", &labels, &sum);
        }
        line(text, "request_duration_seconds_sum", labels, &count.time.as_secs_f64());
        line(text, "request_duration_seconds_count", labels, &sum);
    });
    text
}

/// A series for each export and command: all of them, so that one that comes up is a change of a number.
fn of_command(
    text: &mut String,
    exports: &[Export],
    mut write: impl FnMut(&mut String, &[(&str, &str)], nbd::Count),
) {
    for export in exports {
        let name = label(export);
        for (command, code) in COMMANDS {
            let labels = [("export", name.as_str()), ("command", command)];
            write(text, &labels, export.stats().of(code));
        }
    }
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP qcowtool_serve_{name} {help}");
    let _ = writeln!(text, "# TYPE qcowtool_serve_{name} {kind}");
}

fn line(text: &mut String, name: &str, labels: &[(&str, &str)], value: &dyn Display) {
    let labels: Vec<String> =
        labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
    let _ = writeln!(text, "qcowtool_serve_{name}{{{}}} {value}", labels.join(","));
}

/// An export's name as a label's value may hold it.
fn label(export: &Export) -> String {
    Escaped(export.name()).to_string().replace('\\', "\\\\").replace('"', "\\\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn names_of_exports_cannot_add_lines_or_labels() {
        use qcow::chain::{Chain, Format};
        let storage = Arc::new(qcow::io::MemoryStorage::new(vec![0; 512]));
        let chain = Chain::builder().layer("m", storage, Format::Raw).open().unwrap();
        let backend = Box::new(nbd::ChainBackend::new(chain));
        let text = metrics(&[Export::new("a\"b\\c\nqcowtool_serve_size_bytes 7", backend)]);
        let lines = text.lines().filter(|line| line.contains("size_bytes 7")).collect::<Vec<_>>();
        assert!(lines.iter().all(|line| line.contains("{export=\"a\\\"b")), "{lines:?}");
        assert_eq!(text.lines().filter(|line| line.contains("serve_size_bytes{")).count(), 1);
    }
}
