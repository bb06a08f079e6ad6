//! A report as text. Names come from images and directories, so every line is escaped.

use std::fmt::Write;

use migrate::audit::Report;
use qcow::Escaped;

use crate::output::shown;
use crate::size::human;

/// The most bases that are listed.
const BASES: usize = 20;

/// Findings, what bases save, and the figures.
pub(super) fn text(report: &Report) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let host = finding.host.as_ref().map(|host| format!(" on {}", Escaped(host)));
        let _ = writeln!(
            text,
            "{}: {}: {}{}\n    {}\n    {}",
            finding.severity.as_str(),
            finding.code.as_str(),
            shown(&finding.path),
            host.unwrap_or_default(),
            Escaped(&finding.what),
            Escaped(&finding.way_out.to_string()),
        );
    }
    let mut bases: Vec<_> = report.bases.iter().filter(|base| base.shared > 0).collect();
    bases.sort_by(|a, b| b.shared.cmp(&a.shared).then_with(|| a.path.cmp(&b.path)));
    for base in bases.iter().take(BASES) {
        let _ = writeln!(
            text,
            "shared: {}: {} for {} users, which saves {}",
            shown(&base.path),
            human(base.allocated),
            base.users,
            human(base.shared)
        );
    }
    if bases.len() > BASES {
        let _ = writeln!(text, "shared: {} more bases", bases.len().saturating_sub(BASES));
    }
    let summary = &report.summary;
    let _ = writeln!(
        text,
        "{} images, {} of them on others, deepest chain {}; {} domains; {} allocated, {} saved by \
         sharing\n{} errors, {} warnings, {} notes",
        summary.images,
        summary.overlays,
        summary.deepest,
        summary.domains,
        human(summary.allocated),
        human(summary.shared),
        summary.errors,
        summary.warnings,
        summary.infos,
    );
    text
}
