//! The status page. Names in it come from images and directories, and may be made to do harm: whatever is
//! not written here is escaped, and the page may run nothing and fetch nothing from elsewhere.

use std::fmt::Write;
use std::path::Path;
use std::time::SystemTime;

use migrate::audit::{Finding, Report, Severity};
use qcow::Escaped;

use crate::output::shown;
use crate::size::human;

/// The most findings and bases that are listed.
const FINDINGS: usize = 300;
const BASES: usize = 20;

/// How it looks.
pub(super) const STYLE: &str = include_str!("page.css");

/// What is there before anything was looked at.
pub(super) fn waiting() -> String {
    let text = "<p class=\"note\">No scan has finished yet: the first one is running.</p>";
    document(text, 2)
}

/// The page of a report that was made at a time.
pub(super) fn page(report: &Report, now: SystemTime) -> String {
    let summary = &report.summary;
    let mut text = String::new();
    let time = jiff::Timestamp::try_from(now).map(|time| {
        let zoned = time.to_zoned(jiff::tz::TimeZone::system());
        zoned.strftime("%Y-%m-%d %H:%M:%S %Z").to_string()
    });
    let _ = writeln!(text, "<p class=\"note\">As of {}</p>", escaped(&time.unwrap_or_default()));
    text.push_str("<ul class=\"figures\">\n");
    for (class, value, what) in [
        ("error", summary.errors.to_string(), "errors"),
        ("warning", summary.warnings.to_string(), "warnings"),
        ("info", summary.infos.to_string(), "notes"),
        ("", summary.images.to_string(), "images"),
        ("", summary.domains.to_string(), "domains"),
        ("", summary.deepest.to_string(), "deepest chain"),
        ("", human(summary.allocated), "allocated"),
        ("", human(summary.shared), "saved by sharing"),
    ] {
        let class = if value == "0" { "" } else { class };
        let _ = writeln!(text, "<li class=\"{class}\"><b>{value}</b> {what}</li>");
    }
    text.push_str("</ul>\n");
    findings(report, &mut text);
    bases(report, &mut text);
    text.push_str(
        "<h2>Backing-file dependencies</h2>\n<p><a href=\"graph.svg\"><img src=\"graph.svg\" \
         alt=\"The images and domains as a graph\"></a></p>\n",
    );
    document(&text, 30)
}

fn findings(report: &Report, text: &mut String) {
    text.push_str("<h2>Findings</h2>\n");
    if report.findings.is_empty() {
        text.push_str("<p>Nothing was found.</p>\n");
        return;
    }
    text.push_str(
        "<table>\n<thead><tr><th>severity</th><th>code</th><th>where</th><th>what</th></tr></thead>\n\
         <tbody>\n",
    );
    for finding in report.findings.iter().take(FINDINGS) {
        let Finding { severity, code, host, path, what, way_out } = finding;
        let class = match severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Info => "info",
        };
        let host = host.as_ref().map(|host| format!(" on {}", escaped(host))).unwrap_or_default();
        let _ = writeln!(
            text,
            "<tr><td class=\"{class}\">{}</td><td>{}</td><td class=\"path\">{}{host}</td>\
             <td>{}<br><span class=\"note\">{}</span></td></tr>",
            severity.as_str(),
            code.as_str(),
            name(path),
            escaped(what),
            escaped(&way_out.to_string())
        );
    }
    text.push_str("</tbody>\n</table>\n");
    more(report.findings.len(), FINDINGS, "findings", text);
}

fn bases(report: &Report, text: &mut String) {
    let mut bases: Vec<_> = report.bases.iter().filter(|base| base.shared > 0).collect();
    if bases.is_empty() {
        return;
    }
    bases.sort_by(|a, b| b.shared.cmp(&a.shared).then_with(|| a.path.cmp(&b.path)));
    text.push_str(
        "<h2>Bases</h2>\n<table>\n<thead><tr><th>base</th><th>users</th><th>allocated</th>\
         <th>saves</th></tr></thead>\n<tbody>\n",
    );
    for base in bases.iter().take(BASES) {
        let _ = writeln!(
            text,
            "<tr><td class=\"path\">{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            name(&base.path),
            base.users,
            human(base.allocated),
            human(base.shared)
        );
    }
    text.push_str("</tbody>\n</table>\n");
    more(bases.len(), BASES, "bases", text);
}

fn more(all: usize, listed: usize, what: &str, text: &mut String) {
    if all > listed {
        let more = all.saturating_sub(listed);
        let _ = writeln!(
            text,
            "<p class=\"note\">{more} more {what} are in <a href=\"audit.json\">the JSON</a>.</p>"
        );
    }
}

fn document(body: &str, refresh: u32) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"refresh\" content=\"{refresh}\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>qcowtool monitor</title>\n<link rel=\"stylesheet\" href=\"style.css\">\n</head>\n<body>\n\
         <h1>qcowtool monitor</h1>\n{body}\
         <p class=\"note\"><a href=\"metrics\">metrics</a> · <a href=\"audit.json\">JSON</a> · \
         <a href=\"health\">health</a> · qcowtool {}</p>\n</body>\n</html>\n",
        env!("CARGO_PKG_VERSION")
    )
}

fn name(path: &Path) -> String {
    in_html(&shown(path))
}

/// Text of which nothing is known.
fn escaped(text: &str) -> String {
    in_html(&Escaped(text).to_string())
}

fn in_html(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}
