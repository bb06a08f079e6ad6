//! A report as metrics in the text format of Prometheus, for a textfile collector.

use std::collections::HashMap;
use std::fmt::Write;

use migrate::audit::{Code, Finding, Report, Severity};

use crate::output::shown;

/// The metrics; `docs/audit.md` lists them.
pub(in crate::commands) fn metrics(report: &Report) -> String {
    let mut text = String::new();
    let summary = &report.summary;
    let gauges = [
        ("images", "Images that were found.", summary.images),
        ("overlays", "Images with a backing file.", summary.overlays),
        ("domains", "Domains of the hosts that were asked.", summary.domains),
        ("deepest_chain_images", "Images of the deepest chain.", summary.deepest),
        ("allocated_bytes", "Bytes allocated for all images.", summary.allocated),
        ("shared_bytes", "Bytes that bases save.", summary.shared),
    ];
    for (name, help, value) in gauges {
        head(&mut text, name, help);
        let _ = writeln!(text, "qcowtool_audit_{name} {value}");
    }
    head(&mut text, "findings", "Findings by severity and code.");
    let mut counts: HashMap<(Severity, Code), usize> = HashMap::new();
    for Finding { severity, code, .. } in &report.findings {
        let count = counts.entry((*severity, *code)).or_default();
        *count = count.saturating_add(1);
    }
    // All of them, so that one that comes up is a change of a number and not a new series.
    for severity in [Severity::Error, Severity::Warning, Severity::Info] {
        for code in Code::ALL {
            let _ = writeln!(
                text,
                "qcowtool_audit_findings{{severity=\"{}\",code=\"{}\"}} {}",
                severity.as_str(),
                code.as_str(),
                counts.get(&(severity, *code)).copied().unwrap_or(0)
            );
        }
    }
    let of_base = [
        ("base_users", "Chains that end in the base."),
        ("base_shared_bytes", "Bytes that the base saves."),
    ];
    for (nth, (name, help)) in of_base.into_iter().enumerate() {
        head(&mut text, name, help);
        for base in &report.bases {
            let value = if nth == 0 { base.users } else { base.shared };
            let host = base.host.as_deref().unwrap_or_default();
            let _ = writeln!(
                text,
                "qcowtool_audit_{name}{{host=\"{}\",path=\"{}\"}} {value}",
                label(&qcow::Escaped(host).to_string()),
                label(&shown(&base.path))
            );
        }
    }
    text
}

fn head(text: &mut String, name: &str, help: &str) {
    let _ =
        writeln!(text, "# HELP qcowtool_audit_{name} {help}\n# TYPE qcowtool_audit_{name} gauge");
}

/// What a label's value may hold. Control characters have been escaped before.
fn label(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"")
}
